"""Annotations on pods, Jobs, Deployments and namespaces steer real pods of real controllers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.core.nouns import DECISION_ANNOTATION, PREFIX
from tests.controlplane import Daemon
from tests.e2e.system import SCHEDULER_NAME, Replica, System, until_seen, wait_for

pytestmark = pytest.mark.e2e

JOBS = "/apis/batch/v1/namespaces/default/jobs"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
NAMESPACE = "/api/v1/namespaces/default"
BACKGROUND = {"propagationPolicy": "Background"}


def add_a_node_a_pool(system: System, replica: Replica) -> None:
    system.add_node("near", site="dc-1")
    system.add_node("far", site="aws-a")
    until_seen(replica, "near")
    until_seen(replica, "far")


def template(app: str) -> dict[str, object]:
    """Of a pod with one GPU for us."""
    resources = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}}
    spec = {
        "schedulerName": SCHEDULER_NAME,
        "restartPolicy": "Never" if app == "job" else "Always",
        "containers": [{"name": "main", "image": "none", "resources": resources}],
    }
    return {"metadata": {"labels": {"app": app}}, "spec": spec}


def pods_of(system: System, app: str) -> list[dict[str, Any]]:
    listed = system.plane.request("GET", f"{NAMESPACE}/pods?labelSelector=app%3D{app}")
    assert isinstance(listed, dict)
    return list(listed["items"])


def nodes_of(system: System, app: str) -> set[str]:
    return {str(pod["spec"].get("nodeName", "")) for pod in pods_of(system, app)}


def ended(system: System, app: str) -> bool:
    """Whether no pod of it is left; there is no kubelet that would end them."""
    pods = pods_of(system, app)
    for pod in pods:
        system.delete_pod(pod["metadata"]["name"])
    return not pods


def made(kind: str, app: str, said: dict[str, str], **spec: object) -> dict[str, object]:
    group = "batch/v1" if kind == "Job" else "apps/v1"
    annotations = {PREFIX + key: text for key, text in said.items()}
    return {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": app, "namespace": "default", "annotations": annotations},
        "spec": {"template": template(app), **spec},
    }


def test_a_pod_goes_to_the_pools_models_and_memory_that_it_asks_for(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    small = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
    large = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
    system.add_node("a-untold", site="dc-1")
    system.add_node("b-small", site="dc-1", **small)
    system.add_node("c-large", site="aws-a", **large)
    for name in ("a-untold", "b-small", "c-large"):
        until_seen(replica, name)
    asked = {
        "by-pool": ("pools", "aws-a", "c-large"),
        "by-model": ("gpu-model", "*L4*", "b-small"),
        "by-memory": ("gpu-memory", "40Gi", "c-large"),
    }
    for pod, (key, text, _) in asked.items():
        system.add_pod(pod, annotations={PREFIX + key: text})
    assert {pod: system.bound(pod) for pod in asked} == {pod: want for pod, (_, _, want) in asked.items()}
    system.add_pod("nowhere", annotations={PREFIX + "gpu-model": "*B200*"})
    assert reasons(replica, "nowhere") == {"GPU model not among those asked for": 2, "GPU model unknown": 1}


def test_a_job_and_a_deployment_speak_for_their_pods(
    system: System, replica: Replica, scheduler: Daemon, controllers: Daemon
) -> None:
    add_a_node_a_pool(system, replica)
    system.plane.request("POST", JOBS, made("Job", "job", {"pools": "aws-a"}))
    selector = {"selector": {"matchLabels": {"app": "web"}}, "replicas": 2}
    system.plane.request("POST", DEPLOYMENTS, made("Deployment", "web", {"pools": "aws-a"}, **selector))
    try:
        wait_for("both are placed", lambda: nodes_of(system, "job") == nodes_of(system, "web") == {"far"})
        found: list[dict[str, Any]] = replica.get("/api/v1/decisions?result=placed")["items"]
        assert {each["profile"] for each in found} == {"training", "inference"}
    finally:
        for path in (f"{JOBS}/job", f"{DEPLOYMENTS}/web"):
            system.plane.request("DELETE", path, BACKGROUND)
        wait_for("their pods are gone", lambda: ended(system, "job") and ended(system, "web"))


def test_a_namespace_speaks_for_its_pods_until_it_says_no_more(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    add_a_node_a_pool(system, replica)
    said = {"metadata": {"annotations": {PREFIX + "pools": "aws-a"}}}
    system.plane.request("PATCH", NAMESPACE, said)
    try:

        def lands_far() -> bool:
            # Until the watch has told of it.
            system.add_pod("probe")
            node = system.bound("probe")
            system.delete_pod("probe")
            return node == "far"

        wait_for("the namespace is heard", lands_far)
        system.add_pod("own", annotations={PREFIX + "pools": "dc-1"})
        assert system.bound("own") == "near", "the nearest word counts"
    finally:
        system.plane.request("PATCH", NAMESPACE, {"metadata": {"annotations": {PREFIX + "pools": None}}})
    wait_for("it says no more", lambda: not lands_far())


def explained(replica: Replica, pod: str) -> dict[str, Any]:
    return dict(replica.get(f"/api/v1/explain/default/{pod}"))


def reasons(replica: Replica, pod: str) -> dict[str, int]:
    """Of its newest refusal."""
    wait_for("it was asked about", lambda: replica.get(f"/api/v1/decisions?pod={pod}")["items"])
    newest, *_ = replica.get(f"/api/v1/decisions?pod={pod}")["items"]
    return dict(newest["reasons"])


def bad_annotations_of(system: System, pod: str) -> str:
    """What its Event of bad annotations says; empty while it has none."""
    uid = system.pod(pod)["metadata"]["uid"]
    listed = system.plane.request("GET", f"{NAMESPACE}/events")
    assert isinstance(listed, dict)
    notes = (
        str(event["message"])
        for event in listed["items"]
        if event["reason"] == "BadAnnotation" and event["involvedObject"].get("uid") == uid
    )
    return next(notes, "")


@pytest.mark.parametrize("default", [{"pools": "dc-1"}, {}], ids=["with a default", "without"])
def test_nothing_that_a_pod_says_lets_it_out_of_its_namespaces_pools(
    system: System, default: dict[str, str]
) -> None:
    limits = [{"match": "default", "allow": {"pools": ["dc-1"], "workload": ["training"]}}]
    replica = system.serve(annotations=default, namespaces=limits)
    system.add_node("far", site="aws-a")
    until_seen(replica, "far")
    said = {
        "refused": "aws-a",
        "typo": "dc1",
        "last": "default",
        "empty": "",
        "some": "mars,aws-a",
        "silent": None,
    }
    scheduler = system.scheduler(replica.port)
    try:
        for pod, pools in said.items():
            system.add_pod(pod, annotations={} if pools is None else {PREFIX + "pools": pools})
        for pod, pools in said.items():
            assert reasons(replica, pod) == {"pool not among those asked for": 1}, pod
            told = explained(replica, pod)
            counts = [each for each in told["annotations"] if not each.get("problem")]
            want_by = "configuration" if default else "namespace limit"
            assert [(each["key"], each["value"], each["where"]) for each in counts] == [
                ("pools", "dc-1", want_by)
            ]
            assert len(told["annotations"]) - 1 == (pools is not None)
            assert (told["workload"], told["workload_from"]) == ("training", "namespace limit")
        note = wait_for("the refusal is an event", lambda: bad_annotations_of(system, "refused"))
        assert "wattbalance.io/pools (pod): expected what namespace default may ask for (dc-1), got" in note
        assert not bad_annotations_of(system, "silent")
        system.add_node("near", site="dc-1")
        assert {system.bound(pod) for pod in said} == {"near"}
    finally:
        scheduler.stop()


def test_what_is_taken_off_a_deployment_counts_no_longer_though_its_replica_set_keeps_it(
    system: System, replica: Replica, scheduler: Daemon, controllers: Daemon
) -> None:
    add_a_node_a_pool(system, replica)
    web, of_web = f"{DEPLOYMENTS}/web", "/apis/apps/v1/namespaces/default/replicasets?labelSelector=app%3Dweb"

    def say(pools: str | None) -> None:
        system.plane.request("PATCH", web, {"metadata": {"annotations": {PREFIX + "pools": pools}}})

    def copied() -> str:
        listed = system.plane.request("GET", of_web)
        assert isinstance(listed, dict)
        [found] = listed["items"]
        return str(found["metadata"]["annotations"].get(PREFIX + "pools"))

    def anew() -> set[str]:
        """Where its next pod goes; until the watch has told of the Deployment, that may be the old place."""
        before = {pod["metadata"]["uid"] for pod in pods_of(system, "web")}
        for pod in pods_of(system, "web"):
            system.delete_pod(pod["metadata"]["name"])

        def replaced() -> bool:
            pods = pods_of(system, "web")
            uids = {pod["metadata"]["uid"] for pod in pods}
            return bool(uids) and uids.isdisjoint(before) and all(pod["spec"].get("nodeName") for pod in pods)

        wait_for("there is another", replaced)
        return nodes_of(system, "web")

    selector = {"selector": {"matchLabels": {"app": "web"}}, "replicas": 1}
    system.plane.request("POST", DEPLOYMENTS, made("Deployment", "web", {"pools": "aws-a"}, **selector))
    try:
        wait_for("it is placed", lambda: nodes_of(system, "web") == {"far"})
        assert copied() == "aws-a"
        say(None)
        wait_for("it counts no longer", lambda: anew() == {"near"})
        assert copied() == "aws-a", "the controller never takes it away there"
        # A mistake is the Deployment's, too.
        say("aws a")
        wait_for("it is copied", lambda: copied() == "aws a")

        def blamed() -> list[str]:
            [pod] = pods_of(system, "web")
            told = explained(replica, pod["metadata"]["name"])["annotations"]
            return [each["where"] for each in told if each.get("problem")]

        wait_for("it is blamed", lambda: blamed() == ["deployment web"])
    finally:
        system.plane.request("DELETE", web, BACKGROUND)
        wait_for("its pods are gone", lambda: ended(system, "web"))


def test_the_decision_stands_on_a_pod_once_it_is_bound(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    system.add_node("n1")
    until_seen(replica, "n1")
    system.add_pod("waits", annotations={PREFIX + "gpu-model": "*B200*"})
    system.add_pod("placed")
    assert system.bound("placed") == "n1"

    def said(pod: str) -> str:
        return str(system.pod(pod)["metadata"].get("annotations", {}).get(DECISION_ANNOTATION, ""))

    decision = json.loads(wait_for("it is written", lambda: said("placed")))
    [record] = replica.get("/api/v1/decisions?pod=placed")["items"]
    assert (decision["node"], decision["cycle"]) == ("n1", record["cycle"])
    assert decision["score"] == record["best"][0]["score"]
    wait_for("the other was asked about", lambda: replica.get("/api/v1/decisions?pod=waits")["items"])
    assert not said("waits"), "a change of a pod that waits would have it tried again"
