"""Kubernetes Events for people: why a pod waits for us, and that one was placed past us; at most a few a pod.

What is the same of many pods of one Deployment or Job is told on the first few of them, and on their owner, where each
further pod only counts. What a namespace says is told likewise, on the namespace.

Composition: decisions and bindings in, EventNotes out. Written by a leader that acts, never by a standby and never in
observe mode; queueing, series, the limit over all and drops are in cluster/events.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from scheduler.bindings import Binding, Past
from scheduler.cluster.intent import Fault
from scheduler.cluster.intents import controller_of
from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.objects import Meta
from scheduler.cluster.port import EventNote
from scheduler.cluster.shares import words
from scheduler.core.clock import Clock
from scheduler.core.nouns import Controller, Reason, Units
from scheduler.decision.record import DecisionRecord

NO_NODE_FITS = "NoNodeFits"
PLACED_PAST_US = "PlacedPastWattbalance"
BAD_ANNOTATION = "BadAnnotation"
LABELS_CONTRADICT = "LabelsContradictAllocatable"
AGENT_CONTRADICTS = "AgentContradictsAllocatable"
PODS_CONTRADICT = "PodsContradictAllocatable"
IN_TWO_POOLS = "NodeInTwoPools"
# The same again: kube-scheduler asks anew every few seconds, and a refused pod at least each five minutes.
SAME_AGAIN_S = 300.0
# Something else about the same pod: reasons that flap must not become a stream of writes.
OTHER_AGAIN_S = 30.0
# Of what is the same of all pods of one owner, so many have it on themselves too: whoever describes the pods of a small
# Deployment finds it there, and a large one makes no flood.
PODS_TOLD = 3
# A pod of which nothing was told for so long makes room for another: twice what one that still waits is silent.
PODS_TOLD_AGAIN_S = 2 * SAME_AGAIN_S
# Pods remembered, and what is told of owners; as many as decisions are.
MOST_REMEMBERED = 10_000

ADVICE: dict[str, str] = {
    Reason.UNKNOWN_NODE.text: "where that lasts, look at wattbalance's log",
    Reason.QUARANTINED.text: "take the label wattbalance.io/quarantine off nodes that are well again",
    Reason.BROKEN_GPUS.text: "reset or drain nodes whose GPUs are lost or hung",
    Reason.WAITING_FOR_POOL.text: "later pools open to it after the pool's spill.after",
    # Whose word it is, and what there is, numbers and names, explain says.
    Reason.OTHER_POOL.text: "more pools in wattbalance.io/pools (explain says whose)",
    Reason.OTHER_MODEL.text: "models as *A100* in wattbalance.io/gpu-model",
    Reason.UNKNOWN_MODEL.text: "run wattbalance's agent there, or label nvidia.com/gpu.product",
    Reason.TOO_LITTLE_MEMORY.text: "less in wattbalance.io/gpu-memory (the fullest shared GPU counts)",
    Reason.UNKNOWN_MEMORY.text: "run wattbalance's agent there; unshared GPUs: or label nvidia.com/gpu.memory",
    Reason.IN_TWO_POOLS.text: "let one pool alone select those nodes",
    Reason.CHOSEN_BEFORE_NOT_BOUND.text: "look at the pod's volumes and at admission",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What an event stands on."""

    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """What an event says."""

    reason: str
    about: str
    """Tells apart what is not the same again."""
    note: str
    warning: bool = True
    action: str = "Scheduling"


