"""Amounts as a real API server takes them: a number of GPUs that no node can have, memory in parts of bytes."""

from __future__ import annotations

import pytest

from tests.controlplane import Daemon
from tests.e2e.system import Replica, System, metric, until_seen, wait_for

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("amount", ["1E", "9223372036854775807"])
def test_a_pod_that_asks_for_an_absurd_number_of_gpus_is_known_and_quarantine_holds(
    system: System, replica: Replica, amount: str
) -> None:
    system.add_node("quiet", **{"wattbalance.io/quarantine": "x"})
    until_seen(replica, "quiet")
    resources = {"limits": {"nvidia.com/gpu": amount}}
    system.add_pod("absurd", containers=[{"name": "main", "image": "none", "resources": resources}])
    path = "/api/v1/explain/default/absurd"
    told = wait_for("it is known", lambda: (t := replica.get(path))["state"] == "waiting" and t)
    assert told["gpus"] >= 1e18
    assert any("the largest has 8" in each["text"] for each in told["now"]["unblock"]), told["now"]["unblock"]
    assert metric(replica, "wattbalance_waiting_pods") == 1
    # kube-scheduler 1.20 was seen to offer a node for it: its sums overflow.
    asking = {"Pod": system.pod("absurd"), "Nodes": None, "NodeNames": ["quiet"]}
    answer = replica.post("filter", asking)
    assert (answer["NodeNames"], answer["FailedNodes"]) == ([], {"quiet": "node in quarantine"})


def test_memory_in_parts_of_a_byte_steers(system: System, replica: Replica, scheduler: Daemon) -> None:
    for name, mib in (("a-small", "38000"), ("b-enough", "38196")):
        system.add_node(name, **{"nvidia.com/gpu.memory": mib})
    until_seen(replica, "a-small", "b-enough")
    system.add_pod("asks", annotations={"wattbalance.io/gpu-memory": "37.3Gi"})
    assert system.bound("asks") == "b-enough"


def test_a_slip_is_answered_in_the_unit_of_its_key(system: System, replica: Replica) -> None:
    said = {"max-latency": "40", "min-power": "250mW", "gpu-memory": "40000m"}
    system.add_pod("slips", annotations={f"wattbalance.io/{key}": text for key, text in said.items()})

    def told() -> str:
        events = system.plane.request("GET", "/api/v1/namespaces/default/events")
        assert isinstance(events, dict)
        return "".join(each["message"] for each in events["items"] if each["reason"] == "BadAnnotation")

    message = wait_for("it is told", told)
    for part in (
        "got '40'; did you mean 40ms?",
        "got '250mW', which is in thousandths of a watt",
        "got '40000m', which is in thousandths of a byte",
    ):
        assert part in message
