"""What is told of nodes: measurements, and nothing that only looks like one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.facts import Facts, Replica, nodes_skewed
from scheduler.report.views import NodeView
from tests.builders import make_decider, make_inventory, make_node, make_sample, make_store, see_node
from tests.dra import cut, gpu, make_claim, make_slice


def view(store: Store, name: str = "n1") -> NodeView:
    # Of a replica, a node's view asks these alone.
    found = Facts(cast("Replica", SimpleNamespace(store=store, decider=make_decider(store)))).node(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("util", "state", "want_load_frac", "want_counts"),
    [
        pytest.param([0.5, 0.1, 0.0, 0.2], ["ok"] * 4, 0.2, (4, 0, 0), id="all known"),
        pytest.param([0.5, 0.1, None, 0.2], ["ok"] * 4, None, (3, 1, 0), id="one unknown"),
        pytest.param([None] * 4, ["unknown"] * 4, None, (0, 4, 0), id="all unknown"),
        pytest.param([0.5, 0.1, None, None], ["ok", "ok", "lost", "hung"], 0.3, (2, 0, 2), id="two broken"),
        pytest.param([0.5, None, None, 0.1], ["ok", "ok", "lost", "hung"], None, (1, 1, 2), id="of each"),
        pytest.param([None] * 4, ["hung"] * 4, None, (0, 0, 4), id="all broken"),
    ],
)
def test_load_is_a_measurement_or_null(
    util: list[float | None], state: list[str], want_load_frac: float | None, want_counts: tuple[int, ...]
) -> None:
    store = make_store()
    see_node(store, gpus=4)
    store.see_samples([("n1", make_sample(util=util, state=state), 1.0)])
    store.tick(1.0)
    told = view(store)
    assert told.load_frac == pytest.approx(want_load_frac)
    assert [told.known_gpus, told.unknown_gpus, told.broken_gpus] == list(want_counts)
    if state[-1] == "hung":
        assert told.devices[-1].state == "hung"


def test_a_gpu_that_was_cut_is_listed_by_what_its_slices_tell() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node("n1", 0)), 0.0)
    store.apply(Changed(Kind.RESOURCESLICE, make_slice(devices=[gpu(0), cut(1, 0), cut(1, 2)])), 0.0)
    store.apply(Changed(Kind.RESOURCECLAIM, make_claim("a", ["gpu-1-mig-1g.10gb-2"])), 0.0)
    told = view(store)
    assert [(each.uuid, each.claims) for each in told.devices] == [("n1-0", []), ("n1-1", ["team-a/a"])]
    assert told.devices[1].model == "NVIDIA H100 80GB HBM3"
    assert (
        told.resources["nvidia.com/mig-1g.10gb"].bound,
        told.resources["nvidia.com/mig-1g.10gb"].free,
    ) == (1, 1)


@pytest.mark.parametrize(
    ("found", "lost", "want_counts", "want_free"),
    [
        pytest.param(8, 0, (8, 0, 0), 8, id="as many"),
        pytest.param(7, 0, (7, 0, 1), 7, id="one not found"),
        pytest.param(7, 2, (5, 0, 3), 5, id="one not found, two lost"),
        pytest.param(16, 0, (16, 0, 0), 8, id="more than Kubernetes counts"),
        pytest.param(16, 4, (12, 0, 4), 8, id="more, some of them lost"),
    ],
)
def test_what_an_agent_finds_and_what_kubernetes_counts_add_up(
    found: int, lost: int, want_counts: tuple[int, int, int], want_free: int
) -> None:
    store = make_store(stale_s=10.0)
    store.apply(Changed(Kind.NODE, make_node(gpus=8)), 0.0)
    store.see_inventory("n1", make_inventory(gpus=found))
    state = ["ok"] * (found - lost) + ["lost"] * lost
    util: list[float | None] = [None if each == "lost" else 0.5 for each in state]
    store.see_samples([("n1", make_sample(util=util, state=state), 1.0)])
    store.tick(1.0)
    told = view(store)
    assert [told.known_gpus, told.unknown_gpus, told.broken_gpus] == list(want_counts)
    assert sum(want_counts) == max(8, found)
    assert [told.free_gpus, told.load_frac] == [want_free, 0.5]
    # Offline: what was known no longer is.
    store.see_status("n1", online=False)
    told = view(store)
    assert [told.known_gpus, told.unknown_gpus] == [0, want_counts[0]]
    assert told.broken_gpus == want_counts[2]


def test_a_node_tells_who_counts_its_gpus_and_shows_those_that_only_its_agent_finds() -> None:
    store = make_store(stale_s=10.0)
    store.apply(Changed(Kind.NODE, make_node(gpus=0)), 0.0)
    told = view(store)
    assert (told.gpus, told.counted_by, told.unoffered_gpus) == (0, None, 0)
    store.see_inventory("n1", make_inventory())
    store.see_samples([("n1", make_sample(util=[0.25] * 7 + [None], state=["ok"] * 7 + ["lost"]), 1.0)])
    store.tick(1.0)
    told = view(store)
    assert (told.gpus, told.counted_by, told.free_gpus) == (8, "inventory", 0)
    assert (told.broken_gpus, told.known_gpus, told.unknown_gpus, told.unoffered_gpus) == (1, 7, 0, 7)
    assert told.load_frac == 0.25
    assert told.resources == {}
    assert told.model == "H100"
    store.apply(Changed(Kind.NODE, make_node(gpus=8)), 0.0)
    told = view(store)
    assert (told.gpus, told.counted_by, told.free_gpus, told.unoffered_gpus) == (8, "allocatable", 7, 0)
    assert told.broken_gpus == 1, "not once more"
    store.apply(Changed(Kind.NODE, make_node(gpus=0)), 0.0)
    store.apply(Changed(Kind.RESOURCESLICE, make_slice()), 0.0)
    assert (view(store).counted_by, view(store).gpus) == ("resourceslices", 8)


def test_the_agents_version_is_that_of_the_inventory_and_unknown_without_one() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node()), 0.0)
    assert view(store).agent_version is None
    store.see_inventory("n1", make_inventory())
    assert view(store).agent_version is None
    store.see_inventory("n1", msgspec.structs.replace(make_inventory(), agent_version="0.1.0"))
    assert view(store).agent_version == "0.1.0"


def test_the_model_is_what_the_label_tells_until_the_agent_does() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node()), 0.0)
    assert view(store).model is None
    store.apply(Changed(Kind.NODE, make_node(labels={"nvidia.com/gpu.product": "NVIDIA-L4"})), 0.0)
    assert view(store).model == "NVIDIA-L4"
    inventory = make_inventory()
    store.see_inventory("n1", inventory)
    assert view(store).model == inventory.gpus[0].model


def test_after_an_inventory_was_cleared_what_kubernetes_counts_is_unknown() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node(gpus=8)), 0.0)
    store.see_inventory("n1", make_inventory(gpus=16))
    store.see_samples([("n1", make_sample(util=[0.5] * 16, state=["ok"] * 15 + ["lost"]), 1.0)])
    store.forget_inventory("n1")
    told = view(store)
    assert [told.known_gpus, told.unknown_gpus, told.broken_gpus] == [0, 8, 0]
    assert told.devices == []
    assert not told.fresh
    # Of a node that is not there: what its agent said is not kept for when it comes.
    store.see_inventory("n2", make_inventory("n2", gpus=16))
    store.forget_inventory("n2")
    store.apply(Changed(Kind.NODE, make_node("n2", gpus=8)), 0.0)
    assert view(store, "n2").unknown_gpus == 8


@pytest.mark.parametrize("value", [None, "", "xid-79"])
def test_a_quarantine_without_a_reason_is_one(value: str | None) -> None:
    store = make_store()
    see_node(store, labels={} if value is None else {"wattbalance.io/quarantine": value})
    assert view(store).quarantine == value


def test_a_node_that_is_stale_or_has_no_agent_is_all_unknown() -> None:
    store = make_store(stale_s=10.0)
    see_node(store, gpus=4)
    store.apply(Changed(Kind.NODE, make_node("bare", gpus=3)), 0.0)
    store.see_samples([("n1", make_sample(util=[0.5] * 4), 1.0)])
    store.tick(20.0)
    for name, want_unknown in (("n1", 4), ("bare", 3)):
        told = view(store, name)
        assert told.load_frac is None
        assert (told.known_gpus, told.unknown_gpus) == (0, want_unknown)


@pytest.mark.parametrize("how", ["offline", "inventory cleared"])
def test_how_long_nothing_has_come_is_told_of_a_node_that_is_offline(how: str) -> None:
    store = make_store(stale_s=10.0)
    see_node(store, gpus=4)
    store.see_samples([("n1", make_sample(util=[0.5] * 4), 1.0)])
    if how == "offline":
        store.see_status("n1", online=False)
    else:
        store.forget_inventory("n1")
    store.tick(4.0)
    told = view(store)
    assert [told.fresh, told.reading_age_s, told.known_gpus] == [False, 3.0, 0]
    # Its row, taken by another node, tells nothing of this one.
    store.apply(Gone(Kind.NODE, make_node("n1")), 5.0)
    see_node(store, "n2", gpus=4)
    store.tick(6.0)
    assert view(store, "n2").reading_age_s is None


def test_clocks_count_of_nodes_that_are_there_and_heard() -> None:
    store = make_store(stale_s=10.0)
    for name in ("heard", "silent", "gone"):
        see_node(store, name, gpus=1)
    store.see_samples([("silent", make_sample("silent", util=[0.5]), 1.0)])
    store.see_samples([(name, make_sample(name, util=[0.5]), 19.0) for name in ("heard", "gone")])
    store.apply(Gone(Kind.NODE, make_node("gone")), 19.0)
    store.tick(20.0)
    assert nodes_skewed(store, dict.fromkeys(("heard", "silent", "gone", "never heard of"), 60.0)) == 1


def test_gpus_that_dra_tells_of_are_joined_to_those_of_the_agent_by_uuid() -> None:
    store = make_store()
    see_node(store, gpus=0)
    for thing in (
        make_slice(devices=[gpu(index) for index in range(3)]),
        make_claim(devices=["gpu-1"]),
        make_claim("c2", devices=["gpu-1", "gpu-2"]),
    ):
        store.apply(Changed(Kind.RESOURCESLICE, thing), 0.0)
    store.see_inventory("n1", make_inventory(gpus=2))
    told = view(store)
    assert [each.uuid for each in told.devices] == ["n1-0", "n1-1", "n1-2"]
    assert [each.claims for each in told.devices] == [[], ["team-a/c1", "team-a/c2"], ["team-a/c2"]]
    assert [each.model for each in told.devices] == ["H100", "H100", "NVIDIA H100 80GB HBM3"]
    assert told.resources["nvidia.com/gpu"].units == 3
