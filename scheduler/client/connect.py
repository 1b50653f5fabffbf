"""Finds the daemon: by its address, else by a port-forward of kubectl's to the leader's pod, for as long as we ask."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from scheduler.client.child import ending_with_us, next_words, stop, unwinding_on_sigterm
from scheduler.client.fetch import Daemon, NoDaemon, Unanswered

# The default of the listener that serves `api` (docs/architecture.md, 4.5).
API_PORT = 9441
LEADER = "wattbalance.io/role=leader"
# That of deploy/: where we look if the user may not list the pods of all namespaces.
USUAL_NAMESPACE = "wattbalance"
# Logging in to a cluster may ask a plugin, which may ask a person's browser.
KUBECTL_S = 60.0
# kubectl says why a forward broke right after it did, and ends.
LAST_WORDS_S = 1.0
FORWARDING = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")
LOG_LINE = re.compile(r"[IWEF]\d{4} ")
WHY_BROKEN = re.compile(r"an error occurred forwarding [^\n\"]*")
AT_AN_ADDRESS = "A daemon whose api has an address of its own needs no kubectl: --server URL"
NO_KUBECTL = (
    "no daemon was named (--server URL or WATTBALANCE_SERVER), and kubectl is not on the path\n"
    f"With a kubectl elsewhere: kubectl get pods -A -l {LEADER}, then kubectl -n NAMESPACE port-forward POD "
    f"{API_PORT}, and beside it the same command with --server http://127.0.0.1:{API_PORT}"
)
NO_LEADER = (
    f"no running pod carries the label {LEADER}: is `wattbalance serve` running there, with its pod's name as "
    "POD_NAME, and does it lead? Its /readyz says so.\n"
    f"In mode observe nobody leads: kubectl -n NAMESPACE port-forward POD {API_PORT}, with the pod of any replica, and "
    f"beside it the same command with --server http://127.0.0.1:{API_PORT}. One that runs on this machine, outside any "
    "pod, is reached so without a port-forward."
)
ALLOWED_BY = (
    "In the daemon's namespace it takes `get` and `list` on pods, and `create` on pods/portforward: the Role in "
    "deploy/ask-role.yaml, which an administrator has to bind to you"
)
PORT_ADVICE = (
    f"Does it serve `api` on {API_PORT} of its loopback, without TLS (`listeners` in its configuration)? Where that is "
    "another port: kubectl -n {namespace} port-forward {pod} PORT, and beside it the same command with --server "
    "http://127.0.0.1:PORT"
)
BROKE_ADVICE = (
    "The connection broke on its way: try again. If the pod has gone, another replica leads within seconds"
)


class _Meta(msgspec.Struct, frozen=True):
    name: str
    namespace: str = "default"
    deleted_at: str = msgspec.field(name="deletionTimestamp", default="")


class _Condition(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="type")
    status: str


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""
    conditions: list[_Condition] = msgspec.field(default_factory=list)


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    status: _Status = msgspec.field(default_factory=_Status)

    def ready(self) -> bool:
        """Not said to be unready: a leader that was killed carries the label until another takes it off."""
        said = {each.kind: each.status for each in self.status.conditions}
        return not self.metadata.deleted_at and said.get("Ready") != "False"


class _Pods(msgspec.Struct, frozen=True):
    items: list[_Pod]


class Forbidden(NoDaemon):
    """The API server refused what kubectl asked."""


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
        with unwinding_on_sigterm():
            child = subprocess.Popen(
                [*self._command, *arguments, f":{API_PORT}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=ending_with_us(),  # noqa: PLW1509 - this program has no other threads
            )
            try:
                url = f"http://127.0.0.1:{_port(child, pod)}"
                yield Daemon(url, called=f"port {API_PORT} of pod {pod.namespace}/{pod.name}", then="")
            except Unanswered as error:
                raise NoDaemon("\n".join([str(error), *_last_words(child, pod)])) from error
            finally:
                stop(child)

    def _leader(self) -> _Meta:
        """The pod that carries the leader's label.

        Raises:
            NoDaemon: none does, or those of two daemons do, or kubectl cannot tell.
        """
        namespace = self._namespace
        try:
            running = self._labelled(namespace)
        except Forbidden:
            if namespace:
                raise
            # Whoever has rights in single namespaces only.
            namespace = USUAL_NAMESPACE
            running = self._labelled(namespace)
        # While the label moves there may be two of one daemon: either knows why a pod is where it is.
        ready = [pod.metadata for pod in running if pod.ready()] or [pod.metadata for pod in running]
        if not ready:
            raise NoDaemon(f"{f'in namespace {namespace} ' if namespace else ''}{NO_LEADER}")
        if len({pod.namespace for pod in ready}) > 1:
            names = ", ".join(sorted(f"{pod.namespace}/{pod.name}" for pod in ready))
            raise NoDaemon(
                f"pods of several namespaces carry the label {LEADER}: {names}\nSay which daemon is meant, with "
                "--daemon-namespace NAME"
            )
        return ready[0]

    def _labelled(self, namespace: str) -> list[_Pod]:
        where = ["-n", namespace] if namespace else ["--all-namespaces"]
        listed = self._run(["get", "pods", *where, "-l", LEADER, "-o", "json"])
        try:
            pods = msgspec.json.decode(listed, type=_Pods).items
        except msgspec.MsgspecError as error:
            raise NoDaemon(f"kubectl get pods printed no list of pods: {error}\n{AT_AN_ADDRESS}") from error
        return [pod for pod in pods if pod.status.phase == "Running"]

    def _run(self, arguments: Sequence[str]) -> bytes:
        called = f"kubectl {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=KUBECTL_S,
            )
        except subprocess.TimeoutExpired as error:
            words = _words(error.stderr or b"") or "no words"
            raise NoDaemon(
                f"{called}: not done within {KUBECTL_S:.0f} s: {words}\n{AT_AN_ADDRESS}"
            ) from error
        if done.returncode:
            raise _failed(called, _words(done.stderr) or f"exit code {done.returncode}")
        return done.stdout


def _failed(called: str, words: str) -> NoDaemon:
    """What to raise where kubectl could not do it."""
    if "orbidden" in words:
        return Forbidden(f"{called}: {words}\n{ALLOWED_BY}")
    return NoDaemon(f"{called}: {words}\n{AT_AN_ADDRESS}")


def _port(child: subprocess.Popen[bytes], pod: _Meta) -> int:
    """Read kubectl's words until it says which port it took."""
    told = b""
    while True:
        part = next_words(child, KUBECTL_S)
        told += part
        found = FORWARDING.search(told)
        if found:
            return int(found[1])
        if not part:
            words = _words(told) or f"nothing within {KUBECTL_S:.0f} s"
            raise _failed(f"kubectl port-forward to {pod.namespace}/{pod.name}", words)


def _last_words(child: subprocess.Popen[bytes], pod: _Meta) -> list[str]:
    """Why a forward broke, as far as kubectl says, and what to do."""
    told = b""
    while part := next_words(child, LAST_WORDS_S):
        told += part
    text = told.decode(errors="replace")
    # A line of its library's log, with a long head; several times the same.
    lines = [
        *dict.fromkeys(WHY_BROKEN.findall(text)),
        *(x for x in text.splitlines() if x.startswith("error:")),
    ]
    broke = bool(lines) and "refused" not in text
    advice = BROKE_ADVICE if broke else PORT_ADVICE.format(namespace=pod.namespace, pod=pod.name)
    return [*(f"kubectl: {line}" for line in lines), advice]


def _words(told: bytes) -> str:
    """What kubectl said for people; its library's own log lines come before, several times the same."""
    lines = told.decode(errors="replace").strip().splitlines()
    return "\n".join(line for line in lines if not LOG_LINE.match(line)) or "\n".join(lines[-1:])
