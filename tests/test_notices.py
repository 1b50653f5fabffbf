"""What people are told of a pod by Kubernetes Events, and how often."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec.structs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import notices
from scheduler.bindings import Binding, Past
from scheduler.cluster.events import MOST_NOTE_CHARS
from scheduler.cluster.intent import Fault
from scheduler.cluster.objects import Meta, OwnerRef
from scheduler.cluster.port import EventNote
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import Controller, Reason
from scheduler.decision.decider import reason_texts
from scheduler.decision.record import DecisionRecord
from scheduler.notices import (
    ADVICE,
    BAD_ANNOTATION,
    LABELS_CONTRADICT,
    MOST_REMEMBERED,
    NO_NODE_FITS,
    OTHER_AGAIN_S,
    PODS_TOLD,
    PODS_TOLD_AGAIN_S,
    SAME_AGAIN_S,
    Notices,
)
from tests.builders import make_store, see_node
from tests.test_bindings import record


def refused(uid: str = "u", /, **reasons: int) -> DecisionRecord:
    """A record of a filter that left no node; reasons by the names of `Reason`."""
    texts = {Reason[name].text: count for name, count in reasons.items()}
    return msgspec.structs.replace(record(uid, result="no_fit"), reasons=texts)


def binding(*, daemon: bool = False) -> Binding:
    return Binding(uid="u", namespace="team-a", name="p", node="n1", scheduler="s", said=None, daemon=daemon)


def owner(name: str, kind: str = "ReplicaSet") -> OwnerRef:
    return OwnerRef(kind=kind, uid=f"uid-of-{name}", name=name, controller=True, api_version="apps/v1")


class World:
    """Notices that write into a list."""

    def __init__(
        self,
        *,
        leads: bool = True,
        topmost: Callable[[Controller | None], Controller | None] = lambda controller: controller,
    ) -> None:
        self.clock = ManualClock()
        self.written: list[EventNote] = []
        self.notices = Notices(self.written.append, lambda: leads, self.clock, topmost)


def test_a_pod_that_fits_nowhere_is_told_why_and_what_to_do() -> None:
    world = World()
    world.notices.no_fit(refused(QUARANTINED=3, BROKEN_GPUS=1))
    [note] = world.written
    assert (note.kind, note.namespace, note.name, note.uid) == ("Pod", "team-a", "u", "u")
    assert (note.reason, note.warning) == (NO_NODE_FITS, True)
    for part in ("3: node in quarantine", "1: not enough healthy GPUs", "wattbalance.io/quarantine", "batch"):
        assert part in note.note


def test_a_refusal_says_what_helps_against_its_own_reasons_and_in_one_order() -> None:
    world = World()
    world.notices.no_fit(refused(QUARANTINED=3, BROKEN_GPUS=1, OTHER_MODEL=4))
    world.notices.no_fit(msgspec.structs.replace(refused("one", BROKEN_GPUS=1), asked=1))
    three, one = world.written
    assert three.note == (
        "None of 2 nodes offered fits 1 GPU (profile batch): 4: GPU model not among those asked for; 3: node in "
        "quarantine; 1: not enough healthy GPUs. What helps: models as *A100* in "
        "wattbalance.io/gpu-model; reset or drain nodes whose GPUs are lost or hung; take the label "
        "wattbalance.io/quarantine off nodes that are well again."
    )
    assert one.note == (
        "None of 1 node offered fits 1 GPU (profile batch): 1: not enough healthy GPUs. What helps: reset or drain "
        "nodes whose GPUs are lost or hung."
    )


def test_what_no_label_tells_of_shared_gpus_is_not_asked_of_a_label() -> None:
    world = World()
    world.notices.no_fit(refused(UNKNOWN_MEMORY=1))
    [note] = world.written
    assert "run wattbalance's agent there; unshared GPUs: or label nvidia.com/gpu.memory" in note.note


def test_a_contradiction_is_told_on_its_node_and_its_end_is_not() -> None:
    world, store = World(), make_store()
    see_node(store, "n1")
    node = store.nodes["n1"]
    node.uid = "uid-n1"
    world.notices.contradictions(node)
    world.notices.in_two_pools(node)
    assert not world.written
    node.miscounted = ("its labels claim 4 replicas", "and 7 slices")
    world.notices.contradictions(node)
    node.miscounted = ()
    world.notices.contradictions(node)
    [note] = world.written
    assert (note.kind, note.namespace, note.name, note.uid) == ("Node", "", "n1", "uid-n1")
    assert (note.reason, note.warning, note.action) == (LABELS_CONTRADICT, True, "Scheduling")
    assert "its labels claim 4 replicas; and 7 slices" in note.note


def test_waiting_for_a_pools_turn_is_no_warning() -> None:
    world = World()
    world.notices.no_fit(refused(WAITING_FOR_POOL=2))
    world.notices.no_fit(refused("v", WAITING_FOR_POOL=2, QUARANTINED=1))
    of_a_pool = msgspec.structs.replace(refused("w"), reasons={"waiting for pool dc-1": 2})
    world.notices.no_fit(of_a_pool)
    assert [note.warning for note in world.written] == [False, True, False]
    assert "2: waiting for pool dc-1. What helps: later pools open" in world.written[-1].note


def test_nodes_that_nobody_knows_are_a_reason_too() -> None:
    world = World()
    world.notices.no_fit(refused(UNKNOWN_NODE=2))
    world.notices.no_fit(refused("v"))
    unknown, none = world.written
    assert unknown.warning
    assert "2: node unknown to wattbalance" in unknown.note
    assert none.warning
    assert "offered none" in none.note


def test_the_same_is_said_again_only_after_minutes() -> None:
    world = World()
    for _ in range(10):
        world.notices.no_fit(refused(QUARANTINED=3))
        # Another count is the same reason.
        world.notices.no_fit(refused(QUARANTINED=2))
    assert len(world.written) == 1
    world.clock.advance(SAME_AGAIN_S)
    world.notices.no_fit(refused(QUARANTINED=3))
    assert len(world.written) == 2


def test_other_reasons_are_said_sooner_but_flapping_ones_are_no_stream() -> None:
    world = World()
    world.notices.no_fit(refused(QUARANTINED=3))
    world.notices.no_fit(refused(BROKEN_GPUS=3))
    assert len(world.written) == 1
    for second in range(int(OTHER_AGAIN_S) * 4):
        world.clock.advance(1.0)
        world.notices.no_fit(refused(QUARANTINED=3) if second % 2 else refused(BROKEN_GPUS=3))
    # At the 31st, 62nd and 93rd second: each time the other one is told as soon as half a minute has passed.
    assert len(world.written) == 1 + 3
    assert world.written[0].about != world.written[1].about


def test_pods_do_not_share_their_limit() -> None:
    world = World()
    for number in range(5):
        world.notices.no_fit(refused(f"u{number}", QUARANTINED=1))
    assert len(world.written) == 5


def test_a_standby_says_nothing() -> None:
    world = World(leads=False)
    world.notices.no_fit(refused(QUARANTINED=1))
    world.notices.past(binding(), Past.NO_DECISION)
    assert not world.written


@pytest.mark.parametrize("why", list(Past))
def test_a_pod_placed_past_us_is_told_how(why: Past) -> None:
    world = World()
    world.notices.past(binding(), why)
    world.notices.past(binding(), why)
    [note] = world.written
    assert (note.warning, note.action) == (True, "Binding")
    assert "n1" in note.note
    assert "{" not in note.note


def test_a_daemon_sets_pod_was_never_to_be_placed() -> None:
    world = World()
    world.notices.past(binding(daemon=True), Past.OTHER_SCHEDULER)
    assert not world.written


def test_memory_is_bounded() -> None:
    world = World()
    for number in range(MOST_REMEMBERED + 1):
        world.notices.no_fit(refused(f"u{number}", QUARANTINED=1))
    # The oldest has been forgotten, the newest has not.
    world.notices.no_fit(refused("u0", QUARANTINED=1))
    world.notices.no_fit(refused(f"u{MOST_REMEMBERED}", QUARANTINED=1))
    assert len(world.written) == MOST_REMEMBERED + 2


def test_what_was_said_again_just_now_is_not_what_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "MOST_REMEMBERED", 2)
    world = World()
    world.notices.no_fit(refused("a", QUARANTINED=1))
    world.notices.no_fit(refused("b", QUARANTINED=1))
    world.clock.advance(SAME_AGAIN_S)
    world.notices.no_fit(refused("a", QUARANTINED=1))
    world.notices.no_fit(refused("c", QUARANTINED=1))
    world.notices.no_fit(refused("a", QUARANTINED=1))
    assert [note.name for note in world.written] == ["a", "b", "a", "c"]


def test_every_reason_that_can_rule_a_node_out_has_advice_and_all_at_once_fit_into_a_note() -> None:
    assert set(ADVICE) == {reason.text for reason in Reason if reason is not Reason.FITS}
    world = World()
    world.notices.no_fit(refused(**{reason.name: 5000 for reason in Reason if reason.text}))
    assert len(world.written[0].note) <= MOST_NOTE_CHARS
    # Texts of pools begin with the reason's own.
    assert any(text == "waiting for pool dc-1" for text in reason_texts(["dc-1"]))


# --- annotations -----------------------------------------------------------------------------------------------------


def fault(key: str, where: str = "pod", message: str = "expected 40Gi, got 'lots'") -> Fault:
    return Fault(key=key, text="'lots'", where=where, message=message)


def pod_of(name: str, made_by: str = "") -> Meta:
    owners = [owner(made_by)] if made_by else None
    return Meta(name=name, namespace="team-a", uid=f"uid-{name}", owner_references=owners)


def test_all_bad_annotations_of_a_pod_are_one_warning() -> None:
    world = World()
    faults = (fault("gpu-memory"), fault("power", "deployment web"))
    for _ in range(3):
        world.notices.bad_annotations(pod_of("p"), faults)
    [note] = world.written
    assert (note.kind, note.namespace, note.name, note.uid) == ("Pod", "team-a", "p", "uid-p")
    assert (note.reason, note.warning) == (BAD_ANNOTATION, True)
    for part in (
        "wattbalance.io/gpu-memory (pod): expected 40Gi, got 'lots'",
        "; wattbalance.io/power (deployment web)",
    ):
        assert part in note.note
    world.clock.advance(SAME_AGAIN_S)
    world.notices.bad_annotations(pod_of("p"), faults)
    assert len(world.written) == 2


def test_of_bad_annotations_those_whose_key_nobody_knows_come_last_whoever_says_them() -> None:
    world = World()
    known = Fault(
        key="pools", text="'?'", where="namespace team-a", message="expected names of pools, got '?'"
    )
    unknown = Fault(key="zzz", text="''", where="pod", message="expected a key, got 'zzz'")
    world.notices.bad_annotations(Meta(name="p", namespace="team-a", uid="u"), (known, unknown))
    [of_pod] = [note for note in world.written if note.kind == "Pod"]
    assert of_pod.note.endswith(f"{known}; {unknown}")


def test_who_does_not_lead_tells_of_no_annotation() -> None:
    world = World(leads=False)
    world.notices.bad_annotations(pod_of("p", "web"), (fault("power"), fault("queue", "namespace team-a")))
    assert not world.written


# --- what many pods have in common -----------------------------------------------------------------------------------


def told(world: World) -> list[str]:
    """On what, in this order; emptied."""
    names = [f"{note.kind} {note.name}" for note in world.written]
    world.written.clear()
    return names


def test_what_is_the_same_of_all_pods_of_an_owner_is_told_on_the_first_few_and_counted_on_the_owner() -> None:
    world = World()
    for number in range(500):
        world.notices.bad_annotations(pod_of(f"p{number}", "web"), (fault("power"),))
    on_pods = [note for note in world.written if note.kind == "Pod"]
    on_owner = [note for note in world.written if note.kind != "Pod"]
    assert [note.name for note in on_pods] == ["p0", "p1", "p2"]
    assert {(note.kind, note.api_version, note.namespace, note.name, note.uid) for note in on_owner} == {
        ("ReplicaSet", "apps/v1", "team-a", "web", "uid-of-web")
    }
    # The same again: cluster/events.py makes one series of them, which counts the pods.
    assert len(on_owner) == 500
    assert len({(note.reason, note.about, note.warning, note.action) for note in on_owner}) == 1
    assert on_owner[0].note.startswith("First pod p0: Not used")
    assert "wattbalance.io/power (pod): expected 40Gi" in on_owner[0].note


def test_a_pod_is_counted_once_however_often_it_is_asked_about() -> None:
    world = World()
    for _ in range(10):
        world.notices.bad_annotations(pod_of("p", "web"), (fault("power"),))
    assert told(world) == ["ReplicaSet web", "Pod p"]


def test_other_owners_and_other_messages_are_told_at_once() -> None:
    world = World()
    for name in "abcd":
        world.notices.bad_annotations(pod_of(name, "web"), (fault("power"),))
    told(world)
    world.notices.bad_annotations(pod_of("e", "db"), (fault("power"),))
    assert told(world) == ["ReplicaSet db", "Pod e"]
    world.notices.bad_annotations(pod_of("f", "web"), (fault("power", message="expected firm, got 'soft'"),))
    assert told(world) == ["ReplicaSet web", "Pod f"]
    world.notices.bad_annotations(pod_of("g", "web"), (fault("power"),))
    assert told(world) == ["ReplicaSet web"]


def test_refusals_and_bindings_past_us_are_counted_on_the_owner_too() -> None:
    world = World()
    for number in range(5):
        world.notices.no_fit(refused(f"u{number}", QUARANTINED=3 + number), owner("web"))
    assert told(world) == [
        *("ReplicaSet web", "Pod u0", "ReplicaSet web", "Pod u1", "ReplicaSet web", "Pod u2"),
        *("ReplicaSet web", "ReplicaSet web"),
    ]
    for number in range(5):
        past = dataclasses.replace(binding(), uid=f"u{number}", name=f"p{number}", controller=owner("web"))
        world.notices.past(past, Past.OTHER_SCHEDULER)
    assert told(world)[-3:] == ["Pod p2", "ReplicaSet web", "ReplicaSet web"]


def test_the_owner_is_who_controls_in_the_end() -> None:
    world = World(topmost=lambda controller: owner("site", "Deployment") if controller else None)
    world.notices.no_fit(refused(QUARANTINED=1), owner("site-7f"))
    assert told(world) == ["Deployment site", "Pod u"]
    world.notices.no_fit(refused("v", QUARANTINED=1))
    assert told(world) == ["Pod v"]


@pytest.mark.parametrize(
    "strange", [OwnerRef(kind="Node", uid="n", name="n1"), OwnerRef(kind="Job", uid="j")]
)
def test_a_pod_of_a_node_or_of_what_has_no_name_stands_alone(strange: OwnerRef) -> None:
    world = World()
    for uid in "abcd":
        world.notices.no_fit(refused(uid, QUARANTINED=1), strange)
    assert told(world) == ["Pod a", "Pod b", "Pod c", "Pod d"]


def test_pods_that_are_still_refused_keep_their_place_and_those_that_are_gone_make_room() -> None:
    world = World()
    pods = ["a", "b", "c", "d", "e"]
    for uid in pods:
        world.notices.no_fit(refused(uid, QUARANTINED=1), owner("web"))
    told(world)
    for _ in range(4):
        world.clock.advance(SAME_AGAIN_S)
        for uid in pods:
            world.notices.no_fit(refused(uid, QUARANTINED=1), owner("web"))
        want_told = ["ReplicaSet web", "Pod a", "ReplicaSet web", "Pod b", "ReplicaSet web", "Pod c"]
        assert told(world) == [*want_told, "ReplicaSet web", "ReplicaSet web"]
    world.clock.advance(SAME_AGAIN_S)
    for uid in ("b", "c"):
        world.notices.no_fit(refused(uid, QUARANTINED=1), owner("web"))
    told(world)
    world.clock.advance(SAME_AGAIN_S)
    # `a` was told last just so long ago; `b` and `c` were not.
    world.notices.no_fit(refused("d", QUARANTINED=1), owner("web"))
    world.notices.no_fit(refused("e", QUARANTINED=1), owner("web"))
    assert told(world) == ["ReplicaSet web", "Pod d", "ReplicaSet web"]


def test_what_a_namespace_says_is_told_on_it_and_on_the_first_few_of_its_pods() -> None:
    world = World()
    for number in range(6):
        said = (fault("power", "namespace team-a"),)
        world.notices.bad_annotations(pod_of(f"p{number}", f"web{number}"), said)
    assert [note.name for note in world.written if note.kind == "Pod"] == ["p0", "p1", "p2"]
    on_namespace = [note for note in world.written if note.kind != "Pod"]
    assert [(note.kind, note.namespace, note.name) for note in on_namespace] == [
        ("Namespace", "team-a", "team-a")
    ] * 6
    assert "wattbalance.io/power (namespace team-a)" in on_namespace[0].note


def test_a_pod_tells_only_what_it_is_among_the_first_to_tell() -> None:
    world = World()
    shared = fault("power", "namespace team-a")
    for name in "abc":
        world.notices.bad_annotations(pod_of(name, "web"), (shared,))
    world.written.clear()
    world.notices.bad_annotations(pod_of("d", "web"), (fault("queue"), shared))
    on_owner, on_namespace, on_pod = world.written
    assert ("queue" in on_owner.note, "power" in on_owner.note) == (True, False)
    assert ("queue" in on_namespace.note, "power" in on_namespace.note) == (False, True)
    assert (on_pod.name, "queue" in on_pod.note, "power" in on_pod.note) == ("d", True, False)
    # The first one tells both.
    fresh = World()
    fresh.notices.bad_annotations(pod_of("a", "web"), (shared, fault("queue")))
    on_pod = fresh.written[-1]
    assert (on_pod.kind, "queue" in on_pod.note, "power" in on_pod.note) == ("Pod", True, True)
    # Of another namespace of the same name of owner nothing was told yet.
    other = Meta(name="x", namespace="team-b", uid="x")
    world.notices.bad_annotations(other, (fault("power", "namespace team-b"),))
    assert told(world)[-2:] == ["Namespace team-b", "Pod x"]


def test_memory_of_owners_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "MOST_REMEMBERED", 2)
    world = World()
    for uid, name in (("a", "web"), ("b", "web"), ("c", "web"), ("d", "db"), ("e", "web"), ("f", "job")):
        world.notices.no_fit(refused(uid, QUARANTINED=1), owner(name))
    told(world)
    # The owner that was told of longest ago is forgotten, not the one that was met first.
    world.notices.no_fit(refused("g", QUARANTINED=1), owner("web"))
    assert told(world) == ["ReplicaSet web"]
    world.notices.no_fit(refused("h", QUARANTINED=1), owner("db"))
    world.notices.no_fit(refused("i", QUARANTINED=1), owner("job"))
    world.notices.no_fit(refused("j", QUARANTINED=1), owner("web"))
    assert told(world)[-1] == "Pod j"


class Ask(NamedTuple):
    """Somebody asks about a pod that has something wrong with it."""

    after_s: float
    pod: int
    owner: str
    reason: str


ASKS = st.builds(
    Ask,
    after_s=st.sampled_from([0.0, 0.0, 0.5, 10.0, OTHER_AGAIN_S, 200.0, SAME_AGAIN_S, 1000.0]),
    pod=st.integers(0, 7),
    owner=st.sampled_from(["", "web", "db"]),
    reason=st.sampled_from(["QUARANTINED", "BROKEN_GPUS"]),
)


@given(st.lists(ASKS, max_size=80))
def test_no_change_is_kept_from_an_owner_and_few_of_its_pods_are_told(asks: list[Ask]) -> None:
    world = World()
    said: dict[str, tuple[str, float]] = {}
    told_mono_s: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for ask in asks:
        world.clock.advance(ask.after_s)
        now_mono_s = world.clock.mono_s()
        uid, about = f"{ask.owner}-{ask.pod}", Reason[ask.reason].text
        before, before_mono_s = said.get(uid, ("", -math.inf))
        again_s = SAME_AGAIN_S if before == about else OTHER_AGAIN_S
        world.notices.no_fit(refused(uid, **{ask.reason: 1}), owner(ask.owner) if ask.owner else None)
        notes = list(world.written)
        world.written.clear()
        if now_mono_s - before_mono_s < again_s:
            assert not notes
            continue
        said[uid] = (about, now_mono_s)
        want_on = f"uid-of-{ask.owner}" if ask.owner else uid
        assert notes[0].uid == want_on
        assert [note.about for note in notes] == [about] * len(notes)
        assert [note.uid for note in notes[1:]] in ([], [uid])
        if ask.owner and len(notes) > 1:
            told_mono_s.setdefault((ask.owner, about), []).append((now_mono_s, uid))
    for told_of in told_mono_s.values():
        for since_mono_s, _ in told_of:
            window = [
                pod for at_mono_s, pod in told_of if 0.0 <= at_mono_s - since_mono_s < PODS_TOLD_AGAIN_S
            ]
            assert len(set(window)) <= PODS_TOLD
