"""Who would fit now of those that we refused: when it is found, in which order, and never more than fit."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.preference_objects import LabelSelector, SpreadConstraint
from scheduler.cluster.store import QUARANTINE_LABEL, Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PodRequest, PoolSpec
from scheduler.decision import refused
from scheduler.decision.cycle import Judgement
from scheduler.decision.decider import Decider
from scheduler.decision.refused import Refused
from scheduler.decision.waiters import Choice
from tests.builders import (
    all_rows,
    lose_pod,
    make_decider,
    make_node,
    make_pod,
    make_sample,
    make_sharing_pod,
    make_store,
    measure_memory,
    see_node,
    see_pod,
    see_sharing_node,
)

SICK = {QUARANTINE_LABEL: "xid-79"}
POOLS = (
    PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=300.0),
    PoolSpec(name="aws-a", selector={"site": "aws-a"}, spill_after_s=900.0),
)
AGAIN_S = 10.0


class World:
    """A store, its decider, and those that it refused."""

    def __init__(self, pools: tuple[PoolSpec, ...] = ()) -> None:
        self.clock = ManualClock()
        self.store: Store = make_store(pools)
        self.decider: Decider = make_decider(self.store)
        self.refused = Refused(self.decider)
        self.decider.on_outcome = self.refused.see

    def ask(
        self,
        name: str,
        gpus: int = 1,
        *,
        nodes: tuple[str, ...] = (),
        waited_s: float = 0.0,
        priority: int = 0,
    ) -> str:
        """kube-scheduler asks about a pod, which the watch has told of; returns the result."""
        pod = make_pod(name, gpus, priority=priority)
        if f"uid-{name}" not in self.store.pods:
            see_pod(self.store, pod, self.clock.mono_s())
        request = self.store.request(pod, waited_s, self.decider.profile_facts)
        rows = all_rows(self.store)
        if nodes:
            rows = rows[[sorted(self.store.rows).index(node) for node in nodes]]
        return self.decider.place(request, rows, self.clock.mono_s(), self.clock.unix_s()).result

    def ask_for_memory(self, name: str, gib: int, *, nominated: str = "") -> str:
        """Likewise about a pod that asks for memory of a shared GPU."""
        pod = make_sharing_pod(name, gib, nominated=nominated)
        see_pod(self.store, pod, self.clock.mono_s())
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        return self.decider.place(request, all_rows(self.store), self.clock.mono_s(), 0.0).result

    def measure(self, *used_gib: float) -> None:
        """What is used of the GPUs of n1."""
        measure_memory(self.store, *used_gib, now_mono_s=self.clock.mono_s())

    def find(self, now_mono_s: float | None = None) -> Choice | None:
        """Find whom to wake, a tenth of a second later or then."""
        if now_mono_s is None:
            self.clock.advance(0.1)
            now_mono_s = self.clock.mono_s()
        steps = self.refused.find(now_mono_s)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Choice | None = end.value
                return found

    def wake(self) -> str:
        """Wake the next one; its name, or nothing."""
        choice = self.find()
        if choice is None:
            return ""
        self.refused.take(choice, self.clock.mono_s() + AGAIN_S)
        self.refused.woken(choice, self.clock.mono_s())
        return choice.pod.name

    def wake_all(self) -> list[str]:
        """Wake one after the other, until nobody fits."""
        return list(iter(self.wake, ""))

    def quarantine(self, name: str, *, ends: bool = False) -> None:
        """Label a node, or take the label off."""
        record = self.store.nodes[name]
        labels = {k: v for k, v in record.labels.items() if k != QUARANTINE_LABEL} | ({} if ends else SICK)
        self.store.apply(
            Changed(Kind.NODE, make_node(name, int(self.store.snapshot.gpu_count[record.row]), labels)),
            self.clock.mono_s(),
        )


@pytest.fixture
def world() -> World:
    return World()


def test_nobody_is_woken_while_the_reason_stands_and_once_when_it_ends(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    assert world.ask("p1") == "no_fit"
    assert [world.find(), len(world.refused)] == [None, 1]
    world.quarantine("n1", ends=True)
    found = world.find()
    assert found is not None
    assert [found.pod.name, found.node] == ["p1", "n1"]
    assert world.wake() == "p1"
    assert len(world.refused) == 0
    world.clock.advance(60.0)
    assert world.wake_all() == []


def test_no_more_are_woken_than_fit_by_priority_then_age(world: World) -> None:
    see_node(world.store, "n1", 4, SICK)
    for name, waited_s, priority in (("young", 10, 0), ("old", 100, 0), ("dear", 5, 7), ("older", 200, 0)):
        assert world.ask(name, 2, waited_s=waited_s, priority=priority) == "no_fit"
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["dear", "older"]
    # They were bound: the node is full.
    for name in ("dear", "older"):
        see_pod(world.store, make_pod(name, 2, node="n1"), world.clock.mono_s())
    world.clock.advance(60.0)
    assert world.wake_all() == []
    lose_pod(world.store, make_pod("dear", 2, node="n1"), world.clock.mono_s())
    assert world.wake_all() == ["old"]


def test_what_was_woken_counts_as_on_its_way_for_a_while_and_no_longer(world: World) -> None:
    see_node(world.store, "n1", 2, SICK)
    for name, waited_s in (("first", 9), ("second", 8), ("third", 7)):
        world.ask(name, 2, waited_s=waited_s)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["first"]
    world.clock.advance(AGAIN_S / 2)
    assert world.wake_all() == []
    # It never came.
    world.clock.advance(AGAIN_S)
    assert world.wake_all() == ["second"]
    # It came, and its promise counts instead; the binding ends both.
    assert world.ask("second", 2) == "placed"
    assert world.wake_all() == []
    see_pod(world.store, make_pod("second", 2, node="n1"), world.clock.mono_s())
    lose_pod(world.store, make_pod("second", 2, node="n1"), world.clock.mono_s())
    assert world.wake_all() == ["third"]


def test_a_pod_that_was_promised_another_node_leaves_its_room_at_once(world: World) -> None:
    see_node(world.store, "n1", 2, SICK)
    see_node(world.store, "n2", 2, SICK)
    world.ask("first", 2, nodes=("n1",), waited_s=9)
    world.ask("second", 2, nodes=("n1",), waited_s=8)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["first"]
    world.quarantine("n2", ends=True)
    assert world.ask("first", 2, nodes=("n2",)) == "placed"
    assert world.wake_all() == ["second"]


def test_a_pod_that_is_refused_again_leaves_its_room_to_others_and_rests(world: World) -> None:
    see_node(world.store, "n1", 2, SICK)
    world.ask("first", 2, waited_s=9)
    world.ask("second", 2, waited_s=8)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["first"]
    world.quarantine("n1")
    assert world.ask("first", 2, waited_s=9) == "no_fit"
    assert world.wake_all() == []
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["second"]
    assert world.ask("second", 2, nodes=("n1",)) == "placed"
    world.store.release("uid-second", world.clock.mono_s())
    world.clock.advance(AGAIN_S)
    assert world.wake_all() == ["first"]


def test_nodes_that_kube_scheduler_did_not_offer_wake_nobody(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2", labels=SICK)
    assert world.ask("picky", nodes=("n1",)) == "no_fit"
    assert world.ask("any") == "no_fit"
    world.quarantine("n2", ends=True)
    assert world.wake_all() == ["any"]
    # One that comes to exist is told to kube-scheduler, which asks again then.
    see_node(world.store, "n3")
    world.clock.advance(60.0)
    assert world.wake_all() == []
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["picky"]


def test_a_row_that_stands_for_another_node_was_not_offered(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2", labels=SICK)
    world.ask("p1")
    row = world.store.rows["n1"]
    world.store.apply(Gone(Kind.NODE, make_node("n1")), 0.0)
    see_node(world.store, "n9")
    assert world.store.rows["n9"] == row
    world.clock.advance(60.0)
    assert world.wake_all() == []
    world.quarantine("n2", ends=True)
    assert world.wake_all() == ["p1"]


def test_a_node_that_was_offered_before_we_knew_it_wakes_when_we_do(world: World) -> None:
    see_pod(world.store, make_pod("p1"))
    request = world.store.request(make_pod("p1"), 0.0, world.decider.profile_facts)
    outcome = world.decider.place(
        request, all_rows(world.store), world.clock.mono_s(), world.clock.unix_s(), unknown=1
    )
    assert outcome.result == "no_fit"
    assert world.wake_all() == []
    see_node(world.store, "n1")
    assert world.wake_all() == ["p1"]


def test_pods_that_were_never_refused_or_were_placed_since_are_left_alone(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_pod(world.store, make_pod("stranger"))
    world.ask("p1")
    assert (
        world.decider.place(
            world.store.request(make_pod("p1"), 0.0, world.decider.profile_facts),
            all_rows(world.store),
            world.clock.mono_s(),
            world.clock.unix_s(),
            observe=True,
        ).result
        == "observed"
    )
    world.quarantine("n1", ends=True)
    assert [world.wake_all(), len(world.refused)] == [[], 0]


def test_pods_that_are_bound_or_gone_are_forgotten(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2")
    for name in ("bound", "gone"):
        assert world.ask(name, nodes=("n1",)) == "no_fit"
    see_pod(world.store, make_pod("bound", node="n2"), world.clock.mono_s())
    lose_pod(world.store, make_pod("gone"), world.clock.mono_s())
    world.quarantine("n1", ends=True)
    assert world.wake_all() == []
    world.clock.advance(refused.JUDGE_ALL_S)
    world.find()
    # Of the one that is gone the watch may tell yet.
    assert len(world.refused) <= 1
    for _ in range(20):
        world.clock.advance(refused.JUDGE_ALL_S)
        world.find()
    assert len(world.refused) == 0


def test_a_pool_s_turn_wakes_each_pod_at_its_own_instant() -> None:
    world = World(POOLS)
    see_node(world.store, "cloud", labels={"site": "aws-a"})
    see_node(world.store, "home", labels={"site": "dc-1", **SICK})
    see_node(world.store, "other")
    world.ask("p1", waited_s=100.0)
    world.ask("p2", waited_s=290.0)
    world.clock.advance(9.0)
    assert world.wake_all() == []
    world.clock.advance(1.0)
    found = world.find()
    assert found is not None
    assert [found.pod.name, found.node, round(found.waited_s)] == ["p2", "cloud", 300]
    assert world.wake_all() == ["p2"]
    world.clock.advance(180.0)
    assert world.wake_all() == []
    world.clock.advance(20.0)
    assert world.wake_all() == ["p1"]


def test_a_gpu_that_heals_and_a_model_that_becomes_known_wake(world: World) -> None:
    see_node(world.store, "n1", 2)
    broken = make_sample("n1", [0.0, 0.0], ["lost", "ok"])
    world.store.see_samples([("n1", broken, world.clock.mono_s())])
    assert world.ask("whole", 2) == "no_fit"
    assert world.wake_all() == []
    healed = make_sample("n1", [0.0, 0.0], ["ok", "ok"], seq=2)
    world.store.see_samples([("n1", healed, world.clock.mono_s())])
    assert world.wake_all() == ["whole"]

    world.store.apply(Changed(Kind.NODE, make_node("n2")), 0.0)
    pod = make_pod("modelled", annotations={"wattbalance.io/gpu-model": "*H100*"})
    see_pod(world.store, pod)
    request = world.store.request(pod, 0.0, world.decider.profile_facts)
    rows = all_rows(world.store)[1:]
    assert world.decider.place(request, rows, world.clock.mono_s(), 0.0).result == "no_fit"
    assert world.wake_all() == []
    see_node(world.store, "n2")
    assert world.wake_all() == ["modelled"]


def test_another_word_of_the_namespace_or_the_configuration_wakes(world: World) -> None:
    def namespace(**said: str) -> Changed:
        words = {f"wattbalance.io/{key.replace('_', '-')}": value for key, value in said.items()}
        return Changed(Kind.NAMESPACE, Partial(metadata=Meta(name="team-a", annotations=words)))

    see_node(world.store, "n1")
    world.store.apply(namespace(gpu_model="*A100*"), 0.0)
    assert world.ask("p1") == "no_fit"
    assert world.wake_all() == []
    world.store.apply(namespace(gpu_model="*A100*,*H100*"), 0.0)
    assert world.wake_all() == ["p1"]
    see_node(world.store, "n2", labels=SICK)
    assert world.ask("p2", nodes=("n2",)) == "no_fit"
    assert world.wake_all() == []
    without = tuple(each for each in world.decider.filters if each.name != "quarantine")
    world.decider.use(world.decider.profiles, without)
    assert world.wake_all() == ["p2"]


def test_a_binding_that_a_pause_refused_waits_for_any_node_with_room(world: World) -> None:
    see_node(world.store, "n1", 2)
    assert world.ask("p1", 2) == "placed"
    world.store.release("uid-p1", world.clock.mono_s())
    world.refused.see_unbound("uid-p1", world.clock.mono_s())
    see_pod(world.store, make_pod("past us", 1, node="n1"), world.clock.mono_s())
    assert world.wake_all() == []
    lose_pod(world.store, make_pod("past us", 1, node="n1"), world.clock.mono_s())
    assert world.wake_all() == ["p1"]


def test_what_could_not_be_woken_waits_on_and_takes_no_room(world: World) -> None:
    see_node(world.store, "n1", 1, SICK)
    world.ask("first", waited_s=9)
    world.ask("second", waited_s=8)
    world.quarantine("n1", ends=True)
    choice = world.find()
    assert choice is not None
    world.refused.take(choice, world.clock.mono_s() + AGAIN_S)
    world.refused.not_woken(choice)
    assert world.wake_all() == ["second"]
    see_pod(world.store, make_pod("second", node="n1"), world.clock.mono_s())
    lose_pod(world.store, make_pod("second", node="n1"), world.clock.mono_s())
    assert world.wake_all() == []
    world.clock.advance(AGAIN_S)
    assert world.wake_all() == ["first"]


def test_a_refusal_that_came_before_we_heard_of_the_waking_still_stands(world: World) -> None:
    see_node(world.store, "n1", 1, SICK)
    world.ask("p1")
    world.quarantine("n1", ends=True)
    choice = world.find()
    assert choice is not None
    world.refused.take(choice, world.clock.mono_s() + AGAIN_S)
    world.quarantine("n1")
    world.clock.advance(0.1)
    assert world.ask("p1") == "no_fit"
    world.refused.woken(choice, world.clock.mono_s())
    assert len(world.refused) == 1
    world.quarantine("n1", ends=True)
    assert world.wake_all() == []
    world.clock.advance(AGAIN_S)
    assert world.wake_all() == ["p1"]


def test_one_judgement_serves_all_that_ask_for_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    judge = world.decider.judge
    see_node(world.store, "n1", 8, SICK)
    for index in range(50):
        world.ask(f"p{index}", 1 + index % 2)

    def counted(request: PodRequest, *rest: Any, **more: Any) -> Judgement:
        judged.append(request)
        return judge(request, *rest, **more)

    monkeypatch.setattr(world.decider, "judge", counted)
    assert world.find() is None
    assert len(judged) == 2
    # Nothing has opened since.
    for _ in range(10):
        assert world.find() is None
    see_node(world.store, "n2", 8)
    lose_pod(world.store, make_pod("another", node="n2"))
    assert [world.find(), len(judged)] == [None, 2]
    world.quarantine("n1", ends=True)
    found = world.find()
    assert found is not None
    assert [found.pod.name, len(judged)] == ["p0", 4]


def test_the_oldest_refusals_make_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "MOST_REFUSED", 2)
    see_node(world.store, "n1", 8, SICK)
    for name in ("p1", "p2", "p3"):
        world.ask(name)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p2", "p3"]


# --- memory of shared GPUs ------------------------------------------------------------------------------------------


def test_no_more_pods_are_woken_than_have_memory(world: World) -> None:
    see_sharing_node(world.store, replicas=8)
    world.measure(79)
    assert [world.ask_for_memory(name, 30) for name in ("p1", "p2", "p3")] == ["no_fit"] * 3
    assert world.wake() == ""
    world.measure(10)
    assert world.wake_all() == ["p1", "p2"], "each counts as on its way before it is there"
    assert world.ask_for_memory("p1", 30) == "placed"
    assert world.wake_all() == []
    lose_pod(world.store, make_sharing_pod("p2", 30), world.clock.mono_s())
    assert world.wake_all() == ["p3"]


def test_who_waits_since_others_may_not_have_taken_their_memory_is_woken_once_they_have(world: World) -> None:
    see_sharing_node(world.store)
    world.measure(40)
    assert world.ask_for_memory("p1", 30) == "placed"
    for name in ("p2", "p3"):
        assert world.ask_for_memory(name, 30) == "no_fit"
    for phase in ("Pending", "Running"):
        see_pod(world.store, make_sharing_pod("p1", 30, node="n1", phase=phase), world.clock.mono_s())
        for _ in range(6):
            world.clock.advance(9.5)
            world.measure(40)
            assert world.wake() == "", "it counts on top of what is measured"
    # More than a minute has passed since it was bound, and almost one since it runs.
    world.clock.advance(60.0 - 6 * 9.5)
    assert world.wake() == "", "the sample is older"
    world.measure(40)
    assert world.wake_all() == ["p2"]


def test_a_pod_is_woken_for_the_node_on_which_room_was_made_for_it(world: World) -> None:
    see_sharing_node(world.store, replicas=2)
    world.measure(70)
    # Its victim is gone, and what that had is measured still.
    assert world.ask_for_memory("p1", 60, nominated="n1") == "no_fit"
    assert world.wake() == ""
    world.measure(5)
    assert world.wake() == "p1"


def test_of_those_that_wait_for_one_node_no_more_are_woken_than_have_room_there(world: World) -> None:
    see_sharing_node(world.store, replicas=2)
    world.measure(70)
    for name in ("p1", "p2"):
        assert world.ask_for_memory(name, 60, nominated="n1") == "no_fit"
    world.measure(5)
    assert world.wake() == "", "each keeps the memory from the other, as it would in filter"
    see_pod(world.store, make_sharing_pod("p2", 60), world.clock.mono_s())
    # Of a nomination that ends no column tells.
    world.clock.advance(refused.JUDGE_ALL_S)
    assert world.wake_all() == ["p1"]


def test_a_group_whose_last_pod_goes_while_others_are_judged_harms_nobody(world: World) -> None:
    see_sharing_node(world.store)
    world.measure(70)
    for gib in (50, 60):
        assert world.ask_for_memory(f"p{gib}", gib, nominated="n1") == "no_fit"
    world.clock.advance(0.1)
    steps = world.refused.find(world.clock.mono_s())
    # Looked, judged by other rules, compared; two join a group each, and the first group is judged.
    for _ in range(6):
        next(steps)
    for gib in (50, 60):
        world.refused._forget(f"uid-p{gib}")
    assert list(steps) == [None], "the other one"
    assert world.find() is None


def test_a_node_that_goes_while_it_is_judged_wakes_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_node(world.store, "n1", labels=SICK)
    world.ask("p1")
    world.quarantine("n1", ends=True)
    judge = world.decider.judge

    def judged_last(*given: Any, **more: Any) -> Judgement:
        judgement = judge(*given, **more)
        world.store.apply(Gone(Kind.NODE, make_node("n1")), world.clock.mono_s())
        return judgement

    monkeypatch.setattr(world.decider, "judge", judged_last)
    assert world.find() is None
    # It waits on, and whatever comes next is another node.
    assert len(world.refused) == 1


def test_many_kinds_of_pods_are_looked_through_in_steps(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    for index in range(2 * refused.GROUPS_A_STEP):
        world.ask(f"p{index}", priority=index)
    assert world.find() is None
    # Nothing has opened.
    assert sum(1 for _ in world.refused.find(world.clock.mono_s())) == 1 + 2
    world.quarantine("n1", ends=True)
    # Opened, all judged, and the first of the queue.
    assert sum(1 for _ in world.refused.find(world.clock.mono_s())) == 1 + 2 + 2 * refused.GROUPS_A_STEP + 2


def test_an_instant_that_is_rounded_down_is_not_missed() -> None:
    """Its time has come by the one reckoning, and not by the other yet."""
    world = World((PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=300.0), POOLS[1]))
    while ((came_s := world.clock.mono_s()) + 300.0) - came_s >= 300.0:
        world.clock.advance(0.1)
    see_node(world.store, "home", labels={"site": "dc-1", **SICK})
    see_node(world.store, "cloud", labels={"site": "aws-a"})
    assert world.ask("p1") == "no_fit"
    # The round that judges all is just over.
    for instant_s in (came_s + 299.0, came_s + 300.0):
        assert world.find(instant_s) is None
    assert world.find(came_s + 300.1) is not None


def test_pods_of_many_owners_and_images_are_judged_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owners and images order nodes, and rule none out."""
    judged = []
    judge = world.decider.judge
    see_node(world.store, "n1", 8, SICK)
    for index in range(4):
        pod = make_pod(f"p{index}", owner=OwnerRef(kind="ReplicaSet", uid=f"rs-{index}", controller=True))
        assert pod.spec.containers
        [container] = pod.spec.containers
        container = msgspec.structs.replace(container, image=f"image-{index}")
        spec = msgspec.structs.replace(pod.spec, containers=[container])
        see_pod(world.store, msgspec.structs.replace(pod, spec=spec))
        world.ask(f"p{index}")

    def counted(request: PodRequest, *rest: Any, **more: Any) -> Judgement:
        judged.append(request)
        return judge(request, *rest, **more)

    monkeypatch.setattr(world.decider, "judge", counted)
    assert world.find() is None
    assert len(judged) == 1


