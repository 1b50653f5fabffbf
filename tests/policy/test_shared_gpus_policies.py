"""Policies where GPUs are shared or sliced: memory that is free, parts of GPUs, broken ones among several kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, Reason
from scheduler.policy import registry
from scheduler.policy.base import Filter, Score
from scheduler.policy.memory import Memory
from scheduler.telemetry.sample import GpuInventory, Inventory, Sample
from tests.builders import make_node, make_pod, make_request, make_sample, make_store, see_pod

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
SEVENTH, THREE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
GIB = 2**30
REPLICAS = {"nvidia.com/gpu.replicas": "4"}
NOW = 10.0


def see_node(
    store: Store,
    shares: dict[str, int],
    gpus: int = 2,
    labels: dict[str, str] | None = None,
    name: str = "n1",
) -> None:
    """A node with an agent that found GPUs of 80 GiB."""
    given = REPLICAS if labels is None else labels
    store.apply(Changed(Kind.NODE, make_node(name, labels=given, shares=shares)), 0.0)
    found = [GpuInventory(uuid=f"{name}-{i}", model="H100", memory_total_bytes=80 * GIB) for i in range(gpus)]
    store.see_inventory(name, Inventory(v=1, node=name, gpus=found))


def read(
    store: Store,
    *used_gib: float | None,
    state: list[str] | None = None,
    name: str = "n1",
    now_mono_s: float = NOW,
) -> None:
    """A sample with what is used of each GPU's memory."""
    sample = make_sample(name, [0.5] * len(used_gib), state)
    values = {each: getattr(sample, each) for each in Sample.__struct_fields__}
    used = [None if each is None else int(each * GIB) for each in used_gib]
    store.see_samples([(name, Sample(**{**values, "mem_used_bytes": used}), now_mono_s)])


def ask(gib: float, name: str = "new", resource: str = SHARED) -> PodRequest:
    return make_request(name, 0, shares=((resource, 1),), gpu_memory_bytes=int(gib * GIB))


def verdict(store: Store, request: PodRequest, name: str = "n1") -> Reason:
    policy = registry.build("memory", {})
    assert isinstance(policy, Filter)
    return Reason(policy.filter(request, store.snapshot_for(request))[store.rows[name]])


def most_gib(store: Store, resource: str = SHARED) -> int:
    """What a pod may ask for at most here, in whole GiB; -1 if that is not known."""
    if verdict(store, ask(1, resource=resource)) is Reason.UNKNOWN_MEMORY:
        return -1
    fitting = [gib for gib in range(1, 100) if verdict(store, ask(gib, resource=resource)) is Reason.FITS]
    assert fitting == list(range(1, len(fitting) + 1))
    return len(fitting)


# --- memory --------------------------------------------------------------------------------------------------------


def test_what_a_slice_may_or_may_not_have_by_its_name_alone_is_unknown() -> None:
    store, slices = make_store(), "nvidia.com/mig-1g.10gb"
    see_node(store, {slices: 7}, labels={})
    see_node(store, {slices: 7}, labels={f"{slices}.memory": "9856"}, name="told")
    for gib, want, want_told in (
        (8, Reason.FITS, Reason.FITS),
        (9, Reason.UNKNOWN_MEMORY, Reason.FITS),
        (10, Reason.UNKNOWN_MEMORY, Reason.TOO_LITTLE_MEMORY),
        (10.01, Reason.TOO_LITTLE_MEMORY, Reason.TOO_LITTLE_MEMORY),
    ):
        assert verdict(store, ask(gib, resource=slices)) is want
        assert verdict(store, ask(gib, resource=slices), "told") is want_told


