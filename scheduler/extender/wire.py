"""Read kube-scheduler's questions. Pure: bytes in, records out, and nothing but `BadRequest` raised.

The Go types carry no JSON tags, so keys are the Go names (`Pod`, `NodeNames`), while the pod inside is
ordinary Kubernetes JSON. Go reads keys in any casing and writes `null` for whatever is nil; so both are
accepted here.

Two ways through: a typed decode that skips what is not read (0.11 ms for 5,000 names), and, for bodies that
it cannot use, an untyped decode with folded keys and nulls dropped. The typed one decodes a lower-case key
*without error into None*; hence the second look whenever something that must be there is missing.
Source: kube-scheduler/extender/v1/types.go, Kubernetes 1.20 to 1.36.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec
import numpy as np

from scheduler.cluster.objects import Node, Pod
from scheduler.core.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

T = TypeVar("T")

MOST_NAME_CHARACTERS = 253
"""As Kubernetes has it (RFC 1123). They are kept with decisions and logged, and a body may have 64 MiB."""


_OBJECT_NAME = re.compile(rf"(?=.{{1,{MOST_NAME_CHARACTERS}}}\Z)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class BadRequest(SchedulerError):
    """A question that cannot be answered; the caller answers 400 and counts `reason`, one of a closed set."""

    NOT_JSON = "not-json"
    WRONG_TYPE = "wrong-type"
    TOO_DEEP = "too-deep"
    BAD_UTF8 = "bad-utf8"
    NO_POD = "no-pod"
    MISSING_FIELD = "missing-field"

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedNodes:
    """The nodes of a question that carries whole objects (nodeCacheCapable false), in the order they came."""

    raw: list[msgspec.Raw]
    """The bytes of each: an answer must give back the very objects, fields that we do not read included."""
    nodes: list[Node]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterArgs:
    """A filter or prioritize question. `nodes` is None if only names were sent, and then so is the answer."""

    pod: Pod
    names: list[str]
    nodes: OfferedNodes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Victims:
    """What would be evicted from one node. `pods` only where whole objects were sent; `uids` always."""

    uids: list[str]
    pdb_violations: int = 0
    pods: list[Pod] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptArgs:
    """A preempt question: candidate nodes and their victims, possibly none of either."""

    pod: Pod
    victims: dict[str, Victims]


@dataclass(frozen=True, slots=True, kw_only=True)
class BindArgs:
    """A bind question. `uid` is empty if the caller sent none."""

    namespace: str
    name: str
    uid: str
    node: str


class _NodeList(msgspec.Struct, frozen=True, gc=False):
    items: list[msgspec.Raw] | None = None


# Field names in lower case with the wire's name beside them: a field called `Pod` would shadow its own type.
class _FilterBody(msgspec.Struct, frozen=True, gc=False):
    pod: Pod | None = msgspec.field(name="Pod", default=None)
    nodes: _NodeList | None = msgspec.field(name="Nodes", default=None)
    names: list[str] | None = msgspec.field(name="NodeNames", default=None)


class _Victims(msgspec.Struct, frozen=True, gc=False):
    pods: list[Pod | None] | None = msgspec.field(name="Pods", default=None)
    pdb_violations: int | None = msgspec.field(name="NumPDBViolations", default=None)


class _Uid(msgspec.Struct, frozen=True, gc=False):
    uid: str = msgspec.field(name="UID", default="")


class _MetaVictims(msgspec.Struct, frozen=True, gc=False):
    pods: list[_Uid | None] | None = msgspec.field(name="Pods", default=None)
    pdb_violations: int | None = msgspec.field(name="NumPDBViolations", default=None)


class _PreemptBody(msgspec.Struct, frozen=True, gc=False):
    pod: Pod | None = msgspec.field(name="Pod", default=None)
    victims: dict[str, _Victims | None] | None = msgspec.field(name="NodeNameToVictims", default=None)
    meta: dict[str, _MetaVictims | None] | None = msgspec.field(name="NodeNameToMetaVictims", default=None)


class _BindBody(msgspec.Struct, frozen=True, gc=False):
    name: str = msgspec.field(name="PodName", default="")
    namespace: str = msgspec.field(name="PodNamespace", default="")
    uid: str = msgspec.field(name="PodUID", default="")
    node: str = msgspec.field(name="Node", default="")


_filter_body = msgspec.json.Decoder(_FilterBody)
_preempt_body = msgspec.json.Decoder(_PreemptBody)
_bind_body = msgspec.json.Decoder(_BindBody)
_node = msgspec.json.Decoder(Node)

# Keys of the Go types, by their folded form. Keys of Kubernetes objects have JSON tags and are never folded,
# so folding stops at `Pod` and at the items of a node list.
_FILTER_KEYS = {"pod": "Pod", "nodes": "Nodes", "nodenames": "NodeNames"}
_PREEMPT_KEYS = {
    "pod": "Pod",
    "nodenametovictims": "NodeNameToVictims",
    "nodenametometavictims": "NodeNameToMetaVictims",
}
_VICTIM_KEYS = {"pods": "Pods", "numpdbviolations": "NumPDBViolations"}
_UID_KEYS = {"uid": "UID"}
_BIND_KEYS = {"podname": "PodName", "podnamespace": "PodNamespace", "poduid": "PodUID", "node": "Node"}


def read_filter(body: bytes | bytearray) -> FilterArgs:
    """Read ExtenderArgs, the question of filter and of prioritize.

    Raises:
        BadRequest: not such a question.
    """
    return _guarded(body, _read_filter)


def read_preempt(body: bytes | bytearray) -> PreemptArgs:
    """Read ExtenderPreemptionArgs in either form: victims as pods, or by uid.

    Raises:
        BadRequest: not such a question.
    """
    return _guarded(body, _read_preempt)


def read_bind(body: bytes | bytearray) -> BindArgs:
    """Read ExtenderBindingArgs.

    Raises:
        BadRequest: not such a question, or pod or node are not named.
    """
    return _guarded(body, _read_bind)


def rows_of(names: list[str], index: Mapping[str, int]) -> NDArray[np.intp]:
    """Look up each name's row; -1 for a name that the index lacks. Shape: (names,)."""
    return np.fromiter(map(index.get, names, repeat(-1)), np.intp, len(names))


