"""What `/api/v1/observe` answers with: where pods run, beside where they would with us."""

from __future__ import annotations

import msgspec

from scheduler.report.views import View


class ObservedWorld(View, frozen=True):
    """One of the two worlds. Null means unknown, never zero."""

    load_spread_frac: float | None
    """Population standard deviation of the load of nodes that are measured, weighted by GPUs: 0 is even, more is less
    even."""
    stranded_gpus: float
    """Free GPUs on nodes that could take no pod of 8 GPUs."""
    used_nodes: float
    """Nodes with a pod; in a mean, with a fraction."""
    power_in_use_w: float | None
    """Watts of the GPUs of nodes with a pod, of those nodes that are measured; 0 where none has a pod."""
    held_gpus: float
    """GPUs at work: those that pods hold. Fewer with us are less work, of pods that would wait."""
    waiting_pods: float
    """Pods without a node; likewise."""
    gpu_nodes: float = 0.0
    """Nodes with GPUs; likewise."""
    load_nodes: float = 0.0
    """Of these, those whose load is measured: the spread is over them; likewise."""
    power_nodes: float = 0.0
    """Of the nodes with a pod, those whose watts are measured; likewise."""


class ObservedPod(View, frozen=True):
    """One pod that runs where kube-scheduler put it."""

    namespace: str
    name: str
    uid: str
    gpus: float
    """Units of GPUs, or of parts of them."""
    real: str
    """The node where it runs."""
    ours: str
    """The node where it would run with us; empty: it would wait."""
    place: str
    """same | elsewhere | waiting"""
    reason: str = ""
    """Why it would wait."""
    waited_longer_s: float = 0.0
    """How much longer it would have waited, up to now."""
    load: float | None = None
    """Load in GPUs now, of a pod that would be elsewhere or wait: what `ours` has elsewhere than `real`, or not at all.
    Null is unknown, or not needed."""
    power_w: float | None = None
    """Likewise, watts above idle GPUs."""
    mean_load: float | None = None
    """Mean of the readings since it was bound, likewise."""
    mean_power_w: float | None = None
    """Likewise, watts above idle GPUs."""
    counts_where_it_runs: str = ""
    """load | watts | load and watts: these stay on the node where it runs in `ours`, too, since they are not measured,
    or those of the other node are not. Empty: nothing does."""


class ObserveReport(View, frozen=True):
    """What observing has shown so far."""

    status: str
    """acting (nothing is observed) | starting | no_data | ok | failed | ended (nothing is observed any more)"""
    observing: str
    """What is observed, and why; empty while we act everywhere."""
    unix_s: float
    process_since_unix_s: float | None = None
    """When this replica's process began: of what was observed before nothing is known here."""
    since_unix_s: float | None = None
    """When it began."""
    ended_unix_s: float | None = None
    """When it ended: all figures are as of then."""
    observed: str = ""
    """What was observed, of one that has ended."""
    real: ObservedWorld | None = None
    """As it is measured now."""
    ours: ObservedWorld | None = None
    """As it would be now with us: the same measurement, with the moved pods' load and watts where they would be."""
    real_mean: ObservedWorld | None = None
    """The average of `real` over time since the first pod was placed."""
    ours_mean: ObservedWorld | None = None
    """Likewise of `ours`, over the same instants."""
    mean_span_s: float = 0.0
    """How long these are the averages of."""
    mean_load_known_frac: float = 0.0
    """For how much of that time the load of any node was known: the mean spread is over that."""
    mean_power_known_frac: float = 0.0
    """For how much of that time the watts of any node in use were known in both worlds: the mean watts are over
    that."""
    legend: list[str] = msgspec.field(default_factory=list)
    """What the columns are, and what to mind where they differ."""
    pods_so_far: int = 0
    """Pods that kube-scheduler placed since then, of those that it asked us about; those that ended, too."""
    pods_same: int = 0
    """Of those that still run: on the node that we would have chosen."""
    pods_elsewhere: int = 0
    """On another."""
    pods_waiting: int = 0
    """Run, and would wait with us."""
    pods_waited_so_far: int = 0
    """Would have waited longer than they did, if only for a while; those that would wait still, too."""
    waited_longer_s: float = 0.0
    """All of these together, up to now."""
    pods_unmeasured: int = 0
    """Elsewhere or waiting, and not measured: they count where they run in both worlds."""
    pods_to_unmeasured: int = 0
    """Elsewhere, on a node that is not measured: likewise."""
    pods_left_out: int = 0
    """Too many to follow: they stand where they are in both worlds."""
    pods_asked: int = 0
    """Asked about, and not bound yet."""
    nodes: int = 0
    """With GPUs."""
    nodes_load_known: int = 0
    """Whose load is measured: the spread is about these, in both worlds."""
    nodes_in_use: int = 0
    """With a pod in either world."""
    nodes_power_known: int = 0
    """Of those, whose watts are measured: the watts are about these."""
    notes: list[str] = msgspec.field(default_factory=list)
    """What a reader should know before these figures are believed."""
    pods: list[ObservedPod] = msgspec.field(default_factory=list)
    """The last ones that were bound, newest first."""
