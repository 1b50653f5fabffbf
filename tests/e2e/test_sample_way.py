"""One sample from the driver's milliwatts to every page that shows it; one pod from question to binding."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from tests.e2e.conftest import StartAgent
from tests.e2e.system import ANSWER_S, System, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_S) as answer:
        return str(answer.read().decode())


def series(text: str, name: str, *labels: str) -> list[float]:
    """The figures of a family's lines that carry these labels."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return [float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in labels)]


def test_milliwatts_of_the_driver_are_the_watts_of_every_page(
    system: System, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    stub = make_stub("way-a")
    for gpu in range(8):
        # All ways by which the driver may be asked for power agree, so the one taken does not matter.
        for field in ("power_mw", "power_average_mw", "power_instant_mw"):
            stub.set(gpu, field, 101_250 + 1000 * gpu)
    # 8 x 101.25 + (0 + … + 7)
    want_power_w = 838.0
    system.add_node("way-a")
    _, port = start_agent("way-a", stub)
    replica = system.serve()

    name = "wattbalance_gpu_power_watts"
    wait_for("the agent shows its GPUs", lambda: len(series(page(port), name)) == 8)
    assert series(page(port), name, 'node="way-a"', 'gpu="3"') == [104.25]
    assert sum(series(page(port), name)) == pytest.approx(want_power_w)

    def node() -> dict[str, object] | None:
        return next(
            (dict(n) for n in replica.get("/api/v1/nodes")["items"] if n["power_w"] is not None), None
        )

    found = wait_for("the daemon knows its power", node)
    assert found["name"] == "way-a"
    assert found["power_w"] == pytest.approx(want_power_w)
    assert sorted(gpu["power_w"] for gpu in found["devices"]) == [101.25 + gpu for gpu in range(8)]
    [shown_w] = series(replica.text("/metrics"), "wattbalance_node_power_watts", 'node="way-a"')
    assert shown_w == pytest.approx(want_power_w)

    # And it is this sample's way, not a figure that stands still.
    for field in ("power_mw", "power_average_mw", "power_instant_mw"):
        stub.set(7, field, 208_250)
    wait_for(
        "the change arrives",
        lambda: series(replica.text("/metrics"), "wattbalance_node_power_watts") == [want_power_w + 100],
    )


def test_a_pod_lands_where_its_decision_says_and_the_terms_are_the_score(system: System) -> None:
    for name in ("seen-a", "seen-b", "seen-c"):
        system.add_node(name)
    replica = system.serve()
    daemon = system.scheduler(replica.port)
    try:
        for name, gpus in (("seen-1", 2), ("seen-2", 3)):
            system.add_pod(name, gpus, annotations={"wattbalance.io/workload": "training"})
            landed = system.bound(name)
            [decision] = replica.get(f"/api/v1/decisions?pod={name}")["items"]
            assert decision["verb"] == "filter"
            assert decision["result"] == "placed"
            assert decision["uid"] == system.pod(name)["metadata"]["uid"]
            assert decision["gpus"] == gpus
            assert decision["chosen"] == landed
            assert decision["best"][0]["node"] == landed
            assert len(decision["best"]) == 3
            weights = [each["weight"] for each in decision["policies"]]
            assert len(weights) == 2
            for ranked in decision["best"]:
                # Exactly: these products are what was added, in that order.
                terms = [weight * score for weight, score in zip(weights, ranked["scores"], strict=True)]
                assert sum(terms) == ranked["score"]
        pods = {pod["name"]: pod["node"] for pod in replica.get("/api/v1/pods")["items"]}
        assert pods == {name: system.node_of(name) for name in ("seen-1", "seen-2")}
    finally:
        daemon.stop()