@given(
    named=st.integers(1, 200),
    has_mib=st.integers(1, 200 * 1024),
    asked_mib=st.integers(1, 220 * 1024),
    labelled=st.booleans(),
)
def test_a_slice_never_fits_or_is_too_small_against_what_its_name_says(
    named: int, has_mib: int, asked_mib: int, *, labelled: bool
) -> None:
    """Whatever a slice has that is named by NVIDIA's rule: by its name alone it is never judged wrongly."""
    name = f"nvidia.com/mig-1g.{named}gb"
    has_mib = min(max(has_mib, int(named * 0.895e9 / 2**20) + 1), named * 1024)
    store = make_store()
    see_node(store, {name: 7}, labels={f"{name}.memory": str(has_mib)} if labelled else {})
    told = verdict(store, ask(asked_mib / 1024, resource=name))
    want = Reason.FITS if asked_mib <= has_mib else Reason.TOO_LITTLE_MEMORY
    assert told is want or (told is Reason.UNKNOWN_MEMORY and not labelled)
    if told is Reason.UNKNOWN_MEMORY:
        assert 0.89e9 * named < asked_mib * 2**20 <= named * GIB


def test_a_slice_of_which_only_the_name_is_known_may_open_no_other_pool() -> None:
    """As large as its GPU, it is judged as a whole one: what is unknown may yet be enough."""
    store, whole = make_store(), "nvidia.com/mig-7g.80gb"
    see_node(store, {whole: 1}, labels={})
    policy = registry.build("memory", {})
    assert isinstance(policy, Memory)
    for gib, want in ((60, True), (78, True), (81, False)):
        assert policy.could(ask(gib, resource=whole), store.snapshot)[store.rows["n1"]] == want


def test_where_gpus_are_shared_what_the_fullest_has_free_counts() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 50)
    assert most_gib(store) == 30
    read(store, 10, 80)
    assert verdict(store, ask(1)) is Reason.TOO_LITTLE_MEMORY, "full is not unknown"


def test_free_memory_that_nobody_measures_is_unknown() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    assert most_gib(store) == -1
    read(store, 10, None)
    assert most_gib(store) == -1, "of one of them"
    read(store, 10, 10)
    assert most_gib(store) == 70
    # A sample that does not tell, of an agent that cannot read it any more.
    store.see_samples([("n1", make_sample("n1", [0.5, 0.5]), NOW + 1)])
    assert most_gib(store) == -1
    read(store, 10, 10)
    store.tick(NOW + 1000)
    assert most_gib(store) == -1, "too long ago"
    read(store, 10, 10)
    store.see_status("n1", online=False)
    assert most_gib(store) == -1


def test_what_was_read_before_gpus_were_whole_for_a_while_is_forgotten() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 10)
    for shares in ({GPU: 2}, {SHARED: 8}):
        store.apply(Changed(Kind.NODE, make_node("n1", labels=REPLICAS, shares=shares)), NOW)
    assert most_gib(store) == -1
    read(store, 20, 20)
    assert most_gib(store) == 60


def test_a_broken_gpu_is_not_the_fullest() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 79, state=["ok", "lost"])
    assert most_gib(store) == 70


def test_what_is_promised_and_not_taken_yet_is_not_free() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 10)
    assert store.reserve(ask(40, "first"), "n1", NOW)
    # Whichever GPU it comes to: the fullest, of which 10 are taken, has 30 left.
    assert most_gib(store) == 30
    assert store.reserve(ask(40, "second"), "n1", NOW)
    assert store.reserve(ask(40, "third"), "n1", NOW)
    assert most_gib(store) == 10, "three times 40 on two"
    store.release("uid-third", NOW)
    store.release("uid-second", NOW)
    assert most_gib(store) == 30
    store.release("uid-first", NOW)
    assert most_gib(store) == 70


def test_a_promise_does_not_count_against_the_pod_that_has_it() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 10)
    for _ in range(3):
        assert verdict(store, ask(70, "own")) is Reason.FITS
        assert store.reserve(ask(70, "own"), "n1", NOW)
    assert verdict(store, ask(70, "other")) is Reason.TOO_LITTLE_MEMORY


