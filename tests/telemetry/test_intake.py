"""Order, inventories and clocks."""

from __future__ import annotations

import pytest

from scheduler.core.errors import BadMessage
from scheduler.telemetry import intake as room
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.sample import Sample
from tests.telemetry.bus_tools import make_inventory, make_sample

UNIX_S = 1_700_000_000.0


@pytest.fixture
def intake() -> Intake:
    made = Intake()
    made.inventory("n1", make_inventory(), 990.0)
    return made


def take(intake: Intake, payload: bytes, mono_s: float = 1000.0, node: str = "n1") -> Sample:
    return intake.sample(node, payload, mono_s, UNIX_S)


def refusal(intake: Intake, payload: bytes, mono_s: float = 1000.0, node: str = "n1") -> str:
    with pytest.raises(BadMessage) as caught:
        take(intake, payload, mono_s, node)
    return caught.value.reason


def test_what_is_not_newer_than_the_newest_is_dropped(intake: Intake) -> None:
    for seq in (1, 2, 7):
        assert take(intake, make_sample(seq=seq)).seq == seq
    assert [refusal(intake, make_sample(seq=seq)) for seq in (7, 3)] == ["old_sequence"] * 2
    assert take(intake, make_sample(seq=8)).seq == 8


def test_a_restarted_agent_starts_anew_even_in_the_same_boot(intake: Intake) -> None:
    take(intake, make_sample(seq=500))
    assert take(intake, make_sample(seq=1, agent="agent-2")).seq == 1


def test_a_late_message_of_the_agent_before_does_not_take_over_again(intake: Intake) -> None:
    take(intake, make_sample(seq=500), mono_s=1000.0)
    take(intake, make_sample(seq=1, agent="agent-2"), mono_s=1001.0)
    assert refusal(intake, make_sample(seq=501), mono_s=1002.0) == "old_sequence"
    assert take(intake, make_sample(seq=2, agent="agent-2"), mono_s=1003.0).seq == 2


def test_an_agent_that_outlives_its_successor_is_heard_again(intake: Intake) -> None:
    take(intake, make_sample(seq=500), mono_s=1000.0)
    take(intake, make_sample(seq=1, agent="a stray one"), mono_s=1001.0)
    assert take(intake, make_sample(seq=512), mono_s=1001.0 + room.HANDOVER_S).seq == 512


def test_a_refused_sample_leaves_no_trace(intake: Intake) -> None:
    assert refusal(intake, make_sample(seq=99, inventory="0" * 16)) == "unknown_inventory"
    assert refusal(intake, make_sample(seq=99, gpus=3)) == "unknown_inventory"
    assert take(intake, make_sample(seq=1)).seq == 1


def test_a_sample_must_have_as_many_gpus_as_its_inventory(intake: Intake) -> None:
    two = take(intake, make_sample(seq=1)).inventory
    assert refusal(intake, make_sample(seq=2, gpus=3, inventory=two)) == "shape"


def test_a_stranger_is_unknown_and_its_garbage_is_garbage(intake: Intake) -> None:
    assert refusal(intake, make_sample("n9", seq=1), node="n9") == "unknown_inventory"
    assert refusal(intake, b"{", node="n9") == "garbage"


def test_an_agents_name_for_itself_is_short(intake: Intake) -> None:
    assert refusal(intake, make_sample(seq=1, agent="x" * 65)) == "range"
    assert take(intake, make_sample(seq=1, agent="x" * 64)).seq == 1


def test_a_changed_inventory_outdates_samples_of_the_old_one(intake: Intake) -> None:
    intake.inventory("n1", make_inventory(gpus=3), 995.0)
    assert refusal(intake, make_sample(seq=1, gpus=2)) == "unknown_inventory"
    assert take(intake, make_sample(seq=2, gpus=3)).seq == 2


def test_a_bad_inventory_leaves_the_good_one(intake: Intake) -> None:
    for payload, want in (
        (b"[]", "garbage"),
        (make_inventory("n2"), "node_mismatch"),
        (b"x" * 300_000, "too_large"),
    ):
        with pytest.raises(BadMessage) as caught:
            intake.inventory("n1", payload, 995.0)
        assert caught.value.reason == want
    assert take(intake, make_sample(seq=1)).seq == 1


@pytest.mark.parametrize(
    ("skew_s", "want_told"), [(3600.0, True), (-3600.0, True), (4.9, False), (0.0, False)]
)
def test_a_clock_that_is_off_is_told_and_its_sample_counts(
    intake: Intake, skew_s: float, want_told: bool
) -> None:
    assert take(intake, make_sample(seq=1, unix_s=UNIX_S + skew_s)).seq == 1
    assert intake.skewed_s == ({"n1": skew_s} if want_told else {})
    take(intake, make_sample(seq=2, unix_s=UNIX_S))
    assert intake.skewed_s == {}


def test_a_forgotten_node_is_a_stranger(intake: Intake) -> None:
    take(intake, make_sample(seq=1, unix_s=0.0))
    intake.forget("n1")
    assert intake.skewed_s == {}
    assert refusal(intake, make_sample(seq=2)) == "unknown_inventory"


def test_made_up_nodes_cannot_fill_the_memory(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_NODES", 1)
    with pytest.raises(BadMessage) as caught:
        intake.inventory("n2", make_inventory("n2"), 995.0)
    assert caught.value.reason == "too_many_nodes"
    intake.inventory("n1", make_inventory("n1"), 995.0)


def test_nodes_that_are_long_silent_make_room_for_new_ones(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_NODES", 2)
    intake.inventory("n2", make_inventory("n2"), 991.0)
    take(intake, make_sample("n2", seq=1, unix_s=0.0), 992.0, node="n2")
    # n1 came first and was heard last.
    take(intake, make_sample(seq=1), 1000.0)
    assert list(intake.skewed_s) == ["n2"]
    late = 992.0 + room.SILENT_S
    with pytest.raises(BadMessage, match="n3"):
        intake.inventory("n3", make_inventory("n3"), late - 0.1)
    intake.inventory("n3", make_inventory("n3"), late)
    assert intake.skewed_s == {}
    assert refusal(intake, make_sample("n2", seq=2), late, node="n2") == "unknown_inventory"
    assert take(intake, make_sample(seq=2), late).seq == 2
    assert take(intake, make_sample("n3", seq=1), late, node="n3").seq == 1
