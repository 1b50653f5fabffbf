"""A bounded queue in which nobody's many items keep another's few waiting, or out. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Of one owner's items first in, first out; of owners one after the other.

    Where there is too much in all, the newest item of who has most goes.

    Args:
        most: Items that it holds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_owner: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, owner: str, item: T) -> T | None:
        """Queue one; returns the one that has to go for it, which may be itself."""
        own = self._by_owner.setdefault(owner, deque())
        own.append(item)
        self._count += 1
        if self._count <= self._most:
            return None
        longest = max(self._by_owner.values(), key=len)
        self._count -= 1
        if len(longest) > len(own):
            return longest.pop()
        dropped = own.pop()
        if not own:
            del self._by_owner[owner]
        return dropped

    def put_back(self, owner: str, item: T) -> None:
        """Queue one that was taken out before all others of its owner; there is room for it."""
        self._by_owner.setdefault(owner, deque()).appendleft(item)
        self._count += 1

    def pop(self) -> T:
        """Take the next one out. Raises KeyError if there is none."""
        owner, own = self._by_owner.popitem(last=False)
        item = own.popleft()
        self._count -= 1
        if own:
            self._by_owner[owner] = own
        return item
