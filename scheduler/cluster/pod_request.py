"""From a pod and what is wanted of it to the request that policies see. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler.cluster.intent import Intent
from scheduler.cluster.objects import Meta
from scheduler.cluster.pods import PodFacts
from scheduler.core.models import folded_glob
from scheduler.core.nouns import PodRequest
from scheduler.core.preferences import Preferences


def pod_request(  # noqa: PLR0913 - a request has as many parts
    meta: Meta,
    intent: Intent,
    profile: tuple[str, float],
    pool_indexes: Callable[[Sequence[str]], tuple[int, ...]],
    facts: PodFacts | None,
    *,
    waited_s: float,
    priority: int,
    nominated_node: str,
    preferences: Preferences | None = None,
    waits_for_volume: bool = False,
    images: tuple[str, ...] = (),
) -> PodRequest:
    """Make it.

    Args:
        meta: The pod's.
        intent: What its annotations, its owners' and its namespace's come to.
        profile: Name and expected load of the profile of its workload.
        pool_indexes: Of pools by their names.
        facts: What was read of it; None if it asks for no GPU that we count.
        waited_s: How long ago it was created.
        priority: The pod's.
        nominated_node: For which kube-scheduler has others make room.
        preferences: What its spec prefers, if anything.
        waits_for_volume: Whether it uses a claim that may bind late.
        images: Of its containers, by full names.
    """
    name, expected_load = profile
    return PodRequest(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        gpus=int(facts.gpus) if facts is not None else 0,
        shares=facts.shares if facts is not None else (),
        workload=intent.workload,
        profile=name,
        expected_load=expected_load,
        waited_s=waited_s,
        priority=priority,
        nominated_node=nominated_node,
        pools=pool_indexes(intent.value("pools") or ()),
        gpu_models=tuple(map(folded_glob, intent.value("gpu-model") or ())),
        gpu_memory_bytes=intent.value("gpu-memory") or 0,
        preferences=preferences,
        conditions=facts.conditions if facts is not None else None,
        waits_for_volume=waits_for_volume,
        siblings_of=intent.siblings_of,
        images=images,
        controller=intent.controller,
    )
