"""Paged lists: every page of one list shows the objects as they were at its first."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from scheduler.core.errors import ApiGone, ApiRejected
from scheduler.simulate.apiserver_rules import JsonObject
from scheduler.simulate.apiserver_select import Test
from scheduler.simulate.apiserver_store import Store, Table, typed
from scheduler.simulate.apiserver_watch import padding

# Lists in progress that can be continued; more at once than clients of a test or a demo.
_OPEN_LISTS_MAX = 64


@dataclass(slots=True)
class _OpenList:
    rv: int
    items: list[tuple[str, bytes]]
    packed: dict[tuple[int, int, bool], bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """What a list request asks. `limit` 0 is no limit."""

    limit: int
    token: str
    rv: str
    partial: bool
    namespace: str
    select: Test | None


class Lists:
    """Answers list requests from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: OrderedDict[str, _OpenList] = OrderedDict()

    def expire(self) -> None:
        """Forget every list in progress: its next page is answered 410."""
        self._open.clear()

    def page(
        self, table: Table, options: ListOptions, *, gzip: bool, pad_bytes: int = 0
    ) -> tuple[bytes, bool]:
        """One encoded page, and whether it is packed with gzip.

        Raises:
            ApiGone: the continue token is too old.
            ApiRejected: it never was one.
        """
        start, limit = 0, options.limit
        if options.token:
            name, _, offset = options.token.rpartition(".")
            if not offset.isdigit() or not name.startswith(table.resource.plural):
                raise ApiRejected("invalid continue token: continue key is not valid", status=400)
            if name not in self._open:
                raise ApiGone(
                    "The provided continue parameter is too old to display a consistent list result.",
                    status=410,
                )
            listed, start = self._open[name], int(offset)
            self._open.move_to_end(name)
        else:
            if options.rv == "0":
                # The watch cache answers, and it does not page.
                limit = 0
            name, listed = self._begin(table, options)
        end = len(listed.items) if limit == 0 else min(start + limit, len(listed.items))
        shape = (start, end, options.partial)
        if gzip and not pad_bytes and (known := listed.packed.get(shape)) is not None:
            return known, True
        meta: JsonObject = {"resourceVersion": str(listed.rv)}
        if end < len(listed.items):
            meta["continue"] = f"{name}.{end}"
            if options.select is None:
                meta["remainingItemCount"] = len(listed.items) - end
        body = self._body(table, options, listed.items[start:end], meta, pad_bytes)
        if not gzip or len(body) < _GZIP_FROM_BYTES:
            return body, False
        packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WBITS)
        packed = packer.compress(body) + packer.flush()
        if not pad_bytes:
            listed.packed[shape] = packed
        return packed, True

    def _begin(self, table: Table, options: ListOptions) -> tuple[str, _OpenList]:
        items = table.in_order()
        whole = not options.namespace and options.select is None
        name = f"{table.resource.plural}.{self._store.rv}"
        if whole:
            if (known := self._open.get(name)) is not None:
                return name, known
        else:
            name += f".{len(self._open)}.{id(items)}"
            if options.namespace:
                items = [item for item in items if item[0].startswith(options.namespace + "/")]
            if (select := options.select) is not None:
                items = [item for item in items if select(msgspec.json.decode(item[1], type=JsonObject))]
        listed = self._open[name] = _OpenList(rv=self._store.rv, items=items)
        while len(self._open) > _OPEN_LISTS_MAX:
            self._open.popitem(last=False)
        return name, listed

    @staticmethod
    def _body(
        table: Table, options: ListOptions, items: list[tuple[str, bytes]], meta: JsonObject, pad_bytes: int
    ) -> bytes:
        resource = table.resource
        if options.partial:
            kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
            encoded = [typed(resource, data, partial=True) for _, data in items]
        else:
            # Items of a list carry neither kind nor apiVersion.
            kind, version = f"{resource.kind}List", resource.group_version
            encoded = [data for _, data in items]
        if pad_bytes:
            pad = b"{" + padding(pad_bytes)
            encoded = [pad + data[1:] for data in encoded]
        head = msgspec.json.encode({"kind": kind, "apiVersion": version, "metadata": meta})
        return head[:-1] + b',"items":[' + b",".join(encoded) + b"]}"


# Packed from this size on, for clients that accept it, as by kube-apiserver.
_GZIP_FROM_BYTES = 128 * 1024
# kube-apiserver packs at level 4 of Go's, for the same balance as this; wbits 31 is zlib's gzip container.
_GZIP_LEVEL = 1
_GZIP_WBITS = 31
