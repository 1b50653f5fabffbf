"""`/api/v1/explain` over a real socket: each state that a pod may be in, and what is said of what is not known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from scheduler.cluster.objects import MOST_ASKED, Pod
from scheduler.cluster.port import Kind
from scheduler.cluster.preference_objects import (
    Affinity,
    Expression,
    NodeAffinity,
    NodeSelectorTerm,
    PreferredNodes,
)
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import GPU_RESOURCE, Placement, Reason
from scheduler.decision.decider import Decider
from scheduler.decision.record import DecisionLog, decision_annotation
from scheduler.report.absent import GONE, NOT_LISTED, ROOM
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation, NotFound
from scheduler.report.openapi import openapi
from tests.builders import all_rows, lose_pod, make_decider, make_pod, make_store, see_node, see_pod

Client = TestClient[web.Request, web.Application]


class World:
    """A store with two nodes, and who explains it."""

    def __init__(self, placement: Placement = Placement.DECISIVE) -> None:
        self.clock = ManualClock()
        self.store: Store = make_store()
        self.store.synced.add(Kind.POD)
        see_node(self.store, "n1")
        see_node(self.store, "n2")
        self.decider: Decider = make_decider(self.store, placement, {"least-loaded": 1.0, "pack": 3.0})
        self.role = "leader"
        self.woken: dict[str, float] = {}
        self.ours: set[str] = set()
        self.explainer = Explainer(
            self.decider, self.clock, lambda: self.role, self.woken.get, scheduler_names=lambda: self.ours
        )

    def see(self, pod: Pod) -> Pod:
        see_pod(self.store, pod, self.clock.mono_s())
        return pod

    def decide(self, pod: Pod) -> str:
        """As kube-scheduler asks; returns the chosen node."""
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        outcome = self.decider.place(request, all_rows(self.store), self.clock.mono_s(), self.clock.unix_s())
        return outcome.record.chosen

    def make_room(self, pod: Pod) -> str:
        """As kube-scheduler asks before others make room; returns the decision's cycle."""
        request = self.store.request(pod, 0.0, self.decider.profile_facts)
        _, record = self.decider.acceptable(
            request, all_rows(self.store), self.clock.mono_s(), self.clock.unix_s()
        )
        return record.cycle

    async def explained(self, name: str, namespace: str = "team-a") -> Explanation:
        found = await self.explainer.explain(namespace, name)
        assert isinstance(found, Explanation)
        return found

    async def unknown(self, name: str, namespace: str = "team-a") -> NotFound:
        found = await self.explainer.explain(namespace, name)
        assert isinstance(found, NotFound)
        return found


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_routes(world.explainer.routes())
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def get(client: Client, path: str, want_status: int = 200) -> dict[str, Any]:
    async with client.get(f"/api/v1/explain/{path}") as response:
        assert response.status == want_status, await response.text()
        assert response.content_type == "application/json"
        return dict(await response.json())


async def test_a_pod_that_asks_for_an_absurd_number_of_gpus_is_known_and_waits(
    world: World, client: Client
) -> None:
    pod = world.see(make_pod("p1", shares={GPU_RESOURCE: "9223372036854775807"}))
    world.decide(pod)
    told = await get(client, "team-a/p1")
    assert (told["state"], told["gpus"]) == ("waiting", MOST_ASKED)
    assert [each["text"] for each in told["now"]["unblock"]] == [
        "No node has 9.22337e+18 GPUs; the largest has 8. Ask for fewer, or add a larger node."
    ]


async def test_a_pod_for_a_scheduler_that_does_not_ask_us_is_told_so(world: World) -> None:
    pod = world.see(make_pod("p1"))
    name = pod.spec.scheduler_name
    world.ours = {"wattbalance", name}
    assert not any("spec.schedulerName" in note for note in (await world.explained("p1")).notes)
    world.ours = {"wattbalance", "batch"}
    want = f"Its spec.schedulerName is {name}, which is none of our scheduler_names (batch, wattbalance)"
    assert (await world.explained("p1")).notes[0].startswith(want)
    world.decide(pod)
    assert not any("spec.schedulerName" in note for note in (await world.explained("p1")).notes)


