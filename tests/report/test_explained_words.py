"""Whose words keep a pod waiting, what there is instead, and what is said of what others wrote."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scheduler.client import tables
from scheduler.cluster.intent import IntentSettings, NamespaceRule
from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PoolSpec
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Hindrance
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation, NotFound
from tests.builders import (
    GIB,
    SHARED_RESOURCE,
    all_rows,
    make_decider,
    make_node,
    make_pod,
    make_sample,
    make_store,
    measure_memory,
    see_node,
    see_pod,
    see_sharing_node,
)

POOLS = (PoolSpec(name="dc-1", selector={"site": "dc"}), PoolSpec(name="aws", selector={"site": "aws"}))
KEY = "wattbalance.io/"


def explainer(store: Store, ours: frozenset[str] = frozenset()) -> tuple[Explainer, Decider]:
    store.synced.add(Kind.POD)
    decider = make_decider(store)
    made = Explainer(decider, ManualClock(), lambda: "leader", scheduler_names=lambda: ours)
    return made, decider


async def told_of(store: Store, ours: frozenset[str] = frozenset()) -> Explanation:
    found = await explainer(store, ours)[0].explain("team-a", "p1")
    assert isinstance(found, Explanation)
    return found


async def hindrances(store: Store) -> dict[str, Hindrance]:
    told = await told_of(store)
    assert told.now is not None
    return {each.annotation or each.kind: each for each in told.now.unblock}


def settings(*, limited: bool = False, default: str = "") -> IntentSettings:
    rule = NamespaceRule(match=lambda name: name == "team-a", allow={"pools": [("dc-1",)]})
    return IntentSettings(
        rules=[rule] if limited else [],
        defaults={"pools": default} if default else {},
        pools=["dc-1", "aws"],
    )


def sited(*sites: str) -> Store:
    store = make_store(POOLS)
    for site in sites:
        see_node(store, f"{site}1", labels={"site": site})
    return store


async def test_the_namespace_that_asks_is_named_and_it_is_what_may_ask_otherwise() -> None:
    store = sited("aws")
    namespace = Partial(metadata=Meta(name="team-a", annotations={KEY + "pools": "dc-1"}))
    store.apply(Changed(Kind.NAMESPACE, namespace), 0.0)
    see_pod(store, make_pod("p1"))
    pools = (await hindrances(store))["pools"]
    assert pools.said_by == "namespace team-a"
    assert "not as namespace team-a's wattbalance.io/pools asks: 1 would take the pod." in pools.text
    assert pools.text.endswith("Namespace team-a may ask, or the pod itself, for more pools.")


async def test_the_configurations_default_is_named_and_what_the_namespace_may_ask_for() -> None:
    store = sited("aws")
    store.intents.settings = settings(default="dc-1")
    see_pod(store, make_pod("p1"))
    pools = (await hindrances(store))["pools"]
    assert pools.said_by == "configuration"
    assert "not as the configuration's default of wattbalance.io/pools asks" in pools.text
    assert "The pod, its owner or its namespace may say otherwise" in pools.text
    store.intents.settings = settings(default="dc-1", limited=True)
    pools = (await hindrances(store))["pools"]
    assert "`annotations` and `namespaces` in the configuration may let it ask for more pools." in pools.text
    assert pools.text.endswith("lets this namespace ask for no other than dc-1.")
    assert "The pod, its owner" not in pools.text


async def test_a_limit_is_named_of_a_pod_that_asks_nothing() -> None:
    store = sited("aws")
    store.intents.settings = settings(limited=True)
    see_pod(store, make_pod("p1"))
    pools = (await hindrances(store))["pools"]
    assert pools.said_by == "namespace limit"
    assert "not as the configuration's limit on its namespace for wattbalance.io/pools asks" in pools.text
    assert "`namespaces` in the configuration may let it ask for more pools." in pools.text


async def test_an_owner_that_asks_is_named() -> None:
    store = sited("aws")
    job = Partial(
        metadata=Meta(name="train", namespace="team-a", uid="j", annotations={KEY + "pools": "dc-1"})
    )
    store.apply(Changed(Kind.JOB, job), 0.0)
    see_pod(store, make_pod("p1", owner=OwnerRef(kind="Job", uid="j", name="train", controller=True)))
    pools = (await hindrances(store))["pools"]
    assert pools.said_by == "job train"
    assert "not as job train's wattbalance.io/pools asks" in pools.text
    assert "Job train may ask" in pools.text


async def test_a_model_without_globs_is_told_which_models_there_are_and_what_would_match() -> None:
    store = make_store()
    for name, model in (
        ("n1", "NVIDIA-A100-SXM4-80GB"),
        ("n2", "NVIDIA-A100-SXM4-80GB"),
        ("n3", "NVIDIA-T4"),
    ):
        store.apply(Changed(Kind.NODE, make_node(name, labels={"nvidia.com/gpu.product": model})), 0.0)
    see_pod(store, make_pod("p1", annotations={KEY + "gpu-model": "A100"}))
    told = (await hindrances(store))["gpu-model"]
    assert told.models == ("NVIDIA-A100-SXM4-80GB", "NVIDIA-T4")
    assert "models that there are: NVIDIA-A100-SXM4-80GB, NVIDIA-T4." in told.text
    assert "Models are compared whole: *A100* would match." in told.text
    see_pod(store, make_pod("p1", annotations={KEY + "gpu-model": "H200"}))
    assert "would match" not in (await hindrances(store))["gpu-model"].text


async def test_of_memory_the_most_that_there_is_is_told() -> None:
    store = make_store()
    for name, mib in (("n1", 16384), ("n2", 81559)):
        store.apply(Changed(Kind.NODE, make_node(name, labels={"nvidia.com/gpu.memory": str(mib)})), 0.0)
    see_pod(store, make_pod("p1", annotations={KEY + "gpu-memory": "100Gi"}))
    memory = (await hindrances(store))["gpu-memory"]
    assert memory.largest_memory_bytes == 81559 * 2**20
    assert "It may ask for less: n2 has most, 81559Mi." in memory.text
    assert "fullest" not in memory.text


async def test_of_shared_gpus_no_label_is_said_to_help_and_the_fullest_is_said_to_count() -> None:
    store = make_store()
    label = {"nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.replicas": "4"}
    store.apply(Changed(Kind.NODE, make_node("n1", labels=label, shares={SHARED_RESOURCE: 4})), 0.0)
    see_pod(store, make_pod("p1", shares={SHARED_RESOURCE: 1}, annotations={KEY + "gpu-memory": "10Gi"}))
    text = (await hindrances(store))["gpu-memory"].text
    assert "Nobody measures it on 1 node with shared GPUs: wattbalance's agent has to run there" in text
    assert "label with" not in text
    assert "the fullest counts" in text
    see_sharing_node(store, "n1", gpus=2)
    measure_memory(store, 10, 75, now_mono_s=0.0)
    memory = (await hindrances(store))["gpu-memory"]
    assert "It may ask for less: n1 has most, 5Gi." in memory.text
    assert memory.largest_memory_bytes == 5 * GIB
    assert "the fullest counts" in memory.text


async def test_what_only_together_lets_a_pod_in_is_named_together() -> None:
    store = sited("dc")
    see_node(store, "aws1", labels={"site": "aws", KEY + "quarantine": ""})
    see_pod(store, make_pod("fills", 6, node="dc1"))
    for name in ("dc1", "aws1"):
        store.forget_inventory(name)
        labels = {**store.nodes[name].labels, "nvidia.com/gpu.memory": "81920"}
        store.apply(Changed(Kind.NODE, make_node(name, labels=labels)), 0.0)
    see_pod(store, make_pod("p1", 4, annotations={KEY + "pools": "dc-1", KEY + "gpu-memory": "100Gi"}))
    told = await told_of(store)
    assert told.now is not None
    assert told.now.nearest is not None
    assert told.now.nearest.node == "dc1"
    assert {each.kind for each in told.now.nearest.steps} == {"annotation", "free_gpus"}
    first = told.now.unblock[0]
    assert first.text == (
        "Nearest is dc1. All of this together lets the pod in there: (1) the pod's wattbalance.io/gpu-memory must ask "
        "for at most 80Gi; (2) 2 GPUs more must end there."
    )


async def test_a_pool_that_goes_before_a_better_score_is_said_to() -> None:
    store = sited("dc", "aws")
    for name, busy_frac in (("dc1", 0.9), ("aws1", 0.0)):
        store.see_samples([(name, make_sample(name, [busy_frac] * 8), 0.0)])
    see_pod(store, make_pod("p1"))
    made, decider = explainer(store)
    request = store.request(make_pod("p1"), 0.0, decider.profile_facts)
    decider.place(request, all_rows(store), 0.0, 0.0)
    store.release("uid-p1", 0.0)
    told = await made.explain("team-a", "p1")
    assert isinstance(told, Explanation)
    assert told.now is not None
    assert told.decision is not None
    assert [each.node for each in told.now.best] == ["dc1", "aws1"]
    assert told.now.best[0].score < told.now.best[1].score
    want = "Pools come before score: dc-1 first."
    assert [told.now.order, told.decision.order] == [want, want]
    out = Console(file=io.StringIO(), width=300)
    tables.print_explanation(out, told, wide=False)
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().count(f"  {want}\n") == 2
    see_pod(store, make_pod("fills", 8, node="dc1"))
    told = await made.explain("team-a", "p1")
    assert isinstance(told, Explanation)
    assert told.now is not None
    assert told.now.order == ""
    out = Console(file=io.StringIO(), width=300)
    tables.print_explanation(out, told, wide=False)
    assert isinstance(out.file, io.StringIO)
    assert "BAND" in out.file.getvalue()
    assert [each.band for each in told.now.best] == ["fits", "full"]


async def test_a_pod_without_gpus_is_said_to_be_none_of_ours() -> None:
    found = await explainer(make_store())[0].explain("team-a", "web")
    assert isinstance(found, NotFound)
    assert "A pod that asks for no GPU is not known here: kube-scheduler places it without us" in found.error


@pytest.mark.parametrize(
    ("node", "cycle", "want"),
    [
        ("n2", "other-1", "it names n2, and the pod is on n1"),
        ("n1", "test-1", "this replica made no decision test-1 about it"),
        ("n1", "other-1", ""),
    ],
)
async def test_an_annotation_that_does_not_fit_the_pod_is_not_told_as_ours(
    node: str, cycle: str, want: str
) -> None:
    store = make_store()
    see_node(store, "n1")
    text = f'{{"node": "{node}", "cycle": "{cycle}", "score": 0.9}}'
    see_pod(store, make_pod("p1", node="n1", annotations={KEY + "decision": text}))
    note = (await told_of(store)).notes[0]
    if want:
        assert note.startswith(
            f"Its annotation wattbalance.io/decision does not fit the pod: {want}. It was copied"
        )
    else:
        assert "By its annotation wattbalance.io/decision it was placed on n1, score 0.900" in note


async def test_one_on_a_pod_of_a_scheduler_that_does_not_ask_us_is_not_believed() -> None:
    store = make_store()
    see_node(store, "n1")
    text = '{"node": "n1", "cycle": "other-1"}'
    see_pod(store, make_pod("p1", node="n1", annotations={KEY + "decision": text}))
    told = await told_of(store, frozenset({"wattbalance"}))
    assert any("does not fit the pod: its scheduler  does not ask us" in note for note in told.notes)


async def test_pods_from_before_gpus_were_shared_are_named_where_others_wait_for_them() -> None:
    store = make_store()
    store.apply(Changed(Kind.NODE, make_node("n1", 2)), 0.0)
    see_pod(store, make_pod("before", 2, node="n1"))
    labels = {"nvidia.com/gpu.replicas": "4", "nvidia.com/gpu.count": "2"}
    store.apply(Changed(Kind.NODE, make_node("n1", 8, labels)), 0.0)
    see_pod(store, make_pod("p1"))
    want_note = (
        "On n1 pods hold nvidia.com/gpu from when a unit was a whole GPU; now it is 1/4 of a GPU. They count as what "
        "they hold, which kube-scheduler does not see (docs/troubleshooting.md)."
    )
    assert want_note in (await told_of(store)).notes
    see_pod(store, make_pod("p1", node="n1"))
    told = await told_of(store)
    assert want_note not in told.notes
    assert told.asks == "1 GPU replica"
