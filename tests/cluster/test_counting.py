"""By whom the GPUs of a node are counted, and what is said where its agent finds fewer."""

from __future__ import annotations

import pytest

from scheduler.cluster.counting import STEADY_S, CountedBy, Disagreements
from scheduler.cluster.objects import Meta, Node, NodeStatus
from scheduler.cluster.port import Changed, EventNote, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.notices import AGENT_CONTRADICTS, LABELS_CONTRADICT, Notices
from scheduler.policy import registry
from scheduler.policy.base import Score
from tests.builders import (
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_pod,
)
from tests.dra import gpu, make_slice

GPU, SHARED, SEVENTH = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"
BARE = Node(metadata=Meta(name="n1"), status=NodeStatus(allocatable={"cpu": "96"}))


def bare(labels: dict[str, str] | None = None) -> Node:
    """A node without anything to ask for."""
    return Node(metadata=Meta(name="n1", labels=labels), status=BARE.status)


def tell(store: Store, thing: object, now_mono_s: float = 0.0) -> None:
    store.apply(Changed(Kind.NODE, thing), now_mono_s)  # type: ignore[arg-type]  # what it is tells


def counts(store: Store) -> tuple[CountedBy, float, float, float]:
    """Of n1: who counts, GPUs that pods may ask for, GPUs to show, and free ones."""
    snapshot, row = store.snapshot, store.rows["n1"]
    columns = (snapshot.gpu_count, snapshot.counted_gpus, snapshot.free_gpus)
    offered, shown, free = (float(column[row]) for column in columns)
    return store.nodes["n1"].counted_by, offered, shown, free


# --- the third source ------------------------------------------------------------------------------------------------


def test_gpus_that_only_an_agent_finds_are_counted_and_none_is_free() -> None:
    store = make_store()
    tell(store, bare())
    assert counts(store) == (CountedBy.NOBODY, 0, 0, 0)
    store.see_inventory("n1", make_inventory())
    assert counts(store) == (CountedBy.INVENTORY, 0, 8, 0)
    assert not store.reserve(make_request(), "n1", 0.0)
    store.forget_inventory("n1")
    assert counts(store) == (CountedBy.NOBODY, 0, 0, 0)


def test_an_agent_that_finds_none_counts_none() -> None:
    store = make_store()
    tell(store, bare({"nvidia.com/gpu.product": "NVIDIA-L4"}))
    store.see_inventory("n1", make_inventory(gpus=0))
    assert counts(store) == (CountedBy.NOBODY, 0, 0, 0)
    assert store.nodes["n1"].model == "NVIDIA-L4", "of none it has nothing to say of their model"


