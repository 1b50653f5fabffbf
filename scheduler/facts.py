"""Composition: what report may ask, answered from the running daemon's own objects."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Protocol

from scheduler import __version__
from scheduler.bindings import Bindings
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.readings import StoreHandler
from scheduler.cluster.store import QUARANTINE_LABEL, Store
from scheduler.core.clock import Clock
from scheduler.decision.decider import Decider
from scheduler.decision.record import DecisionRecord
from scheduler.extender.server import ExtenderCounters
from scheduler.extender.verbs import Verbs
from scheduler.knowledge import Knowledge
from scheduler.leadership import Leadership
from scheduler.listeners import Listeners
from scheduler.nudges import Nudges
from scheduler.observing import Observing
from scheduler.pause import Pause
from scheduler.reload import Reload
from scheduler.report.families import Sources
from scheduler.report.views import GpuView, NodeView, PauseView, PodView, Readiness, ResourceView
from scheduler.telemetry.bus import TelemetrySubscriber
from scheduler.writeback import WriteBack

# Every reason there can be; a list that cannot be read is named by its kind.
DEGRADED = (
    "bind_off",
    "broker_away",
    "broker_silent",
    "certificate_not_reloaded",
    "clock",
    "config_refused",
    "devices_uncounted",
    "forbidden",
    "leader_label",
    "lease",
    "observing",
    "paused",
    "restart_needed",
    "node_in_two_pools",
)


class Replica(Protocol):
    """What the daemon knows of itself."""

    clock: Clock
    store: Store
    decider: Decider
    cluster: KubernetesCluster
    subscriber: TelemetrySubscriber
    handler: StoreHandler
    counters: ExtenderCounters
    verbs: Verbs
    listeners: Listeners
    bindings: Bindings
    write_back: WriteBack
    nudges: Nudges
    leadership: Leadership
    knowledge: Knowledge
    reload: Reload
    pause: Pause
    observing: Observing


class Facts:
    """NodeViews, PodViews, Decisions and Health of report.views."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def node_names(self) -> Sequence[str]:
        """Names of all nodes now."""
        return list(self._replica.store.nodes)

    def node_pool(self, name: str) -> str | None:
        """The pool of one."""
        record = self._replica.store.nodes.get(name)
        return record.pool if record is not None else None

    def node(self, name: str) -> NodeView | None:
        """One node."""
        store = self._replica.store
        record = store.nodes.get(name)
        if record is None:
            return None
        snapshot, row = store.snapshot, record.row
        gpus = float(snapshot.counted_gpus[row])
        readings = store.gpu_readings(name)
        fresh = bool(snapshot.fresh[row])
        age_s = float(snapshot.reading_age_s[row])
        listed = record.inventory.gpus if record.inventory else []
        known = [util_frac for _, util_frac, _ in readings if util_frac is not None]
        broken: float = sum(state in {"lost", "hung"} for state, _, _ in readings)
        if listed:
            # What Kubernetes counts and the agent does not find is no more to be had than what is lost.
            broken += max(gpus - len(listed), 0)
        # Where no agent has told what the node has, all that Kubernetes counts is unknown.
        unknown = max(gpus, len(listed)) - broken - len(known)
        return NodeView(
            name=name,
            pool=record.pool,
            in_pools=list(record.in_pools),
            gpus=round(gpus, 3),
            counted_by=record.counted_by or None,
            # Sums of sevenths round.
            free_gpus=round(float(snapshot.free_gpus[row]), 3),
            bound_gpus=round(float(snapshot.bound_gpus[row]), 3),
            reserved_gpus=round(float(snapshot.reserved_gpus[row]), 3),
            broken_gpus=round(float(broken), 3),
            known_gpus=float(len(known)),
            unknown_gpus=round(float(unknown), 3),
            # Not the policies' cautious figure, which has guesses for what is unknown: this one is measured.
            load_frac=sum(known) / len(known) if known and not unknown else None,
            power_w=store.node_power_w(row),
            reading_age_s=age_s if age_s < float("inf") else None,
            fresh=fresh,
            cordoned=bool(snapshot.cordoned[row]),
            quarantine=record.labels.get(QUARANTINE_LABEL),
            observed=self._replica.decider.is_observed(name),
            agent_version=(record.inventory.agent_version or None) if record.inventory else None,
            model=record.model or None,
            resources={
                name: ResourceView(
                    units=offer.units,
                    unit_gpus=round(offer.gpus, 3),
                    bound=float(snapshot.units_of(name, snapshot.bound_units)[row]),
                    free=float(snapshot.units_of(name, snapshot.free_units)[row]),
                )
                for name, offer in record.offers.items()
            },
            contradictions=list(record.contradictions),
            devices=_devices(store, record, readings),
        )

    def pod_uids(self) -> Sequence[str]:
        """All GPU pods now."""
        return list(self._replica.store.pods)

    def pod_key(self, uid: str) -> tuple[str, str, str] | None:
        """(namespace, name, uid) of one."""
        facts = self._replica.store.pods.get(uid)
        return (facts.namespace, facts.name, uid) if facts is not None else None

    def pod_node(self, uid: str) -> str | None:
        """Where one is bound."""
        facts = self._replica.store.pods.get(uid)
        return facts.node if facts is not None else None

    def pod(self, uid: str) -> PodView | None:
        """One pod."""
        store, decider = self._replica.store, self._replica.decider
        facts = store.pods.get(uid)
        if facts is None:
            return None
        workload = store.intents.workload(facts.meta, facts.priority_class)
        held = store.reservations.get(uid)
        return PodView(
            name=facts.name,
            namespace=facts.namespace,
            uid=uid,
            gpus=facts.gpus,
            resources=dict(facts.units),
            profile=decider.profiles[workload].name,
            workload=workload.value,
            node=facts.node,
            reserved_node=held.node if held else "",
            created_unix_s=_unix_s(facts.meta.creation_timestamp),
        )

    def decisions(self) -> Iterable[DecisionRecord]:
        """Newest first."""
        return iter(self._replica.decider.log)

    def live(self) -> str:
        """An event loop that answers is alive; a task that fails ends the process by itself."""
        return ""

    def readiness(self) -> Readiness:
        """Whether this replica knows enough to answer."""
        why_not = self._replica.knowledge.not_ready()
        return Readiness(
            ready=why_not is None,
            role=self._replica.leadership.role,
            leader=self._replica.leadership.leader_name,
            mode="observe" if self._replica.leadership.observing else "act",
            degraded=self._replica.knowledge.degraded(),
            reasons=[why_not] if why_not else [],
            forbidden=self._replica.cluster.forbidden,
            paused=self.paused(),
        )

    def paused(self) -> PauseView | None:
        """Who has paused us; None while nobody has."""
        now = self._replica.pause.now
        if now is None:
            return None
        return PauseView(by=now.by, claimed=now.claimed, since=now.since, reason=now.reason)


