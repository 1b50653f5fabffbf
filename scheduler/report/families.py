"""Every metric of the daemon: name, kind, meaning, labels, source. docs/metrics.md is made of it.

Two tables: what comes from counters (`FAMILIES`), and what is told of each node and pool (`NODE_FAMILIES`,
`POOL_FAMILIES`, `AGE_FAMILIES`), which is thousands of series and therefore written by page.py itself.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from scheduler.report.sources import Sources
from scheduler.report.views import NodeView

Series = Iterable[tuple[tuple[str, ...], float]]


class Kind(StrEnum):
    """The type that Prometheus is told."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What docs/metrics.md says of a family."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Described):
    """One family that is read from counters."""

    read: Callable[[Sources], Series]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFamily(Described):
    """One family with series for each node: extra label values and figures; None leaves a series out."""

    read: Callable[[NodeView], Iterable[tuple[tuple[str, ...], float | None]]]


def _one(read: Callable[[Sources], float]) -> Callable[[Sources], Series]:
    return lambda sources: [((), float(read(sources)))]


def _by(read: Callable[[Sources], Mapping[str, int]]) -> Callable[[Sources], Series]:
    return lambda sources: [((key,), float(value)) for key, value in sorted(read(sources).items())]


def _by_tuple(
    read: Callable[[Sources], Mapping[tuple[str, str], int] | Mapping[tuple[str, str, str], int]],
) -> Callable[[Sources], Series]:
    return lambda sources: [(key, float(value)) for key, value in sorted(read(sources).items())]


def _counter(name: str, text: str, read: Callable[[Sources], Series], *labels: str) -> Family:
    return Family(name=f"wattbalance_{name}_total", kind=Kind.COUNTER, text=text, labels=labels, read=read)


def _gauge(name: str, text: str, read: Callable[[Sources], Series], *labels: str) -> Family:
    return Family(name=f"wattbalance_{name}", kind=Kind.GAUGE, text=text, labels=labels, read=read)


REQUEST_SECONDS = Described(
    name="wattbalance_extender_request_seconds",
    kind=Kind.HISTOGRAM,
    text="Time from the head of an extender request to its answer, answered ones only.",
    labels=("verb",),
)

FAMILIES: tuple[Family, ...] = (
    _gauge(
        "build_info",
        "Always 1; the labels say what runs.",
        lambda sources: [((sources.version, platform.python_version()), 1.0)],
        "version",
        "python",
    ),
    _gauge("leader", "1 if this replica holds the Lease.", _one(lambda s: s.leader())),
    _gauge(
        "observing", "1 if nothing is acted upon, only decided and counted.", _one(lambda s: s.observing())
    ),
    _gauge(
        "degraded",
        "1 for each thing that is missing although this replica answers.",
        lambda s: [((reason,), float(holds)) for reason, holds in sorted(s.degraded().items())],
        "reason",
    ),
    _counter(
        "decisions",
        "Decisions made.",
        _by_tuple(lambda s: s.decisions()),
        "verb",
        "profile",
        "result",
    ),
    _counter(
        "policy_failures",
        "Calls in which a policy raised or answered nonsense; its score was dropped, its filter answered unknown.",
        _by(lambda s: s.policy_failures()),
        "policy",
    ),
    _counter(
        "count_disagreements",
        "Nodes that kube-scheduler offered as having room and that are full by our count.",
        _one(lambda s: s.disagreements()),
    ),
    _gauge("waiting_pods", "GPU pods without a node.", _one(lambda s: s.waiting_pods())),
    _gauge(
        "reservations",
        "Pods to which GPUs are promised and which are not bound yet.",
        _one(lambda s: s.reservations()),
    ),
    _counter(
        "reservations_lost",
        "Promises that ended without their pod being bound.",
        _by(lambda s: s.reservations_lost()),
        "reason",
    ),
    _counter(
        "bypassed_pods",
        "Pods with a managed resource that were bound without a decision of ours: not asked though their scheduler "
        "should (no_decision: the only sign that `ignorable` has hidden us), to another node than we chose "
        "(other_node), or by a scheduler that is none of scheduler_names (other_scheduler).",
        _by(lambda s: s.bypassed_pods()),
        "reason",
    ),
    _counter(
        "annotation_errors",
        "Annotations with a value that could not be used; the default was.",
        _by(lambda s: s.annotation_errors()),
        "key",
    ),
    _counter(
        "extender_requests",
        "Extender requests by what became of them.",
        _by_tuple(lambda s: s.extender_requests()),
        "verb",
        "result",
    ),
    _counter(
        "extender_bad_requests",
        "Extender requests that could not be answered.",
        _by(lambda s: s.extender_refused()),
        "reason",
    ),
    _counter(
        "extender_full_node_requests",
        "Requests that sent whole nodes: set nodeCacheCapable: true in kube-scheduler's configuration.",
        _one(lambda s: s.extender_full_nodes()),
    ),
    _counter("samples", "Samples taken into the state.", _one(lambda s: s.samples())),
    _counter(
        "samples_dropped",
        "Messages of agents that were not used.",
        _by(lambda s: s.samples_dropped()),
        "reason",
    ),
    _gauge(
        "nodes_clock_skewed",
        "Nodes whose clock is off by more than 5 s; their samples count all the same.",
        _one(lambda s: s.clocks_skewed()),
    ),
    _gauge("broker_connected", "1 while the MQTT broker answers.", _one(lambda s: s.broker_connected())),
    _counter(
        "api_requests", "Requests to the Kubernetes API server.", _by(lambda s: s.api_requests()), "verb"
    ),
    _counter(
        "api_errors",
        "Requests to the Kubernetes API server that failed, by HTTP status, or timeout, or connection.",
        _by_tuple(lambda s: s.api_errors()),
        "verb",
        "resource",
        "code",
    ),
    _counter("api_throttled", "Answers 429 of the Kubernetes API server.", _one(lambda s: s.api_throttled())),
    _counter(
        "watch_restarts",
        "Watches that ended and were taken up again.",
        _by(lambda s: s.watch_restarts()),
        "kind",
    ),
    _counter("watch_relists", "Lists after the first.", _by(lambda s: s.relists()), "kind"),
    _counter(
        "watch_events", "Events of watches, bookmarks left out.", _by(lambda s: s.watch_events()), "kind"
    ),
    _counter(
        "undecodable_objects",
        "Kubernetes objects that were skipped because they are not what their kind should be.",
        _by(lambda s: s.undecodable()),
        "kind",
    ),
    _counter("events_written", "Kubernetes Events written.", _one(lambda s: s.events_written())),
    _counter("events_dropped", "Kubernetes Events not written.", _by(lambda s: s.events_dropped()), "reason"),
)

