"""What a node offers, from the labels that NVIDIA's device plugin and GPU feature discovery write, and from worse ones.

Source of the label sets: internal/lm/resource.go and mig-strategy.go of k8s-device-plugin (0.12 to 0.17); the MIG user
guide for profiles; `nvidia-smi mig -lgip` of each model for their memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.cluster.shares import MOST_TOLD, Offer, is_gpu_resource, model_of, offers, words

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
GIB = 2.0**30
SEVENTH = "nvidia.com/mig-1g.10gb"


def discovered(
    product: str, count: int, replicas: int = 1, strategy: str = "none", memory_mib: int = 81559
) -> dict[str, str]:
    """Labels of GPU feature discovery for whole GPUs, or for the slices of strategy `single`."""
    return {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.replicas": str(replicas),
        "nvidia.com/gpu.sharing-strategy": strategy,
        "nvidia.com/gpu.memory": str(memory_mib),
        "nvidia.com/gpu.family": "hopper",
        "nvidia.com/gpu.compute.major": "9",
        "nvidia.com/mig.capable": "true",
        "nvidia.com/mig.strategy": "mixed",
        "nvidia.com/mps.capable": "false",
    }


def sliced(profile: str, count: int, memory_mib: int, replicas: int = 1) -> dict[str, str]:
    """Labels of strategy `mixed` for one profile."""
    base = f"nvidia.com/mig-{profile}"
    return {
        f"{base}.product": f"NVIDIA-H100-80GB-HBM3-MIG-{profile}",
        f"{base}.count": str(count),
        f"{base}.replicas": str(replicas),
        f"{base}.sharing-strategy": "none" if replicas == 1 else "time-slicing",
        f"{base}.memory": str(memory_mib),
        f"{base}.multiprocessors": "16",
        f"{base}.slices.gi": "1",
        f"{base}.slices.ci": "1",
    }


def only(allocatable: Mapping[str, str], labels: Mapping[str, str], **told: object) -> Offer:
    """The one offer, of labels that contradict nothing."""
    found, wrong = offers(allocatable, labels, **told)  # type: ignore[arg-type]  # the tests' own keywords
    assert wrong == ()
    [offer] = found.values()
    return offer


def gpus_in(found: Mapping[str, Offer]) -> float:
    return sum(offer.units * offer.gpus for offer in found.values())


# --- as it should be -------------------------------------------------------------------------------------------------


def test_whole_gpus_are_whole_with_and_without_labels() -> None:
    want_whole = Offer(8.0)
    assert only({GPU: "8", "cpu": "96"}, {}) == want_whole
    assert only({GPU: "8"}, discovered("NVIDIA-H100-80GB-HBM3", 8)) == want_whole
    assert offers({GPU: "0", "cpu": "96"}, {}) == ({}, ())
    assert offers({}, {}) == ({}, ())


@pytest.mark.parametrize("gpus", [None, 2])
def test_replicas_under_the_gpus_own_name(gpus: int | None) -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 2, replicas=4, strategy="time-slicing")
    assert only({GPU: "8"}, labels, gpus=gpus) == Offer(8.0, 0.25, shared=True)


@pytest.mark.parametrize("gpus", [None, 2])
def test_renamed_replicas(gpus: int | None) -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3", 2, replicas=4, strategy="time-slicing")
    # Once renamed, a kubelet that knew the old name goes on to list it, as 0.
    assert only({SHARED: "8", GPU: "0"}, labels, gpus=gpus) == Offer(8.0, 0.25, shared=True)


def test_whole_gpus_beside_renamed_replicas_are_whole() -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3", 4, replicas=4, strategy="time-slicing")
    found, wrong = offers({GPU: "2", SHARED: "8"}, labels)
    assert wrong == ()
    assert found == {GPU: Offer(2.0), SHARED: Offer(8.0, 0.25, shared=True)}


def test_renamed_replicas_without_labels_are_counted_by_what_the_agent_found() -> None:
    assert only({SHARED: "8"}, {}, gpus=2) == Offer(8.0, 0.25, shared=True)


def test_whole_and_sliced_gpus_are_none_that_replicas_without_labels_share() -> None:
    found, wrong = offers({GPU: "4", SHARED: "8", SEVENTH: "7"}, {}, gpus=7)
    assert wrong == ()
    assert found[GPU] == Offer(4.0)
    assert found[SHARED] == Offer(8.0, 0.25, shared=True)
    # So all add up to what the agent found.
    assert sum(offer.units * offer.gpus for offer in found.values()) == pytest.approx(7)


def test_whole_slices_are_none_that_replicas_of_slices_share() -> None:
    found, wrong = offers({SEVENTH: "7", SEVENTH + ".shared": "14"}, {SEVENTH + ".count": "14"})
    assert wrong == ()
    assert sum(offer.units * offer.gpus for offer in found.values()) == pytest.approx(2)


def test_a_replica_of_mps_has_its_part_of_the_memory_and_no_more() -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 2, replicas=4, strategy="mps")
    # Not free for all: the plugin sets each client's limit.
    assert only({GPU: "8"}, labels) == Offer(8.0, 0.25, memory_frac=0.25)


@pytest.mark.parametrize(
    ("profile", "model", "memory_mib", "want_gpus"),
    [
        ("1g.10gb", "NVIDIA-H100-80GB-HBM3", 9984, 1 / 7),
        ("1g.10gb.me", "NVIDIA-H100-80GB-HBM3", 9984, 1 / 7),
        ("3g.40gb", "NVIDIA-H100-80GB-HBM3", 40448, 3 / 7),
        ("7g.80gb", "NVIDIA-H100-80GB-HBM3", 81152, 1),
        ("1g.23gb", "NVIDIA-B200", 20992, 1 / 7),
        ("4g.90gb", "NVIDIA-B200", 90880, 4 / 7),
        ("1g.6gb", "NVIDIA-A30", 5952, 1 / 4),
        ("2g.12gb.me", "NVIDIA-A30", 11968, 2 / 4),
        ("4g.24gb", "NVIDIA-A30", 24000, 1),
        ("1g.5gb", "NVIDIA-A30X", 5952, 1 / 4),
        ("1g.24gb.gfx", "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", 24192, 1 / 4),
        ("1g.24gb-me", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 24192, 1 / 4),
        ("1g.24gb.me.all", "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", 24192, 1 / 4),
        ("1g.24gb", "NVIDIA-RTX-PRO-5000-Blackwell", 24192, 1 / 2),
        # A compute instance of a slice is its own part of the GPU.
        ("1c.3g.20gb", "NVIDIA-A100-SXM4-40GB", 19968, 1 / 7),
    ],
)
def test_slices_of_strategy_mixed(profile: str, model: str, memory_mib: int, want_gpus: float) -> None:
    labels = discovered(model, 1, replicas=0) | sliced(profile, 2, memory_mib)
    offer = only({f"nvidia.com/mig-{profile}": "2"}, labels, gpus=1)
    assert offer == Offer(2.0, want_gpus, memory_mib * 2.0**20)


@pytest.mark.parametrize(
    ("profile", "has_gib"), [("1g.5gb", 4.75), ("1g.18gb", 16.0), ("1g.23gb", 20.5), ("1g.24gb", 20.0)]
)
def test_a_slice_that_no_label_describes_is_not_taken_for_larger_than_it_is(
    profile: str, has_gib: float
) -> None:
    offer = only({f"nvidia.com/mig-{profile}": "7"}, {})
    assert offer.gpus == 1 / 7
    assert 0.9 * has_gib * GIB > offer.memory_bytes * 0.9 > 0.7 * has_gib * GIB
    assert offer.memory_bytes <= has_gib * GIB


@pytest.mark.parametrize("tail", ["", ".me", "me", "-SHARED"])
def test_slices_of_strategy_single_are_called_gpus(tail: str) -> None:
    labels = discovered(f"NVIDIA-A100-SXM4-40GB-MIG-1g.5gb{tail}", 14, memory_mib=4864)
    # Two GPUs, as the agent finds.
    assert only({GPU: "14"}, labels, gpus=2) == Offer(14.0, 1 / 7, 4864 * 2.0**20)


def test_replicas_of_slices_single_and_mixed() -> None:
    product = "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED"
    labels = discovered(product, 7, replicas=2, strategy="time-slicing", memory_mib=4864)
    want = Offer(14.0, 1 / 14, 4864 * 2.0**20, shared=True)
    assert only({GPU: "14"}, labels, gpus=1) == want
    labels = discovered("NVIDIA-H100-80GB-HBM3", 1, replicas=0) | sliced("1g.10gb", 7, 4864, replicas=2)
    assert only({"nvidia.com/mig-1g.10gb": "14"}, labels, gpus=1) == want
    assert only({"nvidia.com/mig-1g.10gb.shared": "14"}, labels, gpus=1) == want


def test_a_node_with_whole_gpus_and_slices_of_others() -> None:
    # The label counts both kinds of one model.
    labels = discovered("NVIDIA-H100-80GB-HBM3", 8) | sliced("3g.40gb", 8, 40448) | sliced("1g.10gb", 4, 9984)
    allocatable = {GPU: "4", "nvidia.com/mig-3g.40gb": "8", "nvidia.com/mig-1g.10gb": "4"}
    found, wrong = offers(allocatable, labels, gpus=8)
    assert wrong == ()
    assert found[GPU] == Offer(4.0)
    assert gpus_in(found) == pytest.approx(8.0)


@pytest.mark.parametrize("gpus", [None, 8])
def test_replicas_of_the_few_gpus_that_are_not_sliced(gpus: int | None) -> None:
    # Six of eight are sliced. Eight units on two: as many as there are GPUs, and yet replicas.
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 8, replicas=4, strategy="time-slicing")
    labels |= sliced("1g.10gb", 42, 9984)
    found, wrong = offers({GPU: "8", "nvidia.com/mig-1g.10gb": "42"}, labels, gpus=gpus)
    assert wrong == ()
    assert found[GPU] == Offer(8.0, 0.25, shared=True)
    assert gpus_in(found) == pytest.approx(8.0)


def test_sums_of_slices_that_round_up_take_no_gpu_more() -> None:
    # In 64 bits these are 6.000000000000001 GPUs of eight: two are left, and whole.
    slices = {"nvidia.com/mig-2g.20gb": "4", "nvidia.com/mig-3g.40gb": "11", "nvidia.com/mig-1g.10gb": "1"}
    found, wrong = offers({**slices, GPU: "2"}, {f"{GPU}.replicas": "2"}, gpus=8)
    assert found[GPU] == Offer(2.0)
    assert wrong == (
        "label nvidia.com/gpu.replicas is 2, but allocatable nvidia.com/gpu is 2, of 2 that are there",
    )


def test_renamed_replicas_are_replicas_however_few_of_the_gpus_they_are_made_of() -> None:
    found, _ = offers({SHARED: "4"}, {f"{GPU}.replicas": "4"}, gpus=4)
    assert found[SHARED] == Offer(4.0, 0.25, shared=True)


def test_more_whole_slices_than_labels_count_leave_none_that_replicas_share() -> None:
    found, wrong = offers({SEVENTH: "7", f"{SEVENTH}.shared": "4"}, {f"{SEVENTH}.count": "1"})
    assert found[f"{SEVENTH}.shared"].gpus == 1 / 7
    assert wrong == (
        f"{SEVENTH}.shared is allocatable, but no label {SEVENTH}.replicas says how many share a GPU",
    )


def test_a_slice_is_a_gpu_at_most_whatever_its_model_is_known_for() -> None:
    assert only({"nvidia.com/mig-7g.40gb": "1"}, {}, model="NVIDIA A30").gpus == 1


def test_replicas_of_slices_by_mps_have_their_part_of_the_slices_memory() -> None:
    labels = sliced("1g.10gb", 7, 4864, replicas=2) | {f"{SEVENTH}.sharing-strategy": "mps"}
    want = Offer(14.0, 1 / 14, 2432 * 2.0**20, memory_frac=0.5)
    assert only({SEVENTH: "14"}, labels, gpus=1) == want


def test_gpus_of_two_models_are_labelled_with_the_count_of_one() -> None:
    labels = discovered("Tesla-T4-SHARED", 2, replicas=4, strategy="time-slicing")
    assert only({GPU: "16"}, labels) == Offer(16.0, 0.25, shared=True)


def test_replicas_of_gpus_that_the_agent_did_not_find_stay_replicas() -> None:
    # One of four fell off the bus before the agent came up; the plugin has not noticed.
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 4, replicas=4, strategy="time-slicing")
    assert gpus_in({GPU: only({GPU: "16"}, labels, gpus=3)}) == 4


def test_with_some_gpus_lost_the_rest_stay_replicas() -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 2, replicas=4, strategy="time-slicing")
    assert only({GPU: "4"}, labels, gpus=2) == Offer(4.0, 0.25, shared=True)
    assert only({SHARED: "4"}, labels, gpus=2) == Offer(4.0, 0.25, shared=True)


# --- names of a cluster's own ---------------------------------------------------------------------------------------

OWN = "example.com/a100"
ALSO = frozenset({OWN})


@pytest.mark.parametrize(
    "labels", [{}, discovered("NVIDIA-A100", 8), discovered("NVIDIA-A100", 8, replicas=0)]
)
def test_a_name_of_ones_own_is_whole_gpus(labels: dict[str, str]) -> None:
    assert only({OWN: "8"}, labels, also=ALSO) == Offer(8.0)
    assert offers({OWN: "6", GPU: "2"}, labels, also=ALSO, gpus=8) == ({OWN: Offer(6.0), GPU: Offer(2.0)}, ())
    assert offers({OWN: "8"}, labels) == ({}, ()), "if nobody says that they are GPUs"


@pytest.mark.parametrize("gpus", [None, 4])
def test_renamed_replicas_are_told_by_the_label_of_the_gpus(gpus: int | None) -> None:
    labels = discovered("NVIDIA-A100", 4, replicas=4, strategy="time-slicing")
    quarter = Offer(16.0, 0.25, shared=True)
    for name in (OWN, OWN + ".shared"):
        assert only({name: "16", GPU: "0"}, labels, also=ALSO, gpus=gpus) == quarter
    # Beside whole ones the label is about those that were renamed.
    found, wrong = offers({OWN: "8", GPU: "2"}, labels, also=ALSO, gpus=gpus)
    assert (found, wrong) == ({OWN: Offer(8.0, 0.25, shared=True), GPU: Offer(2.0)}, ())
    found, wrong = offers({OWN + ".shared": "8", OWN: "2"}, labels, also=ALSO, gpus=gpus)
    assert (found, wrong) == ({OWN + ".shared": Offer(8.0, 0.25, shared=True), OWN: Offer(2.0)}, ())
    found, wrong = offers({SHARED: "8", OWN: "2"}, labels, also=ALSO, gpus=gpus)
    assert (found, wrong) == ({SHARED: Offer(8.0, 0.25, shared=True), OWN: Offer(2.0)}, ())


def test_a_replica_of_mps_by_a_name_of_ones_own_has_its_part_of_the_memory() -> None:
    labels = discovered("NVIDIA-A100", 4, replicas=4, strategy="mps")
    assert only({OWN: "16"}, labels, also=ALSO) == Offer(16.0, 0.25, memory_frac=0.25)


def test_labels_by_the_name_itself_go_before_those_of_the_gpus() -> None:
    labels = discovered("NVIDIA-A100", 4) | {f"{OWN}.replicas": "2"}
    assert only({OWN: "8"}, labels, also=ALSO) == Offer(8.0, 0.5, shared=True)
    labels = discovered("NVIDIA-A100", 4, replicas=4) | {f"{OWN}.count": "4"}
    found, _ = offers({OWN: "4"}, labels, also=ALSO)
    assert found == {OWN: Offer(4.0)}


def test_replicas_by_a_name_of_ones_own_that_allocatable_lacks_are_whole_and_told() -> None:
    labels = discovered("NVIDIA-A100", 4, replicas=4, strategy="time-slicing")
    found, [wrong] = offers({OWN: "4"}, labels, also=ALSO)
    assert found == {OWN: Offer(4.0)}
    assert wrong == f"label nvidia.com/gpu.replicas is 4, but allocatable {OWN} is 4, of 4 that are there"
    found, wrongs = offers({OWN: "0"}, labels, also=ALSO)
    assert (found, len(wrongs)) == ({}, 1)
    found, [wrong] = offers({OWN: "0"}, {f"{OWN}.replicas": "4"}, also=ALSO)
    assert wrong == f"label {OWN}.replicas is 4, but no {OWN} is allocatable"


def test_slices_of_strategy_single_may_have_a_name_of_ones_own() -> None:
    labels = discovered("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 14, memory_mib=4864)
    assert only({OWN: "14"}, labels, also=ALSO, gpus=2).gpus == 1 / 7


# --- contradictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [None, 8])
def test_replicas_that_allocatable_lacks_are_whole_gpus(gpus: int | None) -> None:
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 8, replicas=4, strategy="time-slicing")
    found, wrong = offers({GPU: "8"}, labels, gpus=gpus)
    assert found == {GPU: Offer(8.0)}
    assert wrong == (
        "label nvidia.com/gpu.replicas is 4, but allocatable nvidia.com/gpu is 8, of 8 that are there",
    )


def test_units_that_are_no_multiple_of_the_replicas_take_the_larger_part() -> None:
    labels = discovered("T4", 2, replicas=3, strategy="time-slicing")
    found, [wrong] = offers({SHARED: "8"}, labels)
    assert found == {SHARED: Offer(8.0, 1 / 3, shared=True)}
    assert wrong == "label nvidia.com/gpu.replicas is 3, but allocatable nvidia.com/gpu.shared is 8"


def test_renamed_replicas_that_nobody_counts_are_whole_gpus() -> None:
    found, [wrong] = offers({SHARED: "8"}, {})
    assert found == {SHARED: Offer(8.0)}
    assert wrong.startswith("nvidia.com/gpu.shared is allocatable, but no label nvidia.com/gpu.replicas says")


def test_slices_and_replicas_that_are_not_allocatable_are_told() -> None:
    # While the plugin restarts; or with MIG mode on and the plugin's strategy still `none`.
    labels = discovered("NVIDIA-H100-80GB-HBM3", 1, replicas=0) | sliced("1g.10gb", 7, 9984)
    assert offers({"nvidia.com/mig-1g.10gb": "0"}, labels) == (
        {},
        ("label nvidia.com/mig-1g.10gb.count is 7, but no nvidia.com/mig-1g.10gb is allocatable",),
    )
    labels = discovered("NVIDIA-H100-80GB-HBM3-SHARED", 2, replicas=4, strategy="time-slicing")
    assert offers({GPU: "0"}, labels) == (
        {},
        ("label nvidia.com/gpu.replicas is 4, but no nvidia.com/gpu is allocatable",),
    )


def test_of_contradictions_without_end_the_first_are_told() -> None:
    labels = {f"nvidia.com/mig-{number}g.1gb.count": "1" for number in range(1000)}
    _, wrong = offers({GPU: "8"}, labels)
    assert len(wrong) == MOST_TOLD + 1
    assert wrong[-1] == "and 990 more"


def test_whole_gpus_that_are_not_allocatable_contradict_nothing() -> None:
    # All sliced, or offered by DRA; and a node whose slices do not suit strategy `single` is labelled with zeros.
    assert offers({}, discovered("NVIDIA-H100-80GB-HBM3", 8)) == ({}, ())
    assert offers({}, discovered("NVIDIA-H100-80GB-HBM3", 8, replicas=0)) == ({}, ())
    assert offers({GPU: "0"}, discovered("NVIDIA-A100-MIG-INVALID", 0, replicas=0, memory_mib=0)) == ({}, ())


# --- anything at all -------------------------------------------------------------------------------------------------

JUNK = (
    "abc",
    "-4",
    "1e400",
    "nan",
    "inf",
    "0",
    "",
    "1.5",
    "4Gi",
    "٤",
    "1_0",
    "9" * 63,
    "x" * 63,
    "1e17",
    " 4 ",
)
NAMES = (
    GPU,
    SHARED,
    "nvidia.com/mig-1g.10gb",
    "nvidia.com/mig-0g.5gb",
    "nvidia.com/mig-",
    "nvidia.com/mig-x.shared",
    "example.com/a100",
    "example.com/a100.shared",
)
LABELS = [
    *(
        f"{name}.{what}"
        for name in NAMES
        for what in ("count", "replicas", "memory", "product", "sharing-strategy")
    ),
    "nvidia.com/mig-.count",
    ".count",
    "count",
    "nvidia.com/mig-1g.10gb.count.count",
]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("what", ["count", "replicas", "memory"])
def test_a_label_that_is_no_count_is_as_if_it_were_not_there(what: str, junk: str) -> None:
    for name in NAMES[:3]:
        base = name.removesuffix(".shared")
        assert offers({name: "8"}, {f"{base}.{what}": junk}) == offers({name: "8"}, {})
        found, _ = offers({name: "8"}, {f"{base}.{what}": junk}, gpus=2)
        assert 0 < gpus_in(found) <= 8


@given(
    allocatable=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 60).map(str) | st.sampled_from(JUNK)),
    labels=st.dictionaries(
        st.sampled_from(LABELS),
        st.integers(0, 60).map(str) | st.sampled_from((*JUNK, "mps", "A30-MIG-0g.1gb", "X-MIG-99g.9999gb")),
    ),
    gpus=st.none() | st.integers(0, 16),
    model=st.sampled_from(["", "NVIDIA A30", "H100"]),
)
@example(allocatable={SHARED: "8"}, labels={"nvidia.com/gpu.count": "-4"}, gpus=None, model="")
@example(allocatable={"nvidia.com/mig-0g.5gb": "1"}, labels={}, gpus=None, model="")
@example(allocatable={GPU: "8"}, labels={"nvidia.com/gpu.replicas": "999999999"}, gpus=2, model="")
def test_whatever_is_written_a_unit_is_a_part_of_a_gpu(
    allocatable: dict[str, str], labels: dict[str, str], gpus: int | None, model: str
) -> None:
    found, wrong = offers(allocatable, labels, model=model, gpus=gpus, also=ALSO)
    for name, offer in found.items():
        assert is_gpu_resource(name, ALSO)
        assert offer.units > 0
        assert 0 < offer.gpus <= 1
        assert 0 < offer.memory_frac <= 1
        assert offer.memory_bytes >= 0
        assert all(isfinite(each) for each in (offer.units, offer.gpus, offer.memory_bytes))
        # Whoever claims replicas can't make a node's GPUs vanish: each one's replicas are all there.
        assert offer.units * offer.gpus >= 1 / 7 - 1e-9 or name != GPU or _is_sliced(labels)
    assert all(len(each) < 300 for each in wrong)


def _is_sliced(labels: Mapping[str, str]) -> bool:
    return "-MIG-" in labels.get("nvidia.com/gpu.product", "")


@pytest.mark.parametrize(
    ("label", "want_model"),
    [
        ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB"),
        ("NVIDIA-A100-SXM4-80GB-SHARED", "NVIDIA-A100-SXM4-80GB"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "NVIDIA-A100-SXM4-40GB"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb.me-SHARED", "NVIDIA-A100-SXM4-40GB"),
        ("NVIDIA-A100-SXM4-40GB-MIG-INVALID", "NVIDIA-A100-SXM4-40GB"),
        # In the middle it is the maker's own word.
        ("SHARED-MIGHTY-SHARED-1", "SHARED-MIGHTY-SHARED-1"),
        ("", ""),
    ],
)
def test_a_model_by_label_is_the_gpus_own_and_not_what_is_made_of_it(label: str, want_model: str) -> None:
    assert model_of({"nvidia.com/gpu.product": label}) == want_model
    assert model_of({}) == ""


def test_units_read_as_people_say_them() -> None:
    assert words(((GPU, 1),)) == "1 GPU"
    assert words(((GPU, 2), (SHARED, 3))) == "2 GPUs and 3 GPU replicas"
    assert words(((SEVENTH, 1), (f"{SEVENTH}.shared", 2))) == "1 slice of 1g.10gb and 2 replicas of 1g.10gb"
    assert words((("example.com/a100", 2), ("example.com/a100.shared", 1))) == (
        "2 example.com/a100 and 1 example.com/a100 replica"
    )
    for count, want in ((1, "1 GPU or GPU replica"), (2, "2 GPUs or GPU replicas")):
        assert words(((GPU, count),), {GPU: "GPU or GPU replica"}) == want
    assert words(()) == "no GPU"
