"""What the tests of the bus share: a handler that remembers, payloads, and running loops for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from scheduler.telemetry.sample import (
    SCHEMA_VERSION,
    GpuInventory,
    Inventory,
    Sample,
    encode,
    inventory_hash,
)

# How long to wait for what must come. Long, since shared machines stall; nothing is measured by it.
PATIENCE_S = 120.0


class Collector:
    """A TelemetryHandler that remembers everything."""

    def __init__(self) -> None:
        self.inventories: list[tuple[str, str, Inventory]] = []
        self.cleared: list[str] = []
        self.taken: list[tuple[str, Sample]] = []
        self.statuses: list[tuple[str, bool]] = []
        self.drops: Counter[str] = Counter()
        self.batches: list[int] = []

    def inventory(self, node: str, payload_hash: str, inventory: Inventory, now_mono_s: float) -> None:
        assert now_mono_s > 0
        self.inventories.append((node, payload_hash, inventory))

    def inventory_cleared(self, node: str, now_mono_s: float) -> None:
        assert now_mono_s > 0
        self.cleared.append(node)

    def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        self.batches.append(len(batch))
        self.taken.extend((node, sample) for node, sample, _ in batch)

    def status(self, node: str, online: bool, now_mono_s: float) -> None:
        assert now_mono_s > 0
        self.statuses.append((node, online))

    def dropped(self, reason: str, count: int = 1) -> None:
        self.drops[reason] += count

    def seqs(self, node: str = "n1") -> list[int]:
        return [sample.seq for of, sample in self.taken if of == node]


def make_inventory(node: str = "n1", gpus: int = 2, **fields: Any) -> bytes:
    """Encode an inventory."""
    uuids = [f"GPU-{node}-{index}" for index in range(gpus)]
    found = [GpuInventory(uuid=uuid, model="Test GPU", index=index) for index, uuid in enumerate(uuids)]
    return encode(Inventory(v=SCHEMA_VERSION, node=node, gpus=found, **fields))


def make_sample(node: str = "n1", seq: int = 0, gpus: int = 2, **fields: Any) -> bytes:
    """Encode a sample that refers to `make_inventory(node, gpus)`, as far as `fields` do not say otherwise."""
    whole: dict[str, Any] = {
        "v": SCHEMA_VERSION,
        "node": node,
        "agent": "agent-1",
        "boot": "boot-1",
        "seq": seq,
        "unix_s": 1_700_000_000.0,
        "span_s": 1.0,
        "inventory": inventory_hash(make_inventory(node, gpus)),
        "state": ["ok"] * gpus,
        "power_w": [100.0] * gpus,
        "util_frac": [0.5] * gpus,
        "energy_j": [1e6] * gpus,
    }
    return encode(Sample(**(whole | fields)))


@contextlib.asynccontextmanager
async def running(*loops: Coroutine[Any, Any, object]) -> AsyncIterator[list[asyncio.Task[object]]]:
    """Run endless loops during the block; one that fails ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()


async def eventually(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds; fails if it does not."""
    async with asyncio.timeout(patience_s):
        while not holds():
            await asyncio.sleep(0.01)
