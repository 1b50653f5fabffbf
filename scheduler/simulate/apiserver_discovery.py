"""What a server says about itself and who asks it: versions, groups, resources, the user."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.simulate.apiserver_rules import PODS, JsonObject, Resource

# Of everybody: there is one token, and nobody else is let in.
USER = "wattbalance"
# Served from this minor version of 1.x on.
_REVIEW_SINCE = 28
_REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def document(path: str, resources: Iterable[Resource], minor: int) -> JsonObject | None:
    """The discovery answer for a path; None if the path is none. `resources` are those that are switched on."""
    served = list(resources)
    groups = sorted({resource.group for resource in served if resource.group})
    parts = path.strip("/").split("/")
    if path == "/version":
        version = f"v1.{minor}.0"
        return {"major": "1", "minor": str(minor), "gitVersion": version, "platform": "linux/amd64"}
    if path == _REVIEW and minor >= _REVIEW_SINCE:
        status = {"userInfo": {"username": USER, "groups": ["system:authenticated"]}}
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "status": status}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if parts == ["apis"]:
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in groups]}
    if parts == ["api", "v1"]:
        return _resource_list("v1", [resource for resource in served if not resource.group])
    if parts[0] == "apis" and len(parts) == 2 and parts[1] in groups:
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1])}
    if parts[0] == "apis" and len(parts) == 3 and parts[1] in groups and parts[2] == "v1":
        mine = [resource for resource in served if resource.group == parts[1]]
        return _resource_list(f"{parts[1]}/v1", mine)
    return None


def _group(group: str) -> JsonObject:
    version = {"groupVersion": f"{group}/v1", "version": "v1"}
    return {"name": group, "versions": [version], "preferredVersion": version}


def _resource_list(group_version: str, resources: list[Resource]) -> JsonObject:
    entries: list[JsonObject] = []
    for resource in resources:
        entry = {"singularName": "", "namespaced": resource.namespaced, "kind": resource.kind}
        entries.append({"name": resource.plural, **entry, "verbs": _VERBS})
        if resource.status:
            entries.append(
                {"name": f"{resource.plural}/status", **entry, "verbs": ["get", "patch", "update"]}
            )
        if resource.plural == PODS:
            entries.append({"name": "pods/binding", **entry, "kind": "Binding", "verbs": ["create"]})
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": entries,
    }
