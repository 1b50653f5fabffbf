"""Pods that are woken: at a pace, by who may, with a number on the pod that counts on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Generator
from dataclasses import dataclass, field

import msgspec
import pytest

from scheduler import nudges, pod_writes
from scheduler.cluster.pod_status import BIND_IS_OFF
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
from scheduler.core.units import format_instant
from scheduler.last_woken import RETRY_ANNOTATION
from scheduler.nudges import Nudges
from tests.builders import (
    all_rows,
    lose_pod,
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
            self.cluster,
            self.decider,
            self.clock,
            lambda: self.settings,
            lambda: self.leads,
            lambda: ("wattbalance",),
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
    monkeypatch.setattr(nudges, "FIRST_S", 0.0)
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
    assert world.cluster.written == [("p1", {RETRY_ANNOTATION: str(int(world.clock.unix_s()))})]
    assert world.nudges.results == {"written": 1, "gone": 0, "failed": 0}
    assert world.nudges.waiting == 0
    assert world.nudges.last_unix_s == {"uid-p1": world.clock.unix_s()}


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


async def test_a_pod_that_another_replica_has_just_woken_is_left_alone_and_counts_as_on_its_way(
    world: World,
) -> None:
    woken = {RETRY_ANNOTATION: str(int(world.clock.unix_s()) - 1)}
    world.refuse("p1", 8, annotations=woken)
    world.refuse("p2", 8)
    world.heal()
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.cluster.written == []
        # It may not have been for this node: it waits on, and is first.
        world.clock.advance(12.0)
        await eventually(lambda: bool(world.cluster.written))
        await world.some_looks()
    assert world.cluster.names == ["p1"]


async def test_who_takes_over_keeps_the_pace_of_the_one_before(world: World) -> None:
    """As where the leader is stopped while it wakes many."""
    world.settings = NudgeSettings(most_per_s=20)
    for index in range(8):
        world.refuse(f"p{index}")
    other = Nudges(
        world.cluster,
        world.decider,
        world.clock,
        lambda: world.settings,
        lambda: not world.leads,
        lambda: ("wattbalance",),
    )
    world.heal()

    def see_written() -> None:
        for name, written in world.cluster.written:
            held = {key: text for key, text in written.items() if text is not None}
            see_pod(world.store, make_pod(name, annotations=held, refused="1 node in quarantine"))

    async with beside(world.nudges.run()):
        await eventually(lambda: len(world.cluster.written) == 3)
        world.leads = False
    see_written()
    for index in range(len(world.cluster.written), 8):
        see_pod(world.store, make_pod(f"p{index}", refused="1 node in quarantine"))
    async with beside(other.run()):
        await eventually(lambda: len(world.cluster.written) == 8)
        await world.some_looks()
    assert sorted(world.cluster.names) == [f"p{index}" for index in range(8)]
    gaps_s = [after - before for before, after in itertools.pairwise(world.cluster.instants_s)]
    assert min(gaps_s) >= 0.8 / 20


async def test_who_begins_to_act_waits_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nudges, "FIRST_S", 3600.0)
    slept = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    world.refuse("p1")
    world.heal()
    for leads, want in ((False, 0), (True, 1), (True, 1), (False, 1), (True, 2)):
        world.leads = leads
        await world.nudges.wake()
        assert slept.count(3600.0) == want


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


async def test_pods_that_somebody_else_refused_are_woken_by_who_acts(world: World) -> None:
    """Another replica, or nobody who answered: the status says so, and there is no decision of ours."""
    world.leads = False
    for name, words in (
        ("theirs", "0/1 nodes are available: 1 node in quarantine."),
        ("not-ours", "1 no CPU."),
    ):
        see_pod(world.store, make_pod(name, refused=words))
    see_pod(world.store, make_pod("never-tried"))
    stranger = make_pod("stranger", refused="1 node in quarantine")
    spec = msgspec.structs.replace(stranger.spec, scheduler_name="another")
    see_pod(world.store, msgspec.structs.replace(stranger, spec=spec))
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.nudges.waiting == 0
        world.leads = True
        await eventually(lambda: world.nudges.waiting == 1)
        await world.some_looks()
        assert world.cluster.written == []
        world.heal()
        await eventually(lambda: bool(world.cluster.written))
        world.clock.advance(60.0)
        await world.some_looks()
    assert world.cluster.names == ["theirs"]


async def test_a_pod_that_was_placed_and_is_not_bound_yet_is_not_sought(world: World) -> None:
    see_node(world.store, "n2")
    pod = make_pod("p1", refused="1 node in quarantine")
    see_pod(world.store, pod)
    request = world.store.request(pod, 0.0, world.decider.profile_facts)
    assert world.decider.place(request, all_rows(world.store), world.clock.mono_s(), 0.0).reserved
    async with beside(world.nudges.run()):
        await world.some_looks()
        assert world.nudges.waiting == 0
        world.store.release("uid-p1", world.clock.mono_s())
        world.clock.advance(nudges.SEEK_S)
        await eventually(lambda: world.cluster.names == ["p1"])


async def test_its_age_counts_from_its_creation_whenever_it_is_found(world: World) -> None:
    """`spill.after` and the queue go by it."""
    # A clock that is behind makes none younger than new.
    for name, age_s in (("young", 10.0), ("old", 300.0), ("of-tomorrow", -86400.0)):
        created = format_instant(world.clock.unix_s() - age_s)
        see_pod(world.store, make_pod(name, refused="1 node in quarantine", created=created))
    see_pod(world.store, make_pod("timeless", refused="1 node in quarantine", created="soon"))
    async with beside(world.nudges.run()):
        await eventually(lambda: world.nudges.waiting == 4)
        world.heal()
        await eventually(lambda: len(world.cluster.written) == 4)
    assert world.cluster.names == ["old", "young", "of-tomorrow", "timeless"]


async def test_those_that_others_refused_are_found_while_many_are_woken(world: World) -> None:
    """A burst of hundreds takes a minute: whoever is refused meanwhile has his place in the queue."""
    world.settings = NudgeSettings(most_per_s=20)
    for index in range(6):
        world.refuse(f"p{index}")
    world.heal()
    async with beside(world.nudges.run()):
        await eventually(lambda: bool(world.cluster.written))
        dear = make_pod("dear", refused="1 node in quarantine", priority=9)
        see_pod(world.store, dear)
        world.clock.advance(nudges.SEEK_S)
        await eventually(lambda: len(world.cluster.written) == 7)
    assert "dear" in world.cluster.names[:-1]


async def test_a_pod_whose_patch_always_fails_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody could wait for it.
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 3600.0)
    world.cluster.never = {"poor": ApiUnavailable("a fault", status=500)}
    world.refuse("poor")
    tries_s: list[float] = []
    for index in range(40):
        see_node(world.store, "n1", 8, SICK)
        world.refuse(f"p{index}")
        world.heal()
        await world.nudges.wake()
        assert world.cluster.names[-1:] == [f"p{index}"]
        lose_pod(world.store, make_pod(f"p{index}"))
        tries_s += [world.clock.mono_s()] * (world.nudges.results["failed"] - len(tries_s))
        world.clock.advance(5.0)
    gaps_s = [round(after - before) for before, after in itertools.pairwise(tries_s)]
    assert gaps_s == [10, 20, 40, 60, 60]


async def test_several_different_pods_that_fail_in_a_row_are_the_server_s_trouble(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0 if delay_s == 77.0 else delay_s)

    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 77.0)
    monkeypatch.setattr(asyncio, "sleep", noted)
    for index in range(nudges.SEVERAL + 2):
        world.refuse(f"p{index}")
    world.heal()
    world.cluster.fails = [ApiUnavailable("away")] * nudges.SEVERAL
    await world.nudges.wake()
    assert slept.count(77.0) == 1
    assert len(world.cluster.instants_s) <= nudges.SEVERAL + 1
    # One that is written ends it.
    await world.nudges.wake()
    assert len(world.cluster.written) == 2
    # Those that failed were not to blame: they rest no longer than any other, and begin anew.
    world.clock.advance(10.1)
    world.cluster.fails = [ApiUnavailable("a fault", status=500)]
    await world.nudges.wake()
    assert len(world.cluster.written) == nudges.SEVERAL + 1
    world.clock.advance(10.1)
    await world.nudges.wake()
    assert len(world.cluster.written) == nudges.SEVERAL + 2
    assert slept.count(77.0) == 1


async def test_failures_with_successes_between_them_pause_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 3600.0)
    world.settings = NudgeSettings(most_per_s=50)
    names = [f"{kind}{index}" for index in range(4) for kind in ("bad", "good")]
    world.cluster.never = {name: ApiUnavailable("a fault", status=500) for name in names if "bad" in name}
    for name in names:
        world.refuse(name)
    world.heal()
    await world.nudges.wake()
    assert world.cluster.names == ["good0", "good1", "good2", "good3"]
    assert world.nudges.results["failed"] == 4


async def test_those_that_others_refused_are_sought_once_a_second(world: World) -> None:
    world.refuse("p1")
    async with beside(world.nudges.run()):
        await world.some_looks()
        see_pod(world.store, make_pod("theirs", refused="1 node in quarantine"))
        await world.some_looks()
        assert world.nudges.waiting == 1
        world.clock.advance(nudges.SEEK_S)
        await eventually(lambda: world.nudges.waiting == 2)


async def test_while_nobody_waits_the_store_is_not_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(world.nudges._refused, "find", looks.append)
    async with beside(world.nudges.run()):
        await world.some_looks()
    assert looks == []


def test_ten_thousand_that_wait_are_looked_through_in_steps(world: World) -> None:
    """Of those that are known already, and of those that are none of ours; one by one where there is work."""
    a_turn = nudges.SEEN_A_TURN
    for index in range(a_turn):
        see_pod(world.store, make_pod(f"theirs-{index}", refused="1 node in quarantine"))
    for index in range(2 * a_turn):
        see_pod(world.store, make_pod(f"others-{index}"))
    assert sum(1 for _ in world.nudges._seek()) == a_turn + 2
    assert world.nudges.waiting == a_turn
    assert sum(1 for _ in world.nudges._seek()) == 3


async def test_a_pod_that_failed_and_is_gone_is_forgotten(world: World) -> None:
    world.cluster.never = {"poor": ApiUnavailable("a fault", status=500)}
    world.refuse("poor")
    world.heal()
    await world.nudges.wake()
    assert world.nudges._failures.keys() == {"uid-poor"}
    lose_pod(world.store, make_pod("poor"))
    world.clock.advance(nudges.SEEK_S)
    await world.nudges.wake()
    assert world.nudges._failures == {}


async def test_a_pod_that_could_be_written_at_last_begins_anew(world: World) -> None:
    """What failed long ago is no word on the next time."""
    world.refuse("p1")
    world.heal()
    for fails, rest_s in ((True, 10.0), (True, 20.0), (False, 10.0), (True, 10.0), (False, 10.0)):
        if fails:
            world.cluster.fails = [ApiUnavailable("a fault", status=500)]
        tried = len(world.cluster.instants_s)
        await world.nudges.wake()
        assert len(world.cluster.instants_s) == tried + 1
        if not fails:
            see_node(world.store, "n1", 8, SICK)
            world.refuse("p1")
            world.heal()
        world.clock.advance(rest_s - 0.5)
        await world.nudges.wake()
        assert len(world.cluster.instants_s) == tried + 1
        world.clock.advance(1.0)


async def test_of_those_that_were_woken_the_last_are_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nudges, "MOST_KEPT", 2)
    for name in ("p1", "p2", "p1", "p3"):
        see_node(world.store, "n1", 8, SICK)
        world.refuse(name)
        world.heal()
        await world.nudges.wake()
        world.clock.advance(11.0)
    assert list(world.nudges.last_unix_s) == ["uid-p1", "uid-p3"]


@pytest.mark.parametrize("between", [ApiRejected("no room", status=422), ApiNotFound("gone", status=404)])
async def test_an_answer_about_the_pod_is_an_answer_of_the_server(
    between: ClusterError, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and lets us write: what fails before and after it is not all."""
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 3600.0)
    world.settings = NudgeSettings(most_per_s=50)
    fault = ApiUnavailable("a fault", status=500)
    world.cluster.fails = [fault, fault, between, fault, fault]
    for index in range(6):
        world.refuse(f"p{index}")
    world.heal()
    await world.nudges.wake()
    assert world.cluster.names == ["p5"]


