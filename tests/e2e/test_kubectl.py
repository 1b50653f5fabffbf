"""`kubectl wattbalance …` end to end: a real kubectl, a real API server, a forwarded port, a real daemon behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.controlplane import Daemon
from tests.e2e.kubelet import Kubelet
from tests.e2e.system import NAMESPACE, Replica, System, until_seen, wait_for

pytestmark = pytest.mark.e2e

ASK_ROLE = Path(__file__).parents[2] / "deploy" / "ask-role.yaml"
API_PORT = 9441
RBAC_GROUP = "rbac.authorization.k8s.io"
Pods = dict[str, dict[int, int]]


@pytest.fixture
def ports() -> Pods:
    """What listens on the loopback of each pod."""
    return {}


@pytest.fixture
def kubelet(system: System, ports: Pods, tmp_path: Path) -> Iterator[Kubelet]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the path")
    with Kubelet(tmp_path, ports) as kubelet:
        system.plane.apply(kubelet.node("kubelet"))
        yield kubelet


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    """A path for programs on which both entry points are, as an installation puts them."""
    for name in ("wattbalance", "kubectl-wattbalance"):
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom scheduler.start import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


class Person:
    """Somebody with a kubeconfig of their own; without a name, an administrator."""

    def __init__(
        self, system: System, folder: Path, plugin: str, name: str = "", namespace: str = ""
    ) -> None:
        config = yaml.safe_load(system.plane.kubeconfig().read_text())
        if name:
            config["users"][0]["user"]["as"] = name
        if namespace:
            config["contexts"][0]["context"]["namespace"] = namespace
        self._file = folder / f"kubeconfig-{name}"
        self._file.write_text(yaml.safe_dump(config))
        self._plugin = plugin

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "WATTBALANCE_SERVER"}
        return kept | {"KUBECONFIG": str(self._file), "PATH": self._plugin}

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line.split(), capture_output=True, text=True, timeout=300, check=False, env=self.environment()
        )

    def begins(self, line: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            line.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment()
        )


@pytest.fixture
def person(system: System, tmp_path: Path, plugin: str) -> Callable[..., Person]:
    return lambda name="", namespace="": Person(system, tmp_path, plugin, name, namespace)


def serve_in_a_pod(system: System, ports: Pods, name: str) -> Replica:
    """Start a replica whose api can be reached as that pod's own."""
    system.add_own_pod(name, node="kubelet")
    replica = system.serve(name)
    ports[name] = {API_PORT: replica.port}
    return replica


def labelled(system: System) -> list[str]:
    """Which pods carry the leader's label."""
    listed = system.plane.request(
        "GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=wattbalance.io/role%3Dleader"
    )
    assert isinstance(listed, dict)
    return [item["metadata"]["name"] for item in listed["items"]]


@contextlib.contextmanager
def allowed(
    system: System, user: str, rules: Sequence[Mapping[str, object]], namespace: str = NAMESPACE
) -> Iterator[None]:
    """Give somebody a Role in a namespace, or a ClusterRole, while the block runs."""
    kind = "Role" if namespace else "ClusterRole"
    metadata = {"name": f"e2e-{user}"} | ({"namespace": namespace} if namespace else {})
    base = f"/apis/{RBAC_GROUP}/v1" + (f"/namespaces/{namespace}" if namespace else "")
    head = {"apiVersion": f"{RBAC_GROUP}/v1", "metadata": metadata}
    system.plane.apply(
        {**head, "kind": kind, "rules": list(rules)},
        {
            **head,
            "kind": f"{kind}Binding",
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": kind, "name": metadata["name"]},
            "subjects": [{"kind": "User", "name": user, "apiGroup": RBAC_GROUP}],
        },
    )
    try:
        yield
    finally:
        for plural in (f"{kind.lower()}bindings", f"{kind.lower()}s"):
            system.plane.request("DELETE", f"{base}/{plural}/{metadata['name']}")