def sources(replica: Replica) -> Sources:
    """Tie metrics to the counters of the rooms."""
    store, decider, counters = replica.store, replica.decider, replica.counters
    cluster, subscriber, handler = replica.cluster, replica.subscriber, replica.handler
    leadership = replica.leadership

    def degraded() -> Mapping[str, bool]:
        now = set(replica.knowledge.degraded())
        return {reason: reason in now for reason in (*DEGRADED, *sorted(now - set(DEGRADED)))}

    def dropped() -> Mapping[str, int]:
        ours = {k.removeprefix("samples_"): v for k, v in store.counters.items() if k.startswith("samples_")}
        return {**handler.drops, **ours, "early_inventory": store.counters["inventories_forgotten"]}

    def lost() -> Mapping[str, int]:
        return {reason: store.counters[f"reservations_{reason}"] for reason in ("expired", "evicted")}

    def observed_pods() -> Mapping[str, int]:
        shadow = replica.observing.shadow
        if shadow is None:
            return {}
        pods = shadow.tally(replica.clock.mono_s())
        return {"same": pods.same, "elsewhere": pods.elsewhere, "waiting": pods.waiting}

    return Sources(
        build_info=lambda: {(__version__, platform.python_version()): 1},
        decisions=lambda: decider.results,
        policy_failures=lambda: decider.failures.counts,
        count_disagreements=lambda: decider.disagreements,
        waiting_pods=lambda: len(store.waiting),
        contradicting_nodes=lambda: sum(bool(node.contradictions) for node in store.nodes.values()),
        unmanaged_nodes=lambda: sum(
            not all(map(replica.bindings.manages, node.offers)) for node in store.nodes.values()
        ),
        incomplete_device_pools=lambda: len(store.devices.incomplete),
        uncounted_devices=lambda: store.devices.uncounted,
        reservations=lambda: len(store.reservations),
        reservations_lost=lost,
        bypassed_pods=lambda: replica.bindings.past,
        annotation_errors=lambda: store.intents.errors,
        decisions_written=lambda: replica.write_back.results,
        nudges=lambda: replica.nudges.results,
        refused_pods=lambda: replica.nudges.waiting,
        extender_requests=lambda: counters.requests,
        extender_bad_requests=lambda: counters.refused,
        extender_full_node_requests=lambda: counters.full_nodes,
        extender_request_seconds=lambda: counters.latency,
        binds=lambda: replica.verbs.binds,
        connections_refused=lambda: asdict(replica.listeners.refused),
        tls_handshakes_refused=lambda: replica.listeners.refused_handshakes,
        certificate_reloads=lambda: asdict(replica.listeners.reloads),
        samples=lambda: subscriber.received,
        samples_dropped=dropped,
        nodes_clock_skewed=lambda: nodes_skewed(store, subscriber.intake.skewed_s),
        broker_connected=lambda: subscriber.connected,
        api_clock_offset_seconds=lambda: cluster.server_clock.offset_s or 0.0,
        api_requests=lambda: cluster.counters.requests,
        api_errors=lambda: cluster.counters.errors,
        watch_restarts=lambda: cluster.counters.watch_restarts,
        watch_relists=lambda: cluster.counters.relists,
        api_throttled=lambda: cluster.counters.throttled,
        watch_events=lambda: cluster.counters.watch_events,
        undecodable_objects=lambda: cluster.counters.undecodable,
        events_written=lambda: cluster.counters.events_written,
        events_dropped=lambda: cluster.counters.events_dropped,
        leader=leadership.leads,
        lease_takeovers=lambda: leadership.elector.takeovers if leadership.elector else 0,
        lease_losses=lambda: leadership.elector.losses if leadership.elector else 0,
        config_reloads=lambda: replica.reload.results,
        config_last_success_timestamp_seconds=lambda: replica.reload.taken_unix_s,
        config_hash=lambda: replica.reload.taken_hash,
        observing=replica.verbs.is_observing,
        paused=lambda: replica.pause.now is not None,
        observed_pods=observed_pods,
        degraded=degraded,
    )


