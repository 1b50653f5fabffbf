"""Notes of explain on GPUs that are there, and that kube-scheduler offers no pod as it asks for them, or counts not."""

from __future__ import annotations

from scheduler.cluster.counting import CountedBy
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Kind
from scheduler.cluster.store import Store

MOST_NODES = 5
NO_CLASS = "no DeviceClass has extendedResourceName"
NOT_OFFERED = "So kube-scheduler offers this pod none of them."
UNOFFERED = (
    "{} GPUs that an agent finds and Kubernetes does not offer ({}): no pod may ask for them until a device plugin, or "
    "the driver of DRA, runs there."
)
UNCOUNTED = (
    "{} GPUs by DRA, or slices of them, count nowhere, since it is not told of which node they are, or what can be cut "
    "beside each other: whether this pod may have one, kube-scheduler alone knows (docs/troubleshooting.md)."
)
HELD = "On {} {}. They count as what they hold, which kube-scheduler does not see (docs/troubleshooting.md)."


def unoffered(store: Store, facts: PodFacts) -> list[str]:
    """What is to be said of them for a pod that waits; nothing for one that runs."""
    if facts.node:
        return []
    uncounted = [UNCOUNTED.format(store.devices.uncounted)] if store.devices.uncounted else []
    return [*_unnamed(store, facts), *_found_only(store), *uncounted, *_held_otherwise(store, facts)]


def _unnamed(store: Store, facts: PodFacts) -> list[str]:
    """Resources that nodes offer by DRA, and that kube-scheduler does not find there for want of a name."""
    if Kind.DEVICECLASS not in store.synced:
        return []
    notes = []
    for name, _ in facts.units:
        count = sum(record.by_claims and name in record.offers for record in store.nodes.values())
        if count and not store.devices.is_named(name):
            nodes = "1 node offers" if count == 1 else f"{count:,} nodes offer"
            notes.append(f"{nodes} {name} by DRA alone, and {NO_CLASS}: {name}. {NOT_OFFERED}")
    return notes


def _found_only(store: Store) -> list[str]:
    """Nodes whose GPUs an agent alone counts."""
    names = sorted(node.name for node in store.nodes.values() if node.counted_by is CountedBy.INVENTORY)
    if not names:
        return []
    return [
        UNOFFERED.format("1 node has" if len(names) == 1 else f"{len(names):,} nodes have", _shown(names))
    ]


def _held_otherwise(store: Store, facts: PodFacts) -> list[str]:
    """Nodes that offer what a pod asks for, and whose pods hold more of it than kube-scheduler counts."""
    found: dict[str, list[str]] = {}
    for record in store.nodes.values():
        if record.outgrown and any(name in record.offers for name, _ in facts.units):
            for what in record.outgrown:
                found.setdefault(what, []).append(record.name)
    return [HELD.format(_shown(names), what) for what, names in sorted(found.items())]


def _shown(names: list[str]) -> str:
    return ", ".join([*sorted(names)[:MOST_NODES], *(["..."] if len(names) > MOST_NODES else [])])
