"""Who bound a pod: a decision of ours, or somebody past us. Composition: what the store saw beside what was decided.

Every replica sees every binding; the leader judges. What a predecessor decided is not in this replica's memory, so
pods that waited when it began to lead are not held against anybody for as long as a promise lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from scheduler.cluster.intents import controller_of
from scheduler.cluster.objects import OwnerRef, Pod, requested
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import ClusterEvent, Gone, Listed
from scheduler.cluster.shares import is_gpu_resource
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.decision.record import DecisionRecord

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
    decided: bool
    """It carries the annotation of a decision, which travels in a Binding of ours."""
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
            decided=DECISION_ANNOTATION in (pod.meta.annotations or {}),
            daemon=any(owner.kind == "DaemonSet" for owner in pod.meta.owner_references or ()),
            controller=controller_of(pod.meta),
        )

    @classmethod
    def of_object(cls, pod: Pod) -> Binding:
        """As the watch brings it: one that the store does not keep."""
        meta = pod.metadata
        return cls(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            node=pod.spec.node_name,
            scheduler=pod.spec.scheduler_name or DEFAULT_SCHEDULER,
            decided=DECISION_ANNOTATION in (meta.annotations or {}),
            daemon=any(owner.kind == "DaemonSet" for owner in meta.owner_references or ()),
            controller=controller_of(meta),
        )


class Bindings:
    """Counts pods that were bound past us, and tells who listens.

    Args:
        scheduler_names: whose pods should come to us.
        managed_resources: a pod that asks for none of them is nobody's business here; none: all that are GPUs or parts
            of them.
        gpu_resources: further names of GPUs, which the store counts too.
        decision_of: the newest decision for a uid, if there is one.
        judges: whether this replica judges now: it leads, and acts.
        is_asked: whether it is this replica that kube-scheduler asks. Where each answers its own kube-scheduler, over
            loopback, a decision that is missing here may have been made next door.
    """

    def __init__(
        self,
        scheduler_names: Iterable[str],
        managed_resources: Iterable[str],
        *,
        gpu_resources: AbstractSet[str] = frozenset(),
        decision_of: Callable[[str], DecisionRecord | None],
        judges: Callable[[], bool],
        is_asked: Callable[[], bool] = lambda: True,
    ) -> None:
        self.past: Counter[str] = Counter({reason.value: 0 for reason in Past})
        """By reason, zeros too: a series that is not there cannot be watched."""
        self.on_past: Callable[[Binding, Past], None] | None = None
        self.is_observed: Callable[[str], bool] = lambda _: False
        """Whether a node is in a pool that is only observed: whoever binds there may."""
        self._gpu_resources = gpu_resources
        self._decision_of = decision_of
        self._judges = judges
        self._is_asked = is_asked
        self._inherited: frozenset[str] = frozenset()
        self._inherited_until_mono_s = 0.0
        self._bound_others: set[str] = set()
        self._others: tuple[str, ...] = ()
        self._added: frozenset[str] = frozenset()
        """Resources that a reload brought."""
        self._waiting_added: set[str] = set()
        """Pods that ask for nothing else of ours, seen without a node since: others may have been bound long ago."""
        self.use(scheduler_names, managed_resources)
        self._added = frozenset()

    def use(self, scheduler_names: Iterable[str], managed_resources: Iterable[str]) -> None:
        """Take other names and resources. Pods that are bound already are not held against anybody."""
        self.scheduler_names = frozenset(scheduler_names)
        managed = frozenset(managed_resources)
        self._managed = managed
        others = frozenset(name for name in managed if not is_gpu_resource(name, self._gpu_resources))
        self._added |= others.difference(self._others)
        self._others = tuple(sorted(others))
        if not others:
            # Nobody listens any more to pods that go.
            self._bound_others.clear()
            self._waiting_added.clear()

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

    def see(self, event: ClusterEvent, now_mono_s: float, *, synced: bool) -> None:
        """Take one event of pods; for managed resources that the store does not count."""
        if not self._others:
            return
        if isinstance(event, Listed):
            self._bound_others &= event.keys
            self._waiting_added &= event.keys
        elif isinstance(event.object, Pod):
            uid = event.object.metadata.uid
            if isinstance(event, Gone):
                self._bound_others.discard(uid)
                self._waiting_added.discard(uid)
            elif uid not in self._bound_others:
                self._see_other(event.object, now_mono_s, synced=synced)

    def _see_other(self, pod: Pod, now_mono_s: float, *, synced: bool) -> None:
        spec, uid = pod.spec, pod.metadata.uid
        if not spec.node_name and not self._added:
            return
        asked = [name for name in self._others if requested(spec, name) > 0]
        if not asked:
            return
        added = self._added.issuperset(asked)
        if not spec.node_name:
            if added:
                self._waiting_added.add(uid)
            return
        if any(requested(spec, name) > 0 for name in self._managed.difference(self._others)):
            # The store told of this one.
            return
        self._bound_others.add(uid)
        just_bound = not added or uid in self._waiting_added
        self._waiting_added.discard(uid)
        if synced and just_bound:
            self._judge(Binding.of_object(pod), "", now_mono_s)

    def _judge(self, binding: Binding, promised: str, now_mono_s: float) -> None:
        if not self._judges() or binding.decided or self.is_observed(binding.node):
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
