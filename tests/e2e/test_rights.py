"""The shipped role is what `serve` needs: all of it is used, nothing else is asked, and what is missing is named."""

from __future__ import annotations

import contextlib
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.controlplane import pod_manifest
from tests.e2e.system import ACCOUNT, NAMESPACE, RBAC, Replica, System, readiness, until_seen, wait_for

pytestmark = pytest.mark.e2e

Right = tuple[str, str, str]
ROLES = "/apis/rbac.authorization.k8s.io/v1"
CLUSTER_ROLE = f"{ROLES}/clusterroles/wattbalance"
ROLE = f"{ROLES}/namespaces/{NAMESPACE}/roles/wattbalance"


def granted() -> set[Right]:
    """What deploy/rbac.yaml allows, one by one: group, resource, verb."""
    rules = [
        rule
        for item in yaml.safe_load_all(RBAC.read_text())
        if item and item["kind"] in {"ClusterRole", "Role"}
        for rule in item["rules"]
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(requests: list[dict[str, Any]]) -> set[Right]:
    """What was asked for; pages that anyone may read, such as /version, are no resources."""
    return {
        (
            about.get("apiGroup", ""),
            "/".join(part for part in (about["resource"], about.get("subresource")) if part),
            request["verb"],
        )
        for request in requests
        if (about := request.get("objectRef")) is not None
    }


def may(system: System, verb: str, group: str, resource: str, namespace: str = "") -> bool:
    """Ask the API server whether our account may do it now; its view of roles is behind by moments."""
    name, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": name, "subresource": subresource}
    attributes["namespace"] = namespace
    answer = system.plane.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
        user=ACCOUNT,
    )
    assert isinstance(answer, dict)
    return bool(answer["status"]["allowed"])


@contextlib.contextmanager
def lacking(system: System, path: str, verb: str, resource: str) -> Iterator[None]:
    """Take a verb on a resource out of a role; it is put back at the end."""

    def put(rules: list[dict[str, Any]]) -> None:
        role = system.plane.request("GET", path)
        assert isinstance(role, dict)
        system.plane.request("PUT", path, {**role, "rules": rules})

    role = system.plane.request("GET", path)
    assert isinstance(role, dict)
    rules = [
        {**rule, "verbs": [v for v in rule["verbs"] if v != verb or resource not in rule["resources"]]}
        for rule in role["rules"]
    ]
    put(rules)
    try:
        yield
    finally:
        put(role["rules"])


def logged(replica: Replica, text: str) -> bool:
    return text in replica.process.log.replace('\\"', '"')


