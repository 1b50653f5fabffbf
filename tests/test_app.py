"""The daemon as it is composed, in one process, on the simulated API server: what it writes there, and what never."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import aiomqtt
import pytest
import yaml

from scheduler import app, config, leadership
from scheduler.cluster import kubernetes
from scheduler.cluster.port import Kind
from scheduler.config_settings import TelemetrySettings
from scheduler.config_types import BrokerUrl
from scheduler.connections import SILENT_S
from scheduler.core.clock import Clock, SystemClock
from scheduler.facts import sources
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.ports import free_port
from tests.brokers import run_mosquitto
from tests.certs import Authority
from tests.contracts.cluster_contract import HANG_S, QUICK_PACE, beside, eventually

TOKEN = "t"
ATTEMPTS = 5
NAMESPACE = "wattbalance"
KINDS = ("pods", "nodes", "namespaces", "events", "leases")
ROLE = "wattbalance.io/role"


@dataclass
class World:
    """An API server, and how to start replicas on it."""

    api: ApiServer
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def configure(self, **changes: object) -> tuple[Path, int]:
        """Write a configuration; returns its file and the port of all listeners."""
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": self.api.url}}],
                    "users": [{"name": "u", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        port = free_port()
        base: dict[str, object] = {
            "cluster": {"name": "test", "kubeconfig": str(kubeconfig)},
            # Nobody is there: placing goes on without readings.
            "telemetry": {"broker": f"mqtt://127.0.0.1:{free_port()}", "wait_at_start": "0s"},
            "listeners": [
                {"address": f"127.0.0.1:{port}", "serves": ["extender", "api", "metrics", "probes"]}
            ],
            # Nobody loses it because the machine stood still for a while.
            "lease": {"duration": "60s", "renew_deadline": "40s", "retry": "200ms"},
            "shutdown": {"grace": "5s"},
        }
        path = self.folder / f"config-{port}.yaml"
        path.write_text(yaml.safe_dump(base | changes))
        return path, port

    @contextlib.asynccontextmanager
    async def replica(
        self, pod_name: str = "", *, ready: bool = True, **changes: object
    ) -> AsyncIterator[Replica]:
        """Run a replica while the block runs; it is ready, unless that is not waited for."""
        path, port = self.configure(**changes)
        self.monkeypatch.setenv("POD_NAMESPACE", NAMESPACE)
        self.monkeypatch.setenv("POD_NAME", pod_name)
        daemon = app.Daemon(config.load(path.read_text()), SystemClock())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, beside(daemon.run()):
            try:
                await eventually(lambda: not ready or daemon.knowledge.not_ready() is None)
                yield Replica(daemon, session)
            finally:
                daemon.stopping.set()

    def everything(self) -> dict[str, list[dict[str, object]]]:
        """All objects of the cluster."""
        return {kind: json.loads(json.dumps(self.api.list(kind))) for kind in KINDS}

    def events(self, reason: str) -> list[dict[str, Any]]:
        """Events of one reason."""
        return [event for event in self.api.list("events") if event["reason"] == reason]

    def add_pod(self, name: str, *, namespace: str = "default", node: str = "", **spec: object) -> None:
        """A pod of one GPU that our scheduler should place."""
        containers = [{"name": "main", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
        given = {"schedulerName": "wattbalance", "containers": containers, **spec}
        if node:
            given["nodeName"] = node
        self.api.create("pods", {"metadata": {"name": name, "namespace": namespace}, "spec": given})

    def add_node(self, name: str, **labels: str) -> None:
        """A node of eight GPUs."""
        self.api.create(
            "nodes",
            {
                "metadata": {"name": name, "labels": labels},
                "status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"}},
            },
        )


@dataclass
class Replica:
    """A running daemon and its door."""

    daemon: app.Daemon
    session: aiohttp.ClientSession

    async def filter(self, pod: object, *nodes: str) -> dict[str, Any]:
        """Ask as kube-scheduler does."""
        async with self.session.post("/scheduler/filter", json={"Pod": pod, "NodeNames": nodes}) as answer:
            assert answer.status == 200
            return dict(await answer.json(content_type=None))

    async def knows(self, *nodes: str) -> None:
        """Wait until it has seen nodes."""
        await eventually(lambda: set(nodes) <= self.daemon.store.nodes.keys())

    async def leads(self) -> None:
        """Wait until it leads."""
        await eventually(self.daemon.leadership.leads)

    def labelled(self, api: ApiServer) -> bool:
        """Whether its pod carries the leader's label."""
        pod = api.get("pods", self.daemon.leadership.pod_name, NAMESPACE)
        return bool(pod["metadata"].get("labels", {}).get(ROLE) == "leader")


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, minor: int = 32, clock: Clock | None = None
) -> AsyncIterator[World]:
    """A cluster of some version and clock with our namespace in it, and its kubeconfig in `folder`.

    What it refuses is soon tried again.
    """
    monkeypatch.setattr(kubernetes, "Pace", lambda: QUICK_PACE)
    api = ApiServer(clock or SystemClock(), token=TOKEN, minor=minor)
    for name in ("default", NAMESPACE):
        with contextlib.suppress(Exception):
            api.create("namespaces", {"metadata": {"name": name}})
    await api.start()
    made = World(api, folder, monkeypatch)
    made.configure()
    try:
        yield made
    finally:
        await api.stop()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """One of today's version."""
    async with cluster(tmp_path, monkeypatch) as made:
        yield made


