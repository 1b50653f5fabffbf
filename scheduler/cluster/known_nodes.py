"""Terms about nodes, judged for all at once: those that the store knows, and strangers in the last rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.label_columns import ABSENT, Codes, LabelColumns, Mask, meets
from scheduler.cluster.node_taints import NodeTaints
from scheduler.cluster.objects import Node
from scheduler.cluster.preference_objects import Taint
from scheduler.core.preferences import Conditions, NodeTerm, Operator, Requirement, Selector, Toleration

Amounts = NDArray[np.float64]


class KnownNodes:
    """The rows of one snapshot.

    Args:
        labels: of the nodes that the store knows, by row.
        taints: theirs.
        rows: theirs, by name.
        size: how many rows the snapshot has.
        strangers: nodes that the store does not know, in the last rows.
    """

    def __init__(
        self,
        labels: LabelColumns,
        taints: NodeTaints,
        rows: Mapping[str, int],
        size: int,
        strangers: Sequence[Node],
    ) -> None:
        self.size = size
        self.strangers = strangers
        self._labels, self._taints, self._rows = labels, taints, rows
        self._known = size - len(strangers)

    def match(self, selector: Selector) -> Mask:
        """Which nodes meet all requirements, shape (rows,)."""
        matched = self._labels.match(selector, self._known)
        more = [meets(node.metadata.labels or {}, selector) for node in self.strangers]
        return np.concatenate([matched, np.array(more, np.bool_)]) if more else matched

    def meets(self, term: NodeTerm) -> Mask:
        """Which of them a term selects, likewise."""
        if not term.labels and not term.names:
            return np.zeros(self.size, np.bool_)
        met = self.match(term.labels)
        for each in term.names:
            met &= self._named(each)
        return met

    def _named(self, requirement: Requirement) -> Mask:
        named = np.zeros(self.size, np.bool_)
        named[[self._rows[name] for name in requirement.values if name in self._rows]] = True
        for row, node in enumerate(self.strangers, self._known):
            named[row] = node.metadata.name in requirement.values
        return named if requirement.operator is Operator.IN else ~named

    def selected(self, selector: Selector, required: Sequence[NodeTerm] | None) -> Mask:
        """Which of them a nodeSelector and a required affinity allow, likewise."""
        allowed = self.match(selector)
        if required is not None:
            any_of = np.zeros(self.size, np.bool_)
            for each in required:
                any_of |= self.meets(each)
            allowed &= any_of
        return allowed

    def forbidden(self, tolerations: tuple[Toleration, ...], *, lasting: bool = False) -> Mask:
        """Which have a taint that keeps these tolerations away, likewise; `lasting`: one that somebody set for good."""
        known = self._taints.forbidding(tolerations, self._known, lasting=lasting)
        more = [
            self._taints.forbids(node.spec.taints or (), tolerations, lasting=lasting)
            for node in self.strangers
        ]
        return np.concatenate([known, np.array(more, np.bool_)]) if more else known

    def against(self, row: int, tolerations: tuple[Toleration, ...]) -> tuple[Taint, ...]:
        """Taints of a node that the store knows, those that keep these tolerations away."""
        return self._taints.against(row, tolerations)

    def untolerated(self, tolerations: tuple[Toleration, ...]) -> Amounts:
        """How many taints of each ask these tolerations to stay away, likewise."""
        more = [self._taints.untolerated(node.spec.taints or (), tolerations) for node in self.strangers]
        return np.concatenate(
            [self._taints.soft_untolerated(tolerations, self._known), np.array(more, np.float64)]
        )

    def places(self, key: str) -> tuple[Codes, int]:
        """Which place each node is in by a label, ABSENT if in none; and how many places there may be."""
        column = self._labels.column(key, self._known)
        codes, count = column.codes(self._known), column.count
        if not self.strangers:
            return codes, count
        new: dict[str, int] = {}
        more = []
        for node in self.strangers:
            value = (node.metadata.labels or {}).get(key)
            code = ABSENT if value is None else column.code(value)
            if value is not None and code == ABSENT:
                code = new.setdefault(value, count + len(new))
            more.append(code)
        return np.concatenate([codes, np.array(more, np.int32)]), count + len(new)

    def could(self, conditions: Conditions) -> Mask:
        """Where a pod with these conditions could ever be, shape (rows,)."""
        allowed = self.selected(conditions.node_selector, conditions.required)
        return allowed & ~self.forbidden(conditions.tolerations, lasting=True)
