"""Pods that ask for devices by claims alone, and no others, by namespace and name."""

from __future__ import annotations

import pytest

from scheduler.cluster.claimers import Claimers
from scheduler.cluster.objects import Container, Meta, Pod, PodSpec, PodStatus, Present
from scheduler.cluster.objects import Resources as ContainerResources


def pod(namespace: str = "team-a", phase: str = "", *, claims: bool = True, gpus: int = 0) -> Pod:
    asked = ContainerResources(limits={"nvidia.com/gpu": str(gpus)} if gpus else {"cpu": "4"})
    return Pod(
        metadata=Meta(name="p", namespace=namespace, uid=f"uid-{namespace}"),
        spec=PodSpec(
            containers=[Container(resources=asked)], resource_claims=[Present()] if claims else None
        ),
        status=PodStatus(phase=phase),
    )


def test_a_pod_is_found_in_its_own_namespace() -> None:
    claimers = Claimers()
    for namespace in ("team-a", "team-b"):
        claimers.see(pod(namespace), gone=False)
    found = claimers.find("team-b", "p")
    assert found is not None
    assert found.uid == "uid-team-b"
    assert claimers.find("team-c", "p") is None


@pytest.mark.parametrize(
    "seen", [pod(claims=False), pod(gpus=1), pod(phase="Succeeded"), pod(phase="Failed")]
)
def test_pods_that_ask_otherwise_or_have_ended_are_none_of_them(seen: Pod) -> None:
    claimers = Claimers()
    claimers.see(pod(), gone=False)
    claimers.see(seen, gone=False)
    assert len(claimers) == 0
    claimers.see(seen, gone=False)
    assert len(claimers) == 0


def test_the_name_of_a_device_class_is_a_claim_and_a_name_of_gpus_is_none() -> None:
    claimers = Claimers(frozenset({"example.com/a100"}))

    def see(*names: str) -> int:
        limits: dict[str, str | int | float] = dict.fromkeys(names, "1")
        asked = Container(resources=ContainerResources(limits=limits))
        spec = PodSpec(containers=[asked], resource_claims=None)
        claimers.see(Pod(metadata=Meta(name="p", uid="u"), spec=spec), gone=False)
        return len(claimers)

    by_class = "deviceclass.resource.kubernetes.io/gpu.nvidia.com"
    assert see("rdma/hca") == 0
    assert see(by_class, "rdma/hca") == 1
    assert see(by_class, "example.com/a100") == 0
    assert see(by_class) == 1
    assert see(by_class, "nvidia.com/gpu.shared") == 0


def test_a_pod_that_is_gone_or_that_a_listing_lacks_is_forgotten() -> None:
    claimers = Claimers()
    for namespace in ("team-a", "team-b", "team-c"):
        claimers.see(pod(namespace), gone=False)
    claimers.see(pod("team-a"), gone=True)
    claimers.keep({"uid-team-b"})
    assert len(claimers) == 1
    assert claimers.find("team-b", "p") is not None