async def test_a_pod_that_fits_nowhere_gets_one_warning_however_often_it_is_asked_about(world: World) -> None:
    world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
    world.add_pod("p")
    async with world.replica() as replica:
        await replica.knows("sick")
        await replica.leads()
        for _ in range(5):
            answer = await replica.filter(world.api.get("pods", "p", "default"), "sick")
            assert answer["NodeNames"] == []
        await eventually(lambda: bool(world.events("NoNodeFits")))
        world.add_pod("q")
        await replica.filter(world.api.get("pods", "q", "default"), "sick")
        await eventually(lambda: len(world.events("NoNodeFits")) == 2)
    first, _ = world.events("NoNodeFits")
    assert first["type"] == "Warning"
    assert first["regarding"]["name"] == "p"
    assert first["regarding"]["uid"] == world.api.get("pods", "p", "default")["metadata"]["uid"]
    assert "node in quarantine" in first["note"]
    assert "take the label" in first["note"]
    assert "series" not in first


async def test_a_bad_annotation_of_a_pod_that_nobody_asks_about_is_told_once(world: World) -> None:
    def add(name: str, scheduler: str = "wattbalance") -> None:
        world.add_pod(name, schedulerName=scheduler)
        said = {"wattbalance.io/pools": "nope", "wattbalance.io/gpu-memory": "40GB"}
        world.api.patch("pods", name, "default", {"metadata": {"annotations": said}})

    add("before")
    async with world.replica() as leader:
        await leader.leads()
        await eventually(lambda: len(world.events("BadAnnotation")) == 1)
        async with world.replica() as standby:
            add("foreign", "default-scheduler")
            add("after")
            await eventually(lambda: len(world.events("BadAnnotation")) == 2)
            await eventually(lambda: len(standby.daemon.store.waiting) == len(standby.daemon.unasked) == 3)
            assert not leader.daemon.unasked
            # kube-scheduler asks after all, several times: that is neither another event nor another count.
            for _ in range(3):
                await leader.filter(world.api.get("pods", "after", "default"), "n1")
            assert leader.daemon.store.intents.errors == {"pools": 2, "gpu-memory": 2}
            assert standby.daemon.store.intents.errors == {}
    told = world.events("BadAnnotation")
    assert {event["regarding"]["name"] for event in told} == {"before", "after"}
    assert all("pools" in event["note"] and "gpu-memory" in event["note"] for event in told)


async def test_nothing_is_told_unasked_where_pods_may_go_to_observed_pools(world: World) -> None:
    pools = [{"name": "lab", "selector": {"lab": "yes"}, "mode": "observe"}]
    world.add_pod("p")
    world.api.patch("pods", "p", "default", {"metadata": {"annotations": {"wattbalance.io/pools": "nope"}}})
    async with world.replica(pools=pools) as replica:
        await replica.leads()
        await eventually(lambda: len(replica.daemon.store.waiting) == 1)
        await eventually(lambda: not replica.daemon.unasked)
    assert not world.events("BadAnnotation")


async def test_a_pod_placed_past_us_gets_a_warning_and_is_counted_by_how(world: World) -> None:
    world.add_node("n1")
    async with world.replica() as replica:
        await replica.knows("n1")
        await replica.leads()
        world.add_pod("unasked", node="n1")
        world.add_pod("foreign", node="n1", schedulerName="default-scheduler")
        world.add_pod("asked")
        answer = await replica.filter(world.api.get("pods", "asked", "default"), "n1")
        assert answer["NodeNames"] == ["n1"]
        world.api.bind("asked", "default", "n1")
        await eventually(lambda: len(world.events("PlacedPastWattbalance")) == 2)
        await eventually(lambda: not replica.daemon.store.waiting)
        async with replica.session.get("/metrics") as page:
            text = await page.text()
    for reason, want_count in (("no_decision", 1), ("other_scheduler", 1), ("other_node", 0)):
        assert f'wattbalance_bypassed_pods_total{{reason="{reason}"}} {want_count}.0' in text
    assert {event["regarding"]["name"] for event in world.events("PlacedPastWattbalance")} == {
        "unasked",
        "foreign",
    }


