"""A pod waits for a pool only if a node of it could ever take the pod."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import msgspec
import numpy as np
import pytest

from scheduler.cluster.objects import NodeSpec, Pod
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.preference_objects import Taint
from scheduler.cluster.store import Store
from scheduler.core.nouns import PodRequest, PoolSpec
from scheduler.core.preferences import Conditions, Operator, Requirement
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.openings import Openings
from scheduler.policy.model import Model
from tests.builders import all_rows, make_decider, make_node, make_request, make_store

NEAR = PoolSpec(name="near", selector={"site": "near"}, spill_after_s=300.0)
FAR = PoolSpec(name="far", selector={"site": "far"})
A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.memory": "40960"}
H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}


def tell(store: Store, name: str, gpus: int, labels: dict[str, str]) -> None:
    """A node without an agent: its labels say what is in it."""
    store.apply(Changed(Kind.NODE, make_node(name, gpus, labels)), 0.0)


def cluster() -> Decider:
    """Near are A100s with 40 GiB, far are H100s with 80 GiB and more GPUs a node; both are free."""
    store = make_store((NEAR, FAR))
    tell(store, "near-1", 4, {"site": "near", **A100})
    tell(store, "far-1", 8, {"site": "far", **H100})
    return make_decider(store)


def place(decider: Decider, request: PodRequest) -> Outcome:
    return decider.place(request, all_rows(decider.store), 1.0, 0.0)


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu_models": ("*h100*",)},
        {"gpu_memory_bytes": 64 * 2**30},
        {"gpus": 8},
    ],
)
def test_a_pod_that_the_first_pool_could_never_take_goes_on_at_once(asked: dict[str, object]) -> None:
    assert place(cluster(), replace(make_request(), **asked)).record.chosen == "far-1"  # type: ignore[arg-type]  # fields of a request


def test_a_full_pool_is_waited_for_and_so_is_one_in_quarantine() -> None:
    decider = cluster()
    assert place(decider, make_request("first", 4)).record.chosen == "near-1"
    full = place(decider, make_request("second", 4))
    # kube-scheduler offers what it counts as free: with all full near is passed over only once the wait is over.
    assert full.record.chosen == "near-1"
    assert not full.reserved
    decider = cluster()
    tell(decider.store, "near-1", 4, {"site": "near", **A100, "wattbalance.io/quarantine": "xid"})
    assert place(decider, make_request()).record.reasons == {
        "node in quarantine": 1,
        "waiting for pool near": 1,
    }


def test_a_node_of_which_nobody_tells_what_it_has_is_waited_for() -> None:
    decider = cluster()
    tell(decider.store, "near-2", 4, {"site": "near"})
    outcome = place(decider, replace(make_request(), gpu_models=("*h100*",)))
    assert outcome.record.reasons["waiting for pool near"] == 1


def test_a_pod_that_asks_for_slices_waits_for_a_pool_with_such_slices() -> None:
    decider = cluster()
    mig = (("nvidia.com/mig-1g.10gb", 1.0),)
    sliced = make_node("far-2", 0, {"site": "far", **H100})
    sliced.status.allocatable["nvidia.com/mig-1g.10gb"] = "7"  # type: ignore[index]  # make_node's has one
    decider.store.apply(Changed(Kind.NODE, sliced), 0.0)
    assert place(decider, replace(make_request(gpus=0), shares=mig)).record.chosen == "far-2"


def test_what_could_have_taken_it_and_goes_opens_the_other_pools() -> None:
    decider = cluster()
    tell(decider.store, "near-2", 4, {"site": "near", **H100, "wattbalance.io/quarantine": "xid"})
    request = replace(make_request(), gpu_models=("*h100*",))
    openings = Openings(decider)
    assert "waiting for pool near" in place(decider, request).record.reasons
    openings.look()
    assert openings.look() is None
    decider.store.apply(Gone(Kind.NODE, make_node("near-2")), 2.0)
    opened = openings.look()
    assert opened is not None
    assert opened[decider.store.rows["far-1"]]
    assert place(decider, request).record.chosen == "far-1"


def test_a_filter_that_fails_rules_no_pool_out_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise RuntimeError("planted")

    monkeypatch.setattr(Model, "could", fails)
    decider = cluster()
    outcome = place(decider, replace(make_request(), gpu_models=("*h100*",)))
    assert "waiting for pool near" in outcome.record.reasons
    assert decider.failures.counts == {"model": 1}


def test_memory_that_nobody_tells_may_suffice_and_parts_of_gpus_may_get_more() -> None:
    asked = replace(make_request(), gpu_memory_bytes=64 * 2**30)
    decider = cluster()
    tell(decider.store, "near-2", 4, {"site": "near", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"})
    assert "waiting for pool near" in place(decider, asked).record.reasons
    decider = cluster()
    mig = "nvidia.com/mig-1g.10gb"
    for name, site in (("near-2", "near"), ("far-2", "far")):
        sliced = make_node(name, labels={"site": site, **H100}, shares={mig: 7})
        decider.store.apply(Changed(Kind.NODE, sliced), 0.0)
    parts = replace(asked, gpus=0, shares=((mig, 1.0),))
    assert "waiting for pool near" in place(decider, parts).record.reasons


def told(spec: dict[str, object], *, taints: dict[str, list[dict[str, str]]] | None = None) -> Outcome:
    """What is decided of a pod with this in its spec; near-1 and far-1 have a GPU each, and a zone."""
    store = make_store((NEAR, FAR))
    for name, site in (("near-1", "near"), ("far-1", "far")):
        node = make_node(name, 4, {"site": site, "zone": f"zone-{site}"})
        tainted = msgspec.convert((taints or {}).get(name, []), list[Taint])
        store.apply(Changed(Kind.NODE, msgspec.structs.replace(node, spec=NodeSpec(taints=tainted))), 0.0)
    decider = make_decider(store)
    whole = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}], **spec}
    pod = msgspec.convert({"metadata": {"name": "p", "uid": "u"}, "spec": whole}, Pod)
    request = store.request(pod, 0.0, decider.profile_facts)
    # kube-scheduler offers what it may have.
    return decider.place(request, np.array([store.rows["far-1"]]), 1.0, 0.0)


def affinity(*terms: dict[str, object]) -> dict[str, object]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": required}}


def zone(operator: str, *values: str) -> dict[str, object]:
    return {"matchExpressions": [{"key": "zone", "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    "spec",
    [
        {"nodeSelector": {"zone": "zone-far"}},
        {"nodeSelector": {"zone": "zone-near", "disk": "ssd"}},
        affinity(zone("In", "zone-far")),
        affinity(zone("NotIn", "zone-near"), zone("In", "zone-none")),
        affinity({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["far-1"]}]}),
        # A term without anything selects nothing, and so do no terms.
        affinity({}),
        affinity(),
    ],
)
def test_a_pool_whose_nodes_the_pods_spec_rules_out_holds_it_back_from_none(spec: dict[str, object]) -> None:
    assert told(spec).record.chosen == "far-1"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"nodeSelector": {"zone": "zone-near"}},
        affinity(zone("In", "zone-far"), zone("Exists")),
        # Nobody can say what an operator of later days selects.
        affinity(zone("Near", "zone-far")),
        affinity({"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["far-1"]}]}),
        # So many keys that nobody means it.
        {"nodeSelector": {f"key-{n}": "x" for n in range(100)}},
    ],
)
def test_a_pool_with_a_node_that_the_pods_spec_allows_is_waited_for(spec: dict[str, object]) -> None:
    assert told(spec).record.reasons == {"waiting for pool near": 1}


@pytest.mark.parametrize(
    ("taint", "tolerations", "want"),
    [
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [], ""),
        ({"key": "team", "value": "a", "effect": "NoExecute"}, [], ""),
        (
            {"key": "team", "value": "a", "effect": "NoSchedule"},
            [{"key": "team", "operator": "Exists"}],
            "near",
        ),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"key": "team", "value": "a"}], "near"),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"key": "team", "value": "b"}], ""),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, [{"operator": "Exists"}], "near"),
        (
            {"key": "team", "value": "4", "effect": "NoSchedule"},
            [{"key": "team", "operator": "Gt", "value": "3"}],
            "near",
        ),
        (
            {"key": "team", "value": "a", "effect": "NoSchedule"},
            [{"key": "other", "operator": "Gt", "value": "3"}],
            "",
        ),
        ({"key": "team", "value": "a", "effect": "PreferNoSchedule"}, [], "near"),
        # Kubernetes' own come and go.
        ({"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}, [], "near"),
        ({"key": "team", "effect": "NoSchedule"}, [{"key": str(n)} for n in range(100)], "near"),
        (
            {"key": "team", "effect": "NoSchedule"},
            [
                {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute"}
                for why in ("not-ready", "unreachable")
            ],
            "",
        ),
    ],
)
def test_a_pool_whose_taints_a_pod_does_not_tolerate_holds_it_back_from_none(
    taint: dict[str, str], tolerations: list[dict[str, str]], want: str
) -> None:
    outcome = told({"tolerations": tolerations}, taints={"near-1": [taint]})
    assert outcome.record.reasons == ({f"waiting for pool {want}": 1} if want else {})


def test_a_what_if_of_a_pod_knows_the_same_of_its_spec() -> None:
    store = make_store((NEAR, FAR))
    decider = make_decider(store)
    spec = {
        "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "team", "operator": "Exists"}],
    }
    for node in ("", "n1"):
        made = {"metadata": {"name": "p", "uid": "u"}, "spec": spec | {"nodeName": node}}
        pod = msgspec.convert(made, Pod)
        store.apply(Changed(Kind.POD, pod), 0.0)
        facts = store.pods["u"]
        again = store.request_again(facts, store.intents.resolve(facts.meta, ""), 0.0, ("batch", 0.5))
        assert again.conditions == store.request(pod, 0.0, decider.profile_facts).conditions
        assert again.conditions is not None


def test_a_node_that_is_sent_whole_is_judged_by_what_was_sent() -> None:
    store = make_store((NEAR, FAR))
    decider = make_decider(store)
    request = replace(
        make_request(), conditions=Conditions(node_selector=(Requirement("zone", Operator.IN, ("b",)),))
    )
    template = make_node("near-9", 4, {"site": "near", "zone": "b"})
    other = make_node("far-9", 4, {"site": "far", "zone": "b"})
    rows = np.arange(2) + store.snapshot.rows
    outcome = decider.place(request, rows[1:], 1.0, 0.0, [template, other])
    assert outcome.record.reasons == {"waiting for pool near": 1}
    template = make_node("near-9", 4, {"site": "near", "zone": "a"})
    outcome = decider.place(request, rows[1:], 1.0, 0.0, [template, other])
    assert outcome.record.chosen == "far-9"
