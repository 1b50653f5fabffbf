"""From a pod's spec to what rules nodes out for it, whatever happens there. Pure.

kube-scheduler judges all this itself, and offers no other nodes. It is read to know which nodes a pod could ever be
offered: those of a pool that no pod like it may enter hold it back from no later one, and explain names them. What
cannot be understood rules nothing out.
Source: plugins nodeaffinity and tainttoleration, Kubernetes 1.20 to 1.36.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scheduler.cluster.objects import PodSpec
from scheduler.cluster.preference_objects import NodeSelector, TolerationEntry
from scheduler.cluster.preferences import (
    MOST_KEYS,
    MOST_TERMS,
    NotUnderstood,
    node_selector_of,
    node_term,
    toleration,
)
from scheduler.core.preferences import Conditions, NodeTerm, Toleration

# Admission gives every pod one for each, for some minutes. Such a node has a taint of NoSchedule, too.
_EVERY_PODS = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})


def conditions_of(spec: PodSpec) -> Conditions | None:
    """What the spec asks of nodes; None if it asks for nothing and tolerates no more than every pod."""
    required = None
    if spec.affinity is not None and spec.affinity.node_affinity is not None:
        required = spec.affinity.node_affinity.required
    given = spec.tolerations or ()
    if not spec.node_selector and required is None and all(map(_is_every_pods, given)):
        return None
    selector = node_selector_of(spec)
    terms = _required(required)
    if (
        len({each.key for part in (selector, *(term.labels for term in terms or ())) for each in part})
        > MOST_KEYS
    ):
        selector, terms = (), None
    return Conditions(node_selector=selector, required=terms, tolerations=tuple(_tolerations(given)))


def _required(required: NodeSelector | None) -> tuple[NodeTerm, ...] | None:
    given = required.node_selector_terms or () if required is not None else ()
    if required is None or len(given) > MOST_TERMS:
        return None
    try:
        return tuple(node_term(each, 0) for each in given)
    except NotUnderstood:
        return None


def _is_every_pods(given: TolerationEntry) -> bool:
    return given.key in _EVERY_PODS and given.effect == "NoExecute"


def _tolerations(given: Sequence[TolerationEntry]) -> Iterator[Toleration]:
    for each in given[:MOST_TERMS]:
        if _is_every_pods(each):
            continue
        try:
            yield toleration(each)
        except NotUnderstood:
            # An operator of later days: whatever it compares, it may tolerate.
            yield Toleration(each.key, exists=True, effect=each.effect)
    if len(given) > MOST_TERMS:
        yield Toleration(exists=True)
