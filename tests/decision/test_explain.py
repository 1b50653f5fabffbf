"""What would be decided now, why not elsewhere, and what would let a waiting pod run."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.store import Store
from scheduler.cluster.unit_words import said
from scheduler.core.nouns import GPU_RESOURCE, Placement, PodRequest, PoolSpec, Reason
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Evaluation, Hindrance, decided
from scheduler.decision.explain import CORDONED, TOO_SMALL, evaluate
from scheduler.decision.kube_filters import kube_filters
from scheduler.decision.lifts import Standing, World, lifts_of
from scheduler.decision.record import DecisionRecord
from scheduler.policy.base import POOL_CODES, Score, ScoreArray
from scheduler.policy.profiles import Profile, Weighted
from tests.builders import (
    GIB,
    SHARED_RESOURCE,
    added_up,
    all_rows,
    make_decider,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_sharing_pod,
    make_store,
    measure_memory,
    see_node,
    see_pod,
    see_sharing_node,
)
from tests.dra import gpu, make_slice

NOW = 100.0
UNIX = 5000.0
POOLS = (
    PoolSpec(name="dc", selector={"site": "dc"}, spill_after_s=300.0),
    PoolSpec(name="aws", selector={"site": "aws"}),
)
QUARANTINE = {"wattbalance.io/quarantine": "xid"}


def look(decider: Decider, request: PodRequest, held_on: str = "") -> Evaluation:
    return evaluate(decider, request, NOW, UNIX, held_on=held_on)


def fill(store: Store, node: str, gpus: int) -> None:
    see_pod(store, make_pod(f"fills-{node}", gpus, node=node))


def cordon(store: Store, name: str) -> None:
    store.apply(Changed(Kind.NODE, make_node(name, cordoned=True)), NOW)


def hindrance(told: Evaluation, kind: str) -> Hindrance:
    [found] = [each for each in told.unblock if each.kind == kind]
    return found


def test_a_pod_that_fits_is_told_so_and_nothing_changes() -> None:
    store = make_store()
    see_node(store, "n1")
    see_node(store, "n2")
    fill(store, "n2", 4)
    decider = make_decider(store)
    told = look(decider, make_request(gpus=2))
    assert [told.nodes, told.fitting, told.full, told.held_on] == [2, 2, 0, ""]
    assert [each.kind for each in told.unblock] == ["none"]
    assert [each.band for each in told.best] == ["fits", "fits"]
    assert told.chosen == told.best[0].node
    assert not len(decider.log)
    assert not len(store.reservations)
    assert not decider.results


@pytest.mark.parametrize("bound", [1, 8])
def test_a_bound_pods_own_gpus_are_counted_free_on_its_node(bound: int) -> None:
    store = make_store()
    see_node(store, "n1")
    fill(store, "n1", 8 - bound)
    pod = make_pod("p1", bound, node="n1")
    see_pod(store, pod)
    told = look(make_decider(store), make_request(gpus=bound), held_on="n1")
    assert told.fitting == 1
    assert told.own is not None
    assert [told.own.node, told.own.free_gpus, told.own.band] == ["n1", bound, "fits"]
    assert told.unblock == ()
    assert float(store.snapshot.free_gpus[store.rows["n1"]]) == 0, "the books are as before"
    assert float(store.snapshot.bound_gpus[store.rows["n1"]]) == 8


def test_the_node_that_a_pod_runs_on_is_told_though_it_is_closed_or_far_behind() -> None:
    store = make_store()
    for index in range(15):
        see_node(store, f"n{index}")
    see_node(store, "old")
    store.see_samples([("old", make_sample("old", [1.0] * 8), NOW)])
    see_pod(store, make_pod("p1", 1, node="old"))
    decider = make_decider(store)
    told = look(decider, make_request(), held_on="old")
    assert told.own is not None
    assert "old" not in [each.node for each in told.best]
    see_node(store, "old", labels=QUARANTINE)
    told = look(decider, make_request(), held_on="old")
    assert told.own is not None
    assert [told.own.band, told.own.reason] == ["ruled_out", "node in quarantine"]
    cordon(store, "old")
    told = look(decider, make_request(), held_on="old")
    assert told.own is not None
    assert told.own.band == "fits"


def test_a_pod_on_a_node_that_has_gone_is_judged_all_the_same() -> None:
    store = make_store()
    see_node(store, "n1")
    told = look(make_decider(store), make_request(), held_on="gone")
    assert [told.own, told.chosen] == [None, "n1"]


def test_quarantined_nodes_are_counted_and_named_and_said_to_help() -> None:
    store = make_store()
    for name in "abcdefgh":
        see_node(store, name, labels=QUARANTINE)
    fill(store, "a", 8)
    see_node(store, "z")
    fill(store, "z", 8)
    told = look(make_decider(store), make_request(gpus=8))
    [ruled_out] = told.ruled_out
    assert [ruled_out.reason, ruled_out.nodes] == ["node in quarantine", 8]
    assert ruled_out.examples == ("b", "c", "d", "e", "f")
    first = told.unblock[0]
    assert [first.kind, first.helps] == ["quarantine", 7]
    assert "a" not in first.nodes
    assert "wattbalance.io/quarantine-" in first.text


def test_what_helps_where_it_fits_already_is_what_it_would_open_and_nothing_else_is_told() -> None:
    store = make_store()
    see_node(store, "open")
    for name in ("a", "b"):
        see_node(store, name, labels=QUARANTINE)
    told = look(make_decider(store), make_request(gpus=8))
    assert [(each.kind, each.helps) for each in told.unblock] == [("none", 1), ("quarantine", 2)]
    for name in ("a", "b"):
        fill(store, name, 8)
    told = look(make_decider(store), make_request(gpus=8))
    assert [each.kind for each in told.unblock] == ["none"]


def test_a_node_that_has_shrunk_under_its_pod_is_not_counted_as_too_small_for_it() -> None:
    store = make_store()
    see_node(store, "n1", gpus=4)
    see_pod(store, make_pod("p1", 4, node="n1"))
    store.apply(Changed(Kind.NODE, make_node("n1", gpus=2)), NOW)
    told = look(make_decider(store), make_request(gpus=4), held_on="n1")
    assert TOO_SMALL not in [each.reason for each in told.ruled_out]
    assert told.own is not None


def test_memory_that_a_bound_pod_asked_for_is_its_own_where_it_runs() -> None:
    store = make_store()
    for node, used_gib in (("n1", 70), ("n2", 30)):
        see_sharing_node(store, node)
        measure_memory(store, used_gib, node=node, now_mono_s=NOW)
    for name, gib in (("own", 60), ("other", 10)):
        see_pod(store, make_sharing_pod(name, gib, node="n1"))
    request = make_request("own", 0, shares=((SHARED_RESOURCE, 1),), gpu_memory_bytes=60 * GIB)
    decider = make_decider(store)
    told = look(decider, request, held_on="n1")
    assert told.own is not None
    assert (told.own.band, told.own.reason) == ("fits", "")
    assert [(each.reason, each.examples) for each in told.ruled_out] == [("not enough GPU memory", ("n2",))]
    # What others ask for is not.
    see_pod(store, make_sharing_pod("past-us", 30, node="n1"))
    told = look(decider, request, held_on="n1")
    assert told.own is not None
    assert told.own.reason == "not enough GPU memory"


def test_a_pod_that_holds_gpus_by_other_names_than_its_node_offers_frees_none_that_are_not_there() -> None:
    store = make_store()
    see_sharing_node(store, "other")
    see_pod(store, make_pod("own", shares={SHARED_RESOURCE: 2}, node="n1"))
    store.apply(Changed(Kind.NODE, make_node("n1", shares={})), 0.0)
    store.apply(Changed(Kind.RESOURCESLICE, make_slice("n1", devices=[gpu(0), gpu(1)])), 0.0)
    assert float(store.snapshot.bound_gpus[store.rows["n1"]]) == 0, "nor holds them"
    request = make_request("own", 0, shares=((SHARED_RESOURCE, 2),))
    told = look(make_decider(store), request, held_on="n1")
    assert told.own is not None
    assert told.own.band == "full"


def test_what_broken_gpus_would_bring_is_what_nobody_else_is_promised() -> None:
    store = make_store()
    see_node(store, "n1", 4)
    decider = make_decider(store)
    request = make_request("own", 4, priority=1)
    assert store.reserve(request, "n1", NOW)
    store.see_samples([("n1", make_sample("n1", [0.5] * 4, ["lost", "ok", "ok", "ok"]), NOW)])
    assert hindrance(look(decider, request), "broken_gpus").helps == 1, "its own promise is its own"
    see_pod(store, make_pod("nominated", 1, nominated="n1", priority=0))
    assert hindrance(look(decider, request), "broken_gpus").helps == 1
    see_pod(store, make_pod("nominated", 1, nominated="n1", priority=1))
    assert hindrance(look(decider, request), "broken_gpus").helps == 0
    see_pod(store, make_pod("nominated", 1))
    assert store.reserve(make_request("other", 1), "n1", NOW) is False
    store.release("uid-own", NOW)
    assert hindrance(look(decider, request), "broken_gpus").helps == 1
    assert store.reserve(make_request("other", 1), "n1", NOW)
    assert hindrance(look(decider, request), "broken_gpus").helps == 0
    store.release("uid-other", NOW)
    see_pod(store, make_pod("bound", 1, node="n1"))
    assert hindrance(look(decider, request), "broken_gpus").helps == 0


def test_what_helps_only_together_is_not_said_to_help() -> None:
    store = make_store()
    see_node(store, "n1", labels=QUARANTINE)
    cordon_and_quarantine = make_node("n1", labels=QUARANTINE, cordoned=True)
    store.apply(Changed(Kind.NODE, cordon_and_quarantine), NOW)
    told = look(make_decider(store), make_request())
    assert hindrance(told, "cordon").helps == 0
    assert "alone would not" in hindrance(told, "cordon").text


def test_cordoned_nodes_are_no_candidates_and_uncordoning_helps() -> None:
    store = make_store()
    see_node(store, "n1")
    cordon(store, "n1")
    told = look(make_decider(store), make_request())
    assert [told.nodes, told.fitting, told.chosen, told.best] == [1, 0, "", ()]
    assert [(each.reason, each.nodes) for each in told.ruled_out] == [("node cordoned", 1)]
    assert [hindrance(told, "cordon").helps, hindrance(told, "cordon").nodes] == [1, ("n1",)]


def test_broken_gpus_are_what_is_lacking() -> None:
    store = make_store()
    see_node(store, "n1")
    states = ["lost"] * 2 + ["ok"] * 6
    store.see_samples([("n1", make_sample("n1", [0.0] * 8, states), NOW)])
    told = look(make_decider(store), make_request(gpus=8))
    assert [(each.reason, each.nodes) for each in told.ruled_out] == [("not enough healthy GPUs", 1)]
    assert hindrance(told, "broken_gpus").helps == 1
    assert hindrance(told, "broken_gpus").nodes == ("n1",)


def test_a_pool_is_waited_for_until_an_instant() -> None:
    store = make_store(POOLS)
    see_node(store, "dc-1", labels={"site": "dc"})
    fill(store, "dc-1", 7)
    see_node(store, "aws-1", labels={"site": "aws"})
    told = look(make_decider(store), make_request(gpus=4, waited_s=100.0))
    assert told.ruled_out[0].reason == "waiting for pool dc"
    pool, free = hindrance(told, "pool"), hindrance(told, "free_gpus")
    assert [pool.helps, pool.nodes, pool.until_unix_s] == [1, ("aws-1",), UNIX + 200.0]
    assert told.unblock[0] is pool
    assert [free.nodes, free.lacking_gpus] == [("dc-1",), 3.0]
    told = look(make_decider(store), make_request(gpus=4, waited_s=301.0))
    assert told.chosen == "aws-1"


def test_a_pod_that_fits_where_kube_scheduler_may_not_offer_it_is_told_what_would_open_others() -> None:
    store = make_store(POOLS)
    see_node(store, "dc-1", labels={"site": "dc"})
    see_node(store, "aws-1", labels={"site": "aws"})
    see_node(store, "aws-2", labels={"site": "aws"})
    fill(store, "aws-2", 8)
    told = look(make_decider(store), make_request(waited_s=100.0))
    assert [each.kind for each in told.unblock] == ["none", "pool"]
    assert [told.unblock[1].nodes, told.unblock[1].until_unix_s] == [("aws-1",), UNIX + 200.0]


def test_what_the_pod_asks_for_itself_may_be_what_holds_it() -> None:
    store = make_store()
    for name in ("a", "b"):
        see_node(store, name)
    fill(store, "a", 8)
    asked = make_request(gpus=2, gpu_models=("*t4*",))
    told = look(make_decider(store), asked)
    [annotation] = told.unblock
    assert [annotation.kind, annotation.helps, annotation.nodes] == ["annotation", 1, ("b",)]
    assert annotation.text.startswith(
        "2 nodes not as the pod's wattbalance.io/gpu-model asks: 1 would take the pod."
    )
    both = look(make_decider(store), make_request(gpus=2, gpu_models=("*t4*",), gpu_memory_bytes=2**50))
    assert [(each.kind, each.annotation, each.helps) for each in both.unblock] == [
        ("together", "", 1),
        ("annotation", "gpu-model", 0),
        ("annotation", "gpu-memory", 0),
    ]


def test_of_slices_without_a_label_what_their_name_promises_is_told() -> None:
    store, name = make_store(), "nvidia.com/mig-1g.10gb"
    store.apply(Changed(Kind.NODE, make_node("sliced", shares={name: 7})), 0.0)
    told = look(make_decider(store), make_request("new", 0, shares=((name, 1),), gpu_memory_bytes=9 * 2**30))
    want = (
        "1 node not as the pod's wattbalance.io/gpu-memory asks: 1 would take the pod. Of slices on 1 node only the "
        f"name tells, and promises 8487Mi: feature discovery, or a label {name}.memory in MiB, tells more."
    )
    assert [each.text for each in told.unblock] == [want]


def test_where_nobody_tells_what_the_pod_asks_for_telling_it_is_named() -> None:
    store = make_store()
    for name, labels in (("told", {"nvidia.com/gpu.memory": "8192"}), ("untold", {})):
        store.apply(Changed(Kind.NODE, make_node(name, 8, labels)), 0.0)
    told = look(make_decider(store), make_request(gpu_memory_bytes=2**40))
    want = (
        "2 nodes not as the pod's wattbalance.io/gpu-memory asks: 2 would take the pod. It may ask for less: told has "
        "most, 8Gi. Nobody tells it of 1 node: run wattbalance's agent there, or label with nvidia.com/gpu.memory."
    )
    assert [each.text for each in told.unblock] == [want]


@pytest.mark.parametrize("bound", [True, False])
def test_what_pods_have_not_taken_yet_is_told_where_it_is_in_the_way(*, bound: bool) -> None:
    store = make_store()
    see_sharing_node(store)
    measure_memory(store, 50, now_mono_s=NOW)
    request = make_request("asks", 0, shares=((SHARED_RESOURCE, 1),), gpu_memory_bytes=15 * GIB)
    if bound:
        see_pod(store, make_sharing_pod("came", 20, node="n1", phase="Running"), NOW)
    else:
        came = make_request("came", 0, shares=((SHARED_RESOURCE, 1),), gpu_memory_bytes=20 * GIB)
        assert store.reserve(came, "n1", NOW)
    more = (
        " What pods there have asked for counts on top of what is measured, until they are bound and have run for a "
        "minute."
    )
    [told] = look(make_decider(store), request).unblock
    assert "It may ask for less: n1 has most, 10Gi." in told.text
    assert told.text.endswith(more)
    if bound:
        measure_memory(store, 70, now_mono_s=NOW + 60)
        [told] = look(make_decider(store), request).unblock
        assert "n1 has most, 10Gi" in told.text
        assert more not in told.text


@pytest.mark.parametrize(
    "reason", [each for each in Reason if each not in (Reason.FITS, Reason.UNKNOWN_NODE)]
)
def test_every_reason_has_its_hindrance(reason: Reason) -> None:
    """Whoever adds a reason says what would end it."""
    if reason is Reason.CHOSEN_BEFORE_NOT_BOUND:
        # It keeps no pod waiting: the node is tried last.
        return
    store = make_store()
    see_node(store, "n1")
    base = World(
        request=make_request(),
        snapshot=store.snapshot,
        kube=kube_filters(store, make_request()),
        selected=np.zeros(store.snapshot.rows, bool),
    )
    code = POOL_CODES if reason is Reason.WAITING_FOR_POOL else reason
    codes = np.full(store.snapshot.rows, code, np.uint8)
    standing = Standing(base, (codes,), store.snapshot.present, np.zeros(store.snapshot.rows, bool))
    row = store.rows["n1"]
    assert [lift.kind for lift in lifts_of(store) if lift.concerned(standing)[row]]


def test_the_nearest_node_and_what_it_lacks() -> None:
    store = make_store()
    for name, held in (("a", 7), ("b", 5), ("c", 8)):
        see_node(store, name)
        fill(store, name, held)
    see_node(store, "small", gpus=2)
    told = look(make_decider(store), make_request(gpus=4))
    free = hindrance(told, "free_gpus")
    assert [free.lacking_gpus, free.nodes[0]] == [1.0, "b"]
    assert free.text.startswith("3 nodes have no 4 GPUs free")
    assert {each.band for each in told.best} == {"full"}
    assert [(each.reason, each.examples) for each in told.ruled_out] == [(TOO_SMALL, ("small",))]


def test_a_pod_larger_than_any_node() -> None:
    store = make_store()
    see_node(store, "n1", gpus=4)
    see_node(store, "n2", gpus=8)
    told = look(make_decider(store), make_request(gpus=16))
    [size] = told.unblock
    assert [size.kind, size.nodes] == ["node_size", ("n2",)]
    assert "the largest has 8" in size.text


def see_shares(store: Store, name: str, **units: int) -> None:
    shares = {f"nvidia.com/{each.replace('_', '-')}": count for each, count in units.items()}
    store.apply(Changed(Kind.NODE, make_node(name, shares=shares)), 0.0)


SEVENTH, HALF = "nvidia.com/mig-1g", "nvidia.com/mig-4g"


@pytest.mark.parametrize(
    ("gpus", "shares", "want_text"),
    [
        (0, ((HALF, 1),), "No node has nvidia.com/mig-4g: its allocatable tells"),
        (1, ((HALF, 1),), "No node has nvidia.com/mig-4g: its allocatable tells"),
        (0, ((SEVENTH, 9),), "No node has 9 slices of 1g; the largest has 7."),
        (5, ((SEVENTH, 1),), "No node has 5 GPUs; the largest has 4."),
        # Each has one of them.
        (1, ((SEVENTH, 1),), "No node has 1 GPU and 1 slice of 1g together."),
    ],
)
def test_a_pod_whose_units_no_node_has(
    gpus: int, shares: tuple[tuple[str, float], ...], want_text: str
) -> None:
    store = make_store()
    see_shares(store, "whole", gpu=4)
    see_shares(store, "sliced", mig_1g=7)
    [size] = look(make_decider(store), make_request(gpus=gpus, shares=shares)).unblock
    assert size.kind == "node_size"
    assert size.text.startswith(want_text)


def test_what_must_end_on_the_nearest_node_of_several_kinds_of_units() -> None:
    store = make_store()
    # Of each kind one node has enough free, and none of both.
    for name, gpus, slices in (("no-slice", 0, 7), ("no-gpu", 2, 0)):
        see_shares(store, name, gpu=2, mig_1g=7)
        held = {"nvidia.com/gpu": gpus, SEVENTH: slices}
        see_pod(store, make_pod(f"on-{name}", node=name, shares=held))
    told = look(make_decider(store), make_request(gpus=2, shares=((SEVENTH, 1),)))
    free = hindrance(told, "free_gpus")
    assert free.text == (
        "2 nodes have no 2 GPUs and 1 slice of 1g free by our count. "
        "Nearest is no-slice: 1 slice of 1g more must end there."
    )
    # A name without the size in it is taken for a whole GPU.
    assert free.lacking_gpus == 1
    told = look(make_decider(store), make_request(gpus=0, shares=((SEVENTH, 8),)))
    assert told.unblock[0].kind == "node_size"


def test_what_is_lacking_of_shares_is_told_in_units_and_counted_in_gpus() -> None:
    store = make_store()
    node = make_node("n1", shares={"nvidia.com/gpu.shared": 8}, labels={"nvidia.com/gpu.replicas": "4"})
    store.apply(Changed(Kind.NODE, node), 0.0)
    see_pod(store, make_pod("fills", node="n1", shares={"nvidia.com/gpu.shared": 7}))
    told = look(make_decider(store), make_request(gpus=0, shares=(("nvidia.com/gpu.shared", 3),)))
    free = hindrance(told, "free_gpus")
    assert "1 node has no 3 GPU replicas free by our count. Nearest is n1: 1 free, 2 more" in free.text
    assert free.lacking_gpus == 0.5


def test_of_several_resources_the_one_that_is_short_is_named() -> None:
    mig = "nvidia.com/mig-1g.10gb"
    store = make_store()
    both = make_node("n1", shares={GPU_RESOURCE: 4, mig: 7})
    store.apply(Changed(Kind.NODE, both), NOW)
    see_pod(store, make_pod("fills", shares={mig: 7}, node="n1"))
    told = look(make_decider(store), make_request(gpus=1, shares=((mig, 2),)))
    free = hindrance(told, "free_gpus")
    assert "2 slices of 1g.10gb more must end there" in free.text
    assert free.lacking_gpus == pytest.approx(2 / 7)
    told = look(make_decider(store), make_request(gpus=0, shares=(("nvidia.com/mig-7g.80gb", 1),)))
    assert [each.kind for each in told.unblock] == ["node_size"]
    assert told.unblock[0].text.startswith("No node has nvidia.com/mig-7g.80gb: its allocatable tells")


def test_an_empty_cluster() -> None:
    told = look(make_decider(make_store()), make_request())
    assert [each.kind for each in told.unblock] == ["no_nodes"]
    assert [told.nodes, told.chosen, told.best, told.ruled_out] == [0, "", (), ()]


def test_nodes_chosen_three_times_without_a_binding_say_so() -> None:
    store = make_store()
    see_node(store, "n1")
    decider = make_decider(store)
    for _ in range(3):
        decider.place(make_request(), all_rows(store), NOW, UNIX)
        store.release("uid-p1", NOW)
    told = look(decider, make_request())
    assert [each.reason for each in told.ruled_out] == ["chosen before, not bound"]
    assert [each.band for each in told.best] == ["chosen_before"]


def test_a_policy_that_fails_is_named_and_not_counted_as_a_decisions() -> None:
    class Broken:
        def score(self, request: PodRequest, snapshot: object) -> ScoreArray:
            return np.full(1, np.nan, np.float32)

    store = make_store()
    see_node(store, "n1")
    decider = make_decider(store)
    for workload, profile in decider.profiles.items():
        scores = (*profile.scores, Weighted("broken", 1.0, cast("Score", Broken())))
        decider.profiles[workload] = Profile(
            name=profile.name,
            workload=workload,
            placement=Placement.DECISIVE,
            expected_load=0.9,
            scores=scores,
        )
    told = look(decider, make_request())
    assert told.failed_policies == ("broken",)
    assert decider.failures.counts == {}


clusters = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 8),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["dc", "aws", "none"]),
    ),
    max_size=25,
)


@given(
    clusters,
    st.tuples(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 10)),
    st.integers(1, 9),
    st.sampled_from([0.0, 400.0]),
)
def test_now_says_what_would_be_decided_and_its_terms_are_the_record_s(
    nodes: list[tuple[float, int, bool, bool, str]],
    weights: tuple[float, float, float],
    gpus: int,
    waited_s: float,
) -> None:
    store = make_store(POOLS)
    open_rows = []
    for index, (busy_frac, bound, quarantined, cordoned, site) in enumerate(nodes):
        name = f"n{index}"
        labels = {"site": site} | (QUARANTINE if quarantined else {})
        see_node(store, name, labels=labels)
        store.apply(Changed(Kind.NODE, make_node(name, labels=labels, cordoned=cordoned)), NOW)
        store.see_samples([(name, make_sample(name, [busy_frac] * 8), NOW)])
        if bound:
            see_pod(store, make_pod(f"b{index}", gpus=bound, node=name), NOW)
        # As kube-scheduler would: it knows of both.
        if not cordoned and gpus <= 8:
            open_rows.append(store.rows[name])
    policies = dict(zip(("least-loaded", "pack", "freshness"), weights, strict=True))
    decider = make_decider(store, weights=policies)
    request = make_request(gpus=gpus, waited_s=waited_s)
    told = look(decider, request)
    record: DecisionRecord = decider.place(request, np.array(open_rows, np.intp), NOW, UNIX).record
    assert told.chosen == record.chosen
    assert told.fitting == record.fitting
    against = {each.reason: each.nodes for each in told.ruled_out if each.reason not in (CORDONED, TOO_SMALL)}
    assert against == record.reasons
    assert [(each.node, each.score) for each in told.best] == [
        (each.node, each.score) for each in record.best
    ]
    for now, before in zip(told.best, decided(record), strict=True):
        assert now.terms == before.terms
        assert (now.pool, now.free_gpus) == (before.pool, before.free_gpus)
        assert added_up(now) == now.score == before.score
    assert bool(told.fitting) == (told.unblock[0].kind == "none")
    assert all(each.nodes for each in told.unblock if each.kind != "no_nodes")


def test_what_is_called_a_gpu_and_is_a_part_of_one_is_said_to_be_that() -> None:
    store, replicas = make_store(), {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "2"}
    store.apply(Changed(Kind.NODE, make_node("shared", 8, replicas)), 0.0)
    see_pod(store, make_pod("fills", 7, node="shared"))
    asks = make_request(gpus=3)
    free = hindrance(look(make_decider(store), asks), "free_gpus")
    assert free.text.startswith(
        "1 node has no 3 GPU replicas free by our count. Nearest is shared: 1 free, 2 more"
    )
    store.apply(Changed(Kind.NODE, make_node("whole", 2)), 0.0)
    # It is among those that are too small.
    assert said(store, asks.units) == "3 GPUs or GPU replicas"
    [size] = look(make_decider(store), make_request(gpus=9)).unblock
    assert size.text.startswith("No node has 9 GPUs or GPU replicas; the largest has 8.")
    only_whole = np.arange(store.snapshot.rows) == store.rows["whole"]
    assert said(store, asks.units, only_whole) == "3 GPUs"
    single = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"}
    store.apply(Changed(Kind.NODE, make_node("sliced", 7, single)), 0.0)
    only_sliced = np.arange(store.snapshot.rows) == store.rows["sliced"]
    assert said(store, (("nvidia.com/gpu", 1.0),), only_sliced) == "1 GPU slice"
