"""YAML text to plain data, with the line of every value and all problems at once.

A stricter YAML than most readers take, so that nothing means something else than it seems: no anchors, aliases, tags
or merge keys, no duplicate keys, no octal or sexagesimal numbers, no dates (they stay text). `on`, `off`, `yes` and
`no` are booleans, as in every other tool that reads the file. Built from events, without recursion: a hostile file
costs no more than its length.
"""

from __future__ import annotations

import re
from typing import Final

import yaml

from scheduler.core.errors import Problem

# A configuration of a thousand pools is 100 kB.
MOST_CHARACTERS = 1 << 20
# The settings are five levels deep; deeper nesting would only cost stack in later steps.
MOST_DEPTH = 32

Path = tuple[str | int, ...]


class Broken:
    """Stands where a value was refused already; judged no further."""

    def __repr__(self) -> str:
        """Name it in a debugger."""
        return "BROKEN"


BROKEN: Final = Broken()

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,18}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Document:
    """What one text holds: `data`, the line of each path, what a scalar's text was, and what is wrong with it."""

    def __init__(self) -> None:
        self.data: object = None
        self.lines: dict[Path, int] = {}
        self.written: dict[Path, str] = {}
        self.problems: list[Problem] = []

    def line(self, path: Path) -> int | None:
        """Line of the value at `path`; of its nearest parent if it has none, such as a missing key."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def refuse(self, path: Path, message: str, line: int | None = None) -> None:
        """Note one problem."""
        where = self.line(path) if line is None else line
        self.problems.append(Problem(path=show_path(path), message=message, line=where))


def show_path(path: Path) -> str:
    """Write `pools[0].kind`; a key that is no plain word is quoted, a long one cut."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        # 60 characters name any setting; a hostile key must not fill the screen.
        key = part if len(part) <= 60 else part[:60] + "…"
        plain = re.fullmatch(r"[A-Za-z0-9_-]+", key)
        text += (f".{key}" if text else key) if plain else f"[{key!r}]"
    return text


def read(text: str) -> Document:
    """Parse one YAML document. Never raises; what is wrong is in `problems`."""
    document = Document()
    if len(text) > MOST_CHARACTERS or len(text.encode(errors="replace")) > MOST_CHARACTERS:
        document.data = BROKEN
        document.refuse((), f"expected at most {MOST_CHARACTERS} bytes, got more")
        return document
    builder = _Builder(document)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        where = getattr(error, "context", None)
        if isinstance(error, yaml.reader.ReaderError):
            # It tells the character, and counts to it now in bytes, now in characters.
            line = text.count("\n", 0, text.find(chr(error.character))) + 1
            where = f"U+{error.character:04X}"
        document.data = BROKEN
        message = f"expected YAML, got what cannot be read as such: {what}{f' ({where})' if where else ''}"
        document.refuse(builder.path(), message, line)
    except UnicodeError as error:
        document.data = BROKEN
        line = text.count("\n", 0, error.start) + 1 if isinstance(error, UnicodeEncodeError) else None
        document.refuse((), "expected UTF-8 text, got half a surrogate pair", line)
    except _TooDeepError:
        document.data = BROKEN
    return document


def scalar(text: str) -> object:
    """Give a plain scalar its type."""
    if text in _NULLS:
        return None
    # YAML 1.1 takes three spellings only: lower, Capital and UPPER; `oN` is text.
    if text.lower() in _BOOLEANS and text in {text.lower(), text.capitalize(), text.upper()}:
        return _BOOLEANS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    # 017 is fifteen to some readers and seventeen to others: it stays text, and is refused where a number is due.
    leading_zero = re.match(r"[-+]?0[0-9]", text)
    return float(text) if _FLOAT.fullmatch(text) and not leading_zero else text


def _line(event: yaml.Event) -> int:
    # A parser's events have marks; only those that a program makes up may lack them.
    return event.start_mark.line + 1 if event.start_mark is not None else 1


class _TooDeepError(Exception):
    """Ends the reading of a file that nests deeper than any settings."""


class _Open:
    """A mapping or a list that has not ended yet."""

    def __init__(self, path: Path, content: dict[str, object] | list[object] | None) -> None:
        self.path = path
        self.content = content  # None: inside something that was refused; its parts are dropped
        self.key: str | Broken | None = None  # the key that waits for its value, in a mapping
        self.key_line = 0


