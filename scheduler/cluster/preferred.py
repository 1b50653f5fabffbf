"""What one pod's preferences say of every node, as columns. Pure; the store's own.

Kept by events are labels and taints of nodes, labels and places of pods, labels of namespaces. Asked about a pod that
prefers nothing, on a cluster whose taints all forbid, nothing is computed and its snapshot stays as it was.
The arithmetic is kube-scheduler's, over those nodes that are large enough for the pod: which ones its filters leave is
known to it alone.
Source: plugins nodeaffinity, tainttoleration, interpodaffinity and podtopologyspread, Kubernetes 1.20 to 1.36.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import log

import numpy as np

from scheduler.cluster.known_nodes import Amounts, KnownNodes
from scheduler.cluster.label_columns import ABSENT, Codes, LabelColumns, Mask, meets
from scheduler.cluster.node_taints import NodeTaints
from scheduler.cluster.objects import Node, Partial, Pod
from scheduler.cluster.pod_labels import PodLabels
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Kind
from scheduler.cluster.preferences import preferences_of
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.core.preferences import (
    NodeTerm,
    PodSet,
    PodTerm,
    Preferences,
    SpreadTerm,
    Toleration,
)

HOSTNAME = "kubernetes.io/hostname"
NOTHING = Preferences()
NO_NAMESPACES = "preferred pod (anti-)affinity: namespaceSelector, since namespaces are not listed"


class Preferred:
    """Indexes that events keep, and the columns made of them when a pod is asked about."""

    def __init__(self, rows: Mapping[str, int], reservations: Reservations) -> None:
        self.rows = rows
        self.pods = PodLabels(rows)
        self.taints = NodeTaints()
        self.namespaces: dict[str, dict[str, str]] = {}
        """Labels of each."""
        self.labels_of: dict[int, dict[str, str]] = {}
        """Labels of nodes, by row; the very objects that the nodes' records have."""
        self.labels = LabelColumns(self._find)
        self._reservations = reservations

    def _find(self, key: str) -> Iterator[tuple[int, str]]:
        return ((row, labels[key]) for row, labels in self.labels_of.items() if key in labels)

    # --- events --------------------------------------------------------------------------------------------------

    def see_node(self, node: Node, row: int) -> None:
        """A node was added or changed."""
        labels = node.metadata.labels or {}
        self.labels_of[row] = labels
        self.labels.write(row, labels)
        self.taints.see(row, node.spec.taints)
        self.pods.see_node(node.metadata.name, row)

    def forget_node(self, name: str, row: int) -> None:
        """A node is gone; its pods may be there still."""
        self.labels_of.pop(row, None)
        self.labels.write(row, {})
        self.taints.see(row, None)
        self.pods.see_node(name, -1)

    def see_pod(self, pod: Pod, facts: PodFacts | None, *, gone: bool) -> None:
        """A pod was added or changed; `gone`: it has finished, or was deleted.

        One that waits is kept if it has facts, so that it counts where it is promised to be: kube-scheduler counts it
        from the instant of its choice.
        """
        meta, node = pod.metadata, pod.spec.node_name
        if gone:
            self.pods.forget(meta.uid)
        elif node or facts is not None:
            ending = meta.deletion_timestamp is not None
            self.pods.see(meta.uid, meta.namespace, meta.labels, node, ending=ending)

    def see_namespace(self, namespace: Partial, *, gone: bool) -> None:
        """A namespace was added or changed, or is gone."""
        if gone:
            self.namespaces.pop(namespace.metadata.name, None)
        else:
            # One without labels is there all the same: NotIn and DoesNotExist select it.
            self.namespaces[namespace.metadata.name] = namespace.metadata.labels or {}

    def keep(self, kind: Kind, keys: AbstractSet[str]) -> None:
        """A full list: pods or namespaces that it does not name are gone."""
        if kind is Kind.POD:
            for uid in [uid for uid in self.pods if uid not in keys]:
                self.pods.forget(uid)
        elif kind is Kind.NAMESPACE:
            for name in self.namespaces.keys() - keys:
                del self.namespaces[name]

    # --- questions -----------------------------------------------------------------------------------------------

    @staticmethod
    def wanted(facts: PodFacts | None, synced: Container[Kind], pod: Pod | None = None) -> Preferences | None:
        """What a pod prefers, by what was read of it, else by itself.

        While namespaces are not known, what takes their labels counts among what is not understood.
        """
        wanted = facts.preferences if facts is not None else preferences_of(pod) if pod is not None else None
        if wanted is None or Kind.NAMESPACE in synced:
            return wanted
        known = tuple(term for term in wanted.pods if not term.pods.namespace_selector)
        if len(known) == len(wanted.pods):
            return wanted
        return replace(wanted, pods=known, not_understood=(*wanted.not_understood, NO_NAMESPACES))

    def add_to(self, snapshot: Snapshot, request: PodRequest, strangers: Sequence[Node] = ()) -> Snapshot:
        """The snapshot with this request's columns. `strangers` are nodes in its last rows that we do not know."""
        wanted = request.preferences
        if wanted is None:
            if not self.taints.soft and not any(node.spec.taints for node in strangers):
                return snapshot
            wanted = NOTHING
        return _Question(self, snapshot, request, wanted, strangers).answer()

    def known_nodes(self, rows: int, strangers: Sequence[Node] = ()) -> KnownNodes:
        """So many rows, strangers in the last of them."""
        return KnownNodes(self.labels, self.taints, self.rows, rows, strangers)

    def promised(self, uid: str) -> list[tuple[str, int]]:
        """Pods other than this one with the row that is promised to each: kube-scheduler counts them there already."""
        rows = self.rows
        return [
            (held.uid, rows[held.node]) for held in self._reservations.made_before(np.inf) if held.uid != uid
        ]


