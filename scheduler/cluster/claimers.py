"""Pods that ask for devices by claims alone: kube-scheduler places them, and their claims hold what they have. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from scheduler.cluster.objects import Pod
from scheduler.cluster.pods import FINISHED, asks_by_claims_only


@dataclass(frozen=True, slots=True)
class Claimer:
    """One such pod, as far as people ask about it."""

    uid: str
    namespace: str
    name: str
    node: str
    """Empty until it is bound."""
    scheduler_name: str
    created: str | None


class Claimers:
    """By uid. `gpu_resources`: further names of GPUs; who asks for one is none of these."""

    def __init__(self, gpu_resources: AbstractSet[str] = frozenset()) -> None:
        self._gpu_resources = gpu_resources
        self._pods: dict[str, Claimer] = {}

    def __len__(self) -> int:
        return len(self._pods)

    def see(self, pod: Pod, *, gone: bool) -> None:
        """A pod as it is now, or was."""
        meta, spec = pod.metadata, pod.spec
        if gone or pod.status.phase in FINISHED or not asks_by_claims_only(pod, self._gpu_resources):
            self._pods.pop(meta.uid, None)
            return
        self._pods[meta.uid] = Claimer(
            meta.uid, meta.namespace, meta.name, spec.node_name, spec.scheduler_name, meta.creation_timestamp
        )

    def keep(self, uids: AbstractSet[str]) -> None:
        """A listing is complete: whatever it does not name is gone."""
        for uid in self._pods.keys() - uids:
            del self._pods[uid]

    def find(self, namespace: str, name: str) -> Claimer | None:
        """The pod of a name; None if there is none."""
        # There are few of them where most pods ask by resource.
        return next(
            (each for each in self._pods.values() if (each.namespace, each.name) == (namespace, name)), None
        )
