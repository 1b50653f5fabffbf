"""Every policy: sound answers for any input, and its own preference."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.cluster import columns
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.errors import ConfigError
from scheduler.core.models import folded
from scheduler.core.nouns import PREFIX, PodRequest, PoolSpec, Reason, Workload
from scheduler.policy import registry
from scheduler.policy.base import POOL_CODES, Conditional, Filter, Score
from scheduler.telemetry.sample import GpuInventory, Inventory
from tests.builders import (
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_node,
    see_pod,
)

POLICY_DIR = Path(registry.__file__).parent
NOT_POLICIES = {"__init__", "base", "profiles", "registry"}
SCORES = [n for n in registry.known() if isinstance(registry.build(n, {}), Score)]
FILTERS = [n for n in registry.known() if isinstance(registry.build(n, {}), Filter)]

gpu_counts = st.integers(0, 16)
# Made once: to check a strategy takes longer than to draw from it.
utils = [st.lists(st.none() | st.floats(0, 1), min_size=gpus, max_size=gpus) for gpus in range(17)]
words = st.sampled_from(["ok", "lost", "hung", "?"])
states = [st.lists(words, min_size=gpus, max_size=gpus) for gpus in range(17)]
whole = st.integers(0, 1000).map(float)
signed = st.integers(-(10**9), 10**9).map(float)
# What only concerns the pod that is asked about, of one node.
of_one_pod = st.tuples(st.booleans(), whole, signed, whole | st.just(-1.0), whole)


@cache
def of_nodes(rows: int) -> st.SearchStrategy[list[tuple[bool, float, float, float, float]]]:
    return st.lists(of_one_pod, min_size=rows, max_size=rows)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any state that events can produce: sizes, bindings, readings with holes, lost GPUs, stale nodes."""
    store = make_store()
    for index in range(draw(st.integers(1, 6))):
        name, gpus = f"n{index}", draw(gpu_counts)
        see_node(store, name, gpus=gpus)
        if gpus and draw(st.booleans()):
            util, state = draw(utils[gpus]), draw(states[gpus])
            store.see_samples([(name, make_sample(name, util=util, state=state), 1.0)])
        if draw(st.booleans()):
            see_pod(store, make_pod(f"p{index}", gpus=draw(st.integers(1, 20)), node=name), 1.0)
    store.tick(draw(st.floats(1, 100)))
    compared, near, affine, crowded, tainted = zip(*draw(of_nodes(store.snapshot.rows)), strict=True)
    return store.snapshot.replace(
        compared=np.array(compared, np.bool_),
        node_affinity=np.array(near),
        pod_affinity=np.array(affine),
        topology_spread=np.array(crowded),
        untolerated_taints=np.array(tainted),
    )


# All policies judge one and the same snapshot: to think up a hundred for each of them took a minute.
@given(snapshot=snapshots(), gpus=st.integers(0, 16))
def test_scores_are_finite_and_in_range(snapshot: Snapshot, gpus: int) -> None:
    for name in SCORES:
        policy = registry.build(name, {})
        assert isinstance(policy, Score)
        score = policy.score(make_request(gpus=gpus), snapshot)
        assert score.dtype == np.float32, name
        assert score.shape == (snapshot.rows,), name
        assert np.isfinite(score).all(), name
        assert score.min() >= 0, name
        assert score.max() <= 1, name


@given(snapshot=snapshots(), gpus=st.integers(0, 8))
def test_a_rows_answer_depends_on_that_row_alone(snapshot: Snapshot, gpus: int) -> None:
    request = make_request(gpus=gpus)
    order = np.arange(snapshot.rows)[::-1].astype(np.intp)
    taken = snapshot.take(order)
    for name in (*SCORES, *FILTERS):
        policy = registry.build(name, {})
        answer = policy.score if isinstance(policy, Score) else policy.filter
        assert np.array_equal(answer(request, snapshot)[order], answer(request, taken)), name


def test_every_policy_file_is_registered_under_its_name() -> None:
    files = {p.stem for p in POLICY_DIR.glob("*.py")} - NOT_POLICIES
    assert {module.NAME.replace("-", "_") for module in registry.known().values()} == files
    assert all(name == module.NAME for name, module in registry.known().items())


