"""A pod that asks for more GPUs than there can be: it asks for GPUs, fits nowhere, and leaves nothing behind."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.objects import (
    MOST_ASKED,
    Amounts,
    Container,
    PodSpec,
    Resources,
    asked_quantity,
    quantity,
    requested,
)
from scheduler.cluster.pods import asks_by_claims_only, asks_for_gpus, pod_facts
from scheduler.cluster.port import Changed, Kind
from scheduler.core.nouns import GPU_RESOURCE, Reason
from scheduler.simulate.fit import NodeTable, PodNeeds
from tests.builders import (
    all_rows,
    lose_pod,
    make_decider,
    make_node,
    make_pod,
    make_sample,
    make_store,
    see_node,
    see_pod,
)
from tests.extender.world import QUARANTINE, World, by_names

# What an API server lets through, its largest and its shortest among them.
ABSURD = ["1e18", "9223372036854775807", "1E", "7Ei", "8Ei", "999999999999999999999k"]
MIG = "nvidia.com/mig-1g.10gb"


def spec(*amounts: Amounts, inits: tuple[Amounts, ...] = (), overhead: Amounts | None = None) -> PodSpec:
    return PodSpec(
        containers=[Container(resources=Resources(limits=each)) for each in amounts],
        init_containers=[Container(resources=Resources(limits=each)) for each in inits],
        overhead=overhead,
    )


@pytest.mark.parametrize("amount", ABSURD)
def test_an_absurd_amount_is_an_ask_that_no_node_can_have(amount: str) -> None:
    asked = asked_quantity(amount)
    assert 1e18 <= asked <= MOST_ASKED
    assert quantity(amount) == 0, "of a node it is nothing to be had"
    for each in (
        spec({GPU_RESOURCE: amount}),
        spec({}, inits=({GPU_RESOURCE: amount},)),
        spec({}, overhead={GPU_RESOURCE: amount}),
    ):
        assert requested(each) == asked


def test_an_absurd_amount_as_a_number_is_an_ask_too() -> None:
    assert asked_quantity(10**400) == MOST_ASKED
    assert asked_quantity(1e300) == MOST_ASKED


@pytest.mark.parametrize("amount", ["nan", "-1", "-1e18", "-inf", "x", "", None, float("nan"), -(10**400)])
def test_what_is_no_amount_asks_for_nothing(amount: str | float | None) -> None:
    assert asked_quantity(amount) == 0


@given(st.integers(0, 2**63 - 1))
def test_any_whole_amount_that_kubernetes_takes_is_asked_for_as_it_stands(
    count: int,
) -> None:
    asked = asked_quantity(str(count))
    assert asked == float(count)
    assert quantity(str(count)) == (asked if asked < 1e18 else 0)


def test_many_absurd_containers_are_still_one_ask_of_64_bits() -> None:
    amounts: list[Amounts] = [{GPU_RESOURCE: "9223372036854775807"}] * 50
    assert requested(spec(*amounts, inits=(*amounts,), overhead=amounts[0])) == MOST_ASKED
    assert np.float32(MOST_ASKED) == MOST_ASKED
    assert msgspec.json.decode(msgspec.json.encode(int(MOST_ASKED))) == MOST_ASKED


@pytest.mark.parametrize("resource", [GPU_RESOURCE, "nvidia.com/gpu.shared", MIG])
@pytest.mark.parametrize("amount", ABSURD)
def test_a_pod_that_asks_for_an_absurd_amount_is_one_that_asks_for_gpus(resource: str, amount: str) -> None:
    pod = make_pod(shares={resource: amount})
    assert asks_for_gpus(pod)
    assert not asks_by_claims_only(pod)
    facts = pod_facts(pod)
    assert facts is not None
    assert facts.units == ((resource, asked_quantity(amount)),)


@pytest.mark.parametrize("resource", [GPU_RESOURCE, MIG])
def test_it_is_full_for_it_everywhere_by_our_count_and_the_record_can_be_written(resource: str) -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node("n1", shares={GPU_RESOURCE: 8, MIG: 7})), 0.0)
    store.apply(Changed(Kind.NODE, make_node("bad", labels=QUARANTINE)), 0.0)
    decider = make_decider(store)
    pod = make_pod(shares={resource: "9223372036854775807"})
    see_pod(store, pod)
    request = store.request(pod, 0.0, decider.profile_facts)
    outcome = decider.place(request, all_rows(store), 1.0, 1.0)
    record = outcome.record
    # What kube-scheduler offers for it nevertheless is trusted as ever (docs/adr/0003), and counted; but not each node.
    assert (record.result, record.chosen) == ("full_by_our_count", "n1")
    assert record.reasons == {Reason.QUARANTINED.text: 1}
    assert not len(store.reservations)
    assert dict(record.resources) == {resource: MOST_ASKED}
    assert json.loads(msgspec.json.encode(record))["resources"] == {resource: MOST_ASKED}


def test_where_the_agent_counts_gpus_no_node_is_given_for_it() -> None:
    world = World()
    asking = by_names("a", "b", "bad")
    asking["Pod"]["spec"]["containers"][0]["resources"]["limits"] = {GPU_RESOURCE: "1E"}  # type: ignore[index]
    answer = world.filter(asking)
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"] == {
        "a": Reason.BROKEN_GPUS.text,
        "b": Reason.BROKEN_GPUS.text,
        "bad": Reason.QUARANTINED.text,
    }
    assert [each["Score"] for each in world.prioritize(asking)] == [0, 0, 0]


def test_bound_past_us_it_holds_all_of_its_node_and_leaves_nothing_behind() -> None:
    store = make_store()
    store.synced.add(Kind.POD)
    see_node(store)
    store.see_samples([("n1", make_sample(), 1.0)])
    see_pod(store, make_pod("small", 3, node="n1"), 1.0)
    row = store.rows["n1"]
    before = float(store.snapshot.pending_load[row])
    absurd = make_pod("absurd", shares={GPU_RESOURCE: "9223372036854775807"}, node="n1")
    see_pod(store, absurd, 1.0)
    assert store.snapshot.free_gpus[row] == 0
    assert before < store.snapshot.pending_load[row] <= before + 8
    lose_pod(store, absurd, 1.0)
    assert store.snapshot.free_gpus[row] == 5
    assert store.snapshot.pending_load[row] == pytest.approx(before)


def test_a_simulated_kube_scheduler_places_it_nowhere() -> None:
    table = NodeTable()
    table.set_node({"metadata": {"name": "n1"}, "status": {"allocatable": {GPU_RESOURCE: "8", "pods": "9"}}})
    containers = [{"resources": {"limits": {GPU_RESOURCE: "1e18"}}}]
    fits, reasons = table.fits(PodNeeds.of({"spec": {"containers": containers}}))
    assert not fits.any()
    assert f"insufficient {GPU_RESOURCE}" in reasons
