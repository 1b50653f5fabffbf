"""The objects of a simulated API server: encoded once, versioned, with a window of past events.

An object is held as the bytes that lists are joined from (without kind and apiVersion, as list items go), so that
50,000 pods cost their own size and no more. Python callers get plain JSON objects, decoded on demand.
"""

from __future__ import annotations

import random
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

import msgspec

from scheduler.core.clock import Clock
from scheduler.core.errors import ApiConflict, ApiNotFound
from scheduler.simulate import apiserver_rules as rules
from scheduler.simulate.apiserver_rules import JsonObject, Resource

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(JsonObject)
# The alphabet of apimachinery's generated names.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class _Head(msgspec.Struct):
    metadata: msgspec.Raw


_HEAD = msgspec.json.Decoder(_Head)


@dataclass(slots=True)
class Event:
    """One change. `data` is the object after it (before it, with the new version, for DELETED)."""

    resource: Resource
    type: str
    rv: int
    key: str
    data: bytes
    before: bytes | None
    _object: JsonObject | None = None
    _frames: dict[bool, bytes] = field(default_factory=dict)

    @property
    def object(self) -> JsonObject:
        """The object; shared by all listeners, not to be changed."""
        if self._object is None:
            self._object = _DECODER.decode(self.data)
        return self._object

    def frame(self, *, partial: bool, as_type: str = "") -> bytes:
        """The line of a watch; encoded once for all watchers."""
        if as_type and as_type != self.type:
            return frame(as_type, self.resource, self.data, partial=partial)
        if partial not in self._frames:
            self._frames[partial] = frame(self.type, self.resource, self.data, partial=partial)
        return self._frames[partial]


Hook = Callable[[Event], None]


def typed(resource: Resource, data: bytes, *, partial: bool = False) -> bytes:
    """An encoded object with its kind, whole or only its metadata."""
    if partial:
        head = bytes(_HEAD.decode(data).metadata)
        return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":' + head + b"}"
    return f'{{"kind":"{resource.kind}","apiVersion":"{resource.group_version}",'.encode() + data[1:]


def frame(type_: str, resource: Resource, data: bytes, *, partial: bool) -> bytes:
    """One line of a watch."""
    return b'{"type":"' + type_.encode() + b'","object":' + typed(resource, data, partial=partial) + b"}\n"


@dataclass(slots=True)
class Table:
    """All objects of one resource, by `namespace/name` or `name`."""

    resource: Resource
    window: deque[Event]
    objects: dict[str, bytes] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)
    forgotten_rv: int = 0
    """Events up to here have left the window."""
    ordered: list[tuple[str, bytes]] | None = None
    """Key order, as etcd lists; None after a change."""

    def in_order(self) -> list[tuple[str, bytes]]:
        """A list that later changes do not touch: a paged list goes on reading it."""
        if self.ordered is None:
            self.ordered = sorted(self.objects.items())
        return self.ordered

    def since(self, rv: int) -> Iterator[Event]:
        """Events of the window after a version."""
        start = bisect_right(self.window, rv, key=lambda event: event.rv)
        return (self.window[at] for at in range(start, len(self.window)))


