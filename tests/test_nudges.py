"""Pods that are woken: at a pace, by who may, with a number on the pod that counts on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from scheduler import nudges, pod_writes
from scheduler.cluster.port import Changed, Kind
from scheduler.config_nudge import NudgeSettings
from scheduler.core.clock import ManualClock
from scheduler.core.errors import (
    ApiConflict,
    ApiForbidden,
    ApiNotFound,
    ApiRejected,
    ApiUnavailable,
    ClusterError,
)
from scheduler.nudges import RETRY_ANNOTATION, Nudges
from tests.builders import (
    all_rows,
    make_decider,
    make_inventory,
    make_node,
    make_pod,
    make_store,
    see_node,
    see_pod,
)
from tests.contracts.cluster_contract import beside, eventually
from tests.decision.test_refused import SICK
from tests.fakes.cluster import FakeCluster


@dataclass
class Writing(FakeCluster):
    """A cluster that remembers annotations, and when they were written."""

    written: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    instants_s: list[float] = field(default_factory=list)
    fails: list[ClusterError] = field(default_factory=list)
    never: dict[str, ClusterError] = field(default_factory=dict)
    """By pod, what is said of it each time."""
    answers: asyncio.Event | None = None
    """Nothing is answered before this."""

    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: dict[str, str | None]
    ) -> None:
        self.instants_s.append(time.monotonic())
        if self.answers is not None:
            await self.answers.wait()
        if name in self.never:
            raise self.never[name]
        if self.fails:
            raise self.fails.pop(0)
        self.written.append((name, annotations))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.written]


class World:
    """Two nodes in quarantine, and pods that were refused for that."""

    def __init__(self) -> None:
        self.cluster = Writing()
        self.store = make_store()
        self.decider = make_decider(self.store)
        self.clock = ManualClock()
        self.leads = True
        self.settings = NudgeSettings(most_per_s=1000)
        self.nudges = Nudges(
            self.cluster, self.decider, self.clock, lambda: self.settings, lambda: self.leads
        )
        self.decider.on_outcome = self.nudges.see
        see_node(self.store, "n1", 8, SICK)

    def refuse(self, name: str, gpus: int = 1, annotations: dict[str, str] | None = None) -> None:
        pod = make_pod(name, gpus, annotations=annotations)
        see_pod(self.store, pod, self.clock.mono_s())
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        outcome = self.decider.place(request, all_rows(self.store), self.clock.mono_s(), self.clock.unix_s())
        assert outcome.result == "no_fit"

    def heal(self, name: str = "n1") -> None:
        self.store.apply(Changed(Kind.NODE, make_node(name)), self.clock.mono_s())

    async def some_looks(self) -> None:
        """As long as several looks take."""
        await asyncio.sleep(5 * nudges.LOOK_S)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(nudges, "LOOK_S", 0.01)
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 0.01)
    monkeypatch.setattr(nudges, "REFUSED_AGAIN_S", 0.01)
    return World()


async def test_a_refused_pod_is_woken_once_when_its_reason_ends(world: World) -> None:
    async with beside(world.nudges.run()):
        world.refuse("p1")
        await world.some_looks()
        assert world.cluster.written == []
        world.heal()
        await eventually(lambda: bool(world.cluster.written))
        await world.some_looks()
    assert world.cluster.written == [("p1", {RETRY_ANNOTATION: "1"})]
    assert world.nudges.results == {"written": 1, "gone": 0, "failed": 0}
    assert world.nudges.waiting == 0
    assert world.nudges.last_unix_s == {"uid-p1": world.clock.unix_s()}


@pytest.mark.parametrize(
    ("said", "want"),
    [("41", "42"), ("", "1"), ("soon", "1"), ("-3", "1"), ("9" * 4000, "1"), ("²", "1"), ("007", "8")],
)
async def test_the_number_counts_on_whoever_wrote_it(said: str, want: str, world: World) -> None:
    world.refuse("p1", annotations={RETRY_ANNOTATION: said})
    world.heal()
    async with beside(world.nudges.run()):
        await eventually(lambda: bool(world.cluster.written))
    assert world.cluster.written == [("p1", {RETRY_ANNOTATION: want})]


async def test_whoever_may_not_act_wakes_nobody_and_goes_on_when_it_may(world: World) -> None:
    world.leads = False
    world.refuse("p1")
    world.heal()
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.cluster.written == []
        world.leads = True
        await eventually(lambda: bool(world.cluster.written))
    assert world.cluster.names == ["p1"]


async def test_it_can_be_switched_off_while_running(world: World) -> None:
    world.settings = NudgeSettings(enabled=False)
    world.refuse("p1")
    world.heal()
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.cluster.written == []
        world.settings = NudgeSettings()
        await eventually(lambda: bool(world.cluster.written))


async def test_no_more_than_so_many_a_second(world: World) -> None:
    world.settings = NudgeSettings(most_per_s=20)
    for index in range(8):
        world.refuse(f"p{index}")
    world.heal()
    async with beside(world.nudges.run()):
        await eventually(lambda: len(world.cluster.written) == 8)
    took_s = world.cluster.instants_s[-1] - world.cluster.instants_s[0]
    assert took_s >= 7 / 20
    assert world.cluster.names == [f"p{index}" for index in range(8)]


async def test_a_server_that_is_slow_sets_no_pace_and_gets_no_crowd(world: World) -> None:
    world.cluster.answers = asyncio.Event()
    for name in ("n2", "n3"):
        see_node(world.store, name, 8, SICK)
    for index in range(nudges.MOST_OPEN + 4):
        world.refuse(f"p{index}")
    for name in ("n1", "n2", "n3"):
        world.heal(name)
    async with beside(world.nudges.run()):
        await eventually(lambda: len(world.cluster.instants_s) == nudges.MOST_OPEN)
        await world.some_looks()
        assert len(world.cluster.instants_s) == nudges.MOST_OPEN
        world.cluster.answers.set()
        await eventually(lambda: len(world.cluster.written) == nudges.MOST_OPEN + 4)
    assert sorted(world.cluster.names) == sorted(f"p{index}" for index in range(nudges.MOST_OPEN + 4))


async def test_one_pod_rests_before_it_is_woken_again(world: World) -> None:
    async with beside(world.nudges.run()):
        for turn in range(1, 4):
            # As a policy that flaps would have it.
            world.store.apply(Changed(Kind.NODE, make_node("n1", 8, SICK)), world.clock.mono_s())
            world.refuse("p1")
            world.heal()
            if turn > 1:
                world.clock.advance(9.0)
                await world.some_looks()
                assert len(world.cluster.written) == turn - 1
                world.clock.advance(1.1)
            await eventually(lambda turn=turn: len(world.cluster.written) == turn)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (ApiNotFound("gone", status=404), "gone"),
        (ApiConflict("another uid", status=409), "gone"),
        (ApiUnavailable("away"), "failed"),
        (ApiForbidden("may not", status=403), "failed"),
    ],
)
async def test_an_error_costs_one_pod_its_turn(
    error: ClusterError, want: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.fails = [error]
    world.refuse("p1", 8)
    world.refuse("p2", 8)
    world.heal()
    async with beside(world.nudges.run()):
        await eventually(lambda: bool(world.cluster.written))
        # The first one took no room; it has its turn once the second is not on its way any more.
        world.clock.advance(10.1)
        await eventually(lambda: len(world.cluster.written) == 2)
    assert world.cluster.names == ["p2", "p1"]
    assert world.nudges.results[want] == 1
    told = [record for record in caplog.records if record.name == pod_writes.__name__]
    assert len(told) == isinstance(error, ApiForbidden)


async def test_pods_that_take_no_annotation_do_not_keep_others_from_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nudges, "REFUSED_AGAIN_S", 60.0)
    world.cluster.never = {f"full-{index}": ApiRejected("no room", status=422) for index in range(20)}
    for name in world.cluster.never:
        world.refuse(name)
    world.refuse("p1")
    world.heal()
    async with beside(world.nudges.run()):
        # All were before it in the queue, and none was waited for; nor is any of them ten seconds later.
        await eventually(lambda: world.cluster.names == ["p1"])
        world.clock.advance(10.1)
        await world.some_looks()
        assert world.nudges.results["failed"] == len(world.cluster.never)
        # They are not forgotten.
        world.cluster.never.clear()
        world.clock.advance(120.0)
        await eventually(lambda: len(world.cluster.names) > 1)


async def test_who_may_not_be_annotated_does_not_keep_others_from_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cluster.never = {"full": ApiForbidden("may not", status=403)}
    world.refuse("full")
    world.refuse("p1")
    world.heal()
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 0.0)
    await world.nudges.wake()
    # The pause is over.
    world.clock.advance(nudges.REFUSED_AGAIN_S)
    await world.nudges.wake()
    assert world.cluster.names == ["p1"]


async def test_who_loses_the_lead_while_looking_writes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nudges, "TURN_S", -1.0)
    world.refuse("p1")
    world.heal()
    find = asyncio.create_task(world.nudges.wake())
    # It has begun, and waits for its next turn.
    await asyncio.sleep(0)
    world.leads = False
    await find
    assert world.cluster.instants_s == []


async def test_a_refused_binding_is_made_good_after_the_pause(world: World) -> None:
    world.leads = False
    see_node(world.store, "n2")
    see_pod(world.store, make_pod("p1"), world.clock.mono_s())
    world.nudges.see_unbound("uid-p1")
    world.nudges.see_unbound("uid-nobody")
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.cluster.written == []
        world.leads = True
        await eventually(lambda: bool(world.cluster.written))
    assert world.cluster.names == ["p1"]


async def test_many_that_wait_hold_the_loop_for_a_few_milliseconds_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging is cut into turns: while it goes on, others are served."""
    monkeypatch.setattr(nudges, "TURN_S", -1.0)
    for index in range(40):
        see_node(world.store, f"m{index}", 8, SICK)
        world.refuse(f"p{index}")
    turns = 0

    def serve() -> None:
        nonlocal turns
        turns += 1
        again[0] = asyncio.get_running_loop().call_soon(serve)

    again = [asyncio.get_running_loop().call_soon(serve)]
    await world.nudges.wake()
    again[0].cancel()
    assert turns >= 40


