"""Cuts a long list into pages, in small turns of the loop: 50,000 pods must not hold up an extender call."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence
from heapq import merge
from typing import TypeVar

import msgspec

Key = tuple[str, ...]
Item = TypeVar("Item")

# Half a millisecond of sorting, or of building views.
KEYS_A_TURN = 1000
VIEWS_A_TURN = 50


class BadToken(ValueError):
    """A `continue` value that we never gave out."""


async def page_of(
    keys: Sequence[Key], after: Key | None, limit: int, build: Callable[[Key], Item | None]
) -> tuple[list[Item], Key | None]:
    """Build the first `limit` items in the order of their keys, beyond `after`.

    Keys, not positions, mark where a page ended: what comes or goes between two pages moves nothing.

    Args:
        keys: All keys, in any order.
        after: The key at which the page before ended; None for the first page.
        limit: How many items at most.
        build: Makes an item; None leaves it out (gone, or not asked for).

    Returns:
        The items, and the key at which they end if there may be more.
    """
    runs: list[list[Key]] = []
    for start in range(0, len(keys), KEYS_A_TURN):
        run = keys[start : start + KEYS_A_TURN]
        runs.append(sorted(run if after is None else [key for key in run if key > after]))
        await asyncio.sleep(0)
    items: list[Item] = []
    last: Key | None = None
    for index, key in enumerate(merge(*runs)):
        if len(items) == limit:
            return items, last
        if index % VIEWS_A_TURN == VIEWS_A_TURN - 1:
            await asyncio.sleep(0)
        item = build(key)
        last = key
        if item is not None:
            items.append(item)
    return items, None


def write_token(key: Key) -> str:
    """Make a `continue` value of a key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def read_token(token: str, length: int) -> Key:
    """Read a `continue` value back.

    Raises:
        BadToken: not one of ours.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        key = msgspec.json.decode(raw, type=tuple[str, ...])
    except (msgspec.MsgspecError, UnicodeError, binascii.Error, ValueError) as error:
        raise BadToken("not a `continue` of ours") from error
    if len(key) != length:
        raise BadToken("a `continue` of another list")
    return key
