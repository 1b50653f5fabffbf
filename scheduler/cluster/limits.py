"""What the configuration lets the pods of one namespace ask for, and where it holds those that ask for nothing. Pure.

A limit on `pools`, `gpu-model` or `workload` is a promise to whoever wrote it: a pod that says nothing, or nothing that
counts, must not come to what its namespace may not have. Limits on other keys bound only what is
said: where nothing is, the key's default holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.cluster.annotation_values import BadValue
from scheduler.cluster.annotations import TABLE, Value
from scheduler.cluster.intent import LIMIT, NamespaceRule, Word
from scheduler.core.models import folded_glob
from scheduler.core.nouns import Workload
from scheduler.core.units import quoted

# In a message; an event has 1,024 bytes for all that it says.
MOST_LISTED = 8


def allows(key: str, allowed: Sequence[Value], value: Value) -> bool:
    """Whether a value is among those; of a list, whether each entry is in one of theirs."""
    if isinstance(value, tuple):
        if key == "gpu-model":
            may = {folded_glob(str(entry)) for each in allowed for entry in each}
            return {folded_glob(str(entry)) for entry in value} <= may
        return set(value) <= {entry for each in allowed for entry in each}
    return value in allowed


def listed(key: str, allowed: Sequence[Value]) -> str:
    """The values that are allowed, for a person."""
    texts = [TABLE[key].write(value) for value in allowed]
    more = [f"{len(texts) - MOST_LISTED} more"] if len(texts) > MOST_LISTED else []
    return " or ".join([*texts[:MOST_LISTED], *more]) or "nothing"


@dataclass(frozen=True, slots=True)
class Limits:
    """Those of one namespace."""

    namespace: str = ""
    allow: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    held: Mapping[str, Word] = field(default_factory=dict)
    """What counts of a key where nothing else does."""

    def check(self, key: str, value: Value) -> None:
        """Raises BadValue where pods of this namespace may not ask for that."""
        allowed = self.allow.get(key)
        if allowed is None or allows(key, allowed, value):
            return
        got = quoted(TABLE[key].write(value))
        raise BadValue(
            f"expected what namespace {self.namespace} may ask for ({listed(key, allowed)}), got {got}"
        )

    def workload(self, found: Workload, by: str) -> tuple[Workload, str]:
        """What a pod is that does not say so, and by whom: the first that is allowed, if that is not."""
        allowed = self.allow.get("workload")
        return (allowed[0], LIMIT) if allowed and found not in allowed else (found, by)


NONE = Limits()


def limits_of(namespace: str, rules: Iterable[NamespaceRule], pools: Collection[str] | None) -> Limits:
    """The limits of a namespace: the first rule that matches counts.

    Args:
        namespace: Its name.
        rules: The configuration's.
        pools: All there are, in order of preference; None: any, in the rule's own order.
    """
    rule = next((rule for rule in rules if rule.match(namespace)), None)
    if rule is None:
        return NONE
    held = {}
    for key in ("pools", "gpu-model"):
        entries = list(dict.fromkeys(entry for each in rule.allow.get(key, ()) for entry in each))
        if key == "pools" and pools is not None:
            entries = [pool for pool in pools if pool in entries]
        # An empty list lets nobody ask; it does not say where pods are then to go.
        if entries:
            held[key] = Word(value=tuple(entries), text=TABLE[key].write(tuple(entries)), where=LIMIT)
    return Limits(namespace, rule.allow, held)
