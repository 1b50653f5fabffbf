"""Finds the daemon: by its address, else by a port-forward of kubectl's to the leader's pod, for as long as we ask."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from scheduler.client.fetch import Daemon, NoDaemon

# The default of the listener that serves `api` (docs/architecture.md, 4.5).
API_PORT = 9441
LEADER = "wattbalance.io/role=leader"
# Logging in to a cluster may ask a plugin, which may ask a person's browser.
KUBECTL_S = 60.0
STOPPING_S = 5.0
FORWARDING = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")
LOG_LINE = re.compile(r"[IWEF]\d{4} ")
BY_HAND = (
    f"By hand: kubectl get pods -A -l {LEADER}, then kubectl -n NAMESPACE port-forward POD {API_PORT}, and beside it "
    f"the same command with --server http://127.0.0.1:{API_PORT}"
)
NO_KUBECTL = (
    f"no daemon was named (--server URL or WATTBALANCE_SERVER), and kubectl is not on the path\n{BY_HAND}"
)
NO_LEADER = (
    f"no running pod carries the label {LEADER}: is `wattbalance serve` running there, and does it lead?\nIn mode "
    f"observe nobody does: kubectl -n NAMESPACE port-forward POD {API_PORT}, with the pod of any replica, and beside "
    f"it the same command with --server http://127.0.0.1:{API_PORT}. One that runs on this machine, outside any pod, "
    "is reached so without a port-forward."
)


class _Meta(msgspec.Struct, frozen=True):
    name: str
    namespace: str = "default"


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    status: _Status = msgspec.field(default_factory=_Status)


class _Pods(msgspec.Struct, frozen=True):
    items: list[_Pod]


class Kubectl:
    """The user's own kubectl, with their kubeconfig and rights.

    Args:
        context: Which context of the kubeconfig; empty for the present one.
        namespace: Where the daemon runs; empty to look in all namespaces.

    Raises:
        NoDaemon: there is no kubectl.
    """

    def __init__(self, context: str = "", namespace: str = "") -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise NoDaemon(NO_KUBECTL)
        self._command = [program, *(["--context", context] if context else [])]
        self._namespace = namespace

    def namespace(self) -> str:
        """The namespace of the kubeconfig's context."""
        jsonpath = "jsonpath={.contexts[0].context.namespace}"
        return self._run(["config", "view", "--minify", "-o", jsonpath]).decode().strip() or "default"

    @contextlib.contextmanager
    def forwarded(self) -> Iterator[Daemon]:
        """Forward a free port to the leader's api while the block runs.

        Raises:
            NoDaemon: nobody leads, or kubectl cannot; the text has kubectl's own words.
        """
        pod = self._leader()
        arguments = ["-n", pod.namespace, "port-forward", "--address", "127.0.0.1", f"pod/{pod.name}"]
        child = subprocess.Popen(
            [*self._command, *arguments, f":{API_PORT}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Daemon(f"http://127.0.0.1:{_port(child, pod)}")
        finally:
            _stop(child)

    def _leader(self) -> _Meta:
        where = ["-n", self._namespace] if self._namespace else ["--all-namespaces"]
        listed = self._run(["get", "pods", *where, "-l", LEADER, "-o", "json"])
        try:
            pods = msgspec.json.decode(listed, type=_Pods).items
        except msgspec.MsgspecError as error:
            raise NoDaemon(f"kubectl get pods printed no list of pods: {error}\n{BY_HAND}") from error
        running = [pod.metadata for pod in pods if pod.status.phase == "Running"]
        if not running:
            raise NoDaemon(NO_LEADER)
        return running[0]

    def _run(self, arguments: Sequence[str]) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=KUBECTL_S,
            )
        except subprocess.TimeoutExpired as error:
            raise NoDaemon(
                f"kubectl {' '.join(arguments)}: no answer within {KUBECTL_S:.0f} s\n{BY_HAND}"
            ) from error
        if done.returncode:
            words = _words(done.stderr) or f"exit code {done.returncode}"
            forbidden = "orbidden" in words and not self._namespace
            hint = "Name the daemon's namespace with --daemon-namespace. " if forbidden else ""
            raise NoDaemon(f"kubectl {' '.join(arguments)}: {words}\n{hint}{BY_HAND}")
        return done.stdout


def _port(child: subprocess.Popen[bytes], pod: _Meta) -> int:
    """Read kubectl's words until it says which port it took."""
    assert child.stdout is not None  # noqa: S101 - piped by us
    told = b""
    while True:
        ready, _, _ = select.select([child.stdout], [], [], KUBECTL_S)
        part = os.read(child.stdout.fileno(), 65_536) if ready else b""
        told += part
        found = FORWARDING.search(told)
        if found:
            return int(found[1])
        if not part:
            words = _words(told) or f"nothing within {KUBECTL_S:.0f} s"
            raise NoDaemon(f"kubectl port-forward to {pod.namespace}/{pod.name}: {words}\n{BY_HAND}")


def _words(told: bytes) -> str:
    """What kubectl said for people; its library's own log lines come before, several times the same."""
    lines = told.decode(errors="replace").strip().splitlines()
    return "\n".join(line for line in lines if not LOG_LINE.match(line)) or "\n".join(lines[-1:])


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOPPING_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
