"""Bindings of ours: sent once, twice is success, and looked up where nobody knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from scheduler.cluster.annotation_size import MOST_BYTES, annotations_bytes
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Changed, Kind
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiUnavailable, ClusterError
from scheduler.extender import binder as binder_module
from tests.builders import make_node, make_pod, see_pod
from tests.extender.world import World


def promised() -> World:
    """A pod that waits for its Binding, with a promise of a node."""
    world = World()
    world.cluster.add(make_pod())
    world.promise()
    return world


def results(world: World) -> dict[str, int]:
    assert world.verbs.binder is not None
    return dict(world.verbs.binder.results)


async def test_bind_posts_the_binding_with_the_decision_on_it() -> None:
    world = promised()
    world.verbs.fence.term = lambda: 7
    assert await world.bind() == ""
    ((name, node, annotations),) = world.cluster.bindings
    assert (name, node) == ("p1", "a")
    decision = json.loads(annotations["wattbalance.io/decision"])
    record = world.decider.log.of_pod("uid-p1")
    assert record is not None
    assert decision == {
        "node": "a",
        "profile": record.profile,
        "score": record.best[0].score,
        "cycle": record.cycle,
        "term": 7,
    }
    assert world.promised, "until the watch tells of it: the GPUs are not free"
    assert results(world) == {"bound": 1}


def filled(left_bytes: int, **annotations: str) -> Pod:
    """A pod whose annotations leave so much of what Kubernetes allows."""
    held = {**annotations, "note": "é" * 1000}
    return make_pod(
        annotations={**held, "full": "x" * (MOST_BYTES - annotations_bytes(held) - len("full") - left_bytes)}
    )


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("missing_bytes", [0, 1])
async def test_a_binding_leaves_no_decision_where_a_pod_has_no_room_for_it(
    missing_bytes: int, *, watched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The API server would take it, and afterwards no write to this pod, not even of its status."""
    caplog.set_level("INFO")
    world = promised()
    [decision] = (await written_by(promised())).items()
    pod = filled(sum(map(len, decision)) - missing_bytes)
    world.cluster.add(pod)
    if watched:
        see_pod(world.store, pod)
    assert await world.bind() == ""
    assert list(world.cluster.bindings[0][2]) == ([] if missing_bytes else [decision[0]])
    told = [each for each in caplog.records if each.getMessage() == "no decision in the Binding"]
    assert len(told) == missing_bytes
    assert results(world) == {"bound": 1}
    assert world.cluster.reads == (0 if watched else 1)


async def written_by(world: World) -> dict[str, str]:
    assert await world.bind() == ""
    return world.cluster.bindings[0][2]


async def test_a_decision_that_a_manifest_brought_along_makes_room_for_ours() -> None:
    world = promised()
    see_pod(world.store, filled(0, **{"wattbalance.io/decision": "x" * 1000}))
    assert list(await written_by(world)) == ["wattbalance.io/decision"]


@pytest.mark.parametrize("frozen", [True, False])
async def test_what_is_on_a_pod_that_nobody_can_read_is_taken_for_too_much(
    *, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binder_module, "COUNT_LIMIT_S", 0.05)
    world = promised()
    if frozen:

        async def silent(namespace: str, name: str) -> Pod:
            await asyncio.Event().wait()
            return make_pod()

        monkeypatch.setattr(world.cluster, "get_pod", silent)
    else:
        world.cluster.reads_fail = [ApiUnavailable("away")]
    assert await world.bind() == ""
    assert world.cluster.bindings == [("p1", "a", {})]


@pytest.mark.parametrize("watched", [True, False])
async def test_binding_twice_is_success(*, watched: bool) -> None:
    world = World()
    world.cluster.add(make_pod())
    assert await world.bind() == ""
    if watched:
        see_pod(world.store, make_pod(node="a"))
    assert await world.bind() == ""
    assert len(world.cluster.bindings) == 1
    assert results(world) == {"bound": 1, "already": 1}


@pytest.mark.parametrize("watched", [True, False])
async def test_a_pod_that_is_bound_elsewhere_is_a_conflict(*, watched: bool) -> None:
    world = World()
    world.promise()
    world.cluster.add(make_pod(node="b"))
    if watched:
        see_pod(world.store, make_pod(node="b"))
    assert "bound to b" in await world.bind()
    assert not world.promised
    assert results(world) == {"conflict": 1}


