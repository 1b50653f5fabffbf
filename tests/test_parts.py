"""From settings to parts: what the profiles weigh that they do not name."""

from __future__ import annotations

import pytest

from scheduler import config
from scheduler.core.nouns import Workload
from scheduler.core.preferences import KINDS
from scheduler.parts import make_profiles

LEAST = "cluster: {name: c}\ntelemetry: {broker: mqtt://127.0.0.1:1883}\n"


@pytest.mark.parametrize("workload", list(Workload))
def test_what_pods_prefer_is_weighed_by_every_profile(workload: Workload) -> None:
    profile = make_profiles(config.load(LEAST))[workload]
    weights = {each.name: each.weight for each in profile.scores}
    others = sum(weight for name, weight in weights.items() if name not in KINDS)
    assert others
    assert {name: weights[name] / others for name in KINDS} == pytest.approx(
        {"node-affinity": 1.0, "pod-affinity": 1.0, "topology-spread": 1.0, "taint-toleration": 1.5}
    ), "as kube-scheduler weighs its plugins against its scores of resources"


def test_policies_that_are_replaced_still_weigh_what_pods_prefer_and_as_much_as_is_given() -> None:
    policies = "{least-loaded: {weight: 10}, node-affinity: {weight: 3}}"
    profile = make_profiles(config.load(LEAST + f"profiles: {{batch: {{policies: {policies}}}}}"))[
        Workload.BATCH
    ]
    assert {each.name: each.weight for each in profile.scores} == {
        "least-loaded": 10.0,
        "node-affinity": 3.0,
        "pod-affinity": 10.0,
        "topology-spread": 10.0,
        "taint-toleration": 15.0,
    }


def test_a_profile_of_preferences_alone_is_a_profile() -> None:
    profile = make_profiles(config.load(LEAST + "profiles: {batch: {policies: {pod-affinity: {weight: 2}}}}"))
    weights = {each.name: each.weight for each in profile[Workload.BATCH].scores}
    assert weights == {"pod-affinity": 2, "node-affinity": 1, "topology-spread": 1, "taint-toleration": 1.5}
