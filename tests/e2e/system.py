"""The whole product on one machine: a real control plane, a real broker, `serve` and agents as real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from scheduler.simulate.ports import free_port
from tests.brokers import Broker, run_mosquitto
from tests.controlplane import ControlPlane, Daemon, node_manifest, pod_manifest

# Generous: shared machines are slow now and then, and nothing here measures time.
PATIENCE_S = 120.0
# Of one request: what stands still answers when it goes on.
ANSWER_S = 30.0
SCHEDULER_NAME = "wattbalance"
# The names of deploy/rbac.yaml: whoever `serve` is in these tests, it may do what is written there and no more.
RBAC = Path(__file__).parents[2] / "deploy" / "rbac.yaml"
NAMESPACE = "wattbalance"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:wattbalance"
ACCOUNT_GROUPS = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
POD_LISTS = ("/api/v1/namespaces/default/pods", f"/api/v1/namespaces/{NAMESPACE}/pods")
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/wattbalance"


def wait_for(what: str, check: Callable[[], object], patience_s: float = PATIENCE_S) -> Any:
    """Call `check` until it gives something true; what it raises counts as not yet."""
    until_s = time.monotonic() + patience_s
    last: object = None
    while time.monotonic() < until_s:
        try:
            last = check()
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            last = error
        if last and not isinstance(last, Exception):
            return last
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {patience_s:g} s; last: {last!r}")


@dataclass
class Process:
    """One of our own processes."""

    name: str
    popen: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.log_file.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL; returns its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()


@dataclass
class Replica:
    """One running `wattbalance serve`: everything on one loopback port."""

    process: Process
    port: int
    pod_name: str

    def get(self, path: str) -> Any:
        """GET a JSON page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=ANSWER_S) as answer:
            return json.loads(answer.read())

    def text(self, path: str) -> str:
        """GET a page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=ANSWER_S) as answer:
            return str(answer.read().decode())

    def ready(self) -> dict[str, Any] | None:
        """The body of /readyz if it is ready."""
        try:
            return dict(self.get("/readyz"))
        except urllib.error.HTTPError as error:
            error.close()
            return None

    def post(self, verb: str, body: Mapping[str, object]) -> Any:
        """Ask the extender."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/scheduler/{verb}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.loads(answer.read())


def readiness(replica: Replica) -> dict[str, Any]:
    """The body of /readyz, whatever its status is."""
    try:
        return dict(replica.get("/readyz"))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.loads(error.read()))


def until_seen(replica: Replica, *nodes: str) -> None:
    """Wait until a replica knows these nodes."""
    wait_for(
        f"{nodes} are known", lambda: set(nodes) <= {n["name"] for n in replica.get("/api/v1/nodes")["items"]}
    )


def view(replica: Replica, name: str) -> dict[str, Any]:
    """A node as the API shows it; KeyError if it is not there."""
    for node in replica.get("/api/v1/nodes")["items"]:
        if node["name"] == name:
            return dict(node)
    raise KeyError(name)


def metric(replica: Replica, name: str, **labels: str) -> float:
    """The figure of one series; KeyError if it is not there."""
    for family in text_string_to_metric_families(replica.text("/metrics")):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise KeyError(name, labels)


