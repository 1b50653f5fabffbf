"""Kubernetes Events for people: why a pod waits for us, and that one was placed past us; at most a few a pod.

Composition: decisions and bindings in, EventNotes out. Written by a leader that acts, never by a standby and never in
observe mode; queueing, series and drops are in cluster/events.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from scheduler.bindings import Binding, Past
from scheduler.cluster.intent import POD, Fault
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.objects import Meta
from scheduler.cluster.port import EventNote
from scheduler.cluster.shares import words
from scheduler.core.clock import Clock
from scheduler.core.nouns import Reason
from scheduler.decision.record import DecisionRecord

NO_NODE_FITS = "NoNodeFits"
PLACED_PAST_US = "PlacedPastWattbalance"
BAD_ANNOTATION = "BadAnnotation"
LABELS_CONTRADICT = "LabelsContradictAllocatable"
IN_TWO_POOLS = "NodeInTwoPools"
# The same again: kube-scheduler asks anew every few seconds, and a refused pod at least each five minutes.
SAME_AGAIN_S = 300.0
# Something else about the same pod: reasons that flap must not become a stream of writes.
OTHER_AGAIN_S = 30.0
# Pods remembered; as many as decisions are.
MOST_REMEMBERED = 10_000

ADVICE: dict[str, str] = {
    Reason.UNKNOWN_NODE.text: "where that lasts, look at wattbalance's log",
    Reason.QUARANTINED.text: "take the label wattbalance.io/quarantine off nodes that are well again",
    Reason.BROKEN_GPUS.text: "reset or drain nodes whose GPUs are lost or hung",
    Reason.WAITING_FOR_POOL.text: "later pools open to it after the pool's spill.after",
    Reason.OTHER_POOL.text: "name more pools in wattbalance.io/pools",
    Reason.OTHER_MODEL.text: "name more models in wattbalance.io/gpu-model",
    Reason.UNKNOWN_MODEL.text: "run wattbalance's agent there, or label nodes with nvidia.com/gpu.product",
    Reason.TOO_LITTLE_MEMORY.text: "ask for less in wattbalance.io/gpu-memory",
    Reason.UNKNOWN_MEMORY.text: "run wattbalance's agent there, or label nodes with nvidia.com/gpu.memory",
    Reason.IN_TWO_POOLS.text: "let one pool alone select those nodes",
    Reason.CHOSEN_BEFORE_NOT_BOUND.text: "look at the pod's volumes and at admission on that node",
}
PAST: dict[Past, str] = {
    Past.NO_DECISION: (
        "Bound to {node} without a decision of wattbalance, though scheduler {scheduler} should ask it: look at "
        "kube-scheduler's log for errors of its extender, and at `ignorable` and `managedResources` there."
    ),
    Past.OTHER_NODE: (
        "Bound to {node}, which is not the node that wattbalance had chosen: its answer came too late, or somebody "
        "bound the pod by hand."
    ),
    Past.OTHER_SCHEDULER: (
        "Bound to {node} by scheduler {scheduler}, which does not ask wattbalance: keep it off these nodes by a taint "
        "such as wattbalance.io/scheduler=NAME:NoSchedule, or name it in scheduler_names."
    ),
}


class Notices:
    """Makes notes of decisions and bindings, unless the same was said of the pod a short while ago.

    Args:
        write: takes a note and does not wait.
        may_write: whether this replica leads and acts.
        clock: for how long ago.
    """

    def __init__(
        self, write: Callable[[EventNote], None], may_write: Callable[[], bool], clock: Clock
    ) -> None:
        self._write = write
        self._may_write = may_write
        self._clock = clock
        self._said: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def no_fit(self, record: DecisionRecord) -> None:
        """No node of those offered fits a pod."""
        about = ", ".join(sorted(record.reasons))
        if not self._is_news(record.uid, NO_NODE_FITS, about):
            return
        # Where all it has to do is wait for a pool's turn, nothing is wrong.
        wrong = any(not text.startswith(Reason.WAITING_FOR_POOL.text) for text in record.reasons)
        pod = Meta(namespace=record.namespace, name=record.pod, uid=record.uid)
        self._tell(pod, NO_NODE_FITS, about, _refusal(record), warning=wrong or not record.reasons)

    def past(self, binding: Binding, why: Past) -> None:
        """A pod was placed past us."""
        if binding.daemon or not self._is_news(binding.uid, PLACED_PAST_US, why.value):
            return
        pod = Meta(namespace=binding.namespace, name=binding.name, uid=binding.uid)
        note = PAST[why].format(node=binding.node, scheduler=binding.scheduler)
        self._tell(pod, PLACED_PAST_US, why.value, note, action="Binding")

    def bad_annotations(self, pod: Meta, faults: tuple[Fault, ...]) -> None:
        """A pod that is asked about has annotations that do not count, its own or inherited.

        All of one pod in one event. What an owner or a namespace says is told on one of its pods, not on each.
        """
        own = [fault for fault in faults if fault.where == POD]
        inherited = [
            fault
            for fault in faults
            if fault.where != POD
            and self._is_news(f"{pod.namespace}/{fault.where}", fault.key, fault.message)
        ]
        about = "; ".join(str(fault) for fault in own)
        own_is_news = bool(own) and self._is_news(pod.uid, BAD_ANNOTATION, about)
        if not own_is_news and not inherited:
            return
        told = "; ".join(str(fault) for fault in (*own, *inherited))
        note = f"Not used, the default holds (docs/annotations.md): {told}"
        self._tell(pod, BAD_ANNOTATION, told, note)

    def contradictions(self, node: NodeRecord) -> None:
        """A node's labels claim GPUs that its allocatable does not have; or that is over, and may be told again."""
        about = "; ".join(node.contradictions)
        note = f"Allocatable counts: {about}. Look at its device plugin, feature discovery and DRA driver."
        self._tell_of_node(node, LABELS_CONTRADICT, about, note)

    def in_two_pools(self, node: NodeRecord) -> None:
        """The selectors of several pools take a node; or that is over, and may be told again."""
        about = " and ".join(node.in_pools)
        note = (
            f"Taken by the selectors of pools {about}: no GPU pod is placed here until one of them is left. "
            "Change the node's labels, or the pools' selectors in wattbalance's configuration."
        )
        self._tell_of_node(node, IN_TWO_POOLS, about, note)

    def _tell_of_node(self, node: NodeRecord, reason: str, about: str, note: str) -> None:
        if about and self._is_news(node.uid, reason, about):
            self._tell(Meta(name=node.name, uid=node.uid), reason, about, note, kind="Node")

    def _tell(
        self,
        of: Meta,
        reason: str,
        about: str,
        note: str,
        *,
        kind: str = "Pod",
        warning: bool = True,
        action: str = "Scheduling",
    ) -> None:
        self._write(
            EventNote(
                kind=kind,
                namespace=of.namespace,
                name=of.name,
                uid=of.uid,
                reason=reason,
                note=note,
                about=about,
                warning=warning,
                action=action,
            )
        )

    def _is_news(self, uid: str, reason: str, about: str) -> bool:
        """Whether it may be said now; then it is taken to be."""
        if not self._may_write():
            return False
        now_mono_s = self._clock.mono_s()
        said, said_mono_s = self._said.get((uid, reason), ("", float("-inf")))
        if now_mono_s - said_mono_s < (SAME_AGAIN_S if said == about else OTHER_AGAIN_S):
            return False
        self._said[uid, reason] = (about, now_mono_s)
        self._said.move_to_end((uid, reason))
        if len(self._said) > MOST_REMEMBERED:
            self._said.popitem(last=False)
        return True


def _refusal(record: DecisionRecord) -> str:
    asked = f"{record.asked} node" if record.asked == 1 else f"{record.asked} nodes"
    gpus = words(tuple(record.resources.items()))
    if not record.reasons:
        return f"No node fits: kube-scheduler offered none for {gpus}."
    reasons = "; ".join(f"{count}: {text}" for text, count in sorted(record.reasons.items()))
    advice = {hint for text in record.reasons for known, hint in ADVICE.items() if text.startswith(known)}
    what_to_do = f" What helps: {'; '.join(sorted(advice))}." if advice else ""
    return f"None of {asked} offered fits {gpus} (profile {record.profile}): {reasons}.{what_to_do}"
