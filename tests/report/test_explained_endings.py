"""Pods whose end has begun, or has come: what explain says, and that it advises nothing that cannot help them."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from scheduler.client.tables import print_explanation
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.errors import ApiNotFound, ApiUnavailable
from scheduler.core.units import format_instant
from scheduler.decision.decider import Decider
from scheduler.decision.record import decision_annotation
from scheduler.report.absent import DELETED, GONE, MOST_READ
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation, NotFound
from tests.builders import all_rows, lose_pod, make_decider, make_pod, make_store, see_node, see_pod

OURS = frozenset({"wattbalance"})


class World:
    """A store with a node, an API server that has other pods beside, and who explains them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store: Store = make_store()
        self.store.synced |= {Kind.POD, Kind.NODE}
        see_node(self.store, "n1")
        self.decider: Decider = make_decider(self.store)
        self.there: dict[str, Pod] = {}
        self.asked: list[str] = []
        self.fails = False
        self.explainer = Explainer(
            self.decider, self.clock, lambda: "leader", scheduler_names=lambda: OURS, get_pod=self.get_pod
        )

    async def get_pod(self, namespace: str, name: str) -> Pod:
        self.asked.append(f"{namespace}/{name}")
        await asyncio.sleep(0)
        if self.fails:
            raise ApiUnavailable("no answer")
        if name not in self.there:
            raise ApiNotFound("no such pod", status=404)
        return self.there[name]

    def see(self, pod: Pod) -> Pod:
        see_pod(self.store, pod, self.clock.mono_s())
        return pod

    def decide(self, pod: Pod) -> None:
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        self.decider.place(request, all_rows(self.store), self.clock.mono_s(), self.clock.unix_s())

    def after(self, length_s: float) -> str:
        return format_instant(round(self.clock.unix_s() + length_s))

    async def explained(self, name: str = "p1") -> tuple[Explanation, str]:
        """What the API answers, and what a person reads."""
        told = await self.explainer.explain("team-a", name)
        assert isinstance(told, Explanation), told
        out = Console(file=io.StringIO(), width=1000)
        print_explanation(out, told, wide=False)
        assert isinstance(out.file, io.StringIO)
        return told, out.file.getvalue()

    async def unknown(self, name: str = "p1") -> str:
        told = await self.explainer.explain("team-a", name)
        assert isinstance(told, NotFound), told
        return told.error


@pytest.fixture
def world() -> World:
    return World()


def note(told: Explanation, begins: str) -> str:
    """The one note that begins so."""
    [found] = [each for each in told.notes if each.startswith(begins)]
    return found


async def test_a_pod_that_is_not_being_deleted_says_nothing_of_it(world: World) -> None:
    world.see(make_pod(node="n1"))
    told, text = await world.explained()
    assert told.deletion_unix_s is None
    assert "deleted" not in text


async def test_a_bound_pod_that_is_being_deleted_says_until_when(world: World) -> None:
    world.see(make_pod(node="n1", deleted=world.after(600)))
    told, text = await world.explained()
    assert told.state == "bound"
    assert told.deletion_unix_s == pytest.approx(world.clock.unix_s() + 600, abs=1)
    assert "bound to n1; being deleted, has 10m left" in text
    assert f"it has until {world.after(600)} to end" in note(told, "It is being deleted")
    world.clock.advance(660)
    told, text = await world.explained()
    assert "bound to n1; being deleted, since 60s" in text
    assert "was to be gone at" in note(told, "It is being deleted")


async def test_a_pod_that_waits_and_is_being_deleted_gets_no_advice(world: World) -> None:
    world.see(make_pod(gpus=64, deleted=world.after(0)))
    told, text = await world.explained()
    assert (told.state, told.now) == ("waiting", None)
    assert "no scheduler places it any more" in note(told, "It is being deleted")
    assert "; being deleted, since" in text
    assert "unblock" not in text
    assert "Waking" not in text
    # None of our schedulers: nor is it told to name one in its spec.
    assert "schedulerName" not in text


