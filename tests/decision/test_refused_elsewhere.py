"""Pods that somebody else refused: woken once if they fit, then where a reason of ours has ended, and not else."""

from __future__ import annotations

import msgspec.structs
import pytest

from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.preference_objects import Taint
from scheduler.core.nouns import PoolSpec
from scheduler.decision import refused
from tests.builders import lose_pod, make_node, make_pod, see_node, see_pod
from tests.decision.test_refused import AGAIN_S, SICK, World

WORDS = "0/2 nodes are available: 1 node in quarantine, 1 Insufficient cpu."
POOLS = (
    PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=300.0),
    PoolSpec(name="aws-a", selector={"site": "aws-a"}),
)


@pytest.fixture
def world() -> World:
    return World()


def take_on(world: World, name: str, gpus: int = 1, *, waited_s: float = 0.0, words: str = WORDS) -> None:
    """The watch tells of a pod that was refused elsewhere."""
    see_pod(world.store, make_pod(name, gpus, refused=words), world.clock.mono_s())
    world.refused.see_elsewhere(world.store.waiting[f"uid-{name}"], waited_s, world.clock.mono_s())


def later(world: World, by_s: float = 60.0) -> list[str]:
    world.clock.advance(by_s)
    return world.wake_all()


def test_it_is_woken_when_the_reason_ends(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    take_on(world, "p1")
    assert later(world) == []
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p1"]


def test_where_it_fits_at_once_it_is_woken_once(world: World) -> None:
    """The reason may have ended before we heard of the pod; else kube-scheduler has a reason of its own there."""
    see_node(world.store, "n1")
    take_on(world, "p1")
    assert world.wake_all() == ["p1"]
    for _ in range(20):
        assert later(world) == []
    # It waits on, and is remembered.
    assert len(world.refused) == 1


def test_after_that_only_the_end_of_a_reason_wakes_it_and_each_does(world: World) -> None:
    see_node(world.store, "taint")
    see_node(world.store, "sick", labels=SICK)
    take_on(world, "p1")
    assert world.wake_all() == ["p1"]
    world.quarantine("sick", ends=True)
    assert world.wake_all() == []
    assert later(world, AGAIN_S) == ["p1"]
    # Neither is news by itself now.
    assert later(world) == []
    for _ in range(3):
        world.quarantine("sick")
        assert later(world) == []
        world.quarantine("sick", ends=True)
        assert world.wake_all() == ["p1"]
        assert later(world) == []
    world.quarantine("taint")
    assert later(world) == []
    world.quarantine("taint", ends=True)
    assert world.wake_all() == ["p1"]


def test_a_reason_that_comes_and_goes_within_a_second_wakes_it(world: World) -> None:
    see_node(world.store, "n1")
    take_on(world, "p1")
    assert world.wake_all() == ["p1"]
    # The round that judges all is just over.
    assert later(world, 10 * refused.JUDGE_ALL_S) == []
    world.quarantine("n1")
    assert world.wake_all() == []
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p1"]


def test_a_node_that_nobody_of_us_knew_wakes_once_we_do(world: World) -> None:
    take_on(world, "p1", words="1 node unknown to wattbalance")
    assert world.wake_all() == []
    see_node(world.store, "n1")
    assert world.wake_all() == ["p1"]


def test_room_that_opens_is_kubernetes_to_tell(world: World) -> None:
    """Once it was woken: kube-scheduler hears of pods that end, and tries those that wait."""
    see_node(world.store, "n1", 2)
    see_node(world.store, "n2", 2)
    see_pod(world.store, make_pod("holds", 2, node="n2"))
    take_on(world, "p1", 2)
    assert world.wake_all() == ["p1"]
    lose_pod(world.store, make_pod("holds", 2, node="n2"))
    assert later(world) == []


def test_a_node_that_comes_is_news_once_it_has_had_a_reason(world: World) -> None:
    see_node(world.store, "n1")
    take_on(world, "p1")
    assert world.wake_all() == ["p1"]
    see_node(world.store, "n2")
    assert later(world) == []
    see_node(world.store, "n3", labels=SICK)
    assert later(world) == []
    world.quarantine("n3", ends=True)
    assert world.wake_all() == ["p1"]


def test_those_of_one_kind_part_when_one_is_woken(world: World) -> None:
    see_node(world.store, "n1", 1)
    see_node(world.store, "n2", 1, SICK)
    for name, waited_s in (("first", 9.0), ("second", 8.0)):
        take_on(world, name, waited_s=waited_s)
    assert world.wake_all() == ["first"]
    # It never came: what it was woken for is free again, for the other.
    assert later(world) == ["second"]
    world.quarantine("n2", ends=True)
    assert later(world) == ["first"]


def test_what_we_are_asked_ourselves_counts_instead(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2", labels=SICK)
    take_on(world, "p1")
    assert world.ask("p1", nodes=("n1",)) == "no_fit"
    world.quarantine("n2", ends=True)
    assert later(world) == []
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p1"]
    assert len(world.refused) == 0


def test_what_we_refused_ourselves_is_not_taken_on(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2")
    assert world.ask("p1", nodes=("n1",)) == "no_fit"
    take_on(world, "p1")
    assert later(world) == []


def test_it_is_let_go_when_its_status_names_no_reason_of_ours_any_more(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    take_on(world, "p1")
    assert world.wake_all() == []
    see_pod(world.store, make_pod("p1", refused="3 Insufficient cpu"))
    world.quarantine("n1", ends=True)
    assert world.wake_all() == []
    assert len(world.refused) == 0
    take_on(world, "p2")
    take_on(world, "p3")
    see_pod(world.store, make_pod("p2", refused="3 Insufficient cpu"))
    lose_pod(world.store, make_pod("p3"))
    later(world)
    assert len(world.refused) == 0


def test_its_age_opens_later_pools_to_it() -> None:
    world = World(POOLS)
    see_node(world.store, "home", labels={"site": "dc-1", **SICK})
    see_node(world.store, "cloud", labels={"site": "aws-a"})
    take_on(world, "p1", waited_s=290.0, words="2 waiting for pool dc-1")
    assert later(world, 9.0) == []
    assert later(world, 1.0) == ["p1"]


def test_where_we_only_observe_nobody_is_woken_for() -> None:
    world = World((PoolSpec(name="seen", selector={"site": "dc-1"}, observe=True),))
    see_node(world.store, "n1", labels={"site": "dc-1"})
    take_on(world, "p1")
    assert later(world) == []


def test_no_more_are_taken_on_than_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "MOST_REFUSED", 2)
    see_node(world.store, "n1", labels=SICK)
    for name in ("p1", "p2", "p3"):
        take_on(world, name)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p1", "p2"]


def test_where_its_own_conditions_or_a_taint_keep_it_off_what_ends_wakes_nobody(world: World) -> None:
    see_node(world.store, "other", labels={"zone": "b"})
    pod = make_pod("p1", refused=WORDS)
    spec = msgspec.structs.replace(pod.spec, node_selector={"zone": "a"})
    see_pod(world.store, msgspec.structs.replace(pod, spec=spec), world.clock.mono_s())
    world.refused.see_elsewhere(world.store.waiting["uid-p1"], 0.0, world.clock.mono_s())
    assert world.wake_all() == []
    node = make_node("tainted", labels={"zone": "a"})
    taints = [Taint("team", "b", "NoSchedule")]
    kept = msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, taints=taints))
    world.store.apply(Changed(Kind.NODE, kept), world.clock.mono_s())
    assert later(world) == []
    world.store.apply(Changed(Kind.NODE, node), world.clock.mono_s())
    assert later(world) == ["p1"]