class _Builder:
    """Takes parser events one by one and grows the document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._stack: list[_Open] = []
        self._documents = 0

    def path(self) -> Path:
        """Where the next value would stand."""
        if not self._stack:
            return ()
        top = self._stack[-1]
        if isinstance(top.content, list):
            return (*top.path, len(top.content))
        return (*top.path, top.key) if isinstance(top.key, str) else top.path

    def take(self, event: yaml.Event) -> None:
        """Handle one event."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents == 2:
                self._refuse((), "expected one YAML document, got another after ---", event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._begin(event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            self._refuse(self.path(), "expected a value, got a YAML alias (*): write it out", event)
            self._put(BROKEN, event)
        elif isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event)

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        value = scalar(event.value) if event.implicit[0] else event.value
        if self._marked(event):
            value = BROKEN
        self._put(value, event)

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._stack) == MOST_DEPTH:
            self._refuse(self.path(), f"expected at most {MOST_DEPTH} levels, got more", event)
            raise _TooDeepError
        content: dict[str, object] | list[object] | None
        content = {} if isinstance(event, yaml.MappingStartEvent) else []
        opened = _Open(self.path(), content)
        if self._waits_for_key():
            self._refuse(self.path(), "expected text as a key, got a list or a mapping", event)
            self._stack[-1].key = BROKEN
            opened.content = None
        elif self._marked(event):
            self._put(BROKEN, event)
            opened.content = None
        elif not self._put(content, event):
            opened.content = None
        # Inside something refused, keys and values still alternate.
        if opened.content is None:
            opened.key = None
        self._stack.append(opened)

    def _marked(self, event: yaml.NodeEvent) -> bool:
        """Refuse an anchor (the value still counts) and a tag (it does not)."""
        if event.anchor is not None:
            self._refuse(
                self.path(), f"expected a value, got a YAML anchor (&{event.anchor[:60]}): remove it", event
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._refuse(self.path(), f"expected a value without a YAML tag, got {str(tag)[:60]}", event)
        return tag is not None

    def _waits_for_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].content, dict) and self._stack[-1].key is None

    def _put(self, value: object, event: yaml.Event) -> bool:
        """Put a value where the document stands; False if it was dropped."""
        line = _line(event)
        if not self._stack:
            if self._documents == 1:
                self._document.data = value
                self._document.lines[()] = line
            return self._documents == 1
        top = self._stack[-1]
        if top.content is None:
            return False
        if isinstance(top.content, list):
            self._note(self.path(), value, event)
            top.content.append(value)
            return True
        if top.key is None:
            self._put_key(top, value, event)
            return True
        key, top.key = top.key, None
        if isinstance(key, Broken):
            return False
        self._note((*top.path, key), value, event)
        if isinstance(value, (dict, list)):
            # People look for a section at its name, not at its first entry.
            self._document.lines[(*top.path, key)] = top.key_line
        top.content[key] = value
        return True

    def _put_key(self, top: _Open, key: object, event: yaml.Event) -> None:
        top.key, top.key_line = BROKEN, _line(event)
        if isinstance(key, Broken):
            return
        if not isinstance(key, str):
            text = getattr(event, "value", "")
            self._refuse(
                top.path, f'expected text as a key, got {text[:60] or "nothing"}: write "{text[:60]}"', event
            )
        elif key == "<<" and getattr(event, "implicit", (False,))[0]:
            self._refuse(
                (*top.path, key), "expected no YAML merge key, got <<: write the settings out", event
            )
        elif isinstance(top.content, dict) and key in top.content:
            first = self._document.lines[(*top.path, key)]
            self._refuse(
                (*top.path, key), f"expected each key once, got it again (first in line {first})", event
            )
        else:
            top.key = key

    def _note(self, path: Path, value: object, event: yaml.Event) -> None:
        self._document.lines[path] = _line(event)
        if isinstance(value, (bool, int, float)):
            self._document.written[path] = getattr(event, "value", "")

    def _refuse(self, path: Path, message: str, event: yaml.Event) -> None:
        self._document.refuse(path, message, _line(event))