class Notices:
    """Makes notes of decisions and bindings, unless the same was said of the pod a short while ago.

    Args:
        write: takes a note and does not wait.
        may_write: whether this replica leads and acts.
        clock: for how long ago.
        topmost: who controls a pod in the end, by its own controller.
        said: units in words, by what they are on the nodes that there are.
    """

    def __init__(
        self,
        write: Callable[[EventNote], None],
        may_write: Callable[[], bool],
        clock: Clock,
        topmost: Callable[[Controller | None], Controller | None] = lambda controller: controller,
        said: Callable[[Units], str] = words,
    ) -> None:
        self._write = write
        self._may_write = may_write
        self._clock = clock
        self._topmost = topmost
        self._units_said = said
        self._said: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        """What was said last of a pod or node and a reason, as a hash since it may be long, and when."""
        self._first: OrderedDict[tuple[str, str, int], dict[str, float]] = OrderedDict()
        """Of what is said of an owner: its pods that have it on themselves, and when they were told last."""

    def no_fit(self, record: DecisionRecord, controller: Controller | None = None) -> None:
        """No node of those offered fits a pod, which `controller` made."""
        about = ", ".join(sorted(record.reasons))
        if not self._is_news(record.uid, NO_NODE_FITS, about):
            return
        # Where all it has to do is wait for a pool's turn, nothing is wrong.
        wrong = any(not text.startswith(Reason.WAITING_FOR_POOL.text) for text in record.reasons)
        warning = wrong or not record.reasons
        message = _Message(
            reason=NO_NODE_FITS, about=about, note=_refusal(record, self._units_said), warning=warning
        )
        pod = _Subject(kind="Pod", namespace=record.namespace, name=record.pod, uid=record.uid)
        self._tell_of_pod(pod, controller, message)

    def past(self, binding: Binding, why: Past) -> None:
        """A pod was placed past us."""
        if binding.daemon or not self._is_news(binding.uid, PLACED_PAST_US, why.value):
            return
        note = PAST[why].format(node=binding.node, scheduler=binding.scheduler)
        message = _Message(reason=PLACED_PAST_US, about=why.value, note=note, action="Binding")
        pod = _Subject(kind="Pod", namespace=binding.namespace, name=binding.name, uid=binding.uid)
        self._tell_of_pod(pod, binding.controller, message)

    def bad_annotations(self, meta: Meta, faults: tuple[Fault, ...]) -> None:
        """A pod that is asked about has annotations that do not count, its own or inherited; all in one event."""
        if not self._is_news(meta.uid, BAD_ANNOTATION, _listed(faults)):
            return
        pod = _Subject(kind="Pod", namespace=meta.namespace, name=meta.name, uid=meta.uid)
        owner = self._owner(pod, controller_of(meta))
        namespace = _Subject(kind="Namespace", namespace=meta.namespace, name=meta.namespace, uid="")
        by_namespace = tuple(fault for fault in faults if fault.where == f"namespace {meta.namespace}")
        by_others = tuple(fault for fault in faults if fault not in by_namespace)
        told: tuple[Fault, ...] = ()
        for subject, its in ((owner, by_others), (namespace, by_namespace)):
            if its and self._is_told_itself(pod, subject, _bad(its)):
                told += its
        if told:
            # In the order of all: mistakes in keys that nobody knows come last, whoever made them.
            self._tell(pod, _bad(tuple(fault for fault in faults if fault in told)))

    def contradictions(self, node: NodeRecord) -> None:
        """A node's labels, its agent or its pods tell of its GPUs otherwise than its allocatable does.

        Or that is over, and may be told again.
        """
        about = "; ".join(node.miscounted)
        note = f"Allocatable counts: {about}. Look at its device plugin, feature discovery and DRA driver."
        self._tell_of_node(node, LABELS_CONTRADICT, about, note)
        note = (
            f"For a minute now {node.disagreement}. Look for GPUs that fell off the bus (nvidia-smi -L there), and at "
            "the labels nvidia.com/gpu.replicas and nvidia.com/gpu.product: they say how much of a GPU a unit is."
        )
        self._tell_of_node(node, AGENT_CONTRADICTS, node.disagreement, note)
        about = "; ".join(node.outgrown)
        note = (
            f"Here {about}. wattbalance counts what they hold, kube-scheduler what they asked for: it may place more "
            "here than there is. Restart these pods, and drain a node before its GPUs are divided anew."
        )
        self._tell_of_node(node, PODS_CONTRADICT, about, note)

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
            subject = _Subject(kind="Node", namespace="", name=node.name, uid=node.uid)
            self._tell(subject, _Message(reason=reason, about=about, note=note))

    def _tell_of_pod(self, pod: _Subject, controller: Controller | None, message: _Message) -> None:
        if self._is_told_itself(pod, self._owner(pod, controller), message):
            self._tell(pod, message)

    def _owner(self, pod: _Subject, controller: Controller | None) -> _Subject | None:
        """On what to tell that which is the same of many pods; None where the pod stands alone."""
        owner = self._topmost(controller)
        # A kubelet's own pods are the node's; what has no name cannot be described.
        if owner is None or owner.kind == "Node" or not owner.name:
            return None
        return _Subject(
            kind=owner.kind,
            namespace=pod.namespace,
            name=owner.name,
            uid=owner.uid,
            api_version=owner.api_version,
        )

    def _is_told_itself(self, pod: _Subject, owner: _Subject | None, message: _Message) -> bool:
        """Tell it on the owner, where it goes on as a series; returns whether to tell it on this pod too."""
        if owner is None:
            return True
        self._tell(owner, replace(message, note=f"First pod {pod.name}: {message.note}"))
        now_mono_s = self._clock.mono_s()
        # A namespace has no uid here, but what it says names it.
        key = (owner.uid, message.reason, hash(message.about))
        first = self._first.setdefault(key, {})
        self._first.move_to_end(key)
        if len(self._first) > MOST_REMEMBERED:
            self._first.popitem(last=False)
        if pod.uid not in first and len(first) >= PODS_TOLD:
            oldest = min(first, key=first.__getitem__)
            if now_mono_s - first[oldest] < PODS_TOLD_AGAIN_S:
                return False
            del first[oldest]
        first[pod.uid] = now_mono_s
        return True

    def _tell(self, subject: _Subject, message: _Message) -> None:
        self._write(
            EventNote(
                kind=subject.kind,
                namespace=subject.namespace,
                name=subject.name,
                uid=subject.uid,
                api_version=subject.api_version,
                reason=message.reason,
                note=message.note,
                about=message.about,
                warning=message.warning,
                action=message.action,
            )
        )

    def _is_news(self, uid: str, reason: str, about: str) -> bool:
        """Whether it may be said now; then it is taken to be."""
        if not self._may_write():
            return False
        now_mono_s, this = self._clock.mono_s(), hash(about)
        said, said_mono_s = self._said.get((uid, reason), (0, float("-inf")))
        if now_mono_s - said_mono_s < (SAME_AGAIN_S if said == this else OTHER_AGAIN_S):
            return False
        self._said[uid, reason] = (this, now_mono_s)
        self._said.move_to_end((uid, reason))
        if len(self._said) > MOST_REMEMBERED:
            self._said.popitem(last=False)
        return True


def _listed(faults: tuple[Fault, ...]) -> str:
    return "; ".join(map(str, faults))


def _bad(faults: tuple[Fault, ...]) -> _Message:
    told = _listed(faults)
    note = f"Not used, the default holds (docs/annotations.md): {told}"
    return _Message(reason=BAD_ANNOTATION, about=told, note=note)


def _refusal(record: DecisionRecord, said: Callable[[Units], str]) -> str:
    asked = f"{record.asked} node" if record.asked == 1 else f"{record.asked} nodes"
    gpus = said(tuple(record.resources.items()))
    if not record.reasons:
        return f"No node fits: kube-scheduler offered none for {gpus}."
    reasons = "; ".join(f"{count}: {text}" for text, count in sorted(record.reasons.items()))
    advice = {hint for text in record.reasons for known, hint in ADVICE.items() if text.startswith(known)}
    what_to_do = f" What helps: {'; '.join(sorted(advice))}." if advice else ""
    return f"None of {asked} offered fits {gpus} (profile {record.profile}): {reasons}.{what_to_do}"