@dataclass
class System:
    """A control plane, a broker, and what was started on them."""

    plane: ControlPlane
    broker: Broker
    folder: Path
    audit_file: Path | None = None
    user: str = ACCOUNT
    """As whom `serve` asks the API server."""
    processes: list[Process] = field(default_factory=list)

    def config(self, port: int, **changes: object) -> dict[str, object]:
        """The daemon's configuration, as a person would write it."""
        base: dict[str, object] = {
            "cluster": {"name": "test", "kubeconfig": str(self.plane.kubeconfig(self.user))},
            "telemetry": {"broker": self.broker.url, "stale": "10s"},
            "pools": [
                {"name": "dc-1", "kind": "on-prem", "selector": {"site": "dc-1"}},
                {"name": "aws-a", "kind": "cloud", "selector": {"site": "aws-a"}},
            ],
            "listeners": [
                {"address": f"127.0.0.1:{port}", "serves": ["extender", "api", "metrics", "probes"]}
            ],
            # Short, since tests wait for it to end; a leader that stands still for two seconds keeps it.
            "lease": {"duration": "8s", "renew_deadline": "6s", "retry": "500ms"},
            "shutdown": {"grace": "5s"},
        }
        return base | changes

    def start(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> Process:
        """Start `wattbalance …` as a process of its own."""
        log_file = self.folder / f"{name}-{len(self.processes)}.log"
        with log_file.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "scheduler.cli", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        process = Process(name, popen, log_file)
        self.processes.append(process)
        return process

    def serve(self, pod_name: str = "", port: int | None = None, **changes: object) -> Replica:
        """Start a replica and wait until it is ready."""
        replica = self.launch(pod_name, port, **changes)
        self.until_ready(replica)
        return replica

    def launch(self, pod_name: str = "", port: int | None = None, **changes: object) -> Replica:
        """Start a replica; it may not be ready yet."""
        port = port or free_port()
        path = self.folder / f"config-{port}.yaml"
        path.write_text(yaml.safe_dump(self.config(port, **changes)))
        env = {"POD_NAMESPACE": NAMESPACE, "POD_NAME": pod_name}
        process = self.start("serve", ["serve", "--config", str(path)], env)
        return Replica(process, port, pod_name)

    def until_ready(self, replica: Replica) -> dict[str, Any]:
        """Wait for /readyz; a replica that ended fails at once with its log."""

        def ready() -> object:
            if replica.process.popen.poll() is not None:
                raise AssertionError(
                    f"serve ended with {replica.process.popen.returncode}:\n{replica.process.log}"
                )
            return replica.ready()

        try:
            return dict(wait_for("serve is ready", ready))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{replica.process.log[-4000:]}") from error

    def scheduler(
        self, ports: int | list[int], *, ignorable: bool = False, scheme: str = "http", **extender: object
    ) -> Daemon:
        """Start a real kube-scheduler that asks us."""
        given: dict[str, object] = {
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "preemptVerb": "preempt",
            "weight": 1,
            "nodeCacheCapable": True,
            "ignorable": ignorable,
            # A question that was given up would be asked twice, and counted twice.
            "httpTimeout": "30s",
            **extender,
        }
        urls = [ports] if isinstance(ports, int) else ports
        return self.plane.start_scheduler(
            {
                "podInitialBackoffSeconds": 1,
                "podMaxBackoffSeconds": 3,
                "percentageOfNodesToScore": 100,
                "profiles": [{"schedulerName": SCHEDULER_NAME}],
                "extenders": [
                    {"urlPrefix": f"{scheme}://127.0.0.1:{port}/scheduler", **given} for port in urls
                ],
            }
        )

    def add_node(self, name: str, gpus: int = 8, /, *, site: str = "dc-1", **labels: str) -> None:
        """Create a ready node."""
        self.plane.apply(node_manifest(name, gpus=gpus, labels={"site": site, **labels}))

    def add_pod(
        self, name: str, gpus: int = 1, *, annotations: Mapping[str, str] | None = None, **spec: object
    ) -> None:
        """Create a pod that our scheduler must place."""
        manifest = pod_manifest(name, gpus=gpus, scheduler=SCHEDULER_NAME)
        metadata, given = manifest["metadata"], manifest["spec"]
        assert isinstance(metadata, dict)
        assert isinstance(given, dict)
        metadata["annotations"] = dict(annotations or {})
        given.update(spec)
        self.plane.apply(manifest)

    def add_own_pod(self, name: str, node: str = "") -> None:
        """Create the pod that a replica takes itself for; the leader labels it. On a node it runs."""
        self.plane.apply(pod_manifest(name, namespace=NAMESPACE, gpus=0, node=node))
        if node:
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status"
            self.plane.request("PATCH", path, {"status": {"phase": "Running"}})

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """Read a pod."""
        found = self.plane.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        assert isinstance(found, dict)
        return found

    def node_of(self, name: str) -> str:
        """Where a pod is bound; empty if it is not."""
        return str(self.pod(name)["spec"].get("nodeName", ""))

    def bound(self, name: str) -> str:
        """Wait until a pod is bound and say where."""
        return str(wait_for(f"pod {name} is bound", lambda: self.node_of(name)))

    def delete_pod(self, name: str) -> None:
        """Delete a pod at once."""
        self.plane.request(
            "DELETE",
            f"/api/v1/namespaces/default/pods/{name}",
            {"gracePeriodSeconds": 0, "kind": "DeleteOptions"},
        )

    def requests(self) -> list[dict[str, Any]]:
        """Our requests so far as the API server wrote them down (audit.k8s.io/v1), oldest first."""
        # Tests ask as the same user, by another client.
        return [request for request in self._audited() if request.get("userAgent") == "wattbalance"]

    def bound_pods(self) -> list[str]:
        """The pod of each Binding that the API server took, ours and kube-scheduler's, oldest first."""
        return [
            str(request["objectRef"]["name"])
            for request in self._audited()
            if request.get("objectRef", {}).get("subresource") == "binding"
            and request["responseStatus"]["code"] == HTTPStatus.CREATED
        ]

    def _audited(self) -> list[dict[str, Any]]:
        assert self.audit_file is not None, "not audited"
        if not self.audit_file.exists():
            return []
        # A line may be half written yet.
        whole, _, _ = self.audit_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def clear(self) -> None:
        """Stop what was started, and delete all pods and nodes and the Lease."""
        while self.processes:
            self.processes.pop().stop()
        # One whose holder was killed would make the next replica wait.
        with contextlib.suppress(urllib.error.HTTPError):
            self.plane.request("DELETE", LEASE)
        for path in (*POD_LISTS, "/api/v1/nodes"):
            listed = self.plane.request("GET", path)
            assert isinstance(listed, dict)
            for item in listed["items"]:
                with contextlib.suppress(urllib.error.HTTPError):
                    self.plane.request(
                        "DELETE", f"{path}/{item['metadata']['name']}", {"gracePeriodSeconds": 0}
                    )


@contextlib.contextmanager
def run_system(folder: Path, *, audited: bool = False) -> Iterator[System]:
    """Start the control plane, with our role in it, and the broker; stop all at the end.

    `audited`: the API server writes down each of our requests and of anybody's Bindings, for `System.requests` and
    `System.bound_pods`.
    """
    audit_file = folder / "audit.log" if audited else None
    plane = ControlPlane(
        users={ACCOUNT: ACCOUNT_GROUPS}, apiserver_args=_audit_args(audit_file) if audit_file else ()
    )
    with plane, run_mosquitto(folder) as broker:
        plane.apply_file(RBAC)
        system = System(plane, broker, folder, audit_file)
        try:
            yield system
        finally:
            while system.processes:
                system.processes.pop().stop()


def _audit_args(file: Path) -> list[str]:
    policy = file.with_suffix(".policy.yaml")
    rules: list[dict[str, object]] = [
        {"level": "Metadata", "users": [ACCOUNT], "omitStages": ["RequestReceived"]},
        # Whoever binds.
        {
            "level": "Metadata",
            "resources": [{"group": "", "resources": ["pods/binding"]}],
            "omitStages": ["RequestReceived"],
        },
        {"level": "None"},
    ]
    policy.write_text(yaml.safe_dump({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={file}"]
