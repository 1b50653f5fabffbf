"""The same cases on a real kube-scheduler: what the stand-in is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.controlplane import WHY_NOT, ControlPlane, assets
from tests.simulate.scheduler_cases import CASES, Case

PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"
# Far beyond what a scheduling attempt takes on a busy machine; only a pod that is never tried runs into it.
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One control plane for all cases."""
    with ControlPlane() as started:
        started.start_scheduler()
        yield started


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


def clear(plane: ControlPlane) -> None:
    for path in (PODS, NODES):
        for item in ask(plane, "GET", path)["items"]:
            ask(plane, "DELETE", f"{path}/{item['metadata']['name']}?gracePeriodSeconds=0")


@pytest.mark.e2e
@pytest.mark.skipif(assets() is None, reason=WHY_NOT)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_real_kube_scheduler_does_the_same(plane: ControlPlane, case: Case) -> None:
    try:
        for node in case.nodes:
            ask(plane, "POST", NODES, node)
        for pod in case.bound:
            ask(plane, "POST", PODS, pod)
        # Its caches are told by watches: a pod created too early would be refused for want of news.
        time.sleep(_NEWS_S)
        for pod in case.pods:
            ask(plane, "POST", PODS, pod)
            name = pod["metadata"]["name"]
            want_nodes = case.want[name] or (None,)
            assert outcome(plane, name) in want_nodes
    finally:
        clear(plane)


_NEWS_S = 0.3
