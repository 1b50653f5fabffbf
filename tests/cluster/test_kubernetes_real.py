"""The contract on a real kube-apiserver, with the rights of deploy/rbac.yaml, and what only a real one does."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.cluster.api_request import Limits, Target
from scheduler.cluster.credentials import from_kubeconfig
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.port import MAY_BE_ABSENT, Changed, Kind, Only
from scheduler.core.errors import ApiForbidden, ApiRejected, ApiUnavailable
from tests.contracts.cluster_contract import (
    CLOCK,
    QUICK_LEASE,
    QUICK_PACE,
    ApiWorld,
    ClusterContract,
    Server,
    beside,
    changed,
    eventually,
    following,
    make_namespace,
    make_pod,
)
from tests.controlplane import WHY_NOT, ControlPlane, assets
from tests.fakes.server_credentials import from_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(assets() is None, reason=WHY_NOT)]

ACCOUNT = "system:serviceaccount:wattbalance:wattbalance"
NOBODY = "nobody"
# The contract writes to pods of namespaces of its own; the daemon only to pods of ours, and that is all it may.
ANY_POD = (
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "patch-any-pod"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "patch-any-pod"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patch-any-pod"},
        "subjects": [{"kind": "ServiceAccount", "name": "wattbalance", "namespace": "wattbalance"}],
    },
)
RBAC = Path(__file__).parents[2] / "deploy" / "rbac.yaml"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One control plane for all tests here."""
    groups = ["system:serviceaccounts", "system:authenticated"]
    with ControlPlane(users={ACCOUNT: groups, NOBODY: ["system:authenticated"]}) as plane:
        plane.apply_file(RBAC)
        plane.apply(*ANY_POD)
        yield plane


@pytest.fixture
def server(plane: ControlPlane) -> Server:
    """Its address, as our service account."""
    world = ApiWorld(plane.url, plane.admin_token, plane.ca_file)
    return Server(plane.url, plane.token(ACCOUNT), world, plane.ca_file)


class TestOnRealServer(ClusterContract):
    """Everything of the contract."""


async def test_every_kind_is_followed_with_the_shipped_role(server: Server) -> None:
    async with server.cluster() as cluster, asyncio.TaskGroup() as group:

        async def sync(kind: Kind) -> None:
            # Of ConfigMaps it may read one.
            only = Only("wattbalance", "wattbalance-pause") if kind is Kind.CONFIGMAP else None
            async with following(cluster, kind, only):
                await eventually(lambda: kind in cluster.synced | cluster.absent)

        for kind in Kind:
            group.create_task(sync(kind))
    assert not cluster.refused
    assert cluster.absent in (set(), MAY_BE_ABSENT)


async def test_a_watch_resumes_after_the_server_was_killed_without_listing_again(
    server: Server, plane: ControlPlane
) -> None:
    space = await make_namespace(server)
    async with server.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        await make_pod(server, space, "before")
        await pods.until(changed("before"))
        await asyncio.to_thread(plane.kill_apiserver)
        await asyncio.to_thread(plane.start_apiserver)
        await make_pod(server, space, "after")
        await pods.until(changed("after"))
        want_names = ["before", "after"]
        seen = [
            event.object.metadata.name
            for event in pods.events
            if isinstance(event, Changed) and event.object.metadata.name in want_names
        ]
        assert list(dict.fromkeys(seen)) == want_names
        assert cluster.counters.watch_restarts[Kind.POD] >= 1


async def test_what_the_role_lacks_is_named_with_the_rule_to_add(plane: ControlPlane) -> None:
    credentials = from_server(plane.url, token=plane.token(NOBODY), ca_file=plane.ca_file, clock=CLOCK)
    async with KubernetesCluster(credentials, CLOCK, pace=QUICK_PACE) as cluster:
        with pytest.raises(ApiForbidden) as caught:
            await cluster.label_pod("default", "p", {"a": "b"})
        want = (
            "may not patch pods in namespace default; add to wattbalance's Role: "
            '{apiGroups: [""], resources: ["pods"], verbs: ["patch"]}'
        )
        assert want in str(caught.value)
        with pytest.raises(ApiForbidden) as caught:
            await cluster.annotate_pod("default", "p", "u", {"a": "b"})
        assert want.replace("Role", "ClusterRole") in str(caught.value)
        async with following(cluster, Kind.DEPLOYMENT) as deployments:
            await eventually(lambda: Kind.DEPLOYMENT in cluster.refused)
            assert not deployments.events
        want = (
            "may not list deployments in the whole cluster; add to wattbalance's ClusterRole: "
            '{apiGroups: ["apps"], resources: ["deployments"], verbs: ["list"]}'
        )
        assert want in cluster.refused[Kind.DEPLOYMENT]