async def test_names_and_resources_of_the_configuration_say_what_comes_past_us(world: World) -> None:
    world.add_node("n1")
    async with world.replica(
        scheduler_names=["gpu-scheduler"], managed_resources=["nvidia.com/mig-1g.5gb"]
    ) as replica:
        await replica.knows("n1")
        await replica.leads()
        world.add_pod("whole", node="n1")
        mig = [{"name": "m", "image": "i", "resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}]
        world.add_pod("slice", node="n1", schedulerName="gpu-scheduler", containers=mig)
        world.add_pod("other-slice", node="n1", containers=mig)
        past = replica.daemon.bindings.past
        await eventually(lambda: past["no_decision"] + past["other_scheduler"] == 2)
        assert (past["no_decision"], past["other_scheduler"]) == (1, 1)


async def test_nodes_that_offer_what_is_not_managed_are_counted_as_long_as_they_do(world: World) -> None:
    world.add_node("whole")
    for name, units in (("sliced", "7"), ("emptied", "0")):
        offered = {"nvidia.com/gpu": "1", "nvidia.com/mig-1g.10gb": units, "example.com/nic": "2"}
        world.api.create("nodes", {"metadata": {"name": name}, "status": {"allocatable": offered}})

    async def unmanaged(replica: Replica) -> str:
        async with replica.session.get("/metrics") as page:
            lines = (await page.text()).splitlines()
        [line] = [each for each in lines if each.startswith("wattbalance_unmanaged_nodes ")]
        return line.partition(" ")[2]

    async with world.replica(managed_resources=["nvidia.com/gpu"]) as replica:
        await replica.knows("whole", "sliced", "emptied")
        assert await unmanaged(replica) == "1.0"
        world.api.delete("nodes", "sliced")
        await eventually(lambda: "sliced" not in replica.daemon.store.nodes)
        assert await unmanaged(replica) == "0.0"


async def test_a_standby_writes_no_event_though_it_answers_its_neighbour(world: World) -> None:
    world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
    world.add_pod("p")
    async with world.replica() as leader:
        await leader.leads()
        async with world.replica() as standby:
            await standby.knows("sick")
            assert not standby.daemon.leadership.leads()
            answer = await standby.filter(world.api.get("pods", "p", "default"), "sick")
            assert answer["NodeNames"] == []
            world.add_pod("past", node="sick")
            # Both see it; one tells.
            await eventually(lambda: bool(world.events("PlacedPastWattbalance")))
            await eventually(lambda: "past" in {pod.name for pod in standby.daemon.store.pods.values()})
            assert sum(standby.daemon.bindings.past.values()) == 0
    assert not world.events("NoNodeFits")
    assert len(world.events("PlacedPastWattbalance")) == 1


async def test_a_pod_that_came_and_went_in_a_watch_gap_holds_no_gpus(world: World) -> None:
    world.add_node("n1")
    world.add_pod("here")
    async with world.replica() as replica:
        await replica.knows("n1")
        await eventually(lambda: bool(replica.daemon.store.waiting))
        unseen = {
            "metadata": {"name": "unseen", "namespace": "default", "uid": "unseen"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "8"}}}]},
        }
        assert (await replica.filter(unseen, "n1"))["NodeNames"] == ["n1"]
        assert replica.daemon.store.reservations.get("unseen") is not None
        here = world.api.get("pods", "here", "default")
        world.api.faults.expire_watches = True
        world.api.drop_watches()
        await eventually(lambda: replica.daemon.store.reservations.get("unseen") is None)
        world.api.faults.expire_watches = False
        assert (await replica.filter(here, "n1"))["NodeNames"] == ["n1"]
        assert replica.daemon.store.reservations.get(here["metadata"]["uid"]) is not None


async def test_no_two_processes_give_decisions_the_same_name(world: World) -> None:
    world.add_node("n1")
    world.add_pod("p")
    cycles = []
    # One after the other, as after a failover: each counts its decisions from one.
    for _ in range(2):
        async with world.replica() as replica:
            await replica.knows("n1")
            for _ in range(2):
                await replica.filter(world.api.get("pods", "p", "default"), "n1")
            named = [record.cycle for record in replica.daemon.decider.log]
            assert all(replica.daemon.leadership.identity.endswith(name.split("-")[0]) for name in named)
            cycles += named
    assert len(set(cycles)) == 4


async def test_the_leader_carries_the_label(world: World) -> None:
    for name in ("a", "b"):
        world.add_pod(name, namespace=NAMESPACE)
    async with world.replica("a") as first:
        await first.leads()
        await eventually(lambda: first.labelled(world.api))
        async with world.replica("b") as second:
            assert second.daemon.leadership.role == "standby"
            assert not second.labelled(world.api)
            assert [sources(each.daemon).lease_takeovers() for each in (first, second)] == [1, 0]


async def test_the_only_replica_carries_the_label_without_an_election(world: World) -> None:
    # Else the Service that selects it would have no endpoint.
    world.api.create("pods", {"metadata": {"name": "wb-0", "namespace": NAMESPACE}})
    async with world.replica("wb-0", lease={"enabled": False}) as only:
        assert only.daemon.leadership.elector is None
        await eventually(lambda: only.labelled(world.api))
        assert not world.api.list("leases")


