"""Configurations, good and bad, made from the settings' own types; and what must hold of whatever is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from scheduler import config
from scheduler.cluster.annotations import TABLE
from scheduler.config_settings import Settings
from scheduler.config_types import Address, BrokerUrl, PolicyUse, PositiveSeconds, Seconds
from scheduler.config_yaml import show_path
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.units import format_duration

# A problem stands in a log line and an event; the list of all keys of a section is the longest that one may hold.
MOST_PROBLEM_CHARACTERS = 2000

SCORES, FILTERS = config.policy_arguments()
SPANS = st.floats(0.001, 1e5).map(format_duration) | st.sampled_from(["5s", "250ms", "4h30m"])
LEAVES: dict[type, st.SearchStrategy[object]] = {
    Seconds: SPANS | st.just("0s"),
    PositiveSeconds: SPANS,
    Address: st.builds(
        "{}:{}".format, st.sampled_from(["127.0.0.1", "[::1]", "localhost"]), st.integers(0, 65535)
    ),
    BrokerUrl: st.sampled_from(["mqtts://broker:8883", "mqtt://[::1]/", "mqtts://b"]),
}


def values_of(kind: inspect.Type, path: str = "") -> st.SearchStrategy[Any]:
    """What may stand at a path, as plain data; rules about several keys may still be broken."""
    if path in SPECIAL:
        return SPECIAL[path]()
    if isinstance(kind, inspect.Metadata):
        return values_of(kind.type, path)
    if isinstance(kind, inspect.UnionType):
        return st.one_of([values_of(each, path) for each in kind.types])
    if isinstance(kind, inspect.StructType):
        return settings_of(kind.fields, path)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        parts = values_of(kind.item_type, f"{path}[]")
        return st.lists(parts, min_size=kind.min_length or 0, max_size=3)
    if isinstance(kind, inspect.DictType):
        keys, parts = values_of(kind.key_type), values_of(kind.value_type, f"{path}.*")
        return st.dictionaries(keys, parts, min_size=kind.min_length or 0, max_size=3)
    return scalars_of(kind)


def scalars_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of one plain type."""
    if isinstance(kind, inspect.CustomType):
        return LEAVES[kind.cls]
    if isinstance(kind, inspect.EnumType):
        return st.sampled_from([each.value for each in kind.cls])
    if isinstance(kind, inspect.IntType):
        return st.integers(kind.ge, kind.le)
    if isinstance(kind, inspect.FloatType):
        least = kind.ge if kind.gt is None else kind.gt
        return st.floats(least, kind.le, exclude_min=kind.gt is not None)
    if isinstance(kind, inspect.StrType):
        most = kind.max_length or 253
        if kind.pattern is not None:
            return st.from_regex(kind.pattern).filter(lambda text: len(text) <= most)
        return st.text(min_size=kind.min_length or 0, max_size=min(most, 20))
    return st.booleans() if isinstance(kind, inspect.BoolType) else st.none()


def settings_of(fields: tuple[inspect.Field, ...], path: str) -> st.SearchStrategy[dict[str, Any]]:
    """A section with some of its keys."""
    kinds = {
        each.encode_name: values_of(each.type, f"{path}.{each.encode_name}".lstrip(".")) for each in fields
    }
    needed = {each.encode_name for each in fields if each.required}
    return st.fixed_dictionaries(
        {key: kind for key, kind in kinds.items() if key in needed},
        optional={key: kind for key, kind in kinds.items() if key not in needed},
    )


def _policies() -> st.SearchStrategy[dict[str, Any]]:
    chosen = {name: values_of(inspect.type_info(use)) for name, use in SCORES.items()}
    return st.fixed_dictionaries({}, optional=chosen).filter(bool)


