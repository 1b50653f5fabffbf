"""Quantities: what is read, what is written, what is said to those who err."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.core import units
from scheduler.core.units import QuantityError

PARSERS: list[Callable[[str], float]] = [
    units.parse_duration,
    units.parse_watts,
    units.parse_bytes,
    units.parse_percent,
]


@pytest.mark.parametrize(
    ("text", "want_s"),
    [
        ("5s", 5),
        ("4h30m", 16_200),
        ("250ms", 0.25),
        ("1d", 86_400),
        ("0s", 0),
        ("1.5h", 5400),
        ("5m5ms", 300.005),
    ],
)
def test_durations_are_read_in_seconds(text: str, want_s: float) -> None:
    assert units.parse_duration(text) == want_s


@pytest.mark.parametrize(("text", "want_w"), [("250W", 250), ("1.5kW", 1500), ("2MW", 2_000_000), ("0W", 0)])
def test_powers_are_read_in_watts(text: str, want_w: float) -> None:
    assert units.parse_watts(text) == want_w


@pytest.mark.parametrize(
    ("text", "want_bytes"),
    [
        ("40Gi", 40 * 2**30),
        ("512M", 512_000_000),
        ("1024", 1024),
        ("1.5Ki", 1536),
        ("2k", 2000),
        # Part of a byte is one more, as apimachinery's Quantity.Value has it.
        ("37.3Gi", 40_050_570_036),
        ("1.1Gi", 1_181_116_007),
        ("0.1Gi", 107_374_183),
        ("0.001Ti", 1_099_511_628),
        ("0.1", 1),
        ("0.000000000000000001", 1),
        ("1.000000000000000001Pi", 2**50 + 1),
        ("0.0", 0),
        ("511.999999999999999999Pi", 2**59),
    ],
)
def test_memory_is_read_in_bytes(text: str, want_bytes: int) -> None:
    assert units.parse_bytes(text) == want_bytes


@given(
    st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,9})?", fullmatch=True),
    st.sampled_from(["", "k", "Gi", "M", "Mi", "Ti"]),
)
def test_memory_is_rounded_up_to_whole_bytes_and_reads_back(number: str, unit: str) -> None:
    factor = {"": 1, "k": 1000, "M": 10**6, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
    size_bytes = units.parse_bytes(number + unit)
    assert size_bytes == ceil(Fraction(number) * factor)
    assert units.parse_bytes(units.format_bytes(size_bytes)) == size_bytes


@pytest.mark.parametrize(("text", "want_frac"), [("5%", 0.05), ("100%", 1), ("0", 0), ("0.5%", 0.005)])
def test_shares_are_read_as_fractions(text: str, want_frac: float) -> None:
    assert units.parse_percent(text) == want_frac


@given(st.floats(0, units.MOST_DURATION_S, allow_subnormal=False))
def test_a_written_duration_reads_back_to_the_nanosecond(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == round(seconds, 9)


@given(st.floats(0, 1e10))
def test_written_watts_read_back_to_the_microwatt(power_w: float) -> None:
    assert units.parse_watts(units.format_watts(power_w)) == round(power_w, 6)


@given(st.integers(0, units.MOST_BYTES) | st.integers(0, 1023).map(lambda count: count * 2**30))
def test_written_bytes_read_back_exactly(size_bytes: int) -> None:
    assert units.parse_bytes(units.format_bytes(size_bytes)) == size_bytes


@given(st.floats(0, 1))
def test_a_written_share_reads_back(frac: float) -> None:
    assert units.parse_percent(units.format_percent(frac)) == round(frac, 11)


@pytest.mark.parametrize(
    ("want_text", "seconds"),
    [("0s", 0), ("250ms", 0.25), ("1m30s", 90), ("4h30m", 16_200), ("1h0.1s", 3600.1)],
)
def test_durations_are_written_as_people_do(want_text: str, seconds: float) -> None:
    assert units.format_duration(seconds) == want_text


def test_round_numbers_get_the_largest_fitting_unit() -> None:
    assert units.format_watts(1500) == "1.5kW"
    assert units.format_watts(999.5) == "999.5W"
    assert units.format_bytes(40 * 2**30) == "40Gi"
    assert units.format_bytes(1000) == "1000"


@pytest.mark.parametrize(
    ("parse", "text", "want_hint"),
    [
        (units.parse_duration, "5", "5s"),
        (units.parse_duration, "5 s", "5s"),
        (units.parse_duration, "5 minutes", "5m"),
        (units.parse_duration, "4H 30min", "4h30m"),
        (units.parse_duration, "1,5h", "1.5h"),
        (units.parse_watts, "250w", "250W"),
        (units.parse_watts, "1 kw", "1kW"),
        (units.parse_watts, "250", "250W"),
        (units.parse_watts, "2 megawatts", "2MW"),
        (units.parse_watts, "1_000W", "1000W"),
        (units.parse_bytes, "40GiB", "40Gi"),
        (units.parse_bytes, "40gb", "40G"),
        (units.parse_bytes, "40K", "40k"),
        (units.parse_percent, "5", "5%"),
        (units.parse_percent, "0.05", "5%"),
        (units.parse_percent, "5 percent", "5%"),
    ],
)
def test_a_slip_gets_a_hint_that_can_be_read(
    parse: Callable[[str], float], text: str, want_hint: str
) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(text)
    assert str(caught.value).endswith(f"; did you mean {want_hint}?")
    parse(want_hint)


@pytest.mark.parametrize(
    ("parse", "text", "want"),
    [
        (units.parse_watts, "250mW", "watt"),
        (units.parse_watts, "250 mw", "watt"),
        (units.parse_watts, "250 milliwatts", "watt"),
        (units.parse_bytes, "40000m", "byte"),
        (units.parse_bytes, "1.5 m", "byte"),
    ],
)
def test_thousandths_are_called_what_they_are_and_never_taken_for_millions(
    parse: Callable[[str], float], text: str, want: str
) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(text)
    assert str(caught.value).endswith(f", got {text!r}, which is in thousandths of a {want}")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_percent, "500"),
        (units.parse_percent, "120 percent"),
        (units.parse_duration, "999999999"),
        (units.parse_duration, "4000 days"),
        (units.parse_watts, "9999999 megawatts"),
        (units.parse_bytes, "9999 PiB"),
    ],
)
def test_a_hint_that_would_be_refused_is_not_given(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(text)
    assert str(caught.value).endswith(f", got {text!r}")


def test_a_hint_is_likely_of_what_is_asked_for() -> None:
    latency = units.Likely(unit="ms", bounds=(0.001, 10), such_as="40ms")
    for text, want in (
        ("40", "; did you mean 40ms?"),
        ("9 sec", "; did you mean 9s?"),
        ("11 sec", ""),
        ("0", ""),
    ):
        with pytest.raises(QuantityError) as caught:
            units.parse_duration(text, latency)
        assert str(caught.value) == f"expected a duration such as 40ms, got {text!r}{want}"
    assert units.parse_duration("1h", latency) == 3600, "what is said plainly is read"


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["", "-5s", "-5W", "+5s", "nan", "inf", "1e3s", "٣s", "5s\n", " ", "s", "4:30", "5%%"]
)
def test_what_is_no_quantity_is_refused(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(QuantityError, match="expected"):
        parse(text)


def test_smaller_units_may_not_come_first() -> None:
    with pytest.raises(QuantityError):
        units.parse_duration("30m4h")


def test_more_than_ten_years_and_more_than_all_are_refused() -> None:
    with pytest.raises(QuantityError, match="at most 3650d"):
        units.parse_duration("3651d")
    with pytest.raises(QuantityError, match="at most 100%"):
        units.parse_percent("101%")
    with pytest.raises(QuantityError, match="at most 1000000MW"):
        units.parse_watts("999999999999999999MW")


@pytest.mark.parametrize(
    ("text", "parse", "write"),
    [
        ("0.1234567891234s", units.parse_duration, units.format_duration),
        ("0.0000000000001s", units.parse_duration, units.format_duration),
        ("0.1234567891W", units.parse_watts, units.format_watts),
        ("0.0000000001%", units.parse_percent, units.format_percent),
        ("1970-01-01T00:00:00.999999999Z", units.parse_instant, units.format_instant),
    ],
)
def test_what_is_finer_than_can_be_written_is_not_read(
    text: str, parse: Callable[[str], float], write: Callable[[float], str]
) -> None:
    assert parse(write(parse(text))) == parse(text)


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.text(max_size=60) | st.from_regex(r"[0-9.]{1,20}[a-zA-Z%]{0,3}", fullmatch=True))
def test_any_text_gives_a_finite_quantity_or_an_error_that_says_what_was_expected(
    parse: Callable[[str], float], text: str
) -> None:
    try:
        value = parse(text)
    except QuantityError as error:
        assert "expected" in str(error)  # noqa: PT017 - the other outcome is as good
    else:
        assert math.isfinite(value)
        assert value >= 0


def test_a_megabyte_of_text_is_refused_with_a_short_message() -> None:
    with pytest.raises(QuantityError) as caught:
        units.parse_duration("9" * 1_000_000)
    assert len(str(caught.value)) < 200


FROM, TO = datetime(1970, 1, 2), datetime(9999, 12, 30)  # noqa: DTZ001 - hypothesis adds the zones


@given(st.datetimes(FROM, TO, timezones=st.timezones()))
def test_instants_are_those_of_the_calendar(instant: datetime) -> None:
    # A zone's offset may have had seconds once; RFC 3339 has none.
    zone = instant.strftime("%z")
    assume(len(zone) == 5)
    text = instant.strftime("%Y-%m-%dT%H:%M:%S.%f").rjust(26, "0") + zone[:3] + ":" + zone[3:]
    want_unix_s = datetime.fromisoformat(text).timestamp()
    assume(want_unix_s >= 0)
    assert units.parse_instant(text) == pytest.approx(want_unix_s, abs=1e-6)


@given(st.integers(0, 253_000_000_000_000_000))
def test_a_written_instant_reads_back_and_is_the_calendars(unix_us: int) -> None:
    unix_s = unix_us / 1e6
    text = units.format_instant(unix_s)
    assert units.parse_instant(text) == round(unix_s, 6)
    assert datetime.fromisoformat(text).timestamp() == pytest.approx(unix_s, abs=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2027-03-01",
        "2027-03-01T06:00:00",
        "2027-02-29T06:00:00Z",
        "2027-13-01T06:00:00Z",
        "2027-00-01T06:00:00Z",
        "1969-12-31T23:59:59Z",
        "2027-03-01T24:00:00Z",
        "2027-03-01T06:00:00+24:00",
        "1970-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "9999-12-31T23:59:60Z",
        "٢٠٢٧-03-01T06:00:00Z",
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="expected an instant"):
        units.parse_instant(text)


def test_a_leap_second_and_small_letters_are_read() -> None:
    assert units.parse_instant("2016-12-31t23:59:60z") == units.parse_instant("2017-01-01 00:00:00Z")