def test_who_was_promised_a_place_has_it_beside_those_that_were_let_in_after() -> None:
    """They were let in by what is left on all GPUs, it comes back to one."""
    store = make_store()
    see_node(store, {SHARED: 16}, gpus=4)
    read(store, 4, 4, 4, 4)
    assert store.reserve(ask(40, "own"), "n1", NOW)
    others = 0
    while verdict(store, ask(25, f"p{others}")) is Reason.FITS:
        assert store.reserve(ask(25, f"p{others}"), "n1", NOW)
        others += 1
    assert others == 7
    assert verdict(store, ask(40)) is Reason.TOO_LITTLE_MEMORY
    assert verdict(store, ask(40, "own")) is Reason.FITS


def bound_pod(gib: float | None = None, phase: str = "", name: str = "bound") -> Pod:
    said = {} if gib is None else {"wattbalance.io/gpu-memory": f"{gib}Gi"}
    return make_pod(name, shares={SHARED: 1}, node="n1", annotations=said, phase=phase)


def test_a_bound_pod_has_what_it_asked_for_until_it_ends() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 10)
    assert store.reserve(ask(50, "bound"), "n1", NOW)
    see_pod(store, bound_pod(50), NOW)
    assert most_gib(store) == 20
    see_pod(store, bound_pod(50, "Running"), NOW)
    # It may be its own that is measured, or another's: until it can be taken to have its own, it counts twice.
    read(store, 10, 25, now_mono_s=NOW + 59)
    assert most_gib(store) == 5
    store.tick(NOW + 60)
    assert most_gib(store) == 5, "by the sample, not by the clock"
    read(store, 10, 25, now_mono_s=NOW + 60)
    assert most_gib(store) == 30, "what it asked for, of which it has not taken all"
    read(store, 10, 52, now_mono_s=NOW + 61)
    assert most_gib(store) == 28
    store.apply(Gone(Kind.POD, bound_pod(50)), NOW + 61)
    assert most_gib(store) == 28
    read(store, 10, 10, now_mono_s=NOW + 62)
    assert most_gib(store) == 70


def test_what_others_have_taken_is_not_promised_to_those_who_ask_at_once() -> None:
    """As much as is free goes once, however many ask before anybody has taken it."""
    store = make_store()
    see_node(store, {SHARED: 4}, gpus=1)
    for second, gib in enumerate((7, 7, 1, 0.5)):
        # What is taken is of somebody who asked for nothing.
        read(store, 72, now_mono_s=NOW + second)
        fits = verdict(store, ask(gib, f"p{second}"))
        assert fits is (Reason.FITS if second in {0, 2} else Reason.TOO_LITTLE_MEMORY)
        if fits is Reason.FITS:
            assert store.reserve(ask(gib, f"p{second}"), "n1", NOW + second)
            see_pod(store, bound_pod(gib, name=f"p{second}"), NOW + second)
    # One that never runs never takes it, and is let in for it all the same.
    read(store, 72, now_mono_s=NOW + 1000)
    assert verdict(store, ask(0.5)) is Reason.TOO_LITTLE_MEMORY


def test_each_pod_settles_in_its_own_time_and_what_is_said_of_it_between_does_not_put_it_off() -> None:
    store = make_store()
    see_node(store, {SHARED: 4}, gpus=1)
    read(store, 40)
    for name, after_s in (("a", 0), ("b", 20), ("a", 50)):
        see_pod(store, bound_pod(20, "Running", name), NOW + after_s)
    for after_s, want_gib in ((59, 0), (60, 20), (79, 20), (80, 40)):
        read(store, 40, now_mono_s=NOW + after_s)
        assert most_gib(store) == want_gib
    # Nor does a node that goes and comes: what its agent tells next has it.
    node = make_node("n1", labels=REPLICAS, shares={SHARED: 4})
    store.apply(Gone(Kind.NODE, node), NOW + 81)
    store.apply(Changed(Kind.NODE, node), NOW + 82)
    assert most_gib(store) == -1
    read(store, 40, now_mono_s=NOW + 83)
    assert most_gib(store) == 40
    # A pod that comes with the uid of one that is gone has only begun.
    store.apply(Gone(Kind.POD, bound_pod(20, name="a")), NOW + 84)
    see_pod(store, bound_pod(20, "Running", "a"), NOW + 84)
    assert most_gib(store) == 20


