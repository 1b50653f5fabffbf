"""What explain tells of a pod that is not among those that want or hold GPUs by a name that we count."""

from __future__ import annotations

from scheduler.cluster.claimers import Claimer
from scheduler.cluster.port import Kind
from scheduler.cluster.shares import words
from scheduler.cluster.store import Store
from scheduler.core.units import parse_instant
from scheduler.decision.decider import Decider
from scheduler.decision.record import PREEMPT, DecisionRecord
from scheduler.report.explanation import Explanation, NotFound, decision_of
from scheduler.report.no_record import NoRecord
from scheduler.report.written import MOST_SHOWN

# Of a name that is in other namespaces, or was: some of them are enough of a hint.
MOST_ELSEWHERE = 5

BY_CLAIMS = (
    "The pod asks for devices by resource claims alone, which kube-scheduler places by itself: it gets back all nodes "
    "that it offers us, and no scores. What claims hold counts as taken for all other pods."
)
ROOM = (
    "kube-scheduler asked us on which nodes others may make room for it (preempt): that answer is kept, and is no "
    "decision about its place."
)
GONE = (
    "The pod is not among those that want or hold GPUs, by what this replica sees now: it ended, was deleted, or is "
    "too new to have been seen (kubectl get pod tells). What is left is the last decision about it."
)
NOT_LISTED = (
    "This replica has not listed the pods yet: whether there still is such a pod is not known here. Ask again in some "
    "seconds. What is shown is the last decision about it."
)


def by_claims(pod: Claimer, store: Store, unix_s: float) -> Explanation:
    """What kube-scheduler places alone, and what claims hold for it."""
    created_unix_s = instant(pod.created)
    waits = created_unix_s is not None and not pod.node
    return Explanation(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        state="bound" if pod.node else "waiting",
        node=pod.node,
        scheduler=pod.scheduler_name,
        created_unix_s=created_unix_s,
        waited_s=max(unix_s - created_unix_s, 0.0) if waits and created_unix_s is not None else None,
        notes=[BY_CLAIMS, *(f"{held}." for held in store.devices.held_by(pod.uid))],
    )


class Absent:
    """Tells of pods that the store does not have.

    Args:
        decider: Whose store and log.
        no_record: Says which decisions are kept.
    """

    def __init__(self, decider: Decider, no_record: NoRecord) -> None:
        self._decider = decider
        self._no_record = no_record

    def decided(self, record: DecisionRecord) -> Explanation:
        """Of which only a decision is left."""
        of_room = record.verb == PREEMPT
        why = GONE if Kind.POD in self._decider.store.synced else NOT_LISTED
        return Explanation(
            namespace=record.namespace,
            name=record.pod,
            uid=record.uid,
            state="not seen",
            gpus=record.gpus,
            resources=record.resources,
            asks=words(tuple(record.resources.items())),
            workload=record.profile,
            workload_from="the decision",
            notes=[why, ROOM] if of_room else [why],
            decision=None if of_room else decision_of(record, self._decider.store.pool_names),
            room=decision_of(record) if of_room else None,
        )

    def unknown(self, namespace: str, name: str, elsewhere: list[str]) -> NotFound:
        """Of which nothing is known but where others of its name are, or were."""
        which = f"{namespace[:MOST_SHOWN]}/{name[:MOST_SHOWN]}"
        if Kind.POD not in self._decider.store.synced:
            text = f"pod {which} is not known yet: this replica has not listed the pods; ask again in some seconds"
        elif elsewhere:
            more = ", ".join(elsewhere[:MOST_ELSEWHERE])
            text = f"no pod {which} wants or holds GPUs; one of this name is, or was, in namespace {more}"
        else:
            text = (
                f"nothing is known of pod {which}: no pod of this name wants or holds GPUs now, and no decision "
                f"that is kept was about one. {self._no_record.since()} An older one, if there was one, is in its "
                "log. A pod that asks for no GPU is not known here: kube-scheduler places it without us (kubectl "
                "describe pod)"
            )
        return NotFound(error=text, namespaces=elsewhere)


def instant(stamp: str | None) -> float | None:
    """Kubernetes' instant in seconds since 1970; None where there is none, or none that can be read."""
    try:
        return parse_instant(stamp) if stamp else None
    except ValueError:
        return None