def test_nobody_is_woken_for_a_node_that_is_cordoned(world: World) -> None:
    """Kubernetes tells kube-scheduler when that ends; until then the pod would be tried in vain."""
    see_node(world.store, "n1", labels=SICK)
    world.ask("p1")
    world.store.apply(Changed(Kind.NODE, make_node("n1", cordoned=True)), world.clock.mono_s())
    assert world.wake_all() == []
    world.clock.advance(refused.JUDGE_ALL_S)
    assert world.wake_all() == []


def test_a_node_that_takes_another_s_row_between_two_looks_is_judged_anew(world: World) -> None:
    """Alike in all that is compared, it is another one all the same, and was not offered."""
    see_node(world.store, "n1", labels=SICK)
    world.ask("p1")
    world.quarantine("n1", ends=True)
    choice = world.find()
    assert choice is not None
    world.refused.take(choice, world.clock.mono_s() + 1.0)
    world.refused.not_woken(choice)
    assert world.find() is None
    world.store.apply(Gone(Kind.NODE, make_node("n1")), world.clock.mono_s())
    world.store.apply(Changed(Kind.NODE, make_node("n9")), world.clock.mono_s())
    world.clock.advance(1.0)
    assert world.find() is None


def test_two_kinds_that_become_one_are_both_woken(world: World) -> None:
    """What was offered to the one and not to the other has gone."""
    see_node(world.store, "n1", labels=SICK)
    see_node(world.store, "n2", labels=SICK)
    world.ask("p1", nodes=("n1",))
    world.ask("p2", nodes=("n1", "n2"))
    assert world.find() is None
    world.store.apply(Gone(Kind.NODE, make_node("n2")), world.clock.mono_s())
    assert world.find() is None
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["p1", "p2"]


