"""Settings of the profiles: how pods of one class of work are placed, and what that is by default."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from scheduler.config_types import PolicyUse, Strict
from scheduler.core.nouns import Placement, Workload

# A pull costs minutes once, a bad place costs for as long as the pod runs. So it weighs less than one GPU of eight that
# is left over (3 x 1/8 of `pack`), less than a twelfth of a node's load (1/3 of a quarter), and half of what the first
# sibling on a node does. kube-scheduler gives it a thirteenth of all weights of its own.
IMAGE_WEIGHT = 0.25

Policies = Annotated[
    dict[str, PolicyUse],
    Meta(
        min_length=1,
        description=(
            "Which policies score, each with its weight and arguments; replaces the default. "
            "Those that weigh what pods prefer need not be named."
        ),
    ),
]
Load = Annotated[
    float, Meta(ge=0, le=1, description="How busy such a pod is expected to keep each of its GPUs, 0 to 1.")
]


class Profile(Strict, frozen=True, kw_only=True):
    """How pods of one workload are placed."""

    placement: Annotated[
        Placement, Meta(description="decisive: filter returns the one chosen node; advisory: scores only.")
    ] = Placement.DECISIVE
    expected_load: Load = 0.9
    policies: Policies = field(
        default_factory=lambda: {
            "pack": PolicyUse(weight=3.0),
            "least-loaded": PolicyUse(weight=1.0),
            "image": PolicyUse(weight=IMAGE_WEIGHT),
        }
    )


class InferenceProfile(Profile, frozen=True, kw_only=True):
    """Inference: spread by measured load, since its latency suffers from neighbours."""

    expected_load: Load = 0.4
    policies: Policies = field(
        default_factory=lambda: {
            "least-loaded": PolicyUse(weight=3.0),
            "freshness": PolicyUse(weight=1.0),
            # The first sibling on a node halves that node's spread: as much as a sixth of its load (0.5 x 1 / 3).
            "spread": PolicyUse(weight=1.0),
            "image": PolicyUse(weight=IMAGE_WEIGHT),
        }
    )


class ProfileSettings(Strict, frozen=True, kw_only=True):
    """One profile per workload."""

    training: Annotated[Profile, Meta(description="For long jobs: keep whole nodes free.")] = field(
        default_factory=Profile
    )
    inference: Annotated[InferenceProfile, Meta(description="For services: keep load even.")] = field(
        default_factory=InferenceProfile
    )
    batch: Annotated[Profile, Meta(description="For everything else.")] = field(default_factory=Profile)

    def of(self, workload: Workload) -> Profile:
        """Give the profile of a workload."""
        by_workload = {Workload.TRAINING: self.training, Workload.INFERENCE: self.inference}
        return by_workload.get(workload, self.batch)
