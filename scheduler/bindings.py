"""Who bound a pod: a decision of ours, or somebody past us. Composition: what the store saw beside what was decided.

Every replica sees every binding; the leader judges. What a predecessor decided is not in this replica's memory, so
pods that waited when it began to lead are not held against anybody for as long as a promise lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from scheduler.cluster.intents import controller_of
from scheduler.cluster.objects import OwnerRef
from scheduler.cluster.pods import PodFacts
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.decision.record import DecisionRecord, Said, said_in

# What the API server fills in where a pod names none.
DEFAULT_SCHEDULER = "default-scheduler"


class Past(StrEnum):
    """How a pod came past us: the label `reason` of wattbalance_bypassed_pods_total."""

    NO_DECISION = "no_decision"
    """Its scheduler should ask us, and did not, or was told that no node fits: `ignorable` hides us."""
    OTHER_NODE = "other_node"
    """We chose another node than the one it was bound to."""
    OTHER_SCHEDULER = "other_scheduler"
    """Its scheduler is none of `scheduler_names`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A pod with a managed resource that has just been seen bound."""

    uid: str
    namespace: str
    name: str
    node: str
    scheduler: str
    said: Said | None
    """The decision that stands on it, which travels in a Binding of ours; whoever writes pods may copy it."""
    daemon: bool
    """A DaemonSet's: its place was never a choice."""
    controller: OwnerRef | None = None

    @classmethod
    def of(cls, pod: PodFacts) -> Binding:
        """As the store keeps it."""
        return cls(
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            node=pod.node,
            scheduler=pod.scheduler_name or DEFAULT_SCHEDULER,
            said=said_in((pod.meta.annotations or {}).get(DECISION_ANNOTATION, "")),
            daemon=any(owner.kind == "DaemonSet" for owner in pod.meta.owner_references or ()),
            controller=controller_of(pod.meta),
        )


class Bindings:
    """Counts pods that were bound past us, and tells who listens.

    Args:
        scheduler_names: whose pods should come to us.
        managed_resources: a GPU pod that asks for none of them is nobody's business here; none: all are. What of them
            is no GPU says nothing: pods that ask for no other are passed through.
        decision_of: the newest decision for a uid, if there is one.
        owner_of: the uid of the pod that a decision was about, by its cycle; None where that is not known.
        judges: whether this replica judges now: it leads, and acts.
        is_asked: whether it is this replica that kube-scheduler asks. Where each answers its own kube-scheduler, over
            loopback, a decision that is missing here may have been made next door.
    """

    def __init__(
        self,
        scheduler_names: Iterable[str],
        managed_resources: Iterable[str],
        *,
        decision_of: Callable[[str], DecisionRecord | None],
        owner_of: Callable[[str], str | None] = lambda _: None,
        judges: Callable[[], bool],
        is_asked: Callable[[], bool] = lambda: True,
    ) -> None:
        self.past: Counter[str] = Counter({reason.value: 0 for reason in Past})
        """By reason, zeros too: a series that is not there cannot be watched."""
        self.on_past: Callable[[Binding, Past], None] | None = None
        self.is_observed: Callable[[str], bool] = lambda _: False
        """Whether a node is in a pool that is only observed: whoever binds there may."""
        self._decision_of = decision_of
        self._owner_of = owner_of
        self._judges = judges
        self._is_asked = is_asked
        self._inherited: frozenset[str] = frozenset()
        self._inherited_until_mono_s = 0.0
        self.use(scheduler_names, managed_resources)

    def use(self, scheduler_names: Iterable[str], managed_resources: Iterable[str]) -> None:
        """Take other names and resources. Pods that are bound already are not held against anybody."""
        self.scheduler_names = frozenset(scheduler_names)
        self._managed = frozenset(managed_resources)

    def manages(self, resource: str) -> bool:
        """Whether pods that ask for it should come past us; of GPUs and parts of them."""
        return not self._managed or resource in self._managed

    def inherit(self, waiting: Iterable[str], until_mono_s: float) -> None:
        """Pods that wait now may have been decided by somebody before us, until then."""
        self._inherited = frozenset(waiting)
        self._inherited_until_mono_s = until_mono_s

    def bound(self, pod: PodFacts, promised: str, now_mono_s: float) -> None:
        """A GPU pod was bound. `promised` is the node where it held a promise; empty if none."""
        if any(self.manages(name) for name, _ in pod.units):
            self._judge(Binding.of(pod), promised, now_mono_s)

    def _judge(self, binding: Binding, promised: str, now_mono_s: float) -> None:
        if not self._judges() or self._stands_on(binding) or self.is_observed(binding.node):
            return
        past = self._past(binding, promised)
        if past is None:
            return
        inherited = binding.uid in self._inherited and now_mono_s < self._inherited_until_mono_s
        if past is Past.NO_DECISION and (inherited or not self._is_asked()):
            return
        self.past[past.value] += 1
        if self.on_past is not None:
            self.on_past(binding, past)

    def _stands_on(self, binding: Binding) -> bool:
        """Whether a decision for this very place is written on the pod, by whichever replica, and is no other pod's."""
        said = binding.said
        if said is None or said.node != binding.node:
            return False
        # Without a cycle it was written in a Binding, by a replica that did not know the record.
        return not said.cycle or self._owner_of(said.cycle) in {None, binding.uid}

    def _past(self, binding: Binding, promised: str) -> Past | None:
        ours = binding.scheduler in self.scheduler_names
        record = self._decision_of(binding.uid)
        # What was only observed, while we were paused, was nobody's to heed.
        chosen = promised or (record.chosen if record is not None and record.result != "observed" else "")
        # Without one chosen node kube-scheduler was left to take any that we had named (advisory placement, soft
        # preferences); where none fitted, it was told so.
        if chosen == binding.node or (record is not None and not chosen and record.result != "no_fit"):
            return None
        if not ours:
            return Past.OTHER_SCHEDULER
        return Past.OTHER_NODE if chosen else Past.NO_DECISION
