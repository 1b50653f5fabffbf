"""What kube-scheduler would have weighed and decisive placement passes by: siblings on a node, images on a node."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controlplane import Daemon, node_manifest, pod_manifest
from tests.e2e.system import SCHEDULER_NAME, Replica, System, until_seen, view, wait_for
from tests.e2e.test_annotations import BACKGROUND, DEPLOYMENTS, ended, made, nodes_of, pods_of

pytestmark = pytest.mark.e2e

NODES = ("near-a", "near-b", "near-c")


def test_replicas_of_a_deployment_spread_though_one_node_is_the_least_loaded(
    system: System, replica: Replica, scheduler: Daemon, controllers: Daemon
) -> None:
    """Two nodes hold work of others: by load alone, the first replicas would all go to the third."""
    for name in NODES:
        system.add_node(name)
    for name in NODES[1:]:
        system.plane.apply(pod_manifest(f"on-{name}", gpus=1, node=name))
    until_seen(replica, *NODES)
    wait_for(
        "others' work is seen", lambda: all(view(replica, name)["bound_gpus"] == 1 for name in NODES[1:])
    )
    selector = {"selector": {"matchLabels": {"app": "web"}}, "replicas": 3}
    system.plane.request("POST", DEPLOYMENTS, made("Deployment", "web", {}, **selector))
    try:
        wait_for(
            "all are placed", lambda: len(pods_of(system, "web")) == 3 and "" not in nodes_of(system, "web")
        )
        assert nodes_of(system, "web") == set(NODES)
        placed: list[dict[str, Any]] = replica.get("/api/v1/decisions?result=placed")["items"]
        weighed = [[each["policy"] for each in record["policies"]] for record in placed[:3]]
        # The newest first; of the very first replica there was nobody to spread from.
        assert ["spread" in names for names in weighed] == [True, True, False]
    finally:
        system.plane.request("DELETE", f"{DEPLOYMENTS}/web", BACKGROUND)
        wait_for("its pods are gone", lambda: ended(system, "web"))


def test_a_pod_goes_where_its_image_is(system: System, replica: Replica, scheduler: Daemon) -> None:
    images = {"img-a": "registry.example.com/team/one:latest", "img-b": "registry.example.com/team/two:v2"}
    for name, image in images.items():
        manifest = node_manifest(name, labels={"site": "dc-1"})
        listed = [{"names": [image, f"{image}-as-well"], "sizeBytes": 20_000_000_000}]
        manifest["status"]["images"] = listed  # type: ignore[index]  # its own shape
        system.plane.apply(manifest)
    until_seen(replica, *images)
    # Without a tag it is the latest one.
    for pod, image, want_node in (
        ("wants-one", "registry.example.com/team/one", "img-a"),
        ("wants-two", "registry.example.com/team/two:v2", "img-b"),
    ):
        manifest = pod_manifest(pod, gpus=8, scheduler=SCHEDULER_NAME)
        manifest["spec"]["containers"][0]["image"] = image  # type: ignore[index]  # likewise
        system.plane.apply(manifest)
        assert system.bound(pod) == want_node
        [record] = replica.get(f"/api/v1/decisions?pod={pod}")["items"]
        raw = {each["node"]: each["scores"][-1] for each in record["best"]}
        assert [each["policy"] for each in record["policies"]][-1] == "image"
        assert raw == {name: float(name == want_node) for name in images}
        system.delete_pod(pod)
        wait_for("it is gone", lambda: all(view(replica, name)["free_gpus"] == 8 for name in images))
