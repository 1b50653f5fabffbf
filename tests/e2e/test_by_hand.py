"""README's five minutes: a daemon outside any pod, told no more than it must be, and a person's own commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from scheduler.simulate.ports import free_port
from tests.e2e.system import Replica, System, readiness, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def by_hand(system: System, monkeypatch: pytest.MonkeyPatch) -> Replica:
    """`serve` with an administrator's kubeconfig, and no word of a namespace."""
    for variable in ("POD_NAMESPACE", "POD_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    port = free_port()
    path = system.folder / f"by-hand-{port}.yaml"
    settings = system.config(port)
    settings["cluster"] = {"name": "try", "kubeconfig": str(system.plane.kubeconfig("admin"))}
    settings["log"] = {"format": "text"}
    path.write_text(yaml.safe_dump(settings))
    replica = Replica(system.start("serve", ["serve", "--config", str(path)]), port, "")
    system.until_ready(replica)
    return replica


def say(system: System, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KUBECONFIG": str(system.plane.kubeconfig("admin"))},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_pause_that_names_nothing_reaches_a_daemon_that_was_told_nothing(
    system: System, by_hand: Replica
) -> None:
    wait_for("it leads", lambda: readiness(by_hand)["role"] == "leader")
    say(system, "pause", "--reason", "a drill")
    try:
        found = wait_for("it is paused", lambda: readiness(by_hand)["paused"])
        assert isinstance(found, dict)
        assert found["reason"] == "a drill"
    finally:
        assert "resumed" in say(system, "resume")
    wait_for("nobody pauses it", lambda: readiness(by_hand)["paused"] is None)


def test_the_scheduler_that_is_printed_for_it_has_its_account_in_the_same_namespace(
    system: System, by_hand: Replica
) -> None:
    wait_for("it leads", lambda: readiness(by_hand)["role"] == "leader")
    printed = say(system, "config", "kube-scheduler", "--kubernetes-version", "1.32", "--only", "rbac")
    accounts = [each for each in yaml.safe_load_all(printed) if each["kind"] == "ServiceAccount"]
    for account in accounts:
        namespace = account["metadata"]["namespace"]
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/wattbalance"
        assert system.plane.request("GET", lease)
    assert accounts
