"""Settings about what pods want: what holds where they say nothing, and what they may ask for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from scheduler.config_types import Strict, Text
from scheduler.core.nouns import Workload

AnnotationText = Annotated[
    str, Meta(max_length=4096, extra={"expected": "text, as it would stand in an annotation"})
]


class WorkloadSettings(Strict, frozen=True, kw_only=True):
    """What a pod is when it does not say so itself."""

    default: Annotated[Workload, Meta(description="Workload of a pod that nothing else tells about.")] = (
        Workload.BATCH
    )
    priority_classes: Annotated[
        dict[Text, Workload], Meta(description="Workload by the name of the pod's priority class.")
    ] = field(default_factory=dict)


class NamespaceSettings(Strict, frozen=True, kw_only=True):
    """What the pods of some namespaces may ask for."""

    match: Annotated[Text, Meta(description="Glob on the namespace's name.")]
    allow: Annotated[
        dict[Text, tuple[AnnotationText, ...]],
        Meta(
            description="Annotations, without wattbalance.io/, each with the values allowed: one that is not named is "
            "free, an empty list forbids it. Of a list, such as pools, each entry must be in one of the values. Pods "
            "for which nothing that counts is said are held to the pools and GPU models allowed, and are of the first "
            "workload allowed if the inferred one is not. A default in `annotations` must be allowed everywhere."
        ),
    ]
