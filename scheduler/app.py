"""Composition: settings -> objects -> one TaskGroup. The only file that knows every room.

Order of start is the data's: cluster and telemetry in, state, then the doors, which say 503 until enough is known.
Order of stop is the reverse, each step with its share of the grace: hand the Lease back, answer what is asked, close.
What has not ended when the grace is over is left where it stands (hard_end.py).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from scheduler import __version__
from scheduler.bindings import Binding, Bindings, Past
from scheduler.cluster.api_request import Limits
from scheduler.cluster.credentials import find
from scheduler.cluster.kubernetes import PROBE_EVERY_S, KubernetesCluster
from scheduler.cluster.lease import Elector
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.objects import Pod
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Changed, ClusterEvent, Gone, Kind
from scheduler.cluster.readings import StoreHandler
from scheduler.config_settings import Face, Mode, Settings
from scheduler.core.aio import guard
from scheduler.core.clock import Clock, SystemClock
from scheduler.core.errors import ClusterError, ConfigError
from scheduler.core.log import kv, setup
from scheduler.extender.server import ExtenderCounters, ExtenderServer
from scheduler.extender.verbs import Fence, Verbs
from scheduler.facts import Facts, sources
from scheduler.hard_end import HardEnd
from scheduler.listeners import Listeners
from scheduler.notices import Notices
from scheduler.parts import broker_settings, listener_spec, make_decider, make_store
from scheduler.report.api import Api
from scheduler.report.metrics import MetricsPage
from scheduler.report.probes import metrics_routes, probe_routes
from scheduler.telemetry.bus import TelemetrySubscriber

log = logging.getLogger(__name__)

ROLE_LABEL = "wattbalance.io/role"
LEADER = "leader"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# Ages and stale readings are also brought up to date by each decision; this is for quiet times.
TICK_S = 0.25
# Without these nothing can be placed; owners and namespaces may be refused by the role.
REQUIRED = (Kind.NODE, Kind.POD)
RELABEL_S = 5.0
# A full collection after so many of the second generation's: not before the start is over.
NO_FULL_COLLECTIONS = 1_000_000
# A kube-scheduler with work asks several times a minute; one that stands by does not ask at all.
ASKED_LATELY_S = 60.0


class Daemon:
    """One replica of `wattbalance serve`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.pod_name = os.environ.get("POD_NAME", "")
        self.namespace = settings.lease.namespace or own_namespace()
        instance = uuid.uuid4().hex[:8]
        self.identity = f"{settings.lease.identity or self.pod_name or socket.gethostname()}-{instance}"
        self.stopping = asyncio.Event()
        self.leader_pods: set[str] = set()
        self.broker_waited = False
        self.on_stopping: Callable[[], None] = _nothing
        """Called when the end begins: we were told, or a task has failed."""
        self._promised = ""
        self._settled = False
        self._gc_threshold = gc.get_threshold()
        # 1. State and opinion.
        self.store = make_store(settings)
        self.decider = make_decider(settings, self.store, instance=instance)
        self.bindings = Bindings(
            settings.scheduler_names,
            settings.managed_resources,
            decision_of=self.decider.log.of_pod,
            judges=self.leads,
            is_asked=self._is_asked,
        )
        self.store.on_bound = self._note_bound
        # 2. What comes in.
        kubeconfig = Path(settings.cluster.kubeconfig) if settings.cluster.kubeconfig else None
        self.credentials = find(clock=clock, kubeconfig=kubeconfig)
        self.cluster = KubernetesCluster(
            self.credentials,
            clock,
            instance=self.pod_name or socket.gethostname(),
            limits=Limits(call_timeout_s=float(settings.cluster.api_timeout_s)),
            # Who observes renews no Lease: without a sign of life in time, a quiet server would count as silent.
            probe_every_s=min(PROBE_EVERY_S, float(settings.cluster.stale_s) / 2),
        )
        self.handler = StoreHandler(self.store)
        self.subscriber = TelemetrySubscriber(
            broker_settings(settings), cluster=settings.cluster.name, handler=self.handler, clock=clock
        )
        # 3. Who acts.
        self.elector: Elector | None = None
        # Who observes changes nothing, so there is nothing to guard and nobody to elect (docs/adr/0009).
        if settings.lease.enabled and not self.observing:
            lease = settings.lease
            self.elector = self.cluster.elector(
                namespace=self.namespace,
                identity=self.identity,
                name=lease.name,
                times=LeaseTimes(
                    lease_s=float(lease.duration_s),
                    deadline_s=float(lease.renew_deadline_s),
                    retry_s=float(lease.retry_s),
                ),
            )
        # 4. What goes out.
        self.fence = Fence()
        self.fence.not_ready = self.not_ready
        self.fence.leads = self.may_decide
        self.fence.term = lambda: self.elector.term if self.elector else 0
        self.verbs = Verbs(
            self.decider,
            self.cluster if settings.extender.bind else None,
            clock,
            self.fence,
            observe=settings.mode is Mode.OBSERVE,
        )
        self.notices = Notices(self.cluster.note, self.leads, clock)
        self.cluster.events.may_write = self.leads
        self.decider.on_no_fit = self.notices.no_fit
        self.bindings.on_past = self._tell_past
        self.counters = ExtenderCounters()
        self.server = ExtenderServer(self.verbs, self.counters, clock)
        facts = Facts(self)
        self.listeners = Listeners(
            [listener_spec(each) for each in settings.listeners],
            {
                "extender": self.server.routes(settings.extender.prefix),
                "api": Api(facts, facts, facts, __version__).routes(),
                "metrics": metrics_routes(MetricsPage(sources(self), facts)),
                "probes": probe_routes(facts),
            },
            grace_s=float(settings.shutdown.grace_s) / 2,
        )

    # --- what this replica knows and may do ----------------------------------------------------------------------

    def leads(self) -> bool:
        """Whether it may act now: never while it observes."""
        if self.stopping.is_set() or self.observing:
            return False
        return self.elector is None or self.elector.is_leading(self.clock.mono_s())

    def may_decide(self) -> bool:
        """Whether it may answer from off this machine: the leader, or anyone whose decisions change nothing."""
        return self.leads() or (self.observing and not self.stopping.is_set())

    @property
    def role(self) -> str:
        """`leader` or `standby`; `observer` takes no part in that."""
        if self.observing:
            return "observer"
        return LEADER if self.leads() else "standby"

    @property
    def leader_name(self) -> str:
        """Who leads, as far as we know."""
        if self.elector is not None:
            return self.elector.leader
        return "" if self.observing else self.identity

    @property
    def observing(self) -> bool:
        """Whether everything is decided and nothing done."""
        return self.settings.mode is Mode.OBSERVE

    def not_ready(self) -> str | None:
        """Why it does not know enough to answer; None if it does."""
        heard_mono_s = self.cluster.last_contact_mono_s
        if heard_mono_s is None:
            return f"the API server has not answered yet{self._why_failing(Kind)}"
        silent_s = self.clock.mono_s() - heard_mono_s
        if silent_s > self.settings.cluster.stale_s:
            return "the API server is silent"
        refused = self.cluster.refused
        for kind in REQUIRED:
            if kind in refused:
                return refused[kind]
        if self.stopping.is_set():
            return "stopping"
        if missing := self._missing():
            return f"not synced yet: {', '.join(missing)}{self._why_failing(missing)}"
        if not self.broker_waited:
            return "waiting for the broker"
        return None

    def _missing(self) -> list[Kind]:
        """Kinds whose first list is still to come."""
        return [kind for kind in Kind if kind not in self.store.synced and kind not in self.cluster.refused]

    def _why_failing(self, kinds: Iterable[Kind]) -> str:
        """What the last attempt at the first of these that fails ended with."""
        failing = self.cluster.failing
        return next((f" ({failing[kind]})" for kind in kinds if kind in failing), "")

    def degraded(self) -> list[str]:
        """What is missing though we answer: a closed set of words for metrics and `/readyz`."""
        found = []
        if not self.subscriber.connected:
            found.append("broker_away")
        else:
            last = self.subscriber.last_message_mono_s
            if self.store.nodes and (
                last is None or self.clock.mono_s() - last > self.settings.telemetry.stale_s
            ):
                found.append("broker_silent")
        found += [f"cannot_list_{kind.value}" for kind in self.cluster.refused]
        if self.cluster.forbidden:
            found.append("forbidden")
        if self.observing:
            found.append("observing")
        return found

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `stopping` is set, then stop in order. Any failing task ends all."""
        gc.set_threshold(*self._gc_threshold[:2], NO_FULL_COLLECTIONS)
        try:
            await self._run()
        finally:
            gc.set_threshold(*self._gc_threshold)

    async def _logged_in(self) -> bool:
        """Log in to the API server; False if we are to stop before: a login plugin may take half a minute."""
        async with asyncio.TaskGroup() as group:
            login = group.create_task(self.credentials.access(), name="cluster.login")
            stop = group.create_task(self.stopping.wait(), name="cluster.login.stop")
            await asyncio.wait((login, stop), return_when=asyncio.FIRST_COMPLETED)
            login.cancel()
            stop.cancel()
        return not login.cancelled()

    async def _run(self) -> None:
        if not await self._logged_in():
            return
        async with self.cluster, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(guard("listeners.run", self.listeners.run()), name="listeners.run"),
                group.create_task(guard("cluster.run", self.cluster.run()), name="cluster.run"),
                *(
                    group.create_task(
                        guard(f"cluster.watch[{kind}]", self._watch(kind)), name=f"cluster.watch[{kind}]"
                    )
                    for kind in Kind
                ),
                group.create_task(guard("telemetry.run", self.subscriber.run()), name="telemetry.run"),
                group.create_task(guard("store.tick", self._tick()), name="store.tick"),
                *(
                    [group.create_task(guard("extender.binds", binder.run()), name="extender.binds")]
                    if (binder := self.verbs.binder) is not None
                    else []
                ),
                group.create_task(self._wait_for_broker(), name="telemetry.wait"),
            ]
            election = None
            if self.elector is not None:
                election = group.create_task(
                    guard("lease.run", self.elector.run(self._lead)), name="lease.run"
                )
            elif not self.observing:
                # Without an election the Service selects the leader's label all the same.
                tasks.append(group.create_task(guard("lead", self._lead(0)), name="lead"))
            try:
                await self.stopping.wait()
            finally:
                self.on_stopping()
            log.info("stopping", extra=kv(grace_s=float(self.settings.shutdown.grace_s)))
            # 1. Hand the Lease back, so that the standby leads while we still answer what is in flight.
            await _cancelled(election, float(self.settings.shutdown.grace_s) / 4)
            # 2. Close the doors: in-flight requests are answered, idle connections closed.
            await _cancelled(tasks[0], float(self.settings.shutdown.grace_s) * 0.6)
            # 3. The rest holds nothing that matters.
            for task in tasks[1:]:
                task.cancel()

    async def _watch(self, kind: Kind) -> None:
        first = True
        async for event in self.cluster.watch(kind):
            if kind is Kind.POD:
                self._see_pod(event)
            else:
                self.store.apply(event, self.clock.mono_s())
            if first and kind in self.store.synced:
                first = False
                if kind is Kind.POD:
                    self._inherit()
                log.info("synced", extra=kv(kind=kind.value))

    def _see_role(self, event: ClusterEvent) -> None:
        if not isinstance(event, Changed | Gone) or not isinstance(event.object, Pod):
            return
        meta = event.object.metadata
        if meta.namespace != self.namespace:
            return
        if isinstance(event, Changed) and (meta.labels or {}).get(ROLE_LABEL) == LEADER:
            self.leader_pods.add(meta.name)
        else:
            self.leader_pods.discard(meta.name)

    def _see_pod(self, event: ClusterEvent) -> None:
        now_mono_s = self.clock.mono_s()
        if isinstance(event, Changed):
            # A binding takes the promise with it, so it is looked up before the store sees it.
            promise = self.store.reservations.get(event.object.metadata.uid)
            self._promised = promise.node if promise is not None else ""
        self.store.apply(event, now_mono_s)
        self.bindings.see(event, now_mono_s, synced=Kind.POD in self.store.synced)
        self._see_role(event)

    def _note_bound(self, pod: PodFacts) -> None:
        self.bindings.bound(pod, self._promised, self.clock.mono_s())

    def _tell_past(self, binding: Binding, why: Past) -> None:
        pod = f"{binding.namespace}/{binding.name}"
        log.info("bound past us", extra=kv(pod=pod, node=binding.node, reason=why.value))
        self.notices.past(binding, why)

    def _inherit(self) -> None:
        until_mono_s = self.clock.mono_s() + float(self.settings.extender.reservation_s)
        self.bindings.inherit(self.store.waiting, until_mono_s)

    def _is_asked(self) -> bool:
        """Whether kube-scheduler comes to this replica: surely, unless each of several answers its own neighbour."""
        doors = [each.address for each in self.settings.listeners if Face.EXTENDER in each.serves]
        if not self.pod_name or self.elector is None or not all(door.loopback for door in doors):
            return True
        newest = next(iter(self.decider.log), None)
        return newest is not None and self.clock.unix_s() - newest.unix_s < ASKED_LATELY_S

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_mono_s = self.clock.mono_s()
            if not self._settled and not self._missing():
                self._settled = True
                # What was just listed stays: full collections need not walk it, neither later nor while it comes
                # (60 ms each). Cycles that the start left behind stay with it; a few kilobytes.
                gc.freeze()
                gc.set_threshold(*self._gc_threshold)
            self.store.tick(now_mono_s)
            self.store.reservations.forget_old_choices(now_mono_s)

    async def _wait_for_broker(self) -> None:
        """Wait for the broker at start, a while: readings are worth it, but placing goes on without them."""
        try:
            async with asyncio.timeout(float(self.settings.telemetry.wait_at_start_s)):
                await self.subscriber.wait_connected()
        except TimeoutError:
            log.warning("serving without telemetry", extra=kv(reason=self.subscriber.last_error))
        self.broker_waited = True

    async def _lead(self, term: int) -> None:
        """While we lead: carry the leader's label. When it ends: close connections that would stay with us."""
        self._inherit()
        try:
            while True:
                await self._take_label(term)
                await asyncio.sleep(RELABEL_S)
        finally:
            # Go's client keeps its connection to a demoted, living replica for ever.
            self.server.close_connections()

    async def _take_label(self, term: int) -> None:
        if not self.pod_name:
            return
        try:
            if self.pod_name not in self.leader_pods:
                await self.cluster.label_pod(self.namespace, self.pod_name, {ROLE_LABEL: LEADER})
                log.info("took the leader's label", extra=kv(pod=self.pod_name, term=term))
            for other in sorted(self.leader_pods - {self.pod_name}):
                await self.cluster.label_pod(self.namespace, other, {ROLE_LABEL: None})
        except ClusterError as error:
            log.warning("could not move the leader's label: %s", error)


