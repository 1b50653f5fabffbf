"""Which nodes a pod fits on: kube-scheduler's filters and two of its scores, over columns of all nodes.

Rows are nodes, columns of resources and of label values grow as new ones are seen. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler.cluster.objects import asked_quantity, quantity
from scheduler.simulate.apiserver_rules import JsonObject

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

CPU, MEMORY, COUNT = "cpu", "memory", "pods"
# What a container that asks nothing counts as in scores. Source: kube-scheduler, non_zero.go.
_DEFAULT_CPU, _DEFAULT_MEMORY_BYTES = 0.1, 200 * 2**20
_BLOCKING = ("NoSchedule", "NoExecute")
# Reasons are a closed set, but for the resource that is named in `insufficient …`.
CORDONED, OTHER_NODE, TAINTED, AFFINITY = "unschedulable", "node name", "taint", "affinity"
INSUFFICIENT = "insufficient "


def amounts(spec: JsonObject) -> dict[str, float]:
    """What a pod's spec asks, by resource; one of `pods` included. Counts sidecars as Kubernetes 1.29 on does."""
    running = _sum(spec.get("containers") or ())
    sidecars: dict[str, float] = {}
    peak: dict[str, float] = {}
    for container in spec.get("initContainers") or ():
        asked = _sum((container,))
        if container.get("restartPolicy") == "Always":
            sidecars = _added(sidecars, asked)
            asked = {}
        peak = _larger(peak, _added(sidecars, asked))
    total = _larger(_added(running, sidecars), peak)
    overhead = {name: asked_quantity(value) for name, value in (spec.get("overhead") or {}).items()}
    return {**_added(total, overhead), COUNT: 1.0}


def _sum(containers: tuple[JsonObject, ...] | list[JsonObject]) -> dict[str, float]:
    total: dict[str, float] = {}
    for container in containers:
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        total = _added(total, {name: asked_quantity(value) for name, value in asked.items()})
    return total


def _added(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + two.get(name, 0.0) for name in one.keys() | two.keys()}


def _larger(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), two.get(name, 0.0)) for name in one.keys() | two.keys()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNeeds:
    """What the filters read of a pod, compiled once per attempt."""

    amounts: dict[str, float]
    selector: dict[str, str]
    terms: list[JsonObject] | None
    """Required node affinity: one of these must match; None where none is stated."""
    tolerations: list[JsonObject]
    node_name: str

    @classmethod
    def of(cls, pod: JsonObject) -> PodNeeds:
        """Read a pod."""
        spec = pod["spec"]
        affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
        required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
        return cls(
            amounts=amounts(spec),
            selector=spec.get("nodeSelector") or {},
            terms=None if required is None else required.get("nodeSelectorTerms") or [],
            tolerations=spec.get("tolerations") or [],
            node_name=spec.get("nodeName", ""),
        )


def tolerates(tolerations: list[JsonObject], taint: JsonObject) -> bool:
    """Whether one of the tolerations covers a taint."""
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("key") and toleration["key"] != taint.get("key"):
            continue
        if toleration.get("operator") == "Exists":
            return True
        if toleration.get("key") and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


@dataclass(slots=True)
class _Labels:
    """One label key: the value of each row as a number, -1 where the node lacks it."""

    codes: npt.NDArray[np.int32]
    known: dict[str, int] = field(default_factory=dict)
    numbers: list[float] = field(default_factory=list)

    def code(self, value: str) -> int:
        if value not in self.known:
            self.known[value] = len(self.known)
            try:
                self.numbers.append(float(int(value)))
            except ValueError:
                self.numbers.append(np.nan)
        return self.known[value]

    def among(self, values: list[str]) -> Mask:
        codes = [self.known[value] for value in values if value in self.known]
        found: Mask = np.isin(self.codes, codes)
        return found

    def compared(self, value: str, *, greater: bool) -> Mask:
        # The extra entry answers code -1: a node without the label is neither greater nor less.
        numbers = np.array([*self.numbers, np.nan])[self.codes]
        try:
            bound = int(value)
        except ValueError:
            return np.zeros(len(self.codes), np.bool_)
        return numbers > bound if greater else numbers < bound


