"""GPUs by DRA on a real API server, with the shipped role: counted, promised, bound and told of, each once.

kube-scheduler's part of it (devices, and the claim that it makes for a pod's extended resources) is played here, since
only a kube-scheduler of 1.34 has it. Where the server lacks resource.k8s.io, custom resources stand in for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.brokers import mosquitto_path
from tests.cluster.test_dra_real import install_stand_ins, serves_dra
from tests.controlplane import WHY_NOT, assets, collection_path, pod_manifest
from tests.dra import claim_manifest, claim_status, slice_manifest
from tests.e2e.system import Replica, System, metric, readiness, run_system, until_seen, view, wait_for

pytestmark = pytest.mark.e2e

NODES = ("dra-a", "dra-b")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One of our own: what it serves must not change beneath other tests."""
    if assets() is None:
        pytest.skip(WHY_NOT)
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed: scripts/install-debian installs it")
    with run_system(tmp_path_factory.mktemp("dra"), audited=True) as system:
        if not serves_dra(system.plane):
            install_stand_ins(system.plane)
        for node in NODES:
            bare: dict[str, object] = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node},
                "status": {"allocatable": {"cpu": "96", "memory": "1000Gi", "pods": "110"}},
            }
            system.plane.apply(bare, slice_manifest(node))
        yield system


@pytest.fixture
def replica(system: System) -> Iterator[Replica]:
    replica = system.serve(extender={"bind": True})
    until_seen(replica, *NODES)
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    yield replica
    replica.process.stop()


def claim(system: System, name: str, node: str, devices: list[str], pod: str = "", of: str = "") -> None:
    """A claim that is allocated; `of` is the pod (uid) for whose extended resources it was made."""
    manifest = claim_manifest(name, "default", extended_of=of)
    if of:
        manifest["metadata"]["ownerReferences"][0]["name"] = pod
    path = collection_path(manifest)
    system.plane.request("POST", path, manifest)
    status = claim_status(devices, node, (of or "somebody",))
    system.plane.request("PATCH", f"{path}/{name}/status", {"status": status})


def books(replica: Replica, node: str) -> tuple[float, float, float, float]:
    """GPUs in all, bound, promised, free."""
    told = view(replica, node)
    return told["gpus"], told["bound_gpus"], told["reserved_gpus"], told["free_gpus"]


def place(system: System, replica: Replica, name: str, gpus: int) -> tuple[str, dict[str, Any]]:
    """A new pod, offered both nodes; returns ours and the pod."""
    system.plane.apply(pod_manifest(name, gpus=gpus))
    pod = system.pod(name)
    (node,) = replica.post("filter", {"Pod": pod, "NodeNames": list(NODES)})["NodeNames"]
    return str(node), pod


def test_gpus_of_slices_are_promised_claimed_and_bound_once_and_after_a_restart(
    system: System, replica: Replica
) -> None:
    wait_for("they have GPUs", lambda: [books(replica, node) for node in NODES] == [(8, 0, 0, 8)] * 2)
    first, pod = place(system, replica, "whole", 8)
    assert books(replica, first) == (8, 0, 8, 0)
    uid = pod["metadata"]["uid"]
    claim(system, "whole-extended", first, [f"gpu-{index}" for index in range(8)], "whole", uid)

    def claims() -> list[list[str]]:
        return [each["claims"] for each in view(replica, first)["devices"]]

    wait_for("the claim is seen", lambda: claims() == [["default/whole-extended"]] * 8)
    assert books(replica, first) == (8, 0, 8, 0), "promised and claimed"
    question = {"PodName": "whole", "PodNamespace": "default", "PodUID": uid, "Node": first}
    assert replica.post("bind", question) == {"Error": ""}
    wait_for("it is bound", lambda: books(replica, first) == (8, 8, 0, 0))
    (second,) = {*NODES} - {first}
    assert place(system, replica, "next", 5)[0] == second, "the other one is full"
    claim(system, "explicit", second, ["gpu-0", "gpu-1", "gpu-2", "gpu-3"])
    wait_for("a claim evicts what no longer fits", lambda: books(replica, second) == (8, 4, 0, 4))
    assert metric(replica, "wattbalance_reservations_lost_total", reason="evicted") == 1
    told = replica.get("/api/v1/explain/default/next")
    assert told["now"]["fitting"] == 0
    assert told["now"]["full"] == 2
    assert f"Nearest is {second}: 4 free, 1 more must end there." in told["now"]["unblock"][0]["text"]

    assert replica.process.stop() == 0
    again = system.serve()
    want_books = {first: (8, 8, 0, 0), second: (8, 4, 0, 4)}
    wait_for("all is rebuilt", lambda: {node: books(again, node) for node in NODES} == want_books)
    asked = {each["requestURI"].partition("?")[0] for each in system.requests()}
    assert {f"/apis/resource.k8s.io/v1/{kind}" for kind in ("resourceslices", "resourceclaims")} <= asked
    refused = [
        each["requestURI"] for each in system.requests() if each["responseStatus"]["code"] in {401, 403}
    ]
    assert refused == []
