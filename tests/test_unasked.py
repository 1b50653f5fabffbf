"""Bad annotations of pods that wait and are never asked about: who is judged, when, and how often."""

from __future__ import annotations

import msgspec.structs
import pytest

from scheduler import unasked
from scheduler.cluster.intent import Fault, Intent
from scheduler.cluster.objects import Meta, Pod
from scheduler.cluster.pods import PodFacts
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PREFIX
from scheduler.unasked import SETTLE_S, Unasked
from tests.builders import lose_pod, make_pod, make_store, see_node, see_pod


class World:
    """A store, and what is told of its pods."""

    def __init__(self) -> None:
        self.store = make_store()
        self.clock = ManualClock()
        self.told: list[tuple[str, str]] = []
        self.leads = True
        self.judge = Unasked(
            self.store,
            self.clock,
            may_tell=lambda: self.leads,
            is_ours=lambda pod: pod.scheduler_name != "foreign",
            tell=self._tell,
        )

    def _tell(self, pod: Meta, faults: tuple[Fault, ...]) -> None:
        self.told += [(pod.name, fault.text) for fault in faults]

    def see(self, pod: Pod) -> None:
        """As app.py does."""
        uid = pod.metadata.uid
        before: PodFacts | None = self.store.waiting.get(uid)
        see_pod(self.store, pod)
        self.judge.see(uid, before, self.clock.mono_s())

    async def later(self, after_s: float = SETTLE_S) -> list[tuple[str, str]]:
        """What is told after some time; each time anew."""
        self.clock.advance(after_s)
        self.told.clear()
        await self.judge.judge()
        return list(self.told)


def bad(name: str = "p", value: str = "lots", *, node: str = "") -> Pod:
    return make_pod(name, annotations={PREFIX + "gpu-memory": value}, node=node)


def foreign() -> Pod:
    pod = bad("foreign")
    return msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, scheduler_name="foreign"))


async def test_a_pod_that_nobody_asks_about_is_told_once_for_what_it_says() -> None:
    world = World()
    world.see(bad())
    assert await world.later(SETTLE_S / 2) == []
    assert await world.later(SETTLE_S) == [("p", "'lots'")]
    # Its status changes for ever, which is no news.
    world.see(bad())
    assert await world.later() == []
    world.see(bad(value="more"))
    assert await world.later() == [("p", "'more'")]
    assert world.store.intents.errors == {"gpu-memory": 2}
    assert not len(world.judge)


async def test_what_counts_tells_nothing_and_is_judged_once() -> None:
    world = World()
    world.see(make_pod("good", annotations={PREFIX + "gpu-memory": "40Gi"}))
    world.see(make_pod("silent"))
    assert len(world.judge) == 2
    assert await world.later() == []
    assert not len(world.judge)


async def test_who_is_bound_or_gone_or_not_ours_is_not_told() -> None:
    world = World()
    see_node(world.store, "n1")
    for name in ("bound", "gone", "unlisted"):
        world.see(bad(name))
    world.see(foreign())
    world.see(bad("bound", node="n1"))
    lose_pod(world.store, bad("gone"))
    world.judge.see("uid-gone", None, 0.0)
    assert len(world.judge) == 2
    world.judge.keep({"uid-foreign"})
    assert len(world.judge) == 1
    assert await world.later() == []
    assert not len(world.judge)


async def test_what_was_seen_while_standing_by_is_told_when_leading() -> None:
    world = World()
    world.leads = False
    world.see(bad())
    assert await world.later() == []
    world.leads = True
    assert await world.later() == [("p", "'lots'")]


async def test_who_loses_the_lead_in_the_middle_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each pod is a turn of its own.
    monkeypatch.setattr(unasked, "TURN_S", -1.0)
    world = World()
    for name in ("a", "b"):
        world.see(bad(name))
    asked = iter((True, False))
    world.judge._may_tell = lambda: next(asked)
    assert await world.later() == [("a", "'lots'")]
    assert len(world.judge) == 1


async def test_of_many_that_say_the_same_each_is_told_and_what_they_say_is_judged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    resolved = []
    resolve = world.store.intents.resolve

    def noted(meta: Meta, priority_class: str) -> Intent:
        resolved.append(meta.name)
        return resolve(meta, priority_class)

    monkeypatch.setattr(world.store.intents, "resolve", noted)
    for index in range(50):
        world.see(bad(f"p{index}", ("lots", "more")[index % 2]))
    told = await world.later()
    assert told == [(f"p{index}", ("'lots'", "'more'")[index % 2]) for index in range(50)]
    assert resolved == ["p0", "p1"]
    assert world.store.intents.errors == {"gpu-memory": 50}


async def test_the_same_value_is_one_count_whatever_else_is_said() -> None:
    world = World()
    said = {PREFIX + "min-power": "300W", PREFIX + "max-power": "200W"}
    world.see(make_pod("p", annotations=said))
    await world.later()
    before = dict(world.store.intents.errors)
    # The message names the other value, which has changed.
    world.see(make_pod("p", annotations=said | {PREFIX + "max-power": "250W"}))
    await world.later()
    assert world.store.intents.errors["min-power"] == before["min-power"] == 1
    assert world.store.intents.errors["max-power"] == 2
