"""What report shows of the other rooms: wire records of the JSON API, and the seams that app.py fills.

The seams hand out keys first and one view at a time, so that a page of 5,000 nodes or 50,000 pods is built in small
turns of the loop and never holds up an extender call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from scheduler.decision.record import DecisionRecord


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base: immutable, every field named."""


class GpuView(View, frozen=True):
    """One GPU as its agent last told. Null means unknown, never zero."""

    uuid: str
    model: str = ""
    state: str = "unknown"
    """ok | unknown | lost | hung; unknown where there is no reading of its utilisation that may be believed"""
    util_frac: float | None = None
    power_w: float | None = None
    claims: list[str] = []
    """`namespace/name` of the resource claims (DRA) that hold it, or parts of it."""


class ResourceView(View, frozen=True):
    """GPUs of a node, or parts of them, under one resource name."""

    units: float
    """Allocatable."""
    unit_gpus: float
    """How much of a GPU one unit is."""
    bound: float
    free: float
    """Neither bound, nor reserved, nor known to be broken."""


class NodeView(View, frozen=True):
    """One node. Null means unknown, never zero."""

    name: str
    pool: str
    """The first pool whose selector takes it; `default` if none does."""
    gpus: float
    """As whoever stands in `counted_by` counts them, parts of them added up.

    Broken, known and unknown ones add up to these, or to what the agent found if that is more.
    """
    free_gpus: float
    """Neither bound, nor reserved, nor broken, and such as pods may ask for."""
    bound_gpus: float = 0.0
    reserved_gpus: float = 0.0
    broken_gpus: float = 0.0
    """Lost or hung, as the agent last told, or counted by Kubernetes and not among those that it found."""
    known_gpus: float = 0.0
    """Not broken, and with a reading of their utilisation that may be believed."""
    unknown_gpus: float = 0.0
    """Not broken, and without such a reading."""
    load_frac: float | None = None
    """Mean utilisation of all GPUs that are not broken; null unless each of them is known."""
    power_w: float | None = None
    """Sum over all GPUs."""
    reading_age_s: float | None = None
    """Since the last sample was received, be the node online or not; null if there was none since we began."""
    fresh: bool = False
    """Whether the reading is young enough to be believed."""
    cordoned: bool = False
    quarantine: str | None = None
    """The quarantine label's value, which may be empty; null if the node does not carry it."""
    observed: bool = False
    """Whether its pool is only observed (`pools[].mode: observe`)."""
    agent_version: str | None = None
    """Of the agent that sent the node's inventory; null if none has."""
    model: str | None = None
    """Of its GPUs, as the agent, the node's ResourceSlices or else its label tell; null if none does."""
    counted_by: str | None = None
    """Who counts its GPUs: allocatable, else resourceslices (DRA), else inventory (its agent's); null if it has none.

    Of those that only the agent counts no pod may ask for any, so none is free.
    """
    resources: dict[str, ResourceView] = {}
    """What Kubernetes counts, by resource."""
    contradictions: list[str] = []
    """What its labels claim that its allocatable does not have, and what DRA, its agent or its pods tell otherwise."""
    in_pools: list[str] = []
    """The pools whose selectors take it, if they are several: then no GPU pod is placed on it."""
    devices: list[GpuView] = []

    @property
    def unoffered_gpus(self) -> float:
        """GPUs that only the node's agent counts, and that no pod of ours holds: none may ask for them."""
        if self.counted_by != "inventory":
            return 0.0
        return max(self.gpus - self.bound_gpus - self.reserved_gpus - self.broken_gpus, 0.0)


class PodView(View, frozen=True):
    """One pod that asks for GPUs."""

    name: str
    namespace: str
    uid: str
    gpus: float
    """Units of nvidia.com/gpu."""
    resources: dict[str, float] = {}
    """All units that it asks for, by resource."""
    profile: str = ""
    workload: str = ""
    node: str = ""
    """Where it is bound; empty while it waits."""
    reserved_node: str = ""
    """Where GPUs are promised to it; empty if nowhere."""
    created_unix_s: float | None = None


PAUSED_HEADER = "Wattbalance-Paused"
"""On every answer of the JSON API while we are paused: who, since when and why, in a line, percent-encoded."""
OBSERVING_HEADER = "Wattbalance-Observing"
"""Likewise while we are not, and everything or some pools are only observed: what, and by what."""


class PauseView(View, frozen=True):
    """Who paused us; whatever was left out is empty."""

    by: str
    claimed: bool
    """Whether only a kubeconfig calls them so, and not the API server."""
    since: str
    """RFC 3339"""
    reason: str


class Readiness(View, frozen=True):
    """Whether this replica knows enough to answer, and what it lacks."""

    ready: bool
    role: str
    """leader | standby; observer in observe mode, which takes no part in the election"""
    leader: str = ""
    """Who leads, as far as this replica knows."""
    mode: str = "act"
    """act | observe"""
    degraded: list[str] = []
    """What is missing although it answers, each from a closed set."""
    reasons: list[str] = []
    """Why it is not ready; sentences for a person."""
    forbidden: list[str] = []
    """What the API server refused when it was last tried, each with the rule to add to our role."""
    paused: PauseView | None = None
    """Null while nobody has paused us."""


class NodeViews(Protocol):
    """The nodes of the store."""

    def node_names(self) -> Sequence[str]:
        """Names of all nodes now, in any order; a list of their own that later changes do not touch."""
        ...

    def node_pool(self, name: str) -> str | None:
        """The pool of one node; None if it has gone meanwhile."""
        ...

    def node(self, name: str) -> NodeView | None:
        """One node; None likewise."""
        ...


class PodViews(Protocol):
    """The pods of the store."""

    def pod_uids(self) -> Sequence[str]:
        """All GPU pods now, in any order; a list of their own that later changes do not touch."""
        ...

    def pod_key(self, uid: str) -> tuple[str, str, str] | None:
        """(namespace, name, uid) of one; None if it has gone meanwhile."""
        ...

    def pod_node(self, uid: str) -> str | None:
        """Where one is bound, empty if nowhere; None likewise."""
        ...

    def pod(self, uid: str) -> PodView | None:
        """One pod; None likewise."""
        ...


class Decisions(Protocol):
    """The decision log."""

    def decisions(self) -> Iterable[DecisionRecord]:
        """Newest first."""
        ...


class Health(Protocol):
    """What the probes ask."""

    def live(self) -> str:
        """Say why this process should be restarted; empty if it should not."""
        ...

    def readiness(self) -> Readiness:
        """Whether it knows enough to answer."""
        ...
