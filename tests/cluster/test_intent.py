"""Bad annotation values: counted once for a pod, and not remembered for ever."""

from __future__ import annotations

import pytest

from scheduler.cluster import intent
from scheduler.cluster.intent import Intents
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Kind, Listed
from scheduler.core.nouns import PREFIX, Workload
from tests.builders import lose_pod, make_pod, make_store, see_node, see_pod

PROFILES = {workload: (workload.value, 0.9) for workload in Workload}


def wrong(name: str = "p1", value: str = "crunching", node: str = "") -> Pod:
    return make_pod(name, annotations={PREFIX + "workload": value}, node=node)


def test_a_bad_value_is_counted_once_however_often_its_pod_is_asked_about() -> None:
    store = make_store()
    see_node(store, "n1")
    for pod in (wrong(), wrong(), wrong(node="n1")):
        see_pod(store, pod)
        store.request(pod, 0.0, PROFILES)
        # As a GET of /api/v1/pods does.
        store.intents.workload(store.pods["uid-p1"].meta, "")
    lose_pod(store, wrong(node="n1"))
    assert store.intents.errors == {"workload": 1}


def test_a_pod_that_the_store_does_not_keep_is_counted_once_too() -> None:
    store = make_store()
    for _ in range(3):
        slice_of_one = make_pod(gpus=0, annotations={PREFIX + "workload": "crunching"})
        see_pod(store, slice_of_one)
        store.request(slice_of_one, 0.0, PROFILES)
    assert store.intents.errors == {"workload": 1}


def test_another_pod_and_another_value_are_counted_too() -> None:
    intents = Intents()
    for pod in (wrong(), wrong("p2"), wrong(value="serving"), wrong(), wrong("p2")):
        intents.workload(pod.metadata, "")
    assert intents.errors == {"workload": 3}


@pytest.mark.parametrize("how", ["deleted", "finished", "not listed"])
def test_what_was_counted_is_forgotten_with_the_pod(how: str) -> None:
    store = make_store()
    see_pod(store, wrong(node="n1"))
    store.request(wrong(), 0.0, PROFILES)
    if how == "deleted":
        lose_pod(store, wrong())
    elif how == "finished":
        finished = make_pod(phase="Succeeded", node="n1")
        see_pod(store, finished)
    else:
        store.apply(Listed(Kind.POD, frozenset()), 0.0)
    store.request(wrong(), 0.0, PROFILES)
    assert store.intents.errors == {"workload": 2}


def test_pods_that_nobody_tells_the_end_of_are_forgotten_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intent, "MOST_PODS", 3)
    intents = Intents()
    for name in ("a", "b", "c", "d", "d", "b", "a"):
        intents.workload(wrong(name).metadata, "")
    assert intents.errors == {"workload": 5}


def test_a_pod_that_tries_ever_other_values_is_remembered_in_bounds() -> None:
    intents = Intents()
    for number in range(1000):
        intents.workload(wrong(value=f"v{number}").metadata, "")
    assert intents.errors == {"workload": intent.MOST_VALUES}