async def test_a_bound_pod_has_its_decision_and_a_fresh_evaluation(client: Client, world: World) -> None:
    pod = world.see(make_pod("p1", 4))
    node = world.decide(pod)
    world.see(make_pod("p1", 4, node=node))
    told = await get(client, "team-a/p1")
    assert [told["state"], told["node"], told["uid"], told["gpus"]] == ["bound", node, "uid-p1", 4]
    assert told["decision"]["chosen"] == node
    for best in (told["decision"]["best"], told["now"]["best"]):
        assert len(best) == 2
        for candidate in best:
            total = 0.0
            for term in candidate["terms"]:
                assert term["term"] == term["weight"] * term["score"]
                total += term["term"]
            assert total == candidate["score"]
            assert candidate["points"] is None
    assert told["now"]["own"]["free_gpus"] == 8
    assert told["now"]["unblock"] == []
    assert any("counted free" in note for note in told["notes"])


async def test_a_waiting_pod_is_told_what_would_unblock_it(client: Client, world: World) -> None:
    for name in ("n1", "n2"):
        world.see(make_pod(f"fills-{name}", 7, node=name))
    pod = world.see(make_pod("p1", 4, annotations={"wattbalance.io/workload": "training"}))
    world.decide(pod)
    told = await get(client, "team-a/p1")
    assert [told["state"], told["node"], told["workload"]] == ["waiting", "", "training"]
    assert told["annotations"][0]["key"] == "workload"
    [free] = told["now"]["unblock"]
    assert [free["kind"], free["lacking_gpus"]] == ["free_gpus", 3]
    assert told["decision"]["result"] == "full_by_our_count"


async def test_a_pod_that_was_woken_says_when_while_it_waits(world: World) -> None:
    world.see(make_pod("p1"))
    told = await world.explained("p1")
    assert told.woken_unix_s is None
    assert not any("woken" in note for note in told.notes)
    world.woken["uid-p1"] = 1_700_000_000.25
    told = await world.explained("p1")
    assert told.woken_unix_s == 1_700_000_000.25
    assert any("was woken at 2023-11-14T22:13:20Z" in note for note in told.notes)
    world.see(make_pod("p1", node="n1"))
    assert not any("woken" in note for note in (await world.explained("p1")).notes)


async def test_what_a_pods_annotations_ask_for_counts_in_the_fresh_evaluation_too(world: World) -> None:
    asked = {
        "wattbalance.io/gpu-model": "*H100*",
        "wattbalance.io/pools": "nowhere",
        "wattbalance.io/nonsense": "1",
    }
    world.see(make_pod("p1", annotations=asked))
    told = await world.explained("p1")
    assert told.now is not None
    told_of = {each.key: each.problem for each in told.annotations}
    assert told_of.keys() == {"gpu-model", "pools", "nonsense"}
    assert told_of["nonsense"]
    assert not told_of["gpu-model"]
    world.see(make_pod("p2", annotations={"wattbalance.io/gpu-model": "*T4*"}))
    told = await world.explained("p2")
    assert told.now is not None
    assert [(each.reason, each.nodes) for each in told.now.ruled_out] == [(Reason.OTHER_MODEL.text, 2)]


async def test_a_promise_is_told(world: World) -> None:
    pod = world.see(make_pod("p1", 4))
    node = world.decide(pod)
    told = await world.explained("p1")
    assert told.reserved_node == node
    assert told.now is not None
    assert told.now.chosen == node
    assert len(world.store.reservations) == 1


async def test_a_pod_that_has_gone_leaves_its_last_decision(world: World) -> None:
    pod = world.see(make_pod("p1"))
    world.decide(pod)
    lose_pod(world.store, pod)
    told = await world.explained("p1")
    assert [told.state, told.now] == ["not seen", None]
    assert told.decision is not None
    assert told.decision.best
    assert "it ended, was deleted, or is too new" in told.notes[0]
    world.store.synced.discard(Kind.POD)
    told = await world.explained("p1")
    assert [told.state, told.notes] == ["not seen", [NOT_LISTED]]