NODE_FAMILIES: tuple[NodeFamily, ...] = (
    NodeFamily(
        name="wattbalance_node_load_ratio",
        kind=Kind.GAUGE,
        text="Mean utilisation of the node's GPUs; no series while it is unknown.",
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
        name="wattbalance_node_sample_age_seconds",
        kind=Kind.GAUGE,
        text="Time since the node's last sample; no series before the first.",
        labels=("node", "pool"),
        read=lambda node: [((), node.reading_age_s)],
    ),
    NodeFamily(
        name="wattbalance_node_gpus",
        kind=Kind.GAUGE,
        text="GPUs by state: bound, reserved, broken, free. What others overcommit makes the sum larger.",
        labels=("node", "pool", "state"),
        read=lambda node: [
            (("bound",), node.bound_gpus),
            (("broken",), node.broken_gpus),
            (("free",), node.free_gpus),
            (("reserved",), node.reserved_gpus),
        ],
    ),
)


def _pool(name: str, text: str, *labels: str) -> Described:
    return Described(name=f"wattbalance_pool_{name}", kind=Kind.GAUGE, text=text, labels=("pool", *labels))


POOL_NODES = _pool("nodes", "Nodes of the pool.")
POOL_GPUS = _pool("gpus", "GPUs of the pool by state, summed over its nodes.", "state")
POOL_LOAD = _pool("load_ratio", "Mean utilisation over the GPUs of the pool's nodes with a fresh reading.")
POOL_POWER = _pool("power_watts", "Sum over the pool's nodes whose power is known.")
POOL_FAMILIES = (POOL_NODES, POOL_GPUS, POOL_LOAD, POOL_POWER)

AGE_PERCENTILES = Described(
    name="wattbalance_sample_age_seconds",
    kind=Kind.GAUGE,
    text="Time since the last sample of a node: percentiles over all nodes that ever sent one; 100 is the oldest.",
    labels=("percentile",),
)
NODES_SILENT = Described(
    name="wattbalance_nodes_silent", kind=Kind.GAUGE, text="Nodes from which no sample ever came."
)
AGE_FAMILIES = (AGE_PERCENTILES, NODES_SILENT)

ALL: tuple[Described, ...] = (*FAMILIES, REQUEST_SECONDS, *AGE_FAMILIES, *POOL_FAMILIES, *NODE_FAMILIES)
