"""The stand-in for kube-scheduler on the simulated API server, with a real HTTP extender where there is one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from scheduler.core.clock import ManualClock, SystemClock
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.kubescheduler import KubeScheduler, SchedulerConfig
from scheduler.simulate.kubescheduler_extender import ExtenderConfig
from scheduler.simulate.requeue import Rules
from tests.simulate.scheduler_cases import CASES, Case, node, pod, taint

Answer = Callable[[dict[str, Any]], Any]


class Bench:
    """A server, a scheduler and a clock that moves by hand."""

    def __init__(self, nodes: tuple[dict[str, Any], ...] = (), **config: Any) -> None:
        self.clock = ManualClock()
        self.server = ApiServer(self.clock)
        for each in nodes:
            self.server.create("nodes", each)
        self.scheduler = KubeScheduler(self.server, self.clock, SchedulerConfig(**config))

    async def place(self, *pods: dict[str, Any]) -> None:
        for each in pods:
            self.server.create("pods", each)
        await self.scheduler.settle()

    async def later(self, by_s: float) -> None:
        self.clock.advance(by_s)
        await self.scheduler.settle()

    def node_of(self, name: str) -> str | None:
        placed: str | None = self.server.get("pods", name, "default")["spec"].get("nodeName")
        return placed

    def message(self, name: str) -> str:
        text: str = self.server.get("pods", name, "default")["status"]["conditions"][0]["message"]
        return text


class Extender:
    """An extender that answers what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Answer] = {
            "filter": lambda body: {"NodeNames": body["NodeNames"]},
            "prioritize": lambda _: [],
        }
        self.status = 200
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        verb = request.path.rpartition("/")[2]
        body = await request.json()
        self.asked.append((verb, body))
        return web.json_response(self.answers[verb](body), status=self.status)

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.asked]


