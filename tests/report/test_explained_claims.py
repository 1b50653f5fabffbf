"""A pod that asks for devices by claims alone is explained as what it is: placed by kube-scheduler, counted by us."""

from __future__ import annotations

import io

from rich.console import Console

from scheduler.client.tables import print_explanation
from scheduler.cluster.objects import Container, Meta, Node, NodeStatus, Pod, PodSpec, PodStatus, Present
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.report.absent import BY_CLAIMS
from tests.builders import make_inventory, make_node, make_pod
from tests.dra import make_claim, make_class, make_slice
from tests.report.test_explained import World


def claimer(node: str = "", phase: str = "") -> Pod:
    """It names no resource."""
    return Pod(
        metadata=Meta(name="p1", namespace="team-a", uid="uid-p1", creation_timestamp="2026-01-01T00:00:00Z"),
        spec=PodSpec(node_name=node, containers=[Container()], resource_claims=[Present()]),
        status=PodStatus(phase=phase),
    )


async def test_it_is_told_who_places_it_and_what_its_claims_hold() -> None:
    world = World()
    world.see(claimer())
    told = await world.explained("p1")
    assert (told.state, told.node, told.now, told.decision) == ("waiting", "", None, None)
    assert told.notes == [BY_CLAIMS]
    assert told.waited_s is not None
    for thing in (make_slice("n1"), make_claim(devices=["gpu-3"], pods=("uid-p1", "uid-p2"))):
        world.store.apply(Changed(Kind.RESOURCESLICE, thing), 0.0)
    world.see(claimer("n1"))
    told = await world.explained("p1")
    assert (told.state, told.node, told.waited_s) == ("bound", "n1", None)
    assert told.notes == [BY_CLAIMS, "claim team-a/c1 holds gpu-3 of n1."]


async def test_it_reads_well_in_a_terminal() -> None:
    world = World()
    world.see(claimer())
    out = Console(file=io.StringIO(), width=200)
    print_explanation(out, await world.explained("p1"), wide=False)
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert lines[0].split() == ["Pod", "team-a/p1"]
    assert not [line for line in lines if line.startswith("Workload")]
    assert "resource claims alone" in out.file.getvalue()


async def test_it_is_forgotten_when_it_ends_or_is_gone() -> None:
    world = World()
    world.see(claimer("n1"))
    world.see(claimer("n1", phase="Succeeded"))
    await world.unknown("p1")
    world.see(claimer())
    world.store.apply(Listed(Kind.POD, frozenset()), 0.0)
    await world.unknown("p1")
    assert not len(world.store.claimers)


async def test_a_pod_that_waits_is_told_of_gpus_that_agents_alone_find() -> None:
    world = World()
    world.see(make_pod("p1", 8))

    async def told() -> list[str]:
        return [note for note in (await world.explained("p1")).notes if "Kubernetes does not offer" in note]

    assert await told() == []
    for index in range(3, 10):
        world.store.apply(Changed(Kind.NODE, make_node(f"n{index}", 0)), 0.0)
        world.store.see_inventory(f"n{index}", make_inventory(f"n{index}"))
        if index == 3:
            assert (await told())[0].startswith(
                "1 node has GPUs that an agent finds and Kubernetes does not offer (n3):"
            )
    assert (await told())[0].startswith("7 nodes have GPUs")
    assert "(n3, n4, n5, n6, n7, ...)" in (await told())[0]
    world.see(make_pod("p1", 8, node="n1"))
    assert await told() == [], "it runs"


async def test_a_pod_that_waits_is_told_that_no_class_gives_the_gpus_by_dra_its_name() -> None:
    world = World()
    bare = Node(metadata=Meta(name="n3"), status=NodeStatus(allocatable={"cpu": "96"}))
    for thing in (bare, make_slice("n3")):
        world.store.apply(Changed(Kind.RESOURCESLICE, thing), 0.0)
    world.see(make_pod("p1", 8))
    want = "1 node offers nvidia.com/gpu by DRA alone, and no DeviceClass has extendedResourceName: nvidia.com/gpu."

    async def is_told() -> bool:
        return any(note.startswith(want) for note in (await world.explained("p1")).notes)

    assert not await is_told(), "the classes are not known"
    world.store.apply(Listed(Kind.DEVICECLASS, frozenset()), 0.0)
    assert await is_told()
    world.store.apply(Changed(Kind.DEVICECLASS, make_class("example.com/gpu")), 0.0)
    assert await is_told()
    world.store.apply(Changed(Kind.DEVICECLASS, make_class()), 0.0)
    assert not await is_told()
    world.store.apply(Gone(Kind.DEVICECLASS, make_class()), 0.0)
    assert await is_told()
    world.see(make_pod("p1", 8, node="n1"))
    assert not await is_told(), "it runs"
