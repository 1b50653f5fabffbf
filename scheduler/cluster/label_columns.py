"""Labels of many things as columns of small numbers, one a key; so that a selector is judged for all of them at once.

A key gets its column when somebody first asks for it, and events keep it up to date from then on. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.preferences import whole
from scheduler.core.preferences import Operator, Requirement, Selector

Mask = NDArray[np.bool_]
Codes = NDArray[np.int32]
ABSENT = -1
# Columns kept: pods ask for a dozen keys. Who asks for more waits for a column to be made: 25 ms at 50,000 things.
MOST_KEYS = 32
# Values kept in all columns together, some 32 MB.
MOST_VALUES = 200_000
# A column with more values than things has mostly such as are gone; it is made anew. Small ones don't matter.
SPARE_VALUES = 1024


class LabelColumn:
    """The values of one key: `codes` of shape (things,), ABSENT where a thing has no such label."""

    def __init__(self, values: Iterable[tuple[int, str]], size: int) -> None:
        self._numbers: tuple[NDArray[np.int64], Mask] | None = None
        self._code_of: dict[str, int] = {}
        code_of, there, codes = self._code_of, [], []
        for index, value in values:
            there.append(index)
            codes.append(code_of.setdefault(value, len(code_of)))
        self._codes: Codes = np.full(max(size, 1 + max(there, default=0)), ABSENT, np.int32)
        # At once: written one by one it takes three times as long.
        self._codes[there] = codes

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self._code_of)

    def codes(self, size: int) -> Codes:
        """Codes of the first so many things."""
        if size > len(self._codes):
            self._grow(size)
        return self._codes[:size]

    def write(self, index: int, value: str | None) -> None:
        """A thing has this value now, or none."""
        if index >= len(self._codes):
            if value is None:
                return
            self._grow(index + 1)
        code = ABSENT if value is None else self._code_of.setdefault(value, len(self._code_of))
        self._codes[index] = code

    def code(self, value: str) -> int:
        """The code of a value; ABSENT if nothing has it."""
        return self._code_of.get(value, ABSENT)

    def _grow(self, size: int) -> None:
        grown = np.full(max(size, len(self._codes) + len(self._codes) // 4), ABSENT, np.int32)
        grown[: len(self._codes)] = self._codes
        self._codes = grown

    def truth(self, requirement: Requirement) -> Mask:
        """Whether each code meets the requirement, shape (values + 1,); the last is of things without the label."""
        operator = requirement.operator
        met = np.zeros(self.count + 1, np.bool_)
        if operator in {Operator.IN, Operator.NOT_IN}:
            found = [self._code_of[value] for value in requirement.values if value in self._code_of]
            met[found] = True
            return met if operator is Operator.IN else ~met
        if operator in {Operator.EXISTS, Operator.DOES_NOT_EXIST}:
            met[:-1] = True
            return met if operator is Operator.EXISTS else ~met
        numbers, are_numbers = self._whole_numbers()
        bound = np.int64(int(requirement.values[0]))
        met[:-1] = are_numbers & (numbers > bound if operator is Operator.GT else numbers < bound)
        return met

    def _whole_numbers(self) -> tuple[NDArray[np.int64], Mask]:
        if self._numbers is None or len(self._numbers[0]) != self.count:
            read = [whole(value) for value in self._code_of]
            self._numbers = (
                np.array([number or 0 for number in read], np.int64),
                np.array([number is not None for number in read], np.bool_),
            )
        return self._numbers


class LabelColumns:
    """Columns by key. `find` gives the values of a key that things have now, with their indexes."""

    def __init__(self, find: Callable[[str], Iterable[tuple[int, str]]]) -> None:
        self._find = find
        self._by_key: OrderedDict[str, LabelColumn] = OrderedDict()
        """The one that was asked for last is last."""

    def write(self, index: int, labels: Mapping[str, str]) -> None:
        """A thing has these labels now, and no others."""
        for key, column in self._by_key.items():
            column.write(index, labels.get(key))

    def column(self, key: str, size: int) -> LabelColumn:
        """The column of a key, for so many things."""
        column = self._by_key.get(key)
        if column is None or column.count > size + SPARE_VALUES:
            column = self._by_key[key] = LabelColumn(self._find(key), size)
            self._tidy(key)
        self._by_key.move_to_end(key)
        return column

    def _tidy(self, kept: str) -> None:
        values = sum(column.count for column in self._by_key.values())
        for key in list(self._by_key):
            if len(self._by_key) <= MOST_KEYS and values <= MOST_VALUES:
                break
            if key != kept:
                values -= self._by_key.pop(key).count

    def match(self, selector: Selector, size: int) -> Mask:
        """Which of the first so many things meet all requirements, shape (size,)."""
        matched = np.ones(size, np.bool_)
        for requirement in selector:
            column = self.column(requirement.key, size)
            # ABSENT is the last place.
            matched &= column.truth(requirement)[column.codes(size)]
        return matched


def meets(labels: Mapping[str, str], selector: Selector) -> bool:
    """Whether one thing's labels meet all requirements."""
    return all(_meets(labels.get(each.key), each) for each in selector)


def _meets(value: str | None, requirement: Requirement) -> bool:
    operator, values = requirement.operator, requirement.values
    if operator is Operator.IN:
        return value in values
    if operator is Operator.NOT_IN:
        return value not in values
    if operator is Operator.EXISTS or value is None:
        return (value is None) == (operator is Operator.DOES_NOT_EXIST)
    if operator is Operator.DOES_NOT_EXIST:
        return False
    number = whole(value)
    if number is None:
        return False
    return number > int(values[0]) if operator is Operator.GT else number < int(values[0])
