"""A GPU is counted once, by allocatable or by DRA, by a pod or by a claim, whatever is told of it in whatever order."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cluster.dra_objects import ResourceClaim, ResourceSlice
from scheduler.cluster.objects import Meta, Node, NodeStatus, Partial, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.core.nouns import GPU_RESOURCE
from tests.builders import make_pod, make_request, make_store
from tests.dra import gpu, make_claim, make_slice, mig

GPUS = 6
PARTED = 4
"""From this one on, slices are offered beside the GPU."""
PODS = ("a", "b", "c")
NOW_S = 1.0


@dataclass(frozen=True)
class Case:
    """What there is in the end."""

    allocatable: str | None
    """Of nvidia.com/gpu; None: the node does not have the name."""
    complete: bool
    """Whether all slices of the pool are there."""
    claims: tuple[ResourceClaim, ...]
    bound: dict[str, int]
    """Pods on the node, with what they ask for."""
    promised: dict[str, int]

    @property
    def slices(self) -> tuple[ResourceSlice, ...]:
        """Two make the pool; those of an older generation say nothing."""
        whole = [gpu(index, parted=index >= PARTED) for index in range(GPUS)]
        parts = [mig(index, place) for index in range(PARTED, GPUS) for place in range(2)]
        old = make_slice(devices=[gpu(0)], part=2, generation=1)
        first = make_slice(devices=whole, part=0, of=2, generation=2)
        second = make_slice(devices=parts, part=1, of=2, generation=2)
        return (old, first, second) if self.complete else (old, first)

    @property
    def node(self) -> Node:
        """As its object says."""
        amounts: dict[str, str | int | float] = {"cpu": "96"}
        if self.allocatable is not None:
            amounts[GPU_RESOURCE] = self.allocatable
        return Node(metadata=Meta(name="n1"), status=NodeStatus(allocatable=amounts))

    @property
    def pods(self) -> tuple[Pod, ...]:
        """Those that are bound."""
        return tuple(make_pod(name, gpus, node="n1") for name, gpus in self.bound.items())

    def want_total(self) -> float:
        """By allocatable where it has some; else by a complete pool."""
        return float(self.allocatable or 0) or float(GPUS if self.complete else 0)

    def want_bound(self) -> float:
        """What pods ask for, and what claims hold beside: of a claim made for a pod, what is beyond the pod's own."""
        by_pods = float(sum(self.bound.values()))
        if float(self.allocatable or 0) or not self.complete:
            return by_pods
        own = {f"uid-{name}": count for name, count in (self.promised | self.bound).items()}
        made_for: dict[str, int] = {}
        others = 0.0
        for claim in self.claims:
            owners = [owner.uid for owner in claim.metadata.owner_references or ()]
            whole, parts = _held(claim)
            others += parts / 7
            if owners:
                made_for[owners[0]] = made_for.get(owners[0], 0) + whole
            else:
                others += whole
        return by_pods + others + sum(max(whole - own.get(uid, 0), 0) for uid, whole in made_for.items())


def _held(claim: ResourceClaim) -> tuple[int, int]:
    """How many GPUs a claim holds whole, and how many parts."""
    allocation = claim.status.allocation
    names = [each.device for each in (allocation.devices.results if allocation else None) or ()]
    parts = sum("-mig-" in name for name in names)
    return len(names) - parts, parts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """As kube-scheduler may leave it: a device is held by one claim, and a GPU whole or in parts."""
    devices = [f"gpu-{index}" for index in range(GPUS)]
    for index in range(PARTED, GPUS):
        if draw(st.booleans()):
            devices.remove(f"gpu-{index}")
            devices += [f"gpu-{index}-mig-1g10gb-{place}" for place in range(2)]
    owner = st.sampled_from(["", "", *(f"uid-{name}" for name in PODS)])
    claims = []
    for number in range(draw(st.integers(0, 4))):
        taken = draw(st.lists(st.sampled_from(devices), unique=True, max_size=3)) if devices else []
        devices = [each for each in devices if each not in taken]
        claims.append(make_claim(f"c{number}", taken or None, pods=("uid-z",), extended_of=draw(owner)))
    bound = draw(st.dictionaries(st.sampled_from(PODS), st.integers(1, 3)))
    waiting = [name for name in PODS if name not in bound]
    promised = draw(st.dictionaries(st.sampled_from(waiting), st.integers(1, 2))) if waiting else {}
    allocatable = draw(st.sampled_from([None, None, "0", "8"]))
    return Case(allocatable, draw(st.booleans()) or draw(st.booleans()), tuple(claims), bound, promised)


