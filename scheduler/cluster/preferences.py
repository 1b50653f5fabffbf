"""From a pod's spec to what it prefers. Pure.

Read as kube-scheduler reads it, so that nothing is weighed that it would not weigh. What cannot be understood (an
operator of tomorrow, a number that is none) is named and left to kube-scheduler's own scores.
Source: component-helpers nodeaffinity, apimachinery labels, plugins interpodaffinity, tainttoleration and
podtopologyspread, Kubernetes 1.20 to 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from scheduler.cluster.objects import Pod, PodSpec
from scheduler.cluster.preference_objects import (
    Affinity,
    Expression,
    LabelSelector,
    NodeSelectorTerm,
    PodAffinityTerm,
    SpreadConstraint,
    Taint,
    TolerationEntry,
)
from scheduler.core.preferences import (
    NodeTerm,
    Operator,
    PodSet,
    PodTerm,
    Preferences,
    Requirement,
    Selector,
    SpreadTerm,
    Toleration,
)
from scheduler.core.units import quoted

_T = TypeVar("_T")
NAME_FIELD = "metadata.name"
PREFER_NO_SCHEDULE = "PreferNoSchedule"
# What keeps a pod away, and not only drives away what is there.
FORBIDDING = ("NoSchedule", "NoExecute")
# Beyond this a pod was made to keep a scheduler busy, and kube-scheduler may be.
MOST_TERMS = 64
MOST_VALUES = 1024
# Different label keys of one pod; each that nobody asked for before takes 24 ms where 50,000 pods are all unlike.
MOST_KEYS = 16
# As the API server validates them.
MOST_WEIGHT = 100
MOST_SKEW = 2**31 - 1
# As Go's strconv.ParseInt reads it: no blanks, no underscores, any number of zeros before. A label has 63 characters.
_WHOLE = re.compile(r"[+-]?[0-9]{1,63}")
_LEAST, _MOST = -(2**63), 2**63 - 1


class NotUnderstood(Exception):
    """A preference that we cannot weigh; the text says which."""


def whole(text: str) -> int | None:
    """A whole number of 64 bits, as Go reads it; None where it is none."""
    if not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if _LEAST <= number <= _MOST else None


def preferences_of(pod: Pod) -> Preferences | None:
    """What the pod's spec prefers; None if it says nothing that could matter."""
    spec = pod.spec
    if (
        spec.affinity is None
        and not spec.topology_spread_constraints
        # Every pod has two of NoExecute, by admission.
        and all(each.effect in FORBIDDING for each in spec.tolerations or ())
    ):
        return None
    return _Reader(pod).read()


class _Reader:
    """Reads one pod."""

    def __init__(self, pod: Pod) -> None:
        self._spec: PodSpec = pod.spec
        self._namespace = pod.metadata.namespace
        self._labels = pod.metadata.labels or {}
        self._unclear: list[str] = []

    def read(self) -> Preferences | None:
        affinity = self._spec.affinity or Affinity()
        nodes = tuple(self._nodes(affinity))
        pods = tuple(self._pods(affinity))
        spreads = tuple(self._spreads(self._spec.topology_spread_constraints or ()))
        tolerations = tuple(self._tolerations(all_effects=any(each.honours_taints for each in spreads)))
        node_selector: Selector = ()
        required: tuple[NodeTerm, ...] | None = None
        if any(each.honours_affinity for each in spreads):
            try:
                node_selector, required = self._conditions(affinity)
            except NotUnderstood as error:
                self._unclear.append(f"node affinity that a topology spread honours: {error}")
                spreads = ()
        if not (nodes or pods or spreads or tolerations or self._unclear):
            return None
        if len(_keys((*nodes, *(required or ())), *pods, *spreads, beside=node_selector)) > MOST_KEYS:
            nodes, pods, spreads = (), (), ()
            self._unclear.append(f"more than {MOST_KEYS} different label keys")
        return Preferences(
            nodes=nodes,
            pods=pods,
            spreads=spreads,
            tolerations=tolerations,
            node_selector=node_selector,
            required=required,
            not_understood=tuple(self._unclear),
        )

    def _nodes(self, affinity: Affinity) -> Iterator[NodeTerm]:
        given = affinity.node_affinity.preferred if affinity.node_affinity is not None else None
        what = "preferred node affinity"
        for term in self._few(given or (), what):
            try:
                read = node_term(term.preference, _weight(term.weight))
            except NotUnderstood as error:
                self._unclear.append(f"{what}: {error}")
                continue
            if term.weight and (read.labels or read.names):
                yield read

    def _pods(self, affinity: Affinity) -> Iterator[PodTerm]:
        kinds = (
            ("preferred pod affinity", affinity.pod_affinity, 1),
            ("preferred pod anti-affinity", affinity.pod_anti_affinity, -1),
        )
        for what, part, sign in kinds:
            for term in self._few(part.preferred or () if part is not None else (), what):
                try:
                    pods, weight = self._pod_set(term.pod_affinity_term), _weight(term.weight)
                except NotUnderstood as error:
                    self._unclear.append(f"{what}: {error}")
                    continue
                if weight:
                    yield PodTerm(pods, term.pod_affinity_term.topology_key, sign * weight)

    def _pod_set(self, term: PodAffinityTerm) -> PodSet:
        if not term.topology_key:
            raise NotUnderstood("no topologyKey")
        by_labels = None if term.namespace_selector is None else _selector(term.namespace_selector)
        namespaces = tuple(term.namespaces or ())
        if len(namespaces) > MOST_VALUES:
            raise NotUnderstood(f"more than {MOST_VALUES} namespaces")
        if not namespaces and by_labels is None:
            namespaces = (self._namespace,)
        selector = None if term.label_selector is None else _selector(term.label_selector)
        return PodSet(selector, namespaces, by_labels)

    def _spreads(self, constraints: Sequence[SpreadConstraint]) -> Iterator[SpreadTerm]:
        what = "topology spread (ScheduleAnyway)"
        anyway = [each for each in constraints if each.when_unsatisfiable == "ScheduleAnyway"]
        for each in self._few(anyway, what):
            try:
                yield self._spread(each)
            except NotUnderstood as error:
                self._unclear.append(f"{what}: {error}")

    def _spread(self, given: SpreadConstraint) -> SpreadTerm:
        keys = [key for key in given.match_label_keys or () if key in self._labels]
        selector = None if given.label_selector is None else _selector(given.label_selector)
        if keys:
            # Beside a selector of nothing too: so kube-scheduler adds them.
            same = (Requirement(key, Operator.IN, (self._labels[key],)) for key in keys)
            selector = (*(selector or ()), *same)
        if not given.topology_key or not 0 < given.max_skew <= MOST_SKEW:
            raise NotUnderstood(
                f"topologyKey {quoted(given.topology_key)}, maxSkew {quoted(str(given.max_skew))[1:-1]}"
            )
        return SpreadTerm(
            PodSet(selector, (self._namespace,)),
            given.topology_key,
            given.max_skew,
            honours_affinity=_honours(given.node_affinity_policy, default=True),
            honours_taints=_honours(given.node_taints_policy, default=False),
        )

    def _conditions(self, affinity: Affinity) -> tuple[Selector, tuple[NodeTerm, ...] | None]:
        node_selector = node_selector_of(self._spec)
        required = affinity.node_affinity.required if affinity.node_affinity is not None else None
        if required is None:
            return node_selector, None
        return node_selector, tuple(node_term(each, 0) for each in required.node_selector_terms or ())

    def _tolerations(self, *, all_effects: bool) -> Iterator[Toleration]:
        for given in self._few(self._spec.tolerations or (), "tolerations"):
            if not all_effects and given.effect not in {"", PREFER_NO_SCHEDULE}:
                continue
            try:
                yield toleration(given)
            except NotUnderstood as error:
                self._unclear.append(f"toleration: {error}")

    def _few(self, given: Sequence[_T], what: str) -> Sequence[_T]:
        if len(given) > MOST_TERMS:
            self._unclear.append(f"{what}: more than {MOST_TERMS}")
        return given[:MOST_TERMS]


