"""Which nodes there are: their rows, pools and hardware. Pure; the store owns the only instance."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.columns import Columns
from scheduler.cluster.counting import CountedBy, Disagreements, count, disagreement
from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_devices import NodeDevices
from scheduler.cluster.objects import Amounts, Node, quantity
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.resized import held, note
from scheduler.cluster.shares import Offer, is_gpu_resource, model_of, offers
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store_settings import StoreSettings
from scheduler.core.models import folded, matches
from scheduler.core.nouns import PREFIX, Units
from scheduler.telemetry.sample import Inventory

QUARANTINE_LABEL = PREFIX + "quarantine"
# GPU feature discovery's, where no agent tells.
MEMORY_LABEL = "nvidia.com/gpu.memory"
DEFAULT_POOL = "default"


@dataclass(slots=True)
class NodeRecord:
    """What the store keeps of a node beside its columns."""

    name: str
    uid: str
    row: int
    labels: dict[str, str]
    pool: str = ""
    """The first whose selector takes it."""
    in_pools: tuple[str, ...] = ()
    """All of those, if they are several: it gets no pod of ours then."""
    allocatable: Amounts = field(default_factory=dict)
    """Of resources that are GPUs or parts of them."""
    offers: dict[str, Offer] = field(default_factory=dict)
    """What that comes to."""
    miscounted: tuple[str, ...] = ()
    """What its labels claim that allocatable does not have, and that DRA offers what it has."""
    disagreement: str = ""
    """What its agent says otherwise: fewer GPUs than are counted, and for a while."""
    outgrown: tuple[str, ...] = ()
    """What its pods hold otherwise than it is offered now."""
    said: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Which of them, and which pools, were told."""
    devices: NodeDevices | None = None
    """What DRA offers there."""
    device_offers: dict[str, Offer] = field(default_factory=dict)
    """What that comes to, by resource."""
    counted_by: CountedBy = CountedBy.NOBODY
    """Who tells how many GPUs it has."""
    model: str = ""
    inventory: Inventory | None = None
    agent: str = ""
    told: bool = False
    """Whether its object has been read."""
    cordoned_mono_s: float = -inf
    """When it was seen to become unschedulable; -inf if it came so, or never was."""
    pods: dict[str, PodFacts] = field(default_factory=dict)
    shared: bool = False
    """Whether units share a GPU's memory."""
    memory_bytes: dict[str, float] = field(default_factory=dict)
    """Then: what each unit of the pods that are here is to have, by uid."""
    untaken: frozenset[str] = frozenset()
    """Whose of that the newest sample need not have in it."""
    came_to: dict[str, Mapping[str, Offer]] = field(default_factory=dict)
    """What it offered when pods came that it does not offer now, by their uid."""

    @property
    def contradictions(self) -> tuple[str, ...]:
        """What there is to say of it that does not go together."""
        return (*self.miscounted, *([self.disagreement] if self.disagreement else []), *self.outgrown)

    def is_news(self) -> bool:
        """Whether what contradicts its count, or the pools that take it, have changed since this was asked last."""
        before, self.said = self.said, (self.contradictions, self.in_pools)
        return before != self.said

    @property
    def by_claims(self) -> bool:
        """Whether claims hold its GPUs, since its allocatable has none and its slices have."""
        return self.counted_by is CountedBy.SLICES

    def held(self, facts: PodFacts) -> Units:
        """What a pod that is here holds, in units of what is offered now."""
        if self.by_claims or not self.offers:
            return facts.units
        return held(facts, self.came_to, self.offers)

    @property
    def ways(self) -> tuple[object, ...]:
        """In which ways its GPUs are counted."""
        return self.shared, self.by_claims, self.offers


