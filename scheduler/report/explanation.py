"""What `/api/v1/explain/{namespace}/{pod}` answers with, and how a decision's record is told in it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from scheduler.core.nouns import Placement
from scheduler.decision.evaluation import Candidate, Evaluation, decided, why_first
from scheduler.decision.record import DecisionRecord
from scheduler.extender.answers import scaled
from scheduler.report.views import View


class Decision(View, frozen=True):
    """The last decision about a pod's place, or about where room may be made for it, as it was made."""

    cycle: str
    """Names it in the log and in the pod's annotation."""
    unix_s: float
    """When."""
    verb: str
    """filter | prioritize; of `room` preempt"""
    uid: str
    """Of which pod: another of the same name, if it is not this one's."""
    profile: str
    placement: str
    """decisive: we name one node | advisory: kube-scheduler chooses by our scores and its own"""
    gpus: int
    asked: int
    """How many nodes kube-scheduler offered."""
    fitting: int
    """How many of them had no reason against them and room by our count; of preempt, which makes room: no reason."""
    chosen: str
    """The node; empty if none fits, or if kube-scheduler chooses."""
    result: str
    """placed | advised | no_fit | passed_soft (prefers what we cannot weigh) | full_by_our_count | observed
    | accepted (of preempt: some of the candidates)"""
    reserved: bool
    """Whether its GPUs were kept for the pod."""
    reasons: dict[str, int]
    """Reason text -> number of nodes it ruled out."""
    best: list[Candidate]
    """The ten best nodes, the choice first, each with its terms, which add up to its score."""
    order: str = ""
    """Why the first of them is first, where another has a better score; as pools are ordered now."""


class Annotation(View, frozen=True):
    """One annotation under our prefix that concerns the pod."""

    key: str
    """Without the prefix."""
    value: str
    where: str
    """Whose it is."""
    problem: str = ""
    """Why it does not count; empty if it does."""
    not_yet: str = ""
    """What will act on it, if nothing does today."""


class Explanation(View, frozen=True):
    """All that is known of why one pod is where it is, or waits."""

    namespace: str
    name: str
    uid: str
    state: str
    """waiting | bound | finished | not seen (not among the pods that want or hold GPUs, by what this replica sees
    now)"""
    unix_s: float = 0.0
    """When this was answered."""
    node: str = ""
    """Where it is bound, or was until it finished."""
    node_missing: bool = False
    """Whether there is no such node."""
    phase: str = ""
    """Of one that has finished: Succeeded | Failed"""
    deletion_unix_s: float | None = None
    """Of one that is being deleted: when it is to be gone, its grace included (metadata.deletionTimestamp)."""
    gpus: float | None = None
    """Units of nvidia.com/gpu that it asks for."""
    resources: dict[str, float] | None = None
    """All units that it asks for, by resource."""
    asks: str = ""
    """The same in words, by what they are on its node, or while it waits on all that have them."""
    scheduler: str = ""
    """The schedulerName in its spec."""
    workload: str = ""
    """training | inference | batch"""
    workload_from: str = ""
    """What made it so, as far as it is known."""
    annotations: list[Annotation] = msgspec.field(default_factory=list)
    """What its annotations say under our prefix: its own, its owners', its namespace's."""
    created_unix_s: float | None = None
    waited_s: float | None = None
    """How long a pod that waits has done so."""
    woken_unix_s: float | None = None
    """When this replica woke it last, since what it had been refused for had ended; null if it never did."""
    reserved_node: str = ""
    """Where GPUs are promised to it now."""
    notes: list[str] = msgspec.field(default_factory=list)
    """What a reader should know of this answer: what is missing in it, and why."""
    decision: Decision | None = None
    """Null if there is none: `notes` says why."""
    room: Decision | None = None
    """Where no decision about this pod's place is kept: the last one about where others may make room for it."""
    now: Evaluation | None = None
    """A fresh evaluation; null if the pod is not seen, has finished, or waits and is being deleted."""


class NotFound(View, frozen=True):
    """Nothing is known of a pod."""

    error: str
    """What is not known, and what to try."""
    namespaces: list[str] = msgspec.field(default_factory=list)
    """Where pods of this name are, or were."""


def decision_of(record: DecisionRecord, ranks: Sequence[str] = ()) -> Decision:
    """A record, its terms spelled out; in advisory placement with what kube-scheduler was told.

    Args:
        record: The record.
        ranks: Names of pools as the pod would rather have them; none: the order is not explained.
    """
    best = decided(record)
    advisory = record.placement == Placement.ADVISORY
    return Decision(
        cycle=record.cycle,
        unix_s=record.unix_s,
        verb=record.verb,
        uid=record.uid,
        profile=record.profile,
        placement=record.placement,
        gpus=record.gpus,
        asked=record.asked,
        fitting=record.fitting,
        chosen=record.chosen,
        result=record.result,
        reserved=record.reserved,
        reasons=record.reasons,
        best=[_pointed(each) for each in best] if advisory else list(best),
        order=why_first(best, ranks) if ranks else "",
    )


def with_points(now: Evaluation) -> Evaluation:
    """In advisory placement: what kube-scheduler would be told of each node."""
    return msgspec.structs.replace(
        now,
        best=tuple(map(_pointed, now.best)),
        own=None if now.own is None else _pointed(now.own),
    )


def _pointed(candidate: Candidate) -> Candidate:
    [points] = scaled(np.array([candidate.score], np.float32)).tolist()
    return msgspec.structs.replace(candidate, points=points)