async def test_a_pod_of_the_same_name_and_another_uid_is_not_bound() -> None:
    world = World()
    world.promise()
    world.cluster.add(make_pod(uid="uid-new"))
    assert "uid-new" in await world.bind()
    assert not world.cluster.bindings
    assert not world.promised
    assert results(world) == {"conflict": 1}


async def test_a_pod_that_is_gone_lets_go_of_its_promise() -> None:
    world = World()
    world.promise()
    assert "gone" in await world.bind()
    assert not world.promised
    assert results(world) == {"gone": 1}


@pytest.mark.parametrize("answer", [ApiConflict("is being deleted", status=409), ApiUnavailable("timed out")])
async def test_a_pod_that_is_being_deleted_is_said_to_be_and_lets_go_of_its_promise(
    answer: ClusterError,
) -> None:
    world = World()
    world.promise()
    world.cluster.add(make_pod(deleted="2026-01-01T00:00:00Z"))
    world.cluster.bind_fails = [answer]
    assert await world.bind() == "pod team-a/p1 is being deleted"
    assert not world.promised
    assert world.verbs.binder is not None
    assert not world.verbs.binder.unknown
    assert results(world) == {"gone": 1}


async def test_a_node_that_was_cordoned_or_went_meanwhile_is_refused_before_the_api_is_asked() -> None:
    world = World()
    world.cluster.add(make_pod())
    assert "gone" in await world.bind("who")
    world.promise()
    world.clock.advance(1.0)
    world.store.apply(Changed(Kind.NODE, make_node("a", cordoned=True)), world.clock.mono_s())
    assert "cordoned" in await world.bind("a")
    assert not world.cluster.bindings
    assert results(world) == {"unknown_node": 1, "cordoned": 1}


async def test_a_node_that_was_cordoned_after_the_decision_is_refused_however_long_ago_that_was() -> None:
    world = promised()
    world.clock.advance(20.0)
    world.store.apply(Changed(Kind.NODE, make_node("a", cordoned=True)), world.clock.mono_s())
    # Longer than a promise lasts.
    world.clock.advance(2 * world.store.settings.reservation_s)
    assert "cordoned" in await world.bind("a")


@pytest.mark.parametrize("here", [True, False])
async def test_a_pod_that_was_let_onto_a_cordoned_node_is_bound(*, here: bool) -> None:
    world = World()
    world.cluster.add(make_pod())
    world.store.apply(Changed(Kind.NODE, make_node("a", cordoned=True)), world.clock.mono_s())
    world.clock.advance(60.0)
    # Changed again, and cordoned as before.
    world.store.apply(Changed(Kind.NODE, make_node("a", cordoned=True)), world.clock.mono_s())
    if here:
        # kube-scheduler offers it to a pod that tolerates this.
        world.promise()
    assert await world.bind("a") == ""


async def test_a_replica_that_does_not_lead_binds_nothing() -> None:
    world = World()
    world.cluster.add(make_pod())
    world.fence.leads = lambda: False
    assert "no longer leads" in await world.bind()
    assert not world.cluster.bindings
    assert results(world) == {"not_leading": 1}