KEYS = st.sampled_from([(key, each) for key in sorted(TABLE) for each in TABLE[key].examples])
# Where the types say less than the rules; `[]` is any entry of a list.
SPECIAL: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "annotations": lambda: st.lists(KEYS, max_size=2).map(dict),
    "namespaces[].allow": lambda: st.lists(KEYS, max_size=3).map(
        lambda said: {key: [text] for key, text in said}
    ),
    "filters": lambda: st.dictionaries(st.sampled_from(FILTERS), st.booleans()),
    "profiles.training.policies": _policies,
    "profiles.inference.policies": _policies,
    "profiles.batch.policies": _policies,
    "pools[].selector": lambda: st.fixed_dictionaries({"site": st.sampled_from("abcdefgh")}),
    "lease.duration": lambda: st.sampled_from(["15s", "1h"]),
    "lease.renew_deadline": lambda: st.sampled_from(["9500ms", "10s", "14s999ms"]),
    "lease.retry": lambda: st.integers(100, 7000).map(lambda ms: f"{ms}ms"),
    "listeners[].serves": lambda: st.lists(
        st.sampled_from(["extender", "api", "metrics", "probes"]), min_size=1, unique=True
    ),
    "extender.prefix": lambda: st.sampled_from(["/scheduler", "/a/b-c"]),
}
CONFIGURATIONS = values_of(inspect.type_info(Settings))


def loads(data: object) -> bool:
    with suppress(ConfigError):
        return bool(config.load(as_flow(data)))
    return False


class Raw(str):
    """Text that is written into the file as it stands, as a key or a value."""

    __slots__ = ()


def as_flow(value: object) -> str:
    """Write data as YAML, values as YAML writes them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_flow(key)}: {as_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_flow, value)) + "]"
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def as_block(value: object, indent: int = 0) -> str:
    """Write data as people do: a key a line."""
    start = "\n" + "  " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{start}{as_flow(key)}: {as_block(part, indent + 1)}" for key, part in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{start}- {as_block(part, indent + 1)}" for part in value)
    return as_flow(value)


def as_written(value: object) -> object:
    """Settings as the file would have them, every key of them."""
    if isinstance(value, PolicyUse):
        return {"weight": value.weight, **value.options}
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {field.encode_name: as_written(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): as_written(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_written(part) for part in value]
    return str(value) if isinstance(value, (str, Seconds)) else value


# --- what people get wrong -------------------------------------------------------------------------------------------

STRANGE_TEXTS = ["5", "5 s", "weight", "on", "[", "a@b", "x" * 5000, "\x1b[31m", "ü", "\u202e"]
# What other readers of YAML take, or take for something else.
STRANGE_YAML = [
    *(
        "0x1f",
        "017",
        "1_000",
        "2024-01-02",
        "4:30",
        "<<",
        "*a",
        "&a 1",
        "!!binary eA==",
        "!x y",
        "{<<: {x: 1}}",
    ),
    *(
        "!!python/object/apply:os.system [x]",
        "&a {b: *a}",
        "[&b c, *b]",
        "{a: 1, a: 2}",
        "{[1]: 2}",
        "{1: 2}",
    ),
    *("'\x00'", '"\\ud800"', "'", "}", "|\n  x", "\t-"),
]
NESTED = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 0.0, 10**17, math.nan, math.inf, -math.inf, 1e308, 5e-324]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(STRANGE_TEXTS),
    st.sampled_from(STRANGE_YAML).map(Raw),
    st.integers(1, 40).map(lambda depth: Raw("[" * depth + "]" * depth)),
    NESTED,
)
STRANGE_KEYS = st.sampled_from(["weigth", "x", "", "a.b", "[0]", "name ", "\x1b[2J", "k" * 300]) | st.text(
    max_size=6
)
Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A configuration with one thing wrong in it, and where; some are good all the same."""

    data: object
    place: Place = ()
    scalar: object = ""
    """What stands there instead, where it is one value."""


