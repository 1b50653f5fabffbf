"""What a large Deployment makes of events, and what `kubectl describe` shows of them, on a real control plane."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

import pytest

from scheduler.core.nouns import PREFIX
from scheduler.notices import PODS_TOLD
from tests.controlplane import Daemon
from tests.e2e.system import Replica, System, metric, readiness, until_seen, wait_for
from tests.e2e.test_annotations import (
    BACKGROUND,
    DEPLOYMENTS,
    JOBS,
    NAMESPACE,
    ended,
    made,
    nodes_of,
    pods_of,
    template,
)
from tests.e2e.test_rights import granted, used

pytestmark = pytest.mark.e2e

REPLICAS = 30
EVENTS = f"{NAMESPACE}/events"
SICK = {"wattbalance.io/quarantine": "xid-79"}


@pytest.fixture
def owners(system: System, replica: Replica, scheduler: Daemon, controllers: Daemon) -> Iterator[list[str]]:
    """Paths of what the test makes, for the end; nothing is told before the replica leads."""
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    made_here: list[str] = []
    try:
        yield made_here
    finally:
        for path in made_here:
            system.plane.request("DELETE", path, BACKGROUND)
        for path in made_here:
            name = path.rpartition("/")[2]
            wait_for(f"the pods of {name} are gone", partial(ended, system, name))
        system.plane.request("DELETE", EVENTS)


def deploy(system: System, owners: list[str], name: str, said: dict[str, str], replicas: int) -> None:
    """Make a Deployment whose template says something."""
    pods = template(name)
    pods["metadata"] = {
        "labels": {"app": name},
        "annotations": {PREFIX + key: text for key, text in said.items()},
    }
    selector = {"matchLabels": {"app": name}}
    web = made("Deployment", name, {}, template=pods, selector=selector, replicas=replicas)
    system.plane.request("POST", DEPLOYMENTS, web)
    owners.append(f"{DEPLOYMENTS}/{name}")


def events(system: System, reason: str, about: str) -> list[dict[str, Any]]:
    """Of what begins with this name; as kubectl reads them."""
    listed = system.plane.request("GET", EVENTS)
    assert isinstance(listed, dict)
    return [
        event
        for event in listed["items"]
        if event["reason"] == reason and event["involvedObject"]["name"].startswith(about)
    ]


def counted(found: list[dict[str, Any]]) -> int:
    """How many pods the events on their owners count: a ReplicaSet's, where the Deployment was not known at once."""
    return sum(
        (event.get("series") or {"count": 1})["count"]
        for event in found
        if event["involvedObject"]["kind"] in {"Deployment", "ReplicaSet", "Job"}
    )


def on_pods(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in found if event["involvedObject"]["kind"] == "Pod"]