def test_a_pod_that_has_not_taken_its_memory_frees_only_its_ask() -> None:
    """As a victim, or where it is explained as if it came now."""
    store = make_store()
    see_node(store, {SHARED: 4}, gpus=1)
    read(store, 40)
    for name in ("a", "b"):
        see_pod(store, bound_pod(15, "Running", name), NOW)
    index = store.snapshot.resources[SHARED]

    def gib_without(*uids: str, request: PodRequest | None = None) -> float:
        snapshot = store.snapshot_for(request or ask(1), gone={"n1": uids})
        return float(snapshot.unit_memory_bytes[index, store.rows["n1"]] / GIB)

    assert most_gib(store) == 10
    assert [gib_without("uid-a"), gib_without("uid-a", "uid-b")] == [25, 40]
    # What others may not have taken is nothing against a pod where it runs.
    assert gib_without("uid-a", request=ask(15, "a")) == 55
    read(store, 40, now_mono_s=NOW + 60)
    assert most_gib(store) == 40
    assert [gib_without("uid-a"), gib_without("uid-a", "uid-b")] == [55, 70]


def test_pods_on_their_way_for_whom_room_is_made_have_taken_nothing() -> None:
    store = make_store()
    see_node(store, {SHARED: 4}, gpus=1)
    read(store, 40)
    annotations = {"wattbalance.io/gpu-memory": "15Gi"}
    see_pod(store, make_pod("nominated", shares={SHARED: 1}, nominated="n1", annotations=annotations), NOW)
    assert most_gib(store) == 25
    assert store.reserve(ask(20, "promised"), "n1", NOW)
    assert most_gib(store) == 5


def test_a_bound_pod_that_is_annotated_later_has_what_it_asks_for_then() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    read(store, 10, 10)
    for gib, want_gib in ((None, 70), (50, 20), (20, 50)):
        see_pod(store, bound_pod(gib), NOW)
        assert most_gib(store) == want_gib
    # Of one that has run for long, nothing is to come.
    see_pod(store, bound_pod(None, "Running"), NOW)
    read(store, 30, 10, now_mono_s=NOW + 60)
    see_pod(store, bound_pod(20, "Running"), NOW + 60)
    assert most_gib(store) == 50


def test_pods_on_whole_gpus_and_slices_ask_nothing_of_shared_memory() -> None:
    store = make_store()
    see_node(store, {GPU: 1, SHARED: 4, SEVENTH: 7}, gpus=3)
    read(store, 10, 10, 10)
    annotations = {"wattbalance.io/gpu-memory": "79Gi"}
    see_pod(store, make_pod("whole", shares={GPU: 1}, node="n1", annotations=annotations), NOW)
    assert store.reserve(ask(9, "slice", SEVENTH), "n1", NOW)
    assert most_gib(store) == 70
    assert most_gib(store, GPU) == 80


def test_a_slice_has_its_own_memory_whatever_is_used() -> None:
    store = make_store()
    labels = {f"{SEVENTH}.memory": "9984", f"{THREE}.memory": "40448", f"{SEVENTH}.count": "7"}
    see_node(store, {SEVENTH: 7, THREE: 1}, labels=labels)
    read(store, 79, 79)
    assert [most_gib(store, SEVENTH), most_gib(store, THREE)] == [9, 39]
    both = make_request("both", 0, shares=((SEVENTH, 1), (THREE, 1)), gpu_memory_bytes=20 * GIB)
    assert verdict(store, both) is Reason.TOO_LITTLE_MEMORY, "each unit must have as much"