def _guarded(body: bytes | bytearray, read: Callable[[bytes | bytearray], T]) -> T:
    try:
        # The decoder skips unread parts without looking at their bytes, and whole nodes are echoed raw:
        # so the encoding is checked here, for all of it (5 us for a question of 5,000 names).
        body.decode("utf-8")
        return read(body)
    except UnicodeDecodeError as error:
        raise BadRequest(BadRequest.BAD_UTF8, str(error.reason)) from error
    except RecursionError as error:
        raise BadRequest(
            BadRequest.TOO_DEEP, "expected a pod and nodes, got too many levels of JSON"
        ) from error
    except msgspec.ValidationError as error:
        raise BadRequest(BadRequest.WRONG_TYPE, str(error)) from error
    except msgspec.DecodeError as error:
        raise BadRequest(BadRequest.NOT_JSON, str(error)) from error


def _read_filter(body: bytes | bytearray) -> FilterArgs:
    try:
        question = _filter_body.decode(body)
    except msgspec.ValidationError:
        question = None  # perhaps only a null in a place where Go may write one
    if question is None or question.pod is None or _has_no_list(question):
        question = _read_loosely(body, _fold_filter, _FilterBody)
    pod = _pod(question.pod)
    # Names win where both came: they are what a scheduler with a node cache sends.
    if question.names is None and question.nodes is not None:
        raw = question.nodes.items or []
        nodes = [_read_node(item) for item in raw]
        names = [node.metadata.name for node in nodes]
        return FilterArgs(pod=pod, names=names, nodes=OfferedNodes(raw=raw, nodes=nodes))
    return FilterArgs(pod=pod, names=question.names or [])


def _has_no_list(question: _FilterBody) -> bool:
    return question.names is None and (question.nodes is None or question.nodes.items is None)


def _read_preempt(body: bytes | bytearray) -> PreemptArgs:
    try:
        question = _preempt_body.decode(body)
    except msgspec.ValidationError:
        question = None
    if question is None or question.pod is None or (question.victims is None and question.meta is None):
        question = _read_loosely(body, _fold_preempt, _PreemptBody)
    pod = _pod(question.pod)
    if question.meta is not None:
        return PreemptArgs(pod=pod, victims={name: _meta(given) for name, given in question.meta.items()})
    return PreemptArgs(
        pod=pod, victims={name: _full(given) for name, given in (question.victims or {}).items()}
    )