async def test_where_only_room_was_asked_for_that_answer_is_shown_and_is_no_decision(world: World) -> None:
    pod = world.see(make_pod("p1", 4))
    elsewhere = make_pod("p1", uid="elsewhere")
    world.make_room(
        msgspec.structs.replace(
            elsewhere, metadata=msgspec.structs.replace(elsewhere.metadata, namespace="team-b")
        )
    )
    world.make_room(make_pod("other"))
    cycle = world.make_room(pod)
    world.make_room(make_pod("other"))
    told = await world.explained("p1")
    assert told.decision is None
    assert told.room is not None
    assert [told.room.cycle, told.room.verb, told.room.result, told.room.asked] == [
        cycle,
        "preempt",
        "accepted",
        2,
    ]
    assert ROOM in told.notes
    assert any("kube-scheduler has not asked us about it yet" in note for note in told.notes)
    newer = world.make_room(pod)
    told = await world.explained("p1")
    assert told.room is not None
    assert told.room.cycle == newer
    lose_pod(world.store, pod)
    told = await world.explained("p1")
    assert [told.state, told.decision, told.gpus, told.notes] == ["not seen", None, 4, [GONE, ROOM]]
    assert told.room is not None
    assert told.room.cycle == newer


async def test_beside_a_decision_about_its_place_no_other_is_shown(world: World) -> None:
    pod = world.see(make_pod("p1"))
    world.make_room(pod)
    world.decide(pod)
    world.make_room(pod)
    told = await world.explained("p1")
    assert told.decision is not None
    assert [told.decision.verb, told.room] == ["filter", None]
    assert ROOM not in told.notes
    lose_pod(world.store, pod)
    told = await world.explained("p1")
    assert told.decision is not None
    assert [told.decision.verb, told.room, told.notes] == ["filter", None, [GONE]]


async def test_room_for_an_earlier_pod_of_the_name_is_none_for_this_one(world: World) -> None:
    first = world.see(make_pod("p1", uid="first"))
    world.decide(first)
    world.make_room(first)
    lose_pod(world.store, first)
    second = world.see(make_pod("p1", uid="second"))
    told = await world.explained("p1")
    assert told.decision is not None
    assert [told.uid, told.decision.uid, told.room] == ["second", "first", None]
    world.make_room(second)
    told = await world.explained("p1")
    assert told.decision is not None
    assert told.room is not None
    assert [told.decision.uid, told.room.uid] == ["first", "second"]
    assert ROOM in told.notes


@pytest.mark.parametrize("only_room", [False, True])
async def test_a_pod_that_had_a_decision_in_another_namespace_is_named_there(
    world: World, *, only_room: bool
) -> None:
    pod = world.see(make_pod("p1"))
    if only_room:
        world.make_room(pod)
    else:
        world.decide(pod)
    lose_pod(world.store, pod)
    told = await world.unknown("p1", "team-b")
    assert told.namespaces == ["team-a"]
    assert "one of this name is, or was, in namespace team-a" in told.error


async def test_of_two_pods_of_one_name_the_decision_of_the_earlier_is_said_to_be_that(world: World) -> None:
    first = world.see(make_pod("p1", uid="first"))
    world.decide(first)
    lose_pod(world.store, first)
    world.see(make_pod("p1", uid="second"))
    told = await world.explained("p1")
    assert told.uid == "second"
    assert told.decision is not None
    assert told.decision.uid == "first"
    assert "earlier pod of this name" in told.notes[0]


async def test_a_pod_that_was_decided_before_a_restart_says_so(world: World) -> None:
    world.see(make_pod("p1", node="n1"))
    told = await world.explained("p1")
    assert told.decision is None
    assert told.now is not None
    assert "since this replica began, at 2023-11-14T22:13:20Z" in told.notes[0]
    world.role = "standby"
    world.see(make_pod("p3"))
    told = await world.explained("p3")
    assert "made by the leader" in told.notes[0]


