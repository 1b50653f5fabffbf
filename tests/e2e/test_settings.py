"""What a configuration says is what a cluster sees: filters, models, TLS, and a standby beside its own scheduler."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from scheduler.simulate.ports import free_port
from tests.certs import Authority
from tests.controlplane import pod_manifest
from tests.e2e.conftest import StartAgent
from tests.e2e.system import Replica, System, readiness, until_seen, view, wait_for
from tests.fakes.nvml_stub.stub import NvmlStub

pytestmark = pytest.mark.e2e

QUARANTINE = {"wattbalance.io/quarantine": "xid-79"}
INFERENCE = {"wattbalance.io/workload": "inference"}


def until_fresh(replica: Replica, node: str) -> None:
    wait_for(f"{node} is measured", lambda: view(replica, node)["fresh"])


@pytest.mark.parametrize("on", [True, False])
def test_a_filter_that_is_switched_off_keeps_nobody_away(system: System, *, on: bool) -> None:
    system.add_node("ill-a", **QUARANTINE)
    replica = system.serve(filters={} if on else {"quarantine": False})
    until_seen(replica, "ill-a")
    daemon = system.scheduler(replica.port)
    try:
        system.add_pod("bold")
        if not on:
            assert system.bound("bold") == "ill-a"
            return

        def message() -> str:
            return " ".join(str(each.get("message")) for each in system.pod("bold")["status"]["conditions"])

        wait_for("the pod says why", lambda: "node in quarantine" in message())
        # Once the label is gone, it goes there.
        labels = {"metadata": {"labels": {"wattbalance.io/quarantine": None}}}
        system.plane.request("PATCH", "/api/v1/nodes/ill-a", labels)
        assert system.bound("bold") == "ill-a"
    finally:
        daemon.stop()


def test_at_equal_load_the_model_that_is_said_to_be_faster_is_taken(
    system: System, make_stub: Callable[[str], NvmlStub], start_agent: StartAgent
) -> None:
    models = {"slow-a": "NVIDIA A10", "swift-a": "NVIDIA H100 80GB HBM3", "slow-b": "NVIDIA A10"}
    for node, model in models.items():
        stub = make_stub(node)
        for gpu in range(8):
            stub.set(gpu, "name", model)
            stub.set(gpu, "util_pct", 10)
        system.add_node(node)
        start_agent(node, stub)
    replica = system.serve(models={"*H100*": {"capability": 3.0}})
    for node in models:
        until_fresh(replica, node)
    daemon = system.scheduler(replica.port)
    try:
        # One pod more or less on eight GPUs does not outweigh three times the speed.
        for name in ("quick-1", "quick-2"):
            system.add_pod(name, annotations=INFERENCE)
            assert system.bound(name) == "swift-a"
    finally:
        daemon.stop()


@dataclass
class Site:
    """Certificates of an extender and its clients."""

    folder: Path

    def __post_init__(self) -> None:
        self.servers, self.clients, self.strangers = (Authority(name) for name in ("servers", "clients", "x"))
        self.ca_file = self.servers.write(self.folder / "servers.crt")
        self.client_ca_file = self.clients.write(self.folder / "clients.crt")
        self.servers.issue("extender", self.folder / "tls.crt", self.folder / "tls.key")
        self.clients.issue("scheduler", self.folder / "scheduler.crt", self.folder / "scheduler.key")
        self.strangers.issue("stranger", self.folder / "stranger.crt", self.folder / "stranger.key")

    def listener(self, address: str, *, mutual: bool) -> dict[str, object]:
        """An extender's listener, as in the configuration."""
        tls = {"cert_file": str(self.folder / "tls.crt"), "key_file": str(self.folder / "tls.key")}
        if mutual:
            tls["client_ca_file"] = str(self.client_ca_file)
        return {"address": address, "serves": ["extender"], "tls": tls}

    def client(self, name: str = "") -> dict[str, object]:
        """kube-scheduler's tlsConfig."""
        config = {"caFile": str(self.ca_file)}
        if name:
            config |= {
                "certFile": str(self.folder / f"{name}.crt"),
                "keyFile": str(self.folder / f"{name}.key"),
            }
        return dict(config)

    def ask(self, port: int, verb: str, question: object) -> Any:
        """Ask the extender as the scheduler."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(self.folder / "scheduler.crt", self.folder / "scheduler.key")
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}/scheduler/{verb}",
            data=json.dumps(question).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return json.loads(answer.read())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def serve_tls(system: System, site: Site, address: str, *, mutual: bool, pod_name: str = "") -> Replica:
    """A replica whose extender is behind TLS, and whose other faces are on a port beside it."""
    port = free_port()
    others = {"address": f"127.0.0.1:{port}", "serves": ["api", "metrics", "probes"]}
    return system.serve(pod_name, port, listeners=[others, site.listener(address, mutual=mutual)])


@pytest.mark.parametrize("mutual", [False, True])
def test_kube_scheduler_asks_over_tls(system: System, site: Site, *, mutual: bool) -> None:
    door = free_port()
    system.add_node("tls-a")
    replica = serve_tls(system, site, f"127.0.0.1:{door}", mutual=mutual)
    until_seen(replica, "tls-a")
    daemon = system.scheduler(
        door,
        urlPrefix=f"https://127.0.0.1:{door}/scheduler",
        enableHTTPS=True,
        tlsConfig=site.client("scheduler" if mutual else ""),
    )
    try:
        system.add_pod("safe-1")
        assert system.bound("safe-1") == "tls-a"
        [decision] = replica.get("/api/v1/decisions?pod=safe-1")["items"]
        assert decision["chosen"] == "tls-a"
        # A certificate is replaced while both run; nobody notices.
        want_serial = site.servers.issue("extender", site.folder / "tls.crt", site.folder / "tls.key")

        def serial() -> int:
            pem = ssl.get_server_certificate(("127.0.0.1", door))
            return x509.load_pem_x509_certificate(pem.encode()).serial_number

        if not mutual:
            # A stranger gets no certificate to look at where clients must show one first.
            wait_for("the new certificate is served", lambda: serial() == want_serial)
        system.add_pod("safe-2")
        assert system.bound("safe-2") == "tls-a"
    finally:
        daemon.stop()


@pytest.mark.parametrize("name", ["", "stranger"])
def test_a_kube_scheduler_that_we_do_not_know_is_not_answered(system: System, site: Site, name: str) -> None:
    door = free_port()
    system.add_node("tls-b")
    replica = serve_tls(system, site, f"127.0.0.1:{door}", mutual=True)
    until_seen(replica, "tls-b")
    daemon = system.scheduler(
        door,
        urlPrefix=f"https://127.0.0.1:{door}/scheduler",
        enableHTTPS=True,
        tlsConfig=site.client(name),
    )
    try:
        system.add_pod("locked-out")
        wait_for("kube-scheduler has tried", lambda: system.pod("locked-out")["status"].get("conditions"))
        assert system.node_of("locked-out") == ""
        assert replica.get("/api/v1/decisions")["items"] == []
    finally:
        daemon.stop()


def test_a_standby_answers_its_own_kube_scheduler_over_loopback(system: System) -> None:
    system.add_node("own-b")
    leader = system.serve()
    wait_for("it leads", lambda: readiness(leader)["role"] == "leader")
    standby = system.serve()
    assert readiness(standby)["role"] == "standby"
    until_seen(standby, "own-b")
    daemon = system.scheduler(standby.port)
    try:
        system.add_pod("beside")
        assert system.bound("beside") == "own-b"
    finally:
        daemon.stop()
    [decision] = standby.get("/api/v1/decisions?pod=beside")["items"]
    assert decision["chosen"] == "own-b"
    assert leader.get("/api/v1/decisions")["items"] == []


def test_a_standby_that_others_can_reach_answers_nobody_until_it_leads(system: System, site: Site) -> None:
    system.add_node("far-a")
    system.plane.apply(pod_manifest("far"))
    doors = free_port(), free_port()
    leader = serve_tls(system, site, f"0.0.0.0:{doors[0]}", mutual=True)
    wait_for("it leads", lambda: readiness(leader)["role"] == "leader")
    standby = serve_tls(system, site, f"0.0.0.0:{doors[1]}", mutual=True)
    until_seen(leader, "far-a")
    until_seen(standby, "far-a")
    assert [readiness(each)["role"] for each in (leader, standby)] == ["leader", "standby"]
    question = {"Pod": system.pod("far"), "NodeNames": ["far-a"]}
    assert site.ask(doors[0], "filter", question)["NodeNames"] == ["far-a"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        site.ask(doors[1], "filter", question)
    with refused.value as answer:
        assert answer.code == 503
        # Or Go's client would keep its connection to it.
        assert answer.headers["Connection"] == "close"
        assert "standby" in json.loads(answer.read())["Error"]
    leader.process.stop()
    wait_for("the standby leads", lambda: readiness(standby)["role"] == "leader")
    assert site.ask(doors[1], "filter", question)["NodeNames"] == ["far-a"]
