"""Quantities as people write them: durations, watts, bytes, shares, instants. One anchored ASCII pattern per kind.

No sign, no exponent, no space: so neither NaN nor infinity nor a negative quantity can be written. Units
are case-sensitive (`m` is minutes, `M` is mega); where people err, the error says what they probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from math import inf

# Ten years: longer is a slip of the unit, and keeps every sum of an instant and a duration exact to a microsecond.
MOST_DURATION_S = 10 * 365 * 86_400.0
# Half an exbibyte, far beyond any node: 18 digits, so that what can be written can be read, and exactly.
MOST_BYTES = 2**59
# A terawatt, a third of what all of mankind generates: what can be written can be read, to the microwatt or nearly so.
MOST_POWER_W = 1e12
# The end of the year 9999, of which RFC 3339 knows no later one.
MOST_UNIX_S = 253_402_300_800
# What the writers below keep; the readers keep no more, so that each value has one spelling, which gives it back.
_DURATION_DIGITS, _WATT_DIGITS, _FRAC_DIGITS, _INSTANT_DIGITS = 9, 6, 11, 6

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_DURATION = re.compile(
    rf"(?=[0-9])(?:({_NUMBER})d)?(?:({_NUMBER})h)?(?:({_NUMBER})m(?!s))?(?:({_NUMBER})s)?(?:({_NUMBER})ms)?"
)
_WATTS = re.compile(rf"({_NUMBER})(W|kW|MW)")
_BYTES = re.compile(rf"({_NUMBER})(|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)")
_PERCENT = re.compile(rf"({_NUMBER})%")
_INSTANT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)

_DURATION_UNITS_S = (Decimal(86_400), Decimal(3600), Decimal(60), Decimal(1), Decimal("0.001"))
_WATT_UNITS = {"W": Decimal(1), "kW": Decimal(1000), "MW": Decimal(1_000_000)}
_BINARY_UNITS = {"Pi": 2**50, "Ti": 2**40, "Gi": 2**30, "Mi": 2**20, "Ki": 2**10}
_BYTE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | _BINARY_UNITS

# What people write instead of our units, in lower case; longest first, so that `minutes` is not read as `m`.
_DURATION_WORDS = (
    (r"milliseconds?|millis|msecs?", "ms"),
    (r"seconds?|secs?", "s"),
    (r"minutes?|mins?", "m"),
    (r"hours?|hrs?", "h"),
    (r"days?", "d"),
)
_WATT_WORDS = ((r"kilowatts?|kw", "kW"), (r"megawatts?|mw", "MW"), (r"(?<![km])(?:watts?|w)", "W"))
_BYTE_WORDS = ((r"([kmgtp])ib", r"\1i"), (r"([kmgtp])b", r"\1"), (r"b(?:ytes?)?$", ""))
# A small m is a thousandth, and nobody who writes it means a million times a thousand of it.
_MILLIBYTES = re.compile(rf"{_NUMBER}\s*m")
_MILLIWATTS = re.compile(rf"{_NUMBER}\s*(?:m[Ww]|[Mm]illiwatts?)")


class QuantityError(ValueError):
    """The text is no quantity of that kind; the message says what was expected and what was probably meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """What a slip was probably meant to be: a hint offers nothing else."""

    unit: str = ""
    """Of a number without one; empty where nobody can tell."""
    bounds: tuple[float, float] = (0.0, inf)
    """The least and the most, both included, in what is read to: seconds, watts, bytes, shares of one."""
    such_as: str = ""
    """Examples, where those of the kind would mislead."""


_SECONDS, _WATT, _AMOUNT, _SHARE = Likely(unit="s"), Likely(unit="W"), Likely(), Likely(unit="%")


