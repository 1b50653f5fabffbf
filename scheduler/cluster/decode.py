"""Bytes to slim objects, page by page. The usual object takes one pass; an odd one is repaired or skipped, and counted.

Odd are nulls where a field is absent otherwise (clients in other languages send them, and some servers hand them
on). Whatever cannot be read must not stop the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from scheduler.cluster.objects import Node, Partial, Pod, Slim
from scheduler.cluster.port import Kind
from scheduler.core.errors import ApiUnavailable

if TYPE_CHECKING:
    from scheduler.cluster.api_request import Counters

log = logging.getLogger(__name__)

Object = Node | Pod | Partial


class ListMeta(Slim, frozen=True):
    """metadata of a list."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class WatchLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class _NodeList(Slim, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[Node] | None = None


class _PodList(Slim, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[Pod] | None = None


class _PartialList(Slim, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[Partial] | None = None


class _RawList(Slim, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class _VersionMeta(Slim, frozen=True):
    resource_version: str | None = None


class _VersionOnly(Slim, frozen=True):
    metadata: _VersionMeta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list."""

    items: list[Object]
    keys: list[str]
    resource_version: str
    next_token: str


class Decoder:
    """Decodes one kind."""

    def __init__(self, kind: Kind, counters: Counters) -> None:
        self._kind = kind
        self._counters = counters
        of_kind: dict[Kind, type[Object]] = {Kind.NODE: Node, Kind.POD: Pod}
        self._type = of_kind.get(kind, Partial)
        lists: dict[type[Object], type[_NodeList | _PodList | _PartialList]] = {
            Node: _NodeList,
            Pod: _PodList,
            Partial: _PartialList,
        }
        self._list = msgspec.json.Decoder(lists[self._type])
        self._raw_list = msgspec.json.Decoder(_RawList)
        self._one = msgspec.json.Decoder(self._type)
        self._version = msgspec.json.Decoder(_VersionOnly)
        self._keyed_by_name = kind in {Kind.NODE, Kind.NAMESPACE}
        partial = self._type is Partial
        self.list_accept = _partial_accept("PartialObjectMetadataList") if partial else "application/json"
        self.watch_accept = _partial_accept("PartialObjectMetadata") if partial else "application/json"

    def page(self, body: bytes) -> Page:
        """Decode one page. Raises ApiUnavailable if it is not a list at all."""
        try:
            whole = self._list.decode(body)
            items: list[Object] = [item for item in whole.items or () if self.key(item)]
            metadata = whole.metadata
        except (msgspec.DecodeError, UnicodeDecodeError):
            try:
                raw = self._raw_list.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ApiUnavailable(f"list of {self._kind}: not a list: {error}") from error
            metadata = raw.metadata
            items = [found for item in raw.items or () if (found := self.one(item)) is not None]
        return Page(
            items=items,
            keys=[self.key(item) for item in items],
            resource_version=metadata.resource_version,
            next_token=metadata.continue_ or "",
        )

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


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value if inner is not None]
    return value


def _partial_accept(kind: str) -> str:
    # Half the bytes; a server without it answers whole objects, which decode just as well.
    return f"application/json;as={kind};v=v1;g=meta.k8s.io,application/json"
