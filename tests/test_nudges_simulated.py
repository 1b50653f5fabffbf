"""A refused pod is woken and placed: on the simulated API server, with the queues of two versions of kube-scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from scheduler.core.clock import SystemClock
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.last_woken import RETRY_ANNOTATION
from scheduler.simulate.kubescheduler import KubeScheduler, SchedulerConfig
from scheduler.simulate.kubescheduler_extender import ExtenderConfig
from scheduler.simulate.requeue import Rules
from tests.builders import make_inventory
from tests.contracts.cluster_contract import beside, eventually
from tests.simulate.scheduler_cases import node, pod
from tests.test_app import NAMESPACE, Replica, World, world

__all__ = ["world"]
MODEL = {"wattbalance.io/gpu-model": "*H100*"}
# Of kube-scheduler's own retry: it is minutes.
LONGER_S = 1.5


@contextlib.asynccontextmanager
async def scheduling(world: World, replica: Replica, rules: Rules) -> AsyncIterator[KubeScheduler]:
    """kube-scheduler asks this replica."""
    url = f"http://{replica.daemon.settings.listeners[0].address}/scheduler/"
    config = SchedulerConfig(
        scheduler_name="wattbalance",
        extender=ExtenderConfig(url_prefix=url, http_timeout_s=60.0),
        rules=rules,
        initial_backoff_s=0.1,
        max_backoff_s=0.2,
    )
    scheduler = KubeScheduler(world.api, SystemClock(), config)
    async with beside(scheduler.run()):
        yield scheduler


def add_pod(world: World, name: str) -> None:
    """A pod of one GPU of a model that nobody has told of yet."""
    made = pod(name, gpu=1, schedulerName="wattbalance")
    made["metadata"]["annotations"] = MODEL
    world.api.create("pods", made)


def node_of(world: World, name: str) -> str:
    return str(world.api.get("pods", name, "default")["spec"].get("nodeName") or "")


def retries(world: World, name: str) -> str:
    annotations = world.api.get("pods", name, "default")["metadata"].get("annotations") or {}
    return str(annotations.get(RETRY_ANNOTATION, ""))


async def refused(scheduler: KubeScheduler, replica: Replica, *, pods: int) -> None:
    """Wait until all were refused and kube-scheduler leaves them alone."""
    await eventually(lambda: replica.daemon.nudges.waiting == pods)
    await eventually(lambda: len(scheduler.queue.unschedulable) == pods)
    # On 1.32 and later the refusal's own words wake a pod once more.
    attempts = -1
    while attempts != scheduler.counts.attempts:
        attempts = scheduler.counts.attempts
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("rules", list(Rules))
async def test_a_pod_is_bound_soon_after_a_reason_that_kubernetes_cannot_see_has_ended(
    world: World, rules: Rules
) -> None:
    world.api.create("nodes", node("n1", gpu=8))
    async with world.replica() as replica, scheduling(world, replica, rules) as scheduler:
        await replica.knows("n1")
        add_pod(world, "p1")
        await refused(scheduler, replica, pods=1)
        assert [node_of(world, "p1"), retries(world, "p1")] == ["", ""]
        replica.daemon.store.see_inventory("n1", make_inventory("n1"))
        await eventually(lambda: node_of(world, "p1") == "n1")
        assert retries(world, "p1")
        assert replica.daemon.nudges.results["written"] == 1
        assert replica.daemon.store.intents.errors == {}
        page = await (await replica.session.get("/metrics")).text()
        assert 'wattbalance_nudges_total{result="written"} 1.0' in page
        assert "wattbalance_refused_pods 0.0" in page


@pytest.mark.parametrize("rules", list(Rules))
async def test_without_it_the_pod_waits_on(world: World, rules: Rules) -> None:
    world.api.create("nodes", node("n1", gpu=8))
    async with (
        world.replica(nudge={"enabled": False}) as replica,
        scheduling(world, replica, rules) as scheduler,
    ):
        await replica.knows("n1")
        add_pod(world, "p1")
        await refused(scheduler, replica, pods=1)
        attempts = scheduler.counts.attempts
        replica.daemon.store.see_inventory("n1", make_inventory("n1"))
        await asyncio.sleep(LONGER_S)
        assert [node_of(world, "p1"), scheduler.counts.attempts] == ["", attempts]


@pytest.mark.parametrize("rules", list(Rules))
async def test_of_many_that_wait_no_more_are_woken_than_fit(world: World, rules: Rules) -> None:
    for name in ("n1", "n2"):
        world.api.create("nodes", node(name, gpu=8))
    async with (
        world.replica(nudge={"most_per_second": 200}) as replica,
        scheduling(world, replica, rules) as scheduler,
    ):
        await replica.knows("n1", "n2")
        names = [f"p{index}" for index in range(20)]
        for name in names:
            add_pod(world, name)
        await refused(scheduler, replica, pods=len(names))
        replica.daemon.store.see_inventory("n1", make_inventory("n1"))
        await eventually(lambda: sum(bool(node_of(world, name)) for name in names) == 8)
        await asyncio.sleep(LONGER_S)
        assert [node_of(world, name) for name in names].count("n1") == 8
        woken = sum(bool(retries(world, name)) for name in names)
        # On 1.32 and later a binding, too, lets kube-scheduler try again whom an extender had refused.
        assert woken == 8 if rules is Rules.V1_20 else 1 <= woken <= 8


@pytest.mark.parametrize("rules", list(Rules))
async def test_the_leader_wakes_a_pod_that_a_standby_refused_beside_its_own_kube_scheduler(
    world: World, rules: Rules
) -> None:
    world.api.create("nodes", node("n1", gpu=8))
    async with world.replica() as leader:
        await leader.knows("n1")
        await leader.leads()
        async with world.replica() as standby, scheduling(world, standby, rules) as scheduler:
            await standby.knows("n1")
            add_pod(world, "p1")
            await refused(scheduler, standby, pods=1)
            # It has only the pod's status to go by.
            await eventually(lambda: leader.daemon.nudges.waiting == 1)
            assert [node_of(world, "p1"), retries(world, "p1")] == ["", ""]
            assert not list(leader.daemon.decider.log)
            for replica in (leader, standby):
                replica.daemon.store.see_inventory("n1", make_inventory("n1"))
            await eventually(lambda: node_of(world, "p1") == "n1")
            assert not standby.daemon.leadership.leads()
            assert retries(world, "p1")
            written = [each.daemon.nudges.results["written"] for each in (leader, standby)]
            assert written == [1, 0]
            # Who leads does not know the decision, and who knows it may not write.
            await asyncio.sleep(LONGER_S)
            assert (
                DECISION_ANNOTATION not in world.api.get("pods", "p1", "default")["metadata"]["annotations"]
            )
        await eventually(lambda: leader.daemon.nudges.waiting == 0)


@pytest.mark.parametrize("rules", list(Rules))
async def test_a_standby_that_takes_over_wakes_what_the_leader_had_refused(
    world: World, rules: Rules
) -> None:
    world.api.create("nodes", node("n1", gpu=8))
    async with world.replica() as leader:
        await leader.leads()
        async with world.replica() as standby, scheduling(world, leader, rules) as scheduler:
            await leader.knows("n1")
            add_pod(world, "p1")
            await refused(scheduler, leader, pods=1)
            leader.daemon.stopping.set()
            await standby.leads()
            await eventually(lambda: standby.daemon.nudges.waiting == 1)
            assert retries(world, "p1") == ""
            standby.daemon.store.see_inventory("n1", make_inventory("n1"))
            await eventually(lambda: bool(retries(world, "p1")))


async def test_pods_of_our_scheduler_that_nobody_answered_for_are_woken(world: World) -> None:
    """Another scheduler's are its own affair, and so is what was never tried or is refused for reasons of its own."""
    world.api.create("nodes", node("n1", gpu=8))
    for name, scheduler, reason in (
        ("theirs", "default-scheduler", "SchedulerError"),
        ("ours", "wattbalance", "SchedulerError"),
        ("its-own", "wattbalance", "Unschedulable"),
        ("untried", "wattbalance", ""),
    ):
        world.api.create("pods", pod(name, gpu=1, schedulerName=scheduler))
        told = {"type": "PodScheduled", "status": "False", "reason": reason, "message": "connection refused"}
        if reason:
            world.api.patch("pods", name, "default", {"status": {"conditions": [told]}}, status=True)
    async with world.replica() as replica:
        await eventually(lambda: bool(retries(world, "ours")))
        await asyncio.sleep(LONGER_S)
        assert [retries(world, name) for name in ("theirs", "its-own", "untried")] == ["", "", ""]
        assert replica.daemon.nudges.results["written"] == 1


