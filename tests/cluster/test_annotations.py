"""Annotations: what is read, what is written back, what is said to those who err."""

from __future__ import annotations

import re
from fnmatch import translate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.annotation_values import MOST_ENTRIES, BadValue
from scheduler.cluster.annotations import ELSEWHERE, MOST_CHARACTERS, TABLE, WRITTEN, read, unknown_key
from scheduler.core.nouns import PREFIX, Workload

KEYS = sorted(TABLE)
# Pieces that make texts which are nearly right, so that the readers' inner parts are reached.
PIECES = st.sampled_from(
    [
        *"0123456789.,-+%*/:TZ \n\x00ä",
        "Gi",
        "W",
        "kW",
        "h",
        "ms",
        "g/kWh",
        "/gpu-hour",
        "true",
        "dc-1",
        "firm",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join))


@pytest.mark.parametrize(("key", "example"), [(key, each) for key in KEYS for each in TABLE[key].examples])
def test_every_example_of_the_page_is_read_and_written_back_as_it_stands(key: str, example: str) -> None:
    assert TABLE[key].write(read(key, example)) == example
    assert read(key, f"  {example}\n") == read(key, example)


@given(st.sampled_from(KEYS), TEXTS)
def test_any_text_is_read_and_reads_back_or_says_what_was_expected(key: str, text: str) -> None:
    try:
        value = read(key, text)
    except BadValue as error:
        message = str(error)
        assert message.startswith("expected ")
        assert ", got " in message
        assert message.isprintable()
        assert len(message) < 300
    else:
        assert read(key, TABLE[key].write(value)) == value


@pytest.mark.parametrize(
    ("key", "text", "want"),
    [
        ("workload", "Training", Workload.TRAINING),
        ("pools", "dc-1, aws-a", ("dc-1", "aws-a")),
        ("gpu-model", "NVIDIA H100*", ("NVIDIA H100*",)),
        ("gpu-memory", "40Gi", 40 * 2**30),
        ("gpu-memory", "37.3Gi", 40_050_570_036),
        ("min-power", "1.5kW", 1500.0),
        ("max-slowdown", "0", 0.0),
        ("flex", "25%", 0.25),
        ("expected-duration", "4h30m", 16_200.0),
        ("deadline", "2027-03-01T07:00:00+01:00", 1_803_880_800.0),
        ("gang-size", "16", 16),
        ("preemptible", "TRUE", True),
        ("max-price", "2.50/gpu-hour", 2.5),
        ("max-carbon", "300g/kWh", 300.0),
        ("max-latency", "40ms", 0.04),
    ],
)
def test_values_are_read_in_plain_units(key: str, text: str, want: object) -> None:
    assert read(key, text) == want


