"""Composition: settings -> objects -> one TaskGroup. The only file that knows every room.

Order of start is the data's: cluster and telemetry in, state, then the doors, which say 503 until enough is known.
Order of stop is the reverse, each step with its share of the grace: hand the Lease back and let nobody new in, answer
what is being asked, close.
What has not ended when the grace is over is left where it stands (hard_end.py).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scheduler import __version__, config
from scheduler.bindings import DEFAULT_SCHEDULER, Binding, Bindings, Past
from scheduler.cluster.api_request import Limits
from scheduler.cluster.credentials import find
from scheduler.cluster.intent import Fault
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.objects import Meta
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Changed, ClusterEvent, Kind, Listed, Only
from scheduler.cluster.readings import StoreHandler
from scheduler.cluster.unit_words import said
from scheduler.config_settings import Face, Mode, Settings
from scheduler.core.aio import guard, tell_unhandled
from scheduler.core.clock import Clock, SystemClock
from scheduler.core.errors import ConfigError
from scheduler.core.log import kv, setup
from scheduler.extender.server import ExtenderCounters, ExtenderServer
from scheduler.extender.verbs import Fence, Verbs
from scheduler.facts import Facts, sources
from scheduler.hard_end import HardEnd
from scheduler.knowledge import Knowledge
from scheduler.leadership import Leadership
from scheduler.listeners import Listeners
from scheduler.notices import Notices
from scheduler.nudges import Nudges
from scheduler.observing import Observing, observed, observed_as
from scheduler.own_pod import own_name
from scheduler.parts import broker_settings, listener_spec, make_decider, make_store, probe_every_s
from scheduler.pause import NAME as PAUSE_NAME
from scheduler.pause import Pause
from scheduler.reload import Reload, watchable
from scheduler.report.api import Api
from scheduler.report.explain import Explainer
from scheduler.report.metrics import MetricsPage
from scheduler.report.observe import ObserveReporter
from scheduler.report.probes import metrics_routes, probe_routes
from scheduler.telemetry.bus import TelemetrySubscriber
from scheduler.unasked import Unasked
from scheduler.waking import waking_by
from scheduler.writeback import WriteBack

log = logging.getLogger(__name__)

# Ages and stale readings are also brought up to date by each decision; this is for quiet times.
TICK_S = 0.25
# A full collection after so many of the second generation's: not before the start is over.
NO_FULL_COLLECTIONS = 1_000_000
# A kube-scheduler with work asks several times a minute; one that stands by does not ask at all.
ASKED_LATELY_S = 60.0


class Daemon:
    """One replica of `wattbalance serve`."""

    def __init__(self, settings: Settings, clock: Clock, config_file: Path | None = None) -> None:
        self.settings = settings
        self.clock = clock
        instance = uuid.uuid4().hex[:8]
        self.stopping = asyncio.Event()
        self.on_stopping: Callable[[], None] = _nothing
        """Called when the end begins: we were told, or a task has failed."""
        self._promised = ""
        self._settled = False
        self._gc_threshold = gc.get_threshold()
        # 1. State and opinion.
        self.store = make_store(settings)
        self.decider = make_decider(settings, self.store, instance=instance)
        # 2. What comes in.
        kubeconfig = Path(settings.cluster.kubeconfig) if settings.cluster.kubeconfig else None
        self.credentials = find(clock=clock, kubeconfig=kubeconfig)
        self.cluster = KubernetesCluster(
            self.credentials,
            clock,
            instance=own_name() or socket.gethostname(),
            limits=Limits(call_timeout_s=float(settings.cluster.api_timeout_s)),
            probe_every_s=probe_every_s(settings),
        )
        self.handler = StoreHandler(self.store)
        self.subscriber = TelemetrySubscriber(
            broker_settings(settings), cluster=settings.cluster.name, handler=self.handler, clock=clock
        )
        self.knowledge = Knowledge(
            settings, clock, self.store, self.cluster, self.subscriber, over=self.stopping
        )
        # 3. Who acts.
        self.leadership = Leadership(
            settings,
            clock,
            self.cluster,
            instance=instance,
            over=self.stopping,
            is_fit=lambda: self.knowledge.not_ready() is None,
        )
        self.pause = Pause()
        self.pause.on_begin = self._take_promises_back
        self.leadership.is_paused = lambda: (
            self.pause.now is not None or not self.knowledge.knows(Kind.CONFIGMAP)
        )
        # 4. What goes out.
        self.bindings = Bindings(
            settings.scheduler_names,
            settings.managed_resources,
            decision_of=self.decider.log.of_pod,
            owner_of=self.decider.log.owner_of,
            judges=self.leadership.may_act,
            is_asked=self._is_asked,
        )
        self.store.on_bound = self._note_bound
        self.fence = Fence()
        self.fence.not_ready = self.knowledge.not_ready
        self.fence.leads = self.leadership.may_decide
        self.fence.term = lambda: self.leadership.term
        self.fence.paused = lambda: str(self.pause.now or "")
        self.verbs = Verbs(
            self.decider,
            self.cluster if settings.extender.bind else None,
            clock,
            self.fence,
            observe=settings.mode is Mode.OBSERVE,
            pods_clock=self.cluster.server_clock,
        )
        self.notices = Notices(
            self.cluster.note,
            self.leadership.may_act,
            clock,
            self.store.intents.topmost,
            said=partial(said, self.store),
        )
        self.cluster.events.may_write = self.leadership.may_act
        self.decider.on_no_fit = lambda record, request: self.notices.no_fit(record, request.controller)
        self.store.on_faults = self._note_faults
        self.store.on_contradictions = self._note_contradictions
        self.unasked = Unasked(
            self.store,
            clock,
            may_tell=lambda: self.leadership.may_act() and self.knowledge.not_ready() is None,
            is_ours=self._should_ask,
            tell=self._tell_faults,
        )
        self.bindings.on_past = self._tell_past
        self.write_back = WriteBack(
            self.cluster,
            self.decider.log,
            may_write=self.leadership.may_act,
            term=lambda: self.leadership.term,
            most_per_s=lambda: self.settings.extender.annotations_per_s,
        )
        self.bindings.is_observed = self.decider.is_observed
        self.observing = Observing(
            self.decider,
            self.handler,
            clock,
            what=lambda: observed(self.settings, self.pause),
            by=lambda: (
                observed_as(self.settings, self.pause),
                self.settings.profiles,
                self.settings.filters,
            ),
            is_ready=lambda: not self.knowledge.missing(),
        )
        self.nudges = Nudges.of(self)
        self.counters = ExtenderCounters()
        self.server = ExtenderServer(self.verbs, self.counters, clock)
        facts = Facts(self)
        observer = ObserveReporter(self.observing, clock)
        explainer = Explainer(
            self.decider,
            self.cluster.server_clock,
            lambda: self.leadership.role,
            self.nudges.last_unix_s.get,
            lambda: self.cluster.refused,
            lambda: self.bindings.scheduler_names,
            waking=waking_by(self),
            get_pod=self.cluster.get_pod,
        )
        self.listeners = Listeners(
            [listener_spec(each) for each in settings.listeners],
            {
                "extender": self.server.routes(settings.extender.prefix),
                "api": [
                    *Api(facts, facts, facts, __version__).routes(),
                    *explainer.routes(),
                    *observer.routes(),
                ],
                "metrics": metrics_routes(MetricsPage(sources(self), facts)),
                "probes": probe_routes(facts),
            },
            grace_s=float(settings.shutdown.grace_s) / 2,
        )
        # 5. What it is like tomorrow.
        self.reload = Reload(config_file, self, self.cluster.note)
        self.listeners.paused = self.fence.paused
        self.listeners.observing = self.observing.what
        self.knowledge.faults = {
            "certificate_not_reloaded": self.listeners.certificate_not_reloaded,
            "bind_off": self.verbs.no_binder.is_missed,
            "clock": self.cluster.server_clock.is_off,
            "leader_label": self.leadership.lacks_label,
            "lease": self.leadership.lacks_lease,
            "config_refused": lambda: bool(self.reload.problems),
            "restart_needed": lambda: bool(self.reload.restart_needed),
            "node_in_two_pools": lambda: self.store.snapshot.in_two_pools is not None,
            "devices_uncounted": lambda: self.store.devices.uncounted > 0,
            "paused": lambda: self.pause.now is not None,
        }

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
                group.create_task(guard("decisions.write", self.write_back.run()), name="decisions.write"),
                group.create_task(guard("pods.wake", self.nudges.run()), name="pods.wake"),
                group.create_task(guard("pods.judge", self.unasked.run()), name="pods.judge"),
                group.create_task(guard("config.reload", self.reload.run()), name="config.reload"),
                group.create_task(guard("observing.run", self.observing.run()), name="observing.run"),
                *(
                    [group.create_task(guard("extender.binds", binder.run()), name="extender.binds")]
                    if (binder := self.verbs.binder) is not None
                    else []
                ),
                group.create_task(self._wait_for_broker(), name="telemetry.wait"),
            ]
            election = None
            if (elector := self.leadership.elector) is not None:
                election = group.create_task(guard("lease.run", elector.run(self._lead)), name="lease.run")
            elif not self.leadership.observing:
                # Without an election the Service selects the leader's label all the same.
                tasks.append(group.create_task(guard("lead", self._lead(0)), name="lead"))
            try:
                await self.stopping.wait()
            finally:
                self.on_stopping()
            log.info("stopping", extra=kv(grace_s=float(self.settings.shutdown.grace_s)))
            # 1. Hand the Lease back, so that the standby leads while we still answer what is in flight. The doors close
            # meanwhile: nobody new is let in, requests that have begun are answered, idle connections closed.
            tasks[0].cancel()
            await _cancelled(election, float(self.settings.shutdown.grace_s) / 4)
            # 2. They have their share of the grace.
            await asyncio.wait([tasks[0]], timeout=float(self.settings.shutdown.grace_s) * 0.6)
            # 3. The rest holds nothing that matters.
            for task in tasks[1:]:
                task.cancel()

    async def _watch(self, kind: Kind) -> None:
        first = True
        only = Only(self.leadership.namespace, PAUSE_NAME) if kind is Kind.CONFIGMAP else None
        async for event in self.cluster.watch(kind, only):
            if kind is Kind.POD:
                self._see_pod(event)
            elif kind is Kind.CONFIGMAP:
                self.pause.see(event)
                if isinstance(event, Listed):
                    self.store.apply(event, self.clock.mono_s())
            else:
                self.store.apply(event, self.clock.mono_s())
                self.observing.see(event)
            if first and kind in self.store.synced:
                first = False
                if kind is Kind.POD:
                    self._inherit()
                log.info("synced", extra=kv(kind=kind.value))

    def _see_pod(self, event: ClusterEvent) -> None:
        now_mono_s = self.clock.mono_s()
        before = None
        if isinstance(event, Changed):
            # A binding takes the promise with it, so it is looked up before the store sees it.
            uid = event.object.metadata.uid
            promise = self.store.reservations.get(uid)
            self._promised = promise.node if promise is not None else ""
            before = self.store.waiting.get(uid)
        self.store.apply(event, now_mono_s)
        if isinstance(event, Listed):
            self.unasked.keep(event.keys)
        else:
            self.unasked.see(event.object.metadata.uid, before, now_mono_s)
        self.observing.see(event)
        self.leadership.see(event)

    def _take_promises_back(self) -> None:
        """A pause begins, and who observes promises nothing; but a Binding that was sent may yet be carried out."""
        now_mono_s = self.clock.mono_s()
        in_doubt = self.verbs.binder.unknown if self.verbs.binder is not None else {}
        for held in self.store.reservations.made_before(math.inf):
            if held.uid not in in_doubt:
                self.store.release(held.uid, now_mono_s)

    def _note_bound(self, pod: PodFacts) -> None:
        self.bindings.bound(pod, self._promised, self.clock.mono_s())
        if self.settings.extender.annotate and not self.decider.is_observed(pod.node):
            self.write_back.bound(pod)

    def _note_faults(self, pod: Meta, faults: tuple[Fault, ...]) -> None:
        """Told once it is decided: nothing is written about a pod that goes to a pool that is only observed."""
        asyncio.get_running_loop().call_soon(self._tell_faults, pod, faults)

    def _tell_faults(self, pod: Meta, faults: tuple[Fault, ...]) -> None:
        record = self.decider.log.of_pod(pod.uid)
        if record is None or record.result != "observed":
            self.notices.bad_annotations(pod, faults)

    def _should_ask(self, pod: PodFacts) -> bool:
        """Whether kube-scheduler should ask us about a pod, and nothing but our own nodes may come of it.

        Where some pools are only observed, nobody knows before we are asked whether it goes there.
        """
        return (
            (pod.scheduler_name or DEFAULT_SCHEDULER) in self.bindings.scheduler_names
            and any(self.bindings.manages(name) for name, _ in pod.units)
            and not any(pool.observe for pool in self.store.settings.pools)
        )

    def _tell_past(self, binding: Binding, why: Past) -> None:
        pod = f"{binding.namespace}/{binding.name}"
        log.info("bound past us", extra=kv(pod=pod, node=binding.node, reason=why.value))
        self.notices.past(binding, why)

    def _note_contradictions(self, node: NodeRecord) -> None:
        if not self.decider.is_observed(node.name):
            self.notices.contradictions(node)
            self.notices.in_two_pools(node)

    def _inherit(self) -> None:
        until_mono_s = self.clock.mono_s() + float(self.settings.extender.reservation_s)
        self.bindings.inherit(self.store.waiting, until_mono_s)
        for node in self.store.nodes.values():
            # Told when they were seen, and not written by whoever did not lead then.
            if node.contradictions or node.in_pools:
                self._note_contradictions(node)

    def _is_asked(self) -> bool:
        """Whether kube-scheduler comes to this replica: surely, unless each of several answers its own neighbour."""
        doors = [each.address for each in self.settings.listeners if Face.EXTENDER in each.serves]
        if (
            not self.leadership.pod_name
            or self.leadership.elector is None
            or not all(door.loopback for door in doors)
        ):
            return True
        newest = next(iter(self.decider.log), None)
        return newest is not None and self.clock.unix_s() - newest.unix_s < ASKED_LATELY_S

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_mono_s = self.clock.mono_s()
            self.knowledge.tell()
            if not self._settled and not self.knowledge.missing():
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
        self.knowledge.broker_waited = True

    async def _lead(self, _term: int) -> None:
        """While we lead: carry the leader's label. When it ends: close connections that would stay with us."""
        self._inherit()
        try:
            await self.leadership.carry_label()
        finally:
            # Go's client keeps its connection to a demoted, living replica for ever. One that stops closes its doors
            # by itself, and waits for what is still being asked.
            if not self.stopping.is_set():
                self.server.close_connections()


def _nothing() -> None:
    pass


async def _cancelled(task: asyncio.Task[None] | None, grace_s: float) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task], timeout=grace_s)


def serve(settings: Settings, config_path: str) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code."""
    writer = setup(settings.log.level.value, settings.log.format.value)
    log.info("configuration", extra=kv(file=config_path))
    for problem in config.warnings(settings):
        log.warning("configuration: %s", problem, extra=kv(file=config_path))
    end = HardEnd(float(settings.shutdown.grace_s), writer.stop)
    try:
        return asyncio.run(_serve(settings, end, watchable(config_path)))
    finally:
        end.call_off()
        writer.stop()


def _cannot_run(group: BaseExceptionGroup[BaseException], code: int) -> int:
    for error in group.exceptions:
        log.critical("cannot run: %s", error)
    return code


async def _serve(settings: Settings, end: HardEnd, config_file: Path | None) -> int:
    daemon = Daemon(settings, SystemClock(), config_file)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tell_unhandled)

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
            identity=daemon.leadership.identity,
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
