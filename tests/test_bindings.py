"""Who bound a pod: the store's news against what was decided."""

from __future__ import annotations

from collections import Counter

import msgspec.structs
import pytest

from scheduler.bindings import Binding, Bindings, Past
from scheduler.cluster.objects import Container, Meta, OwnerRef, Pod, PodSpec, Resources
from scheduler.cluster.pods import PodFacts, pod_facts
from scheduler.core.nouns import DECISION_ANNOTATION, GPU_RESOURCE
from scheduler.decision.record import DecisionLog, DecisionRecord

OURS = "wattbalance"
FPGA = "example.com/fpga"
NOW = 1000.0


def record(uid: str, chosen: str = "", result: str = "placed") -> DecisionRecord:
    return DecisionRecord(
        cycle="1",
        unix_s=0.0,
        verb="filter",
        namespace="team-a",
        pod=uid,
        uid=uid,
        profile="batch",
        placement="decisive",
        gpus=1,
        resources={"nvidia.com/gpu": 1},
        asked=2,
        fitting=1,
        chosen=chosen,
        result=result,
        reserved=False,
        reasons={},
        policies=(),
        best=(),
    )


def a_pod(
    uid: str = "u",
    node: str = "n1",
    scheduler: str = OURS,
    asks: dict[str, str | int | float] | None = None,
    *,
    annotations: dict[str, str] | None = None,
    owner: str = "",
) -> Pod:
    return Pod(
        metadata=Meta(
            name=uid,
            namespace="team-a",
            uid=uid,
            annotations=annotations,
            owner_references=[OwnerRef(kind=owner, uid="o", controller=True)] if owner else None,
        ),
        spec=PodSpec(
            node_name=node,
            scheduler_name=scheduler,
            containers=[Container(resources=Resources(limits=asks or {GPU_RESOURCE: 1}))],
        ),
    )


def facts(pod: Pod) -> PodFacts:
    found = pod_facts(pod)
    assert found is not None
    return found


class World:
    """Bindings, with decisions that a test fills in."""

    def __init__(self, *managed: str, judges: bool = True, asked: bool = True) -> None:
        self.decisions: dict[str, DecisionRecord] = {}
        self.owners: dict[str, str] = {}
        self.told: list[tuple[str, Past]] = []
        self.judges = judges
        self.asked = asked
        self.bindings = Bindings(
            [OURS],
            managed,
            decision_of=self.decisions.get,
            owner_of=self.owners.get,
            judges=lambda: self.judges,
            is_asked=lambda: self.asked,
        )
        self.bindings.on_past = self.tell

    def tell(self, binding: Binding, past: Past) -> None:
        self.told.append((binding.uid, past))

    def bound(self, pod: Pod, promised: str = "", now_mono_s: float = NOW) -> Past | None:
        """What a binding that the store told of counts as."""
        before = len(self.told)
        self.bindings.bound(facts(pod), promised, now_mono_s)
        return self.told[-1][1] if len(self.told) > before else None


def test_a_pod_that_went_where_we_said_did_not_come_past_us() -> None:
    world = World()
    world.decisions["u"] = record("u", "n1")
    assert world.bound(a_pod(node="n1")) is None
    assert world.bindings.past == Counter({past.value: 0 for past in Past})


def test_one_that_nobody_asked_us_about_did() -> None:
    world = World()
    assert world.bound(a_pod()) is Past.NO_DECISION
    assert world.bindings.past[Past.NO_DECISION] == 1


def test_one_that_was_told_that_no_node_fits_did() -> None:
    world = World()
    world.decisions["u"] = record("u", result="no_fit")
    assert world.bound(a_pod()) is Past.NO_DECISION


def test_one_bound_elsewhere_than_we_chose_did() -> None:
    world = World()
    world.decisions["u"] = record("u", "n2")
    assert world.bound(a_pod(node="n1")) is Past.OTHER_NODE


def test_another_schedulers_pod_did() -> None:
    world = World()
    assert world.bound(a_pod(scheduler="default-scheduler")) is Past.OTHER_SCHEDULER
    # None named is the cluster's own.
    assert world.bound(a_pod("v", scheduler="")) is Past.OTHER_SCHEDULER


def test_another_schedulers_pod_that_asked_us_all_the_same_did_not() -> None:
    world = World()
    world.decisions["u"] = record("u", "n1")
    assert world.bound(a_pod(scheduler="other")) is None


@pytest.mark.parametrize("result", ["advised", "passed_soft"])
def test_where_kube_scheduler_was_left_to_choose_any_node_is_ours(result: str) -> None:
    world = World()
    world.decisions["u"] = record("u", result=result)
    assert world.bound(a_pod()) is None


