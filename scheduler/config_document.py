"""Makes docs/config.md from the settings' types: `python -m scheduler.config_document > docs/config.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
from msgspec import inspect

from scheduler import config
from scheduler.config_changes import needs_restart
from scheduler.config_settings import Settings
from scheduler.config_types import PolicyUse, Seconds
from scheduler.config_yaml import scalar

HEAD = """# Configuration

Made by `python -m scheduler.config_document` from the types in `scheduler/config_settings.py`; a test compares the two.
`wattbalance config example` prints a whole file with comments, `wattbalance config schema` the same facts for editors,
and `wattbalance check-config FILE` finds every problem in one.

A path with `[]` is one of a list, with `NAME` one of a mapping. What has no default must be given, below a list or a
mapping only where there is such an entry. Durations carry their unit (`250ms`, `30s`, `4h30m`). Files are named and
never copied in, so no secret is in this one.

A running daemon looks at its file once a second, and takes what has changed; a file with a problem changes nothing.
Keys marked *at a start* are taken by the next process only.
"""
SECTION = "a section"
TABLE = """
| key | type | default | meaning |
|---|---|---|---|
"""
POLICIES = """
## Policies

What each policy that scores takes in `profiles.*.policies`; the weights of one profile are relative to each other.

What pods prefer is weighed without being named: `node-affinity`, `pod-affinity` and `topology-spread` as much as all
policies that are named, added up, and `taint-toleration` one and a half times that: so kube-scheduler weighs its
plugins against its own scores of resources. Where a pod prefers nothing, they have no weight at all. Named, they weigh
what is given.
"""
FILTERS = """
Policies that filter, as `filters` names them: {}.
"""


@dataclass(frozen=True, slots=True)
class _Row:
    """One key."""

    path: str
    kind: str
    default: str
    text: str

    def line(self) -> str:
        cells = (f"`{self.path}`", self.kind, self.default, self.text)
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def document() -> str:
    """Return the whole page."""
    parts = [HEAD]
    top: list[_Row] = []
    sections: list[str] = []
    for field in _fields(Settings):
        rows = [_marked(row) for row in _rows(field, "")]
        if len(rows) == 1:
            top += rows
        else:
            # A section's own row would only say again what stands above the table.
            own = 1 if isinstance(_bare(field.type)[0], inspect.StructType) else 0
            table = (row.line() for row in rows[own:])
            sections += [f"\n## {field.encode_name}\n\n{rows[0].text}\n", TABLE, *table]
    parts += ["\n## At the top\n", TABLE, *(row.line() for row in top), *sections, POLICIES, TABLE]
    scores, filters = config.policy_arguments()
    for name, kind in sorted(scores.items()):
        parts += [row.line() for field in _fields(kind) for row in _rows(field, f"{name}.")]
    return "".join([*parts, FILTERS.format(", ".join(f"`{name}`" for name in sorted(filters)))])


def _marked(row: _Row) -> _Row:
    at_start = row.kind != SECTION and needs_restart(row.path)
    return replace(row, text=f"{row.text} *At a start.*") if at_start else row


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)  # noqa: S101 - it is given one
    return info.fields


def _rows(field: inspect.Field, before: str) -> Iterator[_Row]:
    """Give the key's own row, then those of what is below it."""
    path = before + field.encode_name
    inner, schema, _ = _bare(field.type)
    yield _Row(path, _kind(field.type), _default(field), str(schema.get("description", "")))
    yield from _below(inner, path)


def _below(kind: inspect.Type, path: str) -> Iterator[_Row]:
    kind, _, _ = _bare(kind)
    if isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from _rows(field, f"{path}.")
    elif isinstance(kind, inspect.VarTupleType | inspect.ListType):
        yield from _below(kind.item_type, f"{path}[]")
    elif isinstance(kind, inspect.DictType):
        yield from _below(kind.value_type, f"{path}.NAME")
    elif isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _below(each, path)


def _bare(kind: inspect.Type) -> tuple[inspect.Type, dict[str, object], dict[str, object]]:
    """Take the annotations off: what it is, what its schema says, what we say it expects."""
    schema: dict[str, object] = {}
    extra: dict[str, object] = {}
    while isinstance(kind, inspect.Metadata):
        schema = {**(kind.extra_json_schema or {}), **schema}
        extra = {**(kind.extra or {}), **extra}
        kind = kind.type
    return kind, schema, extra


def _kind(kind: inspect.Type) -> str:  # noqa: PLR0911 - one line for each kind of type
    bare, _, extra = _bare(kind)
    if isinstance(bare, inspect.UnionType):
        return " or ".join(_kind(each) for each in bare.types)
    if isinstance(bare, inspect.EnumType):
        *others, last = (f"`{each.value}`" for each in bare.cls)
        return f"{', '.join(others)} or {last}" if others else last
    if isinstance(bare, inspect.CustomType):
        return _custom(bare.cls)
    if isinstance(bare, inspect.VarTupleType | inspect.ListType):
        return "a list" if _nested(bare.item_type) else f"a list; each {_kind(bare.item_type)}"
    if isinstance(bare, inspect.DictType):
        return "a mapping" if _nested(bare.value_type) else f"a mapping; each value {_kind(bare.value_type)}"
    if isinstance(bare, inspect.FloatType | inspect.IntType):
        return _number(bare)
    if isinstance(bare, inspect.StructType):
        return SECTION
    if isinstance(bare, inspect.BoolType):
        return "`true` or `false`"
    if isinstance(bare, inspect.NoneType):
        return "`null`"
    return str(extra.get("expected", "text"))


def _custom(kind: type) -> str:
    if kind is PolicyUse:
        return "`weight` and the policy's arguments, [below](#policies)"
    if issubclass(kind, Seconds):
        # Their other words are examples, which the head of the page has.
        return kind.EXPECTED.partition(" such as")[0]
    return str(getattr(kind, "EXPECTED", kind.__name__))


def _nested(kind: inspect.Type) -> bool:
    return isinstance(_bare(kind)[0], inspect.StructType)


def _number(kind: inspect.FloatType | inspect.IntType) -> str:
    word = "a number" if isinstance(kind, inspect.FloatType) else "a whole number"
    bounds = [(kind.ge, "from"), (kind.gt, "above"), (kind.le, "to"), (kind.lt, "below")]
    return ", ".join([word, *(f"{how} {bound:g}" for bound, how in bounds if bound is not None)])


def _default(field: inspect.Field) -> str:
    if field.required:
        return "none: give it"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        # Its keys have their own rows.
        return ""
    plain = msgspec.to_builtins(value, enc_hook=_plain)
    return f"`{_written(plain)}`"


def _plain(value: object) -> object:
    if isinstance(value, PolicyUse):
        return {"weight": value.weight, **value.options}
    return str(value)


def _written(value: object) -> str:
    """Write a value in one line, as a person would in YAML."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_written(key)}: {_written(part)}" for key, part in value.items())
        return f"{{{inner}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(part) for part in value)}]"
    if isinstance(value, str):
        # A colon, a comma or a brace would mean something inside of braces; `no` would be a boolean.
        plain = scalar(value) == value and not set(value) & set(":,{}[]#&*!|>'\"%@`")
        return value if plain else json.dumps(value)
    return json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(document())
