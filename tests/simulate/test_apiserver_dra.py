"""resource.k8s.io on the simulated API server: served from 1.34 on, and as strict as a driver would find it."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import pytest

from scheduler.core.clock import ManualClock
from scheduler.core.errors import ApiConflict, ApiRejected
from scheduler.simulate.apiserver import ApiServer
from tests.dra import API, Json, claim_manifest, claim_status, class_manifest, gpu, slice_manifest


def server(minor: int = 34) -> ApiServer:
    """With the namespace of the claims."""
    made = ApiServer(ManualClock(), minor=minor)
    made.create("namespaces", {"metadata": {"name": "team-a"}})
    return made


@pytest.mark.parametrize(("minor", "want_status"), [(33, 404), (34, 200)])
async def test_the_group_is_discovered_and_listed_where_the_version_has_it(
    minor: int, want_status: int
) -> None:
    api = server(minor)
    await api.start()
    try:
        async with aiohttp.ClientSession(api.url) as session:
            async with session.get("/apis") as answer:
                groups = {group["name"] for group in (await answer.json())["groups"]}
            assert ("resource.k8s.io" in groups) == (want_status == 200)
            for path in (f"/apis/{API}", f"/apis/{API}/resourceslices", f"/apis/{API}/resourceclaims"):
                async with session.get(path) as answer:
                    assert answer.status == want_status
            if want_status == 200:
                async with session.get(f"/apis/{API}") as answer:
                    served = {each["name"]: each["namespaced"] for each in (await answer.json())["resources"]}
                assert served == {
                    "resourceslices": False,
                    "resourceclaims": True,
                    "resourceclaims/status": True,
                    "deviceclasses": False,
                }
    finally:
        await api.stop()


def test_a_slice_is_kept_whole_and_a_claim_without_the_status_it_came_with() -> None:
    api = server()
    want = slice_manifest()["spec"]
    api.create("resourceslices", slice_manifest())
    api.create("deviceclasses", class_manifest())
    assert api.get("resourceslices", "n1-gpu.nvidia.com-0")["spec"] == want
    assert "status" not in api.get("deviceclasses", "gpu.nvidia.com")
    api.create("resourceclaims", claim_manifest() | {"status": claim_status(["gpu-0"])})
    assert api.get("resourceclaims", "c1", "team-a")["status"] == {}
    want_status = claim_status(["gpu-0"], pods=("uid-a",))
    api.patch("resourceclaims", "c1", "team-a", {"status": want_status}, status=True)
    assert api.get("resourceclaims", "c1", "team-a")["status"] == want_status


@pytest.mark.parametrize(
    ("spoil", "want_why"),
    [
        (lambda spec: spec.pop("driver"), "spec.driver: Required"),
        (lambda spec: spec["pool"].pop("name"), "spec.pool.name: Required"),
        (lambda spec: spec["pool"].update(resourceSliceCount=0), "greater than zero"),
        (lambda spec: spec.pop("nodeName"), "exactly one of"),
        (lambda spec: spec.update(allNodes=True), "exactly one of"),
        (lambda spec: spec.update(devices=[gpu(0), gpu(0)]), "Duplicate"),
        (lambda spec: spec.update(devices=[gpu(index) for index in range(129)]), "Too many"),
    ],
)
def test_slices_that_no_server_takes_are_refused(spoil: Callable[[Json], object], want_why: str) -> None:
    manifest = slice_manifest()
    spoil(manifest["spec"])
    with pytest.raises(ApiRejected, match=want_why):
        server().create("resourceslices", manifest)


@pytest.mark.parametrize(
    "patch", [{"driver": "other"}, {"nodeName": "n2"}, {"pool": {"name": "n2"}}], ids=min
)
def test_whose_a_slice_is_does_not_change_and_what_is_in_it_may(patch: Json) -> None:
    api = server()
    api.create("resourceslices", slice_manifest())
    with pytest.raises(ApiRejected, match="immutable"):
        api.patch("resourceslices", "n1-gpu.nvidia.com-0", "", {"spec": patch})
    api.patch(
        "resourceslices", "n1-gpu.nvidia.com-0", "", {"spec": {"pool": {"generation": 2}, "devices": []}}
    )


def test_a_claim_is_reserved_only_once_it_is_allocated_and_its_allocation_stands() -> None:
    api = server()
    api.create("resourceclaims", claim_manifest())

    def put(status: Json) -> None:
        api.patch("resourceclaims", "c1", "team-a", {"status": status}, status=True)

    with pytest.raises(ApiRejected, match="reservedFor"):
        put({"reservedFor": claim_status([], pods=("uid-a",))["reservedFor"]})
    with pytest.raises(ApiRejected, match="Duplicate"):
        put(claim_status(["gpu-0"], pods=("uid-a", "uid-a")))
    put(claim_status(["gpu-0"]))
    with pytest.raises(ApiRejected, match="immutable"):
        put(claim_status(["gpu-1"]))
    with pytest.raises(ApiRejected, match="immutable"):
        api.patch("resourceclaims", "c1", "team-a", {"spec": {"devices": {"requests": []}}})
    put({"allocation": None, "reservedFor": None})
    put(claim_status(["gpu-1"]))


def test_a_name_is_taken_once() -> None:
    api = server()
    api.create("resourceslices", slice_manifest())
    with pytest.raises(ApiConflict):
        api.create("resourceslices", slice_manifest())
