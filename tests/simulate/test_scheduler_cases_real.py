"""The same cases on a real kube-scheduler: what the stand-in is compared with.

Whether a waiting pod was moved is read from kube-scheduler's own metrics, so no test waits for something not to happen.
The requeueing cases hold for 1.20, which is what `KUBEBUILDER_ASSETS` holds here; later versions skip them.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scheduler.simulate.ports import free_port
from tests.controlplane import WHY_NOT, ControlPlane, Daemon, assets
from tests.simulate.requeue_cases import REQUEUE_CASES, Change, RequeueCase
from tests.simulate.scheduler_cases import CASES, Case, Json, node, pod

PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"
# Far beyond what a scheduling attempt takes on a busy machine; only a pod that is never tried runs into it.
PATIENCE_S = 120.0


METRICS = f"127.0.0.1:{free_port()}"


class News:
    """What kube-scheduler has heard of, by its own log: its caches are told by watches, so later than the API server.

    A pod that came before its news would be refused for want of them.
    """

    def __init__(self, scheduler: Daemon) -> None:
        self._scheduler = scheduler
        self._before = 0

    def mark(self) -> None:
        """From now on it counts what is heard."""
        self._before = len(self._scheduler.said)

    def until_heard(self, *nodes: Json, pods: Iterable[Json] = ()) -> None:
        """Wait until nodes and bound pods are in its caches."""
        self._until("dd event for node", (each["metadata"]["name"] for each in nodes))
        self._until("dd event for scheduled pod", (each["metadata"]["name"] for each in pods))

    def until_gone(self, pods: Iterable[str]) -> None:
        """Wait until pods that were bound are in its caches no more; nodes are heard of in their order."""
        self._until("elete event for scheduled pod", pods)

    def _until(self, event: str, names: Iterable[str]) -> None:
        want = set(names)

        def heard() -> bool:
            # 1.20 writes `add event for scheduled pod default/p `, later `"Add event for scheduled pod" pod="x/p"`.
            parts = (line.partition(event) for line in self._scheduler.said[self._before :].splitlines())
            return want <= {word for _, found, rest in parts if found for word in re.split(r'[\s"/=]+', rest)}

        until(heard, f"{event}: all of {want}")


@dataclass(frozen=True)
class Bench:
    """A control plane, and what its kube-scheduler knows of it."""

    plane: ControlPlane
    news: News


@pytest.fixture(scope="module")
def started() -> Iterator[Bench]:
    """One control plane for all cases."""
    with ControlPlane() as plane:
        scheduler = plane.start_scheduler(
            {"healthzBindAddress": METRICS, "metricsBindAddress": METRICS}, verbosity=3
        )
        yield Bench(plane, News(scheduler))


@pytest.fixture
def bench(started: Bench) -> Iterator[Bench]:
    """The same, with no node and no pod in it before and after."""
    started.news.mark()
    try:
        yield started
    finally:
        clear(started)


def ask(plane: ControlPlane, method: str, path: str, body: object = None) -> dict[str, Any]:
    answer = plane.request(method, path, body)
    assert isinstance(answer, dict)
    return answer


def outcome(plane: ControlPlane, name: str) -> str | None:
    """The node of a pod, or None once it has been refused."""
    ends_mono_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_mono_s:
        pod = ask(plane, "GET", f"{PODS}/{name}")
        if node := pod["spec"].get("nodeName"):
            return str(node)
        if any(
            c["type"] == "PodScheduled" and c["status"] == "False"
            for c in pod["status"].get("conditions", ())
        ):
            return None
        time.sleep(0.02)
    pytest.fail(f"pod {name} was never tried")


def clear(bench: Bench) -> None:
    bound = []
    for path in (PODS, NODES):
        for item in ask(bench.plane, "GET", path)["items"]:
            ask(bench.plane, "DELETE", f"{path}/{item['metadata']['name']}?gracePeriodSeconds=0")
            if item["spec"].get("nodeName"):
                bound.append(item["metadata"]["name"])
    bench.news.until_gone(bound)


@pytest.mark.e2e
@pytest.mark.skipif(assets() is None, reason=WHY_NOT)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_real_kube_scheduler_does_the_same(bench: Bench, case: Case) -> None:
    for each in case.nodes:
        ask(bench.plane, "POST", NODES, each)
    for each in case.bound:
        ask(bench.plane, "POST", PODS, each)
    bench.news.until_heard(*case.nodes, pods=case.bound)
    for each in case.pods:
        ask(bench.plane, "POST", PODS, each)
        name = each["metadata"]["name"]
        want_nodes = case.want[name] or (None,)
        assert outcome(bench.plane, name) in want_nodes


# Of the queue's metric: what is no event of the cluster.
_OWN_EVENTS = {"PodAdd", "ScheduleAttemptFailure", "BackoffComplete", "UnschedulableTimeout"}
# A pod that is moved by its own change is not counted there.
PAST_THE_METRIC = "PodUpdate"
SENTINEL = "sentinel"


def moved() -> Counter[str]:
    """How many pods each event has moved, ever."""
    return counted("scheduler_queue_incoming_pods_total", "event")


def refusals() -> int:
    """How many attempts have placed nothing, ever."""
    return counted("scheduler_schedule_attempts_total", "result")["unschedulable"]


def counted(name: str, label: str) -> Counter[str]:
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                counts[sample.labels[label]] += int(sample.value)
    return counts


def until(condition: Callable[[], bool], what: str) -> None:
    ends_mono_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > ends_mono_s:
            pytest.fail(f"never: {what}")
        time.sleep(0.02)


def write(plane: ControlPlane, change: Change) -> None:
    base = {"nodes": NODES, "pods": PODS}[change.kind]
    path = f"{base}/{change.name}"
    if change.body is None:
        ask(plane, "DELETE", f"{path}?gracePeriodSeconds=0")
    elif change.create:
        ask(plane, "POST", base, change.body)
    else:
        ask(plane, "PATCH", path + ("/status" if change.status else ""), change.body)


@pytest.mark.e2e
@pytest.mark.skipif(assets() is None, reason=WHY_NOT)
@pytest.mark.parametrize("case", REQUEUE_CASES, ids=lambda case: case.name)
def test_a_real_kube_scheduler_moves_the_same_waiting_pods(bench: Bench, case: RequeueCase) -> None:
    plane = bench.plane
    minor = "".join(filter(str.isdigit, ask(plane, "GET", "/version")["minor"]))
    if minor != "20":
        pytest.skip(f"these are the rules of 1.20, this is 1.{minor}")
    # Something of the same kind that moves pods whatever refused them: once it has, what came before was heard too.
    sentinel = node(SENTINEL, cpu="0", pods="0")
    elsewhere = node("elsewhere", cpu="1", labels={"for": SENTINEL}, cordoned=True)
    nodes, bound = (*case.nodes, elsewhere), (*case.bound, pod(SENTINEL, nodeName="elsewhere"))
    for each in nodes:
        ask(plane, "POST", NODES, each)
    for each in bound:
        ask(plane, "POST", PODS, each)
    bench.news.until_heard(*nodes, pods=bound)
    ask(plane, "POST", PODS, case.pod)
    assert outcome(plane, "p") is None
    before, before_refusals = moved(), refusals()
    write(plane, case.change)
    if case.want is not None:
        until(lambda: node_of(plane) == case.want, f"p on {case.want}")
    elif case.event_1_20 == "":
        on_nodes = case.change.kind == "nodes"
        end = Change(kind="nodes", name=SENTINEL, body=sentinel, create=True)
        write(plane, end if on_nodes else Change(kind="pods", name=SENTINEL))
        want_last = "NodeAdd" if on_nodes else "AssignedPodDelete"
        until(lambda: moved()[want_last] > before[want_last], want_last)
        assert events(moved() - before) == {want_last: 1}
        return
    if case.event_1_20 == PAST_THE_METRIC:
        until(lambda: case.want is not None or refusals() > before_refusals, "another attempt")
        return
    until(lambda: bool(events(moved() - before)), case.event_1_20)
    assert set(events(moved() - before)) == {case.event_1_20}


def events(counts: Counter[str]) -> dict[str, int]:
    return {event: count for event, count in counts.items() if event not in _OWN_EVENTS}


def node_of(plane: ControlPlane) -> str | None:
    placed: str | None = ask(plane, "GET", f"{PODS}/p")["spec"].get("nodeName")
    return placed