async def test_observing_changes_nothing_in_the_cluster(world: World) -> None:
    world.add_node("well")
    world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
    world.add_pod("p")
    world.add_pod("own", namespace=NAMESPACE)
    world.add_pod("past", node="well")
    before = world.everything()
    async with world.replica("own", mode="observe") as replica:
        await replica.knows("well", "sick")
        for nodes in (("well", "sick"), ("sick",)):
            answer = await replica.filter(world.api.get("pods", "p", "default"), *nodes)
            assert answer["NodeNames"] == list(nodes)
        async with replica.session.get("/readyz") as page:
            said = await page.json(content_type=None)
        assert (said["role"], said["mode"], said["leader"]) == ("observer", "observe", "")
        # Long enough for an election, a label and an event of a replica that acts (the tests above).
        daemon = replica.daemon
        await eventually(lambda: daemon.cluster.counters.requests["watch"] >= len(KINDS))
        assert daemon.leadership.elector is None
        assert set(daemon.cluster.counters.requests) <= {"get", "list", "watch"}
        assert [record.result for record in daemon.decider.log] == ["observed", "observed"]
    assert world.everything() == before


class Looks:
    """Looks at a replica that is to be ready all the time, as often as `eventually` does."""

    def __init__(self, daemon: app.Daemon) -> None:
        self._daemon = daemon
        self._looked_mono_s = daemon.clock.mono_s()
        self._heard_mono_s = daemon.cluster.last_contact_mono_s
        self._judges = True

    def heard_again(self) -> bool:
        """Whether it heard from its API server since this last said so; fails if it is not ready meanwhile."""
        now_mono_s, heard_mono_s = self._daemon.clock.mono_s(), self._daemon.cluster.last_contact_mono_s
        # Where the machine stood still, so did the probes: nothing is to be learnt before the next is answered.
        self._judges = self._judges and now_mono_s < self._looked_mono_s + 0.5
        self._looked_mono_s = now_mono_s
        assert not self._judges or self._daemon.knowledge.not_ready() is None
        heard_again, self._heard_mono_s = heard_mono_s != self._heard_mono_s, heard_mono_s
        self._judges = self._judges or heard_again
        return heard_again


async def test_a_quiet_cluster_is_not_taken_for_a_silent_one_however_short_the_limit(world: World) -> None:
    path, _ = world.configure()
    cluster = {**yaml.safe_load(path.read_text())["cluster"], "stale": "4s"}
    # Nothing but probes is heard: no Lease is renewed, and nothing changes.
    async with world.replica(cluster=cluster, mode="observe") as observer:
        looks = Looks(observer.daemon)
        for _ in range(6):
            await eventually(looks.heard_again)


async def test_any_replica_that_observes_answers_from_anywhere(world: World) -> None:
    async with world.replica(mode="observe") as first, world.replica(mode="observe") as second:
        for replica in (first, second):
            assert replica.daemon.verbs.may_answer(False) is None


async def test_a_standby_that_acts_answers_its_neighbour_only(world: World) -> None:
    async with world.replica() as leader:
        await leader.leads()
        async with world.replica() as standby:
            assert leader.daemon.verbs.may_answer(False) is None
            assert standby.daemon.verbs.may_answer(True) is None
            assert "standby" in (standby.daemon.verbs.may_answer(False) or "")