def _read_bind(body: bytes | bytearray) -> BindArgs:
    try:
        question = _bind_body.decode(body)
    except msgspec.ValidationError:
        question = None
    if question is None or not (question.name and question.namespace and question.uid and question.node):
        question = _read_loosely(body, _fold_bind, _BindBody)
    for field, value in (
        ("PodName", question.name),
        ("PodNamespace", question.namespace),
        ("Node", question.node),
    ):
        if not value:
            raise BadRequest(BadRequest.MISSING_FIELD, f"expected {field}, got nothing")
        # They become part of a URL that is asked for with our own rights: `../../nodes/x` is another one.
        if not _OBJECT_NAME.fullmatch(value):
            raise BadRequest(
                BadRequest.WRONG_TYPE, f"expected a Kubernetes name as {field}, got {value[:60]!r}"
            )
    if len(question.uid) > MOST_NAME_CHARACTERS:
        raise BadRequest(
            BadRequest.WRONG_TYPE, f"expected PodUID of at most {MOST_NAME_CHARACTERS} characters"
        )
    return BindArgs(namespace=question.namespace, name=question.name, uid=question.uid, node=question.node)


def _pod(pod: Pod | None) -> Pod:
    if pod is None:
        raise BadRequest(BadRequest.NO_POD, "expected Pod, the pod to place, got nothing")
    meta = pod.metadata
    if len(meta.uid) > MOST_NAME_CHARACTERS:
        what = f"expected Pod.metadata.uid of at most {MOST_NAME_CHARACTERS} characters"
        raise BadRequest(BadRequest.WRONG_TYPE, f"{what}, got {len(meta.uid)}")
    for field, value in (("name", meta.name), ("namespace", meta.namespace)):
        # Its Events go to a URL with these.
        if value and not _OBJECT_NAME.fullmatch(value):
            what = f"expected a Kubernetes name as Pod.metadata.{field}"
            raise BadRequest(BadRequest.WRONG_TYPE, f"{what}, got {value[:60]!r}")
    return pod


def _meta(given: _MetaVictims | None) -> Victims:
    if given is None:
        return Victims(uids=[])
    uids = [pod.uid for pod in given.pods or () if pod is not None]
    return Victims(uids=uids, pdb_violations=given.pdb_violations or 0)


def _full(given: _Victims | None) -> Victims:
    if given is None:
        return Victims(uids=[], pods=[])
    pods = [pod for pod in given.pods or () if pod is not None]
    return Victims(
        uids=[pod.metadata.uid for pod in pods], pdb_violations=given.pdb_violations or 0, pods=pods
    )


def _read_node(item: msgspec.Raw) -> Node:
    try:
        return _node.decode(item)
    except msgspec.ValidationError:
        return msgspec.convert(_without_nulls(msgspec.json.decode(item)), Node)


def _read_loosely(
    body: bytes | bytearray, fold: Callable[[dict[str, object]], dict[str, object]], into: type[T]
) -> T:
    question = msgspec.json.decode(body)
    if not isinstance(question, dict):
        raise BadRequest(BadRequest.WRONG_TYPE, "expected an object")
    return msgspec.convert(_without_nulls(fold(question)), into)


def _fold(given: dict[str, object], keys: Mapping[str, str]) -> dict[str, object]:
    return {keys.get(key.lower(), key): value for key, value in given.items()}


def _fold_filter(question: dict[str, object]) -> dict[str, object]:
    folded = _fold(question, _FILTER_KEYS)
    nodes = folded.get("Nodes")
    if isinstance(nodes, dict):
        items = _fold(nodes, {"items": "items"}).get("items")
        if isinstance(items, list):
            # `_NodeList` wants bytes, and an answer repeats them: encoded again, for want of the originals.
            folded["Nodes"] = {"items": [msgspec.Raw(msgspec.json.encode(item)) for item in items]}
    return folded


def _fold_preempt(question: dict[str, object]) -> dict[str, object]:
    folded = _fold(question, _PREEMPT_KEYS)
    for key in ("NodeNameToVictims", "NodeNameToMetaVictims"):
        by_name = folded.get(key)
        if isinstance(by_name, dict):
            folded[key] = {name: _fold_victims(given, key) for name, given in by_name.items()}
    return folded


def _fold_victims(given: object, key: str) -> object:
    if given is None:
        # A nil pointer in Go's map: a candidate without victims, not a null to be dropped.
        return {}
    if not isinstance(given, dict):
        return given
    folded = _fold(given, _VICTIM_KEYS)
    pods = folded.get("Pods")
    if key == "NodeNameToMetaVictims" and isinstance(pods, list):
        folded["Pods"] = [_fold(pod, _UID_KEYS) if isinstance(pod, dict) else pod for pod in pods]
    return folded


def _fold_bind(question: dict[str, object]) -> dict[str, object]:
    return _fold(question, _BIND_KEYS)


def _without_nulls(value: object) -> object:
    # A null field means its default, as in Go; a null in a list stays, since its place may count.
    if isinstance(value, dict):
        return {
            key: _without_nulls(inner)
            for key, inner in cast("dict[str, object]", value).items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
