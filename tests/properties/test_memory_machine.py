"""Memory of shared GPUs is given away once, through promises, bindings, nominations and preemption.

The pods of this world lie on GPUs, as a device plugin would have laid them: anywhere where there is a free unit. Each
takes what it asked for, some time after it has begun to run and within a minute, or, if it asked for nothing, what it
likes, at once. The store hears of asks, of phases and of measurements only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.core.nouns import PodRequest, Reason
from scheduler.decision.explain import evaluate
from scheduler.telemetry.sample import GpuInventory, Inventory, Sample
from tests.builders import make_decider, make_node, make_pod, make_sample, make_store

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
MEMORY_KEY = "wattbalance.io/gpu-memory"
GIB = 2**30
WHOLE_GIB = 80
NODES = ("n0", "n1", "n2")
AT = st.sampled_from(NODES)
WHICH = st.integers(0, 99)
# Whole GPUs beside those that are shared, how many these are, and replicas of each.
LAYOUTS = ((0, 1, 4), (0, 2, 3), (0, 3, 2), (1, 1, 4), (2, 2, 3))
MEMORY_REASONS = {Reason.TOO_LITTLE_MEMORY, Reason.UNKNOWN_MEMORY}
GIB_ASKED = st.none() | st.integers(1, WHOLE_GIB) | st.sampled_from([10, 20, 40, WHOLE_GIB])


@dataclass
class Lying:
    """Where a pod is, and what it has taken there for each unit."""

    node: str
    gpus: tuple[int, ...]
    each_gib: int
    asked_gib: int | None
    runs_since: float | None = None
    took: bool = False


class MemoryMachine(RuleBasedStateMachine):
    """GPUs that are shared come after those that are whole."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.serial = 0
        self.store = make_store()
        self.decider = make_decider(self.store)
        self.pods: dict[str, Pod] = {}
        self.asked: dict[str, int | None] = {}
        self.lying: dict[str, Lying] = {}
        self.layouts: dict[str, tuple[int, int, int]] = {}
        self.others: set[str] = set()
        """Nodes on which somebody else has bound what asks for memory, or what was granted has changed since."""
        self.measured: dict[str, tuple[float, list[int], int]] = {}
        """By node: when it was measured last, what was used of each GPU, and how much on all by who asked for none."""

    @initialize(
        layouts=st.lists(st.sampled_from(LAYOUTS), min_size=3, max_size=3),
        silent_gib=st.lists(st.sampled_from([0, 10, 30, 60]), min_size=3, max_size=3),
    )
    def begin(self, layouts: list[tuple[int, int, int]], silent_gib: list[int]) -> None:
        for name, (whole, shared, replicas) in zip(NODES, layouts, strict=True):
            self.layouts[name] = whole, shared, replicas
            labels = {"nvidia.com/gpu.replicas": str(replicas)}
            offered = {GPU: whole, SHARED: shared * replicas}
            self.store.apply(Changed(Kind.NODE, make_node(name, labels=labels, shares=offered)), self.now)
            found = [
                GpuInventory(uuid=f"{name}-{i}", model="H100", memory_total_bytes=WHOLE_GIB * GIB)
                for i in range(whole + shared)
            ]
            self.store.see_inventory(name, Inventory(v=1, node=name, gpus=found))
        for kind in (Kind.NODE, Kind.POD):
            self.store.apply(Listed(kind, frozenset(self.layouts)), self.now)
        for name, gib in zip(NODES, silent_gib, strict=True):
            if gib:
                # What is used by who asked for none.
                self.create(SHARED, 1, None, 0, "")
                uid = f"uid-p{self.serial}"
                assert self._lie(uid, name, 0, gib)
                self._tell(uid, node=name, phase="Running")
            self.measure(name)

    # --- the world -------------------------------------------------------------------------------------------------

    def used_gib(self, node: str, *, measured: bool = False) -> list[int]:
        """Of each GPU: what pods there will have taken in the end, or have by now."""
        whole, shared, _ = self.layouts[node]
        used = [0] * (whole + shared)
        for lying in self.lying.values():
            for gpu in lying.gpus if lying.node == node and (lying.took or not measured) else ():
                used[gpu] += lying.each_gib
        return used

    def _tell(self, uid: str, **changes: object) -> None:
        before = self.pods[uid]
        asked = self.asked[uid]
        limits = before.spec.containers[0].resources.limits  # type: ignore[index,union-attr]  # make_pod's shape
        fields: dict[str, object] = {
            "node": before.spec.node_name,
            "nominated": before.status.nominated_node_name,
            "priority": before.spec.priority,
            "phase": before.status.phase,
        } | changes
        self.pods[uid] = make_pod(
            before.metadata.name,
            shares={name: int(count) for name, count in (limits or {}).items()},
            annotations=None if asked is None else {MEMORY_KEY: f"{asked}Gi"},
            **fields,  # type: ignore[arg-type]  # make_pod's own keywords
        )
        self.store.apply(Changed(Kind.POD, self.pods[uid]), self.now)

    def _lie(self, uid: str, node: str, which: int, takes_gib: int) -> bool:
        """Lay a pod on GPUs of a node, if it goes there; whoever finds no memory would crash."""
        whole, shared, replicas = self.layouts[node]
        limits = self.pods[uid].spec.containers[0].resources.limits  # type: ignore[index,union-attr]  # likewise
        name, count = next(iter((limits or {}).items()))
        asked = self.asked[uid]
        each_gib = takes_gib if asked is None else asked
        chosen: list[int] = []
        for _ in range(int(count)):
            used, held = self.used_gib(node), [0] * (whole + shared)
            for lying in self.lying.values():
                for gpu in lying.gpus if lying.node == node else ():
                    held[gpu] += 1
            fitting = [
                gpu
                for gpu in (range(whole, whole + shared) if name == SHARED else range(whole))
                if held[gpu] + chosen.count(gpu) < (replicas if name == SHARED else 1)
                and used[gpu] + (chosen.count(gpu) + 1) * each_gib <= WHOLE_GIB
            ]
            if not fitting:
                return False
            chosen.append(fitting[which % len(fitting)])
        self.lying[uid] = Lying(node, tuple(chosen), each_gib, asked, took=asked is None)
        return True

    def _waiting(self) -> list[str]:
        return [uid for uid in self.pods if uid not in self.lying]

    def request(self, uid: str) -> PodRequest:
        return self.store.request(self.pods[uid], 0.0, self.decider.profile_facts)

    def _rows(self) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        return np.array([self.store.rows[name] for name in NODES], np.intp)

    def _settled(self, lying: Lying) -> bool:
        """Whether the newest sample must have what it asked for."""
        return lying.runs_since is not None and lying.runs_since + 60 <= self.measured[lying.node][0]

    def _asked_of(
        self, node: str, *, but: str, priority: int, untaken: bool = False
    ) -> list[tuple[int, int]]:
        """Units with what each asked for of a node's shared GPUs, and whoever has it there, or may yet take it."""
        here = []
        for uid, pod in self.pods.items():
            lying, held = self.lying.get(uid), self.store.reservations.get(uid)
            if lying is not None:
                there, gib = lying.node == node and not (untaken and self._settled(lying)), lying.asked_gib
            else:
                promised = held is not None and held.node == node
                nominated = pod.status.nominated_node_name == node and (pod.spec.priority or 0) >= priority
                there, gib = promised or nominated, self.asked[uid]
                if held is not None and promised:
                    gib = int(held.memory_bytes) // GIB
            limits = pod.spec.containers[0].resources.limits  # type: ignore[index,union-attr]  # likewise
            if there and uid != but:
                here.append((int((limits or {}).get(SHARED, 0)), gib or 0))
        return here

    # --- what happens ----------------------------------------------------------------------------------------------

    @rule(
        resource=st.sampled_from([SHARED, SHARED, SHARED, GPU]),
        units=st.sampled_from([1, 1, 2]),
        gib=GIB_ASKED,
        priority=st.integers(0, 2),
        nominated=st.sampled_from(["", "", *NODES]),
    )
    def create(self, resource: str, units: int, gib: int | None, priority: int, nominated: str) -> None:
        self.serial += 1
        pod = make_pod(f"p{self.serial}", shares={resource: units}, priority=priority, nominated=nominated)
        self.pods[pod.metadata.uid] = pod
        self.asked[pod.metadata.uid] = gib
        self._tell(pod.metadata.uid)

    @precondition(lambda self: self._waiting())
    @rule(which=WHICH, times=st.integers(1, 2))
    def ask(self, which: int, times: int) -> None:
        waiting = self._waiting()
        uid = waiting[which % len(waiting)]
        for _ in range(times):
            self._ask(uid, self._rows())

    @rule(node=AT, times=st.integers(2, 4), gib=st.sampled_from([5, 10, 20, 30]), since_s=st.integers(0, 4))
    def burst(self, node: str, times: int, gib: int, since_s: int) -> None:
        """Several that are alike come to one node, all of them after its newest sample."""
        self.now += since_s
        self.measure(node)
        for _ in range(times):
            self.create(SHARED, 1, gib, 1, "")
            self._ask(f"uid-p{self.serial}", np.array([self.store.rows[node]], np.intp))

    def _ask(self, uid: str, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> None:
        request = self.request(uid)
        outcome = self.decider.place(request, rows, self.now, 0.0)
        units = dict(request.units).get(SHARED, 0)
        if not outcome.reserved or not request.gpu_memory_bytes or not units:
            return
        node = outcome.record.chosen
        _, shared, _ = self.layouts[node]
        others = self._asked_of(node, but=uid, priority=request.priority)
        own_gib = request.gpu_memory_bytes // GIB
        # Whoever has bound what there: not one more beyond what there is.
        whole_gib = sum(count * gib for count, gib in others) + units * own_gib
        assert whole_gib <= shared * WHOLE_GIB
        assert max((gib for count, gib in others if count), default=0) + own_gib <= WHOLE_GIB
        self._check_beside_what_is_used(node, whole_gib)
        coming = self._asked_of(node, but=uid, priority=request.priority, untaken=True)
        most = max((gib for count, gib in coming if count), default=0)
        even = sum(count * gib for count, gib in coming) / shared
        assert max(self.measured[node][1]) + max(most, even) + own_gib <= WHOLE_GIB

    def _check_beside_what_is_used(self, node: str, asked_gib: float) -> None:
        """As it is in truth, which nobody could measure: what is used by who asked for none, and all that is asked."""
        if self.layouts[node][:2] == (0, 1) and node not in self.others:
            assert self.measured[node][2] + asked_gib <= WHOLE_GIB

    @precondition(lambda self: len(self.store.reservations) > 0)
    @rule(which=WHICH, gpu=WHICH, takes_gib=st.integers(0, WHOLE_GIB))
    def bind(self, which: int, gpu: int, takes_gib: int) -> None:
        """Where it was promised."""
        promised = [uid for uid in self._waiting() if self.store.reservations.get(uid) is not None]
        uid = promised[which % len(promised)]
        held = self.store.reservations.get(uid)
        assert held is not None
        if self._lie(uid, held.node, gpu, takes_gib):
            if held.memory_bytes != (self.asked[uid] or 0) * GIB:
                self.others.add(held.node)
            self._tell(uid, node=held.node, nominated="")

    @precondition(lambda self: self._waiting())
    @rule(node=AT, which=WHICH, gpu=WHICH, takes_gib=st.integers(0, WHOLE_GIB))
    def bind_past_us(self, node: str, which: int, gpu: int, takes_gib: int) -> None:
        """Wherever somebody else likes."""
        waiting = self._waiting()
        uid = waiting[which % len(waiting)]
        if self._lie(uid, node, gpu, takes_gib):
            self.others.add(node)
            self._tell(uid, node=node, nominated="")

    @precondition(lambda self: self.lying)
    @rule(which=WHICH)
    def start(self, which: int) -> None:
        """It runs, and has not taken anything yet."""
        uid = sorted(self.lying)[which % len(self.lying)]
        lying = self.lying[uid]
        if lying.runs_since is None:
            lying.runs_since = self.now
            self._tell(uid, phase="Running")

    @precondition(lambda self: self.lying)
    @rule(which=WHICH)
    def take(self, which: int) -> None:
        """It takes its memory, at any instant."""
        lying = self.lying[sorted(self.lying)[which % len(self.lying)]]
        lying.took = lying.took or lying.runs_since is not None

    @precondition(lambda self: self.lying)
    @rule(which=WHICH)
    def end(self, which: int) -> None:
        self._end(sorted(self.lying)[which % len(self.lying)])

    def _end(self, uid: str) -> None:
        del self.lying[uid], self.asked[uid]
        self.store.apply(Gone(Kind.POD, self.pods.pop(uid)), self.now)

    @precondition(lambda self: self._waiting())
    @rule(which=WHICH, node=st.sampled_from(["", *NODES]))
    def nominate(self, which: int, node: str) -> None:
        waiting = self._waiting()
        self._tell(waiting[which % len(waiting)], nominated=node)

    @precondition(lambda self: self._waiting())
    @rule(which=WHICH, gib=GIB_ASKED)
    def annotate(self, which: int, gib: int | None) -> None:
        """A pod that waits asks for something else from now on, be it promised a place or not."""
        waiting = self._waiting()
        uid = waiting[which % len(waiting)]
        self.asked[uid] = gib
        self._tell(uid)

    @rule(node=AT)
    def measure(self, node: str) -> None:
        self.now += 0.1
        here = [each for each in self.lying.values() if each.node == node]
        for lying in here:
            lying.took = lying.took or (lying.runs_since is not None and lying.runs_since + 60 <= self.now)
        used = self.used_gib(node, measured=True)
        silent_gib = sum(len(each.gpus) * each.each_gib for each in here if each.asked_gib is None)
        self.measured[node] = self.now, used, silent_gib
        sample = make_sample(node, [0.5] * len(used))
        values = {each: getattr(sample, each) for each in Sample.__struct_fields__}
        values["mem_used_bytes"] = [gib * GIB for gib in used]
        self.store.see_samples([(node, Sample(**values), self.now)])

    @rule(by_s=st.sampled_from([0.5, 9.0, 31.0, 60.0]), measured=st.booleans())
    def pass_time(self, by_s: float, *, measured: bool) -> None:
        self.now += by_s
        for name in NODES if measured else ():
            self.measure(name)
        self.store.tick(self.now)

    @precondition(lambda self: self.lying)
    @rule(
        which=WHICH,
        spare=st.integers(0, 3),
        units=st.sampled_from([1, 1, 2]),
        gib=st.integers(1, WHOLE_GIB),
        twice=st.booleans(),
    )
    def preempt(self, which: int, spare: int, units: int, gib: int, *, twice: bool) -> None:
        """Who we say would have room without these has it once they are gone; of one GPU, nobody else has."""
        node = sorted({lying.node for lying in self.lying.values()})[
            which % len({each.node for each in self.lying.values()})
        ]
        here = sorted(uid for uid, lying in self.lying.items() if lying.node == node)
        victims = here[: max(len(here) - spare, 1)]
        self.measure(node)
        self.create(SHARED, units, gib, 9, "")
        uid = f"uid-p{self.serial}"
        request = self.request(uid)
        told = [*victims, *victims] if twice else victims
        rows = np.array([self.store.rows[node]], np.intp)
        before = self.store.snapshot.copy()
        accepted, record = self.decider.acceptable(
            request, rows, self.now, 0.0, victims={node: told, "gone": told}
        )
        assert np.array_equal(before.unit_memory_bytes, self.store.snapshot.unit_memory_bytes)
        assert record.fitting == int(accepted[0])
        all_asked = all(
            self.lying[each].asked_gib is not None and self._settled(self.lying[each]) for each in victims
        )
        for each in victims:
            self._end(each)
        self.measure(node)
        fits = Reason(self.decider.judge(request, rows, self.now).codes[rows[0]])
        if accepted[0]:
            assert fits is Reason.FITS, "they would have been killed in vain"
        elif all_asked and sum(self.layouts[node][:2]) == 1:
            assert fits in MEMORY_REASONS, "they would have made room"

    @precondition(lambda self: self.lying)
    @rule(which=WHICH)
    def explain(self, which: int) -> None:
        """What was given to a pod counts as its own: where it runs, memory is nothing that is against it."""
        uid = sorted(self.lying)[which % len(self.lying)]
        lying = self.lying[uid]
        self.measure(lying.node)
        kept = any(pod.status.nominated_node_name == lying.node for pod in self.pods.values())
        told = evaluate(self.decider, self.request(uid), self.now, 0.0, held_on=lying.node)
        assert told.own is not None
        if lying.node not in self.others and not kept and not self.layouts[lying.node][0]:
            assert told.own.reason not in {each.text for each in MEMORY_REASONS}

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def no_more_is_given_away_than_there_is(self) -> None:
        for node, (_, shared, _) in self.layouts.items():
            if node in self.others:
                continue
            lying = [each for each in self.lying.values() if each.node == node]
            units = [
                (self._shared_units(uid), each.asked_gib or 0)
                for uid, each in self.lying.items()
                if each in lying
            ]
            units += [
                (int(dict(held.units).get(SHARED, 0)), int(held.memory_bytes) // GIB)
                for held in self.store.reservations.on_node(node)
            ]
            assert sum(count * gib for count, gib in units) <= shared * WHOLE_GIB

    def _shared_units(self, uid: str) -> int:
        limits = self.pods[uid].spec.containers[0].resources.limits  # type: ignore[index,union-attr]  # likewise
        return int((limits or {}).get(SHARED, 0))


TestMemoryMachine = MemoryMachine.TestCase
# The profile's examples, each of up to fifty steps.
TestMemoryMachine.settings = settings(stateful_step_count=50)
