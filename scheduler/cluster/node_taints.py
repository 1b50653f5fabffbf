"""Taints of nodes: few sets of them, and which set each node has. Pure; the store's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.preference_objects import Taint
from scheduler.cluster.preferences import FORBIDDING, PREFER_NO_SCHEDULE, tolerates
from scheduler.core.preferences import Toleration

# Sets of nodes that are gone are dropped when there are more of them than nodes.
SPARE_SETS = 64
# not-ready, unreachable, unschedulable, disk-pressure …
KUBERNETES_OWN = "node.kubernetes.io/"

TaintSet = tuple[Taint, ...]


class NodeTaints:
    """Sets of taints by row."""

    def __init__(self) -> None:
        self._sets: dict[TaintSet, int] = {(): 0}
        self._set_of: NDArray[np.int32] = np.zeros(0, np.int32)
        self._nodes: list[int] = [0]
        """How many nodes have each set; of the first, of none, it is not counted."""
        self.soft = 0
        """How many nodes have a taint that only asks to stay away."""

    def see(self, row: int, taints: Sequence[Taint] | None) -> None:
        """A node has these taints now."""
        if row >= len(self._set_of):
            if not taints:
                return
            self._grow(row + 1)
        if not taints and not self._set_of[row]:
            return
        found = tuple(taints or ())
        number = self._sets.get(found)
        if number is None:
            self._tidy()
            number = self._sets[found] = len(self._sets)
            self._nodes.append(0)
        before = int(self._set_of[row])
        if number != before:
            self.soft += _is_soft(found) - _is_soft(list(self._sets)[before])
            self._nodes[before] -= bool(before)
            self._nodes[number] += bool(number)
            self._set_of[row] = number

    def _grow(self, rows: int) -> None:
        grown = np.zeros(max(rows, len(self._set_of) + len(self._set_of) // 4), np.int32)
        grown[: len(self._set_of)] = self._set_of
        self._set_of = grown

    def _tidy(self) -> None:
        """Forget sets that no node has any more, where they are most of all."""
        if len(self._sets) <= len(self._set_of) + SPARE_SETS:
            return
        kept = [(taints, old) for taints, old in self._sets.items() if not old or self._nodes[old]]
        new_of = np.zeros(len(self._nodes), np.int32)
        for new, (_, old) in enumerate(kept):
            new_of[old] = new
        self._set_of = new_of[self._set_of]
        self._nodes = [self._nodes[old] for _, old in kept]
        self._sets = {taints: new for new, (taints, _) in enumerate(kept)}

    def _of_sets(self, rows: int) -> NDArray[np.int32]:
        if rows > len(self._set_of):
            self._grow(rows)
        return self._set_of[:rows]

    def soft_untolerated(self, tolerations: tuple[Toleration, ...], rows: int) -> NDArray[np.float64]:
        """How many taints of each node ask these tolerations to stay away, shape (rows,)."""
        by_set = np.array([self.untolerated(each, tolerations) for each in self._sets], np.float64)
        return by_set[self._of_sets(rows)]

    def forbidding(
        self, tolerations: tuple[Toleration, ...], rows: int, *, lasting: bool = False
    ) -> NDArray[np.bool_]:
        """Which nodes have a taint that keeps these tolerations away, shape (rows,).

        `lasting`: only such as somebody set for good; Kubernetes' own come and go with a node's health.
        """
        by_set = np.array([self.forbids(each, tolerations, lasting=lasting) for each in self._sets], np.bool_)
        return by_set[self._of_sets(rows)]

    def against(self, row: int, tolerations: tuple[Toleration, ...]) -> tuple[Taint, ...]:
        """Those of one node that keep these tolerations away."""
        taints = list(self._sets)[self._set_of[row]] if row < len(self._set_of) else ()
        return tuple(each for each in taints if self.forbids((each,), tolerations))

    @staticmethod
    def untolerated(taints: Sequence[Taint], tolerations: tuple[Toleration, ...]) -> int:
        """The same of one set of taints."""
        return sum(
            taint.effect == PREFER_NO_SCHEDULE and not any(tolerates(each, taint) for each in tolerations)
            for taint in taints
        )

    @staticmethod
    def forbids(
        taints: Sequence[Taint], tolerations: tuple[Toleration, ...], *, lasting: bool = False
    ) -> bool:
        """Likewise."""
        return any(
            taint.effect in FORBIDDING
            and not (lasting and taint.key.startswith(KUBERNETES_OWN))
            and not any(tolerates(each, taint) for each in tolerations)
            for taint in taints
        )


def _is_soft(taints: Sequence[Taint]) -> bool:
    return any(taint.effect == PREFER_NO_SCHEDULE for taint in taints)
