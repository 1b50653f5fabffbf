"""The reader is stricter than YAML, never raises, and keeps its head under hostile text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import config, config_yaml
from scheduler.config import ConfigError
from scheduler.config_yaml import BROKEN, read
from tests.properties.configurations import as_flow

KEYS = [
    "cluster",
    "name",
    "telemetry",
    "broker",
    "pools",
    "selector",
    "profiles",
    "training",
    "policies",
    "pack",
]
KEYS += [
    "weight",
    "listeners",
    "address",
    "serves",
    "tls",
    "lease",
    "retry",
    "filters",
    "extender",
    "prefix",
    "x",
]
LEAVES: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["5s", "act", "mqtt://h", "127.0.0.1:1", "extender", "dc-1", "batch", "pack", "1.29"])
)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner)
    ),
    max_leaves=30,
)


def problems(text: str) -> list[tuple[str, int | None]]:
    return [(problem.path, problem.line) for problem in read(text).problems]


@pytest.mark.parametrize(
    ("text", "want_value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("on", True),
        ("No", False),
        ("oN", "oN"),
        ("~", None),
        ("", None),
        ("017", "017"),
        ("0o17", "0o17"),
        ("0x1f", "0x1f"),
        ("4:30", "4:30"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("5s", "5s"),
        ('"1"', "1"),
        ("'on'", "on"),
        ("|\n  1\n", "1\n"),
    ],
)
def test_a_scalar_means_what_it_seems(text: str, want_value: object) -> None:
    document = read(f"key: {text}")
    assert document.problems == []
    assert document.data == {"key": want_value}


def test_each_value_knows_its_line() -> None:
    document = read("a: 1\nb:\n  - x\n  - {y: 1,\n     z: 2}\n")
    assert document.line(("b", 0)) == 3
    assert document.line(("b", 1, "z")) == 5
    assert document.line(("b", 1, "missing", "deeper")) == 4


@pytest.mark.parametrize(
    ("text", "want_problem", "want_data"),
    [
        ("a: 1\na: 2", ("a", 2), {"a": 1}),
        ("x: {a: 1, a: {b: 2}}", ("x.a", 1), {"x": {"a": 1}}),
        ("a: &here 1", ("a", 1), {"a": 1}),
        ("a: !!python/object:os.system x", ("a", 1), {"a": BROKEN}),
        ("a: !custom {b: 1}", ("a", 1), {"a": BROKEN}),
        ("<<: {a: 1}\nb: 1", ("['<<']", 1), {"b": 1}),
        ("1: a\nb: 1", ("", 1), None),
        ("on: a", ("", 1), {}),
        ("? [a]\n: b\n", ("", 1), {}),
        ("a: 1\n---\nb: 2", ("", 2), {"a": 1}),
    ],
)
def test_what_other_readers_would_take_differently_is_refused(
    text: str, want_problem: tuple[str, int], want_data: object
) -> None:
    document = read(text)
    (problem,) = document.problems
    assert (problem.path or "", problem.line) == want_problem or problem.path == "(file)"
    assert "expected" in problem.message
    if want_data is not None:
        assert document.data == want_data


def test_an_alias_is_refused_beside_its_anchor() -> None:
    assert problems("a: &x 1\nb: *x") == [("a", 1), ("b", 2)]


def test_nested_aliases_cost_nothing() -> None:
    text = "a: &a [x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
    )
    assert len(problems(text)) == 7 + 6 * 9


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a: " * 10])
def test_deep_nesting_is_refused(text: str) -> None:
    document = read(text)
    assert document.data is BROKEN
    assert len(document.problems) == 1


def test_more_than_a_mebibyte_is_refused_unread() -> None:
    assert read("x" * (config_yaml.MOST_CHARACTERS + 1)).data is BROKEN
    assert read("ü" * (config_yaml.MOST_CHARACTERS - 1)).data is BROKEN


@pytest.mark.parametrize(
    "text", ["\x00", "\ud800", "a: [", "a: b: c", "\t- a", "%YAML 3.0\n---\na: 1", "*x", "a: 'b"]
)
def test_broken_text_is_one_problem(text: str) -> None:
    document = read(text)
    assert len(document.problems) == 1
    assert "expected" in document.problems[0].message


@pytest.mark.parametrize("character", ["\x00", "\x07", "\ud800"])
def test_what_no_yaml_may_hold_is_found_in_its_line(character: str) -> None:
    [problem] = read(f"ü: 1\nb: 2\nc: x{character}\nd: 3").problems
    assert problem.line == 3
    assert f"U+{ord(character):04X}" in problem.message or "surrogate" in problem.message


def only_configuration_errors(text: str) -> None:
    try:
        config.load(text)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - loading well is the other good outcome
        for problem in error.problems:
            assert "expected" in problem.message
            assert "got" in problem.message or "again" in problem.message
            assert len(str(problem)) < 2000


@given(st.text(max_size=300))
def test_any_text_loads_or_is_a_configuration_error(text: str) -> None:
    only_configuration_errors(text)


@given(st.text(alphabet="ab:-{}[],&*!?|>'\"#% \n~<.1", max_size=120))
def test_any_punctuation_loads_or_is_a_configuration_error(text: str) -> None:
    only_configuration_errors(text)


@given(DATA)
def test_any_data_loads_or_is_a_configuration_error(data: object) -> None:
    only_configuration_errors(as_flow(data))


@given(st.sampled_from(sorted(config.schema()["$defs"]["Settings"]["properties"])), DATA)  # type: ignore[index]  # JSON
def test_any_section_loads_or_its_problems_name_it(section: str, data: object) -> None:
    least = {"cluster": {"name": "c"}, "telemetry": {"broker": "mqtt://h"}}
    try:
        config.load(as_flow({**least, section: data}))
    except ConfigError as error:
        assert all(problem.path.startswith(section) for problem in error.problems)  # noqa: PT017 - see above


@given(st.data())
def test_one_changed_line_of_the_example_never_breaks_the_loader(data: st.DataObject) -> None:
    lines = config.example().splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = data.draw(st.text(max_size=30) | st.just(lines[index][:-1]) | st.just(lines[index] + "x"))
    only_configuration_errors("\n".join(lines))


@given(DATA)
def test_data_is_read_back_as_it_was_written(data: object) -> None:
    document = read(as_flow({"key": data}))
    if not document.problems:
        assert repr(document.data) == repr({"key": data})