def test_a_pod_is_explained_through_the_api_server_by_both_entry_points(
    system: System, kubelet: Kubelet, ports: Pods, person: Callable[..., Person]
) -> None:
    replica = serve_in_a_pod(system, ports, "wattbalance-0")
    wait_for("it leads", lambda: labelled(system) == ["wattbalance-0"])
    system.add_node("gpu-1")
    until_seen(replica, "gpu-1")
    scheduler: Daemon = system.scheduler(replica.port)
    try:
        system.add_pod("train", 4)
        system.bound("train")
    finally:
        scheduler.stop()
    wait_for("it is seen bound", lambda: replica.get("/api/v1/explain/default/train")["state"] == "bound")
    somebody = person(namespace="default")
    for program in ("kubectl wattbalance", "wattbalance", "kubectl-wattbalance"):
        done = somebody.types(f"{program} explain train")
        assert done.returncode == 0, done.stderr
        assert "Pod       default/train" in done.stdout
        assert "bound to gpu-1" in done.stdout
        assert done.stderr == ""
    done = somebody.types("kubectl wattbalance nodes -o wide")
    assert done.returncode == 0, done.stderr
    assert any(line.split()[:5] == ["gpu-1", "dc-1", "unread", "8", "4"] for line in done.stdout.splitlines())
    assert kubelet.asked == [(NAMESPACE, "wattbalance-0")] * 4
    # The namespace of the context, as everywhere in kubectl.
    done = person(namespace="ml").types("kubectl wattbalance explain train")
    assert done.returncode == 1
    assert (
        "no pod ml/train wants or holds GPUs; one of this name is, or was, in namespace default"
        in done.stderr
    )
    wait_for("no port is forwarded any more", lambda: kubelet.connected == 0)


def test_the_tabulator_key_offers_what_the_cluster_has(
    system: System, person: Callable[..., Person], tmp_path: Path
) -> None:
    system.add_pod("tab-0")
    system.add_pod("tab-1")
    # kubectl calls a program of this name for its plugin.
    program = tmp_path / "kubectl_complete-wattbalance"
    start = "from scheduler.start import complete_for_kubectl as main"
    program.write_text(f"#!{sys.executable}\nimport sys\n{start}\nsys.exit(main())\n")
    program.chmod(0o755)

    def offered(who: Person, *words: str) -> list[str]:
        """What both entry points offer for the last word."""
        line = ("wattbalance", *words)
        asked = {"_WATTBALANCE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(line)}
        found = []
        for command, more in (
            (["wattbalance"], {**asked, "COMP_CWORD": str(len(words))}),
            (["kubectl", "__complete", *line], {}),
        ):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
                env=who.environment() | more,
            )
            # kubectl says on stderr what its directive means.
            assert command[0] == "kubectl" or not done.stderr
            found.append([each.removeprefix("plain,") for each in done.stdout.split() if each[0] != ":"])
        assert found[0] == found[1]
        return found[0]

    admin = person()
    assert offered(admin, "explain", "tab") == ["tab-0", "tab-1"]
    assert offered(admin, "explain", "default/tab-1") == ["default/tab-1"]
    assert offered(admin, "explain", "-n", "kube-syst") == ["kube-system"]
    assert offered(admin, "explain", "-n", "kube-system", "tab") == []
    # Whoever may not list them is offered nothing, and told nothing.
    assert offered(person("nobody"), "explain", "tab") == []


def test_the_role_for_those_who_ask_is_enough_and_each_right_that_is_missing_is_named(
    system: System, kubelet: Kubelet, ports: Pods, person: Callable[..., Person]
) -> None:
    serve_in_a_pod(system, ports, "wattbalance-0")
    wait_for("it leads", lambda: labelled(system) == ["wattbalance-0"])
    rules = yaml.safe_load(ASK_ROLE.read_text())["rules"]
    ann = person("ann")
    with allowed(system, "ann", rules):
        done = wait_for(
            "the rights hold", lambda: (told := ann.types("kubectl wattbalance nodes")).stdout and told
        )
        assert [done.returncode, done.stderr] == [0, ""]
        assert ann.types("wattbalance nodes --daemon-namespace wattbalance").returncode == 0
    everywhere: dict[str, object] = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    lacking: list[tuple[list[dict[str, object]], str, str]] = [
        ([], NAMESPACE, 'cannot list resource "pods"'),
        ([{**rules[0], "verbs": ["list"]}, rules[1]], NAMESPACE, 'cannot get resource "pods"'),
        ([rules[0]], NAMESPACE, 'cannot create resource "pods/portforward"'),
        ([everywhere], "", 'cannot create resource "pods/portforward"'),
    ]
    for number, (given, namespace, want_text) in enumerate(lacking):
        user = f"ann-{number}"
        with allowed(system, user, given, namespace):
            asks = person(user)
            wait_for(f"refused: {want_text}", partial(_is_told, asks, want_text))
            done = asks.types("kubectl wattbalance nodes")
        assert [done.returncode, done.stdout] == [1, ""]
        assert f'{want_text} in API group "" in the namespace "wattbalance"' in done.stderr
        assert "deploy/ask-role.yaml, which an administrator has to bind to you" in done.stderr