def test_an_unknown_policy_or_argument_lists_what_is_known() -> None:
    with pytest.raises(ConfigError, match="unknown policy; known: devices, freshness"):
        registry.build("leest-loaded", {})
    with pytest.raises(ConfigError, match="known arguments: none"):
        registry.build("pack", {"speed": 1})


def test_least_loaded_prefers_the_idle_node_and_counts_the_pod_itself() -> None:
    store = make_store()
    see_node(store, "big", gpus=8)
    see_node(store, "small", gpus=2)
    store.see_samples([("big", make_sample("big", util=[0.0] * 8), 1.0)])
    store.see_samples([("small", make_sample("small", util=[0.0] * 2), 1.0)])
    policy = registry.build("least-loaded", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(gpus=1, expected_load=0.8), store.snapshot)
    assert score[store.rows["big"]] == pytest.approx(1 - 0.8 / 8)
    assert score[store.rows["small"]] == pytest.approx(1 - 0.8 / 2)


def test_least_loaded_counts_what_came_and_went_before_it_is_measured() -> None:
    store = make_store()
    for name in ("came", "same", "went"):
        see_node(store, name, gpus=4)
        see_pod(store, make_pod(f"old-{name}", gpus=1, node=name), 0.0)
    store.apply(Listed(Kind.POD, frozenset(store.pods)), 0.0)
    store.see_samples([(n, make_sample(n, util=[0.9, 0.0, 0.0, 0.0]), 1.0) for n in ("came", "same", "went")])
    see_pod(store, make_pod("new", gpus=1, node="came"), 2.0)
    store.apply(Gone(Kind.POD, make_pod("old-went", gpus=1, node="went")), 2.0)
    policy = registry.build("least-loaded", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    rows = store.rows
    assert score[rows["came"]] < score[rows["same"]] < score[rows["went"]]


@given(
    util=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    broken=st.sets(st.integers(0, 7), min_size=1),
    how=st.sampled_from(["lost", "hung"]),
    bound=st.integers(0, 8),
    ended=st.booleans(),
    told=st.booleans(),
)
# Six busy GPUs of eight, of which one is lost: for a while such a node drew the next pods.
@example(util=[0.9] * 6 + [0.0] * 2, broken={0}, how="lost", bound=6, ended=False, told=False)
def test_a_gpu_that_breaks_never_makes_its_node_look_less_loaded(
    util: list[float], broken: set[int], how: str, bound: int, *, ended: bool, told: bool
) -> None:
    store, gpus = make_store(), len(util)
    state = [how if index in broken else "ok" for index in range(gpus)]
    # What a broken GPU's agent says of it beside its state does not count.
    seen = [None if index in broken and not told else busy for index, busy in enumerate(util)]
    for name in ("whole", "breaking"):
        see_node(store, name, gpus=gpus)
        see_pod(store, make_pod(f"on-{name}", gpus=min(bound, gpus), node=name), 0.0)
        store.see_samples([(name, make_sample(name, util=list(util)), 1.0)])
    store.see_samples([("whole", make_sample("whole", util=list(util)), 2.0)])
    store.see_samples([("breaking", make_sample("breaking", util=seen, state=state), 2.0)])
    if ended:
        for name in ("whole", "breaking"):
            store.apply(Gone(Kind.POD, make_pod(f"on-{name}", gpus=min(bound, gpus), node=name)), 2.0)
    policy = registry.build("least-loaded", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    assert score[store.rows["breaking"]] <= score[store.rows["whole"]] + 1e-6


def test_pack_prefers_the_tightest_fit() -> None:
    store = make_store()
    for name, gpus in (("exact", 2), ("loose", 4), ("empty", 8)):
        see_node(store, name, gpus=gpus)
    policy = registry.build("pack", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(gpus=2), store.snapshot)
    assert score[store.rows["exact"]] == 1
    assert score[store.rows["exact"]] > score[store.rows["loose"]] > score[store.rows["empty"]]


@given(
    gpus=st.integers(1, 8),
    broken=st.integers(1, 8),
    how=st.sampled_from(["lost", "hung"]),
    bound=st.integers(0, 8),
    asked=st.integers(0, 8),
)
# One of eight free GPUs is lost: seven left looked like a tighter fit than eight.
@example(gpus=8, broken=1, how="lost", bound=0, asked=1)
def test_a_gpu_that_breaks_never_makes_its_node_look_fuller_to_pack(
    gpus: int, broken: int, how: str, bound: int, asked: int
) -> None:
    store = make_store()
    state = [how if index < broken else "ok" for index in range(gpus)]
    for name in ("whole", "breaking"):
        see_node(store, name, gpus=gpus)
        see_pod(store, make_pod(f"on-{name}", gpus=min(bound, gpus), node=name), 0.0)
    store.see_samples([("whole", make_sample("whole", util=[0.0] * gpus), 1.0)])
    store.see_samples([("breaking", make_sample("breaking", util=[0.0] * gpus, state=state), 1.0)])
    policy = registry.build("pack", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(gpus=asked), store.snapshot)
    assert score[store.rows["breaking"]] <= score[store.rows["whole"]]


def test_pack_looks_at_what_pods_hold_and_not_at_what_is_broken() -> None:
    """Where both fit, the node with the more pods on it goes first, although the other has fewer free GPUs."""
    store = make_store()
    for name, held, state in (
        ("used", 3, ["ok"] * 8),
        ("broken", 0, ["lost"] * 4 + ["ok"] * 4),
        ("new", 0, []),
    ):
        see_node(store, name, gpus=8)
        if held:
            see_pod(store, make_pod(f"on-{name}", gpus=held, node=name), 0.0)
        if state:
            store.see_samples([(name, make_sample(name, util=[0.0] * 8, state=state), 1.0)])
    policy = registry.build("pack", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(gpus=1), store.snapshot)
    rows = store.rows
    assert score[rows["used"]] > score[rows["broken"]] == score[rows["new"]]


def test_freshness_falls_with_the_age_of_the_reading() -> None:
    store = make_store(stale_s=10.0)
    see_node(store, "new")
    see_node(store, "old")
    see_node(store, "never")
    store.see_samples([("old", make_sample("old"), 0.0)])
    store.see_samples([("new", make_sample("new"), 5.0)])
    store.tick(5.0)
    policy = registry.build("freshness", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    assert score[store.rows["new"]] == 1
    assert score[store.rows["old"]] == pytest.approx(0.5)
    assert score[store.rows["never"]] == 0


def test_freshness_takes_a_node_whose_samples_tell_nothing_for_unread() -> None:
    store = make_store()
    told: dict[str, tuple[list[float | None], list[str]]] = {
        "unread": ([None, None], ["ok", "unknown"]),
        "broken": ([0.0, None], ["hung", "lost"]),
        "half": ([None, 0.0], ["ok", "ok"]),
    }
    for name, (util, state) in told.items():
        see_node(store, name, gpus=2)
        store.see_samples([(name, make_sample(name, util=util, state=state), 5.0)])
    store.tick(5.0)
    policy = registry.build("freshness", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    assert {name: score[row] for name, row in store.rows.items()} == {"unread": 0, "broken": 0, "half": 1}


def test_devices_rules_out_only_what_is_known_to_be_broken() -> None:
    store = make_store()
    see_node(store, "broken", gpus=2)
    see_node(store, "unread", gpus=2)
    store.see_samples([("broken", make_sample("broken", util=[0.0, None], state=["ok", "hung"]), 1.0)])
    policy = registry.build("devices", {})
    assert isinstance(policy, Filter)
    codes = policy.filter(make_request(gpus=2), store.snapshot)
    assert codes[store.rows["broken"]] == Reason.BROKEN_GPUS
    assert codes[store.rows["unread"]] == 0


def test_pools_hold_a_pod_until_its_patience_is_over() -> None:

    pools = (PoolSpec(name="dc", selector={"site": "dc"}), PoolSpec(name="aws", selector={"site": "aws"}))
    store = make_store(pools)
    see_node(store, "a", labels={"site": "dc"})
    see_node(store, "b", labels={"site": "aws"})
    policy = registry.build("pools", {"spill_after_s": [300.0, 0.0]})
    assert isinstance(policy, Filter)
    early = policy.filter(make_request(waited_s=10), store.snapshot)
    assert early[store.rows["a"]] == 0
    assert early[store.rows["b"]] == POOL_CODES
    assert not policy.filter(make_request(waited_s=300), store.snapshot).any()


def test_of_the_pools_that_a_pod_names_the_first_that_holds_it_is_waited_for() -> None:
    names = ("a", "b", "c")
    store = make_store(tuple(PoolSpec(name=name, selector={"site": name}) for name in names))
    for name in names:
        see_node(store, name, labels={"site": name})
    policy = registry.build("pools", {"spill_after_s": [300.0, 600.0, 0.0]})
    assert isinstance(policy, Filter)

    def told(waited_s: float) -> list[int]:
        codes = policy.filter(make_request(pools=(1, 0, 2), waited_s=waited_s), store.snapshot)
        return [int(codes[store.rows[name]]) for name in names]

    assert told(0.0) == [POOL_CODES + 1, 0, POOL_CODES + 1], "for b alone, though a has its own patience"
    assert told(600.0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("held", "listed", "lost", "asked", "fits"),
    [
        (7, 8, 1, 1, False),
        (6, 8, 1, 1, True),
        (6, 8, 1, 2, False),
        (7, 7, 0, 1, False),
        (0, 7, 0, 7, True),
        # Full even with all of them well: kube-scheduler knows of a pod that ends.
        (8, 8, 1, 1, True),
    ],
)
def test_devices_takes_a_broken_gpu_for_one_that_nobody_holds(
    held: int, listed: int, lost: int, asked: int, *, fits: bool
) -> None:
    store = make_store()
    see_node(store, "n1", gpus=8)
    store.see_inventory("n1", make_inventory("n1", listed))
    states = ["lost"] * lost + ["ok"] * (listed - lost)
    store.see_samples([("n1", make_sample("n1", util=[0.5] * listed, state=states), 1.0)])
    for index in range(held):
        see_pod(store, make_pod(f"held-{index}", node="n1"))
    policy = registry.build("devices", {})
    assert isinstance(policy, Filter)
    codes = policy.filter(make_request(gpus=asked), store.snapshot)
    assert bool(codes[store.rows["n1"]] == 0) is fits


def test_a_gpu_that_kubernetes_counts_and_the_agent_lacks_never_makes_its_node_attractive() -> None:
    store = make_store()
    for name, found in (("whole", 8), ("short", 7)):
        see_node(store, name, gpus=8)
        store.see_inventory(name, make_inventory(name, found))
        store.see_samples([(name, make_sample(name, util=[0.6] * found), 1.0)])
    policy = registry.build("least-loaded", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    assert score[store.rows["short"]] < score[store.rows["whole"]]


@pytest.mark.parametrize("word", ["unknown", "fallen-off-bus"])
def test_a_gpu_in_a_state_that_nobody_knows_is_not_read(word: str) -> None:
    store = make_store()
    for name in ("read", "odd"):
        see_node(store, name, gpus=8)
        store.see_inventory(name, make_inventory(name))
        states = ["ok" if name == "read" else word] * 8
        store.see_samples([(name, make_sample(name, util=[0.1] * 8, state=states), 1.0)])
    assert store.snapshot.known_gpus[store.rows["odd"]] == 0
    assert {state for state, _, _ in store.gpu_readings("odd")} == {"unknown"}
    policy = registry.build("least-loaded", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), store.snapshot)
    assert score[store.rows["odd"]] < score[store.rows["read"]]


def inventory_of(node: str, *gpus: tuple[str, int | None]) -> Inventory:
    """An inventory of GPUs by model and GiB of memory."""
    listed = [
        GpuInventory(
            uuid=f"{node}-{index}", model=model, memory_total_bytes=None if gib is None else gib * 2**30
        )
        for index, (model, gib) in enumerate(gpus)
    ]
    return Inventory(v=1, node=node, gpus=listed)


def hardware_store() -> Store:
    """Nodes by what is known of their GPUs."""
    store = make_store()
    told: dict[str, list[tuple[str, int | None]]] = {
        "h100": [("NVIDIA H100 80GB HBM3", 80)] * 2,
        "a100": [("NVIDIA A100-SXM4-40GB", 40)] * 2,
        "mixed": [("NVIDIA H100 80GB HBM3", 80), ("Tesla T4", 16)],
        "half-told": [("NVIDIA H100 80GB HBM3", None), ("NVIDIA H100 80GB HBM3", 80)],
    }
    for name, gpus in told.items():
        see_node(store, name, gpus=2)
        store.see_inventory(name, inventory_of(name, *gpus))
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
    for name, carried in (("labelled", labels), ("unknown", {})):
        store.apply(Changed(Kind.NODE, make_node(name, 2, carried)), 0.0)
    return store


def refused(name: str, request: PodRequest, store: Store) -> dict[str, str]:
    """Nodes that a filter rules out, with the reason."""
    policy = registry.build(name, {})
    assert isinstance(policy, Filter)
    codes = policy.filter(request, store.snapshot)
    return {node: Reason(codes[row]).text for node, row in store.rows.items() if codes[row]}


@pytest.mark.parametrize(
    ("globs", "want"),
    [
        ("*H100*", {"a100", "mixed", "unknown"}),
        ("*h100*,*t4*", {"a100", "unknown"}),
        ("*A100*", {"h100", "mixed", "half-told", "labelled", "unknown"}),
        ("*", {"unknown"}),
        ("", set()),
    ],
)
def test_models_are_matched_by_globs_on_all_gpus_of_a_node(globs: str, want: set[str]) -> None:
    store = hardware_store()
    pod = make_pod(annotations={PREFIX + "gpu-model": globs} if globs else {})
    request = store.request(pod, 0.0, dict.fromkeys(Workload, ("p", 0.9)))
    found = refused("model", request, store)
    assert found.keys() == want
    assert set(found.values()) <= {Reason.OTHER_MODEL.text, Reason.UNKNOWN_MODEL.text}
    if "unknown" in found:
        assert found["unknown"] == Reason.UNKNOWN_MODEL.text


@pytest.mark.parametrize(
    ("asked", "want"),
    [
        ("", {}),
        ("16Gi", {"half-told": "GPU memory unknown", "unknown": "GPU memory unknown"}),
        (
            "60Gi",
            {
                "a100": "not enough GPU memory",
                "mixed": "not enough GPU memory",
                "half-told": "GPU memory unknown",
                "unknown": "GPU memory unknown",
            },
        ),
    ],
)
def test_memory_is_that_of_the_smallest_gpu_and_unknown_is_not_enough(
    asked: str, want: dict[str, str]
) -> None:
    store = hardware_store()
    pod = make_pod(annotations={PREFIX + "gpu-memory": asked} if asked else {})
    request = store.request(pod, 0.0, dict.fromkeys(Workload, ("p", 0.9)))
    assert refused("memory", request, store) == want


def test_a_node_that_is_sent_whole_is_judged_by_its_labels() -> None:
    store = hardware_store()
    labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
    strangers = [make_node("new", 1, labels), make_node("blank", 1)]
    snapshot = store.with_strangers(store.snapshot, strangers)
    request = make_request(gpu_models=("*l4*",), gpu_memory_bytes=20 * 2**30)
    for name, want in (("model", Reason.UNKNOWN_MODEL), ("memory", Reason.UNKNOWN_MEMORY)):
        policy = registry.build(name, {})
        assert isinstance(policy, Filter)
        codes = policy.filter(request, snapshot)
        assert codes[-2:].tolist() == [Reason.FITS, want]


@pytest.mark.parametrize("agent_came", [False, True])
@pytest.mark.parametrize("suffix", ["", "-SHARED", "-MIG-1g.10gb", "-MIG-1g.10gb-SHARED"])
def test_a_model_by_label_matches_exactly_however_its_gpus_are_divided(
    suffix: str, *, agent_came: bool
) -> None:
    model = "NVIDIA-A100-SXM4-80GB"
    store = make_store(capabilities={model: 0.5})
    node = make_node("n1", labels={"nvidia.com/gpu.product": model + suffix})
    store.apply(Changed(Kind.NODE, node), 0.0)
    if agent_came:
        store.see_inventory("n1", inventory_of("n1", ("T4", 16)))
        store.forget_inventory("n1")
    request = make_request(gpu_models=(folded(model),))
    assert refused("model", request, store) == {}
    assert store.nodes["n1"].model == model
    assert store.snapshot.capability[store.rows["n1"]] == 0.5
    stranger = store.with_strangers(store.snapshot, [node])
    assert stranger.capability[-1] == 0.5
    assert stranger.model_sets[stranger.models[-1]] == {folded(model)}


@pytest.mark.parametrize("asked", ["NVIDIA-A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "nvidia[-]a100*"])
@pytest.mark.parametrize("agent_came", [False, True])
def test_a_model_means_the_same_before_and_after_an_agent_tells_it(asked: str, *, agent_came: bool) -> None:
    store = make_store(capabilities={asked: 0.5})
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    store.apply(Changed(Kind.NODE, make_node("n1", labels=labels)), 0.0)
    if agent_came:
        store.see_inventory("n1", inventory_of("n1", ("NVIDIA A100-SXM4-80GB", 16)))
    pod = make_pod(annotations={PREFIX + "gpu-model": asked})
    request = store.request(pod, 0.0, dict.fromkeys(Workload, ("p", 0.9)))
    assert refused("model", request, store) == {}
    assert store.snapshot.capability[store.rows["n1"]] == 0.5
    want_spelling = "NVIDIA A100-SXM4-80GB" if agent_came else "NVIDIA-A100-SXM4-80GB"
    assert store.nodes["n1"].model == want_spelling


def test_models_that_somebody_invents_without_end_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_MODEL_SETS", 3)
    store = make_store()
    for index in range(5):
        see_node(store, f"n{index}", gpus=1)
        store.see_inventory(f"n{index}", inventory_of(f"n{index}", (f"model-{index}", 1)))
    assert len(store.snapshot.model_sets) == 3
    assert store.snapshot.models[[store.rows[f"n{index}"] for index in range(2, 5)]].tolist() == [0, 0, 0]


def of_siblings(*counts: float) -> Snapshot:
    store = make_store()
    for index in range(len(counts)):
        see_node(store, f"n{index}")
    snapshot = store.snapshot.take(np.array([store.rows[f"n{i}"] for i in range(len(counts))], np.intp))
    return snapshot.replace(neighbours=np.array(counts, np.float32))


def test_spread_falls_with_each_sibling_and_the_first_hurts_most() -> None:
    policy = registry.build("spread", {})
    assert isinstance(policy, Score)
    score = policy.score(make_request(), of_siblings(0, 1, 2, 9))
    assert score.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10])


MIB = 2.0**20


@pytest.mark.parametrize(
    ("containers", "mib", "want_score"),
    [(1, 0, 0), (1, 23, 0), (1, 511.5, 0.5), (1, 1000, 1), (1, 20_000, 1), (2, 1011.5, 0.5), (0, 1000, 1)],
)
def test_image_scores_as_kube_scheduler_does(containers: int, mib: float, want_score: float) -> None:
    policy = registry.build("image", {})
    assert isinstance(policy, Score)
    snapshot = of_siblings(0).replace(image_bytes=np.array([mib * MIB], np.float32))
    score = policy.score(make_request(images=("a:1",) * containers), snapshot)
    assert score.tolist() == pytest.approx([want_score], abs=1e-6)


@given(
    neighbours=st.lists(st.integers(0, 10_000), min_size=1, max_size=8),
    image_bytes=st.floats(0, 1e20),
    images=st.integers(0, 40),
)
def test_what_only_concerns_one_pod_scores_in_range_and_row_by_row(
    neighbours: list[int], image_bytes: float, images: int
) -> None:
    snapshot = of_siblings(*neighbours)
    here = np.linspace(0, image_bytes, snapshot.rows).astype(np.float32)
    snapshot = snapshot.replace(image_bytes=here)
    order = np.arange(snapshot.rows)[::-1].astype(np.intp)
    request = make_request(images=("a:1",) * images)
    for name in ("spread", "image"):
        policy = registry.build(name, {})
        assert isinstance(policy, Score)
        score = policy.score(request, snapshot)
        assert score.dtype == np.float32
        assert 0 <= score.min() <= score.max() <= 1
        assert np.array_equal(score[order], policy.score(request, snapshot.take(order)))


@pytest.mark.parametrize("name", ["spread", "image"])
def test_a_policy_that_tells_no_nodes_apart_says_so(name: str) -> None:
    policy = registry.build(name, {})
    assert isinstance(policy, Conditional)
    snapshot = of_siblings(0, 1).replace(image_bytes=np.zeros(2, np.float32))
    assert policy.applies(make_request(), snapshot)
    assert not policy.applies(make_request(), snapshot.replace(neighbours=None, image_bytes=None))
