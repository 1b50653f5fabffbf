"""What nodes send, good and bad, as a cluster sees it: a real broker and a real `serve`, agents real or made up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import aiomqtt
import pytest

from scheduler.telemetry.sample import Sample, decode_sample
from tests.brokers import Broker
from tests.e2e.conftest import StartAgent
from tests.e2e.system import (
    PATIENCE_S,
    Process,
    Replica,
    System,
    metric,
    readiness,
    until_seen,
    view,
    wait_for,
)
from tests.fakes.nvml_stub.stub import NvmlStub
from tests.telemetry.bus_tools import make_inventory, make_sample

pytestmark = pytest.mark.e2e

ROOT = "wattbalance/v1/test/nodes"
INFERENCE = {"wattbalance.io/workload": "inference"}
NOT_SUPPORTED = 3
# Two GPUs, each at these watts.
WATTS = 100.0
NODE_WATTS = 2 * WATTS
# Several times what a machine may stand still for.
STALE_S = 10.0
# An agent's; see telemetry/broker.py.
KEEPALIVE_S = 5.0

BAD = [
    ("garbage", b"\xff\x00 not json"),
    ("garbage", b""),
    ("too_large", b"x" * 10_000_000),
    ("version", make_sample("told", 9, v=2)),
    ("node_mismatch", make_sample("other", 9)),
    ("old_sequence", make_sample("told", 1, power_w=[7.0, 7.0])),
    ("unknown_inventory", make_sample("told", 9, inventory="0" * 16)),
    ("shape", make_sample("told", 9, power_w=[7.0])),
    ("garbage", make_sample("told", 9).replace(b"100.0", b"NaN")),
    ("range", make_sample("told", 9, power_w=[-1.0, 7.0])),
    ("range", make_sample("told", 9, util_frac=[1.5, 0.0])),
]


def publish(broker: Broker, node: str, kind: str, payload: bytes) -> None:
    """Publish one message as a node's agent, and wait until the broker has it."""

    async def send() -> None:
        async with aiomqtt.Client(broker.host, broker.port) as client:
            await client.publish(f"{ROOT}/{node}/{kind}", payload, qos=1)

    asyncio.run(send())


def listen(
    broker: Broker,
    node: str,
    enough: Callable[[Sample], object],
    *,
    then: Callable[[], object] = lambda: None,
) -> Sample:
    """Listen, do `then`, and wait for the first sample of a node that is enough."""

    async def receive() -> Sample:
        async with asyncio.timeout(PATIENCE_S), aiomqtt.Client(broker.host, broker.port) as client:
            await client.subscribe(f"{ROOT}/{node}/samples")
            then()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                sample = decode_sample(message.payload, node)
                if enough(sample):
                    return sample
        raise AssertionError("the broker ended the connection")

    return asyncio.run(receive())


def dropped(replica: Replica, reason: str) -> float:
    try:
        return metric(replica, "wattbalance_samples_dropped_total", reason=reason)
    except KeyError:
        return 0


@pytest.fixture
def told(system: System) -> Replica:
    """A replica that knows node `told` by one sample of a made-up agent."""
    system.add_node("told", 2)
    # Nothing here is about age; a slow machine must not make a reading stale.
    replica = system.serve(telemetry={"broker": system.broker.url, "stale": "10m"})
    until_seen(replica, "told")
    publish(system.broker, "told", "inventory", make_inventory("told"))
    publish(system.broker, "told", "samples", make_sample("told", 1, unix_s=time.time()))
    until_power(replica, NODE_WATTS)
    return replica


def until_power(replica: Replica, watts: float) -> None:
    wait_for(f"{watts} W are shown", lambda: view(replica, "told")["power_w"] == watts)


def test_what_cannot_be_used_is_counted_by_reason_and_the_nodes_state_stands(
    system: System, told: Replica
) -> None:
    want_dropped = {reason: 0 for reason, _ in BAD}
    for reason, payload in BAD:
        publish(system.broker, "told", "samples", payload)
        want_dropped[reason] += 1
        wait_for(f"{reason} is counted", lambda: {r: dropped(told, r) for r in want_dropped} == want_dropped)
        state = view(told, "told")
        assert (state["power_w"], state["fresh"]) == (NODE_WATTS, True)
    publish(system.broker, "told", "samples", make_sample("told", 2, power_w=[150.0, 150.0]))
    until_power(told, 300.0)