class Nodes:
    """Records by name, and the columns that a node's object and its inventory fill."""

    def __init__(self, columns: Columns, settings: StoreSettings, devices: Devices) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.rows: dict[str, int] = {}
        self.names: list[str | None] = []
        self.generation = 0
        """Changes whenever a row gets another node, or the pools change: tables built from names are then stale."""
        self.pool_names = [*(p.name for p in settings.pools), DEFAULT_POOL]
        self._columns = columns
        self._pools = settings.pools
        self._capabilities = settings.capabilities
        self._devices = devices
        self._gpu_resources = settings.gpu_resources
        self._disagreements = Disagreements()

    def use(self, settings: StoreSettings) -> None:
        """Take other pools and capabilities; every node goes where it belongs now. The caller folds."""
        self.pool_names = [*(p.name for p in settings.pools), DEFAULT_POOL]
        self._pools = settings.pools
        self._capabilities = settings.capabilities
        columns = self._columns
        columns.pool_sizes = [0] * len(self.pool_names)
        by_model = {model: self._capability(model) for model in {r.model for r in self.records.values()}}
        for record in self.records.values():
            self._enter(record)
            columns.capability[record.row] = by_model[record.model]
        # Tables built from names have pools' names in them too.
        self.generation += 1

    def add(self, node: Node) -> NodeRecord:
        """Give a new node its row. `update` fills in the rest."""
        name = node.metadata.name
        labels = node.metadata.labels or {}
        columns = self._columns
        row = columns.take_row()
        record = NodeRecord(name=name, uid=node.metadata.uid, row=row, labels=labels)
        self.records[name] = record
        self.rows[name] = row
        self.names.extend([None] * (columns.rows - len(self.names)))
        self.names[row] = name
        self.generation += 1
        columns.present[row] = True
        columns.cordoned[row] = bool(node.spec.unschedulable)
        columns.name_hash[row] = zlib.crc32(name.encode())
        self._enter(record)
        return record

    def _enter(self, record: NodeRecord) -> None:
        """Put a node where its labels say; one that is in two pools counts in neither, since it takes nothing there."""
        columns, row = self._columns, record.row
        pools = self._pools_of(record.labels)
        several = len(pools) > 1
        columns.pool[row], columns.in_two_pools[row] = pools[0], several
        columns.pool_sizes[pools[0]] += not several
        record.pool = self.pool_names[pools[0]]
        record.in_pools = tuple(self.pool_names[index] for index in pools) if several else ()

    def _leave(self, row: int) -> None:
        columns = self._columns
        columns.pool_sizes[columns.pool[row]] -= not columns.in_two_pools[row]

    def update(self, record: NodeRecord, node: Node, now_mono_s: float) -> None:
        """Take what the node's object says now."""
        columns, row = self._columns, record.row
        before = (record.labels, record.allocatable)
        labels = node.metadata.labels or {}
        record.labels, record.allocatable = labels, self._gpu_amounts(node)
        # A node tells of itself every few minutes, and of something new about never.
        is_news = not record.told or before != (record.labels, record.allocatable)
        record.told = True
        if is_news:
            self._leave(row)
            self._enter(record)
        columns.quarantined[row] = QUARANTINE_LABEL in labels
        cordoned = bool(node.spec.unschedulable)
        if cordoned and not columns.cordoned[row]:
            record.cordoned_mono_s = now_mono_s
        columns.cordoned[row] = cordoned
        if is_news:
            self.renew(record)

    def renew(self, record: NodeRecord) -> None:
        """Fold a node's readings anew after its hardware changed."""
        columns, row = self._columns, record.row
        devices = self._devices.by_node.get(record.name)
        if record.inventory is None or not record.inventory.gpus:
            record.model = (devices.model if devices else "") or model_of(record.labels)
        columns.capability[row] = self._capability(record.model)
        models, columns.gpu_memory_bytes[row] = _hardware(record.inventory, record.labels, devices)
        columns.models[row] = columns.model_index(models)
        self._renew_offers(record)
        columns.fold_readings(slice(row, row + 1))
        columns.renew_snapshot()

    def _renew_offers(self, record: NodeRecord) -> None:
        found = len(record.inventory.gpus) if record.inventory is not None else None
        record.devices = self._devices.by_node.get(record.name)
        record.device_offers = self._devices.offers(record.name)
        counted = count(
            record.allocatable,
            record.labels,
            model=record.model,
            found=found,
            devices=record.devices,
            by_devices=record.device_offers,
            also=self._gpu_resources,
        )
        if CountedBy.SLICES not in {record.counted_by, counted.by}:
            note(record.pods, record.came_to, record.offers, counted.offers)
        record.counted_by, record.offers = counted.by, counted.offers
        columns, row = self._columns, record.row
        indexes = {name: columns.resource_index(name) for name in record.offers}
        memory_bytes = columns.gpu_memory_bytes[row]
        # What is not allocatable any more stays as large as it was: the plugin restarts, and pods hold it.
        columns.units[:, row] = 0
        columns.unit_shared[:, row] = False
        columns.unit_memory_bytes[:, row] = memory_bytes
        for name, offer in record.offers.items():
            index = indexes[name]
            if index is not None:
                columns.units[index, row] = offer.units
                columns.unit_gpus[index, row] = offer.gpus
                own_bytes = offer.memory_bytes or memory_bytes * offer.memory_frac
                # Of a slice that is shared nobody measures what is free, only of its GPU.
                columns.unit_memory_bytes[index, row] = 0 if offer.shared else own_bytes
                columns.unit_shared[index, row] = offer.shared and not offer.memory_bytes
        record.shared = columns.shared[row] = bool(columns.unit_shared[:, row].any())
        if not record.shared:
            # Not kept from here on: what was read last would be told as if it were young.
            columns.memory_used_bytes[row] = np.nan
        # In 64 bits, so that 42 sevenths are 6: what is more than there is would be broken.
        kept = {name: offer for name, offer in record.offers.items() if indexes[name] is not None}
        gpus = sum(offer.units * offer.gpus for offer in kept.values())
        columns.gpu_count[row] = gpus
        columns.counted_gpus[row] = found or 0 if counted.by is CountedBy.INVENTORY else gpus
        self._disagreements.see(record.name, disagreement(counted.by, kept, gpus, found))
        record.miscounted = counted.contradictions
        record.disagreement = self._disagreements.steady.get(record.name, "")

    def pass_time(self, now_mono_s: float) -> Iterator[NodeRecord]:
        """Let time pass; gives nodes of which an agent says otherwise for so long that it should be told."""
        for name in self._disagreements.pass_time(now_mono_s):
            record = self.records[name]
            record.disagreement = self._disagreements.steady[name]
            yield record

    def renew_devices(self, record: NodeRecord) -> None:
        """Likewise after what DRA tells of it changed; most claims change nothing of what it offers."""
        devices = self._devices.by_node.get(record.name)
        if devices is not record.devices or self._devices.offers(record.name) != record.device_offers:
            self.renew(record)

    def remove(self, name: str) -> NodeRecord | None:
        """Give the node's row back. Returns its record as it was, None if there was no such node."""
        record = self.records.pop(name, None)
        if record is None:
            return None
        del self.rows[name]
        self._disagreements.see(name, "")
        self.names[record.row] = None
        self.generation += 1
        columns = self._columns
        self._leave(record.row)
        columns.free_row(record.row)
        columns.renew_snapshot()
        return record

    def with_strangers(self, snapshot: Snapshot, nodes: Sequence[Node]) -> Snapshot:
        """The snapshot with rows appended for nodes that are judged from the object sent, load unknown.

        Such a node may be a template that does not exist yet; it never gets a promise. Rows count on from
        `snapshot.rows`, in the order given.
        """
        count = len(nodes)
        labels = [n.metadata.labels or {} for n in nodes]
        hardware = [_hardware(None, each) for each in labels]
        pools = [self._pools_of(each) for each in labels]
        zeros = np.zeros(count, np.float32)
        shape = (len(snapshot.resources), count)
        units, unit_gpus = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        memory_bytes = np.tile(np.array([memory for _, memory in hardware], np.float64), (shape[0], 1))
        for column, (node, each) in enumerate(zip(nodes, labels, strict=True)):
            found, _ = offers(self._gpu_amounts(node), each, also=self._gpu_resources)
            for name, offer in found.items():
                # What no node of ours has stays kube-scheduler's to count.
                if name in snapshot.resources:
                    index = snapshot.resources[name]
                    units[index, column], unit_gpus[index, column] = offer.units, offer.gpus
                    # Nobody has measured what is free where units share it.
                    own_bytes = offer.memory_bytes or memory_bytes[index, column] * offer.memory_frac
                    memory_bytes[index, column] = 0 if offer.shared else own_bytes
        gpus = (units * unit_gpus).sum(0)
        added: dict[str, NDArray[np.generic]] = {
            "present": np.ones(count, bool),
            "gpu_count": gpus,
            "counted_gpus": gpus,
            "healthy_gpus": np.full(count, np.inf, np.float32),
            "free_gpus": gpus,
            "bound_gpus": zeros,
            "reserved_gpus": zeros,
            "load_sum": gpus * np.float32(self._columns.neutral_load),
            "pending_load": zeros,
            "known_gpus": zeros,
            "fresh": np.zeros(count, bool),
            "reading_age_s": np.full(count, np.inf, np.float32),
            "pool": np.array([each[0] for each in pools], np.uint8),
            "quarantined": np.array([QUARANTINE_LABEL in each for each in labels], bool),
            "cordoned": np.array([bool(n.spec.unschedulable) for n in nodes], bool),
            "models": np.array([self._columns.model_index(models) for models, _ in hardware], np.int16),
            "units": units,
            "unit_gpus": unit_gpus,
            "unit_memory_bytes": memory_bytes,
            "bound_units": np.zeros(shape, np.float32),
            "reserved_units": np.zeros(shape, np.float32),
            "free_units": units,
            "capability": np.array([self._capability(model_of(each)) for each in labels], np.float32),
            "name_hash": np.array([zlib.crc32(n.metadata.name.encode()) for n in nodes], np.uint32),
        }
        columns: dict[str, object] = {
            name: np.concatenate([getattr(snapshot, name), column], axis=-1) for name, column in added.items()
        }
        if snapshot.in_two_pools is not None or any(len(each) > 1 for each in pools):
            known = np.zeros(snapshot.rows, bool) if snapshot.in_two_pools is None else snapshot.in_two_pools
            columns["in_two_pools"] = np.concatenate([known, [len(each) > 1 for each in pools]])
        most = max([snapshot.capability_max, *(self._capability(model_of(each)) for each in labels)])
        return snapshot.replace(**columns, capability_max=most, model_sets=tuple(self._columns.model_sets))

    def pool_indexes(self, names: Sequence[str]) -> tuple[int, ...]:
        """Of pools by their names; of such as there are."""
        return tuple(self.pool_names.index(name) for name in names if name in self.pool_names)

    def _pools_of(self, labels: dict[str, str]) -> tuple[int, ...]:
        """Indexes of all pools whose selector takes a node, `default` if none does."""
        found = tuple(
            index
            for index, pool in enumerate(self._pools)
            if all(labels.get(k) == v for k, v in pool.selector.items())
        )
        return found or (len(self._pools),)

    def _gpu_amounts(self, node: Node) -> Amounts:
        amounts = (node.status.allocatable or {}).items()
        return {name: each for name, each in amounts if is_gpu_resource(name, self._gpu_resources)}

    def _capability(self, model: str) -> float:
        if not model:
            # Nobody has told what is in it: it may be the weakest. Taken for average, an unread node of weak GPUs
            # would look better than the same node known to be idle.
            return min([1.0, *self._capabilities.values()])
        for pattern, capability in self._capabilities.items():
            if matches(model, pattern):
                return capability
        return 1.0


def _hardware(
    inventory: Inventory | None, labels: Mapping[str, str], devices: NodeDevices | None = None
) -> tuple[frozenset[str], float]:
    """Models as they compare, and bytes of the smallest GPU; empty and 0 where nobody tells.

    An agent's word goes before that of DRA's driver, and both before a label, which is written once; a node with one
    GPU that does not tell is unknown.
    """
    if inventory is not None and inventory.gpus:
        memory = [gpu.memory_total_bytes for gpu in inventory.gpus]
        models = {folded(gpu.model) for gpu in inventory.gpus}
        return (frozenset(models) if all(models) else frozenset()), float(min(each or 0 for each in memory))
    if devices is not None and (devices.gpus or devices.cut):
        return devices.models, devices.memory_bytes
    model = folded(model_of(labels))
    # In MiB, whatever the label is called. A share's is the share's own.
    memory_bytes = quantity(labels.get(MEMORY_LABEL)) * 2.0**20
    return (frozenset({model}) if model else frozenset()), max(memory_bytes, 0.0)
