"""Every way in which plain data differs from the settings' types, said for people.

msgspec alone stops at the first fault, so this walks data and types side by side, and lets msgspec judge each leaf.
A message always says what was expected and what stands there.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable
from enum import EnumType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from scheduler.config_yaml import BROKEN, Document, Path

# Types are values here, as `Annotated[…]` and `X | None` are: the standard library has no narrower word for them.
TypeForm = Any


class Parsed(Protocol):
    """A leaf type of ours, written as text in the file; `parse` raises ValueError with `expected …, got …`."""

    EXPECTED: str

    @classmethod
    def parse(cls, value: object) -> Parsed:
        """Read one value."""
        ...


# What a leaf type is at this path, or None if that was refused already. For types that depend on their key.
Special = Callable[["Checker", Path], type[msgspec.Struct] | None]


def decode(kind: TypeForm, value: object) -> object:
    """Read a value of one of our leaf types; for msgspec's `dec_hook`."""
    return kind.parse(value)


class Checker:
    """Walks one document; problems go into the document, the paths that hold one into `bad`."""

    def __init__(self, document: Document, special: dict[type, Special]) -> None:
        self._document = document
        self._special = special
        self.bad: set[Path] = set()

    def refuse(self, path: Path, message: str) -> None:
        """Note a problem at `path`; whatever contains it cannot be used either."""
        self._document.refuse(path, message)
        self._spoil(path)

    def good(self, path: Path) -> bool:
        """Whether nothing at or below `path` was refused."""
        return path not in self.bad

    def check(self, value: object, kind: TypeForm, path: Path = ()) -> None:
        """Compare a value with its type; note all differences."""
        base, inner = _bare(kind), None
        if value is BROKEN:
            self._spoil(path)
            return
        if base in self._special:
            inner = self._special[base](self, path)
            if inner is None:
                return
        self._check_parts(value, inner or base, path)
        # A whole is judged only if all its parts are good: then only its own rules can refuse it.
        if self.good(path):
            self._check_whole(value, kind, path)

    def _check_parts(self, value: object, base: TypeForm, path: Path) -> None:
        if isinstance(base, type) and issubclass(base, msgspec.Struct):
            if isinstance(value, dict):
                self._check_struct(value, base, path)
        elif _origin(base) in (list, tuple) and isinstance(value, list):
            for index, part in enumerate(value):
                self.check(part, get_args(base)[0], (*path, index))
        elif _origin(base) is dict and isinstance(value, dict):
            key_kind, part_kind = get_args(base)
            for key, part in value.items():
                if _fails(key, key_kind):
                    self.refuse((*path, key), f"expected {expectation(key_kind)} as a key, got {shown(key)}")
                self.check(part, part_kind, (*path, key))

    def _check_struct(self, value: dict[str, object], struct: type[msgspec.Struct], path: Path) -> None:
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for key, part in value.items():
            if key in fields:
                self.check(part, fields[key].type, (*path, key))
            else:
                self.refuse((*path, key), unknown(key, fields))
        for key, field in fields.items():
            if field.required and key not in value:
                self.refuse(
                    (*path, key), f"expected {expectation(field.type)}, got nothing: this key is missing"
                )

    def _check_whole(self, value: object, kind: TypeForm, path: Path) -> None:
        error = _fails(value, kind)
        if error is None:
            return
        # Our own types and rules explain themselves; msgspec appends its idea of the path.
        own = error.removesuffix(f" - at `{error.rpartition(' - at `')[2]}") if " - at `" in error else error
        if own.startswith("expected "):
            self.refuse(path, own)
            return
        written = self._document.written.get(path)
        got = shown(value) if written is None else written[:60]
        hint = ""
        # Advice only where following it helps: `mode: "on"` is no better than `mode: on`.
        helps = written is not None and (
            not isinstance(_bare(kind), EnumType) or _fails(written, kind) is None
        )
        if helps and written is not None and _bare(kind) is not bool and _takes_text(kind):
            hint = f', which YAML reads as {_named(value)}: write "{written[:60]}"'
        self.refuse(path, f"expected {expectation(kind)}, got {got}{hint}")

    def _spoil(self, path: Path) -> None:
        self.bad.update(path[:length] for length in range(len(path) + 1))


def unknown(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, what it may have meant, and what there is."""
    names = sorted(known)
    # difflib is quadratic in the length; no key of ours is longer.
    near = difflib.get_close_matches(key, names, n=1) if len(key) <= 60 else []
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"expected one of {', '.join(names)}, got an unknown name{meant}"


def expectation(kind: TypeForm) -> str:
    """Say in words what a type accepts."""
    return _words(inspect.type_info(kind))


def shown(value: object) -> str:
    """Show a value in a message, cut where it is long."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, (dict, list)):
        name = "mapping" if isinstance(value, dict) else "list"
        return f"a {name}" if value else f"an empty {name}"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _words(info: inspect.Type) -> str:
    if isinstance(info, inspect.Metadata):
        return str((info.extra or {}).get("expected") or _words(info.type))
    if isinstance(info, inspect.UnionType):
        return " or ".join(_words(part) for part in info.types)
    if isinstance(info, inspect.EnumType):
        return "one of " + ", ".join(str(member.value) for member in info.cls)
    if isinstance(info, inspect.CustomType):
        return str(getattr(info.cls, "EXPECTED", info.cls.__name__))
    if isinstance(info, inspect.StructType):
        return "a mapping with " + ", ".join(field.encode_name for field in info.fields)
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        return _PLAIN_WORDS[type(info)] + _bounds(info)
    least = " with at least one entry" if getattr(info, "min_length", None) else ""
    most = getattr(info, "max_length", None) if isinstance(info, inspect.VarTupleType) else None
    return _PLAIN_WORDS.get(type(info), "a value") + least + (f" of at most {most} entries" if most else "")


_PLAIN_WORDS: dict[type[inspect.Type], str] = {
    inspect.NoneType: "null",
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "text",
    inspect.ListType: "a list",
    inspect.VarTupleType: "a list",
    inspect.DictType: "a mapping",
}


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    words = []
    for value, text in ((info.ge, "at least"), (info.gt, "above"), (info.le, "at most"), (info.lt, "below")):
        if value is not None:
            words.append(f"{text} {value:g}")
    return " " + " and ".join(words) if words else ""


def _fails(value: object, kind: TypeForm) -> str | None:
    try:
        msgspec.convert(value, kind, dec_hook=decode)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _origin(kind: TypeForm) -> TypeForm:
    """Give typing's origin, whose declared type is too narrow: it knows neither `Annotated` nor unions."""
    return get_origin(kind)


def _bare(kind: TypeForm) -> TypeForm:
    """Take off `Annotated` and `| None`."""
    while True:
        if _origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif _origin(kind) in (Union, types.UnionType):
            kinds = [part for part in get_args(kind) if part is not type(None)]
            if len(kinds) != 1:
                return kind
            kind = kinds[0]
        else:
            return kind


def _takes_text(kind: TypeForm) -> bool:
    base = _bare(kind)
    return base is str or isinstance(base, EnumType) or (isinstance(base, type) and issubclass(base, str))


def _named(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else "a number"
