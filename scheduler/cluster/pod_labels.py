"""Where pods are and what labels they have: all that run, and those that wait for GPUs. Pure; the store's own.

Pods of one template have the same labels, so sets of labels are kept once, as one string each: 50,000 pods of which
no two are alike take 23 MiB, 50,000 of a thousand templates take 7 (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.label_columns import LabelColumns
from scheduler.core.preferences import Operator, Requirement, Selector

NAMESPACE_KEY = ""
"""Stands beside the labels of a set: its pods' namespace. No label has an empty key."""
# Neither is in a label; a set reads `|key=value|key=value|`.
_BAR, _IS = "\x1f", "\x1e"
# The first set and the first node are nobody's: of places that are free, and of pods that wait.
NOBODY = 0
GROWTH = 256


class _Interned:
    """Things that are kept once, with a number that is theirs while somebody holds it."""

    def __init__(self) -> None:
        self.number_of: dict[str, int] = {}
        self.names: list[str | None] = [None]
        self._holders = [0]
        self._free: list[int] = []

    def take(self, name: str) -> tuple[int, bool]:
        """The number of a thing, and whether that is new; it is held once more."""
        number = self.number_of.get(name)
        if number is not None:
            self._holders[number] += 1
            return number, False
        if self._free:
            number = self._free.pop()
            self.names[number], self._holders[number] = name, 1
        else:
            number = len(self.names)
            self.names.append(name)
            self._holders.append(1)
        self.number_of[name] = number
        return number, True

    def drop(self, number: int) -> None:
        """It is held once less; NOBODY has no name, and is never free."""
        self._holders[number] -= 1
        name = self.names[number]
        if not self._holders[number] and name is not None:
            del self.number_of[name]
            self.names[number] = None
            self._free.append(number)


class PodLabels:
    """Pods by labels and node."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._place_of: dict[str, int] = {}
        """Pod -> its place in the columns."""
        self._free: list[int] = []
        self._sets = _Interned()
        self._nodes = _Interned()
        self._columns = LabelColumns(self._find)
        # Wanted by whoever asks; made while there is nothing, it need not be found out later.
        self._columns.column(NAMESPACE_KEY, 1)
        # Per place.
        self._set: NDArray[np.int32] = np.zeros(0, np.int32)
        self._node: NDArray[np.int32] = np.zeros(0, np.int32)
        self._ending: NDArray[np.bool_] = np.zeros(0, np.bool_)
        # Per number of a node.
        self._row: NDArray[np.int32] = np.full(1, -1, np.int32)

    def __len__(self) -> int:
        """How many pods there are."""
        return len(self._place_of)

    def __contains__(self, uid: str) -> bool:
        """Whether a pod is among them."""
        return uid in self._place_of

    def __iter__(self) -> Iterator[str]:
        """Uids of all."""
        return iter(self._place_of)

    # --- events --------------------------------------------------------------------------------------------------

    def see(
        self, uid: str, namespace: str, labels: Mapping[str, str] | None, node: str, *, ending: bool
    ) -> None:
        """A pod came or changed. `node` is empty while it waits; `ending`: its deletion has begun."""
        labels = labels or {}
        text = _BAR.join(
            ["", NAMESPACE_KEY + _IS + namespace, *[key + _IS + value for key, value in labels.items()], ""]
        )
        number = self._sets.number_of.get(text)
        place = self._place_of.get(uid)
        if place is None:
            place = self._take_place(uid)
        elif number == self._set[place] and self._nodes.names[self._node[place]] == (node or None):
            self._ending[place] = ending
            return
        number, new = self._sets.take(text)
        if new:
            self._columns.write(number, {**labels, NAMESPACE_KEY: namespace})
        self._sets.drop(int(self._set[place]))
        at = self._number_of_node(node)
        self._nodes.drop(int(self._node[place]))
        self._set[place], self._node[place], self._ending[place] = number, at, ending

    def forget(self, uid: str) -> None:
        """A pod has ended, or is gone."""
        place = self._place_of.pop(uid, None)
        if place is None:
            return
        self._sets.drop(int(self._set[place]))
        self._nodes.drop(int(self._node[place]))
        self._set[place] = self._node[place] = NOBODY
        self._free.append(place)

    def see_node(self, name: str, row: int) -> None:
        """A node has a row now; -1 if it has none any more."""
        number = self._nodes.number_of.get(name)
        if number is not None:
            self._row[number] = row

    def _take_place(self, uid: str) -> int:
        if not self._free:
            old = len(self._set)
            size = old + max(GROWTH, old // 8)
            self._set, self._node, self._ending = (
                np.concatenate([column, np.zeros(size - old, column.dtype)])
                for column in (self._set, self._node, self._ending)
            )
            self._free = list(range(size - 1, old - 1, -1))
        place = self._free.pop()
        self._place_of[uid] = place
        return place

    def _number_of_node(self, name: str) -> int:
        if not name:
            return NOBODY
        number, new = self._nodes.take(name)
        if new:
            if number >= len(self._row):
                self._row = np.concatenate([self._row, np.full(max(GROWTH, number // 8), -1, np.int32)])
            self._row[number] = self._rows.get(name, -1)
        return number

    def _find(self, key: str) -> Iterator[tuple[int, str]]:
        mark = _BAR + key + _IS
        for number, text in enumerate(self._sets.names):
            if text is not None and (start := text.find(mark)) >= 0:
                start += len(mark)
                yield number, text[start : text.index(_BAR, start)]

    # --- questions -----------------------------------------------------------------------------------------------

    def counts(
        self,
        selector: Selector,
        namespaces: Iterable[str] | None,
        rows: int,
        *,
        without: str,
        ending: bool,
        promised: Iterable[tuple[str, int]],
    ) -> NDArray[np.float64]:
        """How many pods of a set are on each node, shape (rows,).

        Args:
            selector: Labels that they have.
            namespaces: Where they are; None: anywhere.
            rows: How many nodes there may be.
            without: A pod that does not count.
            ending: Whether pods count whose deletion has begun.
            promised: Pods that wait, and none that is bound, with the rows that are promised to them.
        """
        if namespaces is not None:
            selector = (Requirement(NAMESPACE_KEY, Operator.IN, tuple(namespaces)), *selector)
        sets = self._columns.match(selector, len(self._sets.names))
        matched = sets[self._set]
        if not ending:
            matched &= ~self._ending
        if (own := self._place_of.get(without)) is not None:
            matched[own] = False
        at = self._row[self._node[matched.nonzero()[0]]]
        counts = np.bincount(at + 1, minlength=rows + 1)[1 : rows + 1].astype(np.float64)
        for uid, row in promised:
            place = self._place_of.get(uid)
            if place is not None and matched[place]:
                counts[row] += 1
        return counts
