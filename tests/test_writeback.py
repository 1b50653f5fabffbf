"""Decisions on pods that kube-scheduler bound: newest first, paced, and never on one that waits."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field

import pytest

from scheduler import writeback
from scheduler.cluster.pods import PodFacts, pod_facts
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiNotFound, ApiUnavailable, ClusterError
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.decision.record import DecisionLog, decision_annotation
from scheduler.pod_writes import PodWrites
from scheduler.writeback import WriteBack
from tests.builders import make_pod
from tests.contracts.cluster_contract import beside, eventually
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtual_time import VirtualLoop
from tests.test_bindings import record


@dataclass
class Writing(FakeCluster):
    """A cluster that remembers annotations."""

    written: list[tuple[str, str, dict[str, str | None]]] = field(default_factory=list)
    fails: list[ClusterError] = field(default_factory=list)
    pausing: asyncio.Event | None = None

    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: dict[str, str | None]
    ) -> None:
        if self.pausing is not None:
            await self.pausing.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.written.append((name, uid, annotations))


class World:
    def __init__(self, most_per_s: float = 10_000) -> None:
        self.cluster = Writing()
        self.decisions = DecisionLog()
        self.leads = True
        self.back = WriteBack(
            self.cluster,
            self.decisions,
            may_write=lambda: self.leads,
            term=lambda: 7,
            most_per_s=lambda: most_per_s,
        )

    def bound(self, name: str, *, decided: str = "placed", said: str = "") -> None:
        if decided:
            self.decisions.add(record(f"uid-{name}", result=decided))
        annotations = {DECISION_ANNOTATION: said} if said else None
        facts = pod_facts(make_pod(name, node="n1", annotations=annotations))
        assert isinstance(facts, PodFacts)
        self.back.bound(facts)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_bound_pod_gets_the_decision_that_bound_it(world: World) -> None:
    async with beside(world.back.run()):
        world.bound("p1")
        await eventually(lambda: bool(world.cluster.written))
    [(name, uid, annotations)] = world.cluster.written
    assert (name, uid) == ("p1", "uid-p1")
    said = json.loads(annotations[DECISION_ANNOTATION] or "")
    assert said["node"] == "n1"
    assert said["term"] == 7
    assert said["cycle"]
    assert world.back.results == {"written": 1}


async def test_nothing_is_written_on_pods_without_a_decision_or_that_carry_it(world: World) -> None:
    async with beside(world.back.run()):
        world.bound("foreign", decided="")
        world.bound("while we were paused", decided="observed")
        ours = record("uid-ours")
        world.bound("ours", said=decision_annotation(ours, "n1", 7)[DECISION_ANNOTATION])
        world.bound("by a Binding", said=decision_annotation(None, "n1", 7)[DECISION_ANNOTATION])
        world.leads = False
        world.bound("seen by a standby")
        world.leads = True
        world.bound("last")
        await eventually(lambda: bool(world.cluster.written))
    assert [name for name, _, _ in world.cluster.written] == ["last"]


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "no JSON",
        "\ud800",
        '{"node":null,"cycle":1}',
        decision_annotation(None, "another", 7)[DECISION_ANNOTATION],
        '{"node":"n1","cycle":"of the pod that this one was copied from"}',
    ],
)
async def test_what_was_copied_or_forged_makes_room_for_the_decision(said: str, world: World) -> None:
    async with beside(world.back.run()):
        world.bound("p1", said=said)
        await eventually(lambda: bool(world.cluster.written))
    [(_, _, annotations)] = world.cluster.written
    assert json.loads(annotations[DECISION_ANNOTATION] or "")["node"] == "n1"


async def test_the_newest_goes_first_and_the_oldest_makes_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "MOST_WAITING", 3)
    world.cluster.pausing = asyncio.Event()
    for index in range(5):
        world.bound(f"p{index}")
    async with beside(world.back.run()):
        world.cluster.pausing.set()
        await eventually(lambda: len(world.cluster.written) == 3)
    assert [name for name, _, _ in world.cluster.written] == ["p4", "p3", "p2"]
    assert world.back.results == {"dropped": 2, "written": 3}


async def test_what_was_noted_while_leading_is_not_written_after(world: World) -> None:
    world.bound("p1")
    world.leads = False
    async with beside(world.back.run()):
        await asyncio.sleep(0.05)
        world.leads = True
        world.bound("p2")
        await eventually(lambda: bool(world.cluster.written))
    assert [name for name, _, _ in world.cluster.written] == ["p2"]


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (ApiNotFound("gone", status=404), "gone"),
        (ApiConflict("another uid", status=409), "gone"),
        (ApiUnavailable("away"), "failed"),
        (ApiForbidden("may not", status=403), "failed"),
    ],
)
async def test_an_error_costs_one_pods_annotation(error: ClusterError, want: str, world: World) -> None:
    world.cluster.fails = [error]
    async with beside(world.back.run()):
        world.bound("p1")
        await eventually(lambda: sum(world.back.results.values()) == 1)
        world.bound("p2")
        await eventually(lambda: bool(world.cluster.written))
    assert world.back.results == {want: 1, "written": 1}


async def test_a_right_that_is_missing_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.fails = [ApiForbidden("may not patch pods", status=403)] * 3
    async with beside(world.back.run()):
        for index in range(3):
            world.bound(f"p{index}")
        await eventually(lambda: world.back.results["failed"] == 3)
    assert [each.message for each in caplog.records] == [
        "decisions cannot be written on pods: may not patch pods"
    ]


def test_no_more_are_written_in_a_second_than_may_be() -> None:
    async def all_of_five() -> tuple[int, float]:
        world = World(most_per_s=20)
        for index in range(5):
            world.bound(f"p{index}")
        writing = asyncio.create_task(world.back.run())
        began_mono_s = asyncio.get_running_loop().time()
        while len(world.cluster.written) < 5:
            await asyncio.sleep(0.001)
        took_s = asyncio.get_running_loop().time() - began_mono_s
        writing.cancel()
        await asyncio.wait([writing])
        return len(world.cluster.written), took_s

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        written, took_s = runner.run(all_of_five())
    assert written == 5
    assert took_s == pytest.approx(4 / 20, abs=0.01)


def test_a_pace_that_was_far_too_slow_is_not_slept_out() -> None:
    async def once_corrected() -> float:
        paces = iter([1e-6, 1e-6, 1e-6])
        writes = PodWrites(Writing(), Counter(), "nothing can be written", lambda: next(paces, 10.0))
        began_mono_s = asyncio.get_running_loop().time()
        await writes.pause()
        return asyncio.get_running_loop().time() - began_mono_s

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(once_corrected()) == pytest.approx(3.0, abs=0.01)