def test_what_is_free_of_a_slice_that_is_shared_nobody_measures() -> None:
    store = make_store()
    labels = {f"{SEVENTH}.replicas": "2", f"{SEVENTH}.memory": "9984", f"{SEVENTH}.count": "7"}
    see_node(store, {SEVENTH: 14, SHARED: 4}, labels=labels | REPLICAS)
    read(store, 10, 10)
    assert [most_gib(store, SEVENTH), most_gib(store)] == [-1, 70]


def test_a_replica_of_mps_never_has_more_than_its_part() -> None:
    store = make_store()
    see_node(store, {SHARED: 8}, labels=REPLICAS | {"nvidia.com/gpu.sharing-strategy": "mps"})
    read(store, 0, 0)
    assert most_gib(store) == 20
    # Nor less: what the others may take is limited too, and none of it needs to be measured.
    store.tick(NOW + 1000)
    assert most_gib(store) == 20


@given(
    used=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    asks=st.lists(st.integers(1, 80), max_size=6),
    bound=st.integers(0, 6),
)
def test_no_order_of_asking_makes_more_memory_than_there_is(
    used: list[int], asks: list[int], bound: int
) -> None:
    """Whatever is granted one after another has room on the GPUs, by their sum and by the largest."""
    store = make_store()
    see_node(store, {SHARED: 8 * len(used)}, gpus=len(used), labels={"nvidia.com/gpu.replicas": "8"})
    read(store, *used)
    granted: list[int] = []
    for index, gib in enumerate(asks):
        if verdict(store, ask(gib, f"p{index}")) is not Reason.FITS:
            continue
        granted.append(gib)
        assert store.reserve(ask(gib, f"p{index}"), "n1", NOW)
        if index < bound:
            told = {"wattbalance.io/gpu-memory": f"{gib}Gi"}
            see_pod(store, make_pod(f"p{index}", shares={SHARED: 1}, node="n1", annotations=told), NOW)
    # Each was granted what all before it, which have taken nothing of what is used, had left on the fullest.
    for place, gib in enumerate(granted):
        before = granted[:place]
        assert max(used) + max(sum(before) / len(used), *before, 0) + gib <= 80
    if len(used) == 1:
        assert used[0] + sum(granted) <= 80


# --- parts of GPUs ---------------------------------------------------------------------------------------------------


def scores(name: str, store: Store, request: PodRequest) -> dict[str, float]:
    policy = registry.build(name, {})
    assert isinstance(policy, Score)
    answer = policy.score(request, store.snapshot_for(request))
    return {node: round(float(answer[row]), 4) for node, row in store.rows.items()}


def test_pack_counts_parts_of_gpus() -> None:
    store = make_store()
    for name, held in (("empty", 0), ("part", 5), ("whole", 0)):
        see_node(store, {GPU: 2} if name == "whole" else {SHARED: 8}, name=name)
        for index in range(held):
            see_pod(store, make_pod(f"{name}-{index}", shares={SHARED: 1}, node=name), NOW)
    request = make_request("new", 0, shares=((SHARED, 1),))
    # Of two GPUs 0.5 are left there, and 1.75 on the other.
    found = scores("pack", store, request)
    assert (found["part"], found["empty"]) == (1 - 0.5 / 2, 1 - 1.75 / 2)


def test_least_loaded_counts_the_part_of_a_gpu_that_a_pod_takes() -> None:
    store = make_store()
    see_node(store, {SHARED: 8}, name="quarters")
    see_node(store, {SEVENTH: 14}, name="sevenths")
    for name in ("quarters", "sevenths"):
        store.see_samples([(name, make_sample(name, [0.0, 0.0]), NOW)])
    either = make_request("new", 0, shares=((SHARED, 1),), expected_load=0.8)
    assert scores("least-loaded", store, either)["quarters"] == round(1 - 0.8 / 4 / 2, 4)
    slice_of = make_request("new", 0, shares=((SEVENTH, 1),), expected_load=0.7)
    assert scores("least-loaded", store, slice_of)["sevenths"] == round(1 - 0.7 / 7 / 2, 4)
    # And so does what is promised.
    assert store.reserve(either, "quarters", NOW)
    assert store.snapshot.pending_load[store.rows["quarters"]] == pytest.approx(0.8 / 4)