async def test_that_its_node_does_not_exist_is_told_where_nodes_are_listed(world: World) -> None:
    world.see(make_pod(node="gone-node"))
    told, text = await world.explained()
    assert told.node_missing
    assert "bound to gone-node, which does not exist" in text
    assert "gone-node does not exist" in note(told, "Its node")
    world.store.synced.discard(Kind.NODE)
    told, text = await world.explained()
    assert not told.node_missing
    assert "exist" not in text.partition("\n\n")[0]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_a_finished_pod_tells_what_its_annotation_says_of_its_decision(
    world: World, phase: str
) -> None:
    """As after a restart: nothing of it is kept here."""
    said = decision_annotation(None, "n1", 7)
    world.there["p1"] = make_pod(node="n1", gpus=2, phase=phase, refused="ours", annotations=said)
    told, text = await world.explained()
    assert (told.state, told.phase, told.node, told.gpus, told.now) == ("finished", phase, "n1", 2, None)
    assert f"State     finished: {phase} on n1" in text
    assert "holds no GPUs any more" in told.notes[0]
    assert "By its annotation wattbalance.io/decision it was placed on n1." in told.notes[1]
    # Copied from another pod, it says nothing.
    world.there["p1"] = make_pod(node="n2", phase=phase, refused="ours", annotations=said)
    told, _ = await world.explained()
    assert "does not fit the pod" in told.notes[1]


async def test_a_finished_pod_shows_the_decision_that_is_kept_with_its_age(world: World) -> None:
    pod = world.see(make_pod())
    world.decide(pod)
    lose_pod(world.store, pod)
    world.there["p1"] = make_pod(node="n1", phase="Succeeded")
    world.clock.advance(7)
    told, text = await world.explained()
    assert told.decision is not None
    assert "(filter, 7.0s ago)" in text
    world.there["p1"] = make_pod(node="n1", phase="Succeeded", uid="another")
    told, _ = await world.explained()
    assert any(each.startswith("The decision is about an earlier pod of this name.") for each in told.notes)


async def test_a_pod_that_was_deleted_is_told_as_such_and_its_decision_with_its_age(world: World) -> None:
    pod = world.see(make_pod())
    world.decide(pod)
    lose_pod(world.store, pod)
    world.clock.advance(120)
    told, text = await world.explained()
    assert told.state == "not seen"
    assert told.notes == [DELETED]
    assert "(filter, 2m0s ago)" in text
    # Who does not answer says nothing about it.
    world.fails = True
    told, text = await world.explained()
    assert told.notes == [GONE]
    assert "(filter, 2m0s ago)" in text


async def test_a_pod_that_asks_for_no_gpu_is_told_apart_from_one_that_is_not_there(world: World) -> None:
    world.there["p1"] = make_pod(gpus=0)
    assert "asks for no GPU by a name that is counted" in await world.unknown()
    world.there["p1"] = make_pod(gpus=0, phase="Succeeded")
    assert "asks for no GPU by a name that is counted" in await world.unknown()
    world.there["p1"] = make_pod(gpus=1)
    assert "has not seen it yet" in await world.unknown()
    del world.there["p1"]
    assert "nothing is known of pod team-a/p1" in await world.unknown()
    world.fails = True
    assert "nothing is known of pod team-a/p1" in await world.unknown()


@pytest.mark.parametrize("name", ["..", "p1/status", "../../secrets/s", "", "p1?x=1", "ü"])
async def test_the_api_server_is_asked_for_nothing_but_pods(world: World, name: str) -> None:
    await world.unknown(name)
    await world.explainer.explain(name, "p1")
    assert world.asked == []


async def test_only_some_are_asked_for_at_once_and_none_that_is_seen(world: World) -> None:
    world.see(make_pod("seen"))
    await world.explainer.explain("team-a", "seen")
    assert world.asked == []
    many = [world.explainer.explain("team-a", f"p{number}") for number in range(50)]
    assert all(isinstance(each, NotFound) for each in await asyncio.gather(*many))
    assert len(world.asked) == MOST_READ
    world.asked.clear()
    await world.unknown()
    assert len(world.asked) == 1, "the places are given back"
