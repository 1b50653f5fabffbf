"""What explain tells of waking: each reason against it by its name, until when, and who wakes the pod if we do not."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler import nudges
from scheduler.cluster.annotation_size import MOST_BYTES
from scheduler.cluster.objects import Pod
from scheduler.cluster.pod_status import BIND_IS_OFF
from scheduler.config_nudge import NudgeSettings
from scheduler.core.errors import ApiForbidden, ApiRejected, ApiUnavailable, ClusterError
from scheduler.core.units import format_instant
from scheduler.decision.evaluation import Waking
from scheduler.last_woken import RETRY_ANNOTATION, SKEW_S
from scheduler.pause import Paused
from scheduler.waking import Running, waking_by
from tests.builders import all_rows, make_pod, see_node, see_pod
from tests.test_nudges import World, world

__all__ = ["world"]
SICK_NODE = "0/1 nodes are available: 1 node in quarantine."
AGAIN_S = 10.0


class Told:
    """What a replica tells, and what it goes by."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.observing = False
        self.leader_name = "wattbalance-0-abcd"
        self.why_not: str | None = None
        self.configmaps = True
        self.paused: Paused | None = None
        self.offset_s: float | None = 0.0
        self.binds = False
        self.ours: tuple[str, ...] = ("wattbalance", "")

    def __call__(self, name: str) -> Waking:
        clock = SimpleNamespace(
            mono_s=self.world.clock.mono_s,
            unix_s=self.world.clock.unix_s,
            offset_s=self.offset_s,
            is_off=lambda: abs(self.offset_s or 0.0) > 5.0,
        )
        leadership = SimpleNamespace(
            observing=self.observing, leader_name=self.leader_name, leads=lambda: self.world.leads
        )
        running = SimpleNamespace(
            settings=SimpleNamespace(nudge=self.world.settings, scheduler_names=self.ours),
            store=self.world.store,
            cluster=SimpleNamespace(server_clock=clock),
            leadership=leadership,
            knowledge=SimpleNamespace(not_ready=lambda: self.why_not, knows=lambda _: self.configmaps),
            pause=SimpleNamespace(now=self.paused),
            nudges=self.world.nudges,
        )
        facts = self.world.store.waiting[f"uid-{name}"]
        return waking_by(cast("Running", running))(facts)

    def left_s(self, name: str) -> float:
        """How long what hinders it lasts by what is told."""
        until_unix_s = self(name).until_unix_s
        assert until_unix_s is not None
        return until_unix_s - self.world.clock.unix_s()


@pytest.fixture
def told(world: World) -> Told:
    return Told(world)


def test_who_wakes_nobody_says_why_and_promises_nothing(told: Told) -> None:
    told.world.refuse("p1")
    paused = Paused(uid="u", by="ann", claimed=False, since="2026-01-01T00:00:00Z", reason="we look")
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("soon", {}, "within a second or two once it fits"),
        ("not_ready", {"why_not": "the API server is silent"}, "not ready (the API server is silent)"),
        ("not_ready", {"configmaps": False}, "Whether somebody has paused us is not known yet"),
        ("paused", {"paused": paused}, "We are paused by ann since 2026-01-01T00:00:00Z: we look."),
        ("observed", {"observing": True}, "We only observe here"),
    ]
    for want, change, want_text in changes:
        this = Told(told.world)
        vars(this).update(change)
        waking = this("p1")
        assert (waking.state, waking.until_unix_s) == (want, None)
        assert want_text in waking.text
        assert ("kube-scheduler tries it again" in waking.text) == (want != "soon")


def test_who_does_not_lead_says_who_does(told: Told) -> None:
    told.world.refuse("p1")
    told.world.leads = False
    assert told("p1").state == "standby"
    assert "wattbalance-0-abcd leads: it wakes pods" in told("p1").text
    told.leader_name = ""
    assert told("p1").state == "leaderless"
    assert "until somebody leads" in told("p1").text
    # Whoever leads would not wake it either, by the same configuration.
    told.world.settings = NudgeSettings(enabled=False)
    assert told("p1").state == "off"
    assert "`nudge.enabled` is off" in told("p1").text