async def test_a_token_that_is_not_accepted_is_said_so(plane: ControlPlane) -> None:
    credentials = from_server(plane.url, token="wrong", ca_file=plane.ca_file, clock=CLOCK)
    async with KubernetesCluster(credentials, CLOCK) as cluster:
        with pytest.raises(ApiForbidden, match="not accepted") as caught:
            await cluster.get_pod("default", "p")
    assert caught.value.status == 401


async def test_the_role_may_do_nothing_beyond_its_features(server: Server) -> None:
    async with server.cluster() as cluster:
        for verb, resource in (("list", "secrets"), ("list", "configmaps"), ("list", "services")):
            with pytest.raises(ApiForbidden):
                await cluster.transport.call(verb, Target(resource=resource))


async def test_a_kubeconfig_leads_to_the_same_server_again_and_again(plane: ControlPlane) -> None:
    # Twice, since the loader remembers the names of temporary files that we have removed.
    for _ in range(2):
        credentials = from_kubeconfig(plane.kubeconfig(ACCOUNT), clock=CLOCK)
        async with KubernetesCluster(credentials, CLOCK) as cluster:
            assert await cluster.has_api("events.k8s.io", "v1")
            assert not await cluster.has_api("events.k8s.io", "v99")


async def test_too_large_annotations_are_rejected_for_good(server: Server) -> None:
    space = await make_namespace(server)
    uid = await make_pod(server, space, "p")
    async with server.cluster() as cluster:
        with pytest.raises(ApiRejected):
            await cluster.annotate_pod(space, "p", uid, {"x.io/a": "x" * 262_145})


async def test_a_frozen_server_ends_leading_before_the_lease_does(
    server: Server, plane: ControlPlane
) -> None:
    """Connected and silent: nobody may act on; afterwards it recovers by itself."""
    ended_mono_s: list[float] = []

    async def lead(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended_mono_s.append(CLOCK.mono_s())

    assert plane.apiserver is not None
    async with server.cluster() as cluster:
        elector = cluster.elector(namespace=server.namespace, identity="frozen-1", times=QUICK_LEASE)
        async with beside(elector.run(lead)):
            await eventually(lambda: elector.is_leading(CLOCK.mono_s()))
            want_term = elector.term + 1
            # None, but where the machine stalled for longer than this short lease.
            before = len(ended_mono_s)
            plane.apiserver.pause()
            try:
                await eventually(lambda: len(ended_mono_s) > before)
                assert not elector.is_leading(CLOCK.mono_s())
                assert elector.deadline_mono_s == -math.inf
                with pytest.raises(ApiUnavailable):
                    await cluster.transport.call(
                        "get",
                        cluster.elector(namespace="x", identity="y")._target,
                        timeout_s=0.3,
                    )
            finally:
                plane.apiserver.resume()
            await eventually(lambda: elector.is_leading(CLOCK.mono_s()))
            assert elector.term >= want_term
            assert elector.losses > before


async def test_a_silent_watch_is_resumed_and_loses_nothing(server: Server) -> None:
    space = await make_namespace(server)
    limits = Limits(silence_s=0.4)
    async with server.cluster(limits=limits) as cluster, following(cluster, Kind.JOB) as jobs:
        await jobs.listed()
        # No job ever changes, so each watch is silent until it is given up.
        await eventually(lambda: cluster.counters.watch_restarts[Kind.JOB] >= 3)
        spec = {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}}
        }
        job: dict[str, object] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "late", "namespace": space},
            "spec": spec,
        }
        await server.world.call("POST", f"/apis/batch/v1/namespaces/{space}/jobs", job)
        await jobs.until(changed("late"))
        assert not cluster.counters.relists[Kind.JOB]
