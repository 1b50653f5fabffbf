"""Bytes to slim objects, page by page. The usual object takes one pass; an odd one is repaired or skipped, and counted.

A page is decoded object by object as its reader goes on, since 500 pods at once are milliseconds of held loop.
Odd are nulls where a field is absent otherwise (clients in other languages send them, and some servers hand them
on). Whatever cannot be read must not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.cluster.objects import ConfigMap, Node, Partial, Pod, Slim
from scheduler.cluster.port import Kind
from scheduler.core.errors import ApiUnavailable

if TYPE_CHECKING:
    from scheduler.cluster.api_request import Counters

log = logging.getLogger(__name__)

Object = Node | Pod | Partial

_TYPES: dict[Kind, type[Object]] = {
    Kind.NODE: Node,
    Kind.POD: Pod,
    Kind.CONFIGMAP: ConfigMap,
    Kind.RESOURCESLICE: ResourceSlice,
    Kind.RESOURCECLAIM: ResourceClaim,
    Kind.DEVICECLASS: DeviceClass,
}

# Where an object may be seen to end and is none: tried so often, then the rest of the page is scanned as a whole.
# Arrays of objects within one are short; 8 claim templates are more than anybody has.
MOST_FALSE_ENDS = 8


class ListMeta(Slim, frozen=True):
    """metadata of a list."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class WatchLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class _RawList(Slim, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class _VersionMeta(Slim, frozen=True):
    resource_version: str | None = None


class _VersionOnly(Slim, frozen=True):
    metadata: _VersionMeta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list. `items` are decoded as they are taken, and may raise ApiUnavailable."""

    items: Iterator[Object]
    resource_version: str
    next_token: str


class _Unusual(Exception):
    """A list that does not look as Go writes it."""


_ITEMS = b'"items":['
_RAW = msgspec.json.Decoder(msgspec.Raw)
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])


class Decoder:
    """Decodes one kind."""

    def __init__(self, kind: Kind, counters: Counters) -> None:
        self._kind = kind
        self._counters = counters
        self._type = _TYPES.get(kind, Partial)
        self._raw_list = msgspec.json.Decoder(_RawList)
        self._one = msgspec.json.Decoder(self._type)
        self._version = msgspec.json.Decoder(_VersionOnly)
        self._keyed_by_name = kind in {Kind.NODE, Kind.NAMESPACE}
        partial = self._type is Partial
        self.list_accept = _partial_accept("PartialObjectMetadataList") if partial else "application/json"
        self.watch_accept = _partial_accept("PartialObjectMetadata") if partial else "application/json"

    def page(self, body: bytes) -> Page:
        """Decode one page. Raises ApiUnavailable if it is not a list at all."""
        # Go writes a list's items last, without white space. Who writes otherwise is read all the same, in one go.
        start = body.find(_ITEMS) + len(_ITEMS)
        end = body.rfind(b"]}")
        try:
            if start < len(_ITEMS) or end < start or body[end + 2 :].strip():
                raise _Unusual
            try:
                head = self._raw_list.decode(body[:start] + b"]}")
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _Unusual from error
            items = self._split(body, start, end)
        except _Unusual:
            try:
                head = self._raw_list.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ApiUnavailable(f"list of {self._kind}: not a list: {error}") from error
            items = self._each(head.items or ())
        metadata = head.metadata
        return Page(
            items=items, resource_version=metadata.resource_version, next_token=metadata.continue_ or ""
        )

    def _each(self, items: Iterable[msgspec.Raw]) -> Iterator[Object]:
        for item in items:
            if (found := self.one(item)) is not None:
                yield found

    def _split(self, body: bytes, start: int, end: int) -> Iterator[Object]:
        """Decode `{…},{…}` between two places, one at a time, without a scan that only finds the ends.

        All objects of a list begin with the same key. Where that key follows `},` an object *may* have ended: it has
        if what stands before is a whole object, which no part of an object is. A string cannot hold the mark, since
        quotes in it are escaped.
        """
        view = memoryview(body)
        mark = b"}," + body[start : body.find(b":", start, end) + 2]
        false_ends = 0
        tried = start
        while start < end:
            found = body.find(mark, tried, end)
            stop = end if found < 0 else found + 1
            try:
                item: Object | None = self._one.decode(view[start:stop])
            except (msgspec.DecodeError, UnicodeDecodeError):
                if not _is_whole(view[start:stop]):
                    tried = stop
                    false_ends += 1
                    if found < 0 or false_ends > MOST_FALSE_ENDS:
                        yield from self._each(self._rest(view[start:end]))
                        return
                    continue
                item = self.one(bytes(view[start:stop]))
            if item is not None and self.key(item):
                yield item
            start = tried = stop + 1
            false_ends = 0

    def _rest(self, text: memoryview) -> list[msgspec.Raw]:
        try:
            return _RAWS.decode(b"[" + bytes(text) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiUnavailable(f"list of {self._kind}: not a list: {error}") from error

    def one(self, raw: msgspec.Raw | bytes) -> Object | None:
        """Decode one object; None if it cannot be read even without its nulls."""
        try:
            found: Object = self._one.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            try:
                found = msgspec.convert(_without_nulls(msgspec.json.decode(raw)), self._type)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self._counters.undecodable[self._kind] += 1
                log.warning("an object of %s cannot be read and is skipped: %s", self._kind, error)
                return None
        return found if self.key(found) else None

    def key(self, item: Object) -> str:
        """The key by which `Listed` names it."""
        return item.metadata.name if self._keyed_by_name else item.metadata.uid

    def resource_version(self, raw: msgspec.Raw) -> str:
        """The version of an object, be it unreadable otherwise or a bookmark."""
        try:
            metadata = self._version.decode(raw).metadata
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        return (metadata.resource_version or "") if metadata is not None else ""


def _is_whole(text: memoryview) -> bool:
    """Whether it is one JSON value, whatever its type."""
    try:
        _RAW.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value if inner is not None]
    return value


def _partial_accept(kind: str) -> str:
    # Half the bytes; a server without it answers whole objects, which decode just as well.
    return f"application/json;as={kind};v=v1;g=meta.k8s.io,application/json"