async def test_a_pod_that_was_woken_rests_until_then(told: Told) -> None:
    told.world.refuse("p1")
    told.world.heal()
    assert told("p1").before is None, "nobody has looked since"
    await told.world.nudges.wake()
    assert told("p1").state == "resting"
    assert told.left_s("p1") == pytest.approx(AGAIN_S)
    told.world.clock.advance(4.0)
    assert told.left_s("p1") == pytest.approx(AGAIN_S - 4.0)
    told.world.clock.advance(6.1)
    # It is not refused any more, and kube-scheduler has not asked.
    assert told("p1").state == "not_refused"
    assert "Nothing of ours is known to hold it" in told("p1").text


@pytest.mark.parametrize("offset_s", [0.0, None, 3600.0])
@pytest.mark.parametrize("ahead_s", [-3, 100])
def test_a_pod_that_another_replica_has_woken_rests_by_the_server_s_clock(
    ahead_s: int, offset_s: float | None, told: Told
) -> None:
    at_unix_s = int(told.world.clock.unix_s()) + ahead_s
    told.world.refuse("p1", annotations={RETRY_ANNOTATION: str(at_unix_s)})
    told.offset_s = offset_s
    waking = told("p1")
    assert waking.state == "resting"
    assert f"another replica woke it, at {format_instant(at_unix_s)}" in waking.text
    assert ("yet to come" in waking.text) == (ahead_s > 0)
    assert ("is not known yet" in waking.text) == (offset_s is None)
    assert ("ours differs by 3600 s" in waking.text) == (offset_s == 3600.0)
    assert told.left_s("p1") == pytest.approx(AGAIN_S + SKEW_S + min(ahead_s, 0))


@pytest.mark.parametrize(
    ("error", "want", "want_left_s", "want_text"),
    [
        (ApiRejected("no room", status=422), "rejected", 120.0, "takes no annotation"),
        (ApiForbidden("may not", status=403), "forbidden", AGAIN_S, "we may not patch this pod"),
        (ApiUnavailable("away"), "failed", AGAIN_S, "the API server failed"),
    ],
)
async def test_a_pod_that_could_not_be_woken_is_told_why_and_when_it_is_tried_again(
    error: ClusterError, want: str, want_left_s: float, want_text: str, told: Told
) -> None:
    told.world.cluster.never = {"p1": error}
    told.world.refuse("p1")
    told.world.heal()
    await told.world.nudges.wake()
    assert told("p1").state == want
    assert want_text in told("p1").text
    assert told.left_s("p1") == pytest.approx(want_left_s)
    # Its turn has come again.
    told.world.clock.advance(want_left_s + 0.1)
    assert told("p1").state == "soon"
    # Others are not held up by it, and once it is woken nothing is held against it.
    told.world.cluster.never.clear()
    await told.world.nudges.wake()
    assert told("p1").state == "resting"


@pytest.mark.parametrize(
    ("error", "want", "want_text", "pause_s"),
    [
        (ApiForbidden("may not", status=403), "forbidden", "the verb `patch` on `pods`", 60.0),
        (ApiUnavailable("away"), "unanswered", "none of the last pods", 1.0),
    ],
)
async def test_where_nobody_can_be_woken_that_is_said_of_each_until_it_is_tried_again(
    error: ClusterError,
    want: str,
    want_text: str,
    pause_s: float,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nudges, "REFUSED_AGAIN_S", 60.0)
    monkeypatch.setattr(nudges, "FAILED_AGAIN_S", 1.0)
    for index in range(nudges.SEVERAL):
        told.world.refuse(f"p{index}")
        told.world.cluster.never[f"p{index}"] = error
    told.world.refuse("large", 8)
    told.world.heal()
    seen: list[Waking] = []

    async def look(delay_s: float) -> None:
        if delay_s == pause_s:
            seen.append(told("large"))

    monkeypatch.setattr(asyncio, "sleep", look)
    await told.world.nudges.wake()
    [waking] = seen
    assert waking.state == want
    assert want_text in waking.text
    assert waking.until_unix_s == pytest.approx(told.world.clock.unix_s() + pause_s)


