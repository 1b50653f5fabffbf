"""Following DRA's kinds on a real kube-apiserver, with the rights of deploy/rbac.yaml.

Servers have the group in v1 from 1.34 on. On an older one custom resources stand in for it: discovery, rights, lists,
watches and subresources are then the real server's all the same, only what it checks of the objects is not.
"""

from __future__ import annotations

import asyncio
import time
import urllib.error
from typing import TYPE_CHECKING

import pytest

from scheduler.cluster.port import Kind
from tests.cluster.test_kubernetes_real import ACCOUNT, RBAC
from tests.contracts.cluster_contract import ApiWorld, Server, eventually, following
from tests.contracts.dra_contract import DraContract
from tests.controlplane import WHY_NOT, ControlPlane, assets
from tests.dra import API, GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.controlplane import Json

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(assets() is None, reason=WHY_NOT)]

LACKS = f"this kube-apiserver has no {API}, which comes with 1.34; custom resources stand in for it below"
READY_LIMIT_S = 60.0
PLURALS = ("resourceslices", "resourceclaims", "deviceclasses")


def serves_dra(plane: ControlPlane) -> bool:
    """Whether discovery names the group in v1."""
    groups = plane.request("GET", "/apis")
    assert isinstance(groups, dict)
    versions = {each["groupVersion"] for group in groups["groups"] for each in group["versions"]}
    return API in versions


def stand_in(kind: str, plural: str, *, namespaced: bool) -> Json:
    """A definition under the group's own name, which the server asks to be owned up to."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if namespaced:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [version],
        },
    }


def install_stand_ins(plane: ControlPlane) -> None:
    """Let the server have the group, and wait until it says so."""
    plane.apply(
        stand_in("ResourceSlice", "resourceslices", namespaced=False),
        stand_in("ResourceClaim", "resourceclaims", namespaced=True),
        stand_in("DeviceClass", "deviceclasses", namespaced=False),
    )
    deadline_s = time.monotonic() + READY_LIMIT_S
    want_names = set(PLURALS)
    while not (serves_dra(plane) and want_names <= served(plane)):
        assert time.monotonic() < deadline_s, "the definitions are not served"
        time.sleep(0.1)


def served(plane: ControlPlane) -> set[str]:
    """What the server says the group has; it may name the group before it knows any more of it."""
    try:
        found = plane.request("GET", f"/apis/{API}")
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in {404, 503}:
                raise
        return set()
    assert isinstance(found, dict)
    return {each["name"] for each in found["resources"]}


def remove_stand_ins(plane: ControlPlane) -> None:
    """Take them away again, and wait until the server says so."""
    for plural in PLURALS:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}"
        plane.request("DELETE", path)
    deadline_s = time.monotonic() + READY_LIMIT_S
    # Discovery forgets them before the last list is answered.
    while serves_dra(plane) or any(is_listed(plane, plural) for plural in PLURALS):
        assert time.monotonic() < deadline_s, "the definitions are still served"
        time.sleep(0.1)


def is_listed(plane: ControlPlane, plural: str) -> bool:
    """Whether a list of them is answered."""
    try:
        plane.request("GET", f"/apis/{API}/{plural}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code != 404
    return True


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One control plane for all tests here."""
    with ControlPlane(users={ACCOUNT: ["system:serviceaccounts", "system:authenticated"]}) as plane:
        plane.apply_file(RBAC)
        yield plane


@pytest.fixture(scope="module", autouse=True)
def native(plane: ControlPlane) -> bool:
    """Whether the server had the group by itself, before any test."""
    return serves_dra(plane)


def as_daemon(plane: ControlPlane) -> Server:
    """Its address, as our service account."""
    world = ApiWorld(plane.url, plane.admin_token, plane.ca_file)
    return Server(plane.url, plane.token(ACCOUNT), world, plane.ca_file)


class TestWhereTheServerHasIt(DraContract):
    """Everything of the contract."""

    @pytest.fixture
    def server(self, plane: ControlPlane, *, native: bool) -> Server:
        """A server that has the group by itself."""
        if not native:
            pytest.skip(LACKS)
        return as_daemon(plane)


async def test_a_real_server_without_it_is_no_fault_and_with_it_is_followed_at_once(
    plane: ControlPlane, *, native: bool
) -> None:
    if native:
        pytest.skip("this kube-apiserver has the group by itself")
    if serves_dra(plane):
        # Tests come in any order.
        await asyncio.to_thread(remove_stand_ins, plane)
    async with as_daemon(plane).cluster() as cluster, following(cluster, Kind.RESOURCESLICE) as slices:
        await eventually(lambda: Kind.RESOURCESLICE in cluster.absent)
        assert not cluster.refused
        await asyncio.to_thread(install_stand_ins, plane)
        await slices.listed()
        await eventually(lambda: not cluster.absent)


class TestWithCustomResourcesInItsPlace(DraContract):
    """Everything of the contract."""

    @pytest.fixture
    def server(self, plane: ControlPlane) -> Server:
        """A server that was given the group."""
        if not serves_dra(plane):
            install_stand_ins(plane)
        return as_daemon(plane)