async def test_a_bind_that_timed_out_and_was_carried_out_is_success() -> None:
    world = promised()
    world.cluster.bind_fails = [ApiUnavailable("timed out")]
    world.cluster.bound_all_the_same = True
    assert await world.bind() == ""
    assert world.promised
    assert results(world) == {"already": 1}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits of a bind that a test can wait for."""
    monkeypatch.setattr(binder_module, "SEND_LIMIT_S", 0.05)
    monkeypatch.setattr(binder_module, "ANSWER_LIMIT_S", 0.1)
    monkeypatch.setattr(binder_module, "READ_PAUSE_S", 0.001)
    monkeypatch.setattr(binder_module, "LOOK_UP_EVERY_S", 0.001)


async def until(check: Callable[[], bool]) -> None:
    while not check():
        await asyncio.sleep(0.001)


async def test_a_bind_that_timed_out_and_was_not_carried_out_keeps_its_promise_for_a_late_arrival() -> None:
    world = promised()
    world.cluster.bind_fails = [ApiUnavailable("timed out")]
    assert "not carried out" in await world.bind()
    # What was sent may be carried out after the pod was read; else the promise runs out.
    kept = [world.promised]
    world.store.tick(world.clock.mono_s() + 2 * world.store.reservations.reservation_s)
    kept.append(world.promised)
    assert kept == [True, False]
    assert results(world) == {"failed": 1}


async def test_a_bind_that_was_refused_lets_go_of_its_promise() -> None:
    world = promised()
    world.cluster.bind_fails = [ApiConflict("somebody wrote to the pod")]
    assert "not carried out" in await world.bind()
    assert not world.promised


@pytest.mark.usefixtures("quick")
async def test_while_the_outcome_of_a_bind_is_unknown_the_promise_stays() -> None:
    world = promised()
    world.cluster.bind_fails = [ApiUnavailable("timed out")]
    world.cluster.bound_all_the_same = True
    world.cluster.reads_fail = [ApiUnavailable("still away")] * 100_000
    assert "unknown" in await world.bind()
    assert results(world) == {"unknown": 1}
    binder = world.verbs.binder
    assert binder is not None
    looking = asyncio.ensure_future(binder.run())
    try:
        for _ in range(3):
            # Each time longer than a promise lasts; only the looking keeps it.
            reads = world.cluster.reads
            await until(lambda seen=reads: world.cluster.reads > seen + 1)  # type: ignore[misc]
            world.clock.advance(0.9 * world.store.reservations.reservation_s)
            world.store.tick(world.clock.mono_s())
            assert world.promised
        world.cluster.reads_fail.clear()
        await until(lambda: not binder.unknown)
        # It was bound: the promise waits for the watch to tell of it.
        assert world.promised
    finally:
        looking.cancel()
        await asyncio.wait([looking])


@pytest.mark.usefixtures("quick")
async def test_while_nobody_answers_only_one_pod_is_asked_for() -> None:
    world = World()
    asked: list[str] = []
    for name in ("p1", "p2"):
        world.cluster.add(make_pod(name))
        world.cluster.bind_fails = [ApiUnavailable("timed out")]
        world.cluster.reads_fail = [ApiUnavailable("away")] * 100_000
        assert "unknown" in await world.bind(uid=f"uid-{name}", name=name)
    world.cluster.reads_fail = [ApiUnavailable("away")]
    get_pod = world.cluster.get_pod

    async def noted(namespace: str, name: str) -> Pod:
        asked.append(name)
        return await get_pod(namespace, name)

    world.cluster.get_pod = noted  # type: ignore[method-assign]  # to see the order
    binder = world.verbs.binder
    assert binder is not None
    looking = asyncio.ensure_future(binder.run())
    try:
        await until(lambda: not binder.unknown)
    finally:
        looking.cancel()
        await asyncio.wait([looking])
    assert asked == ["p1", "p1", "p2"]


@pytest.mark.usefixtures("quick")
async def test_an_api_server_that_never_answers_does_not_keep_the_scheduler_waiting() -> None:
    world = promised()
    world.cluster.frozen = True
    assert "unknown" in await world.bind()
    assert world.promised


async def test_a_binding_is_not_sent_once_we_do_not_lead() -> None:
    world = promised()
    answers = iter([True, False, False])
    world.fence.leads = lambda: next(answers)
    assert "no longer leads" in await world.bind()
    assert not world.cluster.bindings
    assert results(world) == {"not_leading": 1}


@pytest.mark.usefixtures("quick")
async def test_a_read_that_works_at_last_settles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is settled within any time that a machine may stall for.
    monkeypatch.setattr(binder_module, "ANSWER_LIMIT_S", 60.0)
    world = World()
    world.cluster.add(make_pod())
    world.cluster.bind_fails = [ApiConflict("somebody was faster")]
    world.cluster.bound_all_the_same = True
    world.cluster.reads_fail = [ApiUnavailable("away"), ApiUnavailable("away")]
    assert await world.bind() == ""


async def test_a_forbidden_bind_says_so_and_lets_go() -> None:
    world = promised()
    world.cluster.bind_fails = [ApiForbidden("may not create pods/binding")]
    assert "pods/binding" in await world.bind()
    assert not world.promised
    assert results(world) == {"failed": 1}
