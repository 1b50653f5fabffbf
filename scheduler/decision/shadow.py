"""The world as it would be had we placed the pods that were only observed: a second store, and who stands where in it.

The second store is fed with the same nodes, inventories and samples as the first. A pod that kube-scheduler was left to
place stands there on the node that we choose for it by the second store's state, filters and scores; every other pod
where it really is. What a moved pod does to load is taken from the measurement of the node where it runs. Pure.

It is an estimate. We choose among the nodes that kube-scheduler offered, and those of the same pools that it did not
offer, as far as we can tell, for lack of room alone. A pod runs as long with us as it really does, and does the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from scheduler.cluster.nodes import NodeRecord
from scheduler.cluster.objects import (
    Amounts,
    Container,
    Meta,
    Node,
    NodeSpec,
    NodeStatus,
    Pod,
    PodSpec,
    PodStatus,
    Resources,
)
from scheduler.cluster.pods import RUNNING, PodFacts
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest
from scheduler.decision.cycle import Mask, PolicyFailures, Rows, judge
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.followed import Followed, Tally
from scheduler.decision.moved import Moved
from scheduler.decision.worlds import Means, Reading, Worlds, carried, compare, read

# As many as the largest cluster has; a pod beyond them stands where it really is, and is counted.
MOST_FOLLOWED = 50_000
# Asked about and not bound yet.
MOST_ASKED = 10_000
# Pods that wait are tried again in turns, some each second: of a thousand each comes once in a minute.
TRIED_A_TURN = 20
# gpu_readings of one node takes 20 us.
NODES_A_STEP = 50
NO_ROOM = "no node has room with us"


class Shadow:
    """Begins as the world is: `see_node` and `see_pod` of all that there is, then of all that changes.

    Telemetry goes into `store` beside the other. Nothing here changes the decider or its store.
    """

    def __init__(self, decider: Decider, now_mono_s: float, unix_s: float) -> None:
        self.decider = decider
        self.real = decider.store
        self.store = Store(self.real.settings, self.real.intents)
        self.since_mono_s = now_mono_s
        self.since_unix_s = unix_s
        self.pods: dict[str, Followed] = {}
        """By uid, those that run, the one that was bound last at the end."""
        self.moved = Moved()
        self.left_out = self.so_far = self.waited_so_far = 0
        self.waited_so_far_s = 0.0
        self.failures = PolicyFailures()
        self.means = Means()
        """Of both worlds, since the first pod was followed."""
        self._mean_until_mono_s = now_mono_s
        self._asked: OrderedDict[str, Followed] = OrderedDict()
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._ours_of: Rows = np.zeros(0, np.intp)
        self._generations = (-1, -1)
        self._rest_w: dict[str, float] = {}
        """By GPU model: the least that an unheld GPU was seen to draw."""
        self._rest_turn = 0

    # --- what is told --------------------------------------------------------------------------------------------

    def see_node(self, name: str, now_mono_s: float) -> None:
        """A node has come, changed or gone, and the real store knows."""
        record = self.real.nodes.get(name)
        if record is not None:
            cordoned = bool(self.real.snapshot.cordoned[record.row])
            node = Node(
                metadata=Meta(name=name, uid=record.uid, labels=record.labels),
                spec=NodeSpec(unschedulable=cordoned),
                status=NodeStatus(allocatable=self._countable(record)),
            )
            before = self.store.nodes.get(name)
            self.store.apply(Changed(Kind.NODE, node), now_mono_s)
            if before is None and record.inventory is not None:
                self.store.see_inventory(name, record.inventory)
        elif (ours := self.store.nodes.get(name)) is not None:
            here = [self.pods[uid] for uid in ours.pods if uid in self.pods]
            self.store.apply(Gone(Kind.NODE, Node(metadata=Meta(name=name))), now_mono_s)
            for followed in here:
                if followed.real != name:
                    # Really it runs on. Where its node has gone in both worlds, its end is told soon.
                    self._settle(followed, now_mono_s)

    def _countable(self, record: NodeRecord) -> Amounts:
        """What pods may have there that ask by resource; who asks by claims alone stays where it is in both worlds."""
        if not record.by_claims:
            return record.allocatable
        return dict(self.real.devices.left_to_requests(record.name))

    def keep(self, kind: Kind, now_mono_s: float) -> None:
        """All of a kind was listed anew: what the real store has not is gone."""
        if kind is Kind.NODE:
            for name in [name for name in self.store.nodes if name not in self.real.nodes]:
                self.see_node(name, now_mono_s)
        elif kind is Kind.POD:
            for uid in [uid for uid in (*self.store.pods, *self._asked) if uid not in self.real.pods]:
                self.see_pod(uid, now_mono_s)

    def see_pod(self, uid: str, now_mono_s: float) -> None:
        """A pod has come, changed or gone, and the real store knows."""
        facts = self.real.pods.get(uid)
        if facts is None:
            self._forget(uid, now_mono_s)
        elif not facts.node:
            self._stand(facts, "", now_mono_s)
        elif (followed := self.pods.get(uid)) is not None:
            self._stand(facts, followed.node, now_mono_s)
        elif (asked := self._asked.pop(uid, None)) is None:
            self._stand(facts, facts.node, now_mono_s)
        elif len(self.pods) >= MOST_FOLLOWED:
            self.left_out += 1
            self._stand(facts, facts.node, now_mono_s)
        else:
            self.pods[uid] = asked
            if not self.so_far:
                self._mean_until_mono_s = now_mono_s
            self.so_far += 1
            asked.real = facts.node
            self._settle(asked, now_mono_s)

    def _forget(self, uid: str, now_mono_s: float) -> None:
        self._asked.pop(uid, None)
        followed = self.pods.pop(uid, None)
        if followed is not None:
            self._end_wait(followed, now_mono_s)
            self._place_slot(followed, gone=True)
        self.store.apply(Gone(Kind.POD, Pod(metadata=Meta(uid=uid))), now_mono_s)

    def _stand(self, facts: PodFacts, node: str, now_mono_s: float) -> None:
        """Let a pod stand on a node of the second store, or wait there."""
        limits: dict[str, str | int | float] = dict(facts.units)
        pod = Pod(
            metadata=facts.meta,
            spec=PodSpec(
                node_name=node,
                priority=facts.priority,
                priority_class_name=facts.priority_class,
                containers=[Container(resources=Resources(limits=limits))],
            ),
            # Elsewhere than where it runs, what it takes of memory is never measured.
            status=PodStatus(
                phase=RUNNING if facts.running and node == facts.node else "",
                nominated_node_name="" if node else facts.nominated_node,
            ),
        )
        self.store.apply(Changed(Kind.POD, pod), now_mono_s)

    # --- where we would have placed it ---------------------------------------------------------------------------

    def ask(self, outcome: Outcome, now_mono_s: float) -> None:
        """A filter decision was left to kube-scheduler: choose for the world in which it was ours."""
        request, real = outcome.request, self.real
        held = real.pods.get(request.uid)
        if not request.uid or not request.units or (held is not None and held.node):
            return
        offered = outcome.judgement.offered[: real.snapshot.rows]
        pools = frozenset(np.unique(real.snapshot.pool[offered]).tolist())
        followed = Followed(request=request, asked_mono_s=now_mono_s, pools=pools)
        self._asked.pop(request.uid, None)
        self._asked[request.uid] = followed
        if len(self._asked) > MOST_ASKED:
            self._asked.popitem(last=False)
        self._choose(followed, self._candidates(request, offered, pools), now_mono_s)
        if followed.node:
            self.store.reserve(request, followed.node, now_mono_s)
        else:
            self.store.release(request.uid, now_mono_s)

    def _candidates(self, request: PodRequest, offered: Mask, pools: Iterable[int]) -> Rows:
        """Our rows of what was offered, and of what was not, for all we know, since it really has no room."""
        self._renew_rows()
        real = self.real.snapshot
        full = ~real.cordoned & ~real.has_room(request) & np.isin(real.pool, list(pools))
        rows = self._ours_of[offered | full]
        return rows[rows >= 0]

    def _choose(self, followed: Followed, rows: Rows, now_mono_s: float) -> None:
        """Find the best of these rows, as the cycle does; only one that has room, since here our count is all."""
        waited_s = followed.request.waited_s + now_mono_s - followed.asked_mono_s
        request = replace(followed.request, waited_s=waited_s)
        store, decider = self.store, self.decider
        store.tick(now_mono_s)
        self._renew_rows()
        promised = store.reservations.get(request.uid)
        judgement = judge(
            request,
            rows,
            carried(
                self.real.snapshot_for(request), self._with_loads(store.snapshot_for(request)), self._ours_of
            ),
            decider.profiles[request.workload],
            decider.filters,
            self.failures,
            promised_row=store.rows.get(promised.node, -1) if promised is not None else -1,
        )
        if judgement.choice >= 0 and judgement.fits[judgement.choice]:
            followed.node = store.names[judgement.choice] or ""
            followed.reason = ""
            return
        followed.node, followed.reason = "", NO_ROOM
        codes = judgement.codes[judgement.failed]
        if not judgement.full.any() and len(codes):
            followed.reason = decider.reason_texts[int(np.bincount(codes).argmax())]

    def _settle(self, followed: Followed, now_mono_s: float) -> None:
        """Let a pod that runs stand where we choose: as it was promised, if that holds still."""
        request = followed.request
        promised = self.store.reservations.get(request.uid)
        if promised is not None:
            followed.node = promised.node
        else:
            now = self.store.snapshot
            rows = now.present & ~now.cordoned & np.isin(now.pool, list(followed.pools))
            self._choose(followed, np.flatnonzero(rows), now_mono_s)
        facts = self.real.pods.get(request.uid)
        if facts is not None:
            self._stand(facts, followed.node, now_mono_s)
        if followed.node:
            self._end_wait(followed, now_mono_s)
        elif request.uid not in self._waiting:
            self._waiting[request.uid] = None
            followed.waits_since_mono_s = now_mono_s
            self.waited_so_far += not followed.has_waited
            followed.has_waited = True
        self._place_slot(followed)

    def _end_wait(self, followed: Followed, now_mono_s: float) -> None:
        if followed.request.uid in self._waiting:
            del self._waiting[followed.request.uid]
            waited_s = now_mono_s - followed.waits_since_mono_s
            followed.waited_s += waited_s
            self.waited_so_far_s += waited_s

    def try_waiting(self, now_mono_s: float) -> Iterator[None]:
        """Try some of the pods that wait again, the one that was tried longest ago first; a step each."""
        self.store.tick(now_mono_s)
        self.store.reservations.forget_old_choices(now_mono_s)
        for uid in list(self._waiting)[:TRIED_A_TURN]:
            if uid in self._waiting:
                self._waiting.move_to_end(uid)
                self._settle(self.pods[uid], now_mono_s)
                yield

    # --- rows ----------------------------------------------------------------------------------------------------

    def _renew_rows(self) -> None:
        """Learn which of our rows is which real one; asked before rows are used, since nodes come and go."""
        generations = (self.real.generation, self.store.generation)
        if generations == self._generations:
            return
        self._generations = generations
        rows = self.store.rows
        self._ours_of = np.array([rows.get(name or "", -1) for name in self.real.names], np.intp)
        for followed in self.pods.values():
            if followed.slot >= 0:
                self.moved.real[followed.slot] = self.real.rows.get(followed.real, -1)
                self.moved.ours[followed.slot] = rows.get(followed.node, -1)
                if not self.moved.gpus[followed.slot]:
                    # Its node was not known yet.
                    self.moved.gpus[followed.slot] = self._gpus_of(followed)

    def _place_slot(self, followed: Followed, *, gone: bool = False) -> None:
        moved = not gone and followed.node != followed.real
        if moved and followed.slot < 0:
            real, ours = self.real.rows.get(followed.real, -1), self.store.rows.get(followed.node, -1)
            followed.slot = self.moved.add(real, ours, self._gpus_of(followed))
        elif moved:
            self.moved.ours[followed.slot] = self.store.rows.get(followed.node, -1)
        elif followed.slot >= 0:
            self.moved.free(followed.slot)
            followed.slot = -1

    def _gpus_of(self, followed: Followed) -> float:
        """GPUs that a pod really holds; 0 where its node is not known."""
        row = self.real.rows.get(followed.real, -1)
        return float(self.real.snapshot.asked_gpus(followed.request)[row]) if row >= 0 else 0.0

    # --- what it measures ----------------------------------------------------------------------------------------

    def measure(self, now_mono_s: float) -> Iterator[None]:
        """Take one reading of the moved pods, from the nodes where they run; in steps, one a turn of the loop."""
        self._renew_rows()
        now = self.real.snapshot
        # Some nodes with an unheld GPU are looked at for what such a one draws, whoever stands there; others each time.
        resting = np.flatnonzero(now.fresh & (now.bound_gpus < now.gpu_count))
        resting = np.roll(resting, -self._rest_turn)[:NODES_A_STEP]
        self._rest_turn += NODES_A_STEP
        looked_at = np.union1d(self.moved.real[self.moved.real >= 0], resting)
        for start in range(0, len(looked_at), NODES_A_STEP):
            for row in looked_at[start : start + NODES_A_STEP].tolist():
                if name := self.real.names[row]:
                    self._look_at(name)
            yield
        self._renew_rows()
        reading = self._reading()
        self.moved.measure(reading.load_each, reading.power_each_w)
        yield
        span_s = now_mono_s - self._mean_until_mono_s
        # The first pod may have come since this reading began.
        if self.so_far and span_s > 0:
            self.means.add(self.worlds(), span_s)
            self._mean_until_mono_s = now_mono_s

    def _look_at(self, name: str) -> None:
        """Note what a GPU at rest draws, where there is one."""
        record = self.real.nodes[name]
        known_w = [each_w for _, _, each_w in self.real.gpu_readings(name) if each_w is not None]
        if self.real.snapshot.bound_gpus[record.row] < len(known_w):
            # Which of them is held nobody tells; the one that draws least is not.
            least_w = min(known_w)
            self._rest_w[record.model] = min(least_w, self._rest_w.get(record.model, least_w))

    def _reading(self) -> Reading:
        real, rest_each_w = self.real, self._rest_w
        power_w, rest_w = np.full(real.snapshot.rows, np.nan), np.full(real.snapshot.rows, np.nan)
        for record in real.nodes.values():
            now_w = real.node_power_w(record.row)
            if now_w is not None and record.inventory is not None:
                power_w[record.row] = now_w
                rest_w[record.row] = rest_each_w.get(record.model, math.nan) * len(record.inventory.gpus)
        return read(real.snapshot, power_w, rest_w)

    def _with_loads(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the moved pods' last measured load where they stand with us, as far as it is known."""
        if not len(self.moved):
            return snapshot
        self._renew_rows()
        moved = self.moved
        load_now = np.where(np.isnan(moved.load_now), moved.load, moved.load_now)
        brought = moved.sums(moved.ours, load_now, snapshot.rows)
        taken = moved.sums(moved.real, load_now, len(self._ours_of))
        load = snapshot.load_sum + brought
        there = self._ours_of >= 0
        load[self._ours_of[there]] -= taken[there]
        return snapshot.replace(load_sum=np.maximum(load, 0).astype(np.float32))

    # --- figures -------------------------------------------------------------------------------------------------

    def worlds(self) -> Worlds:
        """Both worlds, side by side, now."""
        self._renew_rows()
        return compare(
            self.real.snapshot,
            self.store.snapshot,
            self._ours_of,
            self.moved,
            self._reading(),
            (len(self.real.waiting), len(self.store.waiting)),
        )

    def tally(self, now_mono_s: float) -> Tally:
        """How many pods, and how long they would have waited up to now."""
        waits_s = sum(now_mono_s - self.pods[uid].waits_since_mono_s for uid in self._waiting)
        return Tally(
            asked=len(self._asked),
            same=len(self.pods) - len(self.moved),
            elsewhere=len(self.moved) - len(self._waiting),
            waiting=len(self._waiting),
            so_far=self.so_far,
            waited_so_far=self.waited_so_far,
            waited_so_far_s=self.waited_so_far_s + waits_s,
            left_out=self.left_out,
        )
