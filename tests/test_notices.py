"""What people are told of a pod by Kubernetes Events, and how often."""

from __future__ import annotations

import msgspec.structs
import pytest

from scheduler import notices
from scheduler.bindings import Binding, Past
from scheduler.cluster.events import MOST_NOTE_CHARS
from scheduler.cluster.intent import Fault
from scheduler.cluster.objects import Meta
from scheduler.cluster.port import EventNote
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import Reason
from scheduler.decision.decider import reason_texts
from scheduler.decision.record import DecisionRecord
from scheduler.notices import (
    ADVICE,
    BAD_ANNOTATION,
    MOST_REMEMBERED,
    NO_NODE_FITS,
    OTHER_AGAIN_S,
    SAME_AGAIN_S,
    Notices,
)
from tests.test_bindings import record


def refused(uid: str = "u", /, **reasons: int) -> DecisionRecord:
    """A record of a filter that left no node; reasons by the names of `Reason`."""
    texts = {Reason[name].text: count for name, count in reasons.items()}
    return msgspec.structs.replace(record(uid, result="no_fit"), reasons=texts)


def binding(*, daemon: bool = False) -> Binding:
    return Binding(
        uid="u", namespace="team-a", name="p", node="n1", scheduler="s", decided=False, daemon=daemon
    )


class World:
    """Notices that write into a list."""

    def __init__(self, *, leads: bool = True) -> None:
        self.clock = ManualClock()
        self.written: list[EventNote] = []
        self.notices = Notices(self.written.append, lambda: leads, self.clock)


def test_a_pod_that_fits_nowhere_is_told_why_and_what_to_do() -> None:
    world = World()
    world.notices.no_fit(refused(QUARANTINED=3, BROKEN_GPUS=1))
    [note] = world.written
    assert (note.kind, note.namespace, note.name, note.uid) == ("Pod", "team-a", "u", "u")
    assert (note.reason, note.warning) == (NO_NODE_FITS, True)
    for part in ("3: node in quarantine", "1: not enough healthy GPUs", "wattbalance.io/quarantine", "batch"):
        assert part in note.note


def test_waiting_for_a_pools_turn_is_no_warning() -> None:
    world = World()
    world.notices.no_fit(refused(WAITING_FOR_POOL=2))
    world.notices.no_fit(refused("v", WAITING_FOR_POOL=2, QUARANTINED=1))
    assert [note.warning for note in world.written] == [False, True]


def test_nodes_that_nobody_knows_are_a_reason_too() -> None:
    world = World()
    world.notices.no_fit(refused(UNKNOWN_NODE=2))
    world.notices.no_fit(refused("v"))
    unknown, none = world.written
    assert unknown.warning
    assert "2: node unknown to wattbalance" in unknown.note
    assert none.warning
    assert "offered none" in none.note


def test_the_same_is_said_again_only_after_minutes() -> None:
    world = World()
    for _ in range(10):
        world.notices.no_fit(refused(QUARANTINED=3))
        # Another count is the same reason.
        world.notices.no_fit(refused(QUARANTINED=2))
    assert len(world.written) == 1
    world.clock.advance(SAME_AGAIN_S)
    world.notices.no_fit(refused(QUARANTINED=3))
    assert len(world.written) == 2


def test_other_reasons_are_said_sooner_but_flapping_ones_are_no_stream() -> None:
    world = World()
    world.notices.no_fit(refused(QUARANTINED=3))
    world.notices.no_fit(refused(BROKEN_GPUS=3))
    assert len(world.written) == 1
    for second in range(int(OTHER_AGAIN_S) * 4):
        world.clock.advance(1.0)
        world.notices.no_fit(refused(QUARANTINED=3) if second % 2 else refused(BROKEN_GPUS=3))
    # At the 31st, 62nd and 93rd second: each time the other one is told as soon as half a minute has passed.
    assert len(world.written) == 1 + 3
    assert world.written[0].about != world.written[1].about


def test_pods_do_not_share_their_limit() -> None:
    world = World()
    for number in range(5):
        world.notices.no_fit(refused(f"u{number}", QUARANTINED=1))
    assert len(world.written) == 5


