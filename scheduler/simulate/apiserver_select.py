"""Field and label selectors, as list and watch requests carry them."""

from __future__ import annotations

import re
from collections.abc import Callable

from scheduler.core.errors import ApiRejected
from scheduler.simulate.apiserver_rules import JsonObject

Test = Callable[[JsonObject], bool]

_SET = re.compile(r"(?P<key>[^\s,!()]+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)")
_PART = re.compile(r"[^,(]+(?:\([^)]*\))?")


def selector(fields: str, labels: str) -> Test | None:
    """What both selectors ask; None where they ask nothing. Raises ApiRejected (400)."""
    tests = [_field(part) for part in fields.split(",") if part]
    tests += [_label(part.group().strip()) for part in _PART.finditer(labels)]
    if not tests:
        return None
    return lambda obj: all(test(obj) for test in tests)


def _field(part: str) -> Test:
    path, negated, value = _split(part)
    if value is None:
        raise ApiRejected(f"invalid field selector: {part}", status=400)
    keys = path.split(".")

    def test(obj: JsonObject) -> bool:
        at: object = obj
        for key in keys:
            at = at.get(key) if isinstance(at, dict) else None
        return (("" if at is None else str(at)) == value) != negated

    return test


def _label(part: str) -> Test:
    if found := _SET.fullmatch(part):
        key, negated = found["key"], found["op"] == "notin"
        values = {value.strip() for value in found["values"].split(",")}
        return lambda obj: (_labels(obj).get(key) in values) != negated
    key, negated, value = _split(part)
    if value is not None:
        return lambda obj: (_labels(obj).get(key) == value) != negated
    if key.startswith("!"):
        return lambda obj: key[1:] not in _labels(obj)
    return lambda obj: key in _labels(obj)


def _split(part: str) -> tuple[str, bool, str | None]:
    for sign, negated in (("!=", True), ("==", False), ("=", False)):
        if sign in part:
            key, _, value = part.partition(sign)
            return key.strip(), negated, value.strip()
    return part.strip(), False, None


def _labels(obj: JsonObject) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}