async def test_explain_says_of_a_pod_that_fits_whether_anybody_wakes_it(world: World) -> None:
    world.api.create("nodes", node("n1", gpu=8))
    made = pod("p1", gpu=1, schedulerName="wattbalance")
    made["metadata"]["annotations"] = MODEL
    world.api.create("pods", made)

    async def told(replica: Replica) -> tuple[str, str]:
        await replica.knows("n1")
        await eventually(lambda: bool(replica.daemon.store.waiting))
        page = await replica.session.get("/api/v1/explain/default/p1")
        waking = (await page.json())["now"]["waking"]
        return waking["state"], waking["text"]

    async with world.replica(mode="observe") as replica:
        assert (await told(replica))[0] == "observed"
    async with world.replica(nudge={"enabled": False}) as replica:
        assert (await told(replica))[0] == "off"
    async with world.replica() as replica:
        await replica.leads()
        assert (await told(replica))[0] == "not_refused"
        refusal = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        refusal["message"] = "0/1 nodes are available: 1 GPU model unknown."
        world.api.patch("pods", "p1", "default", {"status": {"conditions": [refusal]}}, status=True)
        await eventually(lambda: replica.daemon.nudges.waiting == 1)
        assert (await told(replica))[0] == "soon"
        async with world.replica() as standby:
            await eventually(lambda: bool(standby.daemon.leadership.leader_name))
            state, text = await told(standby)
            assert state == "standby"
            assert f"{replica.daemon.leadership.identity} leads" in text
        world.api.create("configmaps", {"metadata": {"name": "wattbalance-pause", "namespace": NAMESPACE}})
        await eventually(lambda: replica.daemon.pause.now is not None)
        assert (await told(replica))[0] == "paused"
