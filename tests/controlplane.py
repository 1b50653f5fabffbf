"""A real etcd and kube-apiserver on loopback, and on demand kube-scheduler and kube-controller-manager.

The binaries are those in $KUBEBUILDER_ASSETS, the ecosystem's usual name for such a folder. Everything is plain
synchronous code; from a coroutine use `await asyncio.to_thread(plane.start)` where the loop must not stand still.
Every process is stopped by its own id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import yaml

from scheduler.simulate.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

Json = dict[str, object]

WHY_NOT = "KUBEBUILDER_ASSETS is unset: no real kube-apiserver to test on"
# The first start of the API server writes its bootstrap roles: 3-6 s on a quiet machine.
START_LIMIT_S = 120.0
# How long a SIGTERM may take, before a SIGKILL helps; that one needs no more than a machine that goes on.
STOP_LIMIT_S, KILL_LIMIT_S = 10.0, 60.0
_PLURALS = {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"}
_CLUSTER_SCOPED = {
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "PriorityClass",
    "PersistentVolume",
    "CustomResourceDefinition",
    "ResourceSlice",
    "DeviceClass",
}


def assets() -> Path | None:
    """The folder of the binaries, or None."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(folder) if folder and (Path(folder) / "kube-apiserver").exists() else None


def scheduler_version() -> tuple[int, ...]:
    """Of kube-scheduler: (1, 20, 2); (0,) where there is none."""
    folder = assets()
    if folder is None:
        return (0,)
    said = subprocess.run([str(folder / "kube-scheduler"), "--version"], check=True, capture_output=True)
    numbers = said.stdout.decode().partition(" v")[2].partition("-")[0].strip()
    return tuple(int(number) for number in numbers.split("."))


