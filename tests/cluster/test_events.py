"""Events in virtual time: what is new soon, counts later, so many a second and no more, nothing lost unseen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster import events
from scheduler.cluster.api_request import EVENT_DROPS, Counters, Target
from scheduler.cluster.events import (
    COUNTED_AFTER_S,
    MOST_AT_ONCE,
    MOST_PER_S,
    MOST_QUEUED,
    SERIES_S,
    SPAM_BURST,
    SPAM_REFILL_S,
    EventWriter,
)
from scheduler.cluster.port import EventNote
from scheduler.core.clock import Clock, ManualClock
from scheduler.core.errors import ApiForbidden, ApiNotFound, ApiUnavailable, ClusterError
from tests.fakes.virtual_time import SkewedClock, VirtualLoop


@dataclass(frozen=True)
class Write:
    """One request, as it came."""

    mono_s: float
    verb: str
    namespace: str
    name: str
    body: Mapping[str, object]

    @property
    def about(self) -> str:
        regarding = self.body["regarding"]
        assert isinstance(regarding, dict)
        return f"{regarding['kind']} {regarding['namespace']}/{regarding['name']}"

    @property
    def count(self) -> int:
        series = self.body.get("series", {"count": 1})
        assert isinstance(series, dict)
        return int(series["count"])


@dataclass
class Server:
    """Keeps what is written; fails as it is told, once each."""

    clock: Clock
    counters: Counters = field(default_factory=Counters)
    writes: list[Write] = field(default_factory=list)
    fails: list[ClusterError] = field(default_factory=list)
    takes_s: float = 0.0

    async def call(
        self, verb: str, target: Target, *, params: Mapping[str, str] | None = None, body: object = None
    ) -> bytes:
        assert isinstance(body, dict)
        assert (target.group, target.resource, target.version) == ("events.k8s.io", "events", "v1")
        assert params == ({"fieldManager": "wattbalance"} if verb == "patch" else None)
        self.writes.append(Write(self.clock.mono_s(), verb, target.namespace, target.name, body))
        await asyncio.sleep(self.takes_s)
        if self.fails:
            raise self.fails.pop(0)
        return b"{}"

    def taken(self) -> list[Write]:
        """What was written since, in order."""
        taken, self.writes = self.writes, []
        return taken


class World:
    """A writer that runs."""

    def __init__(self) -> None:
        self.server = Server(SkewedClock(zero_mono_s=1000.0))
        self.writer = EventWriter(self.server, instance="wattbalance-0")
        self.leads = True
        self.writer.may_write = lambda: self.leads

    @property
    def dropped(self) -> dict[str, int]:
        return {reason: count for reason, count in self.server.counters.events_dropped.items() if count}

    @property
    def written(self) -> int:
        return self.server.counters.events_written

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.writer.run())
            try:
                yield
            finally:
                task.cancel()

    def note(self, name: str = "p", *, times: int = 1, **changes: object) -> None:
        values: dict[str, object] = {
            "kind": "Pod",
            "namespace": "team-a",
            "name": name,
            "uid": f"uid-{name}",
            "reason": "NoNodeFits",
            "note": "None fits",
            "about": "node in quarantine",
            "warning": True,
        } | changes
        for _ in range(times):
            self.writer.note(EventNote(**values))  # type: ignore[arg-type]  # the tests' own keywords


def in_virtual_time(story: Callable[[World], Awaitable[None]]) -> None:
    async def told() -> None:
        await story(World())

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(told())


def test_an_event_says_all_that_the_api_server_and_a_reader_need() -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note(action="Binding")
            world.note("web", kind="Deployment", warning=False)
            world.note("set", kind="JobSet", api_version="jobset.x-k8s.io/v1alpha2")
            world.note("n1", kind="Node", namespace="", uid="")
            await asyncio.sleep(0.1)
        # Of namespaces one after the other.
        pod, node, deployment, job_set = world.server.taken()
        assert (pod.verb, pod.namespace, pod.name) == ("create", "team-a", "")
        metadata = pod.body["metadata"]
        assert isinstance(metadata, dict)
        name = str(metadata["name"])
        assert name.startswith("p.")
        assert len(name) == len("p.") + 16
        assert pod.body == {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "team-a"},
            "eventTime": pod.body["eventTime"],
            "reportingController": "wattbalance.io/wattbalance",
            "reportingInstance": "wattbalance-0",
            "action": "Binding",
            "reason": "NoNodeFits",
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": "team-a",
                "name": "p",
                "uid": "uid-p",
            },
            "note": "None fits",
            "type": "Warning",
        }
        # The API server takes six digits and no fewer.
        assert re.fullmatch(r"2023-11-14T22:13:20\.00000\dZ", str(pod.body["eventTime"]))
        assert deployment.body["type"] == "Normal"
        for write, want_version in ((deployment, "apps/v1"), (job_set, "jobset.x-k8s.io/v1alpha2")):
            regarding = write.body["regarding"]
            assert isinstance(regarding, dict)
            assert regarding["apiVersion"] == want_version
        # What has no namespace cannot be elsewhere on 1.20.
        assert node.namespace == "kube-system"
        assert node.about == "Node /n1"

    in_virtual_time(story)


def test_an_instance_without_a_name_or_with_a_long_one_is_named_all_the_same() -> None:
    async def story(world: World) -> None:
        for instance in ("", "x" * 200):
            writer = EventWriter(world.server, instance=instance)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(writer.run())
                writer.note(
                    EventNote(kind="Pod", namespace="a", name="n" * 253, uid="u", reason="R", note="")
                )
                await asyncio.sleep(0.1)
                task.cancel()
        one, other = world.server.taken()
        assert [one.body["reportingInstance"], other.body["reportingInstance"]] == ["wattbalance", "x" * 128]
        metadata = one.body["metadata"]
        assert isinstance(metadata, dict)
        assert len(metadata["name"]) == 220 + 1 + 16

    in_virtual_time(story)


@pytest.mark.parametrize("text", ["é" * 2000, "a" * 1024, "a" * 1025, "\ud800" * 5, ""])
def test_a_note_is_never_longer_than_the_api_server_takes(text: str) -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note(note=text)
            await asyncio.sleep(0.1)
        [write] = world.server.taken()
        note = str(write.body["note"])
        assert len(note.encode()) <= 1024
        want_whole = len(text) <= 1024
        assert note.endswith("…") != want_whole
        assert note.rstrip("…") == text.replace("\ud800", "?")[: len(note.rstrip("…"))]
        assert len(note.encode()) >= min(1023, len(text))

    in_virtual_time(story)


def test_500_pods_of_one_owner_are_one_event_and_one_patch_that_counts_them() -> None:
    async def story(world: World) -> None:
        async with world.running():
            for number in range(500):
                world.note("web", kind="Deployment", note=f"First pod p{number}")
                await asyncio.sleep(COUNTED_AFTER_S / 1000)
            await asyncio.sleep(2 * COUNTED_AFTER_S)
        create, patch = world.server.taken()
        assert (create.verb, create.count, create.body["note"]) == ("create", 1, "First pod p0")
        assert (patch.verb, patch.count) == ("patch", 500)
        metadata = create.body["metadata"]
        assert isinstance(metadata, dict)
        assert patch.name == metadata["name"]
        assert set(patch.body) == {"series"}
        # When it was seen last, not when it is written.
        series = patch.body["series"]
        assert isinstance(series, dict)
        assert str(series["lastObservedTime"]).startswith("2023-11-14T22:13:22.49")
        assert patch.mono_s == pytest.approx(1000.0 + COUNTED_AFTER_S / 1000 + COUNTED_AFTER_S)
        assert (world.written, world.dropped) == (2, {})

    in_virtual_time(story)


def test_a_series_that_goes_on_is_patched_once_in_a_while() -> None:
    async def story(world: World) -> None:
        async with world.running():
            for _ in range(60):
                world.note()
                await asyncio.sleep(1.0)
            await asyncio.sleep(COUNTED_AFTER_S)
        create, *patches = world.server.taken()
        assert create.count == 1
        assert patches[-1].count == 60
        assert len(patches) <= 60 / COUNTED_AFTER_S
        gaps_s = [after.mono_s - before.mono_s for before, after in pairwise(patches)]
        assert min(gaps_s) >= COUNTED_AFTER_S

    in_virtual_time(story)


def test_what_was_seen_again_before_it_was_written_is_counted_in_it() -> None:
    async def story(world: World) -> None:
        world.note(times=3)
        async with world.running():
            await asyncio.sleep(60.0)
        [create] = world.server.taken()
        assert (create.verb, create.count) == ("create", 3)
        series = create.body["series"]
        assert isinstance(series, dict)
        assert str(series["lastObservedTime"]).startswith("2023-11-14T22:13:20.00000")

    in_virtual_time(story)


def test_after_minutes_of_silence_the_same_is_another_event() -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note()
            await asyncio.sleep(SERIES_S - 1.0)
            world.note()
            await asyncio.sleep(SERIES_S)
            world.note()
            await asyncio.sleep(60.0)
        assert [(write.verb, write.count) for write in world.server.taken()] == [
            ("create", 1),
            ("patch", 2),
            ("create", 1),
        ]

    in_virtual_time(story)


def test_a_series_ends_six_minutes_after_it_went_on_last_and_not_a_moment_sooner() -> None:
    clock = ManualClock()
    server = Server(clock)
    writer = EventWriter(server, instance="wattbalance-0")
    note = EventNote(kind="Pod", namespace="a", name="p", uid="u", reason="R", note="")
    writer.note(note)
    for _ in range(3):
        clock.advance(SERIES_S - 0.5)
        writer.note(note)
    assert writer.queued == 1
    clock.advance(SERIES_S)
    writer.note(note)
    assert writer.queued == 2


def test_an_event_says_when_it_was_seen_first_and_when_last() -> None:
    async def story(world: World) -> None:
        world.note()
        await asyncio.sleep(30.0)
        world.note()
        async with world.running():
            await asyncio.sleep(1.0)
        [create] = world.server.taken()
        assert str(create.body["eventTime"]).startswith("2023-11-14T22:13:20")
        series = create.body["series"]
        assert isinstance(series, dict)
        assert str(series["lastObservedTime"]).startswith("2023-11-14T22:13:50")

    in_virtual_time(story)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Job"},
        {"namespace": "team-b"},
        {"name": "q"},
        {"uid": "uid-q"},
        {"reason": "BadAnnotation"},
        {"about": "not enough healthy GPUs"},
        {"action": "Binding"},
        {"warning": False},
    ],
)
def test_what_differs_in_anything_but_its_text_is_told_at_once(change: dict[str, object]) -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note()
            world.note(note="with another figure")
            world.note(**change)  # type: ignore[arg-type]  # the tests' own keywords
            await asyncio.sleep(0.1)
        first, other = world.server.taken()
        assert [first.verb, other.verb] == ["create", "create"]
        assert (first.count, other.count) == (2, 1)

    in_virtual_time(story)


def test_what_is_new_goes_before_counts() -> None:
    async def story(world: World) -> None:
        async with world.running():
            for number in range(2 * MOST_AT_ONCE):
                world.note(f"p{number}")
            await asyncio.sleep(60.0)
            world.server.taken()
            for number in range(2 * MOST_AT_ONCE):
                world.note(f"p{number}")
            await asyncio.sleep(COUNTED_AFTER_S + 0.5)
            for number in range(20):
                world.note(f"q{number}")
            await asyncio.sleep(60.0)
        verbs = [write.verb for write in world.server.taken()]
        first_new = verbs.index("create")
        # All counts are due, and for some there was a token before anything was new.
        assert MOST_AT_ONCE <= first_new < 2 * MOST_AT_ONCE
        assert verbs[first_new : first_new + 20] == ["create"] * 20
        assert verbs.count("patch") == 2 * MOST_AT_ONCE

    in_virtual_time(story)


def test_news_wakes_a_writer_that_waits_for_a_count_to_be_due() -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note()
            await asyncio.sleep(0.1)
            world.note()
            await asyncio.sleep(0.1)
            world.note("new")
            await asyncio.sleep(0.1)
            assert [write.verb for write in world.server.taken()] == ["create", "create"]
            await asyncio.sleep(COUNTED_AFTER_S)
            assert [write.verb for write in world.server.taken()] == ["patch"]

    in_virtual_time(story)


def test_an_event_that_has_gone_is_written_anew_and_that_is_another_write() -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note()
            await asyncio.sleep(0.1)
            world.server.fails.append(ApiNotFound("gone"))
            world.note()
            await asyncio.sleep(60.0)
            world.note()
            await asyncio.sleep(60.0)
        writes = world.server.taken()
        assert [(write.verb, write.count) for write in writes] == [
            ("create", 1),
            ("patch", 2),
            ("create", 2),
            ("patch", 3),
        ]
        assert writes[3].name != writes[1].name
        assert (world.written, world.dropped) == (3, {})

    in_virtual_time(story)


def test_an_event_that_is_to_be_written_anew_counts_what_comes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MOST_AT_ONCE", 1)

    async def story(world: World) -> None:
        async with world.running():
            world.note()
            await asyncio.sleep(0.5)
            world.server.fails.append(ApiNotFound("gone"))
            world.note()
            await asyncio.sleep(COUNTED_AFTER_S + 0.01)
            assert [write.verb for write in world.server.taken()] == ["create", "patch"]
            # Its next token is not there yet.
            world.note()
            await asyncio.sleep(60.0)
        assert [(write.verb, write.count) for write in world.server.taken()] == [("create", 3)]

    in_virtual_time(story)


def test_what_fails_is_counted_and_the_next_time_says_how_often_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(world: World) -> None:
        world.server.fails += [ApiUnavailable("away"), ApiForbidden("may not"), ApiForbidden("may not")]
        async with world.running():
            for name in ("p", "q", "r"):
                world.note(name)
            await asyncio.sleep(1.0)
            assert (world.written, world.dropped) == (0, {"failed": 3})
            world.server.taken()
            world.note()
            await asyncio.sleep(60.0)
        [create] = world.server.taken()
        assert (create.verb, create.count) == ("create", 2)
        assert (world.written, world.dropped) == (1, {"failed": 3})

    in_virtual_time(story)
    # What is forbidden stays so: one line is enough.
    assert [record.getMessage() for record in caplog.records] == ["events cannot be written: may not"]


def test_a_namespace_that_has_gone_takes_no_event_and_keeps_nobody_waiting() -> None:
    async def story(world: World) -> None:
        world.server.fails.append(ApiNotFound("no such namespace"))
        async with world.running():
            world.note()
            world.note("q", namespace="team-b")
            await asyncio.sleep(60.0)
        assert [write.about for write in world.server.taken()] == ["Pod team-a/p", "Pod team-b/q"]
        assert (world.written, world.dropped) == (1, {"failed": 1})

    in_virtual_time(story)


def test_who_does_not_lead_any_more_writes_nothing_that_was_queued_and_spends_nothing() -> None:
    async def story(world: World) -> None:
        async with world.running():
            world.note()
            await asyncio.sleep(0.1)
            world.server.taken()
            world.note()
            for number in range(MOST_QUEUED // 2):
                world.note(f"p{number}")
            world.leads = False
            await asyncio.sleep(0.1)
            assert world.writer.queued == 0
            assert world.dropped == {"not_leading": 1 + MOST_QUEUED // 2}
            assert not world.server.taken()
            world.leads = True
            # They are not queued any more, so they may be again.
            world.note("p7")
            world.note("new")
            await asyncio.sleep(0.1)
            assert [write.about for write in world.server.taken()] == ["Pod team-a/new"]
            await asyncio.sleep(COUNTED_AFTER_S)
            [again] = world.server.taken()
            assert (again.verb, again.about, again.count) == ("create", "Pod team-a/p7", 2)

    in_virtual_time(story)


def test_objects_of_which_too_much_is_said_are_spam_and_their_series_go_on() -> None:
    async def story(world: World) -> None:
        async with world.running():
            for number in range(SPAM_BURST + 5):
                world.note(about=f"reason {number}")
            world.note(about="reason 0", times=100)
            world.note("other")
            world.note(namespace="team-b")
            # Made anew under the same name it is another.
            world.note(uid="uid-of-the-next")
            await asyncio.sleep(60.0)
            assert world.dropped == {"spam": 5}
            writes = world.server.taken()
            assert [write.verb for write in writes].count("create") == SPAM_BURST + 3
            # Counted before it was written.
            assert writes[0].count == 101
            await asyncio.sleep(SPAM_REFILL_S)
            world.note(about="yet another")
            world.note(about="and one more")
            assert world.dropped == {"spam": 6}

    in_virtual_time(story)


def test_the_queue_is_bounded_and_what_it_cannot_hold_is_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(world: World) -> None:
        for number in range(MOST_QUEUED + 200):
            world.note(f"p{number}")
        assert world.writer.queued == MOST_QUEUED
        assert world.dropped == {"full": 200}
        async with world.running():
            await asyncio.sleep(MOST_QUEUED / MOST_PER_S / 2)
            # Some were written; it is the same flood.
            for number in range(MOST_QUEUED):
                world.note(f"more{number}")
            assert world.writer.queued == MOST_QUEUED
            full = 200 + MOST_QUEUED - world.written
            assert world.dropped == {"full": full}
            await asyncio.sleep(2 * MOST_QUEUED / MOST_PER_S)
            assert world.writer.queued == 0
            # One that was dropped is written with its count when it is seen again.
            world.server.taken()
            world.note(f"p{MOST_QUEUED + 7}")
            await asyncio.sleep(COUNTED_AFTER_S + 1.0)
            [again] = world.server.taken()
            assert (again.verb, again.count) == ("create", 2)
            for number in range(MOST_QUEUED + 1):
                world.note(f"again{number}")
            await asyncio.sleep(MOST_QUEUED / MOST_PER_S)
        assert world.dropped == {"full": full + 1}

    with caplog.at_level(logging.INFO):
        in_virtual_time(story)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["events are dropped: too many wait to be written"] * 2


def test_one_namespace_that_says_too_much_keeps_no_other_waiting_or_out() -> None:
    async def story(world: World) -> None:
        for number in range(MOST_QUEUED + 500):
            world.note(f"p{number}")
        world.note("quiet", namespace="team-b")
        async with world.running():
            await asyncio.sleep(0.1)
            assert world.server.taken()[1].about == "Pod team-b/quiet"
        assert world.dropped == {"full": 501}

    in_virtual_time(story)


def test_counts_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_QUEUED", 3)

    async def story(world: World) -> None:
        async with world.running():
            for number in range(5):
                world.note(f"p{number}")
                await asyncio.sleep(0.1)
            world.server.taken()
            for number in range(5):
                world.note(f"p{number}", times=2)
            assert world.writer.queued == 3
            # Once for each time that it was not queued.
            assert world.dropped == {"full": 4}
            await asyncio.sleep(COUNTED_AFTER_S + 1.0)
            assert [write.count for write in world.server.taken()] == [3, 3, 3]
            world.note("p4")
            await asyncio.sleep(COUNTED_AFTER_S + 1.0)
            assert [write.count for write in world.server.taken()] == [4]

    in_virtual_time(story)


def test_what_is_left_when_it_stops_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def story(world: World) -> None:
        async with world.running():
            await asyncio.sleep(0.1)
        async with world.running():
            for number in range(MOST_AT_ONCE + 7):
                world.note(f"p{number}")
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        in_virtual_time(story)
    [record] = caplog.records
    assert record.getMessage() == "events are not written any more"
    assert vars(record)["kv"] == {"count": 7}


def test_of_objects_that_are_spoken_of_the_one_that_was_silent_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MOST_REMEMBERED", 2)

    async def story(world: World) -> None:
        for number in range(SPAM_BURST):
            world.note("loud", about=str(number))
            world.note(f"other{number}")
        world.note("loud", about="one too many")
        assert world.dropped == {"spam": 1}

    in_virtual_time(story)


def test_every_reason_to_drop_is_counted_from_zero_on() -> None:
    assert Counters().events_dropped == dict.fromkeys(EVENT_DROPS, 0)


def test_memory_is_bounded_under_a_million_different_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_REMEMBERED", 50)

    async def story(world: World) -> None:
        writer = world.writer
        for number in range(1_000_000 // 50):
            world.note(f"p{number}", namespace=f"space-{number % 97}", about="x" * 5000)
            assert len(writer._series) <= 50
            assert len(writer._spam._buckets) <= 50
            assert writer.queued <= MOST_QUEUED
        kept = next(iter(writer._series.values())).note
        assert (kept.about, len(kept.note)) == ("", len("None fits"))
        # What was seen again just now is not what is forgotten first.
        world.note("old")
        for number in range(60):
            world.note("old")
            world.note(f"new{number}")
        assert [series.count for series in writer._series.values() if series.note.name == "old"] == [61]
        assert world.written + sum(world.dropped.values()) + writer.queued > 1_000_000 // 50

    in_virtual_time(story)


@given(
    bursts=st.lists(
        st.tuples(st.floats(0.0, 20.0), st.integers(1, 150), st.sampled_from(["new", "again", "spam"])),
        max_size=8,
    ),
    takes_s=st.sampled_from([0.0, 0.01, 0.3]),
    gone=st.integers(0, 40),
)
def test_no_span_sees_more_than_the_limit_and_no_event_is_lost_unseen(
    bursts: list[tuple[float, int, str]], takes_s: float, gone: int
) -> None:
    async def story(world: World) -> None:
        world.server.takes_s = takes_s
        number = begun = 0
        async with world.running():
            for gap_s, count, sort in bursts:
                await asyncio.sleep(gap_s)
                for each in range(count):
                    number += 1
                    begun += 1
                    if sort == "again":
                        world.note(f"p{each}")
                    elif sort == "spam":
                        world.note("loud", about=str(number))
                    else:
                        world.note(f"new{number}")
                if sort == "again":
                    await asyncio.sleep(1.0)
                    world.server.fails += [ApiNotFound("gone")] * gone
            await asyncio.sleep(600.0)
        assert world.writer.queued == 0
        writes = world.server.taken()
        for first, write in enumerate(writes):
            for last in (first + MOST_AT_ONCE, first + 2 * MOST_AT_ONCE):
                if last < len(writes):
                    span_s = writes[last].mono_s - write.mono_s
                    assert last - first + 1 <= MOST_AT_ONCE + MOST_PER_S * span_s + 1e-6
        # Each that was noted is in a count that was written, or in one of the drops.
        by_name: dict[str, int] = {}
        for write in writes:
            metadata = write.body.get("metadata")
            name = write.name or (str(metadata["name"]) if isinstance(metadata, dict) else "")
            by_name[name] = max(by_name.get(name, 0), write.count)
        if not gone:
            assert sum(by_name.values()) + world.dropped.get("spam", 0) == begun
            assert set(world.dropped) <= {"spam"}

    in_virtual_time(story)