def books(store: Store) -> list[float]:
    """Of n1: GPUs in all, bound, promised, free."""
    snapshot, row = store.snapshot, store.rows["n1"]
    columns = (snapshot.gpu_count, snapshot.bound_gpus, snapshot.reserved_gpus, snapshot.free_gpus)
    return [float(column[row]) for column in columns]


@settings(max_examples=400, deadline=None)
@given(cases(), st.randoms(use_true_random=False), st.booleans())
def test_a_gpu_is_counted_once_in_whatever_order_all_is_told(
    case: Case, random: Random, relisted: bool
) -> None:
    store = make_store()
    kinds: dict[type, Kind] = {
        Node: Kind.NODE,
        Pod: Kind.POD,
        ResourceSlice: Kind.RESOURCESLICE,
        ResourceClaim: Kind.RESOURCECLAIM,
    }
    gone = make_claim("gone", ["gpu-0", "gpu-1"])
    things: list[Node | Pod | Partial] = [case.node, *case.slices, *case.claims, *case.pods]
    events = [Changed(kinds[type(thing)], thing) for thing in things]
    again = [*events, Changed(Kind.RESOURCECLAIM, gone)]
    random.shuffle(again)
    for event in again:
        store.apply(event, 0.0)
    if relisted:
        uids = frozenset(claim.metadata.uid for claim in case.claims)
        store.apply(Listed(Kind.RESOURCECLAIM, uids), 0.0)
    else:
        store.apply(Gone(Kind.RESOURCECLAIM, gone), 0.0)
    random.shuffle(events)
    for event in events:
        # Told twice, it is the same.
        store.apply(event, 0.0)
    kept = {
        name: gpus
        for name, gpus in case.promised.items()
        if store.reserve(make_request(name, gpus), "n1", NOW_S)
    }
    want = Case(case.allocatable, case.complete, case.claims, case.bound, kept)
    total, bound, promised, free = books(store)
    assert total == pytest.approx(want.want_total())
    assert bound == pytest.approx(want.want_bound())
    assert promised == sum(kept.values())
    row = store.rows["n1"]
    snapshot = store.snapshot
    whole = [
        float(column[0, row]) for column in (snapshot.units, snapshot.bound_units, snapshot.reserved_units)
    ]
    assert snapshot.free_units[0, row] == max(whole[0] - whole[1] - whole[2], 0)
    assert free == pytest.approx((snapshot.free_units * snapshot.unit_gpus)[:, row].sum())
    if kept:
        assert whole[1] + whole[2] <= whole[0], "a promise never exceeds what is free"
    for name, gpus in kept.items():
        store.apply(Changed(Kind.POD, make_pod(name, gpus, node="n1")), NOW_S)
    after = Case(case.allocatable, case.complete, case.claims, case.bound | kept, {})
    assert books(store)[1] == pytest.approx(after.want_bound())
    assert books(store)[2] == 0
    store.apply(Listed(Kind.RESOURCECLAIM, frozenset()), NOW_S)
    store.apply(Listed(Kind.POD, frozenset()), NOW_S)
    assert books(store)[1:3] == [0, 0], "nothing is left behind"
    assert len(store.devices.claims) == 0