def _nothing() -> None:
    pass


async def _cancelled(task: asyncio.Task[None] | None, grace_s: float) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task], timeout=grace_s)


def own_namespace() -> str:
    """The namespace this process runs in: POD_NAMESPACE, else its service account's, else `default`."""
    named = os.environ.get("POD_NAMESPACE")
    if named:
        return named
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"


def serve(settings: Settings, config_path: str) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code."""
    writer = setup(settings.log.level.value, settings.log.format.value)
    log.info("configuration", extra=kv(file=config_path))
    end = HardEnd(float(settings.shutdown.grace_s), writer.stop)
    try:
        return asyncio.run(_serve(settings, end))
    finally:
        end.call_off()
        writer.stop()


def _cannot_run(group: BaseExceptionGroup[BaseException], code: int) -> int:
    for error in group.exceptions:
        log.critical("cannot run: %s", error)
    return code


async def _serve(settings: Settings, end: HardEnd) -> int:
    daemon = Daemon(settings, SystemClock())
    loop = asyncio.get_running_loop()

    def stop() -> None:
        end.begin(loop)
        daemon.stopping.set()

    daemon.on_stopping = lambda: end.begin(loop)
    # SIGHUP too: the terminal that started us is gone, and the Lease should not wait for its end.
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(each, stop)
    log.info(
        "starting",
        extra=kv(
            cluster=settings.cluster.name,
            mode=settings.mode.value,
            identity=daemon.identity,
            listeners=[str(each.address) for each in settings.listeners],
        ),
    )
    code = 0
    try:
        await daemon.run()
    except* ConfigError as group:
        code = _cannot_run(group, 2)
    except* OSError as group:
        code = _cannot_run(group, 1)
    log.info("stopped")
    return code