async def test_steps_are_gathered_into_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Generator[None, None, str]:
        for _ in range(10):
            world.clock.advance(0.6 * nudges.TURN_S)
            yield
        return "done"

    slept = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(delay_s)

    monkeypatch.setattr(asyncio, "sleep", noted)
    assert await world.nudges._in_turns(steps()) == "done"
    assert slept == [0] * 5


async def test_the_log_says_who_was_woken_and_what_the_server_said_of_who_could_not_be(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.cluster.never = {"full": ApiRejected("no" * 100_000, status=422)}
    world.refuse("full")
    world.refuse("p1")
    world.heal()
    world.clock.advance(7.0)
    await world.nudges.wake()
    [woken] = [record for record in caplog.records if record.getMessage() == "woke a pod"]
    assert vars(woken)["kv"] == {
        "pod": "team-a/p1",
        "fits": "n1",
        "waited_s": 7.0,
        "retry": str(int(world.clock.unix_s())),
    }
    [told] = [
        record.getMessage() for record in caplog.records if "takes no annotation" in record.getMessage()
    ]
    assert told.startswith("pod team-a/full takes no annotation: nono")
    assert len(told) < 2 * pod_writes.MOST_TOLD


async def test_who_waits_for_a_binder_is_woken_only_once_we_bind(world: World) -> None:
    world.heal()
    words = f"1 node in quarantine; {BIND_IS_OFF}extender.bind is off"
    see_pod(world.store, make_pod("unbound", refused=words))
    see_pod(world.store, make_pod("refused", refused="1 node in quarantine"))
    async with beside(world.nudges.run()):
        await eventually(lambda: world.cluster.names == ["refused"])
        world.clock.advance(2 * nudges.SEEK_S)
        await world.some_looks()
        assert world.cluster.names == ["refused"]
        # As after a restart with extender.bind.
        world.nudges.binds = True
        world.clock.advance(2 * nudges.SEEK_S)
        await eventually(lambda: "unbound" in world.cluster.names)