def test_nodes_may_come_between_two_steps(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    world.ask("p1")
    assert world.find() is None
    world.quarantine("n1", ends=True)
    steps = world.refused.find(world.clock.mono_s())
    next(steps)
    for index in range(200):
        see_node(world.store, f"m{index}", labels=SICK)
    assert world.ask("p2", nodes=("m0",)) == "no_fit"
    assert list(steps) is not None
    assert world.wake_all() == ["p1"]


def test_the_instant_of_a_pod_s_next_pool_is_noted_once() -> None:
    world = World(POOLS)
    see_node(world.store, "home", labels={"site": "dc-1", **SICK})
    see_node(world.store, "cloud", labels={"site": "aws-a"})
    world.ask("p1")
    for _ in range(10):
        # It is another pod by now, as far as we see, and put into its group anew.
        see_pod(world.store, make_pod("p1"), world.clock.mono_s())
        world.clock.advance(refused.JUDGE_ALL_S)
        assert world.find() is None
    assert len(world.refused._regrouping._ages) == 1


def test_pods_of_one_second_keep_the_order_in_which_they_were_refused(world: World) -> None:
    """Creation is told in whole seconds; what the clocks differ by is not the same each time."""
    see_node(world.store, "n1", labels=SICK)
    for name, waited_s in (("second-name", 0.1), ("first-name", 0.3), ("another", 0.2)):
        world.ask(name, waited_s=waited_s)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["second-name", "first-name", "another"]


def test_a_pod_that_is_refused_again_keeps_its_place(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    for name, waited_s in (("a", 30.0), ("b", 20.0), ("c", 20.0)):
        world.ask(name, waited_s=waited_s)
    # What its clock and ours differ by may be another now.
    world.ask("a", waited_s=0.0)
    world.ask("b", waited_s=20.0)
    world.quarantine("n1", ends=True)
    assert world.wake_all() == ["a", "b", "c"]


def test_a_pod_for_which_no_node_was_offered_does_not_wait_for_us(world: World) -> None:
    see_pod(world.store, make_pod("p1"))
    request = world.store.request(make_pod("p1"), 0.0, world.decider.profile_facts)
    none = all_rows(world.store)
    assert not len(none)
    assert world.decider.place(request, none, world.clock.mono_s(), 0.0).result == "no_fit"
    assert len(world.refused) == 0


def test_a_pod_that_is_placed_between_two_steps_is_not_woken(world: World) -> None:
    see_node(world.store, "n1", labels=SICK)
    kinds = 2 * refused.GROUPS_A_STEP
    for index in range(kinds):
        world.ask(f"p{index}", priority=-index)
    assert world.find() is None
    world.quarantine("n1", ends=True)
    steps = world.refused.find(world.clock.mono_s())
    # The first half has been looked through for the first of the queue.
    for _ in range(1 + 2 + kinds + 1):
        next(steps)
    assert world.ask("p0") == "placed"
    choice = None
    try:
        while True:
            next(steps)
    except StopIteration as end:
        choice = end.value
    assert choice is not None
    assert choice.pod.name == "p1"


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[object]:
    """What a method is asked from now on, by its first argument."""
    calls: list[object] = []
    called = getattr(owner, name)

    def counted(first: object, *rest: Any, **more: Any) -> Any:
        calls.append(first)
        return called(first, *rest, **more)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_only_those_are_read_again_of_whom_something_has_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands that wait, all were: every five seconds, and whenever anybody's owner said something."""
    see_node(world.store, "n1", labels=SICK)
    for index in range(20):
        owner = OwnerRef(kind="Job", uid=f"job-{index % 5}", controller=True)
        see_pod(world.store, make_pod(f"p{index}", owner=owner))
        world.ask(f"p{index}")
    assert world.find() is None
    read = count_calls(monkeypatch, world.refused, "_request")
    for _ in range(3):
        world.clock.advance(refused.JUDGE_ALL_S)
        assert world.find() is None
    assert read == []
    for uid, want in (("job-3", {"p3", "p8", "p13", "p18"}), ("job-9", set())):
        meta = Meta(name=uid, namespace="team-a", uid=uid, annotations={"wattbalance.io/gpu-model": "A100"})
        world.store.apply(Changed(Kind.JOB, Partial(metadata=meta)), world.clock.mono_s())
        assert world.find() is None
        assert {facts.name for facts in read} == want  # type: ignore[attr-defined]  # They are pods.
        read.clear()
    see_pod(world.store, make_pod("web", owner=OwnerRef(kind="ReplicaSet", uid="rs", controller=True)))
    parent = [OwnerRef(kind="Deployment", uid="web", controller=True)]
    meta = Meta(name="rs", namespace="team-a", uid="rs", owner_references=parent)
    world.store.apply(Changed(Kind.REPLICASET, Partial(metadata=meta)), world.clock.mono_s())
    world.ask("web")
    assert world.find() is None
    read.clear()
    # Of whom nothing was known before.
    meta = Meta(name="web", namespace="team-a", uid="web", annotations={"wattbalance.io/gpu-model": "A100"})
    world.store.apply(Changed(Kind.DEPLOYMENT, Partial(metadata=meta)), world.clock.mono_s())
    assert world.find() is None
    assert [facts.name for facts in read] == ["web"]  # type: ignore[attr-defined]  # Likewise.
    read.clear()
    see_pod(world.store, make_pod("p7", owner=OwnerRef(kind="Job", uid="job-2", controller=True)))
    world.clock.advance(refused.JUDGE_ALL_S)
    assert world.find() is None
    assert [facts.name for facts in read] == ["p7"]  # type: ignore[attr-defined]  # Likewise.


def test_of_those_that_fit_only_the_first_is_judged_again_for_each_that_is_woken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_node(world.store, "n1", 8, SICK)
    for index in range(20):
        world.ask(f"p{index}", priority=-index)
    world.quarantine("n1", ends=True)
    assert world.wake() == "p0"
    judged = count_calls(monkeypatch, world.decider, "judge")
    assert world.wake_all() == [f"p{index}" for index in range(1, 8)]
    # Of seven more that are woken each has just been judged, and then none of the twelve that are left has room.
    assert len(judged) == 7 + 12


def test_what_pods_prefer_is_no_reason_to_judge_them_apart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job may prefer to keep away from its own pods; where none of them fits, none of them does."""
    see_node(world.store, "n1", 8, SICK)
    for index in range(4):
        pod = make_pod(f"p{index}")
        spread = SpreadConstraint(
            max_skew=1,
            topology_key="kubernetes.io/hostname",
            when_unsatisfiable="ScheduleAnyway",
            label_selector=LabelSelector(match_labels={"job-name": f"job-{index}"}),
        )
        spec = msgspec.structs.replace(pod.spec, topology_spread_constraints=[spread])
        see_pod(world.store, msgspec.structs.replace(pod, spec=spec))
        facts = world.store.waiting[f"uid-p{index}"]
        assert facts.preferences is not None
        world.ask(f"p{index}")
    judged = count_calls(monkeypatch, world.decider, "judge")
    assert world.find() is None
    assert len(judged) == 1
