"""Who sends what cannot be used is named, and never often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.core.clock import ManualClock
from scheduler.telemetry.complaints import MOST_DETAIL, MOST_NAME, MOST_NAMED, Complaints
from scheduler.telemetry.drain import Drain
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.mailbox import MOST_COUNTS, Mailbox
from scheduler.telemetry.sample import MOST_PAYLOAD_BYTES
from tests.telemetry.bus_tools import Collector, eventually, make_inventory, make_sample, running


class Lines:
    """What was logged, field by field."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self, *fields: str) -> list[tuple[Any, ...]]:
        kvs: list[dict[str, Any]] = [record.kv for record in self._caplog.records]  # type: ignore[attr-defined]  # ours
        assert all(record.levelno == logging.WARNING for record in self._caplog.records)
        self._caplog.clear()
        return [tuple(each.get(field) for field in fields) for each in kvs]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    with caplog.at_level(logging.INFO, "scheduler.telemetry"):
        yield Lines(caplog)


def test_the_first_is_told_at_once_and_what_follows_once_a_minute(lines: Lines) -> None:
    complaints = Complaints()
    for second in range(150):
        complaints.note("n1", "samples", "garbage", f"number {second}", float(second))
        complaints.tell(float(second))
        want = {0: [(1, "number 0")], 60: [(60, "number 60")], 120: [(60, "number 120")]}
        assert lines.take("count", "detail") == want.get(second, []), second


def test_each_node_and_each_reason_has_a_line_of_its_own(lines: Lines) -> None:
    complaints = Complaints()
    for node, reason in (("n1", "garbage"), ("n1", "version"), ("n2", "garbage"), ("n1", "garbage")):
        complaints.note(node, "samples", reason, "", 0.0)
    assert lines.take("node", "reason", "kind", "count") == [
        ("n1", "garbage", "samples", 1),
        ("n1", "version", "samples", 1),
        ("n2", "garbage", "samples", 1),
    ]
    complaints.tell(60.0)
    assert lines.take("node", "count") == [("n1", 1)], "of the others nothing came since"
    complaints.tell(120.0)
    assert not lines.take("node")
    assert not len(complaints)


def test_made_up_names_fill_neither_log_nor_memory(lines: Lines) -> None:
    complaints = Complaints()
    for index in range(3 * MOST_NAMED):
        complaints.note(f"{index}" + "x" * 100_000, "samples", "garbage", "y" * 100_000, 0.0)
    told = lines.take("node", "detail")
    assert len(told) == len(complaints) == MOST_NAMED
    assert {(len(node), len(detail)) for node, detail in told} == {(MOST_NAME, MOST_DETAIL)}
    complaints.tell(60.0)
    assert lines.take("node", "count") == [(None, 2 * MOST_NAMED)]
    complaints.note("n1", "samples", "garbage", "", 61.0)
    assert lines.take("node") == [("n1",)], "there is room again"


def test_a_name_cannot_write_to_a_terminal(lines: Lines) -> None:
    Complaints().note("\x1b[2J\nn1", "samples", "garbage", "\x07", 0.0)
    assert lines.take("node", "detail") == [("'\\x1b[2J\\nn1'", "'\\x07'")]


def test_what_is_counted_before_it_is_told_is_bounded_too() -> None:
    mailbox = Mailbox("c1", ManualClock())
    payload = b"x" * (MOST_PAYLOAD_BYTES + 1)
    for index in range(2 * MOST_COUNTS):
        mailbox.put(f"wattbalance/v1/c1/nodes/{index}{'x' * 1000}/samples", payload, retained=False)
    counts = mailbox.take_counts()
    assert len(counts) == MOST_COUNTS + 1
    assert sum(count for *_, count in counts) == 2 * MOST_COUNTS
    assert max(len(node) for _, node, _, _ in counts) == MOST_NAME


async def test_every_way_for_a_node_to_be_refused_names_it(lines: Lines) -> None:
    collector, clock = Collector(), ManualClock()
    mailbox = Mailbox("c1", clock)
    drain = Drain(mailbox, Intake(), collector, clock, linger_s=0.0)
    root = "wattbalance/v1/c1/nodes"
    for node, kind, payload, retained in (
        ("good", "inventory", make_inventory("good"), False),
        ("good", "samples", make_sample("good", seq=1), False),
        ("bad", "samples", b"garbage", False),
        ("worse", "inventory", b"garbage", False),
        ("worst", "status", b"banana", False),
        ("large", "samples", b"x" * (MOST_PAYLOAD_BYTES + 1), False),
        ("kept", "samples", make_sample("kept"), True),
    ):
        mailbox.put(f"{root}/{node}/{kind}", payload, retained=retained)
    mailbox.put("elsewhere", b"", retained=False)
    async with running(drain.run()):
        await eventually(lambda: sum(collector.drops.values()) == 6)
    assert Counter(lines.take("node", "kind", "reason", "count")) == Counter(
        {
            ("bad", "samples", "garbage", 1),
            ("worse", "inventory", "garbage", 1),
            ("worst", "status", "garbage", 1),
            ("large", "samples", "too_large", 1),
            ("kept", "samples", "old_sequence", 1),
        }
    )
    assert collector.seqs("good") == [1]
