"""Whether a message may be believed: order, inventory and the sender's clock. Pure; told the time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from scheduler.core.errors import BadMessage
from scheduler.telemetry.sample import (
    Inventory,
    Sample,
    decode_inventory,
    decode_sample,
    inventory_hash,
)

# A node's clock that is off by more than this is worth a person's attention; its samples count all the same.
MOST_SKEW_S = 5.0
# After another agent took over, messages of the one before it are late for this long; then it has come back.
HANDOVER_S = 10.0
# Nodes are remembered from their first inventory on. Ten times the largest cluster that Kubernetes supports.
MOST_NODES = 50_000
# Beyond that the one that was silent longest makes room, if it was silent for this long: many intervals of any agent,
# so that made-up nodes cannot push out those that talk.
SILENT_S = 60.0


@dataclass(slots=True)
class _Node:
    inventory: str = ""
    gpus: int = 0
    agent: str = ""
    agent_before: str = ""
    seq: int = -1
    taken_over_mono_s: float = 0.0
    heard_mono_s: float = 0.0


class Intake:
    """Decodes payloads of all nodes and refuses what is old, unknown or malformed.

    A refused message leaves no trace: what was known of the node stands. That a node's object has gone from the
    cluster is no reason to forget it: its agent may run on, and sends its inventory on connecting only.
    """

    def __init__(self) -> None:
        # Who was silent longest comes first. A plain dict walks over all keys that were taken out to find the first.
        self._nodes: OrderedDict[str, _Node] = OrderedDict()
        self.skewed_s: dict[str, float] = {}
        """Node -> how far its clock is ahead of ours; only nodes that are off by more than MOST_SKEW_S."""

    def inventory(self, node: str, payload: bytes, now_mono_s: float) -> tuple[str, Inventory]:
        """Decode an inventory and remember it as the node's present one.

        Args:
            node: As the topic says.
            payload: As received.
            now_mono_s: Instant of receipt.

        Returns:
            Its hash, and what it says.

        Raises:
            BadMessage: count it under `reason` and drop it.
        """
        inventory = decode_inventory(payload, node)
        known = self._nodes.get(node)
        if known is None:
            if len(self._nodes) >= MOST_NODES:
                self._make_room(node, now_mono_s)
            known = self._nodes[node] = _Node()
        self._hear(node, known, now_mono_s)
        known.inventory = inventory_hash(payload)
        known.gpus = len(inventory.gpus)
        return known.inventory, inventory

    def sample(self, node: str, payload: bytes, now_mono_s: float, now_unix_s: float) -> Sample:
        """Decode a sample, check its order and its inventory, and note the node's clock.

        Args:
            node: As the topic says.
            payload: As received.
            now_mono_s: Instant of receipt.
            now_unix_s: The same instant on the daemon's wall clock.

        Raises:
            BadMessage: count it under `reason` and drop it.
        """
        # Decoded even for a stranger, so that garbage is counted as garbage and not as a missing inventory.
        sample = decode_sample(payload, node)
        known = self._nodes.get(node)
        if known is None or sample.inventory != known.inventory:
            raise BadMessage("unknown_inventory", sample.inventory[:80])
        if len(sample.state) != known.gpus:
            raise BadMessage("shape", f"{len(sample.state)} GPUs, the inventory has {known.gpus}")
        if sample.agent == known.agent:
            if sample.seq <= known.seq:
                raise BadMessage("old_sequence", f"{sample.seq} after {known.seq}")
        else:
            if sample.agent == known.agent_before and now_mono_s - known.taken_over_mono_s < HANDOVER_S:
                raise BadMessage("old_sequence", "of the agent before")
            known.agent_before, known.agent = known.agent, sample.agent
            known.taken_over_mono_s = now_mono_s
        known.seq = sample.seq
        self._hear(node, known, now_mono_s)
        self._note_clock(node, sample.unix_s - now_unix_s)
        return sample

    def forget(self, node: str) -> None:
        """Drop what is known of a node: its retained inventory was cleared, or it must make room."""
        self._nodes.pop(node, None)
        self.skewed_s.pop(node, None)

    def _hear(self, node: str, known: _Node, now_mono_s: float) -> None:
        known.heard_mono_s = now_mono_s
        self._nodes.move_to_end(node)

    def _make_room(self, newcomer: str, now_mono_s: float) -> None:
        silent = next(iter(self._nodes))
        if now_mono_s - self._nodes[silent].heard_mono_s < SILENT_S:
            raise BadMessage("too_many_nodes", newcomer[:80])
        self.forget(silent)

    def _note_clock(self, node: str, skew_s: float) -> None:
        if abs(skew_s) > MOST_SKEW_S:
            self.skewed_s[node] = skew_s
        else:
            self.skewed_s.pop(node, None)
