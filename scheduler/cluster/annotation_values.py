"""How the values of annotations are read and written; what cannot be read says what was expected. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import translate

from scheduler.core.nouns import Workload
from scheduler.core.units import (
    MOST_DURATION_S,
    Likely,
    QuantityError,
    parse_bytes,
    parse_duration,
    parse_percent,
    parse_watts,
    quoted,
)

MOST_ENTRIES = 64
# A gang of one pod a GPU on the largest clusters there are.
MOST_GANG = 65_536
# Less is a slip: no GPU has so little.
LEAST_MEMORY_BYTES = 2**20
# A hint offers no more, though it may be said: the largest GPUs of 2026 have 288 GB, and draw 1,400 W.
_GPU_MEMORY = Likely(bounds=(LEAST_MEMORY_BYTES, 2**39))
_GPU_POWER = Likely(unit="W", bounds=(1, 10_000))
# In which unit a bare number of those was meant nobody can tell.
JOB = Likely(such_as="4h30m", bounds=(1, MOST_DURATION_S))
CHECKPOINT = Likely(such_as="10m", bounds=(1, 30 * 86_400))
# From a tenth of what light takes across a city to what nobody waits for.
LATENCY = Likely(unit="ms", such_as="40ms", bounds=(1e-4, 10))


class BadValue(ValueError):
    """The text is no such value; the message says what was expected and what stands there."""


NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
GLOB = re.compile(r"[-A-Za-z0-9 _.+()/*?\[\]!]{1,100}")
# What a range that ends before it begins becomes in a regular expression, if nothing is beside it.
_NOTHING = "(?!)"
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_BARE = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})?")
PRICE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)/gpu-hour")
CARBON = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)g/kWh")
_MEANT = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


def _refused(expected: str, text: str, meant: str = "") -> BadValue:
    return BadValue(
        f"expected {expected}, got {quoted(text)}" + (f"; did you mean {meant}?" if meant else "")
    )


def one_of(*values: str) -> Callable[[str], str]:
    """One of a few words, in any case of letters."""
    expected = ", ".join(values[:-1]) + f" or {values[-1]}"

    def read_one(text: str) -> str:
        if text.lower() in values:
            return text.lower()
        near = get_close_matches(text.lower()[:40], values, n=1)
        raise _refused(expected, text, near[0] if near else "")

    return read_one


def workload(text: str) -> Workload:
    """A class of work."""
    return Workload(one_of(*Workload)(text))


def truth(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    raise _refused("true or false", text, _MEANT.get(text.lower(), ""))


def flex(text: str) -> float:
    """One of the shares that grid operators trade in."""
    choices = {parse_percent(each): each for each in ("0", "10%", "25%", "50%")}
    try:
        frac = parse_percent(text)
    except QuantityError:
        frac, meant = -1.0, re.sub(r"percent$|%$", "", text.lower()).strip() + "%"
    else:
        meant = ""
    if frac in choices:
        return frac
    raise _refused("0, 10%, 25% or 50%", text, meant if meant in choices.values() else "")


def matching(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    """Text of a form."""

    def read_text(text: str) -> str:
        if pattern.fullmatch(text):
            return text
        raise _refused(expected, text)

    return read_text


def list_of(pattern: re.Pattern[str], expected: str) -> Callable[[str], tuple[str, ...]]:
    """Entries of a form, each once, separated by commas; in their order."""

    def read_list(text: str) -> tuple[str, ...]:
        entries = tuple(entry.strip() for entry in text.split(","))
        if len(entries) > MOST_ENTRIES:
            raise BadValue(f"expected at most {MOST_ENTRIES} entries, got {len(entries)}")
        if not all(pattern.fullmatch(entry) for entry in entries):
            raise _refused(expected, text)
        if len(set(entries)) < len(entries):
            raise _refused("each entry once", text)
        return entries

    return read_list


def globs(text: str) -> tuple[str, ...]:
    """Globs on GPU models, each once, separated by commas."""
    expected = "globs on GPU models such as *H100*,*A100*"
    entries = list_of(GLOB, expected)(text)
    # Either is no model's name, and the pod would wait for ever: a bracket without its end stands for itself, and
    # nothing is within [9-0].
    if not all(map(_closed, entries)):
        raise _refused(f"{expected}, with a ] for each [", text)
    if any(_NOTHING in translate(entry) for entry in entries):
        raise _refused(f"{expected}, with ranges that begin with their first sign, such as [0-9]", text)
    return entries


def _closed(glob: str) -> bool:
    """Whether each bracket has its end; the first sign within one, behind a !, is never its end."""
    at = glob.find("[")
    while at >= 0:
        first = at + 2 if glob[at + 1 : at + 2] == "!" else at + 1
        end = glob.find("]", first + 1)
        if end < 0:
            return False
        at = glob.find("[", end)
    return True


def count(text: str) -> int:
    """A number of pods."""
    if _COUNT.fullmatch(text) and int(text) <= MOST_GANG:
        return int(text)
    raise _refused(f"a whole number from 1 to {MOST_GANG}", text)


def above_zero(parse: Callable[[str], float]) -> Callable[[str], float]:
    """What `parse` reads, if it is more than nothing."""

    def read_amount(text: str) -> float:
        if (amount := parse(text)) > 0:
            return amount
        raise _refused("more than nothing", text)

    return read_amount


def duration(likely: Likely) -> Callable[[str], float]:
    """A duration longer than nothing, with hints of what is likely of its key."""
    return above_zero(lambda text: parse_duration(text, likely))


def power(text: str) -> float:
    """A power that a GPU may draw."""
    return above_zero(lambda said: parse_watts(said, _GPU_POWER))(text)


def memory(text: str) -> int:
    """An amount of memory that a GPU may have: a bare number, which is bytes, was meant to have a unit."""
    size_bytes = parse_bytes(text, _GPU_MEMORY)
    if size_bytes >= LEAST_MEMORY_BYTES:
        return size_bytes
    meant = (f"{text}{unit}" for unit in ("Gi", "Mi") if _BARE.fullmatch(text))
    likely = (each for each in meant if LEAST_MEMORY_BYTES <= parse_bytes(each) <= _GPU_MEMORY.bounds[1])
    raise _refused("at least 1Mi of memory, such as 40Gi", text, next(likely, ""))


def number_of(pattern: re.Pattern[str], expected: str) -> Callable[[str], float]:
    """The number in a text of a form."""

    def parse(text: str) -> float:
        if match := pattern.fullmatch(text):
            return float(match[1])
        raise _refused(expected, text)

    return parse


def lower(value: bool) -> str:  # noqa: FBT001 - one value of the table
    """Write `true` or `false`."""
    return str(value).lower()


def plain(value: float) -> str:
    """Write a number without exponent and trailing zeros, to a billionth."""
    return f"{value:.9f}".rstrip("0").rstrip(".")