async def serve_to_the_end(config_file: Path, **environment: str) -> tuple[int, str]:
    """Run `serve` where it must end by itself; its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config_file)),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(HANG_S):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize(("verb", "names"), [("get", True), ("create", False), ("update", True)])
async def test_readyz_says_which_lease_nobody_can_lead_by(world: World, verb: str, *, names: bool) -> None:
    world.api.create("namespaces", {"metadata": {"name": "shared"}})
    if verb == "update":
        # Free, so that it would be taken.
        world.api.create("leases", {"metadata": {"name": "other", "namespace": "shared"}, "spec": {}})
    world.api.faults.forbidden.add((verb, "leases"))
    lease = {
        "name": "other",
        "namespace": "shared",
        "duration": "4s",
        "renew_deadline": "3s",
        "retry": "200ms",
    }
    want_starts = (
        f"may not {verb} leases in namespace shared; add to wattbalance's Role: "
        f'{{apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["{verb}"]}}; '
        "until then no replica can lead, which takes the Lease shared/other (lease.namespace, lease.name)"
    )
    async with world.replica(lease=lease) as replica:

        def forbidden() -> list[str]:
            return replica.daemon.cluster.forbidden

        await eventually(lambda: bool(forbidden()))
        async with replica.session.get("/readyz") as answer:
            said = await answer.json(content_type=None)
        assert (said["ready"], said["role"], said["degraded"]) == (
            True,
            "standby",
            ["broker_away", "forbidden", "lease"],
        )
        (told,) = said["forbidden"]
        assert told.startswith(want_starts)
        assert ('resourceNames: ["other"] is enough' in told) is names
        world.api.faults.forbidden.clear()
        await replica.leads()
        await eventually(lambda: not forbidden())


async def test_what_check_config_warns_of_is_in_the_log_of_serve(world: World) -> None:
    config_file, _ = world.configure(extender={"bind": True, "ignorable": True})
    # Ends by itself soon after.
    (world.folder / "kubeconfig").unlink()
    _, said = await serve_to_the_end(config_file)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    warned = [line["message"] for line in lines if line["level"] == "warning"]
    want = "configuration: extender.kubernetes_version: expected"
    assert any(text.startswith(want) for text in warned), said


async def test_a_kubeconfig_that_cannot_be_used_is_a_mistake_of_the_configuration(world: World) -> None:
    config_file, _ = world.configure()
    (world.folder / "kubeconfig").unlink()
    code, said = await serve_to_the_end(config_file)
    assert code == 2
    assert "kubeconfig does not exist" in said


async def test_names_of_the_environment_that_are_none_of_kubernetes_are_a_mistake_of_the_configuration(
    world: World,
) -> None:
    config_file, _ = world.configure()
    code, said = await serve_to_the_end(config_file, POD_NAME="Wattbalance_0", POD_NAMESPACE="dc.1")
    assert code == 2
    assert "Traceback" not in said
    want_starts = ["POD_NAME: expected the pod's name (", "POD_NAMESPACE: expected a namespace ("]
    lines = [line for line in said.splitlines() if not line.startswith("{")]
    assert [line.startswith(want) for line, want in zip(lines, want_starts, strict=True)] == [True, True]
    assert [line.partition("got ")[2] for line in lines] == ["'Wattbalance_0'", "'dc.1'"]


async def test_a_port_that_is_taken_is_said_in_one_line(world: World) -> None:
    config_file, port = world.configure()
    with socket.create_server(("127.0.0.1", port)):
        code, said = await serve_to_the_end(config_file)
    assert code == 1
    assert "Traceback" not in said
    lines = [json.loads(line) for line in said.splitlines()]
    want = f"cannot run: listeners[0] (127.0.0.1:{port}): cannot be bound: Address already in use; end what "
    assert [line["message"].startswith(want) for line in lines if line["level"] in ("error", "critical")] == [
        True
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_login_plugin_that_hangs_does_not_hold_the_end(world: World, number: signal.Signals) -> None:
    began = world.folder / "began"
    config_file, _ = world.configure()
    kubeconfig = yaml.safe_load((world.folder / "kubeconfig").read_text())
    # `exec`, or the shell's child would outlive it.
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "Never",
        "command": "/bin/sh",
        "args": ["-c", f"echo $$ > {began}.new; mv {began}.new {began}; exec sleep 600"],
    }
    kubeconfig["users"][0]["user"] = {"exec": plugin}
    (world.folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config_file)
    )
    try:
        async with asyncio.timeout(HANG_S):
            while not began.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        process.send_signal(number)
        async with asyncio.timeout(HANG_S):
            # 1 would mean that it waited for the login plugin's own limit.
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(began.read_text()), signal.SIGKILL)


class Served:
    """`serve` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log_file: Path, url: str) -> None:
        self.process = process
        self.url = url
        self._log_file = log_file

    @property
    def log(self) -> str:
        """What it said."""
        return self._log_file.read_text(errors="replace")

    async def end(self) -> int:
        """Wait for its end; SIGTERM came before."""
        async with asyncio.timeout(HANG_S):
            return await self.process.wait()


async def is_ready(url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession(url) as session, session.get("/readyz") as answer:
            return answer.status == 200
    return False


@contextlib.asynccontextmanager
async def served(world: World, plant: str = "", **changes: object) -> AsyncIterator[Served]:
    """Run `serve` until it is ready and for the block; `plant` is Python that it runs before."""
    log_file = world.folder / "serve.log"
    for _ in range(ATTEMPTS):
        config_file, port = world.configure(**changes)
        code = f"{plant}\nfrom scheduler.cli import main\nmain(['serve', '--config', {str(config_file)!r}])"
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=log)
        running = Served(process, log_file, f"http://127.0.0.1:{port}")
        try:
            async with asyncio.timeout(HANG_S):
                while process.returncode is None and not await is_ready(running.url):
                    await asyncio.sleep(0.05)
            if process.returncode is not None and "in use" in running.log:
                # Somebody took the port meanwhile.
                continue
            assert process.returncode is None, running.log
            yield running
            return
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    raise AssertionError(f"no port stayed free: {running.log}")


async def test_a_pipe_as_a_token_file_ends_the_start_with_its_name(world: World) -> None:
    config_file, _ = world.configure()
    os.mkfifo(world.folder / "pipe")
    kubeconfig = world.folder / "kubeconfig"
    whole = yaml.safe_load(kubeconfig.read_text())
    whole["users"][0]["user"] = {"tokenFile": "pipe"}
    kubeconfig.write_text(yaml.safe_dump(whole))
    code, said = await serve_to_the_end(config_file)
    assert code == 2
    assert (
        f"kubeconfig {kubeconfig}: users[].user.tokenFile: {world.folder / 'pipe'}: expected a file" in said
    )


# What stands on a dead mount looks like a file.
BLIND = """
from scheduler.telemetry import broker
broker.check_regular = lambda file: None
"""


