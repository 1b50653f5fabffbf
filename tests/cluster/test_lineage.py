"""Which of a pod's owners cannot be read, as people are told."""

from __future__ import annotations

import pytest

from scheduler.cluster.intents import LONGEST_CHAIN, Intents
from scheduler.cluster.lineage import FOLLOWED, NODE, gaps
from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Kind
from scheduler.core.nouns import PREFIX, Workload
from tests.builders import make_pod

ALL = frozenset(Kind)


def pod_of(kind: str, uid: str) -> Meta:
    return make_pod(owner=OwnerRef(kind=kind, uid=uid, controller=True)).metadata


def see(
    intents: Intents, kind: str, uid: str, *, owner: tuple[str, str] | None = None, says: str = ""
) -> None:
    """An owner named like its uid."""
    references = [OwnerRef(kind=owner[0], uid=owner[1], controller=True)] if owner else None
    annotations = {PREFIX + "workload": says} if says else None
    meta = Meta(name=uid, namespace="team-a", uid=uid, owner_references=references, annotations=annotations)
    intents.see_owner(FOLLOWED[kind], Partial(metadata=meta))


def told(intents: Intents, pod: Meta, **refused: str) -> tuple[str, ...]:
    return gaps(intents, pod, synced=ALL, refused={Kind[name]: why for name, why in refused.items()})


def test_nothing_is_said_where_all_can_be_read() -> None:
    intents = Intents()
    see(intents, "Deployment", "web")
    see(intents, "ReplicaSet", "web-1", owner=("Deployment", "web"))
    assert told(intents, pod_of("ReplicaSet", "web-1")) == ()
    assert told(intents, make_pod().metadata) == ()
    assert told(intents, pod_of(NODE, "n1")) == ()


def test_an_owner_that_is_gone_is_named_and_what_is_left_counts() -> None:
    intents = Intents()
    see(intents, "Deployment", "web", says="training")
    see(intents, "ReplicaSet", "web-1", owner=("Deployment", "web"), says="batch")
    pod = pod_of("ReplicaSet", "web-1")
    intents.forget_owner("web")
    [why] = told(intents, pod)
    assert "replicaset web-1's owner, a Deployment, is gone" in why
    assert intents.workload(pod, "") is Workload.BATCH
    intents.keep_owners(Kind.REPLICASET, frozenset())
    [why] = told(intents, pod)
    assert "The pod's owner, a ReplicaSet, is gone" in why


def test_an_owner_that_says_nothing_is_there_until_it_is_gone() -> None:
    intents = Intents()
    see(intents, "StatefulSet", "db")
    pod = pod_of("StatefulSet", "db")
    assert told(intents, pod) == ()
    intents.keep_owners(Kind.STATEFULSET, frozenset({"db"}))
    assert told(intents, pod) == ()
    see(intents, "StatefulSet", "db", says="batch")
    intents.forget_owner("db")
    assert "is gone" in told(intents, pod)[0]
    see(intents, "StatefulSet", "db")
    intents.keep_owners(Kind.STATEFULSET, frozenset())
    assert "is gone" in told(intents, pod)[0]


def test_a_kind_that_the_role_cannot_list_is_named_with_the_reason() -> None:
    intents = Intents()
    see(intents, "ReplicaSet", "web-1", owner=("Deployment", "web"), says="training")
    pod = pod_of("ReplicaSet", "web-1")
    found = told(intents, pod, DEPLOYMENT="forbidden: add list to our role", NAMESPACE="forbidden too")
    assert "replicaset web-1's owner, a Deployment, cannot be read" in found[0]
    assert "add list to our role" in found[0]
    assert "What namespace team-a says does not count" in found[1]
    assert intents.workload(pod, "") is Workload.TRAINING


def test_what_was_read_before_the_right_was_taken_away_still_counts() -> None:
    intents = Intents()
    see(intents, "Job", "train", says="training")
    assert told(intents, pod_of("Job", "train"), JOB="forbidden") == ()


def test_a_kind_that_nobody_reads_is_named() -> None:
    intents = Intents()
    [why] = told(intents, pod_of("PyTorchJob", "x"))
    assert "a PyTorchJob, is of a kind that is not read" in why
    see(intents, "Job", "train", owner=("JobSet", "set"))
    [why] = told(intents, pod_of("Job", "train"))
    assert "job train's owner, a JobSet, is of a kind that is not read" in why


def test_a_kind_that_is_not_listed_yet_is_no_loss() -> None:
    [why] = gaps(Intents(), pod_of("Job", "train"), synced=frozenset(), refused={})
    assert "not listed yet" in why


@pytest.mark.parametrize("own", [True, False], ids=["itself", "each other"])
def test_a_cycle_is_named_and_what_stands_in_it_counts(*, own: bool) -> None:
    intents = Intents()
    see(intents, "Job", "a", owner=("Job", "a" if own else "b"))
    see(intents, "Job", "b", owner=("Job", "a"), says="inference")
    pod = pod_of("Job", "a")
    [why] = told(intents, pod)
    assert ("own each other: job a." if own else "own each other: job a and job b.") in why
    assert intents.workload(pod, "") is (Workload.TRAINING if own else Workload.INFERENCE)


def test_a_chain_without_end_is_cut_and_said_to_be() -> None:
    intents = Intents()
    for index in range(LONGEST_CHAIN + 2):
        see(intents, "Job", f"j{index}", owner=("Job", f"j{index + 1}"))
    [why] = told(intents, pod_of("Job", "j0"))
    assert f"Only the first {LONGEST_CHAIN} of its owners count" in why
    assert f"job j{LONGEST_CHAIN - 1}." in why
