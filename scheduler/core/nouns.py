"""The nouns that travel between rooms. Pure data; docs/glossary.md says each word's meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol

from scheduler.core.preferences import Conditions, Preferences

PREFIX = "wattbalance.io/"
GPU_RESOURCE = "nvidia.com/gpu"
# On a pod that was bound by a decision of ours.
DECISION_ANNOTATION = PREFIX + "decision"


Units = tuple[tuple[str, float], ...]
"""Resource names, each with how many units of it; a resource is there at most once."""


class Controller(Protocol):
    """Which object controls a pod, or controls what controls it."""

    @property
    def kind(self) -> str:
        """Such as `ReplicaSet`."""
        ...

    @property
    def uid(self) -> str:
        """Empty if it is not known; so are the others."""
        ...

    @property
    def name(self) -> str:
        """In the pod's namespace."""
        ...

    @property
    def api_version(self) -> str:
        """Such as `apps/v1`."""
        ...


class Workload(StrEnum):
    """What kind of work a pod is; picks its profile."""

    TRAINING = "training"
    INFERENCE = "inference"
    BATCH = "batch"


class Placement(StrEnum):
    """Whether filter decides (one node) or advises (scores)."""

    DECISIVE = "decisive"
    ADVISORY = "advisory"


class Reason(IntEnum):
    """Why a node is ruled out. The code travels in uint8 arrays; the text is what kube-scheduler prints.

    Texts are short and constant: kube-scheduler counts and prints them, and on 1.32+ a new text requeues the pod.
    Numbers belong to `explain`.
    """

    FITS = 0
    UNKNOWN_NODE = 1
    QUARANTINED = 2
    BROKEN_GPUS = 3
    WAITING_FOR_POOL = 4
    CHOSEN_BEFORE_NOT_BOUND = 5
    OTHER_POOL = 6
    OTHER_MODEL = 7
    UNKNOWN_MODEL = 8
    TOO_LITTLE_MEMORY = 9
    UNKNOWN_MEMORY = 10
    IN_TWO_POOLS = 11

    @property
    def text(self) -> str:
        """The constant string for kube-scheduler."""
        return REASON_TEXTS[self]


REASON_TEXTS: dict[Reason, str] = {
    Reason.FITS: "",
    Reason.UNKNOWN_NODE: "node unknown to wattbalance",
    Reason.QUARANTINED: "node in quarantine",
    Reason.BROKEN_GPUS: "not enough healthy GPUs",
    # The pool's name is appended by the decider, from a table built once per configuration: still constant.
    Reason.WAITING_FOR_POOL: "waiting for pool",
    Reason.CHOSEN_BEFORE_NOT_BOUND: "chosen before, not bound",
    Reason.OTHER_POOL: "pool not among those asked for",
    Reason.OTHER_MODEL: "GPU model not among those asked for",
    Reason.UNKNOWN_MODEL: "GPU model unknown",
    Reason.TOO_LITTLE_MEMORY: "not enough GPU memory",
    Reason.UNKNOWN_MEMORY: "GPU memory unknown",
    Reason.IN_TWO_POOLS: "node in two pools",
}


class DeviceState(StrEnum):
    """Health of one GPU as its agent sees it. Only `ok` and `unknown` may get work."""

    OK = "ok"
    UNKNOWN = "unknown"
    LOST = "lost"
    HUNG = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """What one pod asks of us, after its annotations, owners and profile have been read."""

    uid: str
    namespace: str
    name: str
    gpus: int
    """Units of `nvidia.com/gpu`, counted as Kubernetes counts init and sidecar containers. A unit is a whole GPU,
    except on a node that replicates its GPUs."""
    shares: Units = ()
    """Units of other resources that are parts of GPUs: shared ones, and slices."""
    workload: Workload = Workload.BATCH
    profile: str = "batch"
    expected_load: float = 0.9
    """What each of its GPUs is expected to be busy; from the profile."""
    waited_s: float = 0.0
    """How long ago the pod was created, at the instant of the question."""
    priority: int = 0
    nominated_node: str = ""
    pools: tuple[int, ...] = ()
    """Indexes of the only pools it may go to, the preferred one first; empty: all, in the configuration's order."""
    gpu_models: tuple[str, ...] = ()
    """Globs on folded names (core/models), one of which each GPU of its node must match; empty: any model."""
    gpu_memory_bytes: int = 0
    """What each GPU of its node must have at least; 0: any."""
    preferences: Preferences | None = None
    """What its spec prefers, if anything (preferred affinity, ScheduleAnyway, tolerations)."""
    conditions: Conditions | None = None
    """What its spec asks of nodes, if anything (nodeSelector, required affinity, tolerations)."""
    waits_for_volume: bool = False
    """True if it uses a claim, of a volume or a device, that may bind late: its reservation must outlive the wait."""
    siblings_of: tuple[str, ...] = ()
    """Uids of controllers whose pods are its siblings: its own first, then those of one Deployment; empty: none."""
    images: tuple[str, ...] = ()
    """The image of each container, by its full name; empty where that is not known any more."""
    controller: Controller | None = None
    """Its own, for what is told of all pods of one."""

    @property
    def units(self) -> Units:
        """All that it asks for of GPUs, by resource."""
        return ((GPU_RESOURCE, self.gpus), *self.shares) if self.gpus else self.shares


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """One pool of nodes, as the configuration names it; position in the list is its rank."""

    name: str
    kind: str = "on-prem"
    selector: dict[str, str] = field(default_factory=dict)
    spill_after_s: float = 0.0
    """How long a pod waits for this pool before later pools open to it; 0 = at once."""
    observe: bool = False
    """Whether its nodes are only observed (docs/adr/0010): nothing keeps a pod off them, or picks among them."""
