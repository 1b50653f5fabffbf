"""What is kept of a decision: enough to say afterwards why, about 2 KB.

A term is a raw score times the policy's weight. Added up in the order of `policies`, in double precision, the terms of
a node give its score exactly: that is how the cycle added them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from scheduler.core.nouns import DECISION_ANNOTATION

# DESIGN: the last 10,000 in memory, each also one log line.
RECORDS_KEPT = 10_000
RESULTS = ("placed", "advised", "no_fit", "passed_soft", "full_by_our_count", "observed", "accepted")
"""How a decision may end."""
PREEMPT = "preempt"
"""The verb that places nothing: it says where room may be made."""


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """One score policy of the profile, and its share of the weight."""

    policy: str
    weight: float
    """Share of the profile's whole weight, 0 to 1."""


class Ranked(msgspec.Struct, frozen=True, gc=False):
    """One of the best nodes. `scores` are the raw ones, in the order of the record's `policies`."""

    node: str
    score: float
    """Sum over the policies of weight times raw score, 0 to 1; higher is better."""
    pool: str
    free_gpus: float
    """Before this pod."""
    scores: tuple[float, ...]
    """Raw score by each policy, in the order of the record's `policies`."""


class DecisionRecord(msgspec.Struct, frozen=True, gc=False):
    """One decision. `chosen` is empty if no node fits, or if kube-scheduler was left to choose (advisory)."""

    cycle: str
    """Names this decision in the log and in the pod's annotation; begins with the end of the replica's identity."""
    unix_s: float
    """When, by the daemon's clock."""
    verb: str
    """filter | prioritize | preempt"""
    namespace: str
    pod: str
    uid: str
    profile: str
    placement: str
    """decisive: we name one node | advisory: kube-scheduler chooses by our scores and its own"""
    gpus: int
    """Units of nvidia.com/gpu asked for."""
    resources: dict[str, float]
    """All units asked for, by resource; of shared GPUs and slices, too."""
    asked: int
    """How many nodes kube-scheduler offered."""
    fitting: int
    """How many of them had no reason against them and room by our count; of preempt, which makes room: no reason."""
    chosen: str
    """The node; empty if none fits, if kube-scheduler chooses, and of preempt."""
    result: str
    """placed | advised | no_fit | passed_soft (prefers what we cannot weigh) | full_by_our_count | observed
    | accepted (of preempt: some of the candidates)"""
    reserved: bool
    """Whether its GPUs are now kept for this pod."""
    reasons: dict[str, int]
    """Reason text -> number of nodes it ruled out."""
    policies: tuple[Weighed, ...]
    """What scored, and with what share of the weight."""
    best: tuple[Ranked, ...]
    """The ten best nodes, the choice first; each with its raw scores."""

    def terms(self, ranked: Ranked) -> list[float]:
        """What each policy added to the node's score."""
        return [score * each.weight for each, score in zip(self.policies, ranked.scores, strict=True)]

    def in_words(self) -> str:
        """One line for a person who reads a log; what each policy gave is not in it."""
        score = next((best.score for best in self.best if best.node == self.chosen), None)
        parts = [
            f"{self.namespace}/{self.pod} -> {self.chosen or 'no node'}",
            f"{self.result}{', promised' if self.reserved else ''}",
            f"{self.verb}, profile {self.profile}, {self.placement}",
            *([f"score {score:.3f}"] if score is not None else []),
            f"{self.asked} asked, {self.fitting} fit",
            *(f"{count} {reason}" for reason, count in sorted(self.reasons.items(), key=_most_first)),
            f"cycle {self.cycle}",
        ]
        return "; ".join(parts)


def _most_first(reason: tuple[str, int]) -> tuple[int, str]:
    return -reason[1], reason[0]


def decision_annotation(record: DecisionRecord | None, node: str, term: int) -> dict[str, str]:
    """What stands on a pod that was bound by a decision: where to, and how to find the record of it.

    A record that another replica made is not known; that it was ours is.
    """
    score = next((best.score for best in record.best if best.node == node), None) if record else None
    decision = {
        "node": node,
        "profile": record.profile if record else "",
        "score": score,
        "cycle": record.cycle if record else "",
        "term": term,
    }
    return {DECISION_ANNOTATION: msgspec.json.encode(decision).decode()}


class Said(msgspec.Struct, frozen=True):
    """What stands on a pod about its decision."""

    node: str
    cycle: str
    profile: str = ""
    score: float | None = None


def said_in(text: str) -> Said | None:
    """Read what stands on a pod; None if it is not ours: everybody may write there."""
    try:
        return msgspec.json.decode(text, type=Said)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def is_annotated(record: DecisionRecord, node: str, text: str) -> bool:
    """Whether what stands on a pod is this decision: a manifest may have been copied with another pod's.

    One without a cycle was written in a Binding, by a replica that did not know the record.
    """
    said = said_in(text)
    return said is not None and said.node == node and said.cycle in {"", record.cycle}


class DecisionLog:
    """The last decisions, newest last; and of each pod the newest that was about its place."""

    def __init__(self, kept: int = RECORDS_KEPT) -> None:
        self._records: deque[DecisionRecord] = deque(maxlen=kept)
        self._by_uid: dict[str, DecisionRecord] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[DecisionRecord]:
        """Newest first."""
        return reversed(self._records)

    def add(self, record: DecisionRecord) -> None:
        """Keep one; the oldest goes when the log is full."""
        if len(self._records) == self._records.maxlen:
            oldest = self._records[0]
            if self._by_uid.get(oldest.uid) is oldest:
                del self._by_uid[oldest.uid]
        self._records.append(record)
        if record.verb != PREEMPT:
            self._by_uid[record.uid] = record

    def of_pod(self, uid: str) -> DecisionRecord | None:
        """The newest decision about a pod's place: where room may be made for it (preempt) is none."""
        return self._by_uid.get(uid)

    def owner_of(self, cycle: str) -> str | None:
        """The uid of the pod that a decision was about; None if it is not kept. Looks at all that are."""
        return next((record.uid for record in self if record.cycle == cycle), None)