def test_a_promise_counts_where_the_decision_is_forgotten() -> None:
    world = World()
    assert world.bound(a_pod(node="n1"), promised="n1") is None
    assert world.bound(a_pod("v", node="n1"), promised="n2") is Past.OTHER_NODE


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"node":"n1","cycle":"elsewhere-3"}', None),
        ('{"node":"n1","cycle":"mine"}', None),
        ('{"node":"n1","cycle":""}', None),
        ('{"node":"n1","cycle":"theirs"}', Past.NO_DECISION),
        ('{"node":"n2","cycle":"elsewhere-3"}', Past.NO_DECISION),
        ('{"node":"","cycle":""}', Past.NO_DECISION),
        ("{}", Past.NO_DECISION),
        ("", Past.NO_DECISION),
        ("\ud800", Past.NO_DECISION),
    ],
)
def test_a_decision_written_on_the_pod_counts_whoever_made_it_unless_it_was_copied(
    text: str, want: Past | None
) -> None:
    world = World()
    world.owners.update({"theirs": "x", "mine": "u"})
    assert world.bound(a_pod(annotations={DECISION_ANNOTATION: text})) is want
    # What stands there takes nothing from what is known here.
    world.decisions["v"] = record("v", "n1")
    assert world.bound(a_pod("v", annotations={DECISION_ANNOTATION: text})) is None


def test_a_log_knows_whose_a_decision_was_until_it_goes() -> None:
    log = DecisionLog(kept=2)
    for uid in ("a", "b"):
        log.add(msgspec.structs.replace(record(uid, "n1"), cycle=f"1-{uid}"))
    assert [log.owner_of(f"1-{uid}") for uid in "abc"] == ["a", "b", None]
    log.add(record("c", "n1"))
    assert [log.owner_of(f"1-{uid}") for uid in "ab"] == [None, "b"]


def test_a_replica_that_does_not_lead_judges_nothing() -> None:
    world = World(judges=False)
    assert world.bound(a_pod()) is None


def test_a_predecessors_decisions_are_not_held_against_kube_scheduler_for_a_while() -> None:
    world = World()
    world.bindings.inherit(["u", "v", "w"], NOW + 30)
    assert world.bound(a_pod("u"), now_mono_s=NOW + 29) is None
    assert world.bound(a_pod("v"), now_mono_s=NOW + 30) is Past.NO_DECISION
    # Whoever came later was never the predecessor's, and another scheduler's pods were never anybody's.
    assert world.bound(a_pod("x"), now_mono_s=NOW + 1) is Past.NO_DECISION
    assert world.bound(a_pod("w", scheduler="other"), now_mono_s=NOW + 1) is Past.OTHER_SCHEDULER


def test_a_missing_decision_may_be_next_door_where_each_answers_its_own_kube_scheduler() -> None:
    world = World(asked=False)
    assert world.bound(a_pod("u")) is None
    assert world.bound(a_pod("v", scheduler="other")) is Past.OTHER_SCHEDULER


def test_gpus_that_are_not_managed_are_nobodys_business() -> None:
    world = World(FPGA)
    assert world.bound(a_pod()) is None


def test_gpus_by_a_name_of_ones_own_are_managed_like_others() -> None:
    own = "example.com/a100"
    known = pod_facts(a_pod("own", asks={own: 1}), also=frozenset({own}))
    assert known is not None
    for world, want in ((World(own), ["own"]), (World(), ["own"]), (World(GPU_RESOURCE), [])):
        world.bindings.bound(known, "", NOW)
        assert [name for name, _ in world.told] == want


def test_without_names_all_that_are_gpus_should_come_past_us() -> None:
    world = World()
    for asked in ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.5gb"):
        world.bindings.bound(facts(a_pod(asked, asks={asked: 1})), "", NOW)
    assert [name for name, _ in world.told] == [
        "nvidia.com/gpu",
        "nvidia.com/gpu.shared",
        "nvidia.com/mig-1g.5gb",
    ]
    named = World("nvidia.com/gpu.shared")
    for asked in ("nvidia.com/gpu", "nvidia.com/gpu.shared"):
        named.bindings.bound(facts(a_pod(asked, asks={asked: 1})), "", NOW)
    assert [name for name, _ in named.told] == ["nvidia.com/gpu.shared"]
    assert [named.bindings.manages(name) for name in ("nvidia.com/gpu", "nvidia.com/gpu.shared")] == [
        False,
        True,
    ]


def test_a_daemon_sets_pod_is_known_for_one() -> None:
    assert Binding.of(facts(a_pod(owner="DaemonSet"))).daemon
    assert not Binding.of(facts(a_pod(owner="Job"))).daemon


def test_a_binding_names_who_controls_the_pod() -> None:
    pod = a_pod(owner="ReplicaSet")
    other = OwnerRef(kind="Team", uid="t", name="team")
    want = OwnerRef(kind="ReplicaSet", uid="o", name="web", controller=True, api_version="apps/v1")
    owned = msgspec.structs.replace(
        pod, metadata=msgspec.structs.replace(pod.metadata, owner_references=[other, want])
    )
    assert Binding.of(facts(owned)).controller == want
    assert Binding.of(facts(a_pod())).controller is None
