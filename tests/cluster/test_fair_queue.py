"""Nobody's many items keep another's few waiting, or out."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.cluster.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_owners_come_in_turn_and_each_ones_items_in_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.add(item[0], item) is None
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    with pytest.raises(KeyError):
        queue.pop()


def test_what_is_put_back_is_the_first_of_its_owner_again() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "b1"):
        queue.add(item[0], item)
    taken = queue.pop()
    queue.put_back("a", taken)
    assert len(queue) == 3
    assert drained(queue) == ["b1", "a1", "a2"]
    queue.put_back("c", "c1")
    assert drained(queue) == ["c1"]


def test_where_there_is_too_much_the_newest_of_who_has_most_goes() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for item in ("a1", "a2", "a3"):
        queue.add("a", item)
    assert queue.add("b", "b1") == "a3"
    assert queue.add("a", "a4") == "a4"
    assert queue.add("c", "c1") == "a2"
    # Each has one: nobody's goes but the newcomer's.
    assert queue.add("d", "d1") == "d1"
    assert drained(queue) == ["a1", "b1", "c1"]


class FairQueueMachine(RuleBasedStateMachine):
    """Beside plain lists by owner."""

    MOST = 5

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[str, int]] = FairQueue(self.MOST)
        self.lists: dict[str, list[tuple[str, int]]] = {}
        self.number = 0

    def count(self) -> int:
        return sum(map(len, self.lists.values()))

    @rule(owner=st.sampled_from("abcdefg"))
    def add(self, owner: str) -> None:
        self.number += 1
        item = (owner, self.number)
        self.lists.setdefault(owner, []).append(item)
        dropped = self.queue.add(owner, item)
        if self.count() <= self.MOST:
            assert dropped is None
            return
        assert dropped is not None
        his = self.lists[dropped[0]]
        assert his.pop() == dropped
        # Nobody has more than he had.
        assert all(len(others) <= len(his) + 1 for others in self.lists.values())

    @precondition(lambda self: self.count())
    @rule(back=st.booleans())
    def pop(self, *, back: bool) -> None:
        item = self.queue.pop()
        assert self.lists[item[0]].pop(0) == item
        if back:
            self.queue.put_back(item[0], item)
            self.lists[item[0]].insert(0, item)

    @invariant()
    def none_is_lost(self) -> None:
        assert len(self.queue) == self.count() <= self.MOST


TestFairQueueMachine = FairQueueMachine.TestCase