@pytest.mark.parametrize(
    ("key", "text", "want"),
    [
        (
            "workload",
            "trainng",
            "expected training, inference or batch, got 'trainng'; did you mean training?",
        ),
        ("pools", "dc-1,,x", "expected names of pools such as dc-1,aws-a, got 'dc-1,,x'"),
        ("pools", "a,b,a", "expected each entry once, got 'a,b,a'"),
        (
            "gpu-memory",
            "40 GB",
            "expected an amount of memory such as 40Gi or 512Mi, got '40 GB'; did you mean 40G?",
        ),
        (
            "gpu-memory",
            "40000m",
            "expected an amount of memory such as 40Gi or 512Mi, got '40000m', which is in thousandths of a byte",
        ),
        ("gpu-memory", "40 KB", "expected an amount of memory such as 40Gi or 512Mi, got '40 KB'"),
        ("gpu-memory", "40 TB", "expected an amount of memory such as 40Gi or 512Mi, got '40 TB'"),
        ("gpu-memory", "40e9", "expected an amount of memory such as 40Gi or 512Mi, got '40e9'"),
        (
            "gpu-memory",
            "37.3",
            "expected at least 1Mi of memory, such as 40Gi, got '37.3'; did you mean 37.3Gi?",
        ),
        (
            "gpu-memory",
            "40960",
            "expected at least 1Mi of memory, such as 40Gi, got '40960'; did you mean 40960Mi?",
        ),
        ("gpu-memory", "999999", "expected at least 1Mi of memory, such as 40Gi, got '999999'"),
        ("min-power", "250", "expected a power such as 250W or 1.5kW, got '250'; did you mean 250W?"),
        (
            "min-power",
            "250mW",
            "expected a power such as 250W or 1.5kW, got '250mW', which is in thousandths of a watt",
        ),
        ("max-power", "250 kw", "expected a power such as 250W or 1.5kW, got '250 kw'"),
        ("max-power", "250 megawatts", "expected a power such as 250W or 1.5kW, got '250 megawatts'"),
        ("max-power", "0", "expected a power such as 250W or 1.5kW, got '0'"),
        ("max-latency", "40", "expected a duration such as 40ms, got '40'; did you mean 40ms?"),
        ("max-latency", "40 msec", "expected a duration such as 40ms, got '40 msec'; did you mean 40ms?"),
        ("max-latency", "40 sec", "expected a duration such as 40ms, got '40 sec'"),
        ("max-latency", "40M", "expected a duration such as 40ms, got '40M'"),
        ("expected-duration", "90", "expected a duration such as 4h30m, got '90'"),
        (
            "expected-duration",
            "90 min",
            "expected a duration such as 4h30m, got '90 min'; did you mean 90m?",
        ),
        ("checkpoint-interval", "600", "expected a duration such as 10m, got '600'"),
        ("max-slowdown", "5", "expected a share such as 5%, got '5'; did you mean 5%?"),
        ("max-slowdown", "500", "expected a share such as 5%, got '500'"),
        ("flex", "25", "expected 0, 10%, 25% or 50%, got '25'; did you mean 25%?"),
        ("flex", "25 percent", "expected 0, 10%, 25% or 50%, got '25 percent'; did you mean 25%?"),
        ("flex", "30", "expected 0, 10%, 25% or 50%, got '30'"),
        ("gpu-memory", "0", "expected at least 1Mi of memory, such as 40Gi, got '0'"),
        ("gpu-memory", "40", "expected at least 1Mi of memory, such as 40Gi, got '40'; did you mean 40Gi?"),
        ("gpu-memory", "512k", "expected at least 1Mi of memory, such as 40Gi, got '512k'"),
        ("max-power", "nan", "expected a power such as 250W or 1.5kW, got 'nan'"),
        ("max-power", "-1W", "expected a power such as 250W or 1.5kW, got '-1W'"),
        (
            "gpu-model",
            "*A100*,[!",
            "expected globs on GPU models such as *H100*,*A100*, with a ] for each [, got '*A100*,[!'",
        ),
        ("flex", "30%", "expected 0, 10%, 25% or 50%, got '30%'"),
        ("gang-size", "0", "expected a whole number from 1 to 65536, got '0'"),
        ("gang-size", "65537", "expected a whole number from 1 to 65536, got '65537'"),
        ("preemptible", "yes", "expected true or false, got 'yes'; did you mean true?"),
        ("max-price", "2,50", "expected a price such as 2.50/gpu-hour, got '2,50'"),
        ("queue", "a\x1b[31m", r"expected the name of a queue such as research, got 'a\x1b[31m'"),
    ],
)
def test_a_bad_value_says_what_was_expected_and_what_stands_there(key: str, text: str, want: str) -> None:
    with pytest.raises(BadValue) as error:
        read(key, text)
    assert str(error.value) == want


HINT = re.compile(r"; did you mean (.+)\?")
# Of what each key may say, how much its example is multiplied or divided by at most where a hint is given.
WIDE = 50_000


