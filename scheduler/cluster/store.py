"""The single writer of cluster state: takes events, keeps columns. Pure; every instant is handed in.

Everyone else reads `snapshot` (columns), `pods`, `nodes` and counters, and asks for changes through the methods here.
State is rebuilt from the API alone: nothing that matters lives only here.

What the cluster's events mean for pods is in holdings.py; what they mean for nodes is in nodes.py, what agents tell in
measurements.py, what is promised in promises.py, what one request finds free in vacancies.py. These are the store's
own: nobody else calls them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from scheduler.cluster.beside import Beside
from scheduler.cluster.claimers import Claimers
from scheduler.cluster.columns import Columns
from scheduler.cluster.dra import Devices
from scheduler.cluster.dra_objects import DeviceClass, ResourceClaim, ResourceSlice
from scheduler.cluster.holdings import Holdings
from scheduler.cluster.images import images_of
from scheduler.cluster.intent import Fault, Intent, IntentSettings
from scheduler.cluster.intents import Intents
from scheduler.cluster.measurements import Measurements
from scheduler.cluster.nodes import QUARANTINE_LABEL, NodeRecord, Nodes
from scheduler.cluster.objects import Meta, Node, Partial, Pod
from scheduler.cluster.pod_request import pod_request
from scheduler.cluster.pods import FINISHED, PodFacts, pod_facts, waits_for_volume
from scheduler.cluster.port import MAY_BE_ABSENT, ClusterEvent, Gone, Kind, Listed
from scheduler.cluster.promises import Promises
from scheduler.cluster.reservations import Reservations
from scheduler.cluster.shared_memory import SharedMemory
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store_settings import StoreSettings
from scheduler.cluster.vacancies import NOBODY, Vacancies
from scheduler.core.nouns import PodRequest, Workload
from scheduler.telemetry.sample import Inventory, Sample

__all__ = ["QUARANTINE_LABEL", "Store", "StoreSettings"]

# No limit is meant more exactly than this.
TICK_S = 0.005


class Store:
    """Nodes, pods, reservations and readings, by one writer."""

    def __init__(
        self, settings: StoreSettings, intents: Intents, reservations: Reservations | None = None
    ) -> None:
        self.settings = settings
        self.intents = intents
        self.reservations = Reservations(settings.reservation_s) if reservations is None else reservations
        """What is promised to whom; made and taken back through `reserve` and `release` only."""
        self.synced: set[Kind] = set()
        self.counters: Counter[str] = Counter()
        self.on_bound: Callable[[PodFacts], None] | None = None
        """Told of each binding that is seen after the first listing."""
        self.on_devices: Callable[[str], None] | None = None
        """Told of each node of which DRA tells something else."""
        self.on_faults: Callable[[Meta, tuple[Fault, ...]], None] | None = None
        """Told of the bad annotations of each pod that is asked about."""
        self.on_contradictions: Callable[[NodeRecord], None] | None = None
        """Told of each node whose labels come to claim what its allocatable does not have, or several pools."""
        columns = self._columns = Columns(
            neutral_load=settings.neutral_load, stale_s=settings.stale_s, pools=len(settings.pools) + 1
        )
        self.claimers = Claimers(settings.gpu_resources)
        """Pods that ask for devices by claims alone."""
        self.devices = Devices()
        """What DRA offers, and which claims hold it."""
        nodes = self._nodes = Nodes(columns, settings, self.devices)
        memory = SharedMemory(columns, nodes, self.reservations, intents)
        counters, half_life_s = self.counters, settings.half_life_s
        self._measurements = Measurements(
            columns, nodes, counters, memory, half_life_s=half_life_s, stale_s=settings.stale_s
        )
        self._promises = Promises(
            columns, nodes.rows, counters, self.reservations, memory, half_life_s=half_life_s
        )
        self._vacancies = Vacancies(columns, nodes.records, self._promises)
        self._beside = Beside(self.reservations, nodes.rows)
        self.known_nodes = self._beside.preferred.known_nodes
        """The rows of a snapshot, to be asked about labels, names and taints."""
        neighbours = self._beside.neighbours
        self._holdings = Holdings(
            columns, nodes.records, self._promises, self._expected_load, neighbours, self.devices
        )
        self._promises.on_change = self._promise_changed
        self.pods = self._holdings.pods
        self.waiting = self._holdings.waiting
        """GPU pods without a node."""
        self.nodes: dict[str, NodeRecord] = nodes.records
        self.rows: dict[str, int] = nodes.rows
        self.names: list[str | None] = nodes.names
        self._ticked_mono_s = -np.inf

    @property
    def snapshot(self) -> Snapshot:
        """Read-only columns, valid within this synchronous turn."""
        return self._columns.snapshot

    @property
    def generation(self) -> int:
        """Changes whenever a row gets another node, or the pools change: tables built from names are then stale."""
        return self._nodes.generation

    @property
    def pool_names(self) -> list[str]:
        """In order of preference; `default`, which has every node that no selector takes, is last."""
        return self._nodes.pool_names

    def use(self, settings: StoreSettings, intents: IntentSettings, now_mono_s: float) -> None:
        """Take other settings, all in this turn: what is known of nodes, pods and readings is judged by them anew.

        Promises stay as they were made; load that is pending stays, and fades at the new rate from here on.
        """
        self.settings = settings
        self.intents.settings = intents
        self.reservations.reservation_s = settings.reservation_s
        self._promises.use(half_life_s=settings.half_life_s, now_mono_s=now_mono_s)
        self._columns.neutral_load = settings.neutral_load
        self._columns.stale_s = settings.stale_s
        self._nodes.use(settings)
        self._measurements.use(
            half_life_s=settings.half_life_s, stale_s=settings.stale_s, now_mono_s=now_mono_s
        )
        self._columns.renew_snapshot()
        for record in self.nodes.values():
            self._tell(record)

    # --- events from the cluster ---------------------------------------------------------------------------------

    def apply(self, event: ClusterEvent, now_mono_s: float) -> None:
        """Take one event of the cluster's watch."""
        if isinstance(event, Listed):
            self._listed(event, now_mono_s)
            return
        thing = event.object
        gone = isinstance(event, Gone)
        if isinstance(thing, Pod):
            self.claimers.see(thing, gone=gone)
            also, uid = self.settings.gpu_resources, thing.metadata.uid
            facts = None if gone else pod_facts(thing, self.pods.get(uid), also, with_status=True)
            self._beside.preferred.see_pod(thing, facts, gone=gone or thing.status.phase in FINISHED)
            if facts is None:
                self._holdings.forget(uid, now_mono_s)
                if gone or thing.status.phase in FINISHED:
                    self.intents.forget_pod(uid)
            else:
                self._pod_seen(facts, now_mono_s)
        elif isinstance(thing, Node):
            if gone:
                self._node_gone(thing.metadata.name)
            else:
                self._node_seen(thing, now_mono_s)
        elif isinstance(thing, ResourceSlice | ResourceClaim | DeviceClass):
            self._devices_changed(self.devices.see(thing, gone=gone), now_mono_s)
        elif event.kind is Kind.NAMESPACE:
            self._namespace(thing, gone=gone)
        elif gone:
            self.intents.forget_owner(thing.metadata.uid)
        else:
            self.intents.see_owner(event.kind, thing)

    def _namespace(self, namespace: Partial, *, gone: bool) -> None:
        self._beside.preferred.see_namespace(namespace, gone=gone)
        if gone:
            self.intents.forget_namespace(namespace.metadata.name)
        else:
            self.intents.see_namespace(namespace)

    def _listed(self, event: Listed, now_mono_s: float) -> None:
        # A relist after a gap: whatever it did not name was deleted while nobody looked.
        if event.kind is Kind.POD:
            self.claimers.keep(event.keys)
            # Not a difference of sets: of 50,000 uids that is 5 ms of held loop.
            gone = [uid for uid in self.pods if uid not in event.keys]
            # Created and deleted within the gap: all that was ever here of them is a promise.
            promised = self.reservations.made_before(event.began_mono_s)
            gone += [
                held.uid for held in promised if held.uid not in event.keys and held.uid not in self.pods
            ]
            for uid in gone:
                self._holdings.forget(uid, now_mono_s)
                self.intents.forget_pod(uid)
        elif event.kind is Kind.NODE:
            for name in self.nodes.keys() - event.keys:
                self._node_gone(name)
        elif event.kind is Kind.NAMESPACE:
            for name in self.intents.namespaces.keys() - event.keys:
                self.intents.forget_namespace(name)
        elif event.kind in MAY_BE_ABSENT:
            self._devices_changed(self.devices.keep(event.kind, event.keys), now_mono_s)
        else:
            self.intents.keep_owners(event.kind, event.keys)
        self._beside.preferred.keep(event.kind, event.keys)
        self.synced.add(event.kind)

    def _node_seen(self, node: Node, now_mono_s: float) -> None:
        record = self.nodes.get(node.metadata.name)
        if record is None:
            record = self._nodes.add(node)
            self._holdings.adopt(record)
            self._measurements.see_node(record.name)
        before = record.ways
        self._nodes.update(record, node, now_mono_s)
        if before != record.ways:
            # Pods there may hold what had no column until now.
            self._holdings.add_up(record)
        self._beside.see_node(node, record.row)
        self._tell(record)

    def _tell(self, record: NodeRecord | None) -> None:
        if record is not None and record.is_news() and self.on_contradictions is not None:
            self.on_contradictions(record)

    def _devices_changed(self, nodes: Iterable[str], now_mono_s: float) -> None:
        for record in (self.nodes[name] for name in nodes if name in self.nodes):
            self._nodes.renew_devices(record)
            self._holdings.add_up(record)
            # An allocated claim is a fact, as a binding is.
            self._promises.evict(record.name, now_mono_s)
            self._tell(record)
            if self.on_devices is not None:
                self.on_devices(record.name)

    def _promise_changed(self, uid: str) -> None:
        # What is promised to a pod is not counted again by the claim that kube-scheduler makes for it.
        for name in self.devices.nodes_of_pod(uid):
            if name in self.nodes:
                self._holdings.add_up(self.nodes[name])

    def _node_gone(self, name: str) -> None:
        self._promises.drop_node(name)
        record = self._nodes.remove(name)
        if record is None:
            return
        self._measurements.node_gone(record)
        self._holdings.orphan(record)
        self._beside.forget_node(name, record.row)

    def _pod_seen(self, facts: PodFacts, now_mono_s: float) -> None:
        synced = Kind.POD in self.synced
        bound = self._holdings.see(facts, now_mono_s, synced=synced)
        if bound and synced and self.on_bound is not None:
            self.on_bound(facts)

    def _expected_load(self, facts: PodFacts) -> float:
        workload = self.intents.workload(facts.meta, facts.priority_class)
        return self.settings.expected_loads.get(workload, 1.0)

    # --- questions -----------------------------------------------------------------------------------------------

    def request(self, pod: Pod, waited_s: float, profiles: dict[Workload, tuple[str, float]]) -> PodRequest:
        """Turn a pod into the request that policies see. `profiles`: workload -> (name, expected load)."""
        facts = pod_facts(pod, also=self.settings.gpu_resources)
        meta = pod.metadata
        intent = self.intents.resolve(meta, pod.spec.priority_class_name)
        if intent.faults and self.on_faults is not None:
            self.on_faults(meta, intent.faults)
        return pod_request(
            meta,
            intent,
            profiles[intent.workload],
            self._nodes.pool_indexes,
            facts,
            waited_s=waited_s,
            priority=pod.spec.priority or 0,
            nominated_node=pod.status.nominated_node_name,
            preferences=self._beside.preferred.wanted(facts, self.synced, pod),
            waits_for_volume=waits_for_volume(pod),
            images=images_of(pod.spec),
        )

    def request_again(
        self, facts: PodFacts, intent: Intent, waited_s: float, profile: tuple[str, float]
    ) -> PodRequest:
        """The same for a what-if, of what is kept of a pod: its volumes are not."""
        return pod_request(
            facts.meta,
            intent,
            profile,
            self._nodes.pool_indexes,
            facts,
            waited_s=waited_s,
            priority=facts.priority,
            nominated_node=facts.nominated_node,
            images=facts.images,
            preferences=self._beside.preferred.wanted(facts, self.synced),
        )

    def snapshot_for(
        self,
        request: PodRequest,
        *,
        held_on: str = "",
        gone: Mapping[str, Collection[str]] = NOBODY,
        beside: Iterable[PodFacts] = (),
    ) -> Snapshot:
        """The snapshot with what only concerns this pod: its own reservation counted free, nominations honoured.

        A pod with a nominated node holds what it asks for there against pods of equal or lower priority. The rest is
        for what-ifs: `held_on` is the node on which the pod is bound, what it holds counted free there too; so is
        what is held by pods (uids) that are `gone` from their nodes; `beside` are pods on their way to their nominated
        node, whatever their priority.
        """
        if held_on:
            gone = {**gone, held_on: (request.uid,)}
        snapshot = self._vacancies.snapshot_for(request, gone, beside)
        return self._beside.add_to(snapshot, request, held_on=held_on)

    def with_strangers(
        self, snapshot: Snapshot, nodes: Sequence[Node], request: PodRequest | None = None
    ) -> Snapshot:
        """The snapshot with rows appended for nodes that are judged from the object sent, load unknown.

        Such a node may be a template that does not exist yet; it never gets a promise. Rows count on from
        `snapshot.rows`, in the order given.
        """
        return self._beside.with_strangers(self._nodes.with_strangers(snapshot, nodes), nodes, request)

    def node_power_w(self, row: int) -> float | None:
        """Measured watts of all GPUs of a node; None where any of them is unknown."""
        return self._measurements.node_power_w(row)

    def gpu_readings(self, name: str) -> list[tuple[str, float | None, float | None]]:
        """Per GPU of a node, in the inventory's order: state, decayed utilisation, watts; None is unknown.

        The state is ok, unknown, lost or hung.
        """
        return self._measurements.gpu_readings(name)

    def received_mono_s(self, row: int) -> float:
        """Instant of the node's last sample; -inf if none."""
        return self._measurements.received_mono_s(row)

    # --- promises ------------------------------------------------------------------------------------------------

    def reserve(self, request: PodRequest, node: str, now_mono_s: float) -> bool:
        """Promise this node's GPUs to the pod; the pod's previous promise is taken back.

        The same node again renews it, twice at most. Returns False, and promises nothing, if the node is unknown or
        what is free (the pod's own promise counted free) does not suffice.
        """
        self.reservations.note_choice(request.uid, node, now_mono_s)
        facts = self.pods.get(request.uid)
        if facts is not None and facts.node:
            return False
        promised = self._promises.reserve(request, node, now_mono_s)
        if promised:
            self._beside.promise(request, node)
        return promised

    def release(self, uid: str, now_mono_s: float) -> None:
        """Take a promise back, if there is one."""
        self._promises.drop(uid, now_mono_s)

    # --- readings and time ---------------------------------------------------------------------------------------

    def see_inventory(self, node: str, inventory: Inventory) -> None:
        """An agent says what its node has. Other GPUs than before: their readings start anew."""
        self._renew(node, lambda: self._measurements.see_inventory(node, inventory))

    def forget_inventory(self, node: str) -> None:
        """What an agent had said of a node's GPUs was cleared: only what Kubernetes counts is known of them."""
        self._renew(node, lambda: self._measurements.forget_inventory(node))

    def _renew(self, node: str, change: Callable[[], None]) -> None:
        record = self.nodes.get(node)
        before = record.ways if record is not None else None
        change()
        if record is not None and record.ways != before:
            self._holdings.add_up(record)
        self._tell(record)

    def see_samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        """Write samples (node, sample, instant of receipt), at most one a node, in one go."""
        self._measurements.see_samples(batch)

    def see_status(self, node: str, *, online: bool) -> None:
        """The broker says an agent came or went; gone means its node's readings are unknown at once."""
        if not online:
            self._measurements.forget(node)

    def tick(self, now_mono_s: float) -> None:
        """Let time pass: pending load fades, readings age and go stale, promises run out.

        Called before each decision and by a timer; cheap when little time has passed.
        """
        if now_mono_s - self._ticked_mono_s < TICK_S:
            return
        self._ticked_mono_s = now_mono_s
        self._measurements.age(now_mono_s)
        self._promises.pass_time(now_mono_s)
        for record in self._nodes.pass_time(now_mono_s):
            self._tell(record)