async def test_a_pod_for_which_others_must_end_names_where(world: World) -> None:
    world.see(make_pod("p1", nominated="n2"))
    notes = (await world.explained("p1")).notes
    assert any(note.startswith("kube-scheduler has others make room for it on n2 ") for note in notes)
    world.see(make_pod("p1", nominated="n2", node="n2"))
    assert not any("make room" in note for note in (await world.explained("p1")).notes)


async def test_what_stands_on_a_pod_is_told_of_a_decision_that_is_not_kept(world: World) -> None:
    pod = world.see(make_pod("p1"))
    node = world.decide(pod)
    record = world.decider.log.of_pod(pod.metadata.uid)
    assert record is not None
    said = decision_annotation(record, node, 7)
    world.decider.log = DecisionLog()
    # After a restart.
    world.decider.instance = "later"
    world.see(make_pod("p1", node=node, annotations=said))
    told = await world.explained("p1")
    assert told.decision is None
    assert told.notes[0] == (
        "No record of the decision is kept here. By its annotation wattbalance.io/decision it was placed on "
        f"{node}, profile batch, score {record.best[0].score:.3f}; the log's line with cycle {record.cycle} has "
        "the rest."
    )
    # By a replica that did not know the record either.
    world.see(make_pod("p1", node=node, annotations=decision_annotation(None, node, 7)))
    assert (await world.explained("p1")).notes[0].endswith(f"it was placed on {node}.")


@pytest.mark.parametrize(
    "text", ["{}", "", "no JSON", "\ud800", '{"node": "n9", "cycle": "1-1"}', '{"node": 1}']
)
@pytest.mark.parametrize("node", ["", "n1"])
async def test_what_others_wrote_there_is_not_told_as_a_decision(world: World, text: str, node: str) -> None:
    world.see(make_pod("p1", node=node, annotations={"wattbalance.io/decision": text}))
    assert "since this replica began" in (await world.explained("p1")).notes[0]


async def test_a_pod_bound_past_our_decision_says_so(world: World) -> None:
    chosen = world.decide(world.see(make_pod("p1")))
    other = "n2" if chosen == "n1" else "n1"
    world.see(make_pod("p1", node=other))
    told = await world.explained("p1")
    assert told.notes[0] == f"It was bound to {other}, past our decision for {chosen}."
    for name in ("n1", "n2"):
        see_node(world.store, name, labels={"wattbalance.io/quarantine": ""})
    assert world.decide(world.see(make_pod("p2"))) == ""
    world.see(make_pod("p2", node="n1"))
    told = await world.explained("p2")
    assert told.notes[0] == "It was bound to n1, though our decision left no node."


async def test_advisory_placement_says_what_kube_scheduler_adds() -> None:
    world = World(Placement.ADVISORY)
    world.decide(world.see(make_pod("p1")))
    told = await world.explained("p1")
    assert told.decision is not None
    assert told.now is not None
    for candidate in (*told.decision.best, *told.now.best):
        assert candidate.points == round(candidate.score * 10)
    assert any("ten times the extender's `weight`" in note for note in told.notes)


async def test_an_unknown_pod_is_told_with_what_is_known_of_its_name(client: Client, world: World) -> None:
    told = await get(client, "team-a/nobody", want_status=404)
    assert told["error"].startswith("nothing is known of pod team-a/nobody")
    world.see(make_pod("p1"))
    told = await get(client, "default/p1", want_status=404)
    assert told["namespaces"] == ["team-a"]
    assert "namespace team-a" in told["error"]
    world.store.synced.clear()
    assert "has not listed the pods" in (await world.unknown("nobody")).error


async def test_a_very_long_name_is_not_told_back_whole(world: World) -> None:
    told = await world.unknown("x" * 10_000)
    assert len(told.error) < 1000


async def test_a_parameter_is_refused(client: Client) -> None:
    assert "unknown parameter 'uid'" in (await get(client, "a/b?uid=1", want_status=400))["error"]


