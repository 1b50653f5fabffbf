"""Every metric of the daemon, declared once: name, kind, meaning, labels, and where its figures come from.

Counters of the other rooms are fields of `Sources`, which facts.py ties in; the field's name is the metric's. What is
told of each node and pool (`NODE_FAMILIES`, `POOL_FAMILIES`, `AGE_FAMILIES`) is thousands of series, and therefore
written by metrics.py itself. docs/metrics.md is made of all of them.
"""
# ruff: noqa: RUF009 - the calls in `Sources` make dataclass fields

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol

from scheduler.report.views import NodeView

Count = Callable[[], float]
By = Callable[[], Mapping[str, int]] | Callable[[], Mapping[str, bool]]
ByTwo = Callable[[], Mapping[tuple[str, str], int]]
ByThree = Callable[[], Mapping[tuple[str, str, str], int]]


class Kind(StrEnum):
    """The type that Prometheus is told."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Histogram(Protocol):
    """A plain histogram, as extender.server.Latency is."""

    @property
    def counts(self) -> Sequence[int]:
        """By bucket of extender.server.BUCKETS_S, not cumulated; the last one is everything above."""
        ...

    @property
    def sum_s(self) -> float:
        """Sum of what was observed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What docs/metrics.md says of a family."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Described):
    """One family whose figures a field of `Sources` gives."""

    source: str

    def series(self, sources: Sources) -> Iterator[tuple[tuple[str, ...], float]]:
        """Ask for the figures now: label values, and the figure beside them."""
        told = getattr(sources, self.source)()
        by_labels = told if isinstance(told, Mapping) else {(): told}
        for key in sorted(by_labels):
            values = key if isinstance(key, tuple) else (key,)
            if len(values) != len(self.labels):
                message = f"{self.name} has the labels {self.labels}, not {values}"
                raise ValueError(message)
            yield values, float(by_labels[key])


def _zero() -> int:
    return 0


def _nothing() -> Mapping[str, int]:
    return {}


def _declared(kind: Kind, text: str, labels: tuple[str, ...]) -> Any:  # noqa: ANN401 - as dataclasses.field
    # What is not tied in reads as nothing counted.
    default = _nothing if labels else _zero
    return field(default=default, metadata={"kind": kind, "text": text, "labels": labels})


def _counter(text: str, *labels: str) -> Any:  # noqa: ANN401 - likewise
    return _declared(Kind.COUNTER, text, labels)


def _gauge(text: str, *labels: str) -> Any:  # noqa: ANN401 - likewise
    return _declared(Kind.GAUGE, text, labels)


