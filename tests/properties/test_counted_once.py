"""A node's GPUs are counted by one source, never two, whatever comes and goes in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cluster.counting import STEADY_S, CountedBy
from scheduler.cluster.objects import Meta, Node, NodeStatus
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.core.nouns import GPU_RESOURCE
from tests.builders import make_inventory, make_request, make_store
from tests.dra import gpu, make_slice

SEVENTH = "nvidia.com/mig-1g.10gb"
GPUS = 4
"""By DRA."""


@dataclass(frozen=True)
class Truth:
    """What has been told, and not taken back."""

    node: tuple[int, int] | None = None
    """Whole GPUs and sevenths that are allocatable; None: there is no node."""
    parts: frozenset[int] = frozenset()
    """Slices that are there, of the two that make the pool."""
    found: int | None = None
    """By the agent."""

    def want(self) -> tuple[CountedBy, float, float]:
        """Who counts, what pods may ask for, and what there is to show, in GPUs."""
        whole, sevenths = self.node or (0, 0)
        if whole or sevenths:
            return CountedBy.ALLOCATABLE, whole + sevenths / 7, whole + sevenths / 7
        if len(self.parts) == 2:
            return CountedBy.SLICES, GPUS, GPUS
        if self.found:
            return CountedBy.INVENTORY, 0, self.found
        return CountedBy.NOBODY, 0, 0


amounts = st.tuples(st.sampled_from([0, 0, 8]), st.sampled_from([0, 0, 7, 14]))
steps = st.one_of(
    st.tuples(st.just("node"), st.none() | amounts),
    st.tuples(st.just("slice"), st.integers(0, 1)),
    st.tuples(st.just("slice gone"), st.integers(0, 1)),
    st.tuples(st.just("slices listed"), st.frozensets(st.integers(0, 1))),
    st.tuples(st.just("inventory"), st.none() | st.sampled_from([0, 1, 3, 4, 8, 9])),
)
Step = tuple[str, object]


def make(amount: tuple[int, int]) -> Node:
    whole, sevenths = amount
    return Node(
        metadata=Meta(name="n1"),
        status=NodeStatus(allocatable={"cpu": "96", GPU_RESOURCE: str(whole), SEVENTH: str(sevenths)}),
    )


def part(index: int) -> object:
    devices = [gpu(each) for each in range(GPUS) if each % 2 == index]
    return make_slice(devices=devices, part=index, of=2)


def take(store: Store, truth: Truth, step: Step, now_mono_s: float) -> Truth:
    """Tell the store, and say what is true now."""
    kind, what = step
    if kind == "node":
        if isinstance(what, tuple):
            store.apply(Changed(Kind.NODE, make(what)), now_mono_s)
        else:
            store.apply(Gone(Kind.NODE, make((0, 0))), now_mono_s)
        return replace(truth, node=what)  # type: ignore[arg-type]  # as the strategy makes it
    if kind == "inventory":
        if isinstance(what, int):
            store.see_inventory("n1", make_inventory(gpus=what))
        else:
            store.forget_inventory("n1")
        return replace(truth, found=what)  # type: ignore[arg-type]  # likewise
    if kind == "slices listed":
        assert isinstance(what, frozenset)
        kept = truth.parts & what
        uids = frozenset(f"n1-gpu.nvidia.com-{index}" for index in what)
        store.apply(Listed(Kind.RESOURCESLICE, uids), now_mono_s)
        return replace(truth, parts=kept)
    assert isinstance(what, int)
    if kind == "slice":
        store.apply(Changed(Kind.RESOURCESLICE, part(what)), now_mono_s)  # type: ignore[arg-type]  # a slice
        return replace(truth, parts=truth.parts | {what})
    store.apply(Gone(Kind.RESOURCESLICE, part(what)), now_mono_s)  # type: ignore[arg-type]  # likewise
    return replace(truth, parts=truth.parts - {what})


@settings(deadline=None)
@given(st.lists(steps, max_size=30))
def test_one_source_counts_whatever_comes_and_goes(told: list[Step]) -> None:
    store = make_store()
    truth = Truth()
    for index, step in enumerate(told):
        truth = take(store, truth, step, float(index))
        if truth.node is None:
            assert "n1" not in store.nodes
            assert not store.snapshot.counted_gpus.any()
            continue
        want_by, want_offered, want_shown = truth.want()
        record, snapshot, row = store.nodes["n1"], store.snapshot, store.rows["n1"]
        assert record.counted_by is want_by
        assert snapshot.gpu_count[row] == pytest.approx(want_offered)
        assert snapshot.counted_gpus[row] == pytest.approx(want_shown)
        offered = (snapshot.units * snapshot.unit_gpus)[:, row].sum()
        assert offered == pytest.approx(want_offered)
        assert bool(record.offers) == (want_by in (CountedBy.ALLOCATABLE, CountedBy.SLICES))
        assert snapshot.free_gpus[row] <= snapshot.gpu_count[row]
        if want_by not in (CountedBy.ALLOCATABLE, CountedBy.SLICES):
            assert not store.reserve(make_request(gpus=1), "n1", float(index))
    if truth.node is None:
        return
    # An agent that finds fewer is told of after a minute in which nothing came, and only then.
    _, offered, _ = truth.want()
    fewer = truth.found is not None and offered > truth.found + 0.01
    store.tick(1000.0)
    store.tick(1000.0 + STEADY_S - 1)
    assert store.nodes["n1"].disagreement == ""
    store.tick(1000.0 + STEADY_S)
    assert bool(store.nodes["n1"].disagreement) == fewer


@settings(deadline=None)
@given(st.data(), st.none() | st.integers(0, 9), st.booleans(), amounts)
def test_the_order_in_which_sources_are_told_is_all_the_same(
    data: st.DataObject, found: int | None, complete: bool, amount: tuple[int, int]
) -> None:
    steps: list[Step] = [("node", amount), ("slice", 0), ("inventory", found)]
    steps += [("slice", 1)] if complete else []
    stores = []
    for order in (steps, data.draw(st.permutations(steps))):
        store, truth = make_store(), Truth()
        for step in order:
            truth = take(store, truth, step, 0.0)
        store.tick(0.0)
        store.tick(STEADY_S)
        stores.append(store)
    one, other = (store.nodes["n1"] for store in stores)
    assert (one.counted_by, one.offers, one.contradictions) == (
        other.counted_by,
        other.offers,
        other.contradictions,
    )
    for name in ("gpu_count", "counted_gpus", "free_gpus", "healthy_gpus", "load_sum"):
        assert getattr(stores[0].snapshot, name)[one.row] == getattr(stores[1].snapshot, name)[other.row]
