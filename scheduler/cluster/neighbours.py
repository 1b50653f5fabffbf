"""How many pods of one controller are on each node, those promised to it among them. Pure; the store's own.

Counted by the pod's own controller, as events come. Which controllers belong together (the ReplicaSets of one
Deployment) is known only by and by, so whoever asks names all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.cluster.intents import controller_of
from scheduler.cluster.objects import Meta
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.snapshot import FloatColumn

# Promises that are over stay noted until somebody asks for their owner, or until they are most of what is noted.
NOTED = 64


class Neighbours:
    """Pods by controller and row."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations
        self._bound: dict[str, dict[int, int]] = {}
        """Controller -> row -> pods; neither is kept at zero."""
        self._promised: dict[str, dict[str, str]] = {}
        """Controller -> pod -> node; counts as long as the pod is promised that node."""
        self._noted = 0

    def add(self, pod: Meta, row: int) -> None:
        """A pod is on a node."""
        controller = controller_of(pod)
        if controller is not None:
            rows = self._bound.setdefault(controller.uid, {})
            rows[row] = rows.get(row, 0) + 1

    def remove(self, pod: Meta, row: int) -> None:
        """It is not any more; the same object that came."""
        controller = controller_of(pod)
        rows = self._bound.get(controller.uid) if controller is not None else None
        if controller is None or rows is None or row not in rows:
            return
        rows[row] -= 1
        if not rows[row]:
            del rows[row]
            if not rows:
                del self._bound[controller.uid]

    def promise(self, controller: str, uid: str, node: str) -> None:
        """A node was promised to a pod of this controller."""
        self._promised.setdefault(controller, {})[uid] = node
        self._noted += 1
        if self._noted > 2 * len(self._reservations) + NOTED:
            self._tidy()

    def _tidy(self) -> None:
        for controller in list(self._promised):
            self._of(controller)
        self._noted = sum(map(len, self._promised.values()))

    def _of(self, controller: str) -> dict[str, str]:
        """The promises of a controller's pods that still hold."""
        noted = self._promised.get(controller)
        if noted is None:
            return {}
        over = [uid for uid, node in noted.items() if not self._holds(uid, node)]
        for uid in over:
            del noted[uid]
        if not noted:
            del self._promised[controller]
        return noted

    def _holds(self, uid: str, node: str) -> bool:
        held = self._reservations.get(uid)
        return held is not None and held.node == node

    def counts(
        self,
        controllers: Sequence[str],
        uid: str,
        rows: int,
        row_of: Mapping[str, int],
        *,
        held_on: str = "",
    ) -> FloatColumn | None:
        """Pods of these controllers on each node, shape (rows,); None if there is none anywhere.

        Args:
            controllers: The pod's own and those that belong to it.
            uid: The pod, which does not count itself: neither what is promised to it, nor where it is.
            rows: How many there are.
            row_of: Rows of nodes by name.
            held_on: Where the pod is bound.
        """
        found: dict[int, int] = {}
        for controller in controllers:
            for row, pods in self._bound.get(controller, {}).items():
                found[row] = found.get(row, 0) + pods
            for other, node in self._of(controller).items():
                if other != uid and node in row_of:
                    found[row_of[node]] = found.get(row_of[node], 0) + 1
        own = row_of.get(held_on, -1)
        if own in found:
            found[own] -= 1
        if not any(found.values()):
            return None
        column = np.zeros(rows, np.float32)
        column[list(found)] = list(found.values())
        return column
