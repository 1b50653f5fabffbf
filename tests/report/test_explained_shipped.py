"""Every pod of the built-in slice of openb under the shipped policies: the terms that explain shows are the decision.

Parts of GPUs, images, owners and what pods prefer are among it, so that each policy has something to say.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from scheduler import config
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind, Listed
from scheduler.core.clock import ManualClock
from scheduler.decision.kube_filters import kube_filters
from scheduler.parts import make_decider, make_store
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation
from scheduler.simulate.manifests import node_object, pod_object
from scheduler.simulate.sharing import share_out
from scheduler.simulate.traces import load_trace
from scheduler.simulate.workload import Arrival, Job, WorkloadModel
from tests.builders import added_up, make_sample

SITE = "site"
IMAGE = {"names": ["trace:latest"], "sizeBytes": 800 * 2**20}
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
# One after the other, each for some of the pods.
PREFERS: tuple[dict[str, Any], ...] = (
    {},
    {
        "affinity": {
            "nodeAffinity": {
                PREFERRED: [
                    {
                        "weight": 1,
                        "preference": {
                            "matchExpressions": [{"key": SITE, "operator": "In", "values": ["aws-a"]}]
                        },
                    }
                ]
            },
            "podAntiAffinity": {
                PREFERRED: [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "labelSelector": {"matchLabels": {"app": "a"}},
                            "topologyKey": SITE,
                        },
                    }
                ]
            },
        }
    },
    {
        "topologySpreadConstraints": [
            {
                "whenUnsatisfiable": "ScheduleAnyway",
                "maxSkew": 1,
                "topologyKey": SITE,
                "labelSelector": {"matchLabels": {"app": "a"}},
            }
        ]
    },
)


def a_pod(number: int, job: Job, node: str = "") -> Pod:
    arrival = Arrival(name=f"p{number}", job=job, at_s=0.0, run_s=1.0, mean_util_frac=0.5)
    made: dict[str, Any] = pod_object(arrival, node=node)
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"rs-{number // 5}", "controller": True}
    made["metadata"] |= {
        "uid": f"uid-{number}",
        "labels": {"app": "a"},
        "ownerReferences": [{**owner, "uid": f"rs-{number // 5}"}],
    }
    spec, prefers = made["spec"], PREFERS[number % len(PREFERS)]
    if required := spec.get("affinity", {}).get("nodeAffinity"):
        # What the trace requires stays.
        affinity = prefers.get("affinity", {})
        prefers = prefers | {
            "affinity": {**affinity, "nodeAffinity": affinity.get("nodeAffinity", {}) | required}
        }
    made["spec"] = spec | prefers
    return msgspec.convert(made, Pod)


async def test_for_every_pod_of_openb_the_shipped_policies_terms_are_the_decision() -> None:
    settings = config.load(config.example())
    store, clock = make_store(settings), ManualClock()
    decider = make_decider(settings, store, instance="test")
    trace = share_out(load_trace())
    dice = np.random.default_rng(1)
    for index, node in enumerate(trace.nodes):
        made: dict[str, Any] = node_object(node)
        if index % 3 == 0:
            made["status"]["images"] = [IMAGE]
        if index % 4 == 0:
            made["spec"]["taints"] = [{"key": "old", "effect": "PreferNoSchedule"}]
        store.apply(Changed(Kind.NODE, msgspec.convert(made, Node)), clock.mono_s())
        busy = dice.random(node.gpus).tolist()
        store.see_samples([(node.name, make_sample(node.name, busy), clock.mono_s())])
    for kind in (Kind.POD, Kind.NAMESPACE):
        store.apply(Listed(kind, frozenset()), clock.mono_s())
    explainer = Explainer(decider, clock, lambda: "leader")
    jobs = WorkloadModel(trace, load_frac=0.8, speed_per_s=60.0, seed=1).jobs
    weighed, results, shared = set(), set(), 0
    for number, job in enumerate(jobs):
        clock.advance(0.1)
        pod = a_pod(number, job)
        store.apply(Changed(Kind.POD, pod), clock.mono_s())
        request = store.request(pod, 1e6, decider.profile_facts)
        rows = np.flatnonzero(store.snapshot.present & ~kube_filters(store, request).against)
        outcome = decider.place(request, rows, clock.mono_s(), clock.unix_s())
        results.add(outcome.result)
        told = await explainer.explain(pod.metadata.namespace, pod.metadata.name)
        assert isinstance(told, Explanation)
        assert told.decision is not None
        assert told.decision.cycle == outcome.record.cycle
        assert bool(told.decision.best) is (outcome.judgement.choice >= 0)
        for candidate in told.decision.best:
            total = outcome.judgement.total[store.rows[candidate.node]]
            assert added_up(candidate) == candidate.score == total
            weighed |= {term.policy for term in candidate.terms}
        if outcome.judgement.choice < 0:
            continue
        first = told.decision.best[0]
        assert store.rows[first.node] == outcome.judgement.choice
        assert first.score == outcome.judgement.total[outcome.judgement.peers].max()
        assert told.decision.chosen == first.node
        shared += bool(request.shares)
        if outcome.result == "placed":
            store.apply(Changed(Kind.POD, a_pod(number, job, first.node)), clock.mono_s())
    assert len(jobs) > 1000
    assert shared > 100
    assert weighed == {each.name for profile in decider.profiles.values() for each in profile.scores}
    assert results == {"placed", "full_by_our_count"}