async def test_a_reading_that_comes_wakes(world: World) -> None:
    """What no watch tells: the agent's word on which GPUs a node has."""
    world.store.apply(Changed(Kind.NODE, make_node("n2")), world.clock.mono_s())
    pod = make_pod("p1", annotations={"wattbalance.io/gpu-model": "*H100*"})
    see_pod(world.store, pod, world.clock.mono_s())
    request = world.store.request(pod, 0.0, world.decider.profile_facts)
    rows = all_rows(world.store)
    world.decider.place(request, rows, world.clock.mono_s(), world.clock.unix_s())
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.cluster.written == []
        world.store.see_inventory("n2", make_inventory("n2"))
        await eventually(lambda: bool(world.cluster.written))
    assert world.cluster.names == ["p1"]


async def test_who_begins_to_lead_wakes_pods_that_wait_already_and_fit(world: World) -> None:
    """Somebody refused them before us, or nobody answered: kube-scheduler may not ask for minutes."""
    world.refuse("asked-since")
    for name, gpus in (("fits", 2), ("fits-not", 16)):
        see_pod(world.store, make_pod(name, gpus), world.clock.mono_s())
    world.heal()
    async with beside(world.nudges.run()):
        await eventually(lambda: "asked-since" in world.cluster.names)
        world.nudges.inherit(list(world.store.waiting))
        await world.some_looks()
        # kube-scheduler asks about most of them by itself.
        assert world.cluster.names == ["asked-since"]
        world.clock.advance(nudges.INHERITED_S)
        await eventually(lambda: "fits" in world.cluster.names)
        world.clock.advance(60.0)
        await world.some_looks()
    assert world.cluster.names == ["asked-since", "fits"]
