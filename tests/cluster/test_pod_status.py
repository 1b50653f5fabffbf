"""What kube-scheduler writes on a pod that it could not place: is it one of our reasons?"""

from __future__ import annotations

import msgspec
import pytest

from scheduler.cluster.objects import Pod
from scheduler.cluster.pod_status import BIND_IS_OFF, is_refused, lacks_binder
from scheduler.cluster.port import Changed, Kind
from scheduler.core.nouns import REASON_TEXTS, Reason
from tests.builders import make_pod, make_store, see_pod

OURS = "0/3 nodes are available: 1 node in quarantine, 2 Insufficient cpu."


def told(conditions: object) -> Pod:
    """A pod with these, as they come from the wire."""
    sent = msgspec.json.encode({"metadata": {"uid": "u"}, "status": {"conditions": conditions}})
    return msgspec.json.decode(sent, type=Pod)


def scheduled(status: str = "False", reason: str = "Unschedulable", message: str | None = OURS) -> object:
    return {"type": "PodScheduled", "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("conditions", "want"),
    [
        ([scheduled()], True),
        ([{"type": "Initialized", "status": "False", "message": OURS}, scheduled()], True),
        ([scheduled(message="0/3 nodes are available: 3 Insufficient cpu.")], False),
        ([scheduled(message="0/3 nodes are available: 3 waiting for pool dc-1.")], True),
        ([scheduled(reason="SchedulerError", message="Post filter: connection refused")], True),
        (
            [
                scheduled(
                    message='Post "http://127.0.0.1:9443/scheduler/filter": dial tcp: connection refused'
                )
            ],
            True,
        ),
        (
            [scheduled(message="failed filter with extender at URL http://wb/scheduler/filter, code 503")],
            True,
        ),
        ([scheduled(reason="SchedulingGated", message="Scheduling is blocked due to gates")], False),
        ([scheduled("True")], False),
        ([{"type": "Ready", "status": "False", "reason": "SchedulerError", "message": OURS}], False),
        ([scheduled(message=None)], False),
        ([{"type": None}], False),
        ([], False),
        (None, False),
    ],
)
def test_a_refusal_of_ours_is_told_from_kube_scheduler_s_own(conditions: object, want: bool) -> None:
    assert is_refused(told(conditions)) is want


def test_who_waits_for_a_binder_is_told_from_who_was_refused() -> None:
    told_so = f"binding rejected: {BIND_IS_OFF}extender.bind is off"
    waits = told([scheduled(reason="SchedulerError", message=told_so)])
    assert is_refused(waits)
    assert lacks_binder(waits)
    assert not lacks_binder(told([scheduled()]))
    assert not lacks_binder(told([scheduled("True", message=told_so)]))
    assert not lacks_binder(told([scheduled(message=None)]))
    assert not lacks_binder(told(None))


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.FITS])
def test_every_reason_of_ours_is_known(reason: Reason) -> None:
    assert is_refused(told([scheduled(message=f"0/1 nodes are available: 1 {REASON_TEXTS[reason]}.")]))


def test_a_pod_that_is_bound_or_being_deleted_waits_for_nobody() -> None:
    assert is_refused(make_pod(refused=OURS))
    assert not is_refused(make_pod(refused=OURS, node="n1"))
    assert not is_refused(make_pod(refused=OURS, deleted="2026-01-01T00:00:00Z"))


def test_the_store_knows_it_from_the_watch_and_forgets_it_with_the_status() -> None:
    store = make_store()
    see_pod(store, make_pod(refused=OURS))
    assert store.waiting["uid-p1"].refused
    store.apply(Changed(Kind.POD, make_pod(refused="3 Insufficient cpu")), 0.0)
    assert not store.waiting["uid-p1"].refused