def test_a_clock_that_is_an_hour_off_is_told_and_its_samples_count(system: System, told: Replica) -> None:
    skewed = "wattbalance_nodes_clock_skewed"
    assert metric(told, skewed) == 0
    for seq, (off_s, watts) in enumerate(((-3600, 110.0), (3600, 120.0)), start=2):
        late = make_sample("told", seq, unix_s=time.time() + off_s, power_w=[watts, watts])
        publish(system.broker, "told", "samples", late)
        until_power(told, 2 * watts)
        assert metric(told, skewed) == 1
        assert view(told, "told")["fresh"], "its age is counted from when it came"
    publish(system.broker, "told", "samples", make_sample("told", 4, unix_s=time.time()))
    until_power(told, NODE_WATTS)
    assert metric(told, skewed) == 0


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_new_agent_counts_from_the_start_in_the_same_boot_or_after_another(
    system: System, told: Replica, boot: str
) -> None:
    publish(system.broker, "told", "samples", make_sample("told", 500, power_w=[120.0, 120.0]))
    until_power(told, 240.0)
    # Its counters may be lower: after a reboot they begin at nothing.
    fresh = make_sample("told", 0, agent="agent-2", boot=boot, power_w=[90.0, 90.0], energy_j=[1.0, 1.0])
    publish(system.broker, "told", "samples", fresh)
    until_power(told, 180.0)
    # What the one before sent last arrives late, and is not taken for news.
    publish(system.broker, "told", "samples", make_sample("told", 501, power_w=[120.0, 120.0]))
    wait_for("the late one is counted", lambda: dropped(told, "old_sequence") == 1)
    assert view(told, "told")["power_w"] == 180.0


