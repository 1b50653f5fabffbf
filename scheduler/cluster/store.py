"""The single writer of cluster state: takes events, keeps columns. Pure; every instant is handed in.

Everyone else reads `snapshot` (columns), `pods`, `nodes` and counters, and asks for changes through the methods here.
State is rebuilt from the API alone: nothing that matters lives only here.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.columns import STATE_BROKEN, STATE_OK, STATE_UNKNOWN, Columns
from scheduler.cluster.intent import Intents
from scheduler.cluster.objects import Node, Partial, Pod, quantity
from scheduler.cluster.pods import PodFacts, has_soft_preference, pod_facts, waits_for_volume
from scheduler.cluster.port import ClusterEvent, Gone, Kind, Listed
from scheduler.cluster.reservations import Reservation, Reservations
from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import GPU_RESOURCE, PREFIX, PodRequest, PoolSpec, Workload
from scheduler.telemetry.sample import Inventory, Sample

QUARANTINE_LABEL = PREFIX + "quarantine"
MODEL_LABEL = "nvidia.com/gpu.product"
STATES = {"ok": STATE_OK, "unknown": STATE_UNKNOWN, "lost": STATE_BROKEN, "hung": STATE_BROKEN}
DEFAULT_POOL = "default"
# Inventories of nodes that Kubernetes has not told of yet; agents may come up first. A full cluster and some.
MOST_EARLY_INVENTORIES = 10_000
PENDING_FLOOR = 1e-3
# Within this, a half-life of seconds fades by less than PENDING_FLOOR, and no limit is meant that exactly.
TICK_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What the store needs of the configuration."""

    pools: tuple[PoolSpec, ...] = ()
    half_life_s: float = 5.0
    stale_s: float = 10.0
    neutral_load: float = 0.5
    reservation_s: float = 30.0
    capabilities: dict[str, float] = field(default_factory=dict)
    """GPU model glob -> relative capability; the first that matches counts, default 1."""
    expected_loads: dict[Workload, float] = field(default_factory=dict)
    """What one GPU of a pod of this class is expected to be busy."""


@dataclass(slots=True)
class NodeRecord:
    """What the store keeps of a node beside its columns."""

    name: str
    row: int
    labels: dict[str, str]
    pool: str
    gpu_count: float
    model: str = ""
    inventory: Inventory | None = None
    agent: str = ""
    pods: dict[str, PodFacts] = field(default_factory=dict)


