"""From waiting payloads to the handler, in turns short enough to hold nothing else up."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn, Protocol

from scheduler.core.errors import BadMessage
from scheduler.telemetry.complaints import Complaints
from scheduler.telemetry.topics import OFFLINE, ONLINE, SAMPLES, STATUS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.core.clock import Clock
    from scheduler.telemetry.intake import Intake
    from scheduler.telemetry.mailbox import Mailbox
    from scheduler.telemetry.sample import Inventory, Sample

_log = logging.getLogger(__name__)


class TelemetryHandler(Protocol):
    """What the daemon does with telemetry. Called from one task, never concurrently; must not block."""

    def inventory(self, node: str, payload_hash: str, inventory: Inventory, now_mono_s: float) -> None:
        """Take in what a node has; comes again, unchanged, whenever its agent reconnects."""
        ...

    def inventory_cleared(self, node: str, now_mono_s: float) -> None:
        """Take in that nobody says any more what a node has; it is unknown at once."""
        ...

    def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        """Take in samples: (node, sample, monotonic instant of receipt), at most one per node.

        If it raises, it is called again with each sample by itself.
        """
        ...

    def status(self, node: str, online: bool, now_mono_s: float) -> None:  # noqa: FBT001  # Our own seam.
        """Take in that an agent came or went; a node that went is unknown at once."""
        ...

    def dropped(self, reason: str, count: int = 1) -> None:
        """Count messages that were not used."""
        ...


class Drain:
    """Takes messages from the mailbox, lets the intake judge them and hands on what is left."""

    def __init__(
        self,
        mailbox: Mailbox,
        intake: Intake,
        handler: TelemetryHandler,
        clock: Clock,
        *,
        turn_s: float = 0.000_35,
        linger_s: float = 0.02,
    ) -> None:
        """Prepare.

        Args:
            mailbox: Where messages wait.
            intake: Judges them.
            handler: Gets what stands.
            clock: Measures the turns.
            turn_s: How long decoding and handling may hold the loop at a time (DESIGN 4.3).
            linger_s: How long messages gather before they are decoded: one array assignment for fifty nodes
                costs little more than for one.
        """
        self._mailbox = mailbox
        self._intake = intake
        self._handler = handler
        self._clock = clock
        self._turn_s = turn_s
        self._linger_s = linger_s
        self._complaints = Complaints()
        self._batch: list[tuple[str, Sample, float]] = []
        self.received = 0
        """Samples that the handler took."""
        self.last_accepted_mono_s: float | None = None
        """When the newest message that was of use came in; None: never."""

    async def run(self) -> NoReturn:
        """Hand over what comes in, for ever."""
        while True:
            await self._mailbox.wait()
            await asyncio.sleep(self._linger_s)
            # What comes in meanwhile gathers for the next round: chasing each message would mean batches of one.
            left = self._mailbox.waiting
            while self._mailbox.has_state or self._batch or (left > 0 and self._mailbox.waiting):
                before = self._mailbox.waiting
                self.turn()
                left -= max(before - self._mailbox.waiting, 0)
                await asyncio.sleep(0)
            self._tell_drops(self._clock.mono_s())

    def turn(self) -> None:
        """Use up one turn: for handing on what was decoded, else for state, and for decoding samples.

        What fits into a turn of decoding takes less than another to hand on: most of that is the same for one
        sample as for thirty. It goes first, since an inventory that waits may be another than the samples'.
        """
        if self._batch:
            batch, self._batch = self._batch, []
            self._hand_over(batch)
            return
        until_mono_s = self._clock.mono_s() + self._turn_s
        while (taken := self._mailbox.take_state()) is not None:
            self._take_state(*taken)
            if self._clock.mono_s() >= until_mono_s:
                return
        began_mono_s = self._clock.mono_s()
        unix_offset_s = self._clock.unix_s() - began_mono_s
        while (taken_sample := self._mailbox.take_sample()) is not None:
            node, payload, at_mono_s = taken_sample
            try:
                sample = self._intake.sample(node, payload, at_mono_s, at_mono_s + unix_offset_s)
                self._batch.append((node, sample, at_mono_s))
            except BadMessage as error:
                self._refuse(node, SAMPLES, error, at_mono_s)
            if self._clock.mono_s() >= until_mono_s:
                break

    def _take_state(self, node: str, kind: str, payload: bytes, at_mono_s: float) -> None:
        try:
            if kind == STATUS:
                self._handler.status(node, _is_online(payload), at_mono_s)
            elif not payload:
                # Somebody cleared a retained inventory: the node is gone for good.
                self._intake.forget(node)
                self._handler.inventory_cleared(node, at_mono_s)
            else:
                payload_hash, inventory = self._intake.inventory(node, payload, at_mono_s)
                self._handler.inventory(node, payload_hash, inventory, at_mono_s)
        except BadMessage as error:
            self._refuse(node, kind, error, at_mono_s)
        except Exception:  # noqa: BLE001  # Nothing that comes in may stop the daemon (DESIGN 5.7).
            _log.exception("handling %s of %s failed", kind, node)
            self._handler.dropped("handler_failed")
        else:
            self._accept(at_mono_s)

    def _hand_over(self, batch: list[tuple[str, Sample, float]]) -> None:
        if not batch:
            return
        try:
            self._handler.samples(batch)
        except Exception:  # noqa: BLE001  # As above.
            _log.exception("handling %d samples failed", len(batch))
            if len(batch) == 1:
                self._handler.dropped("handler_failed")
                return
            # One bad sample must not cost its neighbours.
            for item in batch:
                self._hand_over([item])
        else:
            self.received += len(batch)
            self._accept(max(at_mono_s for _, _, at_mono_s in batch))

    def _accept(self, at_mono_s: float) -> None:
        # Not what is refused: garbage, or another's samples, would make a silent fleet look as if it talked.
        if self.last_accepted_mono_s is None or at_mono_s > self.last_accepted_mono_s:
            self.last_accepted_mono_s = at_mono_s

    def _refuse(self, node: str, kind: str, error: BadMessage, at_mono_s: float) -> None:
        self._complaints.note(
            node, kind, error.reason, str(error).removeprefix(f"{error.reason}: "), at_mono_s
        )
        self._handler.dropped(error.reason)

    def _tell_drops(self, now_mono_s: float) -> None:
        for reason, node, kind, count in self._mailbox.take_counts():
            if node:
                self._complaints.note(node, kind, reason, "", now_mono_s, count=count)
            self._handler.dropped(reason, count)
        self._complaints.tell(now_mono_s)


def _is_online(payload: bytes) -> bool:
    # Empty: somebody cleared the retained message.
    if payload not in {ONLINE, OFFLINE, b""}:
        raise BadMessage("garbage", repr(payload[:20]))
    return payload == ONLINE
