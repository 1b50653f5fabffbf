"""Which container images nodes have, and how much of what a pod wants is there already. Pure; the store's own.

A node names up to 50 images by up to five names each, in every status that it writes, mostly the same ones. Kept are
a hash of each name and the image's size: 12 bytes a name, 6 MB for 5,000 nodes of 100 names. An image that a pod asks
for gets a column of its own, which events keep up to date from then on; those that were asked for last are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.objects import NodeImage, PodSpec
from scheduler.cluster.snapshot import FloatColumn

# kubelet's nodeStatusMaxImages (50) by its own most of names an image (5); the largest images come first.
MOST_NAMES = 256
WIDTH_STEP = 32
# Columns kept of images that pods asked for: 2.5 MB at 5,000 nodes. Finding one anew costs half a millisecond.
MOST_ASKED = 128
# Different images of one pod that are looked for; few have more than three.
MOST_OF_A_POD = 16
# No hash of a name, but where there is none.
NONE = 0


def normalized(name: str) -> str:
    """The name as nodes have it: an image without a tag is the latest one.

    Source: kube-scheduler's ImageLocality, Kubernetes 1.20 to 1.36; like there, a registry is not filled in.
    """
    return name if name.rfind(":") > name.rfind("/") else f"{name}:latest"


def images_of(spec: PodSpec) -> tuple[str, ...]:
    """Names of the images of all containers, one a container, init containers first."""
    containers = [*(spec.init_containers or ()), *(spec.containers or ())]
    return tuple(normalized(each.image) for each in containers if each.image)


@dataclass(slots=True)
class _Asked:
    """One image that a pod asked for."""

    bytes: FloatColumn
    """Its size on each node that has it, else 0."""
    nodes: int
    """How many have it."""


class Images:
    """Names and sizes by row, and columns of what was asked for."""

    def __init__(self) -> None:
        self._names: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._sizes: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._marks: dict[int, int] = {}
        """Of each row a hash of all that its node said: nearly always it says the same again."""
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        """The one that was asked for last is last."""

    def see(self, row: int, images: Sequence[NodeImage] | None) -> None:
        """A node says what it has."""
        mark = _mark(images)
        if self._marks.get(row, NOTHING) == mark:
            return
        self._marks[row] = mark
        names, sizes = _listed(images)
        if row >= len(self._names) or len(names) > self._names.shape[1]:
            if not names:
                return
            self._grow(row + 1, len(names))
        count = len(names)
        self._names[row] = NONE
        self._names[row, :count] = names
        self._sizes[row, :count] = sizes
        size_of = dict(zip(names, sizes, strict=True))
        for name, asked in self._asked.items():
            self._write(asked, row, size_of.get(_hash(name), 0.0))

    def forget(self, row: int) -> None:
        """The node is gone."""
        self.see(row, None)
        self._marks.pop(row, None)

    def wanted_bytes(self, wanted: Sequence[str], nodes: int, rows: int) -> FloatColumn | None:
        """Of the images wanted, how much is on each node, each weighed by its share of `nodes`.

        None where no node has any of it.
        """
        total: FloatColumn | None = None
        for name in _few(wanted):
            asked = self._find(name, rows)
            if not asked.nodes:
                continue
            part = asked.bytes[:rows] * np.float32(wanted.count(name) * asked.nodes / max(nodes, 1))
            total = part if total is None else np.add(total, part, out=total)
        return total

    def stranger_bytes(
        self, wanted: Sequence[str], nodes: int, rows: int, images: Sequence[NodeImage] | None
    ) -> float:
        """The same for a node that is in no row; it does not count among those that have an image."""
        size_of = dict(zip(*_listed(images), strict=True))
        return sum(
            wanted.count(name) * size_of.get(_hash(name), 0.0) * self._find(name, rows).nodes / max(nodes, 1)
            for name in _few(wanted)
        )

    def _find(self, name: str, rows: int) -> _Asked:
        asked = self._asked.get(name)
        if asked is None:
            column = np.zeros(rows, np.float32)
            found, places = np.nonzero(self._names == _hash(name))
            column[found] = self._sizes[found, places]
            asked = self._asked[name] = _Asked(column, int(np.count_nonzero(column)))
            if len(self._asked) > MOST_ASKED:
                self._asked.popitem(last=False)
        elif len(asked.bytes) < rows:
            asked.bytes = _longer(asked.bytes, rows)
        self._asked.move_to_end(name)
        return asked

    @staticmethod
    def _write(asked: _Asked, row: int, size_bytes: float) -> None:
        if row >= len(asked.bytes):
            if not size_bytes:
                return
            asked.bytes = _longer(asked.bytes, row + 1)
        asked.nodes += bool(size_bytes) - bool(asked.bytes[row])
        asked.bytes[row] = size_bytes

    def _grow(self, rows: int, width: int) -> None:
        """Make room, in steps: for an eighth more nodes, and for some more names."""
        old_rows, old_width = self._names.shape
        if rows > old_rows:
            rows = max(rows, old_rows + old_rows // 8, WIDTH_STEP)
        shape = (max(rows, old_rows), max(-(-width // WIDTH_STEP) * WIDTH_STEP, old_width))
        for field in ("_names", "_sizes"):
            old = getattr(self, field)
            grown = np.zeros(shape, old.dtype)
            grown[:old_rows, :old_width] = old
            setattr(self, field, grown)


def _listed(images: Sequence[NodeImage] | None) -> tuple[list[int], list[float]]:
    """Hashes of all names, and beside each the size of its image; an image without a size is none."""
    names: list[int] = []
    sizes: list[float] = []
    for image in images or ():
        if image.size_bytes > 0:
            names += map(_hash, image.names or ())
            sizes += [float(image.size_bytes)] * (len(names) - len(sizes))
    return names[:MOST_NAMES], sizes[:MOST_NAMES]


def _mark(images: Sequence[NodeImage] | None) -> int:
    names: list[str] = []
    counts = []
    for image in images or ():
        if image.names:
            names += image.names
        counts.append((len(names), image.size_bytes))
    return hash((tuple(names), tuple(counts)))


def _few(wanted: Sequence[str]) -> list[str]:
    """Each once, in order; of an absurd pod some."""
    return list(dict.fromkeys(wanted))[:MOST_OF_A_POD]


def _hash(name: str) -> int:
    """Of this process alone; of 250,000 names no two share one of 64 bits."""
    return hash(name) or 1


def _longer(column: FloatColumn, rows: int) -> FloatColumn:
    return np.concatenate([column, np.zeros(rows - len(column), np.float32)])


# What a node said of whom nothing was heard.
NOTHING = _mark(())
