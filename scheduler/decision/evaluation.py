"""What a fresh evaluation of a pod tells, as records for the API: candidates with their terms, reasons, hindrances."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from scheduler.decision.record import DecisionRecord


class Term(msgspec.Struct, frozen=True, gc=False):
    """What one policy added to a node's score."""

    policy: str
    weight: float
    """Share of the profile's whole weight, 0 to 1."""
    score: float
    """Raw, 0 to 1; higher is better."""
    term: float
    """Weight times raw score. Added up in this order, in double precision, the terms are the node's score exactly."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One node and how it came to its score."""

    node: str
    pool: str
    score: float
    """Sum of the terms, 0 to 1; higher is better."""
    free_gpus: float
    """Without this pod."""
    terms: tuple[Term, ...]
    band: str = ""
    """fits | chosen_before (three times for this pod, never bound) | full (by our count) | ruled_out; empty in a
    decision"""
    reason: str = ""
    """Why it is ruled out."""
    points: int | None = None
    """Advisory placement: what kube-scheduler is told, 0 to 10."""


class RuledOut(msgspec.Struct, frozen=True, gc=False):
    """One reason against nodes."""

    reason: str
    nodes: int
    """How many it rules out."""
    examples: tuple[str, ...]
    """Some of them, by name."""


class Hindrance(msgspec.Struct, frozen=True, gc=False):
    """One thing that keeps a pod waiting, and what would end it."""

    kind: str
    """none (it fits now) | together (all that must end on the nearest node, where no single thing would do) |
    quarantine | cordon | two_pools | broken_gpus | pool | annotation (what is asked for of the pod) | selection (its
    nodeSelector or required node affinity) | taint | free_gpus | node_size | no_nodes"""
    text: str
    """For a person: what it is and what helps."""
    helps: int = 0
    """How many nodes the pod would fit if only this were gone."""
    nodes: tuple[str, ...] = ()
    """Some of those; where there are none, some of the nodes that it concerns."""
    until_unix_s: float | None = None
    """When it ends by itself; null where it does not."""
    lacking_gpus: float | None = None
    """How many GPUs the nearest node lacks."""
    annotation: str = ""
    """Which one, without the prefix."""
    said_by: str = ""
    """Whose it is: pod, its owner by kind and name, namespace NAME, configuration, or namespace limit."""
    models: tuple[str, ...] = ()
    """Of gpu-model: models that there are, the commonest first."""
    largest_memory_bytes: float | None = None
    """Of gpu-memory: the most that any node has, or has free where GPUs are shared; null where nobody tells."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """One thing that must end for a node to take a pod."""

    kind: str
    """As of a hindrance."""
    text: str
    """For a person: what to do."""
    annotation: str = ""
    """Which one, without the prefix."""
    units: dict[str, float] = {}
    """Of free_gpus: how many units of each resource must end there."""
    asks: str = ""
    """Of an annotation: what it may ask for then; empty: nothing. Of two_pools: the pool that the node stays in."""


class Nearest(msgspec.Struct, frozen=True, gc=False):
    """The node that takes the fewest steps to let a pod in."""

    node: str
    steps: tuple[Step, ...]
    """All of them together let the pod in; none of them can be left out."""


class Waking(msgspec.Struct, frozen=True, gc=False):
    """Whether a pod that waits is woken once it fits; if not, or not yet, why and until when."""

    state: str
    """soon (within a second or two once it fits) | queued (others are before it) | resting (it was woken lately) |
    failed (the last try) | rejected (the API server takes no annotation on it) | no_room (its annotations are full) |
    forbidden (we may not patch pods) | unanswered (no pod could be woken lately) | off | paused | standby |
    leaderless | not_ready | observed | not_refused (by us, so that nothing of ours holds it) | promised (a node) |
    stranger (its scheduler is none of ours) | no_binder | too_many"""
    text: str
    """For a person: what it is, and who wakes it otherwise."""
    until_unix_s: float | None = None
    """When it is over, or tried again; null where nobody knows."""
    before: int | None = None
    """Of one that fits: how many that fit, too, are before it in the queue."""


class Evaluation(msgspec.Struct, frozen=True, gc=False):
    """What would be decided at one instant, over all nodes that exist."""

    unix_s: float
    """When."""
    nodes: int
    """How many there are."""
    fitting: int
    """How many of them no reason of ours is against, with room by our count."""
    full: int
    """Likewise, without room by our count."""
    profile: str
    placement: str
    """decisive: we name one node | advisory: kube-scheduler chooses by our scores and its own"""
    chosen: str
    """The node that would come first; empty if there is none."""
    held_on: str
    """Where the pod is bound, its own GPUs counted free there; empty while it waits."""
    ruled_out: tuple[RuledOut, ...]
    """Most nodes first."""
    best: tuple[Candidate, ...]
    """The ten best nodes, the choice first."""
    own: Candidate | None
    """The node that the pod is bound to, be it among the best or not."""
    unblock: tuple[Hindrance, ...]
    """Of a pod that waits: what would let it run, what helps most first."""
    failed_policies: tuple[str, ...]
    """Policies that failed, and are left out of filters or scores."""
    nearest: Nearest | None = None
    """Of a pod that waits and fits nowhere: the node that lacks least; null if nothing that we know of would do."""
    order: str = ""
    """Why the first of `best` is first, where another has a better score."""
    waking: Waking | None = None
    """Of a pod that waits; null where nothing is known of it."""


def decided(record: DecisionRecord) -> tuple[Candidate, ...]:
    """The ten best nodes of a record, terms spelled out."""
    return tuple(
        Candidate(
            node=ranked.node,
            pool=ranked.pool,
            score=ranked.score,
            free_gpus=ranked.free_gpus,
            terms=tuple(
                Term(each.policy, each.weight, score, term)
                for each, score, term in zip(
                    record.policies, ranked.scores, record.terms(ranked), strict=True
                )
            ),
        )
        for ranked in record.best
    )


def why_first(best: Sequence[Candidate], ranks: Sequence[str]) -> str:
    """Why the first of the best is first, where one of the same band has a better score; empty if none has.

    Args:
        best: The first is the choice; of a decision, or of now.
        ranks: Names of pools as the pod would rather have them.
    """
    if not best:
        return ""
    first = best[0]
    ahead = [each for each in best[1:] if each.band == first.band and each.score > first.score]
    if not ahead:
        return ""
    rank = {name: place for place, name in enumerate(ranks)}
    if all(rank.get(first.pool, len(rank)) < rank.get(each.pool, len(rank)) for each in ahead):
        return f"Pools come before score: {first.pool} first."
    return "GPUs had been promised there before, or room is made there: while that fits, it stays first."