def test_a_standby_says_nothing() -> None:
    world = World(leads=False)
    world.notices.no_fit(refused(QUARANTINED=1))
    world.notices.past(binding(), Past.NO_DECISION)
    assert not world.written


@pytest.mark.parametrize("why", list(Past))
def test_a_pod_placed_past_us_is_told_how(why: Past) -> None:
    world = World()
    world.notices.past(binding(), why)
    world.notices.past(binding(), why)
    [note] = world.written
    assert note.warning
    assert "n1" in note.note
    assert "{" not in note.note


def test_a_daemon_sets_pod_was_never_to_be_placed() -> None:
    world = World()
    world.notices.past(binding(daemon=True), Past.OTHER_SCHEDULER)
    assert not world.written


def test_memory_is_bounded() -> None:
    world = World()
    for number in range(MOST_REMEMBERED + 1):
        world.notices.no_fit(refused(f"u{number}", QUARANTINED=1))
    # The oldest has been forgotten, the newest has not.
    world.notices.no_fit(refused("u0", QUARANTINED=1))
    world.notices.no_fit(refused(f"u{MOST_REMEMBERED}", QUARANTINED=1))
    assert len(world.written) == MOST_REMEMBERED + 2


def test_what_was_said_again_just_now_is_not_what_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "MOST_REMEMBERED", 2)
    world = World()
    world.notices.no_fit(refused("a", QUARANTINED=1))
    world.notices.no_fit(refused("b", QUARANTINED=1))
    world.clock.advance(SAME_AGAIN_S)
    world.notices.no_fit(refused("a", QUARANTINED=1))
    world.notices.no_fit(refused("c", QUARANTINED=1))
    world.notices.no_fit(refused("a", QUARANTINED=1))
    assert [note.name for note in world.written] == ["a", "b", "a", "c"]


def test_every_reason_that_can_rule_a_node_out_has_advice_and_all_at_once_fit_into_a_note() -> None:
    assert set(ADVICE) == {reason.text for reason in Reason if reason is not Reason.FITS}
    world = World()
    world.notices.no_fit(refused(**{reason.name: 5000 for reason in Reason if reason.text}))
    assert len(world.written[0].note) <= MOST_NOTE_CHARS
    # Texts of pools begin with the reason's own.
    assert any(text == "waiting for pool dc-1" for text in reason_texts(["dc-1"]))


# --- annotations -----------------------------------------------------------------------------------------------------


def fault(key: str, where: str = "pod", message: str = "expected 40Gi, got 'lots'") -> Fault:
    return Fault(key=key, text="'lots'", where=where, message=message)


def pod_of(name: str) -> Meta:
    return Meta(name=name, namespace="team-a", uid=f"uid-{name}")


def test_all_bad_annotations_of_a_pod_are_one_warning() -> None:
    world = World()
    faults = (fault("gpu-memory"), fault("power", "deployment web"))
    for _ in range(3):
        world.notices.bad_annotations(pod_of("p"), faults)
    [note] = world.written
    assert (note.kind, note.namespace, note.name, note.uid) == ("Pod", "team-a", "p", "uid-p")
    assert (note.reason, note.warning) == (BAD_ANNOTATION, True)
    for part in (
        "wattbalance.io/gpu-memory (pod): expected 40Gi, got 'lots'",
        "wattbalance.io/power (deployment web)",
    ):
        assert part in note.note
    world.clock.advance(SAME_AGAIN_S)
    world.notices.bad_annotations(pod_of("p"), faults)
    assert len(world.written) == 2


def test_what_a_deployment_says_wrongly_is_told_on_one_of_its_pods() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.notices.bad_annotations(pod_of(name), (fault("power", "deployment web"),))
    assert [note.name for note in world.written] == ["a"]
    world.notices.bad_annotations(pod_of("b"), (fault("queue"), fault("power", "deployment web")))
    assert "power" not in world.written[-1].note
    world.notices.bad_annotations(pod_of("d"), (fault("power", "namespace team-a"),))
    assert [note.name for note in world.written] == ["a", "b", "d"]


def test_who_does_not_lead_tells_of_no_annotation() -> None:
    world = World(leads=False)
    world.notices.bad_annotations(pod_of("p"), (fault("power"),))
    assert not world.written