async def test_a_password_file_that_is_never_read_through_does_not_hold_the_end(world: World) -> None:
    fifo, user = world.folder / "password", world.folder / "user"
    os.mkfifo(fifo)
    user.write_text("u")
    broker = {"broker": "mqtt://127.0.0.1:1", "username_file": str(user), "password_file": str(fifo)}
    async with served(world, BLIND, telemetry={**broker, "wait_at_start": "0s"}) as running:
        running.process.terminate()
        assert await running.end() == 0, running.log


# Each takes the place of a task of ours: one that swallows every cancellation, one that then blocks the loop.
DEAF = """
import asyncio, time
from scheduler import app
async def tick(daemon):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            {then}
app.Daemon._tick = tick
"""
# The same end, though nobody asked for it.
FAILS = """
def see(daemon, event, see=app.Daemon._see_pod):
    if getattr(getattr(event, "object", None), "metadata", None) and event.object.metadata.name == "poison":
        raise RuntimeError("planted")
    see(daemon, event)
app.Daemon._see_pod = see
"""


async def ends_within_its_grace(world: World, then: str) -> None:
    # A quarter of the grace is for the Lease: as much as the server that takes it back may stand still for.
    async with served(world, DEAF.format(then=then), shutdown={"grace": "8s"}) as running:
        await eventually(lambda: any(each["spec"].get("holderIdentity") for each in world.api.list("leases")))
        running.process.terminate()
        assert await running.end() == 1, running.log
        assert "not ended within the grace" in running.log
        assert "store.tick" in running.log.splitlines()[-1]
        # Whatever hangs, the others are told at once who leads.
        [lease] = world.api.list("leases")
        assert not lease["spec"].get("holderIdentity")


async def test_a_task_that_never_ends_does_not_hold_the_end_beyond_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "deaf", tmp_path / "blocked"
    for folder in folders:
        folder.mkdir()
    async with cluster(folders[0], monkeypatch) as one, cluster(folders[1], monkeypatch) as other:
        # Both at once: each waits its grace out.
        await asyncio.gather(
            ends_within_its_grace(one, "pass"), ends_within_its_grace(other, "time.sleep(3600)")
        )


async def test_a_failing_task_ends_all_within_the_grace_too(world: World) -> None:
    async with served(world, DEAF.format(then="pass") + FAILS, shutdown={"grace": "1s"}) as running:
        world.add_pod("poison")
        assert await running.end() == 1, running.log
        assert "planted" in running.log
        assert "store.tick" in running.log.splitlines()[-1]


@pytest.fixture
async def reachable(world: World) -> tuple[list[dict[str, object]], ssl.SSLContext]:
    """Listeners with an extender that is reachable from elsewhere, and a client's context for it."""
    authority = Authority()
    files = {name: world.folder / f"{name}.pem" for name in ("cert_file", "key_file", "client_ca_file")}
    authority.issue("wattbalance", files["cert_file"], files["key_file"])
    authority.write(files["client_ca_file"])
    context = ssl.create_default_context(cafile=str(files["client_ca_file"]))
    context.load_cert_chain(files["cert_file"], files["key_file"])
    tls = {name: str(path) for name, path in files.items()}
    listeners: list[dict[str, object]] = [
        {"address": "127.0.0.1:0", "serves": ["api", "metrics", "probes"]},
        # Loopback as the kernel reads it, and a name like any other to us.
        {"address": "127.1:0", "serves": ["extender"], "tls": tls},
    ]
    return listeners, context


