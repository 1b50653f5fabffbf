"""The report of observing, of the daemon as it is composed: it begins, follows, and begins anew with another mode."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from scheduler import config, observing
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Gone, Kind, Listed
from scheduler.decision.shadow import Shadow
from scheduler.observing import observed
from scheduler.pause import Pause, Paused
from scheduler.reload import exchange
from scheduler.report.observation import ObserveReport
from tests.contracts.cluster_contract import eventually
from tests.test_app import Replica, World, world

__all__ = ["world"]
SITES = {"mine": "dc-1", "theirs": "aws-a"}
POOLS = [
    {"name": "dc-1", "selector": {"site": "dc-1"}},
    {"name": "aws-a", "selector": {"site": "aws-a"}, "mode": "observe"},
]
ALIKE = [{**pool, "mode": None} for pool in POOLS]


async def told(replica: Replica, path: str = "/api/v1/observe") -> Any:
    async with replica.session.get(path) as page:
        return json.loads(await page.read())


async def until_follows(replica: Replica, pods: int = 0) -> dict[str, Any]:
    await eventually(lambda: replica.daemon.observing.shadow is not None)
    shadow = replica.daemon.observing.shadow
    assert shadow is not None
    await eventually(lambda: shadow.so_far >= pods)
    report: dict[str, Any] = await told(replica)
    return report


@contextlib.asynccontextmanager
async def following(world: World, pools: object = POOLS, mode: str = "act") -> AsyncIterator[Replica]:
    """A replica that knows a node of each pool, and follows what is observed."""
    for node, site in SITES.items():
        world.add_node(node, site=site)
    async with world.replica(pools=pools, mode=mode) as replica:
        await replica.knows(*SITES)
        await until_follows(replica)
        yield replica


async def place(world: World, replica: Replica, name: str, node: str, *offered: str) -> None:
    """As kube-scheduler: create it, ask, and bind it where it pleases."""
    world.add_pod(name)
    await replica.filter(world.api.get("pods", name, "default"), *(offered or SITES))
    world.api.bind(name, "default", node)


async def test_while_all_is_observed_it_tells_where_pods_would_be(world: World) -> None:
    world.add_pod("before", node="theirs")
    async with following(world, mode="observe", pools=ALIKE) as replica:
        report = await told(replica)
        assert report["status"] == "no_data"
        assert "No data yet" in report["notes"][0]
        for name, node in (("p1", "theirs"), ("p2", "mine")):
            await place(world, replica, name, node)
        report = await until_follows(replica, 2)
        assert (report["status"], report["observing"]) == ("ok", "everything, by `mode: observe`")
        assert [(pod["name"], pod["real"], pod["ours"], pod["place"]) for pod in report["pods"]] == [
            ("p2", "mine", "mine", "same"),
            ("p1", "theirs", "mine", "elsewhere"),
        ]
        assert (report["pods_same"], report["pods_elsewhere"], report["pods_waiting"]) == (1, 1, 0)
        # Nobody measures here: unknown, and no figure.
        assert report["real"]["load_spread_frac"] is report["ours"]["power_in_use_w"] is None
        assert report["real"]["used_nodes"] == report["ours"]["used_nodes"] == 2
        assert any(note.startswith("An estimate") for note in report["notes"])
        assert [len((await told(replica, f"/api/v1/observe?limit={n}"))["pods"]) for n in (0, 1, 99999)] == [
            0,
            1,
            2,
        ]
        for query, want in (
            ("limit=x", "expected a whole number"),
            ("limit=123456789", "expected a whole number"),
            ("node=a", "unknown parameter 'node'"),
        ):
            assert want in (await told(replica, f"/api/v1/observe?{query}"))["error"]
        async with replica.session.get("/metrics") as page:
            assert 'wattbalance_observed_pods{state="elsewhere"} 1.0' in await page.text()
        world.api.delete("pods", "p1", "default", grace_s=0)
        await eventually(lambda: len(replica.daemon.observing.shadow.pods) == 1)  # type: ignore[union-attr]
        report = await told(replica)
        assert (report["pods_so_far"], report["ours"]["used_nodes"]) == (2, 2)


async def test_of_an_observed_pool_it_tells_and_of_one_that_is_acted_on_it_does_not(world: World) -> None:
    world.add_node("theirs-too", site="aws-a")
    async with following(world) as replica:
        await replica.knows("theirs-too")
        await replica.leads()
        assert (await told(replica))["observing"] == "pool aws-a"
        async with replica.session.get("/api/v1/nodes") as answer:
            assert answer.headers["Wattbalance-Observing"] == "pool aws-a"
        await place(world, replica, "ours", "mine")
        await place(world, replica, "p1", "theirs", "theirs", "theirs-too")
        await place(world, replica, "p2", "theirs-too", "theirs", "theirs-too")
        report = await until_follows(replica, 2)
        assert {pod["name"] for pod in report["pods"]} == {"p1", "p2"}
        # With us both would be on one node.
        assert len({pod["ours"] for pod in report["pods"]}) == 1
        assert {each.result for each in replica.daemon.decider.log if each.pod != "ours"} == {"observed"}
        # Of those that are bound there nothing is written, and nobody came past us.
        await eventually(lambda: "p2" not in {each.name for each in replica.daemon.store.waiting.values()})
        # Whoever binds there may.
        world.add_pod("foreign", node="theirs", schedulerName="default-scheduler")
        await eventually(
            lambda: "foreign" in {each.name for each in replica.daemon.store.pods.values() if each.node}
        )
        assert sum(replica.daemon.bindings.past.values()) == 0
        await eventually(lambda: replica.daemon.write_back.results["written"] == 1)
        annotated = [
            each["metadata"]["name"]
            for each in world.api.list("pods")
            if "wattbalance.io/decision" in each["metadata"].get("annotations", {})
        ]
        assert annotated == ["ours"]
        assert not world.api.list("events")


async def test_it_begins_anew_with_another_mode_and_ends_when_we_act(world: World) -> None:
    async with following(world) as replica:
        daemon = replica.daemon
        await place(world, replica, "p", "theirs", "theirs")
        await until_follows(replica, 1)
        first = daemon.observing.shadow
        path, _ = world.configure(pools=ALIKE)
        settings = config.load(path.read_text())
        exchange(daemon, settings)
        await eventually(lambda: daemon.observing.shadow is None)
        assert daemon.handler.beside is None
        assert daemon.decider.on_observed is None
        assert daemon.observing._follows is None, "no event costs anything any more"
        report = await told(replica)
        # What it showed is told still, with when it ended, until the next begins.
        assert (report["status"], report["observing"], report["observed"]) == ("ended", "", "pool aws-a")
        assert [(pod["name"], pod["real"]) for pod in report["pods"]] == [("p", "theirs")]
        assert report["since_unix_s"] <= report["ended_unix_s"] <= report["unix_s"]
        assert report["real"]["used_nodes"] == 1
        assert "Nothing is observed" in report["notes"][0]
        exchange(daemon, config.load(world.configure(pools=POOLS)[0].read_text()))
        report = await until_follows(replica)
        assert daemon.observing.shadow is not first
        assert (report["status"], report["pods_so_far"]) == ("no_data", 0)
        assert daemon.observing.last is None


async def test_it_begins_once_the_first_lists_are_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_node("theirs", site="aws-a")
    async with world.replica(pools=ALIKE) as replica:
        await replica.knows("theirs")
        observing = replica.daemon.observing
        ready: list[bool] = []
        monkeypatch.setattr(observing, "_is_ready", lambda: bool(ready))
        exchange(replica.daemon, config.load(world.configure(pools=POOLS)[0].read_text()))
        await observing.look()
        assert observing.shadow is None
        assert (await told(replica))["status"] == "starting"
        ready.append(True)
        await until_follows(replica)


async def test_a_reload_that_decides_nothing_else_goes_on_with_it(world: World) -> None:
    async with following(world) as replica:
        daemon = replica.daemon
        await place(world, replica, "p", "theirs", "theirs")
        await until_follows(replica, 1)
        first = daemon.observing.shadow
        others: dict[str, Any] = {"log": {"level": "warning"}, "scheduler_names": ["wattbalance", "b"]}
        exchange(daemon, config.load(world.configure(pools=POOLS, **others)[0].read_text()))
        await daemon.observing.look()
        assert daemon.observing.shadow is first
        assert (await told(replica))["pods_so_far"] == 1
        slower = [POOLS[0] | {"spill": {"after": "5m"}}, POOLS[1]]
        for change in (
            {"filters": {"model": False}},
            {"profiles": {"batch": {"expected_load": 0.3}}},
            {"pools": slower},
        ):
            settings = {"pools": POOLS, **others, **change}
            exchange(daemon, config.load(world.configure(**settings)[0].read_text()))
            await daemon.observing.look()
            assert daemon.observing.shadow is not first
            await until_follows(replica)
            first = daemon.observing.shadow


async def test_with_a_pause_of_all_it_begins_anew_and_so_at_its_end(world: World) -> None:
    async with following(world) as replica:
        observing, pause = replica.daemon.observing, replica.daemon.pause
        for paused, want in (
            (
                Paused(uid="u", by="kim", claimed=False, since="", reason="drill"),
                "everything, paused by kim: drill",
            ),
            (None, "pool aws-a"),
        ):
            before, pause.now = observing.shadow, paused
            await observing.look()
            await observing.look()
            assert observing.shadow not in {None, before}
            assert ((await told(replica))["observing"], observing.began_for) == (want, want)


async def test_a_pause_whose_reason_is_edited_goes_on_and_shows_the_newest_one(world: World) -> None:
    def paused(uid: str, reason: str) -> Paused:
        return Paused(uid=uid, by="kim", claimed=False, since="", reason=reason)

    async with following(world) as replica:
        observing, pause = replica.daemon.observing, replica.daemon.pause
        pause.now = paused("u", "drill")
        await observing.look()
        await until_follows(replica)
        await place(world, replica, "p", "theirs")
        first = await until_follows(replica, 1)
        shadow = observing.shadow
        pause.now = paused("u", "no drill")
        await observing.look()
        assert observing.shadow is shadow
        report = await told(replica)
        assert report["observing"] == "everything, paused by kim: no drill"
        assert (report["pods_so_far"], report["since_unix_s"]) == (1, first["since_unix_s"])
        # Another one, be it of the same words.
        pause.now = paused("v", "no drill")
        await observing.look()
        assert observing.shadow is not shadow
        # What it is kept as when it ends has the words that it had last.
        pause.now = paused("v", "the last words")
        await observing.look()
        pause.now = None
        exchange(replica.daemon, config.load(world.configure(pools=ALIKE)[0].read_text()))
        await observing.look()
        assert observing.last is not None
        assert observing.last.observed == "everything, paused by kim: the last words"


async def test_it_hears_of_every_node_that_comes_and_of_what_devices_a_driver_tells(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(world) as replica:
        shadow, store = replica.daemon.observing.shadow, replica.daemon.store
        assert shadow is not None
        world.add_node("third", site="aws-a")
        await eventually(lambda: "third" in shadow.store.nodes)
        told_of: list[str] = []
        monkeypatch.setattr(shadow, "see_node", lambda name, _: told_of.append(name))
        assert store.on_devices is not None
        store.on_devices("third")
        assert told_of == ["third"]


@pytest.mark.parametrize(
    "where", ["see_node", "see_devices", "see_pod", "keep", "measure", "try_waiting", "begin"]
)
async def test_wherever_it_fails_it_is_given_up_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(observing, "MEASURE_S", 0.0)
    async with following(world) as replica:
        daemon = replica.daemon

        def fails(*_: object) -> None:
            raise RuntimeError("planted")

        monkeypatch.setattr(Shadow, {"see_devices": "see_node", "begin": "see_pod"}.get(where, where), fails)
        if where == "see_node":
            world.add_node("third")
        elif where == "see_devices":
            assert daemon.store.on_devices is not None
            daemon.store.on_devices("mine")
        elif where == "see_pod":
            world.add_pod("p")
        elif where == "keep":
            daemon.observing.see(Listed(Kind.POD, frozenset()))
        elif where == "begin":
            # It fails while it takes over what there is.
            world.add_pod("p", node="theirs")
            await eventually(lambda: bool(daemon.store.pods))
            daemon.observing.failed = False
            exchange(
                daemon, config.load(world.configure(pools=POOLS, filters={"model": False})[0].read_text())
            )
            await daemon.observing.look()
        await eventually(lambda: daemon.observing.failed)
        handed_out = (daemon.handler.beside, daemon.decider.on_observed, daemon.store.on_devices)
        assert (daemon.observing.shadow, *handed_out) == (None,) * 4
        assert (await told(replica))["status"] == "failed"
        # What happens from here on is nothing to it.
        world.add_node("fourth")
        world.add_pod("q")
        await replica.knows("fourth")
        await daemon.observing.look()
        assert daemon.observing.failed


async def test_what_is_given_up_while_it_begins_does_not_begin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("mine")
    async with world.replica() as replica:
        await replica.knows("mine")
        observing = replica.daemon.observing
        # As where an event fails between two turns.
        monkeypatch.setattr(Shadow, "see_node", lambda *_: observing._give_up())
        observing.what = lambda: "everything"
        await observing.look()
        assert (observing.shadow, observing.failed) == (None, True)
        assert replica.daemon.decider.on_observed is None


async def test_a_bad_annotation_is_told_of_a_pod_that_we_place_and_not_of_one_that_we_leave(
    world: World,
) -> None:
    async with following(world) as replica:
        await replica.leads()
        for name, node in (("left", "theirs"), ("placed", "mine")):
            world.add_pod(name)
            pod = world.api.get("pods", name, "default")
            pod["metadata"]["annotations"] = {"wattbalance.io/gpu-memory": "much"}
            await replica.filter(pod, node)
        await eventually(lambda: bool(world.events("BadAnnotation")))
        assert [event["regarding"]["name"] for event in world.events("BadAnnotation")] == ["placed"]


async def test_who_acts_everywhere_has_no_second_world(world: World) -> None:
    world.add_node("mine")
    async with world.replica() as replica:
        await replica.knows("mine")
        await replica.daemon.observing.look()
        assert replica.daemon.observing.shadow is None
        assert (await told(replica))["status"] == "acting"
        assert replica.daemon.handler.beside is None
        assert replica.daemon.decider.on_observed is None
        assert Kind.POD in replica.daemon.store.synced


async def test_a_fault_in_it_neither_ends_the_daemon_nor_holds_a_question(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("mine", site="dc-1")
    async with world.replica(mode="observe") as replica:
        await replica.knows("mine")
        await until_follows(replica)

        def fails(*_: object) -> None:
            raise RuntimeError("planted")

        monkeypatch.setattr(Shadow, "ask", fails)
        world.add_pod("p")
        answer = await replica.filter(world.api.get("pods", "p", "default"), "mine")
        assert answer["NodeNames"] == ["mine"]
        report = await told(replica)
        assert report["status"] == "failed"
        assert "the log says why" in report["notes"][0]
        assert replica.daemon.handler.beside is None
        assert replica.daemon.observing.last is None, "what failed shows nothing"
        # Another question, and another look: it stays given up.
        await replica.daemon.observing.look()
        assert (await told(replica))["status"] == "failed"
        # Until something else is observed.
        exchange(replica.daemon, config.load(world.configure(pools=POOLS)[0].read_text()))
        assert (await until_follows(replica))["status"] == "no_data"


async def test_once_it_has_begun_it_measures_and_hears_of_new_lists_until_it_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_pod("p", node="theirs")
    async with following(world) as replica:
        daemon = replica.daemon
        shadow = daemon.observing.shadow
        assert shadow is not None
        assert daemon.store.on_devices is not None
        assert daemon.handler.beside is shadow.store, "it is told what agents tell"
        assert Kind.POD in shadow.store.synced, "a pod that is bound from here on is news"
        await eventually(lambda: len(shadow.store.pods) == 1)
        steps: list[str] = []

        def step(what: str) -> Iterator[None]:
            steps.append(what)
            yield

        monkeypatch.setattr(shadow, "measure", lambda _: step("measure"))
        monkeypatch.setattr(shadow, "try_waiting", lambda _: step("try"))
        monkeypatch.setattr(observing, "MEASURE_S", 0.0)
        await daemon.observing.look()
        monkeypatch.setattr(observing, "MEASURE_S", math.inf)
        await daemon.observing.look()
        assert steps[:3] == ["try", "measure", "try"]
        # The store alone hears that the pod has gone, as if a watch had lost it.
        [facts] = daemon.store.pods.values()
        daemon.store.apply(Gone(Kind.POD, Pod(metadata=facts.meta)), 0.0)
        daemon.observing.see(Listed(Kind.POD, frozenset()))
        assert not shadow.store.pods
        exchange(daemon, config.load(world.configure(pools=ALIKE)[0].read_text()))
        await eventually(lambda: daemon.observing.shadow is None)
        assert daemon.store.on_devices is None


async def test_what_it_has_shown_when_it_ends_is_in_the_log_also_where_the_process_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def logged() -> list[ObserveReport]:
        return [
            getattr(each, "kv")["report"]  # noqa: B009 - the type checker knows of no such field
            for each in caplog.records
            if each.getMessage() == "what observing has shown"
        ]

    async with following(world) as replica:
        await place(world, replica, "p", "theirs", "theirs")
        await until_follows(replica, 1)
        exchange(replica.daemon, config.load(world.configure(pools=ALIKE)[0].read_text()))
        await eventually(lambda: len(logged()) == 1)
        exchange(replica.daemon, config.load(world.configure(pools=POOLS)[0].read_text()))
        await until_follows(replica)
        assert len(logged()) == 1
    first, second = logged()
    assert (first.status, first.observed, first.pods_so_far, second.pods_so_far) == (
        "ended",
        "pool aws-a",
        1,
        0,
    )
    assert first.pods == []
    # As a line of the log it can be read as a report again.
    assert msgspec.json.decode(msgspec.json.encode(first), type=ObserveReport) == first


def test_what_is_observed_is_said_with_the_reason() -> None:
    text = "cluster: {name: a}\ntelemetry: {broker: mqtt://b}\n"
    pause = Pause()
    pools = (
        "pools: [{name: a, selector: {s: a}, mode: observe}, {name: b, selector: {s: b}, mode: observe}]\n"
    )
    for more, want in (
        ("", ""),
        ("mode: observe\n", "everything, by `mode: observe`"),
        (pools, "pools a, b"),
    ):
        assert observed(config.load(text + more), pause) == want
    pause.now = Paused(uid="u", by="kim", claimed=False, since="2026-01-01T00:00:00Z", reason="a drill")
    want = "everything, paused by kim since 2026-01-01T00:00:00Z: a drill"
    assert observed(config.load(text + pools), pause) == want