def parse_duration(text: str, likely: Likely = _SECONDS) -> float:
    """Read `5s`, `250ms` or `4h30m`; larger units first.

    Returns:
        Seconds.

    Raises:
        QuantityError: show it to whoever wrote the text.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        expected = f"a duration such as {likely.such_as or '30s, 250ms or 4h30m'}"
        raise _refuse(expected, text, likely, _DURATION_WORDS, parse_duration)
    parts = zip(match.groups(), _DURATION_UNITS_S, strict=True)
    seconds = float(sum((Decimal(number) * unit for number, unit in parts if number), Decimal(0)))
    if seconds > MOST_DURATION_S:
        raise QuantityError(
            f"expected a duration of at most {format_duration(MOST_DURATION_S)}, got {quoted(text)}"
        )
    return round(seconds, _DURATION_DIGITS)


def format_duration(seconds: float) -> str:
    """Write a duration so that `parse_duration` gives it back, to the nanosecond."""
    rest = Decimal(repr(round(seconds, _DURATION_DIGITS)))
    if 0 < rest < 1:
        return _plain(rest * 1000) + "ms"
    text = ""
    for unit_s, name in zip(_DURATION_UNITS_S[:3], "dhm", strict=True):
        count, rest = divmod(rest, unit_s)
        text += f"{count:f}{name}" if count else ""
    return text + (_plain(rest) + "s" if rest or not text else "")


def parse_watts(text: str, likely: Likely = _WATT) -> float:
    """Read `250W`, `1.5kW` or `2MW`, in watts. Raises QuantityError."""
    match = _WATTS.fullmatch(text)
    if match is None:
        expected = "a power such as 250W or 1.5kW"
        if _MILLIWATTS.fullmatch(text) and len(text) <= _SHOWN:
            raise QuantityError(f"expected {expected}, got {quoted(text)}, which is in thousandths of a watt")
        raise _refuse(expected, text, likely, _WATT_WORDS, parse_watts)
    power_w = float(Decimal(match[1]) * _WATT_UNITS[match[2]])
    if power_w > MOST_POWER_W:
        raise QuantityError(f"expected at most {format_watts(MOST_POWER_W)}, got {quoted(text)}")
    return round(power_w, _WATT_DIGITS)


def format_watts(power_w: float) -> str:
    """Write watts so that `parse_watts` gives them back, to the microwatt."""
    value = Decimal(repr(round(power_w, _WATT_DIGITS)))
    unit = "MW" if value >= 1_000_000 else "kW" if value >= 1000 else "W"
    return _plain(value / _WATT_UNITS[unit]) + unit


def parse_bytes(text: str, likely: Likely = _AMOUNT) -> int:
    """Read `40Gi`, `37.3Gi`, `512M` or `1024`, in bytes; part of a byte is one more, as for Kubernetes.

    Raises:
        QuantityError: show it to whoever wrote the text.
    """
    match = _BYTES.fullmatch(text)
    if match is None:
        expected = "an amount of memory such as 40Gi or 512Mi"
        if _MILLIBYTES.fullmatch(text) and len(text) <= _SHOWN:
            raise QuantityError(f"expected {expected}, got {quoted(text)}, which is in thousandths of a byte")
        raise _refuse(expected, text, likely, _BYTE_WORDS, parse_bytes)
    whole, _, part = match[1].partition(".")
    # In whole numbers, which are exact, and rounded up.
    size_bytes = -(-int(whole + part) * _BYTE_UNITS[match[2]] // int(f"1{'0' * len(part)}"))
    if size_bytes > MOST_BYTES:
        raise QuantityError(f"expected at most {format_bytes(MOST_BYTES)} of memory, got {quoted(text)}")
    return size_bytes


def format_bytes(size_bytes: int) -> str:
    """Write bytes with the largest binary unit that divides them, so that `parse_bytes` gives them back."""
    for name, unit in _BINARY_UNITS.items():
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return str(size_bytes)


def parse_percent(text: str) -> float:
    """Read `5%` or `0` as a fraction of one. Raises QuantityError, also above 100%."""
    match = _PERCENT.fullmatch("0%" if text == "0" else text)
    if match is None:
        raise _refuse("a share such as 5%", text, _SHARE, ((r"percent|pct", "%"),), parse_percent)
    frac = float(Decimal(match[1]) / 100)
    if frac > 1:
        raise QuantityError(f"expected a share of at most 100%, got {quoted(text)}")
    return round(frac, _FRAC_DIGITS)


def format_percent(frac: float) -> str:
    """Write a fraction of one as a percentage, to a billionth of a percent."""
    return _plain(Decimal(repr(round(frac, _FRAC_DIGITS))) * 100) + "%"


def parse_instant(text: str) -> float:
    """Read `2027-03-01T06:00:00Z` or `2027-03-01T07:00:00+01:00` (RFC 3339), in Unix seconds. Raises QuantityError.

    The zone is required: nobody can tell whose midnight was meant without it. A leap second is the next second.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise QuantityError(
            f"expected an instant with its zone such as 2027-03-01T06:00:00Z, got {quoted(text)}"
        )
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    zone_h, zone_min = int(match[9] or 0), int(match[10] or 0)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    last_day = (
        29 if month == 2 and leap else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[(month - 1) % 12]
    )
    if not (
        year >= 1970
        and 1 <= month <= 12
        and 1 <= day <= last_day
        and hour <= 23
        and minute <= 59
        and second <= 60
        and zone_h <= 23
        and zone_min <= 59
    ):
        raise QuantityError(f"expected an instant that there is, from 1970 on, got {quoted(text)}")
    zone_s = (zone_h * 60 + zone_min) * 60 * (-1 if match[8] == "-" else 1)
    seconds = ((_days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second - zone_s
    unix_s = round(float(seconds + Decimal(f"0.{match[7] or 0}")), _INSTANT_DIGITS)
    if not 0 <= unix_s < MOST_UNIX_S:
        raise QuantityError(f"expected an instant from 1970 to 9999 in UTC, got {quoted(text)}")
    return unix_s


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the Gregorian calendar.

    Source: Hinnant, chrono-Compatible Low-Level Date Algorithms, days_from_civil; years here are positive.
    """
    # Years that begin in March have their leap day at the end.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def format_instant(unix_s: float) -> str:
    """Write an instant in UTC so that `parse_instant` gives it back, to the microsecond."""
    whole_days, rest = divmod(Decimal(repr(round(unix_s, _INSTANT_DIGITS))), 86_400)
    days = int(whole_days) + 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    moved = (5 * day_of_year + 2) // 153
    day, month = day_of_year - (153 * moved + 2) // 5 + 1, (moved + 2) % 12 + 1
    year = year_of_era + era * 400 + (month <= 2)
    minutes, second = divmod(rest, 60)
    hour, minute = divmod(int(minutes), 60)
    whole_s, point, rest_s = _plain(second).partition(".")
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{whole_s.zfill(2)}{point}{rest_s}Z"


def _plain(value: Decimal) -> str:
    """Write without exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# 40 characters show any slip; a megabyte in a log line helps nobody.
_SHOWN = 40


def quoted(text: str) -> str:
    """Quote a text for a message: what cannot be printed is escaped, what is long is cut."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _refuse(
    expected: str,
    text: str,
    likely: Likely,
    words: tuple[tuple[str, str], ...],
    parse: Callable[[str], float],
) -> QuantityError:
    """Build the error; offer what the text would be with our units, if that can be read and is likely."""
    message = f"expected {expected}, got {quoted(text)}"
    if len(text) > _SHOWN:
        return QuantityError(message)
    guess = re.sub(r"[\s_]", "", text).replace(",", ".").lower()
    for pattern, unit in words:
        guess = re.sub(rf"(?<![a-z])(?:{pattern})", unit, guess)
    guess = re.sub(r"([kmgtp])(i?)$", _memory_unit, guess) if words is _BYTE_WORDS else guess
    if re.fullmatch(_NUMBER, guess):
        # A share below one was meant as a fraction, not as less than a percent.
        is_frac = likely.unit == "%" and float(guess) < 1
        guess = format_percent(float(guess)) if is_frac else guess + likely.unit
    if guess != text and _is_likely(guess, likely, parse):
        message += f"; did you mean {guess}?"
    return QuantityError(message)


def _is_likely(guess: str, likely: Likely, parse: Callable[[str], float]) -> bool:
    # Asked first: of what cannot be read the reader would ask for a guess in turn, for ever.
    if not _PATTERNS[parse].fullmatch(guess):
        return False
    try:
        return likely.bounds[0] <= parse(guess) <= likely.bounds[1]
    except QuantityError:
        return False


def _memory_unit(match: re.Match[str]) -> str:
    return (match[1].lower() if match[1] == "k" and not match[2] else match[1].upper()) + match[2]


_PATTERNS: dict[Callable[..., float], re.Pattern[str]] = {
    parse_duration: _DURATION,
    parse_watts: _WATTS,
    parse_bytes: _BYTES,
    parse_percent: _PERCENT,
}