async def test_losing_the_lease_closes_connections_that_are_kept(
    world: World, reachable: tuple[list[dict[str, object]], ssl.SSLContext]
) -> None:
    listeners, context = reachable
    world.add_node("n1")
    world.add_pod("p")
    body = json.dumps({"Pod": world.api.get("pods", "p", "default"), "NodeNames": ["n1"]}).encode()
    asked = b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    # It ends with the first frozen renewal, and not while it is asked, even on a machine that stalls.
    lease = {"duration": "8s", "renew_deadline": "6s", "retry": "200ms"}
    async with world.replica(listeners=listeners, lease=lease) as leader:
        await leader.knows("n1")
        await leader.leads()
        port = leader.daemon.listeners.addresses[1][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(asked)
            async with asyncio.timeout(HANG_S):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"n1" in await reader.readuntil(b"}")
            world.api.faults.frozen = True
            await eventually(lambda: not leader.daemon.leadership.leads())
            # Who asks on it again would be refused, and sent away; who is silent must not keep it either. Within
            # half of what any silent connection may last.
            async with asyncio.timeout(SILENT_S / 2):
                await reader.read()
        finally:
            world.api.faults.frozen = False
            writer.transport.abort()


def waits(daemon: app.Daemon) -> bool:
    """Whether everything but the broker is there."""
    why = daemon.knowledge.not_ready()
    assert why is not None
    return why == "waiting for the broker"


async def test_the_broker_is_waited_for_at_start(world: World) -> None:
    telemetry = {"broker": f"mqtt://127.0.0.1:{free_port()}", "wait_at_start": "1h"}
    async with world.replica(ready=False, telemetry=telemetry) as replica:
        await eventually(lambda: waits(replica.daemon))
        async with replica.session.get("/readyz") as answer:
            assert answer.status == 503
            assert "waiting for the broker" in await answer.text()
        async with replica.session.post("/scheduler/filter", json={}) as answer:
            assert answer.status == 503


@pytest.mark.parametrize("silent", [False, True])
async def test_the_broker_is_waited_for_no_longer_than_the_limit(world: World, *, silent: bool) -> None:
    # It takes connections and says nothing, or nobody is there.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        telemetry = {"broker": f"mqtt://127.0.0.1:{port}", "wait_at_start": "500ms"}
        async with served(world, telemetry=telemetry) as running:
            async with aiohttp.ClientSession(running.url) as session, session.get("/readyz") as answer:
                assert answer.status == 200
                assert (await answer.json(content_type=None))["degraded"] == ["broker_away"]
            running.process.terminate()
            assert await running.end() == 0, running.log
            assert "serving without telemetry" in running.log


async def test_a_broker_that_comes_ends_the_wait(world: World, tmp_path: Path) -> None:
    with run_mosquitto(tmp_path) as broker:
        broker.freeze()
        telemetry = {"broker": broker.url, "wait_at_start": "1h"}
        async with world.replica(ready=False, telemetry=telemetry) as replica:
            await eventually(lambda: waits(replica.daemon))
            broker.thaw()
            await eventually(lambda: replica.daemon.knowledge.not_ready() is None)
            assert replica.daemon.knowledge.degraded() == []


async def test_garbage_does_not_make_a_silent_broker_look_well(world: World, tmp_path: Path) -> None:
    topic = "wattbalance/v1/test/nodes/gpu-a"
    with run_mosquitto(tmp_path) as broker:
        telemetry = {"broker": broker.url, "wait_at_start": "1h"}
        async with world.replica(telemetry=telemetry) as replica:
            knowledge, drops = replica.daemon.knowledge, replica.daemon.handler.drops
            world.add_node("gpu-a")
            await eventually(lambda: knowledge.degraded() == ["broker_silent"])
            async with aiomqtt.Client(broker.host, broker.port) as client:
                await client.publish(f"{topic}/samples", b"\x00 garbage", qos=1)
                await eventually(lambda: drops["garbage"] == 1)
                assert knowledge.degraded() == ["broker_silent"]
                await client.publish(f"{topic}/status", b"online", qos=1)
                await eventually(lambda: knowledge.degraded() == [])


def test_the_broker_is_waited_for_10_s_if_nothing_is_said() -> None:
    assert float(TelemetrySettings(broker=BrokerUrl("mqtt://127.0.0.1:1")).wait_at_start_s) == 10


async def test_a_replica_that_is_not_ready_does_not_lead(world: World) -> None:
    world.add_node("n1")
    world.api.create("pods", {"metadata": {"name": "a", "namespace": NAMESPACE}})
    world.api.faults.forbidden.add(("list", "nodes"))
    async with world.replica("a", ready=False) as replica:
        elector = replica.daemon.leadership.elector
        assert elector is not None
        await eventually(lambda: Kind.NODE in replica.daemon.cluster.refused)
        await eventually(lambda: replica.daemon.cluster.counters.requests["get"] >= 3)
        assert not replica.daemon.leadership.leads()
        assert not replica.labelled(world.api)
        assert not world.api.list("leases")
        world.api.faults.forbidden.clear()
        await replica.leads()
        await eventually(lambda: replica.labelled(world.api))


async def test_a_question_whose_body_is_still_coming_at_sigterm_is_answered(world: World) -> None:
    body = json.dumps({"Pod": {"metadata": {"name": "p", "uid": "u"}}, "NodeNames": ["n1"]}).encode()
    head = b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with served(world, shutdown={"grace": f"{HANG_S:.0f}s"}) as running:
        host, port = "127.0.0.1", urlsplit(running.url).port
        reader, writer = await asyncio.open_connection(host, port)
        idle, idle_writer = await asyncio.open_connection(host, port)
        try:
            # Once kept, since a leader that stops leading closes what it keeps.
            writer.write(head + body)
            async with asyncio.timeout(HANG_S):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b'"Error":""}')
            writer.write(head + body[:20])
            await is_ready(running.url)
            running.process.terminate()
            async with asyncio.timeout(HANG_S / 2):
                # The doors are closed, and with them whoever asks nothing.
                assert await idle.read() == b""
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(host, port)
                writer.write(body[20:])
                # Who stops decides nothing any more; it says so, and that this answer is the last.
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 503"), answer
                assert b"Connection: close" in answer
                assert b"stopping" in answer
                # Nothing is in flight any more: long before the grace is over.
                assert await running.process.wait() == 0, running.log
        finally:
            writer.transport.abort()
            idle_writer.transport.abort()


# A callback of the loop's own that fails, as one of a client library may.
FAULT = """
import asyncio
async def tick(daemon):
    asyncio.get_running_loop().call_soon(int, "planted")
    await asyncio.sleep(3600)
app.Daemon._tick = tick
"""


