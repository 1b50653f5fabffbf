"""Cuts a long list into pages, in small turns of the loop: 50,000 pods must not hold up an extender call."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

Key = tuple[str, ...]
Handle = TypeVar("Handle")

# At most half a millisecond of making and sorting keys, of building items, or of looking through the log.
KEYS_A_TURN = 500
ITEMS_A_TURN = 50
RECORDS_A_TURN = 500
BYTES_A_TURN = 2**18


class BadToken(ValueError):
    """A `continue` value that we never gave out."""


async def page_of(
    handles: Sequence[Handle], key_of: Callable[[Handle], Key | None], after: Key | None, limit: int
) -> tuple[list[Key], Key | None]:
    """Find the first `limit` keys beyond `after`, in order.

    Keys, not positions, mark where a page ended: what comes or goes between two pages moves nothing.

    Args:
        handles: Everything there is, in any order, as cheap to list as it is.
        key_of: Makes the key of one; None leaves it out (gone, or not asked for).
        after: The key at which the page before ended; None for the first page.
        limit: How many keys at most.

    Returns:
        The keys, and the last of them if there are more.
    """
    first: list[Key] = []
    for start in range(0, len(handles), KEYS_A_TURN):
        keys = map(key_of, handles[start : start + KEYS_A_TURN])
        first += [key for key in keys if key is not None and (after is None or key > after)]
        # The most part is in order already, which sorting knows to use. What is beyond the page goes at once: fifty
        # thousand keys cost 3 ms to make, and as much to forget.
        first.sort()
        del first[limit + 1 :]
        await asyncio.sleep(0)
    return first[:limit], first[limit - 1] if len(first) > limit else None


async def items_of(keys: Sequence[Key], build: Callable[[Key], bytes | None]) -> list[bytes]:
    """Build the items of a page, as JSON; what has gone meanwhile is left out."""
    items: list[bytes] = []
    for index, key in enumerate(keys):
        if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        item = build(key)
        if item is not None:
            items.append(item)
    return items


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
        raise BadToken("continue: expected the value that came with the page before, got another") from error
    if len(key) != length:
        raise BadToken("continue: expected a value of this list, got one of another")
    return key
