"""While somebody has paused us: as in observe mode, from one question to the next, and a Binding says why."""

from __future__ import annotations

from scheduler.core.errors import ClusterError
from scheduler.core.nouns import Placement
from tests.builders import make_pod
from tests.extender.world import World, by_names, by_nodes, pod, whole

PAUSED = "paused by kim since 2026-01-01T00:00:00Z: a drill"


def pause(world: World) -> None:
    world.fence.paused = lambda: PAUSED


def resume(world: World) -> None:
    world.fence.paused = lambda: ""


def test_a_pause_gives_everything_back_and_its_end_places_again() -> None:
    for placement in Placement:
        world = World(placement)
        pause(world)
        assert world.filter(by_names("a", "bad", "who"))["NodeNames"] == ["a", "bad", "who"]
        offered = [whole("a"), whole("bad"), whole("new")]
        assert world.filter(by_nodes(*offered))["Nodes"]["items"] == offered
        assert {each["Score"] for each in world.prioritize(by_names("a", "b", "who"))} == {0}
        victims = {"bad": {"Pods": [{"UID": "v"}], "NumPDBViolations": 0}}
        asked = {"Pod": pod(), "NodeNameToMetaVictims": victims}
        assert world.preempt(asked)["NodeNameToMetaVictims"] == victims
        assert {record.result for record in world.decider.log} == {"observed"}
        assert not len(world.store.reservations)
        resume(world)
        assert world.filter(by_names("bad"))["NodeNames"] == []
        assert world.filter(by_names("a", "bad"))["NodeNames"] == ["a"]
        assert world.preempt(asked)["NodeNameToMetaVictims"] == {}


async def test_a_binding_is_refused_while_paused_with_who_and_what_to_do() -> None:
    world = World()
    world.cluster.add(make_pod())
    pause(world)
    error = await world.bind()
    for part in (PAUSED, "wattbalance resume", "bindVerb"):
        assert part in error
    assert not world.cluster.bindings
    resume(world)
    assert await world.bind() == ""
    assert dict(world.verbs.binds) == {"paused": 1, "bound": 1}


async def test_a_binding_that_was_being_prepared_when_the_pause_began_is_not_sent() -> None:
    world = World()
    world.cluster.add(make_pod())
    world.promise()
    fine = world.cluster.bind

    async def slow(*args: object, **kwargs: object) -> None:
        # As where the pod is read first.
        pause(world)
        await fine(*args, **kwargs)  # type: ignore[arg-type]  # handed on as it came

    world.cluster.bind = slow  # type: ignore[method-assign]  # likewise
    assert PAUSED in await world.bind()
    assert not world.cluster.bindings
    assert not world.promised
    assert dict(world.verbs.binds) == {"paused": 1}


async def test_a_binding_that_failed_before_the_pause_is_told_as_it_failed() -> None:
    world = World()
    world.cluster.bind_fails = [ClusterError("no", status=400)]
    world.cluster.add(make_pod())
    assert await world.bind() == "no"