@contextlib.asynccontextmanager
async def extending() -> AsyncIterator[Extender]:
    extender = Extender()
    runner = web.ServerRunner(web.Server(extender.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    extender.url = f"http://127.0.0.1:{runner.addresses[0][1]}/scheduler/"
    try:
        yield extender
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def bench(extender: Extender, *nodes: dict[str, Any], **changed: Any) -> AsyncIterator[Bench]:
    own = {name: changed.pop(name) for name in ("rules", "seed", "nodes_to_score_pct") if name in changed}
    made = Bench(nodes, extender=ExtenderConfig(url_prefix=extender.url, **changed), **own)
    try:
        yield made
    finally:
        await made.scheduler.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_pod_lands_where_kube_scheduler_puts_it(case: Case) -> None:
    made = Bench(case.nodes)
    for each in case.bound:
        made.server.create("pods", each)
    for each in case.pods:
        await made.place(each)
        name = each["metadata"]["name"]
        want_nodes = case.want[name] or (None,)
        assert made.node_of(name) in want_nodes


async def test_the_reason_of_each_node_stands_in_the_condition_and_in_the_counts() -> None:
    made = Bench(
        (node("a", cpu="1"), node("b", cordoned=True), node("c", taints=(taint("k", "v", "NoSchedule"),)))
    )
    await made.place(pod("p", cpu="2"))
    assert made.message("p") == "0/3 nodes are available: 1 insufficient cpu, 1 taint, 1 unschedulable."
    assert made.scheduler.counts.unschedulable == {"insufficient cpu": 1, "taint": 1, "unschedulable": 1}


async def test_only_pods_of_the_named_scheduler_are_placed_but_all_are_counted() -> None:
    made = Bench((node("a", gpu=1),), scheduler_name="wattbalance")
    await made.place(pod("theirs"), pod("p", gpu=1, schedulerName="wattbalance"))
    assert (made.node_of("theirs"), made.node_of("p")) == (None, "a")


async def test_higher_priority_goes_first() -> None:
    made = Bench((node("a", gpu=1),))
    await made.place(pod("low", gpu=1), pod("high", gpu=1, priority=10))
    assert (made.node_of("low"), made.node_of("high")) == (None, "a")


async def test_ties_repeat_with_the_seed_and_spread_over_nodes() -> None:
    def nodes() -> tuple[dict[str, Any], ...]:
        return tuple(node(f"n{at}") for at in range(8))

    chosen = []
    for seed in (1, 1, 2):
        made = Bench(nodes(), seed=seed)
        await made.place(*(pod(f"p{at}") for at in range(8)))
        chosen.append([made.node_of(f"p{at}") for at in range(8)])
    assert chosen[0] == chosen[1] != chosen[2]


async def test_a_gated_pod_waits_for_its_gate() -> None:
    made = Bench((node("a"),))
    await made.place(pod("p", schedulingGates=[{"name": "g"}]))
    assert made.node_of("p") is None
    made.server.patch("pods", "p", "default", {"spec": {"schedulingGates": None}})
    await made.scheduler.settle()
    assert made.node_of("p") == "a"


async def test_a_finished_pod_frees_its_node_for_the_waiting_one_at_its_backoff() -> None:
    made = Bench((node("a", gpu=1),))
    await made.place(pod("p", gpu=1), pod("q", gpu=1))
    made.server.patch("pods", "p", "default", {"status": {"phase": "Succeeded"}}, status=True)
    await made.later(0.9)
    assert made.node_of("q") is None
    await made.later(0.2)
    assert made.node_of("q") == "a"


async def test_backoff_doubles_up_to_its_limit() -> None:
    made = Bench((node("a", gpu=1),), max_backoff_s=3.0)
    await made.place(pod("o", gpu=1), pod("p", gpu=1))
    for want_wait_s in (1.0, 2.0, 3.0, 3.0):
        attempts = made.scheduler.counts.attempts
        made.server.create("pods", pod("x", gpu=1, nodeName="a"))
        made.server.delete("pods", "x", "default", grace_s=0)
        await made.later(want_wait_s - 0.01)
        assert made.scheduler.counts.attempts == attempts
        await made.later(0.02)
        assert made.scheduler.counts.attempts == attempts + 1


@pytest.mark.parametrize(
    ("patch", "want_retried"),
    [
        ({"metadata": {"annotations": {"a": "b"}}}, False),
        ({"metadata": {"labels": {"zone": "x"}}}, True),
        ({"metadata": {"labels": {"other": "x"}}}, False),
    ],
)
async def test_on_1_32_a_node_change_wakes_only_pods_that_it_helps(
    patch: dict[str, Any], want_retried: bool
) -> None:
    made = Bench((node("a"),))
    await made.place(pod("p", nodeSelector={"zone": "x"}))
    made.server.patch("nodes", "a", "", patch)
    await made.later(1.1)
    assert made.scheduler.counts.attempts == (2 if want_retried else 1)


@pytest.mark.parametrize(("rules", "want_attempts"), [(Rules.V1_20, 2), (Rules.V1_32, 1)])
async def test_on_1_20_any_event_wakes_every_pod(rules: Rules, want_attempts: int) -> None:
    made = Bench((node("a"),), rules=rules)
    await made.place(pod("p", nodeSelector={"zone": "x"}))
    made.server.patch("nodes", "a", "", {"metadata": {"labels": {"other": "x"}}})
    await made.later(1.1)
    assert made.scheduler.counts.attempts == want_attempts


@pytest.mark.parametrize(("rules", "want_flush_s"), [(Rules.V1_20, 60.0), (Rules.V1_32, 300.0)])
async def test_a_pod_that_nothing_wakes_is_tried_again_in_the_end(rules: Rules, want_flush_s: float) -> None:
    made = Bench((node("a"),), rules=rules)
    await made.place(pod("p", gpu=1))
    await made.later(want_flush_s - 1)
    assert made.scheduler.counts.attempts == 1
    await made.later(1.1)
    assert made.scheduler.counts.attempts == 2


async def test_pods_on_a_node_count_again_when_it_comes_back() -> None:
    made = Bench((node("a", gpu=1),))
    await made.place(pod("p", gpu=1))
    made.server.delete("nodes", "a")
    made.server.create("nodes", node("a", gpu=1))
    await made.place(pod("q", gpu=1))
    assert made.node_of("q") is None


async def test_a_failed_bind_gives_back_what_was_assumed() -> None:
    made = Bench((node("a", gpu=1),), bind_delay_s=0.05)
    made.server.create("pods", pod("p", gpu=1))
    async with asyncio.TaskGroup() as group:
        group.create_task(made.scheduler.settle())
        await asyncio.sleep(0)
        assert made.scheduler.counts.attempts == 1
        made.server.delete("pods", "p", "default")
    assert (made.scheduler.counts.placed, made.scheduler.counts.bind_failures) == (0, 1)
    await made.place(pod("q", gpu=1))
    assert made.node_of("q") == "a"


async def test_the_loop_places_pods_by_itself_until_it_is_cancelled() -> None:
    server = ApiServer(SystemClock())
    scheduler = KubeScheduler(server, SystemClock(), SchedulerConfig(initial_backoff_s=0.05))
    server.create("nodes", node("a", gpu=1))
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        loop = group.create_task(scheduler.run())
        server.create("pods", pod("p", gpu=1))
        while scheduler.counts.attempts < 1:
            await asyncio.sleep(0.01)
        server.create("pods", pod("q", gpu=1))
        while scheduler.counts.attempts < 2:
            await asyncio.sleep(0.01)
        server.delete("pods", "p", "default", grace_s=0)
        while scheduler.counts.placed < 2:
            await asyncio.sleep(0.01)
        loop.cancel()
    assert server.get("pods", "q", "default")["spec"]["nodeName"] == "a"
    assert scheduler.waiting == 0


async def test_the_extender_is_asked_in_the_real_shape_and_its_one_node_is_taken_without_scores() -> None:
    async with (
        extending() as extender,
        bench(extender, node("a"), node("b"), node("c", cordoned=True)) as made,
    ):
        extender.answers["filter"] = lambda _: {"NodeNames": ["b"]}
        await made.place(pod("p"))
        assert made.node_of("p") == "b"
        assert extender.verbs == ["filter"]
        body = extender.asked[0][1]
        assert (body["Nodes"], sorted(body["NodeNames"])) == (None, ["a", "b"])
        assert body["Pod"]["metadata"]["name"] == "p"
        assert "kind" not in body["Pod"]
        assert made.scheduler.extender is not None
        assert made.scheduler.extender.latencies["filter"].count == 1


async def test_scores_count_ten_times_their_weight() -> None:
    async with extending() as extender, bench(extender, node("a"), node("b")) as made:
        made.server.create("pods", pod("o", cpu="4", memory="16Gi", nodeName="a"))
        # In-tree, the half-full node stands 50 points behind.
        extender.answers["prioritize"] = lambda _: [{"Host": "a", "Score": 4}]
        await made.place(pod("p"))
        assert made.node_of("p") == "b"
        extender.answers["prioritize"] = lambda _: [
            {"Host": "a", "Score": 6},
            {"Host": "unknown", "Score": 10},
        ]
        await made.place(pod("q"))
        assert made.node_of("q") == "a"


async def test_an_error_in_prioritize_is_swallowed() -> None:
    async with extending() as extender, bench(extender, node("a"), node("b")) as made:
        extender.answers["prioritize"] = lambda _: {"not": "a list"}
        await made.place(pod("p"))
        assert made.node_of("p") is not None
        assert made.scheduler.counts.extender_errors == 1


@pytest.mark.parametrize("ignorable", [True, False])
@pytest.mark.parametrize("how", ["error", "status", "unknown node", "refused"])
async def test_a_failed_filter_fails_the_attempt_unless_it_is_ignorable(how: str, ignorable: bool) -> None:
    async with extending() as extender:
        if how == "status":
            extender.status = 503
        if how == "refused":
            extender.url = "http://127.0.0.1:1/"
        if how in ("error", "unknown node"):
            answer = {"Error": "no"} if how == "error" else {"NodeNames": ["x"]}
            extender.answers["filter"] = lambda _: answer
        async with bench(extender, node("a"), ignorable=ignorable) as made:
            await made.place(pod("p"))
            assert made.node_of("p") == ("a" if ignorable else None)
            # An error is retried at the backoff, without any event.
            extender.status = 200
            extender.answers["filter"] = lambda body: {"NodeNames": body["NodeNames"]}
            await made.later(1.1)
            assert (made.node_of("p") == "a") == (ignorable or how != "refused")


async def test_pods_without_a_managed_resource_are_not_sent() -> None:
    async with extending() as extender:
        managed = frozenset({"nvidia.com/gpu"})
        async with bench(extender, node("a", gpu=1), managed_resources=managed) as made:
            await made.place(pod("p"), pod("q", gpu=1))
            assert [body["Pod"]["metadata"]["name"] for _, body in extender.asked] == ["q"]


def refuse(body: dict[str, Any]) -> dict[str, Any]:
    return {"NodeNames": [], "FailedAndUnresolvableNodes": dict.fromkeys(body["NodeNames"], "no headroom")}


@pytest.mark.parametrize("rules", list(Rules))
async def test_a_nudge_wakes_a_refused_pod_at_its_backoff(rules: Rules) -> None:
    async with extending() as extender, bench(extender, node("a"), node("b"), rules=rules) as made:
        extender.answers["filter"] = refuse
        await made.place(pod("p"))
        assert made.message("p") == "0/2 nodes are available: 2 no headroom."
        # The new condition itself wakes it once more on 1.32, and the same text again does not.
        for _ in range(4):
            await made.later(10.1)
        attempts = made.scheduler.counts.attempts
        assert attempts == (1 if rules is Rules.V1_20 else 2)
        extender.answers["filter"] = lambda body: {"NodeNames": body["NodeNames"][:1]}
        patch = {"metadata": {"annotations": {"wattbalance.io/retry": "1"}}}
        made.server.patch("pods", "p", "default", patch)
        await made.later(10.1)
        assert made.node_of("p") is not None


async def test_on_1_32_an_update_of_any_assigned_pod_wakes_refused_pods() -> None:
    async with extending() as extender, bench(extender, node("a")) as made:
        await made.place(pod("o"))
        extender.answers["filter"] = refuse
        await made.place(pod("p"))
        for _ in range(2):
            await made.later(10.1)
        attempts = made.scheduler.counts.attempts
        made.server.patch("pods", "o", "default", {"metadata": {"labels": {"a": "b"}}})
        await made.later(10.1)
        assert made.scheduler.counts.attempts == attempts + 1


@pytest.mark.parametrize(("pct", "want_offered"), [(100, 300), (None, 144), (50, 150), (10, 100)])
async def test_the_search_stops_early_as_configured(pct: int | None, want_offered: int) -> None:
    nodes = [node(f"n{at}") for at in range(300)]
    async with extending() as extender, bench(extender, *nodes, nodes_to_score_pct=pct) as made:
        await made.place(pod("p"), pod("q"))
        offered = [body["NodeNames"] for verb, body in extender.asked if verb == "filter"]
        assert [len(names) for names in offered] == [want_offered, want_offered]
        assert (offered[0] == offered[1]) == (pct == 100)


async def test_a_pod_that_goes_while_the_extender_thinks_is_not_bound() -> None:
    async with extending() as extender, bench(extender, node("a", gpu=1)) as made:

        def delete_first(body: dict[str, Any]) -> dict[str, Any]:
            if body["Pod"]["metadata"]["name"] == "p":
                made.server.delete("pods", "p", "default")
            return {"NodeNames": body["NodeNames"]}

        extender.answers["filter"] = delete_first
        await made.place(pod("p", gpu=1))
        await made.place(pod("q", gpu=1))
        assert made.node_of("q") == "a"
        assert made.scheduler.counts.bind_failures == 0