def node_selector_of(spec: PodSpec) -> Selector:
    """Its nodeSelector."""
    labels = spec.node_selector or {}
    return tuple(Requirement(key, Operator.IN, (value,)) for key, value in labels.items())


def node_term(given: NodeSelectorTerm, weight: int) -> NodeTerm:
    """Read one term. Raises NotUnderstood."""
    if len(given.match_fields or ()) + len(given.match_expressions or ()) > MOST_TERMS:
        raise NotUnderstood(f"more than {MOST_TERMS} expressions")
    names = tuple(_requirement(each) for each in given.match_fields or ())
    for each in names:
        if each.key != NAME_FIELD or each.operator not in {Operator.IN, Operator.NOT_IN}:
            raise NotUnderstood(f"field {quoted(each.key)} {each.operator}")
    return NodeTerm(tuple(_requirement(each) for each in given.match_expressions or ()), names, weight)


def _selector(given: LabelSelector) -> Selector:
    if len(given.match_labels or ()) + len(given.match_expressions or ()) > MOST_TERMS:
        raise NotUnderstood(f"more than {MOST_TERMS} expressions")
    exact = (Requirement(key, Operator.IN, (value,)) for key, value in (given.match_labels or {}).items())
    found = [*exact, *map(_requirement, given.match_expressions or ())]
    for each in found:
        if each.operator in {Operator.GT, Operator.LT}:
            raise NotUnderstood(f"operator {each.operator} on a label of pods")
    return tuple(found)


def _weight(given: int) -> int:
    if not 0 <= given <= MOST_WEIGHT:
        raise NotUnderstood(f"a weight that is not 1 to {MOST_WEIGHT}")
    return given


def _keys(terms: Iterable[NodeTerm], *others: PodTerm | SpreadTerm, beside: Selector) -> set[str]:
    """All label keys, of nodes and of pods, that it takes to weigh these."""
    selectors = [beside, *(term.labels for term in terms), *(term.pods.selector or () for term in others)]
    keys = {each.key for selector in selectors for each in selector}
    return keys | {term.topology_key for term in others}


def _requirement(given: Expression) -> Requirement:
    values = tuple(given.values or ())
    try:
        operator = Operator(given.operator)
    except ValueError:
        raise NotUnderstood(f"operator {quoted(given.operator)}") from None
    if operator in {Operator.IN, Operator.NOT_IN}:
        sound = 0 < len(values) <= MOST_VALUES
    elif operator in {Operator.GT, Operator.LT}:
        sound = len(values) == 1 and whole(values[0]) is not None
    else:
        sound = not values
    if not sound:
        raise NotUnderstood(f"operator {operator} of {quoted(given.key)} with {len(values)} values")
    return Requirement(given.key, operator, values)


def _honours(policy: str | None, *, default: bool) -> bool:
    if policy not in {None, "Honor", "Ignore"}:
        raise NotUnderstood(f"node inclusion policy {quoted(policy)}")
    return default if policy is None else policy == "Honor"


def toleration(given: TolerationEntry) -> Toleration:
    """Read one toleration. Raises NotUnderstood."""
    if given.operator not in {"", "Equal", "Exists"}:
        raise NotUnderstood(f"operator {quoted(given.operator)}")
    return Toleration(given.key, given.operator == "Exists", given.value, given.effect)


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Whether a taint does not matter by this toleration."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.exists or toleration.value == taint.value