def test_of_two_replicas_the_leader_is_asked_and_then_the_one_that_follows_it(
    system: System, kubelet: Kubelet, ports: Pods, person: Callable[..., Person]
) -> None:
    first = serve_in_a_pod(system, ports, "wattbalance-0")
    wait_for("it leads", lambda: labelled(system) == ["wattbalance-0"])
    second = serve_in_a_pod(system, ports, "wattbalance-1")
    assert (second.ready() or {})["role"] == "standby"
    somebody = person()
    assert somebody.types("kubectl wattbalance nodes").returncode == 0
    assert kubelet.asked == [(NAMESPACE, "wattbalance-0")]
    first.process.signal(signal.SIGKILL)
    wait_for("the other leads", lambda: labelled(system) == ["wattbalance-1"])
    assert somebody.types("kubectl wattbalance nodes").returncode == 0
    assert kubelet.asked[1:] == [(NAMESPACE, "wattbalance-1")]


def test_a_forward_that_breaks_or_finds_nobody_is_told_with_what_to_do(
    system: System, kubelet: Kubelet, ports: Pods, person: Callable[..., Person]
) -> None:
    replica = serve_in_a_pod(system, ports, "wattbalance-0")
    wait_for("it leads", lambda: labelled(system) == ["wattbalance-0"])
    until_seen(replica, "kubelet")
    somebody = person()
    # Before an answer, among its headers, in its body.
    for cut_after_bytes in (0, 30, 300):
        kubelet.cut_after_bytes = cut_after_bytes
        done = somebody.types("kubectl wattbalance nodes")
        assert [done.returncode, done.stdout] == [1, ""], cut_after_bytes
        first, *rest = done.stderr.splitlines()
        assert "no daemon answers at port 9441 of pod wattbalance/wattbalance-0: " in first
        assert rest[0] == "kubectl: error: lost connection to pod"
        assert rest[1].startswith("The connection broke on its way: try again.")
    kubelet.cut_after_bytes = None
    ports["wattbalance-0"] = {API_PORT + 1: replica.port}
    done = somebody.types("kubectl wattbalance nodes")
    assert done.returncode == 1
    assert "connect: connection refused" in done.stderr
    assert "Does it serve `api` on 9441 of its loopback" in done.stderr
    # As it says there.
    assert f"kubectl -n {NAMESPACE} port-forward wattbalance-0 PORT" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_kubectl_does_not_outlive_the_command(
    system: System, kubelet: Kubelet, ports: Pods, person: Callable[..., Person], number: signal.Signals
) -> None:
    serve_in_a_pod(system, ports, "wattbalance-0")
    wait_for("it leads", lambda: labelled(system) == ["wattbalance-0"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports["wattbalance-0"] = {API_PORT: int(silent.getsockname()[1])}
        # What a shell starts with & is told to ignore it, and so would be all that we start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command = person().begins("kubectl wattbalance nodes")
        try:
            wait_for("a port is forwarded", lambda: kubelet.connected == 1)
            # kubectl becomes its plugin; the plugin's only child is a kubectl that forwards.
            [child] = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
            assert b"port-forward" in Path(f"/proc/{child}/cmdline").read_bytes()
            command.send_signal(number)
            assert command.wait() == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
            if number != signal.SIGKILL:
                assert has_ended(int(child))
            wait_for("kubectl ended", lambda: has_ended(int(child)))
            wait_for("nothing is forwarded", lambda: kubelet.connected == 0)
        finally:
            command.kill()
            command.wait()


def _is_told(person: Person, text: str) -> bool:
    return text in person.types("kubectl wattbalance nodes").stderr


def has_ended(pid: int) -> bool:
    """Gone, or of no more than its exit code, for whoever started it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
