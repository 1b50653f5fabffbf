"""A refused pod is tried again by the rules of 1.20 and of 1.32, on the stand-in."""

from __future__ import annotations

import pytest

from scheduler.core.clock import ManualClock
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.kubescheduler import KubeScheduler, SchedulerConfig
from scheduler.simulate.requeue import Rules
from tests.simulate.requeue_cases import REQUEUE_CASES, Change, RequeueCase


def write(server: ApiServer, change: Change) -> None:
    namespace = "" if change.kind == "nodes" else "default"
    if change.body is None:
        if namespace:
            server.delete(change.kind, change.name, namespace, grace_s=0)
        else:
            server.delete(change.kind, change.name)
    elif change.create:
        server.create(change.kind, change.body)
    else:
        server.patch(change.kind, change.name, namespace, change.body, status=change.status)


@pytest.mark.parametrize("rules", list(Rules))
@pytest.mark.parametrize("case", REQUEUE_CASES, ids=lambda case: case.name)
async def test_what_changes_moves_a_waiting_pod_by_the_rules_of_the_version(
    case: RequeueCase, rules: Rules
) -> None:
    clock = ManualClock()
    server = ApiServer(clock)
    scheduler = KubeScheduler(server, clock, SchedulerConfig(rules=rules))
    for kind, objects in (("nodes", case.nodes), ("pods", case.bound)):
        for each in objects:
            server.create(kind, each)
    server.create("pods", case.pod)
    await scheduler.settle()
    assert scheduler.counts.attempts == 1
    write(server, case.change)
    # Longer than the backoff, far shorter than the time after which everything is tried again.
    clock.advance(1.1)
    await scheduler.settle()
    want_retried = bool(case.event_1_20) if rules is Rules.V1_20 else case.retried_1_32
    assert scheduler.counts.attempts == (2 if want_retried else 1)
    assert server.get("pods", "p", "default")["spec"].get("nodeName") == case.want


@pytest.mark.parametrize(("rules", "want_at_once"), [(Rules.V1_20, True), (Rules.V1_32, False)])
async def test_on_1_20_a_changed_pod_does_not_wait_for_its_backoff(rules: Rules, want_at_once: bool) -> None:
    (case,) = [case for case in REQUEUE_CASES if case.name == "the pod gets the toleration that it lacks"]
    clock = ManualClock()
    server = ApiServer(clock)
    scheduler = KubeScheduler(server, clock, SchedulerConfig(rules=rules))
    server.create("nodes", case.nodes[0])
    server.create("pods", case.pod)
    await scheduler.settle()
    write(server, case.change)
    await scheduler.settle()
    assert (scheduler.counts.placed == 1) == want_at_once
