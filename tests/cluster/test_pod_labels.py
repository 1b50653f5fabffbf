"""Pods by labels and node: each counted once where it is, however it came there, and nothing kept of what has gone."""

from __future__ import annotations

from scheduler.cluster.pod_labels import PodLabels
from scheduler.core.preferences import Operator, Requirement

ROWS = {"n0": 0, "n1": 1}
WEB = (Requirement("app", Operator.IN, ("web",)),)
NOT_WEB = (Requirement("app", Operator.NOT_IN, ("web",)),)


def see(pods: PodLabels, uid: str, node: str, app: str = "web", *, ending: bool = False) -> None:
    pods.see(uid, "team-a", {"app": app}, node, ending=ending)


def counted(
    pods: PodLabels, selector: tuple[Requirement, ...] = WEB, *, ending: bool = True, **promised: int
) -> list[float]:
    found = pods.counts(selector, None, 2, without="", ending=ending, promised=promised.items())
    return [float(each) for each in found]


def test_a_pod_that_begins_to_end_is_told_apart_from_then_on() -> None:
    pods = PodLabels(ROWS)
    see(pods, "p", "n0")
    assert counted(pods, ending=False) == [1, 0]
    see(pods, "p", "n0", ending=True)
    assert counted(pods, ending=False) == [0, 0]
    assert counted(pods, ending=True) == [1, 0]


def test_what_selects_by_a_label_that_is_lacking_selects_no_place_of_a_pod_that_has_gone() -> None:
    pods = PodLabels(ROWS)
    for uid in ("p", "q"):
        see(pods, uid, "n0", app="db")
    assert counted(pods, NOT_WEB) == [2, 0]
    pods.forget("p")
    assert counted(pods, NOT_WEB) == [1, 0]
    see(pods, "waits", "", app="db")
    assert counted(pods, NOT_WEB) == [1, 0]
    assert counted(pods, NOT_WEB, waits=1) == [1, 1]
    assert counted(pods, NOT_WEB, p=1) == [1, 0], "promised to one that has gone"
    assert counted(pods, WEB, waits=1) == [0, 0], "promised to one of other labels"


def test_nodes_labels_and_places_of_pods_that_have_gone_are_used_again() -> None:
    pods = PodLabels({f"n{number}": number % 2 for number in range(100)})
    for number in range(100):
        # One that stays meanwhile changes what it has, too.
        see(pods, "stays", f"n{number}", app=str(number))
        pods.see("goes", "team-a", {"app": "web", "run": str(number)}, f"n{number}", ending=False)
        assert counted(pods) == [number % 2 == 0, number % 2 == 1]
        pods.forget("goes")
        assert counted(pods) == [0, 0]
    assert max(len(pods._sets.names), len(pods._nodes.names)) <= 5
    assert len(pods._set) - len(pods._free) == len(pods) == 1


def test_a_key_that_another_ends_with_is_not_taken_for_it() -> None:
    """Nor is one that stands in a value: labels that came before anybody asked are looked for in a text."""
    pods = PodLabels(ROWS)
    pods.see("p", "team-a", {"my.app": "web", "tier": "app"}, "n0", ending=False)
    pods.see("q", "team-a", {"app.my": "web"}, "n0", ending=False)
    assert counted(pods) == [0, 0]
    pods.see("r", "team-a", {"a": "b", "my.app": "db", "app": "web", "z": ""}, "n1", ending=False)
    fresh = PodLabels(ROWS)
    fresh.see("r", "team-a", {"a": "b", "my.app": "db", "app": "web", "z": ""}, "n1", ending=False)
    assert counted(pods) == counted(fresh) == [0, 1]
