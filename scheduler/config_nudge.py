"""Settings of the nudge: how pods that we refused are woken."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from scheduler.config_types import PositiveSeconds, Strict


class NudgeSettings(Strict, frozen=True, kw_only=True):
    """Pods that we refused for what Kubernetes cannot see are woken once they fit."""

    enabled: Annotated[
        bool,
        Meta(
            description="Off: such a pod waits for the cluster's next event, at the latest for some minutes. Needs "
            "patch on pods."
        ),
    ] = True
    most_per_s: Annotated[
        float,
        Meta(gt=0, le=1000, description="Pods woken a second at most; each is a write to the API server."),
    ] = field(name="most_per_second", default=10.0)
    again_s: Annotated[
        PositiveSeconds,
        Meta(
            description="A pod is woken once in this time at most, and as long it counts as on its way to its node."
        ),
    ] = field(name="again", default_factory=lambda: PositiveSeconds(10))