def _histogram(text: str, *labels: str) -> Any:  # noqa: ANN401 - likewise
    return _declared(Kind.HISTOGRAM, text, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """One field a family, asked when a page is scraped, never before. Counters get `_total` after their name.

    Label values come from closed sets of the room that counts, never from a user's text.
    """

    build_info: ByTwo = _gauge("Always 1; the labels say what runs.", "version", "python")
    leader: Count = _gauge("1 if this replica holds the Lease.")
    lease_takeovers: Count = _counter("Times this replica began to lead.")
    lease_losses: Count = _counter(
        "Times this replica stopped leading against its will: not renewed in time, or taken by another."
    )
    observing: Count = _gauge(
        "1 if nothing is acted upon, only decided and counted: mode: observe, or paused."
    )
    paused: Count = _gauge("1 while this replica is paused: `wattbalance pause` to `wattbalance resume`.")
    observed_pods: By = _gauge(
        "Pods that run where kube-scheduler was left to place them, while something is only observed: on the node that "
        "we would have chosen (same), on another (elsewhere), or on one though with us they would wait (waiting).",
        "state",
    )
    degraded: By = _gauge("1 for each thing that is missing although this replica answers.", "reason")
    config_reloads: By = _counter(
        "Times the configuration's file had changed: ok, or refused, when the one before stays in force.",
        "result",
    )
    config_last_success_timestamp_seconds: Count = _gauge(
        "Unix time at which the configuration was taken last; the start's, if never since."
    )
    config_hash: Count = _gauge(
        "Beginning of the SHA-256 of the configuration's file as it was taken last: replicas with the same figure "
        "have the same; 0 where it is not watched."
    )
    decisions: ByThree = _counter("Decisions made.", "verb", "profile", "result")
    policy_failures: By = _counter(
        "Calls in which a policy raised or answered nonsense; its score was dropped, its filter "
        "answered unknown.",
        "policy",
    )
    count_disagreements: Count = _counter(
        "Nodes that kube-scheduler offered as having room and that are full by our count."
    )
    waiting_pods: Count = _gauge("GPU pods without a node.")
    contradicting_nodes: Count = _gauge(
        "Nodes whose labels claim shared GPUs or slices that their allocatable does not have, whose GPUs DRA offers "
        "too, whose agent has found fewer GPUs than are counted for a minute, or whose pods hold more of them than "
        "kube-scheduler counts, since they were divided anew."
    )
    unmanaged_nodes: Count = _gauge(
        "Nodes that offer GPUs, or parts of them, that `managed_resources` does not name: a scheduler that others "
        "share may not ask us about pods with them."
    )
    incomplete_device_pools: Count = _gauge(
        "Pools of GPUs by DRA some of whose slices are still to come: none of their GPUs counts."
    )
    uncounted_devices: Count = _gauge(
        "GPUs by DRA, and slices of them, that count nowhere: several nodes reach them (nodeSelector, allNodes), or "
        "they are slices yet to be cut from a GPU that is not offered itself. Pods get them as kube-scheduler chooses."
    )
    reservations: Count = _gauge("Pods to which GPUs are promised and which are not bound yet.")
    reservations_lost: By = _counter("Promises that ended without their pod being bound.", "reason")
    bypassed_pods: By = _counter(
        "Pods with a managed resource that were bound without a decision of ours: not asked though "
        "their scheduler should (no_decision: the only sign that `ignorable` has hidden us), to another "
        "node than we chose (other_node), or by a scheduler that is none of scheduler_names "
        "(other_scheduler).",
        "reason",
    )
    annotation_errors: By = _counter(
        "Annotations with a value that could not be used, once for a pod and value; the default was.", "key"
    )
    decisions_written: By = _counter(
        "Decisions written on bound pods by result: written, gone (the pod), failed, dropped (too many at once).",
        "result",
    )
    nudges: By = _counter(
        "Pods that we had refused and woke once they fitted, by result: written, gone (the pod), failed.",
        "result",
    )
    refused_pods: Count = _gauge(
        "Pods that this replica refused, and that wait since; the leader counts those that others refused, too."
    )
    extender_requests: ByTwo = _counter("Extender requests by what became of them.", "verb", "result")
    extender_bad_requests: By = _counter("Extender requests that could not be answered.", "reason")
    extender_full_node_requests: Count = _counter(
        "Requests that sent whole nodes: set nodeCacheCapable: true in kube-scheduler's configuration."
    )
    extender_request_seconds: Callable[[], Mapping[str, Histogram]] = _histogram(
        "Time from the head of an extender request to its answer, answered ones only.", "verb"
    )
    binds: By = _counter(
        "Bindings asked of us by result: bound, already, conflict, gone (or being deleted), cordoned, unknown_node, "
        "not_leading, paused, failed, unknown (looked up until it is known), off (extender.bind is).",
        "result",
    )
    connections_refused: By = _counter(
        "Connections that listeners closed before any of our code was asked: malformed (no HTTP), crowded (too many; "
        "the one that was silent longest goes).",
        "reason",
    )
    tls_handshakes_refused: By = _counter(
        "TLS handshakes that listeners refused: no_certificate, bad_certificate (of another CA, expired), not_tls, "
        "old_version (before TLS 1.3), distrusts_us (the client does not accept our certificate), other.",
        "reason",
    )
    certificate_reloads: By = _counter(
        "Certificates of listeners that changed on disk: ok, or failed, when the one before is still served.",
        "result",
    )
    samples: Count = _counter("Samples taken into the state.")
    samples_dropped: By = _counter("Messages of agents that were not used.", "reason")
    nodes_clock_skewed: Count = _gauge(
        "Nodes with a fresh reading whose clock is off by more than 5 s; their samples count all the same."
    )
    broker_connected: Count = _gauge("1 while the MQTT broker answers.")
    api_clock_offset_seconds: Count = _gauge(
        "How far the Kubernetes API server's clock is ahead of ours, by the Date of its last answers; 0 within 1 s."
    )
    api_requests: By = _counter("Requests to the Kubernetes API server.", "verb")
    api_errors: ByThree = _counter(
        "Requests to the Kubernetes API server that failed, by HTTP status, or timeout, or connection.",
        "verb",
        "resource",
        "code",
    )
    api_throttled: Count = _counter("Answers 429 of the Kubernetes API server.")
    watch_restarts: By = _counter("Watches that ended and were taken up again.", "kind")
    watch_relists: By = _counter("Lists after the first.", "kind")
    watch_events: By = _counter("Events of watches, bookmarks left out.", "kind")
    undecodable_objects: By = _counter(
        "Kubernetes objects that were skipped because they are not what their kind should be.", "kind"
    )
    events_written: Count = _counter("Kubernetes Events written, and counts in them.")
    events_dropped: By = _counter("Kubernetes Events, and counts in them, that were not written.", "reason")


FAMILIES: tuple[Family, ...] = tuple(
    Family(
        name=f"wattbalance_{each.name}{'_total' if each.metadata['kind'] is Kind.COUNTER else ''}",
        source=each.name,
        **each.metadata,
    )
    for each in fields(Sources)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFamily(Described):
    """One family with series for each node: extra label values and figures; None leaves a series out."""

    read: Callable[[NodeView], Iterable[tuple[tuple[str, ...], float | None]]]


NODE_FAMILIES: tuple[NodeFamily, ...] = (
    NodeFamily(
        name="wattbalance_node_load_ratio",
        kind=Kind.GAUGE,
        text="Mean utilisation of the node's GPUs that are not broken; no series while that of any of them is unknown.",
        labels=("node", "pool"),
        read=lambda node: [((), node.load_frac if node.fresh else None)],
    ),
    NodeFamily(
        name="wattbalance_node_power_watts",
        kind=Kind.GAUGE,
        text="Power of the node's GPUs; no series while that of any of them is unknown.",
        labels=("node", "pool"),
        read=lambda node: [((), node.power_w if node.fresh else None)],
    ),
    NodeFamily(
        name="wattbalance_node_unknown_gpus",
        kind=Kind.GAUGE,
        text="GPUs that are not broken and whose utilisation is unknown, bound and free ones alike.",
        labels=("node", "pool"),
        read=lambda node: [((), node.unknown_gpus)],
    ),
    NodeFamily(
        name="wattbalance_node_sample_age_seconds",
        kind=Kind.GAUGE,
        text="Time since the node's last sample, also while it is offline; no series before the first.",
        labels=("node", "pool"),
        read=lambda node: [((), node.reading_age_s)],
    ),
    NodeFamily(
        name="wattbalance_node_gpus",
        kind=Kind.GAUGE,
        text="GPUs by state: bound, reserved, broken (lost, hung, or not found by the agent), free. The sum is what "
        "Kubernetes counts, or more: by what others overcommit, broke while bound, or is broken beyond that count. "
        "Where it counts none, those that an agent found are unoffered.",
        labels=("node", "pool", "state"),
        read=lambda node: [
            (("bound",), node.bound_gpus),
            (("broken",), node.broken_gpus),
            (("free",), node.free_gpus),
            (("reserved",), node.reserved_gpus),
            *([(("unoffered",), node.unoffered_gpus)] if node.unoffered_gpus else []),
        ],
    ),
)


def _pool(name: str, text: str, *labels: str) -> Described:
    return Described(name=f"wattbalance_pool_{name}", kind=Kind.GAUGE, text=text, labels=("pool", *labels))


POOL_NODES = _pool("nodes", "Nodes of the pool.")
POOL_QUARANTINED = _pool(
    "quarantined_nodes",
    "Nodes of the pool that carry the label wattbalance.io/quarantine, of whatever value.",
)
POOL_OBSERVED = _pool("observed", "1 if the pool is only observed (`pools[].mode`), else 0.")
POOL_CORDONED = _pool("cordoned_nodes", "Nodes of the pool that are cordoned.")
POOL_GPUS = _pool("gpus", "GPUs of the pool by state, summed over its nodes.", "state")
POOL_UNKNOWN = _pool(
    "unknown_gpus",
    "GPUs of the pool that are not broken and whose utilisation is unknown, bound and free ones alike.",
)
POOL_LOAD = _pool(
    "load_ratio",
    "Mean utilisation over the GPUs of the pool's nodes whose own is known; no series where none is.",
)
POOL_POWER = _pool(
    "power_watts",
    "Sum over the pool's nodes whose power is known, no series where none is: only a part of the pool's power while "
    "wattbalance_pool_power_unknown_gpus is above 0.",
)
POOL_POWER_UNKNOWN = _pool(
    "power_unknown_gpus", "GPUs of the pool's nodes that are not in wattbalance_pool_power_watts."
)
POOL_FAMILIES = (
    POOL_NODES,
    POOL_QUARANTINED,
    POOL_CORDONED,
    POOL_OBSERVED,
    POOL_GPUS,
    POOL_UNKNOWN,
    POOL_LOAD,
    POOL_POWER,
    POOL_POWER_UNKNOWN,
)

AGE_PERCENTILES = Described(
    name="wattbalance_sample_age_seconds",
    kind=Kind.GAUGE,
    text="Time since the last sample of a node: percentiles over all nodes that ever sent one; 100 is the oldest.",
    labels=("percentile",),
)
NODES_SILENT = Described(
    name="wattbalance_nodes_silent",
    kind=Kind.GAUGE,
    text="GPU nodes without a fresh reading: offline, silent for longer than telemetry.stale, or never heard.",
)
NODES_NEVER_HEARD = Described(
    name="wattbalance_nodes_never_heard",
    kind=Kind.GAUGE,
    text="GPU nodes of which no sample has come since this process began; in wattbalance_nodes_silent too.",
)
AGE_FAMILIES = (AGE_PERCENTILES, NODES_SILENT, NODES_NEVER_HEARD)

ALL: tuple[Described, ...] = (*FAMILIES, *AGE_FAMILIES, *POOL_FAMILIES, *NODE_FAMILIES)
