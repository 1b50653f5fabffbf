"""Pods land where they should: a real kube-scheduler asks, our agents measure, the API server is the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.controlplane import Daemon, pod_manifest
from tests.e2e.conftest import StartAgent
from tests.e2e.system import Replica, System, metric, readiness, until_seen, view, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e

TRAINING = {"wattbalance.io/workload": "training"}
INFERENCE = {"wattbalance.io/workload": "inference"}
BATCH = {"wattbalance.io/workload": "batch"}
JOBS = "/apis/batch/v1/namespaces/default/jobs"
# NVML_ERROR_GPU_IS_LOST
GPU_IS_LOST = 15


@pytest.fixture
def replica(system: System) -> Replica:
    # Measured load forgets fast, so that a test sees a change of load soon.
    return system.serve(telemetry={"broker": system.broker.url, "stale": "10s", "half_life": "500ms"})


def add_part_full_nodes(system: System, replica: Replica, prefix: str) -> None:
    """Three nodes of 8 GPUs, of which others hold 7, 4 and none."""
    fullest, half, empty = (f"{prefix}-{letter}" for letter in "abc")
    for name in (fullest, half, empty):
        system.add_node(name)
    system.plane.apply(pod_manifest("fills-a", gpus=7, node=fullest))
    system.plane.apply(pod_manifest("fills-b", gpus=4, node=half))
    wait_for(
        "both are accounted",
        lambda: (view(replica, fullest)["free_gpus"], view(replica, half)["free_gpus"]) == (1, 4),
    )
    until_seen(replica, empty)


def test_training_packs_onto_the_fullest_node_that_fits(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    add_part_full_nodes(system, replica, "pack")
    system.add_pod("two", 2, annotations=TRAINING)
    assert system.bound("two") == "pack-b"
    system.add_pod("one", 1, annotations=TRAINING)
    assert system.bound("one") == "pack-a"
    system.add_pod("eight", 8, annotations=TRAINING)
    assert system.bound("eight") == "pack-c"


def test_a_pod_of_a_job_counts_as_training(system: System, replica: Replica, scheduler: Daemon) -> None:
    system.add_node("job-a")
    until_seen(replica, "job-a")
    manifest = pod_manifest("of-a-job", scheduler="wattbalance")
    metadata = manifest["metadata"]
    assert isinstance(metadata, dict)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "6f1c", "controller": True}
    metadata["ownerReferences"] = [owner]
    system.plane.apply(manifest)
    assert system.bound("of-a-job") == "job-a"
    [decision] = replica.get("/api/v1/decisions?pod=of-a-job")["items"]
    assert decision["profile"] == "training"


def profile_of(replica: Replica, pod: str) -> str:
    [decision] = replica.get(f"/api/v1/decisions?pod={pod}")["items"]
    return str(decision["profile"])


@pytest.fixture
def job_of_a_cron_job(system: System) -> Iterator[dict[str, object]]:
    """A Job as the CronJob controller makes it; what its pods name as their owner."""
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": "nightly",
        "uid": "8d2e",
        "controller": True,
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "nightly-1", "namespace": "default", "ownerReferences": [owner]},
        "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "none"}]}}
        },
    }
    made = system.plane.request("POST", JOBS, job)
    assert isinstance(made, dict)
    uid = made["metadata"]["uid"]
    yield {"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-1", "uid": uid, "controller": True}
    system.plane.request("DELETE", f"{JOBS}/nightly-1", {"propagationPolicy": "Background"})


def test_batch_packs_by_annotation_and_as_a_cron_jobs(
    system: System, job_of_a_cron_job: dict[str, object], replica: Replica, scheduler: Daemon
) -> None:
    add_part_full_nodes(system, replica, "batch")
    system.add_pod("two", 2, annotations=BATCH)
    assert system.bound("two") == "batch-b"
    assert profile_of(replica, "two") == "batch"
    # Its owner alone would make it training: that it is a CronJob's stands in the Job only.
    manifest = pod_manifest("of-a-cron-job", scheduler="wattbalance")
    metadata = manifest["metadata"]
    assert isinstance(metadata, dict)
    metadata["ownerReferences"] = [job_of_a_cron_job]
    system.plane.apply(manifest)
    assert system.bound("of-a-cron-job") == "batch-a"
    assert profile_of(replica, "of-a-cron-job") == "batch"


def test_inference_goes_where_agents_measure_least_and_follows_the_load(
    system: System,
    replica: Replica,
    scheduler: Daemon,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    stubs = {name: make_stub(name) for name in ("load-a", "load-b")}

    def set_load(name: str, util_pct: int) -> None:
        for gpu in range(8):
            stubs[name].set(gpu, "util_pct", util_pct)

    def until_measured(name: str, low: float, high: float) -> None:
        def measured() -> bool:
            load = view(replica, name)["load_frac"]
            return isinstance(load, float) and low <= load <= high

        wait_for(f"{name} is measured between {low} and {high}", measured)

    for name, util_pct in (("load-a", 90), ("load-b", 5)):
        system.add_node(name)
        set_load(name, util_pct)
        start_agent(name, stubs[name])
    until_measured("load-a", 0.85, 1)
    until_measured("load-b", 0, 0.1)
    system.add_pod("first", annotations=INFERENCE)
    assert system.bound("first") == "load-b"
    set_load("load-a", 5)
    set_load("load-b", 95)
    until_measured("load-a", 0, 0.1)
    until_measured("load-b", 0.9, 1)
    system.add_pod("second", annotations=INFERENCE)
    assert system.bound("second") == "load-a"


def test_the_cloud_gets_work_only_when_the_data_centre_is_full(
    system: System, replica: Replica, scheduler: Daemon
) -> None:
    system.add_node("cloud-a", 8, site="aws-a")
    system.add_node("own-a", 2)
    until_seen(replica, "cloud-a", "own-a")
    landed = []
    for name in ("p-1", "p-2", "p-3"):
        system.add_pod(name, annotations=INFERENCE)
        landed.append(system.bound(name))
    want_landed = ["own-a", "own-a", "cloud-a"]
    assert landed == want_landed


def test_a_pod_bound_past_us_is_accounted_and_counted(system: System, replica: Replica) -> None:
    system.add_node("past-a")
    until_seen(replica, "past-a")
    # A leader counts.
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    assert metric(replica, "wattbalance_bypassed_pods_total", reason="other_scheduler") == 0
    system.plane.apply(pod_manifest("past-us", gpus=3, node="past-a"))
    wait_for("its GPUs are accounted", lambda: view(replica, "past-a")["bound_gpus"] == 3)
    assert view(replica, "past-a")["free_gpus"] == 5
    assert metric(replica, "wattbalance_bypassed_pods_total", reason="other_scheduler") == 1


def test_a_lost_gpu_keeps_a_pod_of_the_whole_node_away_and_the_pod_says_why(
    system: System,
    replica: Replica,
    scheduler: Daemon,
    make_stub: Callable[[str], NvmlStub],
    start_agent: StartAgent,
) -> None:
    stub = make_stub("lost-a")
    stub.fault(3, "all", GPU_IS_LOST)
    system.add_node("lost-a")
    start_agent("lost-a", stub)
    wait_for("the loss is known", lambda: view(replica, "lost-a")["broken_gpus"] == 1)
    system.add_pod("whole-node", 8)

    def message() -> str:
        conditions = system.pod("whole-node")["status"].get("conditions", [])
        return " ".join(str(condition.get("message", "")) for condition in conditions)

    wait_for("the pod says why", lambda: "not enough healthy GPUs" in message())
    assert system.node_of("whole-node") == ""
    # One less fits, so it was the GPU and nothing else.
    system.add_pod("one-less", 7)
    assert system.bound("one-less") == "lost-a"