@pytest.mark.parametrize(
    "key", [key for key in KEYS if isinstance(read(key, TABLE[key].examples[0]), float | int)]
)
@given(
    number=st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,2})?", fullmatch=True),
    unit=st.sampled_from(
        [
            "",
            *"mMkKgGtTpPsShHdDwWbB%",
            "mW",
            "MW",
            "mw",
            "kw",
            "KW",
            "MB",
            "mb",
            "Gb",
            "GIB",
            "MS",
            "Ms",
            "sec",
            "min",
        ]
    ),
    space=st.sampled_from(["", " "]),
)
def test_a_hint_can_be_read_and_is_near_the_example_of_its_key(
    key: str, number: str, unit: str, space: str
) -> None:
    try:
        read(key, number + space + unit)
    except BadValue as error:
        if hint := HINT.search(str(error)):
            meant, example = read(key, hint[1]), read(key, TABLE[key].examples[0])
            assert example / WIDE <= meant <= example * WIDE or meant == 0


@pytest.mark.parametrize("key", KEYS)
def test_a_text_of_a_quarter_megabyte_is_refused_unread(key: str) -> None:
    with pytest.raises(BadValue, match=f"at most {MOST_CHARACTERS} characters, got 262144"):
        read(key, "1" * 262_144)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("pools", ",".join(f"p{index}" for index in range(MOST_ENTRIES))),
        ("pools", "p" + " " * (MOST_CHARACTERS - 1)),
        ("gang-size", "65536"),
        ("max-price", "0.333/gpu-hour"),
        ("max-carbon", "0.000000001g/kWh"),
    ],
)
def test_what_is_just_within_its_bounds_is_read_and_reads_back(key: str, text: str) -> None:
    value = read(key, text)
    assert read(key, TABLE[key].write(value)) == value


@pytest.mark.parametrize("text", ["[", "[!", "[[[", "[]", "[!]", "a[b]c[", "[]a][", "x,[a,b]"])
def test_a_bracket_of_a_glob_has_its_end(text: str) -> None:
    with pytest.raises(BadValue, match=r"with a \] for each \["):
        read("gpu-model", text)


@pytest.mark.parametrize("text", ["[9-0]", "*[z-a]*", "*H100*,[b-a]"])
def test_a_range_of_a_glob_begins_with_its_first_sign(text: str) -> None:
    with pytest.raises(BadValue, match=r"such as \[0-9\], got"):
        read("gpu-model", text)


@pytest.mark.parametrize("text", ["[AH]100", "[!9-0]", "[!]]", "[]]x", "a]", "[[]", "*[0-9]*[!a-c]"])
def test_a_glob_whose_brackets_have_their_ends_is_taken(text: str) -> None:
    assert read("gpu-model", text) == (text,)


@given(st.text("[]!-a*", min_size=1, max_size=8))
def test_no_glob_that_is_taken_has_a_bracket_that_stands_for_itself(text: str) -> None:
    try:
        [glob] = read("gpu-model", text)
    except BadValue:
        # As it is written, a bracket matches itself.
        assert r"\[" in translate(text)
    else:
        assert r"\[" not in re.sub(r"\[(?:[^]\\]|\\.)*\]", "", translate(glob))


def test_a_list_has_an_end() -> None:
    with pytest.raises(BadValue, match=f"at most {MOST_ENTRIES} entries, got {MOST_ENTRIES + 1}"):
        read("pools", ",".join(f"p{index}" for index in range(MOST_ENTRIES + 1)))


@given(st.text())
def test_an_unknown_key_is_answered_with_what_is_known(key: str) -> None:
    message = unknown_key(key)
    assert message.isprintable()
    assert bool(message) is (key not in WRITTEN)


@pytest.mark.parametrize(
    ("key", "want"),
    [
        ("gpu-memry", f"did you mean {PREFIX}gpu-memory?"),
        ("GPU-MEMORY", f"did you mean {PREFIX}gpu-memory?"),
        ("zzz", "known: workload, pools"),
        ("decision", ""),
        *((key, f"expected it as a {what}, got an annotation") for key, what in ELSEWHERE.items()),
    ],
)
def test_what_is_said_of_an_unknown_key(key: str, want: str) -> None:
    assert want in unknown_key(key)