@st.composite
def bent(draw: st.DrawFn) -> Wrong:
    """Bend a good one in one place."""
    data = draw(CONFIGURATIONS.filter(loads))
    place: Any = data
    path: Place = ()
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        how = draw(st.sampled_from(["into", "into", "into", "exchange", "remove", "strange", "twice"]))
        key = draw(st.sampled_from(keys)) if keys else ""
        if how == "into" and keys and isinstance(place[key], dict | list):
            place, path = place[key], (*path, key)
        elif how == "strange" and isinstance(place, dict):
            key = draw(STRANGE_KEYS)
            place[key] = draw(JUNK)
            return Wrong(data=data, place=(*path, key))
        elif how == "twice" and isinstance(place, dict) and keys:
            place[Raw(as_flow(key))] = place[key] if draw(st.booleans()) else draw(JUNK)
            return Wrong(data=data, place=(*path, key))
        elif how == "twice" and keys:
            place.append(place[key])
            return Wrong(data=data, place=path)
        elif how == "remove" and keys:
            del place[key]
            return Wrong(data=data, place=path)
        elif keys:
            place[key] = junk = draw(JUNK)
            scalar = "" if isinstance(junk, (dict, list, Raw)) else junk
            return Wrong(data=data, place=(*path, key), scalar=scalar)
        elif not path:
            return Wrong(data=data)
        else:
            place, path = data, ()


BROKER = ("telemetry", "broker")
EXAMPLE = config.example().encode()
CUTS = st.integers(0, len(EXAMPLE))
HOSTILE = [b"[" * 10_000, b"{a: " * 10_000, b"x" * 2**20 + b"x", b"\xef\xbb\xbf", b"\x00" * 50, b"\xff\xfe"]
BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(str.encode),
    st.builds(lambda junk, at: EXAMPLE[:at] + junk + EXAMPLE[at:], st.binary(max_size=8), CUTS),
    CUTS.map(lambda end: EXAMPLE[:end]),
    st.sampled_from(HOSTILE),
)


def judge(raw: bytes, wrong: Wrong | None = None) -> str:
    """Load bytes; returns `good` or `bad`. What is good can be written and loaded again, what is bad says why."""
    try:
        settings = config.load_raw(raw, "config.yaml")
    except ConfigError as error:
        assert_told(error.problems, wrong)
        return "bad"
    assert config.load(as_flow(as_written(settings))) == settings
    return "good"


def assert_told(problems: list[Problem], wrong: Wrong | None) -> None:
    """A person can act on each: it says where, what was expected and what stands there, in one line."""
    assert problems
    for problem in problems:
        line = str(problem)
        assert line.isprintable(), line
        assert len(line) < MOST_PROBLEM_CHARACTERS, line
        assert problem.message.startswith("expected "), line
        assert any(word in problem.message for word in (", got ", "; got ", " got: ")), line
        assert not problem.message.endswith("got "), line
        # An empty file has no line in which a key is missing, and what is too long is not read.
        whole = problem.path == "config.yaml" or "is missing" in line or "bytes, got more" in line
        assert problem.line is not None or whole, line
    if wrong is None:
        return
    # In its section, or where a rule reads that too; what cannot be read at all has no sections.
    section, shown = show_path(wrong.place[:1]), show_path(wrong.place)
    near = any(each.path.startswith(section) or section in each.message for each in problems)
    assert near or len(problems) == 1, (shown, problems)
    at = [each.message for each in problems if each.path == shown]
    if at and wrong.place == BROKER and "@" in str(wrong.scalar):
        # It may be a password, and the log is no place for that.
        assert all(str(wrong.scalar) not in message or wrong.scalar == "@" for message in at), problems
    elif at and wrong.scalar != "":
        spellings = {str(wrong.scalar)[:20], repr(wrong.scalar)[1:20], as_flow(wrong.scalar)}
        spellings |= {"nothing"} if wrong.scalar is None else set()
        assert any(each in message for each in spellings for message in at), (wrong, problems)
