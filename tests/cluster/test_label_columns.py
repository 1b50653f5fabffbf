"""Labels as columns: every operator, as Kubernetes means it, and what changes while somebody asks."""

from __future__ import annotations

import pytest

from scheduler.cluster import label_columns
from scheduler.cluster.label_columns import ABSENT, LabelColumns, meets
from scheduler.core.preferences import Operator, Requirement

THINGS: list[dict[str, str]] = [
    {"size": "7"},
    {"size": "+7"},
    {"size": "-7"},
    {"size": "70"},
    {"size": "seven"},
    {"size": ""},
    {"size": "7_0"},
    {"size": "99999999999999999999"},
    # The first number beyond each end of 64 bits, and one in more digits than the longest of these has.
    {"size": "9223372036854775808"},
    {"size": "-9223372036854775809"},
    {"size": "00000000000000000000009"},
    {},
]
CASES = [
    (Operator.IN, ("7", "seven"), [0, 4]),
    (Operator.IN, ("8",), []),
    (Operator.NOT_IN, ("7", "seven"), [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]),
    (Operator.EXISTS, (), list(range(11))),
    (Operator.DOES_NOT_EXIST, (), [11]),
    (Operator.GT, ("6",), [0, 1, 3, 10]),
    (Operator.GT, ("7",), [3, 10]),
    (Operator.LT, ("7",), [2]),
    (Operator.LT, ("9223372036854775807",), [0, 1, 2, 3, 10]),
]


def columns_of(things: list[dict[str, str]]) -> LabelColumns:
    return LabelColumns(
        lambda key: ((index, labels[key]) for index, labels in enumerate(things) if key in labels)
    )


def matched(columns: LabelColumns, *selector: Requirement, size: int) -> list[int]:
    return [int(index) for index in columns.match(selector, size).nonzero()[0]]


@pytest.mark.parametrize(("operator", "values", "want"), CASES)
def test_an_operator_selects_what_kubernetes_would(
    operator: Operator, values: tuple[str, ...], want: list[int]
) -> None:
    requirement = Requirement("size", operator, values)
    assert matched(columns_of(THINGS), requirement, size=len(THINGS)) == want
    assert [index for index, labels in enumerate(THINGS) if meets(labels, (requirement,))] == want


def test_all_requirements_must_be_met_and_none_selects_everything() -> None:
    columns = columns_of([{"a": "1", "b": "1"}, {"a": "1"}, {"b": "1"}])
    both = (Requirement("a", Operator.EXISTS), Requirement("b", Operator.EXISTS))
    assert matched(columns, *both, size=3) == [0]
    assert matched(columns, size=3) == [0, 1, 2]


def test_a_column_follows_what_changes_after_it_was_made() -> None:
    things: list[dict[str, str]] = [{"a": "1"}, {}]
    columns = columns_of(things)
    one = Requirement("a", Operator.IN, ("1",))
    large = Requirement("a", Operator.GT, ("5",))
    assert matched(columns, one, size=2) == [0]
    assert matched(columns, large, size=2) == []
    columns.write(0, {})
    columns.write(1, {"a": "1"})
    columns.write(400, {"a": "9"})
    assert matched(columns, one, size=401) == [1]
    assert matched(columns, large, size=500) == [400], "one that came later, beyond the column's end"


def test_of_too_many_keys_the_ones_that_were_asked_for_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_columns, "MOST_KEYS", 2)
    made: list[str] = []

    def find(key: str) -> list[tuple[int, str]]:
        made.append(key)
        return [(0, "x")]

    columns = LabelColumns(find)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert columns.column(key, 1).codes(1)[0] != ABSENT
    assert made == ["a", "b", "c", "b"]


def test_values_that_are_gone_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_columns, "SPARE_VALUES", 10)
    now = {"a": "0"}
    columns = LabelColumns(lambda key: [(0, now[key])])
    columns.column("a", 1)
    for value in range(100):
        now["a"] = str(value)
        columns.write(0, now)
        assert columns.column("a", 1).count <= 12
    assert matched(columns, Requirement("a", Operator.IN, ("99",)), size=1) == [0]


def test_of_too_many_values_whole_columns_go_but_never_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_columns, "MOST_VALUES", 5)
    made: list[str] = []

    def find(key: str) -> list[tuple[int, str]]:
        made.append(key)
        return [(index, f"{key}{index}") for index in range(9 if key == "long" else 4)]

    columns = LabelColumns(find)
    for key in ("a", "b", "b", "a"):
        assert columns.column(key, 4).count == 4
    for _ in range(2):
        assert columns.column("long", 9).count == 9, "though it is too long by itself"
    assert made == ["a", "b", "a", "long"]