class _Question:
    """One pod's preferences over the rows of one snapshot, strangers among them."""

    def __init__(
        self,
        known: Preferred,
        snapshot: Snapshot,
        request: PodRequest,
        wanted: Preferences,
        strangers: Sequence[Node],
    ) -> None:
        self._known = known
        self._snapshot = snapshot
        self._request = request
        self._wanted = wanted
        self._nodes = known.known_nodes(snapshot.rows, strangers)
        self._promised: list[tuple[str, int]] | None = None

    def answer(self) -> Snapshot:
        wanted = self._wanted
        columns: dict[str, object] = {}
        compared = self._snapshot.present & self._snapshot.is_large_enough(self._request)
        taints = self._untolerated(wanted.tolerations)
        if taints is not None and taints[compared].any():
            columns["untolerated_taints"] = taints
        if wanted.nodes:
            columns["node_affinity"] = self._node_affinity(wanted.nodes)
        if wanted.pods:
            columns["pod_affinity"] = self._pod_affinity(wanted.pods)
        if wanted.spreads:
            columns["topology_spread"] = self._spread(wanted.spreads, compared)
        return self._snapshot.replace(compared=compared, **columns) if columns else self._snapshot

    def _node_affinity(self, terms: Sequence[NodeTerm]) -> Amounts:
        met = np.zeros(self._snapshot.rows, np.float64)
        for term in terms:
            met += self._nodes.meets(term) * float(term.weight)
        return met

    def _untolerated(self, tolerations: tuple[Toleration, ...]) -> Amounts | None:
        if not self._known.taints.soft and not self._nodes.strangers:
            return None
        return self._nodes.untolerated(tolerations)

    # --- pods ----------------------------------------------------------------------------------------------------

    def _counts(self, pods: PodSet, *, ending: bool) -> Amounts:
        """How many of these pods are on each node."""
        if pods.selector is None:
            return np.zeros(self._snapshot.rows, np.float64)
        if self._promised is None:
            self._promised = self._known.promised(self._request.uid)
        return self._known.pods.counts(
            pods.selector,
            self._namespaces(pods),
            self._snapshot.rows,
            without=self._request.uid,
            ending=ending,
            promised=self._promised,
        )

    def _namespaces(self, pods: PodSet) -> list[str] | None:
        by_labels = pods.namespace_selector
        if by_labels is None:
            return list(pods.namespaces)
        if not by_labels:
            return None
        found = [name for name, labels in self._known.namespaces.items() if meets(labels, by_labels)]
        return [*pods.namespaces, *found]

    def _pod_affinity(self, terms: Sequence[PodTerm]) -> Amounts:
        total = np.zeros(self._snapshot.rows, np.float64)
        for term in terms:
            codes, places = self._nodes.places(term.topology_key)
            here = _by_place(codes, self._counts(term.pods, ending=True), places)
            total += here[codes] * term.weight
        return total

    def _spread(self, terms: Sequence[SpreadTerm], compared: Mask) -> Amounts:
        """How crowded each node's places are; -1 where a node lacks one of the labels."""
        found = [self._nodes.places(term.topology_key) for term in terms]
        placed: Mask = np.logical_and.reduce([codes != ABSENT for codes, _ in found])
        among = compared & placed
        crowd = np.zeros(self._snapshot.rows, np.float64)
        for term, (codes, places) in zip(terms, found, strict=True):
            counts = self._counts(term.pods, ending=False)
            if term.topology_key == HOSTNAME:
                size = int(np.count_nonzero(among))
            else:
                size = len(np.unique(codes[among]))
                counted = placed & self._honoured(term)
                counts = _by_place(codes[counted], counts[counted], places)[codes]
            crowd += counts * log(size + 2) + (term.max_skew - 1)
        return np.where(placed, np.maximum(np.rint(crowd), 0), -1.0)

    def _honoured(self, term: SpreadTerm) -> Mask:
        honoured = np.ones(self._snapshot.rows, np.bool_)
        wanted = self._wanted
        if term.honours_affinity:
            honoured &= self._nodes.selected(wanted.node_selector, wanted.required)
        if term.honours_taints:
            honoured &= ~self._nodes.forbidden(wanted.tolerations)
        return honoured


def _by_place(codes: Codes, counts: Amounts, places: int) -> Amounts:
    """Counts of nodes added up by place, shape (places + 1,); the last is of nodes in none: 0, nothing is near them."""
    here = np.bincount(codes % (places + 1), counts, places + 1).astype(np.float64)
    here[places] = 0
    return here