class NodeTable:
    """The nodes and what is used on them.

    Shape: every column is (capacity,); rows of deleted nodes are reused.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._capacity = 0
        self.present: Mask = np.zeros(0, np.bool_)
        self._open: Mask = np.zeros(0, np.bool_)
        self._taint_set: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._taint_sets: dict[tuple[tuple[str, str, str], ...], int] = {(): 0}
        self._allocatable: dict[str, Floats] = {}
        self._used: dict[str, Floats] = {}
        self._score_used: dict[str, Floats] = {}
        self._labels: dict[str, _Labels] = {}
        # By node, which may be heard of later than its pods, and may go and come back.
        self._held: dict[str, dict[str, dict[str, float]]] = {}
        self._node_of: dict[str, str] = {}

    def name(self, row: int) -> str:
        """The node of a row."""
        return self._names[row]

    def set_node(self, node: JsonObject) -> None:
        """Add or replace a node; what is used on it stays."""
        name = node["metadata"]["name"]
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = self._new_row(name)
            for asked in self._held.get(name, {}).values():
                self._use(row, asked, 1)
        spec, status = node.get("spec") or {}, node.get("status") or {}
        self.present[row] = True
        self._open[row] = not spec.get("unschedulable")
        taints = tuple(
            (taint.get("key", ""), taint.get("value", ""), taint["effect"])
            for taint in spec.get("taints") or ()
            if taint.get("effect") in _BLOCKING
        )
        self._taint_set[row] = self._taint_sets.setdefault(taints, len(self._taint_sets))
        for column in self._allocatable.values():
            column[row] = 0.0
        for resource, value in (status.get("allocatable") or {}).items():
            self._column(self._allocatable, resource)[row] = quantity(value)
        labels: dict[str, str] = node["metadata"].get("labels") or {}
        for key, known in self._labels.items():
            if key not in labels:
                known.codes[row] = -1
        for key, value in labels.items():
            if key not in self._labels:
                self._labels[key] = _Labels(np.full(self._capacity, -1, np.int32))
            self._labels[key].codes[row] = self._labels[key].code(value)

    def drop_node(self, name: str) -> None:
        """Forget a node; its pods are remembered, in case it comes back."""
        row = self.rows.pop(name, None)
        if row is None:
            return
        self.present[row] = False
        for columns in (self._allocatable, self._used, self._score_used):
            for column in columns.values():
                column[row] = 0.0
        for known in self._labels.values():
            known.codes[row] = -1
        self._free.append(row)

    def hold(self, uid: str, node: str, asked: dict[str, float]) -> None:
        """Count a pod on a node, in place of where it was counted before."""
        self.release(uid)
        self._node_of[uid] = node
        self._held.setdefault(node, {})[uid] = asked
        if (row := self.rows.get(node)) is not None:
            self._use(row, asked, 1)

    def release(self, uid: str) -> dict[str, float]:
        """Count a pod no longer; returns what it held."""
        node = self._node_of.pop(uid, None)
        if node is None:
            return {}
        asked = self._held[node].pop(uid)
        if (row := self.rows.get(node)) is not None:
            self._use(row, asked, -1)
        return asked

    def node_of(self, uid: str) -> str | None:
        """Where a pod is counted."""
        return self._node_of.get(uid)

    def used(self, node: str, resource: str) -> float:
        """How much of a resource the pods on a node hold."""
        column = self._used.get(resource)
        return 0.0 if column is None else float(column[self.rows[node]])

    def fits(self, needs: PodNeeds) -> tuple[Mask, dict[str, Mask]]:
        """Which rows fit, and for each reason the rows that it removes; a row has the first reason that applies.

        Several resources may be short on one node; then each is a reason of it.
        """
        left = self.present.copy()
        reasons: dict[str, Mask] = {}

        def keep(reason: str, passes: Mask) -> None:
            lost = left & ~passes
            if lost.any():
                reasons[reason] = lost
                left[lost] = False

        tolerated = tolerates(
            needs.tolerations, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
        )
        if not tolerated:
            keep(CORDONED, self._open)
        if needs.node_name:
            named = np.zeros(self._capacity, np.bool_)
            if (row := self.rows.get(needs.node_name)) is not None:
                named[row] = True
            keep(OTHER_NODE, named)
        keep(TAINTED, self._tolerated(needs.tolerations))
        keep(AFFINITY, self._matches(needs))
        short = {
            resource: left & (asked > self._free_of(resource) + _ROUNDING)
            for resource, asked in needs.amounts.items()
            if asked > 0
        }
        for resource, rows in short.items():
            if rows.any():
                reasons[INSUFFICIENT + resource] = rows
                left = left & ~rows
        return left, reasons

    def fits_on(self, name: str, needs: PodNeeds) -> bool:
        """Whether a pod fits on one node."""
        row = self.rows.get(name)
        if row is None:
            return False
        # Most waiting pods wait for resources: they are answered without a look at the other nodes.
        for resource, asked in needs.amounts.items():
            if asked > 0 and asked > self._free_of(resource)[row] + _ROUNDING:
                return False
        return bool(self.fits(needs)[0][row])

    def scores(self, needs: PodNeeds, rows: npt.NDArray[np.intp]) -> Floats:
        """LeastAllocated plus BalancedAllocation, 0 to 200. Source: kube-scheduler's noderesources, defaults."""
        cpu_asked = needs.amounts.get(CPU, 0.0) or _DEFAULT_CPU
        memory_asked = needs.amounts.get(MEMORY, 0.0) or _DEFAULT_MEMORY_BYTES
        fractions = []
        for resource, asked in ((CPU, cpu_asked), (MEMORY, memory_asked)):
            held = self._column(self._score_used, resource)[rows]
            allocatable = self._column(self._allocatable, resource)[rows]
            used = np.divide(held + asked, allocatable, out=np.ones(len(rows)), where=allocatable > 0)
            fractions.append(np.minimum(used, 1.0))
        cpu, memory = fractions
        least = np.floor((np.floor(100 * (1 - cpu)) + np.floor(100 * (1 - memory))) / 2)
        # Two resources deviate from their mean by half of what they differ by.
        balanced = np.floor(100 * (1 - np.abs(cpu - memory) / 2))
        total: Floats = least + balanced
        return total

    def _use(self, row: int, asked: dict[str, float], sign: float) -> None:
        for resource, amount in asked.items():
            self._column(self._used, resource)[row] += sign * amount
        for resource, default in ((CPU, _DEFAULT_CPU), (MEMORY, _DEFAULT_MEMORY_BYTES)):
            self._column(self._score_used, resource)[row] += sign * (asked.get(resource, 0.0) or default)

    def _free_of(self, resource: str) -> Floats:
        return self._column(self._allocatable, resource) - self._column(self._used, resource)

    def _tolerated(self, tolerations: list[JsonObject]) -> Mask:
        passes = [
            all(
                tolerates(tolerations, {"key": key, "value": value, "effect": effect})
                for key, value, effect in taints
            )
            for taints in self._taint_sets
        ]
        return np.array(passes, np.bool_)[self._taint_set]

    def _matches(self, needs: PodNeeds) -> Mask:
        passes = np.ones(self._capacity, np.bool_)
        for key, value in needs.selector.items():
            passes &= self._expression({"key": key, "operator": "In", "values": [value]})
        if needs.terms is None:
            return passes
        # Terms are alternatives; one that says nothing matches nothing.
        one = np.zeros(self._capacity, np.bool_)
        for term in needs.terms:
            expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
            if not expressions and not fields:
                continue
            mask = np.ones(self._capacity, np.bool_)
            for expression in expressions:
                mask &= self._expression(expression)
            for expression in fields:
                mask &= self._named(expression)
            one |= mask
        return passes & one

    def _expression(self, expression: JsonObject) -> Mask:
        operator, values = expression["operator"], expression.get("values") or []
        known = self._labels.get(expression["key"])
        if known is None:
            return np.full(self._capacity, operator in ("NotIn", "DoesNotExist"), np.bool_)
        return _OPERATORS[operator](known, values)

    def _named(self, expression: JsonObject) -> Mask:
        listed = np.zeros(self._capacity, np.bool_)
        for name in expression.get("values") or []:
            if name in self.rows:
                listed[self.rows[name]] = True
        return listed if expression["operator"] == "In" else ~listed

    def _new_row(self, name: str) -> int:
        if self._free:
            row = self._free.pop()
            self._names[row] = name
            return row
        row = len(self._names)
        self._names.append(name)
        if row >= self._capacity:
            self._grow(max(64, 2 * self._capacity))
        return row

    def _grow(self, capacity: int) -> None:
        more = capacity - self._capacity
        self.present = np.pad(self.present, (0, more))
        self._open = np.pad(self._open, (0, more))
        self._taint_set = np.pad(self._taint_set, (0, more))
        for columns in (self._allocatable, self._used, self._score_used):
            for resource, column in columns.items():
                columns[resource] = np.pad(column, (0, more))
        for known in self._labels.values():
            known.codes = np.pad(known.codes, (0, more), constant_values=-1)
        self._capacity = capacity

    def _column(self, columns: dict[str, Floats], resource: str) -> Floats:
        if resource not in columns:
            columns[resource] = np.zeros(self._capacity)
        return columns[resource]


# Sums of tenths of a CPU are not exact, and Kubernetes counts thousandths.
_ROUNDING = 1e-6
_OPERATORS: dict[str, Callable[[_Labels, list[Any]], Mask]] = {
    "In": lambda known, values: known.among(values),
    "NotIn": lambda known, values: ~known.among(values),
    "Exists": lambda known, _: known.codes >= 0,
    "DoesNotExist": lambda known, _: known.codes < 0,
    "Gt": lambda known, values: known.compared(values[0], greater=True),
    "Lt": lambda known, values: known.compared(values[0], greater=False),
}