class Store:
    """Nodes, pods, reservations and readings, by one writer."""

    def __init__(self, settings: StoreSettings, intents: Intents) -> None:
        self.settings = settings
        self.intents = intents
        self.reservations = Reservations(settings.reservation_s)
        self.pods: dict[str, PodFacts] = {}
        self.nodes: dict[str, NodeRecord] = {}
        self.rows: dict[str, int] = {}
        self.names: list[str | None] = []
        self.generation = 0
        """Changes whenever a row gets another node: tables built from names are then stale."""
        self.synced: set[Kind] = set()
        self.counters: Counter[str] = Counter()
        self.waiting: dict[str, PodFacts] = {}
        """GPU pods without a node."""
        self.on_bound: Callable[[PodFacts], None] | None = None
        """Told of each binding that is seen after the first listing."""
        self._nominated: dict[str, PodFacts] = {}
        self._orphans: dict[str, dict[str, PodFacts]] = {}
        self._early_inventories: dict[str, Inventory] = {}
        self._pool_names = [*(p.name for p in settings.pools), DEFAULT_POOL]
        self._columns = Columns(
            neutral_load=settings.neutral_load, stale_s=settings.stale_s, pools=len(self._pool_names)
        )
        self._ticked_mono_s = -np.inf

    @property
    def snapshot(self) -> Snapshot:
        """Read-only columns, valid within this synchronous turn."""
        return self._columns.snapshot

    @property
    def pool_names(self) -> list[str]:
        """In order of preference; `default`, which has every node that no selector takes, is last."""
        return self._pool_names

    def node_power_w(self, row: int) -> float | None:
        """Measured watts of all GPUs of a node; None where any of them is unknown."""
        power_w = float(self._columns.node_power_w[row])
        return None if np.isnan(power_w) else power_w

    def gpu_readings(self, name: str) -> list[tuple[str, float | None, float | None]]:
        """Per GPU of a node, in the inventory's order: state, decayed utilisation, watts; None is unknown."""
        record = self.nodes[name]
        columns, row = self._columns, record.row
        readings: list[tuple[str, float | None, float | None]] = []
        for index in range(len(record.inventory.gpus) if record.inventory else 0):
            known = bool(columns.known[row, index] and columns.fresh[row])
            power_w = float(columns.power_w[row, index])
            state = "broken" if columns.state[row, index] == STATE_BROKEN else "ok" if known else "unknown"
            util_frac = float(columns.util[row, index]) if known and state == "ok" else None
            readings.append(
                (state, util_frac, None if np.isnan(power_w) or not columns.fresh[row] else power_w)
            )
        return readings

    def received_mono_s(self, row: int) -> float:
        """Instant of the node's last sample; -inf if none."""
        return float(self._columns.received_mono_s[row])

    # --- events from the cluster ---------------------------------------------------------------------------------

    def apply(self, event: ClusterEvent, now_mono_s: float) -> None:
        """Take one event of the cluster's watch."""
        if isinstance(event, Listed):
            self._listed(event, now_mono_s)
            return
        thing = event.object
        gone = isinstance(event, Gone)
        if isinstance(thing, Pod):
            facts = None if gone else pod_facts(thing)
            if facts is None:
                self._pod_gone(thing.metadata.uid, now_mono_s)
            else:
                self._pod_seen(facts, now_mono_s)
        elif isinstance(thing, Node):
            if gone:
                self._node_gone(thing.metadata.name)
            else:
                self._node_seen(thing)
        elif event.kind is Kind.NAMESPACE:
            self._namespace(thing, gone=gone)
        elif gone:
            self.intents.forget_owner(thing.metadata.uid)
        else:
            self.intents.see_owner(thing)

    def _namespace(self, namespace: Partial, *, gone: bool) -> None:
        if gone:
            self.intents.forget_namespace(namespace.metadata.name)
        else:
            self.intents.see_namespace(namespace)

    def _listed(self, event: Listed, now_mono_s: float) -> None:
        # A relist after a gap: whatever it did not name was deleted while nobody looked.
        if event.kind is Kind.POD:
            for uid in self.pods.keys() - event.keys:
                self._pod_gone(uid, now_mono_s)
        elif event.kind is Kind.NODE:
            for name in self.nodes.keys() - event.keys:
                self._node_gone(name)
        elif event.kind is Kind.NAMESPACE:
            for name in self.intents.namespaces.keys() - event.keys:
                self.intents.forget_namespace(name)
        self.synced.add(event.kind)

    def _node_seen(self, node: Node) -> None:
        name = node.metadata.name
        columns = self._columns
        labels = node.metadata.labels or {}
        gpu_count = _gpus_of(node)
        pool = self._pool_index(labels)
        record = self.nodes.get(name)
        if record is None:
            row = columns.take_row()
            record = NodeRecord(
                name=name, row=row, labels=labels, pool=self._pool_names[pool], gpu_count=gpu_count
            )
            self.nodes[name] = record
            self.rows[name] = row
            self.names.extend([None] * (columns.rows - len(self.names)))
            self.names[row] = name
            self.generation += 1
            columns.present[row] = True
            columns.name_hash[row] = zlib.crc32(name.encode())
            columns.pool_sizes[pool] += 1
            columns.pool[row] = pool
            for facts in self._orphans.pop(name, {}).values():
                self._hold(record, facts)
            early = self._early_inventories.pop(name, None)
            if early is not None:
                self.see_inventory(name, early)
        row = record.row
        if columns.pool[row] != pool:
            columns.pool_sizes[columns.pool[row]] -= 1
            columns.pool_sizes[pool] += 1
            columns.pool[row] = pool
        record.labels, record.pool, record.gpu_count = labels, self._pool_names[pool], gpu_count
        if record.inventory is None:
            record.model = labels.get(MODEL_LABEL, "")
        columns.gpu_count[row] = gpu_count
        columns.quarantined[row] = QUARANTINE_LABEL in labels
        columns.cordoned[row] = bool(node.spec.unschedulable)
        columns.capability[row] = self._capability(record.model)
        columns.fold_readings(np.array([row]))
        self._renew_scalars(row)

    def _renew_scalars(self, row: int) -> None:
        columns = self._columns
        columns.capability_max = max(columns.capability_max, float(columns.capability[row]))
        columns.gpu_count_max = max(columns.gpu_count_max, float(columns.gpu_count[row]))
        columns.renew_snapshot()

    def _node_gone(self, name: str) -> None:
        record = self.nodes.pop(name, None)
        if record is None:
            return
        if record.pods:
            # Their pods are still in the API until garbage collection; the node may come back under its name.
            self._orphans[name] = record.pods
        for held in self.reservations.on_node(name):
            self.reservations.release(held.uid)
        del self.rows[name]
        self.names[record.row] = None
        self.generation += 1
        columns = self._columns
        columns.pool_sizes[columns.pool[record.row]] -= 1
        columns.free_row(record.row)
        columns.renew_snapshot()

    def _pool_index(self, labels: dict[str, str]) -> int:
        for index, pool in enumerate(self.settings.pools):
            if all(labels.get(k) == v for k, v in pool.selector.items()):
                return index
        return len(self.settings.pools)

    def _capability(self, model: str) -> float:
        for pattern, capability in self.settings.capabilities.items():
            if fnmatchcase(model, pattern):
                return capability
        return 1.0

    # --- pods ----------------------------------------------------------------------------------------------------

    def _pod_seen(self, facts: PodFacts, now_mono_s: float) -> None:
        before = self.pods.get(facts.uid)
        if before is not None and before.node and before.node != facts.node:
            # No API server moves a pod; a uid that comes twice must not hold GPUs on two nodes.
            self._pod_gone(facts.uid, now_mono_s)
            before = None
        self.pods[facts.uid] = facts
        if facts.nominated_node and not facts.node:
            self._nominated[facts.uid] = facts
        else:
            self._nominated.pop(facts.uid, None)
        if not facts.node:
            self.waiting[facts.uid] = facts
            return
        if before is not None and before.node == facts.node:
            self._replace_facts(before, facts)
            return
        self.waiting.pop(facts.uid, None)
        self._bound(facts, now_mono_s, was_waiting=before is not None)
        if self.on_bound is not None and Kind.POD in self.synced:
            self.on_bound(facts)

    def _replace_facts(self, before: PodFacts, facts: PodFacts) -> None:
        record = self.nodes.get(facts.node)
        held = record.pods if record else self._orphans.setdefault(facts.node, {})
        held[facts.uid] = facts
        if record is not None and before.gpus != facts.gpus:
            self._sum_bound(record)

    def _bound(self, facts: PodFacts, now_mono_s: float, *, was_waiting: bool) -> None:
        """A binding is a fact: it takes the pod's own reservation, else evicts the youngest of that node."""
        own = self.reservations.get(facts.uid)
        if own is not None:
            self._drop_reservation(facts.uid, now_mono_s, keep_load=own.node == facts.node)
        self.reservations.forget_pod(facts.uid)
        record = self.nodes.get(facts.node)
        if record is None:
            self._orphans.setdefault(facts.node, {})[facts.uid] = facts
            return
        self._hold(record, facts)
        row, columns = record.row, self._columns
        if (own is None or own.node != facts.node) and (was_waiting or Kind.POD in self.synced):
            # Placed past us, or on another node than ours: its load is coming there all the same.
            columns.pending[row] += facts.gpus * self._expected_load(facts)
        room = min(float(columns.gpu_count[row]), float(columns.healthy[row])) - float(columns.bound[row])
        if columns.reserved[row] > max(room, 0):
            for held in reversed(self.reservations.on_node(record.name)):
                if columns.reserved[row] <= max(room, 0):
                    break
                self._drop_reservation(held.uid, now_mono_s)
                self.counters["reservations_evicted"] += 1

    def _hold(self, record: NodeRecord, facts: PodFacts) -> None:
        record.pods[facts.uid] = facts
        self._sum_bound(record)

    def _sum_bound(self, record: NodeRecord) -> None:
        # Added up anew, over one node's few pods: one absurd amount, taken off again, would leave rounding behind.
        self._columns.bound[record.row] = sum(facts.gpus for facts in record.pods.values())
        self._columns.fold_holdings(record.row)

    def _pod_gone(self, uid: str, now_mono_s: float) -> None:
        facts = self.pods.pop(uid, None)
        self.waiting.pop(uid, None)
        self._nominated.pop(uid, None)
        if self.reservations.get(uid) is not None:
            self._drop_reservation(uid, now_mono_s)
        self.reservations.forget_pod(uid)
        if facts is None or not facts.node:
            return
        record = self.nodes.get(facts.node)
        if record is not None and record.pods.pop(uid, None) is not None:
            columns = self._columns
            if columns.fresh[record.row]:
                # The mirror image of a binding: what ended is still in the measurement for some half-lives.
                columns.pending[record.row] -= facts.gpus * self._expected_load(facts)
            self._sum_bound(record)
        elif facts.node in self._orphans:
            self._orphans[facts.node].pop(uid, None)
            if not self._orphans[facts.node]:
                del self._orphans[facts.node]

    def _expected_load(self, facts: PodFacts) -> float:
        workload = self.intents.workload(facts.meta, facts.priority_class)
        return self.settings.expected_loads.get(workload, 1.0)

    # --- questions -----------------------------------------------------------------------------------------------

    def request(self, pod: Pod, waited_s: float, profiles: dict[Workload, tuple[str, float]]) -> PodRequest:
        """Turn a pod into the request that policies see. `profiles`: workload -> (name, expected load)."""
        facts = pod_facts(pod)
        meta = pod.metadata
        workload = self.intents.workload(meta, pod.spec.priority_class_name)
        profile, expected_load = profiles[workload]
        return PodRequest(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            gpus=int(facts.gpus) if facts else 0,
            workload=workload,
            profile=profile,
            expected_load=expected_load,
            waited_s=waited_s,
            priority=pod.spec.priority or 0,
            nominated_node=pod.status.nominated_node_name,
            soft_preferences=has_soft_preference(pod),
            waits_for_volume=waits_for_volume(pod),
        )

    def snapshot_for(self, request: PodRequest) -> Snapshot:
        """The snapshot with what only concerns this pod: its own reservation counted free, nominations honoured.

        A pod with a nominated node holds its GPUs there against pods of equal or lower priority.
        """
        snapshot = self.snapshot
        own = self.reservations.get(request.uid)
        others = [
            facts
            for facts in self._nominated.values()
            if facts.uid != request.uid
            and facts.priority >= request.priority
            and facts.nominated_node in self.rows
            and not self._promised(facts.uid, facts.nominated_node)
        ]
        if own is None and not others:
            return snapshot
        columns = self._columns
        claim = columns.bound + columns.reserved
        if own is not None and own.node in self.rows:
            claim[self.rows[own.node]] -= own.gpus
        for facts in others:
            claim[self.rows[facts.nominated_node]] += facts.gpus
        free = np.maximum(np.minimum(columns.gpu_count, columns.healthy) - claim, 0)
        pending = columns.pending
        if own is not None and own.node in self.rows:
            pending = pending.copy()
            row = self.rows[own.node]
            pending[row] -= own.load * self._faded(own, self._ticked_mono_s)
        return snapshot.replace(free_gpus=free, pending_load=pending)

    def _promised(self, uid: str, node: str) -> bool:
        """Whether the pod's GPUs on this node are counted by a reservation already."""
        held = self.reservations.get(uid)
        return held is not None and held.node == node

    def with_strangers(self, snapshot: Snapshot, nodes: Sequence[Node]) -> Snapshot:
        """The snapshot with rows appended for nodes that are judged from the object sent, load unknown.

        Such a node may be a template that does not exist yet; it never gets a promise. Rows count on from
        `snapshot.rows`, in the order given.
        """
        count = len(nodes)
        gpus = np.array([_gpus_of(n) for n in nodes], np.float32)
        labels = [n.metadata.labels or {} for n in nodes]
        zeros = np.zeros(count, np.float32)
        added: dict[str, NDArray[np.generic]] = {
            "present": np.ones(count, bool),
            "gpu_count": gpus,
            "healthy_gpus": np.full(count, np.inf, np.float32),
            "free_gpus": gpus,
            "bound_gpus": zeros,
            "reserved_gpus": zeros,
            "load_sum": gpus * np.float32(self.settings.neutral_load),
            "pending_load": zeros,
            "known_gpus": zeros,
            "fresh": np.zeros(count, bool),
            "reading_age_s": np.full(count, np.inf, np.float32),
            "pool": np.array([self._pool_index(each) for each in labels], np.uint8),
            "quarantined": np.array([QUARANTINE_LABEL in each for each in labels], bool),
            "cordoned": np.array([bool(n.spec.unschedulable) for n in nodes], bool),
            "capability": np.array(
                [self._capability(each.get(MODEL_LABEL, "")) for each in labels], np.float32
            ),
            "name_hash": np.array([zlib.crc32(n.metadata.name.encode()) for n in nodes], np.uint32),
        }
        columns: dict[str, object] = {
            name: np.concatenate([getattr(snapshot, name), column]) for name, column in added.items()
        }
        most = max(
            [snapshot.capability_max, *(self._capability(each.get(MODEL_LABEL, "")) for each in labels)]
        )
        return snapshot.replace(**columns, capability_max=most)

    def reserve(self, request: PodRequest, node: str, now_mono_s: float) -> bool:
        """Promise this node's GPUs to the pod; the pod's previous promise is taken back.

        The same node again renews it, twice at most. Returns False, and promises nothing, if the node is unknown or
        what is free (the pod's own promise counted free) does not suffice.
        """
        self.reservations.note_choice(request.uid, node, now_mono_s)
        own = self.reservations.get(request.uid)
        if own is not None and own.node == node and self.reservations.renew(request.uid, now_mono_s):
            return True
        if own is not None:
            self._drop_reservation(request.uid, now_mono_s)
        row = self.rows.get(node)
        facts = self.pods.get(request.uid)
        if row is None or (facts is not None and facts.node):
            return False
        columns = self._columns
        if columns.free[row] < request.gpus:
            return False
        load = request.gpus * request.expected_load
        self.reservations.make(
            request.uid, node, request.gpus, load, now_mono_s, waits_for_volume=request.waits_for_volume
        )
        columns.reserved[row] += request.gpus
        columns.pending[row] += load
        columns.fold_holdings(row)
        return True

    def release(self, uid: str, now_mono_s: float) -> None:
        """Take a promise back, if there is one."""
        if self.reservations.get(uid) is not None:
            self._drop_reservation(uid, now_mono_s)

    def _drop_reservation(self, uid: str, now_mono_s: float, *, keep_load: bool = False) -> None:
        held = self.reservations.release(uid)
        if held is None or held.node not in self.rows:
            return
        row, columns = self.rows[held.node], self._columns
        columns.reserved[row] = max(float(columns.reserved[row]) - held.gpus, 0)
        if not keep_load:
            left = held.load * self._faded(held, now_mono_s)
            columns.pending[row] -= left
        columns.fold_holdings(row)

    def _faded(self, held: Reservation, now_mono_s: float) -> float:
        """Which part of a promise's expected load is still in `pending`."""
        return float(2.0 ** (-max(now_mono_s - held.made_mono_s, 0) / self.settings.half_life_s))

    # --- readings and time ---------------------------------------------------------------------------------------

    def see_inventory(self, node: str, inventory: Inventory) -> None:
        """An agent says what its node has. Other GPUs than before: their readings start anew."""
        record = self.nodes.get(node)
        if record is None:
            if len(self._early_inventories) < MOST_EARLY_INVENTORIES:
                self._early_inventories[node] = inventory
            return
        columns = self._columns
        columns.ensure_width(len(inventory.gpus))
        row = record.row
        before = [g.uuid for g in record.inventory.gpus] if record.inventory else []
        if before != [g.uuid for g in inventory.gpus]:
            columns.forget_readings(row)
            columns.util[row] = np.nan
            columns.state[row] = STATE_OK
            columns.slot[row] = False
            columns.slot[row, : len(inventory.gpus)] = True
        record.inventory = inventory
        if inventory.gpus:
            record.model = inventory.gpus[0].model
        columns.capability[row] = self._capability(record.model)
        columns.fold_readings(np.array([row]))
        self._renew_scalars(row)

    def see_samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        """Write samples (node, sample, instant of receipt), at most one a node, in one go."""
        rows: list[int] = []
        counts: list[int] = []
        util: list[float | None] = []
        power_w: list[float | None] = []
        state: list[int] = []
        received: list[float] = []
        for node, sample, mono_s in batch:
            record = self.nodes.get(node)
            if record is None or record.inventory is None or len(record.inventory.gpus) != len(sample.state):
                self.counters["samples_unknown_node" if record is None else "samples_without_inventory"] += 1
                continue
            rows.append(record.row)
            counts.append(len(sample.state))
            util += sample.util_frac
            power_w += sample.power_w
            state += [STATES.get(s, STATE_UNKNOWN) for s in sample.state]
            received.append(mono_s)
            record.agent = sample.agent
        if rows:
            self._columns.write_readings(
                np.array(rows, np.intp),
                np.array(counts, np.intp),
                util=np.array(util, np.float32),
                power_w=np.array(power_w, np.float32),
                state=np.array(state, np.uint8),
                received_mono_s=np.array(received, np.float64),
                half_life_s=self.settings.half_life_s,
            )

    def see_status(self, node: str, *, online: bool) -> None:
        """The broker says an agent came or went; gone means its node's readings are unknown at once."""
        row = self.rows.get(node)
        if row is not None and not online:
            self._columns.forget_readings(row)
            self._columns.fold_readings(np.array([row]))

    def tick(self, now_mono_s: float) -> None:
        """Let time pass: pending load fades, readings age and go stale, promises run out.

        Called before each decision and by a timer; cheap when little time has passed.
        """
        since_s = now_mono_s - self._ticked_mono_s
        if since_s < TICK_S:
            return
        columns = self._columns
        self._ticked_mono_s = now_mono_s
        if np.isfinite(since_s):
            columns.pending *= np.float32(2.0 ** (-since_s / self.settings.half_life_s))
            columns.pending[np.abs(columns.pending) < PENDING_FLOOR] = 0
        np.subtract(now_mono_s, columns.received_mono_s, out=columns.age_s, casting="unsafe")
        stale = np.flatnonzero(columns.fresh & (columns.age_s > self.settings.stale_s))
        if len(stale):
            columns.fresh[stale] = False
            columns.fold_readings(stale)
        for held in self.reservations.expired(now_mono_s):
            self._drop_reservation(held.uid, now_mono_s)
            self.counters["reservations_expired"] += 1


def _gpus_of(node: Node) -> float:
    return max(quantity((node.status.allocatable or {}).get(GPU_RESOURCE)), 0.0)
