"""The mailbox and the turns, without a broker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scheduler.core.clock import ManualClock
from scheduler.telemetry.drain import Drain
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.mailbox import Mailbox
from scheduler.telemetry.sample import Sample
from tests.telemetry.bus_tools import Collector, eventually, make_inventory, make_sample, running

ROOT = "wattbalance/v1/c1/nodes"


class Desk:
    """A mailbox and what empties it."""

    def __init__(
        self,
        handler: Collector | None = None,
        most_bytes: int = 10_000_000,
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.collector = handler or Collector()
        self.mailbox = Mailbox("c1", self.clock, most_bytes)
        self.drain = Drain(self.mailbox, Intake(), self.collector, self.clock, linger_s=0.0)

    def put(self, node: str, kind: str, payload: object) -> None:
        self.mailbox.put(f"{ROOT}/{node}/{kind}", payload, retained=False)

    def life(self) -> float | None:
        return self.drain.last_accepted_mono_s

    async def settle(self) -> None:
        async with running(self.drain.run()):
            await eventually(lambda: not self.mailbox and not self.drain._batch and not self.mailbox._counts)


async def test_of_several_samples_of_a_node_the_newest_is_kept_and_the_rest_counted() -> None:
    desk = Desk()
    desk.put("n1", "inventory", make_inventory())
    for seq in (1, 2, 3):
        desk.put("n1", "samples", make_sample(seq=seq))
    await desk.settle()
    assert desk.collector.seqs() == [3]
    assert desk.collector.drops == {"overwritten": 2}


async def test_inventories_go_ahead_of_samples_that_came_before_them() -> None:
    desk = Desk()
    for node in ("n1", "n2", "n3"):
        desk.put(node, "samples", make_sample(node, seq=1))
    for node in ("n1", "n2", "n3"):
        desk.put(node, "inventory", make_inventory(node))
    await desk.settle()
    assert [node for node, _ in desk.collector.taken] == ["n1", "n2", "n3"]
    assert not desk.collector.drops


async def test_samples_come_in_batches() -> None:
    desk = Desk()
    for node in ("n1", "n2", "n3"):
        desk.put(node, "inventory", make_inventory(node))
        desk.put(node, "samples", make_sample(node, seq=1))
    await desk.settle()
    assert desk.collector.batches == [3]


async def test_a_turn_ends_when_its_time_is_over() -> None:
    class Passing(ManualClock):
        """Each look at it costs 0.1 ms: a sample is looked at once."""

        def mono_s(self) -> float:
            self.advance(0.000_1)
            return super().mono_s()

    desk = Desk(clock=Passing())
    nodes = [f"n{index}" for index in range(100)]
    for node in nodes:
        desk.put(node, "inventory", make_inventory(node))
        desk.put(node, "samples", make_sample(node, seq=1))
    await desk.settle()
    assert len(desk.collector.taken) == len(nodes)
    # Under 0.5 ms, in steps of 0.1 ms.
    assert max(desk.collector.batches) <= 5


async def test_a_handler_that_fails_on_one_sample_loses_only_that_one() -> None:
    class Picky(Collector):
        def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
            if any(node == "n2" for node, _, _ in batch):
                raise OverflowError
            super().samples(batch)

    desk = Desk(Picky())
    for node in ("n1", "n2", "n3"):
        desk.put(node, "inventory", make_inventory(node))
        desk.put(node, "samples", make_sample(node, seq=1))
    await desk.settle()
    assert [node for node, _ in desk.collector.taken] == ["n1", "n3"]
    assert desk.collector.drops == {"handler_failed": 1}
    assert desk.drain.received == 2


async def test_a_handler_that_fails_on_state_does_not_end_the_loop() -> None:
    class Failing(Collector):
        def status(self, node: str, online: bool, now_mono_s: float) -> None:
            raise KeyError(node)

    desk = Desk(Failing())
    desk.put("n1", "status", b"online")
    desk.put("n2", "inventory", make_inventory("n2"))
    await desk.settle()
    assert desk.collector.drops == {"handler_failed": 1}
    assert len(desk.collector.inventories) == 1


async def test_a_cleared_inventory_is_told_and_samples_of_it_are_refused() -> None:
    desk = Desk()
    desk.put("n1", "inventory", make_inventory())
    await desk.settle()
    desk.put("n1", "inventory", b"")
    desk.put("n1", "samples", make_sample(seq=1))
    await desk.settle()
    assert desk.collector.cleared == ["n1"]
    assert desk.collector.drops == {"unknown_inventory": 1}


async def test_topics_that_are_not_ours_and_payloads_that_are_no_bytes_are_garbage() -> None:
    desk = Desk()
    for topic in (
        "",
        "wattbalance/v1/c2/nodes/n1/samples",
        f"{ROOT}//samples",
        f"{ROOT}/n1/caps",
        f"{ROOT}/n1",
    ):
        desk.mailbox.put(topic, b"{}", retained=False)
    desk.put("n1", "samples", None)
    await desk.settle()
    assert desk.collector.drops == {"garbage": 6}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("samples", b"garbage"),
        ("samples", make_sample(seq=1, inventory="another")),
        ("samples", make_sample("n2", seq=9)),
        ("inventory", b"{}"),
        ("status", b"maybe"),
        ("caps", b"{}"),
        ("samples", None),
    ],
)
async def test_what_is_refused_does_not_count_as_a_sign_of_life(kind: str, payload: object) -> None:
    desk = Desk()
    desk.put("n1", kind, payload)
    await desk.settle()
    assert desk.life() is None
    desk.clock.advance(10.0)
    want_mono_s = desk.clock.mono_s()
    desk.put("n1", "inventory", make_inventory())
    await desk.settle()
    assert desk.life() == want_mono_s
    desk.clock.advance(10.0)
    desk.put("n1", kind, payload)
    await desk.settle()
    assert desk.life() == want_mono_s


async def test_every_kind_that_is_taken_counts_as_a_sign_of_life() -> None:
    desk = Desk()
    for kind, payload in (
        ("inventory", make_inventory()),
        ("samples", make_sample(seq=1)),
        ("status", b"online"),
    ):
        desk.clock.advance(1.0)
        want_mono_s = desk.clock.mono_s()
        desk.put("n1", kind, payload)
        await desk.settle()
        assert desk.life() == want_mono_s


async def test_a_message_on_which_the_handler_fails_counts_as_none() -> None:
    class Failing(Collector):
        def status(self, node: str, online: bool, now_mono_s: float) -> None:
            raise KeyError(node)

    desk = Desk(Failing())
    desk.put("n1", "status", b"online")
    await desk.settle()
    assert desk.life() is None


async def test_the_mailbox_is_bounded_in_bytes_and_has_its_room_back_when_emptied() -> None:
    desk = Desk(most_bytes=3000)
    for index in range(100):
        desk.put(f"n{index}", "samples", b"x" * 600)
    await desk.settle()
    # Three fit (600 bytes and 400 for the entry); they are refused as garbage, the rest was never kept.
    assert desk.collector.drops == {"overwritten": 97, "garbage": 3}
    assert desk.mailbox._bytes == 0
    desk.put("n1", "inventory", make_inventory())
    await desk.settle()
    assert len(desk.collector.inventories) == 1
    assert desk.mailbox._bytes == 0
