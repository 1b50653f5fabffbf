"""Where the chain of a pod's owners ends early, in words for a person: what would be inherited cannot be read. Pure.

What can be read counts all the same. An owner of a kind that we do not follow (JobSet and other operators' own) is
named too: what stands on it does not reach the pod.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from scheduler.cluster.intents import LONGEST_CHAIN, Intents, controller_of
from scheduler.cluster.objects import Meta
from scheduler.cluster.port import Kind

FOLLOWED: Mapping[str, Kind] = {
    "Job": Kind.JOB,
    "CronJob": Kind.CRONJOB,
    "ReplicaSet": Kind.REPLICASET,
    "Deployment": Kind.DEPLOYMENT,
    "StatefulSet": Kind.STATEFULSET,
    "DaemonSet": Kind.DAEMONSET,
}
# Owns the pods that a kubelet has from its own files; says nothing of them.
NODE = "Node"


def gaps(
    intents: Intents, pod: Meta, *, synced: Collection[Kind], refused: Mapping[Kind, str]
) -> tuple[str, ...]:
    """What of a pod's owners and namespace cannot be read, and why; empty where all of it is.

    Args:
        intents: Who knows owners.
        pod: Whose.
        synced: Kinds that were listed.
        refused: Kinds that may not be listed, or that the server lacks, each with the reason.
    """
    found = [] if (why := _of_owners(intents, pod, synced, refused)) is None else [why]
    if Kind.NAMESPACE in refused:
        found.append(
            f"What namespace {pod.namespace} says does not count: namespaces cannot be listed "
            f"({refused[Kind.NAMESPACE]})."
        )
    return tuple(found)


def _of_owners(
    intents: Intents, pod: Meta, synced: Collection[Kind], refused: Mapping[Kind, str]
) -> str | None:
    owner = controller_of(pod)
    uid, kind, whose = (owner.uid, owner.kind, "The pod") if owner is not None else ("", "", "")
    seen: dict[str, str] = {}
    while uid and kind != NODE:
        if uid in seen:
            names = " and ".join(seen[each] for each in list(seen)[list(seen).index(uid) :])
            return f"Its owners own each other: {names}. Each of them counts once, and nobody beyond."
        if len(seen) >= LONGEST_CHAIN:
            return f"Only the first {LONGEST_CHAIN} of its owners count: {', '.join(seen.values())}."
        known = intents.owners.get(uid)
        if known is None:
            return _why_unread(intents, f"{whose}'s owner, a {kind},", uid, kind, synced, refused)
        seen[uid] = known.where
        uid, kind, whose = known.parent_uid, known.parent_kind, known.where
    return None


def _why_unread(
    intents: Intents,
    who: str,
    uid: str,
    kind: str,
    synced: Collection[Kind],
    refused: Mapping[Kind, str],
) -> str | None:
    followed = FOLLOWED.get(kind)
    if followed is None:
        return (
            f"{who} is of a kind that is not read: what it and its own owners say does not count. "
            "Put annotations on its pod template."
        )
    if followed in refused:
        return f"{who} cannot be read, so that what it says does not count: {refused[followed]}"
    if intents.is_plain(followed, uid):
        return None
    if followed not in synced:
        return f"{who} is not listed yet: what it says counts from then on."
    return f"{who} is gone, or was never there: what it said does not count any more."