@dataclass(slots=True)
class Daemon:
    """One running program."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End it, gently at first."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # A stopped process would not see the SIGTERM.
                self.process.send_signal(signal.SIGCONT)
                self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.wait(KILL_LIMIT_S)

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self.process.kill()
        self.process.wait(KILL_LIMIT_S)

    def pause(self) -> None:
        """SIGSTOP: connected and silent. Returns when all its threads stand still: a busy machine takes a while."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(_state(task) != "T" for task in tasks.iterdir()):
            time.sleep(0.01)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def said(self) -> str:
        """All of its log so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 15) -> str:
        """The end of its log, for messages."""
        return "\n".join(self.said.splitlines()[-lines:])


def _state(task: Path) -> str:
    """The state of a thread: T is stopped."""
    try:
        # After the name, which stands in brackets and may hold anything.
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"


@dataclass
class ControlPlane:
    """Start with `start()` or as a context manager; `stop()` ends all and removes the folder.

    `users` maps a user name to its groups; each gets a token. `admin` is there always.
    """

    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    disable_admission: str = "ServiceAccount,TaintNodesByCondition"
    """Without TaintNodesByCondition a node made by a test is schedulable at once."""
    apiserver_args: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Choose ports and tokens; nothing runs yet."""
        self._tokens = {"admin": "admin-token"} | {user: f"token-{n}" for n, user in enumerate(self.users)}
        self._daemons: list[Daemon] = []
        self._etcd_port, self._peer_port, self._port = free_port(), free_port(), free_port()
        self._folder: Path | None = None
        self.apiserver: Daemon | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def folder(self) -> Path:
        """Where data, certificates and logs are."""
        assert self._folder is not None, "not started"
        return self._folder

    @property
    def url(self) -> str:
        """Base URL."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca_file(self) -> Path:
        """Who signed the API server's certificate."""
        return self.folder / "certs" / "apiserver.crt"

    @property
    def admin_token(self) -> str:
        """A token of system:masters."""
        return self._tokens["admin"]

    def token(self, user: str) -> str:
        """The token of one of `users`."""
        return self._tokens[user]

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start etcd and the API server and wait until it is ready."""
        self._folder = Path(tempfile.mkdtemp(prefix="controlplane-"))
        try:
            rows = ["admin-token,admin,admin,system:masters"] + [
                f'{self._tokens[user]},{user},{user},"{",".join(groups)}"'
                for user, groups in self.users.items()
            ]
            (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
            openssl = shutil.which("openssl")
            assert openssl, "openssl is needed to make the service account key"
            key = self.folder / "sa.key"
            subprocess.run([openssl, "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
            etcd_url, peer_url = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
            self._spawn(
                "etcd",
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={etcd_url}",
                f"--advertise-client-urls={etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--unsafe-no-fsync",
            )
            self.start_apiserver()
        except BaseException:
            self.stop()
            raise

    def start_apiserver(self) -> None:
        """Start the API server, again too: same port, certificate and etcd."""
        key = self.folder / "sa.key"
        self.apiserver = self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder / 'certs'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--disable-admission-plugins={self.disable_admission}",
            *self.apiserver_args,
        )
        self._context = None
        ends = time.monotonic() + START_LIMIT_S
        while time.monotonic() < ends:
            for daemon in self._daemons:
                # A test may have stopped a scheduler of its own.
                if daemon.name in {"etcd", "kube-apiserver"} and daemon.process.poll() is not None:
                    msg = f"{daemon.name} ended:\n{daemon.tail()}"
                    raise RuntimeError(msg)
            with contextlib.suppress(OSError, ssl.SSLError):
                if self.request("GET", "/readyz", raw=True) == b"ok":
                    # The bootstrap roles are written after the first ok.
                    self.request(
                        "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:kube-scheduler"
                    )
                    self.request("GET", "/api/v1/namespaces/default")
                    return
            time.sleep(0.2)
        msg = f"kube-apiserver is not ready after {START_LIMIT_S:g} s:\n{self.apiserver.tail()}"
        raise RuntimeError(msg)

    def kill_apiserver(self) -> None:
        """SIGKILL the API server; `start_apiserver` brings it back."""
        assert self.apiserver is not None
        self.apiserver.kill()
        self._daemons.remove(self.apiserver)

    def kubeconfig(self, user: str = "admin") -> Path:
        """Write a kubeconfig for a user and return its path."""
        path = self.folder / f"kubeconfig-{self._tokens[user]}"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)},
                        }
                    ],
                    "users": [{"name": user, "user": {"token": self._tokens[user]}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                    "current-context": "test",
                }
            )
        )
        return path

    def start_scheduler(self, config: Mapping[str, object] | None = None, *, verbosity: int = 0) -> Daemon:
        """Start kube-scheduler; `config` are fields of KubeSchedulerConfiguration (extenders, profiles, …).

        On 1.25 and later give `apiVersion: kubescheduler.config.k8s.io/v1` in it. From verbosity 3 on it writes down
        each node and each bound pod that it comes to know of.
        """
        address = f"127.0.0.1:{free_port()}"
        whole = {
            "apiVersion": "kubescheduler.config.k8s.io/v1beta1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            # Its own default is one fixed port on all interfaces: two at a time would not start.
            "healthzBindAddress": address,
            "metricsBindAddress": address,
            # Without these kube-scheduler asks the API server 50 times a second at most and is what is measured.
            "clientConnection": {"kubeconfig": str(self.kubeconfig()), "qps": 1000, "burst": 2000},
            **(config or {}),
        }
        path = self.folder / f"scheduler-{len(self._daemons)}.yaml"
        path.write_text(yaml.safe_dump(whole))
        return self.start_scheduler_by(path, verbosity=verbosity)

    def start_scheduler_by(self, path: Path, *, verbosity: int = 0) -> Daemon:
        """Start kube-scheduler by a file as it is."""
        flags = (f"--config={path}", "--secure-port=0", "--port=0", f"--v={verbosity}")
        return self._steady(self._spawn("kube-scheduler", *flags))

    def start_controller_manager(self, controllers: str = "*,-nodelifecycle") -> Daemon:
        """Start kube-controller-manager; without the node lifecycle controller, since there are no kubelets."""
        return self._steady(
            self._spawn(
                "kube-controller-manager",
                f"--kubeconfig={self.kubeconfig()}",
                "--use-service-account-credentials=false",
                f"--service-account-private-key-file={self.folder / 'sa.key'}",
                "--leader-elect=false",
                "--secure-port=0",
                "--port=0",
                f"--controllers={controllers}",
            )
        )

    def stop(self) -> None:
        """Stop everything, the last started first."""
        try:
            while self._daemons:
                self._daemons.pop().stop()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def request(
        self, method: str, path: str, body: object = None, *, user: str = "admin", raw: bool = False
    ) -> object:
        """One call by a user. Returns the decoded JSON; raises urllib.error.HTTPError, which is an OSError."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self.ca_file)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._tokens[user]}", "Content-Type": kind},
        )
        with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
            data = answer.read()
        return data if raw else json.loads(data)

    def apply(self, *objects: Mapping[str, object]) -> None:
        """Create objects, and leave alone those that are there already."""
        for item in objects:
            try:
                self.request("POST", collection_path(item), item)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 409:
                        msg = f"{collection_path(item)}: {error.read().decode()}"
                        raise RuntimeError(msg) from error

    def apply_file(self, path: Path) -> None:
        """Create what a YAML file of several documents holds."""
        self.apply(*(item for item in yaml.safe_load_all(path.read_text()) if item))

    def _spawn(self, name: str, *args: str) -> Daemon:
        folder = assets()
        assert folder is not None, WHY_NOT
        log = self.folder / f"{name}-{len(self._daemons)}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(folder / name), *args], stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self.folder
            )
        daemon = Daemon(name, process, log)
        self._daemons.append(daemon)
        return daemon

    def _steady(self, daemon: Daemon) -> Daemon:
        # It has no port to ask; a wrong configuration ends it within this time.
        try:
            daemon.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return daemon
        msg = f"{daemon.name} ended:\n{daemon.tail()}"
        raise RuntimeError(msg)


def collection_path(item: Mapping[str, object]) -> str:
    """Where an object of a manifest is posted to."""
    version, kind = str(item["apiVersion"]), str(item["kind"])
    metadata = item["metadata"]
    assert isinstance(metadata, dict)
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind) or kind.lower() + ("es" if kind.endswith("s") else "s")
    if kind in _CLUSTER_SCOPED:
        return f"{base}/{plural}"
    return f"{base}/namespaces/{metadata.get('namespace', 'default')}/{plural}"


def node_manifest(name: str, *, gpus: int = 8, labels: Mapping[str, str] | None = None) -> Json:
    """A ready node with GPUs; created with its status in one request, since there is no kubelet."""
    resources = {"cpu": "96", "memory": "1000Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "status": {
            "allocatable": resources,
            "capacity": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def pod_manifest(
    name: str, *, namespace: str = "default", gpus: int = 1, scheduler: str = "nobody", node: str = ""
) -> Json:
    """A pod that asks for GPUs; no scheduler takes it unless one is named."""
    spec: Json = {
        "schedulerName": scheduler,
        "containers": [
            {
                "name": "main",
                "image": "none",
                "resources": {
                    "requests": {"nvidia.com/gpu": str(gpus), "cpu": "1"},
                    "limits": {"nvidia.com/gpu": str(gpus)},
                },
            }
        ],
    }
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