async def test_the_answer_is_as_it_is_described(client: Client, world: World) -> None:
    pod = world.see(make_pod("p1", annotations={"wattbalance.io/workload": "nonsense"}))
    world.decide(pod)
    world.see(make_pod("p1", node="n1", annotations={"wattbalance.io/workload": "nonsense"}))
    see_node(world.store, "n3", labels={"wattbalance.io/quarantine": ""})
    described: Any = openapi("1")
    schemas = described["components"]["schemas"]

    def check(value: object, schema: dict[str, Any]) -> None:
        if "anyOf" in schema:
            schema = next(each for each in schema["anyOf"] if (each.get("type") == "null") == (value is None))
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        if isinstance(value, dict) and "properties" in schema:
            assert set(value) == set(schema["properties"])
            for key, inner in value.items():
                check(inner, schema["properties"][key])
        elif isinstance(value, list):
            for inner in value:
                check(inner, schema.get("items") or schema["prefixItems"][0])

    operation = described["paths"]["/api/v1/explain/{namespace}/{pod}"]["get"]
    answers = operation["responses"]
    for status, path in ((200, "team-a/p1"), (404, "team-a/p2"), (400, "team-a/p1?x=1")):
        schema = answers[str(status)]["content"]["application/json"]["schema"]
        check(await get(client, path, want_status=status), schema)
    for name in ("Explanation", "Decision", "Evaluation", "Candidate", "Term", "Hindrance"):
        assert any("description" in field for field in schemas[name]["properties"].values()), name


async def test_others_get_their_turn_while_a_pod_is_looked_for(world: World) -> None:
    for number in range(10_000):
        world.see(make_pod(f"other-{number}", 1, node=f"away-{number % 1000}"))
    asking = asyncio.ensure_future(world.explainer.explain("team-a", "nobody"))
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 5


@pytest.mark.slow
@pytest.mark.alone
async def test_at_5000_nodes_an_answer_is_made_and_its_time_is_printed(world: World) -> None:
    for number in range(5000):
        see_node(
            world.store,
            f"node-{number:05}",
            labels={"wattbalance.io/quarantine": ""} if number % 7 == 0 else None,
        )
        world.see(make_pod(f"held-{number}", 8, node=f"node-{number:05}"))
    for name in ("n1", "n2"):
        world.see(make_pod(f"held-{name}", 8, node=name))
    pod = world.see(make_pod("p1", 8))
    for number in range(10_000):
        world.decide(pod) if number == 0 else world.decider.log.add(next(iter(world.decider.log)))
    took = []
    for _ in range(20):
        began = time.perf_counter()
        told = await world.explained("p1")
        took.append(time.perf_counter() - began)
    assert told.now is not None
    assert [told.now.nodes, told.now.fitting] == [5002, 0]
    assert {each.kind for each in told.now.unblock} == {"quarantine", "free_gpus"}
    print(f"explain at 5,000 nodes: median {sorted(took)[10] * 1000:.1f} ms, most {max(took) * 1000:.1f} ms")


async def test_what_the_pod_prefers_and_we_do_not_weigh_is_named(world: World) -> None:
    pod = make_pod("picky")
    near = Expression(key="rack", operator="Near", values=["r1"])
    here = Expression(key="rack", operator="In", values=["r1"])
    terms = [
        PreferredNodes(weight=1, preference=NodeSelectorTerm(match_expressions=[each]))
        for each in (near, here)
    ]
    affinity = Affinity(node_affinity=NodeAffinity(preferred=terms))
    picky = msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, affinity=affinity))
    world.see(picky)
    world.decide(picky)
    explained = await world.explained("picky")
    assert explained.decision is not None
    assert explained.decision.result == "passed_soft"
    assert "prefers something that we could not weigh" in explained.notes[0]
    assert explained.notes[1].endswith(
        "preferred node affinity: operator 'Near'; policy node-affinity does not score."
    )


async def test_a_pod_that_prefers_nothing_is_told_nothing_of_preferences(world: World) -> None:
    world.see(make_pod("plain"))
    assert not [note for note in (await world.explained("plain")).notes if "prefers" in note]