def test_a_restarted_agent_says_so_and_a_counter_that_begins_anew_is_another_epoch(
    system: System, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    stub = make_stub("again-a")
    stub.set(0, "energy_mj", 5_000_000_000)
    first, _ = start_agent("again-a", stub)
    before = listen(system.broker, "again-a", lambda sample: sample.energy_j[0] is not None)
    stub.set(0, "energy_mj", 1_000)
    # As after a driver was loaded again: less than before, and not taken for energy that was given back.
    reset = listen(system.broker, "again-a", lambda sample: epoch(sample) > epoch(before))
    assert (reset.agent, reset.boot) == (before.agent, before.boot)
    assert reset.seq > before.seq
    assert first.stop() == 0
    # It listens before there is anything to hear: the new agent's first sample is the one that counts from the start.
    anew = listen(
        system.broker,
        "again-a",
        lambda sample: sample.agent != before.agent,
        then=lambda: start_agent("again-a", stub),
    )
    assert anew.boot == before.boot
    assert anew.seq < reset.seq


def epoch(sample: Sample) -> int:
    """Of the first GPU's energy counter; -1 where the sample does not say."""
    return (sample.energy_epoch[0] or 0) if isinstance(sample.energy_epoch, list) else -1


def set_load(stub: NvmlStub, util_pct: int) -> None:
    for gpu in range(8):
        stub.set(gpu, "util_pct", util_pct)


def until_load(replica: Replica, node: str, load: float) -> None:
    def measured() -> bool:
        found = view(replica, node)["load_frac"]
        return isinstance(found, float) and abs(found - load) < 0.02

    wait_for(f"{node} is measured at {load}", measured)


@pytest.fixture
def quick(system: System) -> Replica:
    """A replica whose measured load forgets fast."""
    return system.serve(
        telemetry={"broker": system.broker.url, "stale": f"{STALE_S:g}s", "half_life": "500ms"}
    )


def choose(system: System, replica: Replica, pod: str, *nodes: str) -> str:
    """Ask for a pod of its own, so that each decision stands alone."""
    system.add_pod(pod, annotations=INFERENCE)
    [chosen] = replica.post("filter", {"Pod": system.pod(pod), "NodeNames": list(nodes)})["NodeNames"]
    system.delete_pod(pod)
    return str(chosen)


def test_a_node_whose_agent_falls_silent_is_unknown_and_not_attractive(
    system: System, quick: Replica, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    agents: dict[str, Process] = {}
    # The first is idle as long as it is heard.
    for node, util_pct in (("mute-a", 0), ("mute-b", 30)):
        system.add_node(node)
        stub = make_stub(node)
        set_load(stub, util_pct)
        agents[node], _ = start_agent(node, stub)
        until_load(quick, node, util_pct / 100)
    assert choose(system, quick, "heard", "mute-a", "mute-b") == "mute-a"
    agents["mute-a"].signal(signal.SIGSTOP)
    wait_for("it is stale", lambda: not view(quick, "mute-a")["fresh"])
    state = view(quick, "mute-a")
    assert state["load_frac"] is None
    # The broker may say sooner than the limit that nothing comes, once one and a half keepalives are over.
    assert state["reading_age_s"] >= KEEPALIVE_S
    pool = {"node": "mute-a", "pool": "dc-1"}
    assert metric(quick, "wattbalance_node_sample_age_seconds", **pool) >= KEEPALIVE_S
    with pytest.raises(KeyError):
        metric(quick, "wattbalance_node_load_ratio", **pool)
    # One that is measured at 30 % is better than one of which nothing is known.
    assert choose(system, quick, "unheard", "mute-a", "mute-b") == "mute-b"
    # But where there is nothing else, it is taken: unknown is no reason to refuse.
    assert choose(system, quick, "needy", "mute-a") == "mute-a"
    agents["mute-a"].signal(signal.SIGCONT)
    wait_for("it is heard again", lambda: view(quick, "mute-a")["fresh"])


def test_one_gpu_of_eight_that_tells_nothing_makes_its_node_less_attractive(
    system: System, quick: Replica, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    for node in ("dim-a", "dim-b"):
        system.add_node(node)
        stub = make_stub(node)
        set_load(stub, 0)
        if node == "dim-a":
            stub.fault(3, "utilisation", NOT_SUPPORTED)
        start_agent(node, stub)
    until_load(quick, "dim-b", 0.0)
    wait_for("the other is heard too", lambda: view(quick, "dim-a")["fresh"])
    devices: list[dict[str, Any]] = view(quick, "dim-a")["devices"]
    want_unknown = [gpu == 3 for gpu in range(8)]
    assert [device["util_frac"] is None for device in devices] == want_unknown
    assert [device["power_w"] is None for device in devices] == [False] * 8, "the rest of it is told"
    assert choose(system, quick, "careful", "dim-a", "dim-b") == "dim-b"
    [decision] = quick.get("/api/v1/decisions?pod=careful")["items"]
    scores = {ranked["node"]: ranked["score"] for ranked in decision["best"]}
    assert 0 <= scores["dim-a"] < scores["dim-b"] <= 1
    # Its GPUs are all there to be used.
    system.add_pod("whole", 8, annotations=INFERENCE)
    answer = quick.post("filter", {"Pod": system.pod("whole"), "NodeNames": ["dim-a"]})
    assert answer["NodeNames"] == ["dim-a"]


def test_a_broker_that_is_silent_leaves_it_ready_and_placing(
    system: System, quick: Replica, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    system.add_node("hush-a")
    start_agent("hush-a", make_stub("hush-a"))
    wait_for("samples flow", lambda: view(quick, "hush-a")["fresh"])
    system.broker.freeze()
    try:
        wait_for("it says so", lambda: set(readiness(quick)["degraded"]) & {"broker_silent", "broker_away"})
        assert readiness(quick)["ready"]
        wait_for("the reading is unknown", lambda: view(quick, "hush-a")["load_frac"] is None)
        assert choose(system, quick, "blind", "hush-a") == "hush-a"
    finally:
        system.broker.thaw()
    wait_for("samples flow again", lambda: view(quick, "hush-a")["fresh"])
    wait_for("it is whole again", lambda: readiness(quick)["degraded"] == [])
