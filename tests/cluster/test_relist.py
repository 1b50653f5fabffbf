"""What a list means for what was promised: a pod that came and went while nobody looked must not hold GPUs."""

from __future__ import annotations

from scheduler.cluster.port import Kind, Listed
from scheduler.cluster.store import Store
from tests.builders import free_of, make_node, make_pod, make_request, make_store, see_node, see_pod

NOW = 1000.0


def promised(*names: str) -> Store:
    """A node with 8 GPUs, of which each of these pods is promised one at NOW."""
    store = make_store()
    see_node(store, make_node().metadata.name)
    for name in names:
        assert store.reserve(make_request(name), "n1", NOW)
    return store


def test_a_promise_to_a_pod_that_the_list_does_not_name_is_over() -> None:
    store = promised("here", "came-and-went")
    see_pod(store, make_pod("here"), NOW)
    store.apply(Listed(Kind.POD, {"uid-here"}, began_mono_s=NOW + 1), NOW + 2)
    assert free_of(store) == 7
    assert store.reservations.get("uid-here") is not None
    assert store.reservations.get("uid-came-and-went") is None


def test_a_promise_made_since_the_list_was_asked_for_stays() -> None:
    # Its pod may be younger than the list.
    store = promised("young")
    store.apply(Listed(Kind.POD, set(), began_mono_s=NOW), NOW + 2)
    store.apply(Listed(Kind.POD, set(), began_mono_s=NOW - 1), NOW + 2)
    assert free_of(store) == 7


def test_a_pod_that_is_listed_and_not_seen_as_a_gpu_pod_keeps_its_promise() -> None:
    store = promised("named")
    store.apply(Listed(Kind.POD, {"uid-named"}, began_mono_s=NOW + 1), NOW + 2)
    assert free_of(store) == 7


def test_lists_of_other_kinds_say_nothing_about_promises() -> None:
    store = promised("p")
    store.apply(Listed(Kind.JOB, set(), began_mono_s=NOW + 1), NOW + 2)
    assert free_of(store) == 7


def test_a_pod_that_was_seen_and_is_gone_is_dropped_once() -> None:
    store = promised("seen")
    see_pod(store, make_pod("seen"), NOW)
    store.apply(Listed(Kind.POD, set(), began_mono_s=NOW + 1), NOW + 2)
    assert free_of(store) == 8
    assert not store.waiting
