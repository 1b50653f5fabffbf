"""Columns that only concern one request: its owner's other pods, its images, what it prefers. Pure; the store's own.

They are None in a snapshot where they do not apply, so that what they would say of every node is not said at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.cluster.images import Images
from scheduler.cluster.neighbours import Neighbours
from scheduler.cluster.objects import Node
from scheduler.cluster.preferred import Preferred
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest


class Beside:
    """Indexes that events keep, and the columns made of them when a pod is asked about."""

    def __init__(self, reservations: Reservations, rows: Mapping[str, int]) -> None:
        self.images = Images()
        self.neighbours = Neighbours(reservations)
        self.preferred = Preferred(rows, reservations)
        self._rows = rows

    def see_node(self, node: Node, row: int) -> None:
        """A node was added or changed."""
        self.images.see(row, node.status.images)
        self.preferred.see_node(node, row)

    def forget_node(self, name: str, row: int) -> None:
        """A node is gone."""
        self.images.forget(row)
        self.preferred.forget_node(name, row)

    def promise(self, request: PodRequest, node: str) -> None:
        """A node was promised to this pod."""
        if request.siblings_of:
            self.neighbours.promise(request.siblings_of[0], request.uid, node)

    def add_to(self, snapshot: Snapshot, request: PodRequest, *, held_on: str = "") -> Snapshot:
        """The snapshot with this request's columns."""
        columns: dict[str, object] = {}
        if request.siblings_of:
            counts = self.neighbours.counts(
                request.siblings_of, request.uid, snapshot.rows, self._rows, held_on=held_on
            )
            if counts is not None:
                columns["neighbours"] = counts
        if request.images:
            here = self.images.wanted_bytes(request.images, len(self._rows), snapshot.rows)
            if here is not None:
                columns["image_bytes"] = here
        snapshot = snapshot.replace(**columns) if columns else snapshot
        return self.preferred.add_to(snapshot, request)

    def with_strangers(
        self, snapshot: Snapshot, nodes: Sequence[Node], request: PodRequest | None
    ) -> Snapshot:
        """The columns continued for nodes that are in no row: nobody is there, what they have stands in the object."""
        columns: dict[str, object] = {}
        if snapshot.neighbours is not None:
            columns["neighbours"] = _continued(snapshot.neighbours, [0.0] * len(nodes))
        if snapshot.image_bytes is not None:
            wanted, rows = request.images if request is not None else (), len(snapshot.image_bytes)
            here = [
                self.images.stranger_bytes(wanted, len(self._rows), rows, node.status.images)
                for node in nodes
            ]
            columns["image_bytes"] = _continued(snapshot.image_bytes, here)
        longer = snapshot.replace(**columns) if columns else snapshot
        return longer if request is None else self.preferred.add_to(longer, request, nodes)


def _continued(column: np.ndarray[tuple[int, ...], np.dtype[np.float32]], more: list[float]) -> object:
    return np.concatenate([column, np.array(more, np.float32)])