def test_an_agent_that_finds_none_says_nothing_of_what_replicas_are_made_of() -> None:
    store = make_store()
    tell(store, make_node(labels={"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "8"}))
    store.see_inventory("n1", make_inventory(gpus=0))
    assert counts(store)[:3] == (CountedBy.ALLOCATABLE, 8, 8)
    [wrong] = store.nodes["n1"].contradictions
    assert wrong.endswith("of 8 that are there")


def test_each_source_takes_over_from_those_behind_it_and_hands_back() -> None:
    store = make_store()
    store.see_inventory("n1", make_inventory(gpus=3))
    tell(store, bare())
    assert counts(store) == (CountedBy.INVENTORY, 0, 3, 0)
    offered = make_slice(devices=[gpu(0), gpu(1)])
    tell(store, offered)
    assert counts(store) == (CountedBy.SLICES, 2, 2, 2)
    tell(store, make_node(gpus=4))
    assert counts(store) == (CountedBy.ALLOCATABLE, 4, 4, 3), "the fourth its agent does not find"
    tell(store, make_node(gpus=0))
    assert counts(store) == (CountedBy.SLICES, 2, 2, 2)
    store.apply(Gone(Kind.RESOURCESLICE, offered), 0.0)
    assert counts(store) == (CountedBy.INVENTORY, 0, 3, 0)


def test_slices_whose_gpus_are_all_tainted_are_counted_by_dra_which_has_none() -> None:
    store = make_store()
    broken = gpu(0, taints=[{"key": "gpu.nvidia.com/xid", "effect": "NoSchedule"}])
    tell(store, bare())
    store.see_inventory("n1", make_inventory(gpus=1))
    tell(store, make_slice(devices=[broken]))
    assert counts(store) == (CountedBy.SLICES, 0, 0, 0)


def test_while_a_plugin_restarts_its_node_is_shown_as_large_as_its_agent_finds_it() -> None:
    store = make_store()
    tell(store, make_node(gpus=8))
    store.see_inventory("n1", make_inventory())
    see_pod(store, make_pod("a", 6, node="n1"))
    tell(store, make_node(gpus=0))
    assert counts(store) == (CountedBy.INVENTORY, 0, 8, 0)
    assert store.snapshot.bound_gpus[store.rows["n1"]] == 6
    assert store.nodes["n1"].contradictions == ()


@pytest.mark.parametrize("policy", ["least-loaded", "pack"])
def test_a_node_looks_no_better_to_a_pod_for_gpus_that_only_its_agent_counts(policy: str) -> None:
    """kube-scheduler may offer it all the same: its news are fresher."""
    store = make_store()
    tell(store, make_node("n0", 8))
    tell(store, bare())
    built = registry.build(policy, {})
    assert isinstance(built, Score)

    def score() -> float:
        return float(built.score(make_request(gpus=2), store.snapshot)[store.rows["n1"]])

    without = score()
    store.see_inventory("n1", make_inventory(gpus=16))
    store.see_samples([("n1", make_sample("n1", [0.0] * 16), 1.0)])
    assert counts(store)[2] == 16
    assert score() <= without


def test_a_node_that_comes_back_or_whose_row_another_takes_is_counted_anew() -> None:
    store = make_store()
    tell(store, bare())
    store.see_inventory("n1", make_inventory())
    store.apply(Gone(Kind.NODE, BARE), 0.0)
    assert not store.snapshot.counted_gpus.any()
    tell(store, bare())
    assert counts(store) == (CountedBy.INVENTORY, 0, 8, 0), "its agent ran on"


def test_a_node_that_is_sent_whole_is_counted_by_its_allocatable() -> None:
    store = make_store()
    tell(store, make_node())
    snapshot = store.with_strangers(store.snapshot, [make_node("new", 4), bare()])
    assert snapshot.counted_gpus[-2:].tolist() == [4, 0]


# --- an agent that finds fewer ---------------------------------------------------------------------------------------


def mixed(gpus: int, now_mono_s: float = 0.0) -> tuple[Store, list[tuple[str, ...]]]:
    """A node with 4 whole GPUs, 8 replicas of 2 others and 14 sevenths of 2 more, and what is told of it."""
    store = make_store()
    told: list[tuple[str, ...]] = []
    store.on_contradictions = lambda record: told.append(record.contradictions)
    labels = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "8"}
    tell(store, make_node(labels=labels, shares={GPU: 4, SHARED: 8, SEVENTH: 14}))
    store.see_inventory("n1", make_inventory(gpus=gpus))
    store.tick(now_mono_s)
    return store, told


def test_fewer_gpus_than_are_counted_are_told_once_that_has_held_for_a_minute() -> None:
    store, told = mixed(6)
    store.tick(STEADY_S - 0.1)
    assert told == []
    assert not store.nodes["n1"].contradictions
    store.tick(STEADY_S)
    want = (
        "allocatable comes to 8 GPUs (nvidia.com/gpu 4, nvidia.com/gpu.shared 8, nvidia.com/mig-1g.10gb 14), but its "
        "agent finds 6: 2 count as broken"
    )
    assert told == [(want,)]
    assert store.nodes["n1"].disagreement == want
    store.tick(2 * STEADY_S)
    assert len(told) == 1
    # Its news change nothing of it.
    tell(store, make_slice("other"))
    store.see_inventory("n1", make_inventory(gpus=6))
    assert store.nodes["n1"].contradictions == (want,)
    store.see_inventory("n1", make_inventory(gpus=8))
    assert told == [(want,), ()]
    assert store.nodes["n1"].disagreement == ""


def test_what_ends_within_the_minute_or_changes_its_figures_begins_anew() -> None:
    store, told = mixed(6)
    store.tick(50.0)
    store.see_inventory("n1", make_inventory(gpus=8))
    store.tick(55.0)
    store.see_inventory("n1", make_inventory(gpus=6))
    store.tick(60.0)
    store.tick(119.9)
    assert told == []
    store.see_inventory("n1", make_inventory(gpus=7))
    store.tick(121.0)
    store.tick(180.9)
    assert told == []
    store.tick(181.0)
    assert "finds 7: 1 count as broken" in told[0][0]
    store.see_inventory("n1", make_inventory(gpus=5))
    assert told[1:] == [()], "that it was another figure is over; this one has to hold first"


@pytest.mark.parametrize("gpus", [8, 9, 16])
def test_as_many_or_more_are_no_contradiction(gpus: int) -> None:
    store, told = mixed(gpus)
    store.tick(1000.0)
    assert told == []


def test_sums_of_sevenths_are_no_contradiction() -> None:
    store = make_store()
    tell(store, make_node(shares={SEVENTH: 42}))
    store.see_inventory("n1", make_inventory(gpus=6))
    store.tick(0.0)
    store.tick(1000.0)
    assert store.nodes["n1"].contradictions == ()


def test_an_agent_that_finds_none_and_one_that_is_no_longer_heard() -> None:
    store, told = mixed(0)
    store.tick(STEADY_S)
    assert told[0][0].endswith("but its agent finds none: their load is unknown")
    store.forget_inventory("n1")
    assert told[1:] == [()], "nobody says so any more"


def test_a_node_that_goes_is_forgotten_and_one_that_comes_back_begins_anew() -> None:
    store, told = mixed(6)
    store.apply(Gone(Kind.NODE, make_node()), 10.0)
    store.tick(1000.0)
    assert told == []
    tell(store, make_node())
    store.tick(1000.0 + STEADY_S / 2)
    store.tick(1000.0 + STEADY_S)
    assert told == []
    store.tick(1000.0 + 2 * STEADY_S)
    assert len(told) == 1


def test_slices_that_offer_more_than_the_agent_finds_are_told_too() -> None:
    store = make_store()
    tell(store, bare())
    tell(store, make_slice())
    store.see_inventory("n1", make_inventory(gpus=6))
    store.tick(0.0)
    store.tick(STEADY_S)
    assert store.nodes["n1"].contradictions == (
        "ResourceSlices come to 8 GPUs (nvidia.com/gpu 8), but its agent finds 6: 2 count as broken",
    )


def test_it_is_an_event_of_its_own_beside_that_of_the_labels() -> None:
    clock, written = ManualClock(), list[EventNote]()
    notices = Notices(written.append, lambda: True, clock)
    store = make_store()
    store.on_contradictions = notices.contradictions
    tell(store, make_node(labels={f"{SEVENTH}.count": "7"}))
    store.see_inventory("n1", make_inventory(gpus=6))
    assert [note.reason for note in written] == [LABELS_CONTRADICT]
    store.tick(clock.mono_s())
    clock.advance(STEADY_S)
    store.tick(clock.mono_s())
    assert [note.reason for note in written] == [LABELS_CONTRADICT, AGENT_CONTRADICTS]
    for note in written:
        assert (note.kind, note.name, note.warning) == ("Node", "n1", True)
    assert "finds 6" not in written[0].note
    assert "finds 6: 2 count as broken" in written[1].note
    assert "mig" not in written[1].about


def test_of_thousands_only_those_whose_minute_is_over_are_looked_at() -> None:
    many = Disagreements()
    for index in range(3):
        many.see(f"n{index}", "a")
        assert many.pass_time(float(index)) == []
    many.see("n0", "a")
    many.see("n1", "")
    assert many.pass_time(STEADY_S) == ["n0"]
    assert many.pass_time(STEADY_S + 1.5) == []
    assert many.pass_time(STEADY_S + 2.0) == ["n2"]
    assert many.steady == {"n0": "a", "n2": "a"}
