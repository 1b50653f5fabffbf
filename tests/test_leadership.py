"""Who acts, and the label by which a Service finds the leader."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import pytest

from scheduler import config, leadership
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.objects import Meta, Pod
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.core.clock import ManualClock
from scheduler.core.errors import ApiForbidden, ApiUnavailable, ClusterError
from scheduler.leadership import LEADER, ROLE_LABEL, Leadership
from tests.contracts.cluster_contract import beside, eventually


class Labels:
    """A cluster that remembers who was labelled, and fails when told."""

    def __init__(self) -> None:
        self.set: list[tuple[str, str | None]] = []
        self.failing: ClusterError | None = None
        self.tried = 0

    async def label_pod(self, namespace: str, name: str, labels: dict[str, str | None]) -> None:
        self.tried += 1
        if self.failing is not None:
            raise self.failing
        self.set.append((name, labels[ROLE_LABEL]))


class World:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        mode: str = "act",
        *,
        kubeconfig: str = "",
        pod_name: str = "wb-0",
    ) -> None:
        monkeypatch.setenv("POD_NAME", pod_name)
        monkeypatch.setenv("POD_NAMESPACE", "wb")
        monkeypatch.setattr(leadership, "RELABEL_S", 0.001)
        text = (
            f"mode: {mode}\ncluster: {{name: c{kubeconfig}}}\ntelemetry: {{broker: mqtt://h}}\n"
            "lease: {enabled: false}"
        )
        self.labels, self.over = Labels(), asyncio.Event()
        self.leadership = Leadership(
            config.load(text),
            ManualClock(),
            cast("KubernetesCluster", self.labels),
            instance="i",
            over=self.over,
            is_fit=lambda: True,
        )

    def see(self, name: str, role: str | None, *, namespace: str = "wb", gone: bool = False) -> None:
        labels = {} if role is None else {ROLE_LABEL: role}
        pod = Pod(metadata=Meta(name=name, namespace=namespace, uid=f"uid-{name}", labels=labels))
        self.leadership.see(Gone(Kind.POD, pod) if gone else Changed(Kind.POD, pod))


@pytest.mark.parametrize(
    ("host", "kubeconfig", "mode", "want_told"),
    [
        ("10.96.0.1", "", "act", True),
        ("10.96.0.1", "", "observe", False),
        ("10.96.0.1", ", kubeconfig: /k", "act", False),
        ("", "", "act", False),
    ],
)
async def test_a_pod_that_was_not_told_its_name_says_what_to_set(
    host: str,
    kubeconfig: str,
    mode: str,
    want_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    world = World(monkeypatch, mode, kubeconfig=kubeconfig, pod_name="")
    told = [each.getMessage() for each in caplog.records if "POD_NAME is not set" in each.getMessage()]
    assert len(told) == want_told
    assert all("fieldRef metadata.name" in each for each in told)
    # Who does not lead lacks no label.
    assert world.leadership.lacks_label() is want_told
    world.over.set()
    assert not world.leadership.lacks_label()


async def test_the_leader_takes_the_label_once_and_from_all_others_of_its_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.see("wb-1", LEADER)
    world.see("wb-2", "standby")
    world.see("wb-3", LEADER)
    world.see("wb-3", LEADER, gone=True)
    world.see("elsewhere", LEADER, namespace="default")
    async with beside(world.leadership.carry_label()):
        await eventually(lambda: len(world.labels.set) >= 2)
        assert world.labels.set[:2] == [("wb-0", LEADER), ("wb-1", None)]
        world.see("wb-0", LEADER)
        world.see("wb-1", None)
        world.labels.set.clear()
        world.see("wb-4", LEADER)
        await eventually(lambda: len(world.labels.set) >= 2)
    assert set(world.labels.set) == {("wb-4", None)}
    assert world.leadership.pod_uid == "uid-wb-0"


async def test_a_label_that_cannot_be_moved_is_told_once_for_each_reason_and_when_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(monkeypatch)
    for_each = (
        ApiForbidden("may not", status=403),
        ApiForbidden("who are you", status=401),
        ApiUnavailable("away"),
    )
    world.labels.failing = for_each[0]
    async with beside(world.leadership.carry_label()):
        for error in (*for_each, None, for_each[2]):
            world.labels.failing = error
            tried = world.labels.tried
            await eventually(lambda tried=tried: world.labels.tried > tried + 2)  # type: ignore[misc]  # bound now
            assert world.leadership.lacks_label() is (error is not None)
    assert not world.leadership.lacks_label(), "whoever leads no longer lacks nothing"
    told = [each.message.partition(", trying on: ")[2] for each in caplog.records if "cannot" in each.message]
    assert told == ["may not", "who are you", "away", "away"]
    assert sum("can be moved again" in each.message for each in caplog.records) == 1


@pytest.mark.parametrize(
    ("mode", "want_role", "want_leader"), [("act", "leader", "wb-0-i"), ("observe", "observer", "")]
)
def test_who_is_over_neither_leads_nor_decides(
    mode: str, want_role: str, want_leader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, mode)
    found = world.leadership
    assert (found.role, found.leader_name, found.term) == (want_role, want_leader, 0)
    assert found.may_decide()
    assert found.leads() is found.may_act() is (mode == "act")
    found.is_paused = lambda: True
    assert not found.may_act()
    world.over.set()
    assert not found.leads()
    assert not found.may_decide()