class Store:
    """Create, get, update, patch, bind and delete, with the rules of apiserver_rules. One global version counter.

    Args:
        clock: for creation and deletion times.
        minor: the Kubernetes version played is 1.`minor`.
        window_events: how many past events a watch can start behind, for each resource.
        seed: for uids and generated names.
    """

    def __init__(self, clock: Clock, *, minor: int = 32, window_events: int = 10_000, seed: int = 0) -> None:
        self.minor = minor
        self.rv = 1
        self._clock = clock
        self._random = random.Random(seed)
        self._window_events = window_events
        self.tables = {
            resource.plural: Table(resource=resource, window=deque())
            for resource in rules.RESOURCES
            if resource.since <= minor
        }
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.create(rules.NAMESPACES, {"metadata": {"name": name}})

    def date(self) -> str:
        """Now, as HTTP writes it."""
        return formatdate(self._clock.unix_s(), usegmt=True)

    def key(self, kind: str, name: str, namespace: str = "") -> str:
        """Where an object is kept."""
        return f"{namespace}/{name}" if self.tables[kind].resource.namespaced else name

    def data(self, kind: str, name: str, namespace: str = "") -> bytes:
        """An encoded object. Raises ApiNotFound."""
        table = self.tables[kind]
        found = table.objects.get(self.key(kind, name, namespace))
        if found is None:
            raise rules.not_found(table.resource, name)
        return found

    def get(self, kind: str, name: str, namespace: str = "") -> JsonObject:
        """A copy of an object. Raises ApiNotFound."""
        return _DECODER.decode(self.data(kind, name, namespace))

    def list(self, kind: str) -> list[JsonObject]:
        """Copies of all objects of a kind, in key order."""
        return [_DECODER.decode(data) for _, data in self.tables[kind].in_order()]

    def count(self, kind: str) -> int:
        """How many objects of a kind there are."""
        return len(self.tables[kind].objects)

    def subscribe(self, kind: str, hook: Hook, *, replay: bool = True) -> Callable[[], None]:
        """Call `hook` with every later event of a kind, after an ADDED for each object that is there.

        A hook runs inside the write that it hears of: it must be quick and must not write itself.

        Returns:
            What ends the subscription.
        """
        table = self.tables[kind]
        if replay:
            for key, data in table.in_order():
                hook(Event(table.resource, "ADDED", self.rv, key, data, None))
        table.hooks.append(hook)
        return lambda: table.hooks.remove(hook)

    def create(self, kind: str, obj: JsonObject) -> JsonObject:
        """Add an object; returns it as stored. Raises ApiConflict, ApiNotFound (namespace) or ApiRejected."""
        table = self.tables[kind]
        # Ten times as fast as deepcopy, which the loading of 50,000 pods would feel.
        new = _DECODER.decode(_ENCODER.encode(obj))
        new.pop("kind", None)
        new.pop("apiVersion", None)
        meta = new.pop("metadata", None) or {}
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "".join(self._random.choices(_NAME_LETTERS, k=5))
        if table.resource.namespaced:
            namespace = meta.setdefault("namespace", "default")
            if namespace not in self.tables[rules.NAMESPACES].objects:
                raise ApiNotFound(f'namespaces "{namespace}" not found', status=404)
        else:
            meta.pop("namespace", None)
        # metadata goes first: partial answers are cut from the front of the encoded object.
        new = {"metadata": meta, **new}
        rules.prepare_create(table.resource, new, self.minor)
        key = self.key(kind, meta["name"], meta.get("namespace", ""))
        if key in table.objects:
            raise ApiConflict(f'{table.resource.qualified} "{meta["name"]}" already exists', status=409)
        meta["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        meta["creationTimestamp"] = rules.rfc3339(self._clock.unix_s())
        return self._write(table, "ADDED", key, new, None)

    def update(self, kind: str, obj: JsonObject, *, status: bool = False) -> JsonObject:
        """Replace an object (PUT), or only its status.

        Raises:
            ApiConflict: the resourceVersion or uid in it is not the stored one.
            ApiNotFound: there is none (a Lease without a version is created instead).
            ApiRejected: it may not change so.
        """
        table = self.tables[kind]
        meta = obj.get("metadata") or {}
        name, namespace = meta.get("name", ""), meta.get("namespace") or "default"
        if kind == rules.LEASES:
            exists = self.key(kind, name, namespace) in table.objects
            if not exists and not meta.get("resourceVersion"):
                return self.create(kind, obj)
            if not exists:
                raise rules.conflict(table.resource.qualified, name, rules.STALE)
            if not meta.get("resourceVersion"):
                raise rules.invalid(
                    table.resource,
                    name,
                    "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update",
                )
        old = self.get(kind, name, namespace)
        uid = old["metadata"]["uid"]
        if meta.get("uid", uid) != uid:
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {uid}"
            raise rules.conflict(table.resource.qualified, name, why)
        return self._replace(table, old, _DECODER.decode(_ENCODER.encode(obj)), status=status)

    def patch(
        self, kind: str, name: str, namespace: str, patch: JsonObject, *, status: bool = False
    ) -> JsonObject:
        """Apply a JSON merge patch. Raises as `update`, but a wrong uid is ApiRejected (422)."""
        old = self.get(kind, name, namespace)
        return self._replace(self.tables[kind], old, rules.merge_patch(old, patch), status=status)

    def bind(self, name: str, namespace: str, binding: JsonObject) -> None:
        """Apply a Binding. Raises ApiConflict, ApiNotFound or ClusterError as `apiserver_rules.bound`."""
        table = self.tables[rules.PODS]
        old = self.get(rules.PODS, name, namespace)
        now = rules.rfc3339(self._clock.unix_s())
        new = rules.bound(table.resource, old, binding, self.minor, now)
        self._write(table, "MODIFIED", f"{namespace}/{name}", new, self.data(rules.PODS, name, namespace))

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        grace_s: int | None = None,
        uid: str = "",
        rv: str = "",
    ) -> JsonObject:
        """Delete an object, or mark it as going while a kubelet or a finalizer holds it.

        Args:
            kind: plural, as everywhere.
            name: of the object.
            namespace: of the object, where it has one.
            grace_s: 0 takes a bound pod away at once, as its kubelet does in the end.
            uid: precondition.
            rv: precondition.

        Returns:
            The last state. Raises ApiConflict (precondition) or ApiNotFound.
        """
        table = self.tables[kind]
        obj = self.get(kind, name, namespace)
        meta = obj["metadata"]
        if (uid and uid != meta["uid"]) or (rv and rv != meta["resourceVersion"]):
            raise rules.conflict(table.resource.kind, name, "the precondition does not match the record")
        stays_s = rules.grace_s(table.resource, obj, grace_s)
        if stays_s > 0 or meta.get("finalizers"):
            if "deletionTimestamp" not in meta:
                meta["deletionTimestamp"] = rules.rfc3339(self._clock.unix_s() + stays_s)
                meta["deletionGracePeriodSeconds"] = stays_s
                before = self.data(kind, name, namespace)
                obj = self._write(table, "MODIFIED", self.key(kind, name, namespace), obj, before)
            return obj
        return self._remove(table, obj)

    def _replace(self, table: Table, old: JsonObject, new: JsonObject, *, status: bool) -> JsonObject:
        new.pop("kind", None)
        new.pop("apiVersion", None)
        rules.prepare_update(table.resource, old, new, self.minor, status=status)
        if new == old:
            # A change that changes nothing is no event and no new version.
            return old
        new = {"metadata": new.pop("metadata"), **new}
        meta = new["metadata"]
        freed = old["metadata"].get("finalizers") and not meta.get("finalizers")
        if freed and meta.get("deletionTimestamp") and rules.grace_s(table.resource, new, None) == 0:
            return self._remove(table, new)
        key = self.key(table.resource.plural, meta["name"], meta.get("namespace", ""))
        return self._write(table, "MODIFIED", key, new, table.objects[key])

    def _remove(self, table: Table, obj: JsonObject) -> JsonObject:
        meta = obj["metadata"]
        if table.resource.plural == rules.NAMESPACES:
            self._empty(meta["name"])
        key = self.key(table.resource.plural, meta["name"], meta.get("namespace", ""))
        return self._write(table, "DELETED", key, obj, table.objects[key])

    def _empty(self, namespace: str) -> None:
        for table in self.tables.values():
            if table.resource.namespaced:
                for key in [key for key in table.objects if key.startswith(f"{namespace}/")]:
                    self._remove(table, _DECODER.decode(table.objects[key]))

    def _write(self, table: Table, type_: str, key: str, obj: JsonObject, before: bytes | None) -> JsonObject:
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        data = _ENCODER.encode(obj)
        if type_ == "DELETED":
            del table.objects[key]
        else:
            table.objects[key] = data
        table.ordered = None
        event = Event(table.resource, type_, self.rv, key, data, before, _object=obj)
        table.window.append(event)
        for hook in (*table.hooks,):
            hook(event)
        if len(table.window) > self._window_events:
            table.forgotten_rv = table.window.popleft().rv
        # The window keeps the bytes only: decoded objects of 10,000 events would outweigh the store.
        event._object = None  # noqa: SLF001 - same module, and the event's own cache
        return obj

    def forget_events(self) -> None:
        """Empty the windows, as time or a restart does: a watch from any older version is told 410."""
        for table in self.tables.values():
            table.window.clear()
            table.forgotten_rv = self.rv