def nodes_skewed(store: Store, skewed_s: Mapping[str, float]) -> int:
    """How many nodes are off: what was seen of a clock long ago, or of a node that has gone, tells nothing of today."""
    fresh, rows = store.snapshot.fresh, store.rows
    return sum(name in rows and bool(fresh[rows[name]]) for name in skewed_s)


def _unix_s(stamp: str | None) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp else None
    except ValueError:
        return None


def _devices(
    store: Store, record: NodeRecord, readings: Sequence[tuple[str, float | None, float | None]]
) -> list[GpuView]:
    """The node's GPUs as its agent lists them, joined by uuid to what DRA tells; then those that only DRA tells of."""
    offered = store.devices.by_node.get(record.name)
    claims = {
        uuid: [f"{claim.namespace}/{claim.name}" for claim in holders]
        for uuid, holders in store.devices.holders(record.name).items()
    }
    listed = record.inventory.gpus if record.inventory else []
    found = [
        GpuView(
            uuid=gpu.uuid,
            model=gpu.model,
            state=state,
            util_frac=util_frac,
            power_w=power_w,
            claims=claims.get(gpu.uuid, []),
        )
        for gpu, (state, util_frac, power_w) in zip(listed, readings, strict=True)
    ]
    known = {gpu.uuid for gpu in listed}
    more = {gpu.uuid or gpu.name: gpu.model for gpu in (offered.gpus if offered is not None else ())}
    # GPUs that were cut are offered as their slices alone.
    more |= {
        part.parent_uuid or part.name: part.model for part in (offered.cut if offered is not None else ())
    }
    return found + [
        GpuView(uuid=uuid, model=model, claims=claims.get(uuid, []))
        for uuid, model in more.items()
        if uuid not in known
    ]
