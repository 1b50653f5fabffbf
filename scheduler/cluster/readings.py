"""Hands telemetry to the store, and counts what was dropped on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scheduler.cluster.store import Store
from scheduler.telemetry.sample import Inventory, Sample


class StoreHandler:
    """TelemetryHandler over the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.beside: Store | None = None
        """Another store that is told the same; None if there is none."""
        self.drops: Counter[str] = Counter()

    def inventory(self, node: str, payload_hash: str, inventory: Inventory, now_mono_s: float) -> None:
        """What a node has."""
        self._store.see_inventory(node, inventory)
        if self.beside is not None:
            self.beside.see_inventory(node, inventory)

    def inventory_cleared(self, node: str, now_mono_s: float) -> None:
        """Nobody says any more what a node has."""
        self._store.forget_inventory(node)
        if self.beside is not None:
            self.beside.forget_inventory(node)

    def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        """Readings of some nodes."""
        self._store.see_samples(batch)
        if self.beside is not None:
            self.beside.see_samples(batch)

    def status(self, node: str, online: bool, now_mono_s: float) -> None:  # noqa: FBT001 - the drain's protocol
        """An agent came or went."""
        self._store.see_status(node, online=online)
        if self.beside is not None:
            self.beside.see_status(node, online=online)

    def dropped(self, reason: str, count: int = 1) -> None:
        """Messages that were not used."""
        self.drops[reason] += count