def described(system: System, kind: str, name: str) -> str:
    """What `kubectl describe` prints under Events."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    arguments = [kubectl, f"--kubeconfig={system.plane.kubeconfig()}", "describe", kind, name]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return done.stdout.partition("\nEvents:")[2]


def test_a_bad_annotation_of_many_pods_is_few_events_that_describe_shows(
    system: System, replica: Replica, owners: list[str]
) -> None:
    names = [f"n{number}" for number in range(REPLICAS // 8 + 1)]
    for name in names:
        system.add_node(name)
    until_seen(replica, *names)
    before = len(system.requests())
    deploy(system, owners, "web", {"workload": "inferense"}, REPLICAS)
    wait_for(
        "all are placed",
        lambda: len(pods_of(system, "web")) == REPLICAS and "" not in nodes_of(system, "web"),
    )
    wait_for("all are counted", lambda: counted(events(system, "BadAnnotation", "web")) == REPLICAS)
    found = events(system, "BadAnnotation", "web")
    # As many on pods again, where the first ones were asked about before the Deployment was known.
    assert 1 <= len(on_pods(found)) <= 2 * PODS_TOLD
    assert len(found) - len(on_pods(found)) <= 2
    told = described(system, "deployment", "web")
    assert "BadAnnotation" in told
    assert "wattbalance.io/workload (pod): expected training, inference or batch, got 'inferense'" in told
    first = on_pods(found)[0]["involvedObject"]["name"]
    assert "BadAnnotation" in described(system, "pod", first)

    # What is written is what the role allows: those events, and now and then their count.
    def writes() -> list[dict[str, Any]]:
        ours = system.requests()[before:]
        assert used(ours) <= granted()
        return [each for each in ours if each.get("objectRef", {}).get("resource") == "events"]

    wait_for(
        "each is on record", lambda: len(writes()) == metric(replica, "wattbalance_events_written_total") > 0
    )
    assert {each["responseStatus"]["code"] for each in writes()} == {HTTPStatus.OK, HTTPStatus.CREATED}
    assert [each["verb"] for each in writes()].count("create") == len(found)
    assert {each["verb"] for each in writes()} == {"create", "patch"}
    # Another word in the template is told too, at once.
    changed = {"spec": {"template": {"metadata": {"annotations": {PREFIX + "workload": "serving"}}}}}
    system.plane.request("PATCH", f"{DEPLOYMENTS}/web", changed)
    wait_for("that is told", lambda: "got 'serving'" in described(system, "deployment", "web"))


def test_a_bad_annotation_is_told_in_a_full_cluster_where_nobody_asks_us(
    system: System, replica: Replica, owners: list[str]
) -> None:
    system.add_node("n1")
    until_seen(replica, "n1")
    system.add_pod("fills", gpus=8)
    assert system.bound("fills") == "n1"
    system.add_pod("waits", annotations={PREFIX + "pools": "nope", PREFIX + "gpu-memory": "40GB"})
    wait_for("that is told", lambda: "BadAnnotation" in described(system, "pod", "waits"))
    told = described(system, "pod", "waits")
    assert "FailedScheduling" in told
    assert "NoNodeFits" not in told
    for key in ("pools", "gpu-memory"):
        assert f"wattbalance.io/{key} (pod): expected" in told
        assert metric(replica, "wattbalance_annotation_errors_total", key=key) == 1
    asked = replica.get("/api/v1/decisions")["items"]
    assert "waits" not in {each["pod"] for each in asked}
    # Neither who asks by hand nor kube-scheduler, once it does, makes that another event or another count.
    replica.get("/api/v1/explain/default/waits")
    system.delete_pod("fills")
    assert system.bound("waits") == "n1"
    assert metric(replica, "wattbalance_annotation_errors_total", key="pools") == 1
    assert len(on_pods(events(system, "BadAnnotation", "waits"))) == 1


def test_refusals_of_many_pods_are_few_events_that_describe_shows(
    system: System, replica: Replica, owners: list[str]
) -> None:
    for number in range(REPLICAS // 8 + 1):
        system.add_node(f"n{number}", **SICK)
    until_seen(replica, *(f"n{number}" for number in range(REPLICAS // 8 + 1)))
    deploy(system, owners, "waits", {}, REPLICAS)
    wait_for("all are counted", lambda: counted(events(system, "NoNodeFits", "waits")) == REPLICAS)
    found = events(system, "NoNodeFits", "waits")
    assert 1 <= len(on_pods(found)) <= 2 * PODS_TOLD
    told = described(system, "deployment", "waits")
    assert "NoNodeFits" in told
    assert "node in quarantine" in told
    assert "take the label wattbalance.io/quarantine off" in told


def test_what_a_job_and_a_namespace_say_wrongly_is_told_on_them(
    system: System, replica: Replica, owners: list[str]
) -> None:
    system.add_node("n1")
    until_seen(replica, "n1")
    wrong = {"metadata": {"annotations": {PREFIX + "pools": "marz"}}}
    system.plane.request("PATCH", NAMESPACE, wrong)
    try:
        job = made("Job", "job", {"gpu-memory": "40 elephants"}, parallelism=6, completions=6)
        system.plane.request("POST", JOBS, job)
        owners.append(f"{JOBS}/job")
        wait_for("all are placed", lambda: nodes_of(system, "job") == {"n1"})
        wait_for("all are counted", lambda: counted(events(system, "BadAnnotation", "job")) == 6)
        told = described(system, "job", "job")
        assert "wattbalance.io/gpu-memory (job job): expected an amount of memory" in told
        assert "marz" not in told
        wait_for("the namespace is told", lambda: events(system, "BadAnnotation", "default"))
        [of_namespace] = events(system, "BadAnnotation", "default")
        assert of_namespace["involvedObject"]["kind"] == "Namespace"
        assert "wattbalance.io/pools (namespace default)" in of_namespace["message"]
        first = on_pods(events(system, "BadAnnotation", "job"))[0]
        for part in ("(job job)", "(namespace default)"):
            assert part in first["message"]
    finally:
        clean = {"metadata": {"annotations": {PREFIX + "pools": None}}}
        system.plane.request("PATCH", NAMESPACE, clean)