def test_a_pod_whose_annotations_are_full_is_told_so_before_anybody_tries(told: Told) -> None:
    # One digit more, and there is none for the instant.
    for room, want in ((len(RETRY_ANNOTATION) + 10, "soon"), (len(RETRY_ANNOTATION) + 9, "no_room")):
        name = f"p{room}"
        told.world.refuse(name, annotations={"notes": "x" * (MOST_BYTES - len("notes") - room)})
        assert told(name).state == want
    assert f"at most {MOST_BYTES:,} bytes" in told(name).text
    # What stands there already is replaced.
    said = {
        RETRY_ANNOTATION: "1" * 10,
        "notes": "x" * (MOST_BYTES - len("notes") - len(RETRY_ANNOTATION) - 10),
    }
    told.world.refuse("again", annotations=said)
    assert told("again").state == "soon"


async def test_a_pod_that_fits_is_told_how_many_are_before_it(told: Told) -> None:
    told.world.settings = NudgeSettings(most_per_s=2)
    for index in range(5):
        told.world.refuse(f"p{index}", 1 + index % 2)
    told.world.heal()
    # It is found who fits; nobody is woken.
    told.world.leads = True
    await told.world.nudges._find()
    assert [told(f"p{index}").before for index in range(5)] == [0, 1, 2, 3, 4]
    assert told("p0").state == "soon"
    assert "the next" in told("p0").text
    queued = told("p4")
    assert queued.state == "queued"
    assert re.search(r"^4 that fit, too, are before it .* 2 a second are woken", queued.text)
    assert told.left_s("p4") == pytest.approx(2.0)
    assert "1 that fit, too, is before it" in told("p1").text


def see_refused(world: World, name: str, words: str, **more: Any) -> Pod:
    pod = make_pod(name, refused=words, **more)
    see_pod(world.store, pod, world.clock.mono_s())
    return pod


def test_of_another_scheduler_s_pod_nothing_is_said_that_only_ours_do(told: Told) -> None:
    told.ours = ("wattbalance",)
    see_pod(told.world.store, make_pod("theirs"), told.world.clock.mono_s())
    assert told("theirs").state == "stranger"
    assert "none of our scheduler_names" in told("theirs").text
    assert "is woken" not in told("theirs").text
    assert "kube-scheduler" not in told("theirs").text
    # It asked us all the same.
    told.world.refuse("theirs")
    assert told("theirs").state == "soon"


async def test_a_pod_that_somebody_else_refused_is_known_by_its_status(told: Told) -> None:
    see_refused(told.world, "theirs", SICK_NODE)
    see_refused(told.world, "untold", "0/1 nodes are available: 1 Insufficient cpu.")
    assert told("theirs").state == "soon", "it is found within a second"
    assert told("untold").state == "not_refused"
    see_refused(told.world, "unbound", f"{SICK_NODE} {BIND_IS_OFF}it is off")
    assert told("unbound").state == "no_binder"
    assert "`extender.bind` is off" in told("unbound").text
    told.world.nudges.binds = True
    assert told("unbound").state == "soon"


def test_a_pod_that_is_promised_a_node_is_told_that(told: Told) -> None:
    see_node(told.world.store, "n2")
    pod = see_refused(told.world, "p1", "")
    request = told.world.store.request(pod, 0.0, told.world.decider.profile_facts)
    rows, clock = all_rows(told.world.store), told.world.clock
    assert told.world.decider.place(request, rows, clock.mono_s(), clock.unix_s()).result == "placed"
    assert told("p1").state == "promised"


def test_a_pod_beyond_those_that_are_remembered_is_told_so(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nudges, "MOST_REFUSED", 1)
    told.world.refuse("p1")
    see_refused(told.world, "p2", SICK_NODE)
    assert [told(name).state for name in ("p1", "p2")] == ["soon", "too_many"]