@given(
    units=st.dictionaries(st.sampled_from([GPU, SHARED, SEVENTH, THREE]), st.integers(0, 14)),
    asked=st.dictionaries(
        st.sampled_from([SHARED, SEVENTH, THREE, "nvidia.com/mig-9g.9gb"]), st.integers(1, 4)
    ),
    gpus=st.integers(0, 4),
    lost=st.integers(0, 4),
)
def test_scores_of_any_mix_are_in_range(
    units: dict[str, int], asked: dict[str, int], gpus: int, lost: int
) -> None:
    store = make_store()
    see_node(store, units, gpus=gpus)
    states = ["lost"] * min(lost, gpus) + ["ok"] * (gpus - min(lost, gpus))
    store.see_samples([("n1", make_sample("n1", [0.5] * gpus, states), NOW)])
    request = make_request("new", 1, shares=tuple(sorted(asked.items())), gpu_memory_bytes=GIB)
    for name in registry.known():
        policy = registry.build(name, {})
        if isinstance(policy, Score):
            score = policy.score(request, store.snapshot)
            assert np.isfinite(score).all()
            assert 0 <= score.min() <= score.max() <= 1
        if isinstance(policy, Filter):
            assert policy.filter(request, store.snapshot).dtype == np.uint8


# --- broken GPUs -----------------------------------------------------------------------------------------------------


def lacks(store: Store, resource: str, count: int = 1) -> bool:
    policy = registry.build("devices", {})
    assert isinstance(policy, Filter)
    request = make_request("new", 0, shares=((resource, count),))
    code = policy.filter(request, store.snapshot_for(request))[store.rows["n1"]]
    assert code in {Reason.FITS, Reason.BROKEN_GPUS}
    return bool(code)


def lose(store: Store, gpus: int, lost: int) -> None:
    states = ["lost"] * lost + ["ok"] * (gpus - lost)
    store.see_samples([("n1", make_sample("n1", [0.5] * gpus, states), NOW)])


def test_replicas_of_a_broken_gpu_are_lacking_once_the_rest_is_held() -> None:
    store = make_store()
    see_node(store, {SHARED: 8})
    lose(store, 2, 1)
    for index in range(4):
        assert not lacks(store, SHARED), f"{index} of 4 on the sound one are held"
        see_pod(store, make_pod(f"p{index}", shares={SHARED: 1}, node="n1"), NOW)
    assert lacks(store, SHARED)


@pytest.mark.parametrize("gpus", [1, 2, 6, 7, 8])
def test_sound_slices_are_never_lacking_by_rounding(gpus: int) -> None:
    store = make_store()
    see_node(store, {SEVENTH: 7 * gpus}, gpus=gpus)
    lose(store, gpus, 0)
    for index in range(7 * gpus):
        assert not lacks(store, SEVENTH), f"{index} are held"
        see_pod(store, make_pod(f"p{index}", shares={SEVENTH: 1}, node="n1"), NOW)


def test_on_a_node_of_several_kinds_a_broken_gpu_takes_one_whole_gpu_of_all() -> None:
    store = make_store()
    see_node(store, {GPU: 2, SHARED: 8}, gpus=4)
    lose(store, 4, 1)
    see_pod(store, make_pod("whole", shares={GPU: 2}, node="n1"), NOW)
    # Three are sound and two are held: one is left, in quarters.
    assert not lacks(store, SHARED, 4)
    assert lacks(store, SHARED, 5)