async def test_what_fails_in_the_loop_is_a_line_of_the_log_and_no_traceback(world: World) -> None:
    async with served(world, "from scheduler import app" + FAULT) as running:
        await eventually(lambda: "planted" in running.log)
        running.process.terminate()
        assert await running.end() == 0, running.log
        assert "Traceback" not in running.log
        [told] = [line for line in map(json.loads, running.log.splitlines()) if line["level"] == "error"]
        assert told["message"].startswith("Exception in callback ")
        assert (told["exception"], "planted" in told["text"]) == ("ValueError", True)


async def degraded(replica: Replica) -> list[str]:
    """What `/readyz` and the metrics say is missing, beside the broker, which no test here has."""
    async with replica.session.get("/readyz") as answer:
        said = list((await answer.json(content_type=None))["degraded"])
    counted = [reason for reason, holds in sources(replica.daemon).degraded().items() if holds]
    assert sorted(said) == sorted(counted)
    return [word for word in said if word != "broker_away"]


@pytest.mark.parametrize("trouble", ["empty", "missing", "mismatched"])
async def test_a_certificate_that_cannot_be_read_again_is_degraded_until_one_can(
    world: World, trouble: str, reachable: tuple[list[dict[str, object]], ssl.SSLContext]
) -> None:
    listeners, _ = reachable
    authority, cert_file, key_file = (
        Authority(),
        world.folder / "cert_file.pem",
        world.folder / "key_file.pem",
    )
    async with world.replica(listeners=listeners, ready=False) as replica:
        await eventually(lambda: len(replica.daemon.listeners.addresses) == len(listeners))
        port = replica.daemon.listeners.addresses[0][1]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            probed = Replica(replica.daemon, session)
            assert await degraded(probed) == []
            if trouble == "empty":
                cert_file.write_text("")
            elif trouble == "missing":
                cert_file.unlink()
            else:
                authority.issue("wattbalance", cert_file, world.folder / "another.key")
            # It looks by itself every ten seconds.
            for _ in range(2):
                replica.daemon.listeners.check_certificates()
                assert await degraded(probed) == ["certificate_not_reloaded"]
            authority.issue("wattbalance", cert_file, key_file)
            replica.daemon.listeners.check_certificates()
            assert await degraded(probed) == []


async def test_a_leader_that_cannot_take_its_label_says_so_once_for_each_cause(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leadership, "RELABEL_S", 0.01)

    def told() -> list[str]:
        return [
            each.getMessage()
            for each in caplog.records
            if "cannot move the leader's label" in each.getMessage()
        ]

    async def tried() -> None:
        """Wait for some more attempts."""
        before = sum(replica.daemon.cluster.counters.requests.values())
        await eventually(lambda: sum(replica.daemon.cluster.counters.requests.values()) >= before + 5)

    caplog.set_level("INFO")
    async with world.replica("nobody-of-this-name") as replica:
        await eventually(replica.daemon.leadership.lacks_label)
        await tried()
        assert await degraded(replica) == ["leader_label"]
        assert len(told()) == 1, told()

        world.api.faults.forbidden.add(("patch", "pods"))
        await eventually(lambda: len(told()) == 2)
        await tried()
        assert "leader_label" in await degraded(replica)
        assert len(told()) == 2, told()

        world.add_pod("nobody-of-this-name", namespace=NAMESPACE)
        world.api.faults.forbidden.clear()
        await eventually(lambda: replica.labelled(world.api))
        await eventually(lambda: not replica.daemon.leadership.lacks_label())
        assert "leader_label" not in await degraded(replica)
        assert "the leader's label can be moved again" in caplog.messages


async def test_a_lease_that_cannot_be_taken_is_told_until_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lease = {"namespace": "not-there", "duration": "60s", "renew_deadline": "40s", "retry": "200ms"}
    async with world.replica(lease=lease) as replica:
        await eventually(replica.daemon.leadership.lacks_lease)
        assert "lease" in await degraded(replica)
        [told] = [each for each in caplog.messages if each.startswith("Lease not-there/wattbalance: ")]
        assert "kubectl create namespace not-there" in told
        assert not replica.daemon.leadership.leads()
        world.api.create("namespaces", {"metadata": {"name": "not-there"}})
        await replica.leads()
        assert "lease" not in await degraded(replica)


async def test_readiness_that_comes_and_goes_is_a_line_each(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[tuple[str, str]]:
        return [
            (each.levelname, each.getMessage())
            for each in caplog.records
            if each.name == "scheduler.knowledge"
        ]

    caplog.set_level("INFO")
    cluster = yaml.safe_load(world.configure()[0].read_text())["cluster"]
    # Long enough for a machine that stalls, short enough to wait for.
    async with world.replica(cluster={**cluster, "stale": "5s"}) as replica:
        await eventually(lambda: len(told()) == 1)
        world.api.faults.frozen = True
        await eventually(lambda: len(told()) == 2)
        world.api.faults.frozen = False
        await eventually(lambda: len(told()) == 3)
        assert replica.daemon.knowledge.not_ready() is None
    ready = ("INFO", "ready")
    assert told() == [ready, ("WARNING", "not ready any more: the API server is silent"), ready]