def owned(name: str) -> dict[str, object]:
    """A pod of a Job; nobody looks whether there is one."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "name": "rights", "uid": "u-rights", "controller": True}
    manifest = pod_manifest(name)
    metadata = manifest["metadata"]
    assert isinstance(metadata, dict)
    metadata["ownerReferences"] = [job]
    return manifest


def test_all_of_the_role_is_used_and_nothing_else_is_asked_for(system: System) -> None:
    before = len(system.requests())
    system.add_own_pod("rights-a")
    system.add_node("rights-node")
    system.add_node("rights-sick", **{"wattbalance.io/quarantine": "xid-79"})
    replica = system.serve("rights-a", extender={"bind": True})
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    system.plane.apply(pod_manifest("rights-pod"))
    uid = system.pod("rights-pod")["metadata"]["uid"]
    names = {"PodName": "rights-pod", "PodNamespace": "default", "PodUID": uid, "Node": "rights-node"}
    until_seen(replica, "rights-node", "rights-sick")
    for name in ("rights-refused", "rights-refused-too"):
        # Of one owner: the event on it counts the second one.
        system.plane.apply(owned(name))
        refused = {"Pod": system.pod(name), "NodeNames": ["rights-sick"]}
        assert replica.post("filter", refused)["NodeNames"] == []
    assert replica.post("bind", names) == {"Error": ""}

    def labelled() -> bool:
        return "wattbalance.io/role" in system.pod("rights-a", NAMESPACE)["metadata"].get("labels", {})

    wait_for("the leader is labelled", labelled)
    counting = ("events.k8s.io", "events", "patch")
    wait_for("the event goes on", lambda: counting in used(system.requests()[before:]))
    # A watch is written down when it ends.
    assert replica.process.stop() == 0
    groups = system.plane.request("GET", "/apis")
    assert isinstance(groups, dict)
    served = {"", *(each["name"] for each in groups["groups"])}
    # What the server does not have cannot be watched.
    unserved = {right for right in granted() if right[0] not in served and right[2] == "watch"}
    want_used = granted() - unserved
    wait_for("all rights were used", lambda: used(system.requests()[before:]) >= want_used)
    ours = system.requests()[before:]
    assert used(ours) <= granted()
    assert [each["requestURI"] for each in ours if each["responseStatus"]["code"] in {401, 403}] == []


def test_it_may_change_pods_by_patch_and_binding_only(system: System) -> None:
    wait_for("it may in its own namespace", lambda: may(system, "patch", "", "pods", NAMESPACE))
    wait_for("the decision needs it elsewhere", lambda: may(system, "patch", "", "pods", "default"))
    wait_for("it may bind", lambda: may(system, "create", "", "pods/binding", "default"))
    for verb, resource in (
        ("create", "pods"),
        ("update", "pods"),
        ("delete", "pods"),
        ("patch", "pods/status"),
        ("create", "pods/eviction"),
        ("patch", "nodes"),
    ):
        assert not may(system, verb, "", resource, "default")


def test_a_right_that_serving_needs_and_lacks_is_named_until_it_is_there(system: System) -> None:
    want_rule = (
        "may not watch pods in the whole cluster; add to wattbalance's ClusterRole: "
        '{apiGroups: [""], resources: ["pods"], verbs: ["watch"]}'
    )
    with lacking(system, CLUSTER_ROLE, "watch", "pods"):
        wait_for("it may not", lambda: not may(system, "watch", "", "pods"))
        replica = system.launch()
        wait_for("it says why", lambda: any(want_rule in why for why in readiness(replica)["reasons"]))
        assert not readiness(replica)["ready"]
        wait_for("the log says it too", lambda: logged(replica, want_rule))
        # A question that it cannot answer well is refused: kube-scheduler tries again.
        with pytest.raises(urllib.error.HTTPError) as refused:
            replica.post("filter", {"Pod": {"metadata": {"uid": "u"}}, "NodeNames": ["a"]})
        with refused.value as answer:
            assert answer.code == 503
    system.until_ready(replica)
    wait_for("it lacks nothing", lambda: readiness(replica)["forbidden"] == [])


def test_a_right_that_leading_needs_and_lacks_is_named_until_it_is_there(system: System) -> None:
    want_rule = (
        f"may not update leases in namespace {NAMESPACE}; add to wattbalance's Role: "
        '{apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["update"]}'
    )
    with lacking(system, ROLE, "update", "leases"):
        wait_for("it may not", lambda: not may(system, "update", "coordination.k8s.io", "leases", NAMESPACE))
        replica = system.serve()
        wait_for(
            "it says what it lacks", lambda: any(want_rule in r for r in readiness(replica)["forbidden"])
        )
        # It could create the Lease, but not renew it.
        wait_for("it does not lead", lambda: readiness(replica)["role"] == "standby")
        assert readiness(replica)["ready"]
        assert "forbidden" in readiness(replica)["degraded"]
        wait_for("the log says it too", lambda: logged(replica, want_rule))
    wait_for("it leads", lambda: readiness(replica)["role"] == "leader")
    wait_for("it says that all is well", lambda: readiness(replica)["forbidden"] == [])
    assert "forbidden" not in readiness(replica)["degraded"]
