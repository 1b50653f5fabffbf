"""`wattbalance explain` and `nodes`: how the daemon is found, what is printed, how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from scheduler.client import tables
from scheduler.client.fetch import PAGE
from scheduler.decision.evaluation import Candidate, Evaluation, Hindrance, RuledOut, Term, Waking
from scheduler.report.explanation import Annotation, Decision, Explanation, NotFound
from scheduler.report.views import OBSERVING_HEADER, PAUSED_HEADER, GpuView, NodeView, ResourceView

TERMS = (Term("pack", 0.75, 0.5, 0.375), Term("least-loaded", 0.25, 0.8, 0.2))


def candidate(node: str, **fields: Any) -> Candidate:
    return Candidate(node=node, pool="dc", score=0.575, free_gpus=4, terms=TERMS, **fields)


def evaluation(**fields: Any) -> Evaluation:
    values: dict[str, Any] = {
        "unix_s": 1000.0,
        "nodes": 3,
        "fitting": 1,
        "full": 1,
        "profile": "training",
        "placement": "decisive",
        "chosen": "n1",
        "held_on": "",
        "ruled_out": (RuledOut("node in quarantine", 7, ("q1", "q2")),),
        "best": tuple(candidate(f"n{number}", band="fits") for number in range(1, 9)),
        "own": None,
        "unblock": (),
        "failed_policies": (),
    }
    return Evaluation(**values | fields)


def explanation(**fields: Any) -> Explanation:
    decision = Decision(
        cycle="ab-1",
        unix_s=880.0,
        verb="filter",
        uid="u",
        profile="training",
        placement="decisive",
        gpus=4,
        asked=12,
        fitting=5,
        chosen="n1",
        result="placed",
        reserved=True,
        reasons={"node in quarantine": 7},
        best=[candidate("n1")],
    )
    values: dict[str, Any] = {
        "namespace": "ml",
        "name": "train-0",
        "uid": "u",
        "state": "bound",
        "unix_s": 1000.0,
        "node": "n1",
        "gpus": 4.0,
        "workload": "training",
        "workload_from": "Job train",
        "notes": ["A note."],
        "decision": decision,
        "now": evaluation(),
    }
    return Explanation(**values | fields)


def node(name: str, **fields: Any) -> NodeView:
    values: dict[str, Any] = {"name": name, "pool": "dc", "gpus": 8, "free_gpus": 8.0}
    return NodeView(**values | fields)


class StandIn(ThreadingHTTPServer):
    """Answers like a daemon, from what it was given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.nodes: list[NodeView] = []
        self.pods: dict[str, Explanation] = {}
        self.says: tuple[int, bytes] | None = None
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.says or self._answer()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[int, bytes]:
        path, _, query = self.path.partition("?")
        if path.startswith("/api/v1/explain/"):
            told = self.server.pods.get(path.removeprefix("/api/v1/explain/"))
            if told is None:
                return 404, msgspec.json.encode(NotFound(error=f"nothing is known of pod {path[16:]}"))
            return 200, msgspec.json.encode(told)
        asked = dict(urllib.parse.parse_qsl(query))
        start = int(asked.get("continue", 0))
        nodes = [node for node in self.server.nodes if node.pool == asked.get("pool", node.pool)]
        answer: dict[str, Any] = {"items": nodes[start : start + PAGE]}
        if start + PAGE < len(nodes):
            answer["continue"] = str(start + PAGE)
        return 200, msgspec.json.encode(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def daemon() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


AS_PLUGIN = "import sys; sys.argv[0] = 'kubectl-wattbalance'; from scheduler.cli import main; main()"


def call(*arguments: str, plugin: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", AS_PLUGIN] if plugin else ["-m", "scheduler.cli"]), *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "WATTBALANCE_SERVER"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**kept, **environment}
    )


def kubectl(folder: Path, script: str) -> str:
    """A stand-in for kubectl; returns the path to look for programs on."""
    program = folder / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{script}')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:/usr/bin:/bin"


def pod(
    name: str, namespace: str, *, phase: str = "Running", ready: str = "", **metadata: str
) -> dict[str, object]:
    conditions = [{"type": "Ready", "status": ready}] if ready else []
    return {
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "status": {"phase": phase, "conditions": conditions},
    }


PODS = {"items": [pod("old", "wb", phase="Failed"), pod("wb-0", "wb")]}


def forwarding(port: int, pods: object = PODS) -> str:
    return f"""
case "$*" in
  *"config view"*) printf ml ;;
  *"get pods"*) echo '{json.dumps(pods)}' ;;
  *port-forward*) echo $$ > "$(dirname "$0")/pid"
    echo 'Forwarding from 127.0.0.1:{port} -> 9441'; exec sleep 600 ;;
esac
"""


@pytest.mark.parametrize(
    ("header", "value", "want"),
    [
        (
            OBSERVING_HEADER,
            "everything, by `mode: observe`",
            "only observes everything, by `mode: observe`: it places ",
        ),
        (
            OBSERVING_HEADER,
            "pool aws-a",
            "only observes pool aws-a: it places nothing there, and writes nothing",
        ),
        (OBSERVING_HEADER, "pool a%0A%1B[2Jb", "only observes pool a [2Jb: it places nothing"),
        (PAUSED_HEADER, "paused by kim: a drill", "is paused by kim: a drill"),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_above_the_nodes_stands_that_the_daemon_does_not_act(
    daemon: StandIn, header: str, value: str, want: str, output: str
) -> None:
    daemon.nodes = [node("n1")]
    daemon.headers = {header: value}
    command = [sys.executable, "-m", "scheduler.cli", "nodes", "--server", daemon.url, "-o", output]
    # As on a terminal, where both come to one place.
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=True
    )
    first, rest = done.stdout.split("\n", 1)
    assert first.startswith(f"warning: the daemon {want}")
    assert rest.startswith("NODE" if output == "table" else "{")


def test_a_pod_is_explained_and_a_pipe_gets_neither_colour_nor_folded_lines(daemon: StandIn) -> None:
    daemon.pods["ml/train-0"] = explanation(notes=["A long note. " * 30])
    done = call("explain", "train-0", "-n", "ml", "--server", daemon.url)
    assert [done.returncode, done.stderr] == [0, ""]
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "Pod       ml/train-0"
    assert "Decision ab-1 (filter, 2m0s ago): placed on n1, GPUs promised" in lines
    assert ["n1", "dc", "4", "0.575", "0.375", "(0.500)", "0.200", "(0.800)"] in [
        line.split() for line in lines
    ]
    assert "  7 ruled out: node in quarantine (q1, q2 and 5 more)" in lines
    assert not any(line != line.rstrip() for line in lines if "note" not in line)
    assert sum("A long note." in line for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "want_path"),
    [
        (["ml/train-0"], "ml/train-0"),
        (["train-0"], "default/train-0"),
        (["pod/train-0", "-n", "ml"], "ml/train-0"),
        (["train-0", "--namespace", "ml"], "ml/train-0"),
    ],
)
def test_a_pod_is_named_as_kubectl_names_it(daemon: StandIn, arguments: list[str], want_path: str) -> None:
    done = call("explain", *arguments, "--server", daemon.url)
    assert daemon.asked == [f"/api/v1/explain/{want_path}"]
    assert [done.returncode, done.stdout] == [1, ""]
    assert "nothing is known of pod" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "want_text"),
    [
        (["explain"], "Missing argument 'POD'"),
        (["explain", "a/b/c"], "expected a pod's name or NAMESPACE/NAME"),
        (["explain", "/b"], "expected a pod's name or NAMESPACE/NAME"),
        (["explain", "a/"], "expected a pod's name or NAMESPACE/NAME"),
        (["explain", "a/b", "-n", "c"], "-n says c"),
        (["explain", "b" * 9000], "at most 253 long; got 'bbb"),
        (["explain", "Train-0"], "expected a pod's name of small letters"),
        (["explain", "\udcff\udcfe"], "expected a pod's name of small letters"),
        (["explain", "a b/..%2f"], "expected a pod's name of small letters"),
        (["explain", "a.b/c"], "expected a namespace's name of small letters"),
        (["explain", "b", "-n", "c" * 64], "at most 63 long"),
        (["explain", "b", "-n", "\udcff"], "expected a name in UTF-8"),
        (["nodes", "--pool", "\udcff"], "expected a name in UTF-8"),
        (["explain", "b", "-n", ""], "expected a name, got nothing"),
        (["explain", "b", "--context", ""], "expected a name, got nothing"),
        (["nodes", "--daemon-namespace", "A_b"], "expected a namespace (small letters"),
        (["report", "observe", "--daemon-namespace", ""], "expected a namespace (small letters"),
        (["explain", "b", "--server", ""], "expected a URL such as http://127.0.0.1:9441"),
        (["explain", "b", "--server", "ftp://x"], "expected a URL such as"),
        (["nodes", "--server", "x y"], "expected a URL such as"),
        (["nodes", "--server", "http://127.0.0.1:1/\u00fc"], "expected a URL such as"),
        (["explain", "b", "--server", "x:99999999"], "expected a URL such as"),
        (["nodes", "--server", "http://u:p@x"], "expected a URL such as"),
        (["nodes", "-o", "yaml"], "'yaml' is not one of 'table', 'wide', 'json'"),
    ],
)
def test_a_slip_on_the_command_line_is_told(arguments: list[str], want_text: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert want_text in done.stderr


def test_json_is_what_the_daemon_said_with_fields_of_later_days_too(daemon: StandIn) -> None:
    told = msgspec.to_builtins(explanation()) | {"later": {"days": 1}}
    daemon.says = (200, json.dumps(told).encode())
    done = call("explain", "ml/train-0", "--server", daemon.url, "-o", "json")
    assert json.loads(done.stdout) == json.loads(json.dumps(told))
    daemon.says = None
    daemon.nodes = [node("n1")]
    done = call("nodes", "--server", daemon.url, "-o", "json")
    assert json.loads(done.stdout) == {"items": [msgspec.to_builtins(node("n1"))]}


def test_all_pages_of_nodes_are_read_by_pool_and_natural_name(daemon: StandIn) -> None:
    daemon.nodes = [node(f"n{number}", pool="b" if number % 2 else "a") for number in range(PAGE + 3)]
    done = call("nodes", WATTBALANCE_SERVER=daemon.url)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    want_names = [f"n{number}" for part in (0, 1) for number in range(part, PAGE + 3, 2)]
    assert names == want_names
    assert len(daemon.asked) == 2


def test_of_a_pool_without_nodes_the_others_are_named(daemon: StandIn) -> None:
    done = call("nodes", "--pool", "dc", "--server", daemon.url)
    assert done.stderr == "no GPU nodes in pool dc: the daemon knows none yet\n"
    daemon.nodes = [node("n1", pool="dc-1"), node("n2", pool="aws-a"), node("n3", pool="dc-1")]
    done = call("nodes", "--pool", "dc", "--server", daemon.url)
    assert (done.returncode, done.stderr) == (
        0,
        "no GPU nodes in pool dc: those that the daemon knows are in aws-a, dc-1\n",
    )


@pytest.mark.parametrize(
    ("says", "want_text"),
    [
        ((200, b"<html>"), "not as the api of a daemon of this version"),
        ((200, b"{}"), "not as the api of a daemon of this version"),
        ((404, b"nothing here"), "not as the api of a daemon of this version"),
        ((503, b'{"error":"not yet"}'), "answers 503: not yet"),
    ],
)
def test_what_is_no_daemon_of_ours_is_told_and_what_to_try(
    daemon: StandIn, says: tuple[int, bytes], want_text: str
) -> None:
    daemon.says = says
    for arguments in (["explain", "a/b"], ["nodes"]):
        done = call(*arguments, "--server", daemon.url)
        assert [done.returncode, done.stdout] == [1, ""]
        assert want_text in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("script", "want_path"), [(forwarding(1), "ml/p"), ("exit 1", "default/p")])
def test_a_plugin_of_kubectl_takes_the_namespace_of_its_context_at_any_address(
    daemon: StandIn, tmp_path: Path, script: str, want_path: str
) -> None:
    call(
        "explain",
        "p",
        "--server",
        daemon.url,
        "--context",
        "prod",
        plugin=True,
        PATH=kubectl(tmp_path, script),
    )
    assert daemon.asked == [f"/api/v1/explain/{want_path}"]
    [asked] = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("--context prod config view --minify")
    call("explain", "p", "--server", daemon.url, PATH=kubectl(tmp_path, script))
    assert daemon.asked[1:] == ["/api/v1/explain/default/p"]


def test_a_name_that_no_host_can_have_is_told_as_one_that_does_not_answer() -> None:
    done = call("nodes", "--server", "http://a..b:1")
    assert done.returncode == 1
    assert "no daemon answers at http://a..b:1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_at_the_address_is_told_with_the_next_step() -> None:
    with socket.socket() as held:
        # Bound, and nobody listens: no other can take it meanwhile.
        held.bind(("127.0.0.1", 0))
        done = call("nodes", "--server", f"127.0.0.1:{held.getsockname()[1]}")
    assert done.returncode == 1
    assert "no daemon answers at http://127.0.0.1:" in done.stderr
    assert "wattbalance demo" in done.stderr


def test_without_an_address_the_leader_is_reached_through_kubectl_which_is_ended(
    daemon: StandIn, tmp_path: Path
) -> None:
    daemon.pods["ml/train-0"] = explanation()
    path = kubectl(tmp_path, forwarding(int(daemon.server_address[1])))
    done = call("explain", "train-0", "--context", "prod", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "Pod       ml/train-0" in done.stdout
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all(line.startswith("--context prod ") for line in asked)
    assert "--all-namespaces -l wattbalance.io/role=leader" in asked[0]
    assert "-n wb port-forward --address 127.0.0.1 pod/wb-0 :9441" in asked[1]
    assert "config view --minify" in asked[2]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("script", "want_text"),
    [
        pytest.param(forwarding(1, {"items": []}), "no running pod carries the label", id="no leader"),
        pytest.param("echo 'E1121 12 log.go] x' >&2; echo 'Error: Forbidden: you may not' >&2; exit 1",
                     "Error: Forbidden: you may not\nIn the daemon's namespace it takes `get` and `list` on pods",
                     id="forbidden"),
        pytest.param(f"case \"$*\" in *get*) echo '{json.dumps(PODS)}';; *) echo 'error: lost' >&2; exit 1;; esac",
                     "kubectl port-forward to wb/wb-0: error: lost", id="no forward"),
        pytest.param("echo surprise", "printed no list of pods", id="another kubectl"),
        pytest.param(forwarding(1, {"items": [pod("a", "ns-2"), pod("b", "ns-1")]}),
                     "pods of several namespaces carry the label wattbalance.io/role=leader: ns-1/b, ns-2/a\n"
                     "Say which daemon is meant, with --daemon-namespace NAME", id="two daemons"),
    ],
)  # fmt: skip
def test_what_kubectl_lacks_is_told_in_its_own_words_and_what_to_do(
    tmp_path: Path, script: str, want_text: str
) -> None:
    done = call("nodes", PATH=kubectl(tmp_path, script))
    assert [done.returncode, done.stdout] == [1, ""]
    assert want_text in done.stderr
    assert "Traceback" not in done.stderr


def test_who_may_look_into_single_namespaces_only_finds_the_daemon_in_the_usual_one(
    daemon: StandIn, tmp_path: Path
) -> None:
    refusing = 'case "$*" in *all-namespaces*) echo "Error from server (Forbidden)" >&2; exit 1 ;; esac'
    path = kubectl(tmp_path, refusing + forwarding(int(daemon.server_address[1])))
    done = call("nodes", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "get pods -n wattbalance -l wattbalance.io/role=leader" in (tmp_path / "asked").read_text()
    # Where a namespace is named, it is the only one.
    call("nodes", "--daemon-namespace", "gpu", PATH=path)
    asked = (tmp_path / "asked").read_text()
    assert "get pods -n gpu " in asked
    assert asked.count("--all-namespaces") == 1


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"deletionTimestamp": "2026-01-01T00:00:00Z"}, id="being deleted"),
        pytest.param({"ready": "False"}, id="unready"),
        pytest.param({"phase": "Failed"}, id="failed"),
    ],
)
def test_of_two_pods_with_the_leaders_label_the_living_one_is_taken(
    daemon: StandIn, tmp_path: Path, other: dict[str, str]
) -> None:
    pods = {"items": [pod("old", "wb", **other), pod("new", "wb", ready="True")]}
    done = call("nodes", PATH=kubectl(tmp_path, forwarding(int(daemon.server_address[1]), pods)))
    assert done.returncode == 0, done.stderr
    assert "pod/new :9441" in (tmp_path / "asked").read_text().splitlines()[1]


LOST = """\
echo 'E1122 10:00:00.1 12 portforward.go:4] "Unhandled Error" err="an error occurred forwarding 1 -> 9441: refused"'
echo 'error: lost connection to pod'
"""


@pytest.mark.parametrize(
    ("words", "want_lines"),
    [
        (
            LOST,
            [
                "kubectl: an error occurred forwarding 1 -> 9441: refused",
                "kubectl: error: lost connection to pod",
                "Does it serve `api` on 9441",
            ],
        ),
        (
            "echo 'error: lost connection to pod'",
            ["kubectl: error: lost connection to pod", "The connection broke"],
        ),
        ("exec sleep 600", ["Does it serve `api` on 9441"]),
    ],
)
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nConte", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_forward_that_breaks_is_told_with_what_kubectl_says_of_it(
    tmp_path: Path, words: str, want_lines: list[str], answer: bytes
) -> None:
    """Before an answer, among its headers, in its body."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def break_off() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)
            (tmp_path / "broken").touch()

        thread = threading.Thread(target=break_off)
        thread.start()
        # kubectl says so once it is broken.
        words = f"while [ ! -e {tmp_path}/broken ]; do sleep 0.05; done; {words}"
        script = forwarding(int(listening.getsockname()[1])).replace("exec sleep 600", words)
        done = call("nodes", PATH=kubectl(tmp_path, script))
        thread.join()
    assert [done.returncode, done.stdout] == [1, ""]
    first, *rest = done.stderr.splitlines()
    assert "no daemon answers at port 9441 of pod wb/wb-0: " in first
    assert len(rest) == len(want_lines)
    assert all(line.startswith(want) for line, want in zip(rest, want_lines, strict=True)), rest


def test_without_kubectl_it_says_what_to_type(tmp_path: Path) -> None:
    done = call("nodes", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "kubectl is not on the path" in done.stderr
    assert "port-forward" in done.stderr


# --- what is printed -------------------------------------------------------------------------------------------------


def printed(told: Explanation, *, wide: bool = False, width: int | None = None) -> str:
    out = Console(
        file=io.StringIO(),
        width=width or tables.PIPE_WIDTH,
        force_terminal=width is not None,
        highlight=False,
    )
    tables.print_explanation(out, told, wide=wide)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_wide_shows_all_of_the_best() -> None:
    assert sum(f"  n{number} " in printed(explanation(), wide=True) for number in range(1, 9)) == 8
    assert sum(f"  n{number} " in printed(explanation()) for number in range(1, 9)) == 5


def test_a_waiting_pod_shows_what_would_unblock_it_and_when() -> None:
    pool = Hindrance("pool", "1 node closed.", 1, ("aws-1",), until_unix_s=1200.0)
    now = evaluation(unblock=(pool,), best=())
    told = explanation(state="waiting", node="", waited_s=75.0, now=now, decision=None, reserved_node="n9")
    text = printed(told)
    assert "State     waiting for 75s" in text
    assert "  1 node closed. Opens in 3m20s. (aws-1)" in text
    assert "Decision: none is kept" in text
    assert "GPUs of n9" in text


def test_a_waiting_pod_shows_whether_it_is_woken_and_until_when_it_is_not() -> None:
    waking = Waking("no_room", "Its annotations are full.", until_unix_s=1008.0)
    told = explanation(state="waiting", node="", now=evaluation(waking=waking))
    assert "\nWaking: no room\n  Its annotations are full. Ends in 8.0s.\n" in printed(told)
    assert "full. Ends in 8.0s (at 1970-01-01T00:16:48Z).\n" in printed(told, wide=True)
    over = evaluation(waking=msgspec.structs.replace(waking, until_unix_s=999.0))
    assert "Ends in 0.0s." in printed(explanation(now=over))
    endless = evaluation(waking=Waking("soon", "Soon."))
    assert "\nWaking: soon\n  Soon.\n" in printed(explanation(now=endless))
    assert "Waking" not in printed(explanation(now=evaluation()))


def test_where_only_room_was_asked_for_that_is_shown_below() -> None:
    told = explanation(state="waiting", node="", decision=None)
    decision = explanation().decision
    assert decision is not None
    room = msgspec.structs.replace(
        decision, cycle="7", verb="preempt", result="accepted", chosen="", reserved=False
    )
    text = printed(msgspec.structs.replace(told, room=room))
    assert "Decision: none about its place is kept" in text
    assert re.search(r"\nRoom for it 7 \(preempt(, .* ago)?\): accepted\n", text)
    assert text.index("none about its place") < text.index("Room for it 7") < text.index("\nNow: ")
    assert "Room for it" not in printed(told)


def test_a_full_node_is_not_said_to_take_the_pod() -> None:
    best = (candidate("n1", band="full"),)
    text = printed(
        explanation(state="waiting", node="", now=evaluation(best=best, chosen="n1", fitting=0, full=1))
    )
    assert "Now: no room by our count; n1 would come first if kube-scheduler found room there" in text
    assert "Now: n1 would come first\n" in printed(explanation())


def test_a_pods_own_node_is_shown_though_it_is_not_among_the_best() -> None:
    own = candidate("far", band="ruled_out", reason="node in quarantine")
    text = printed(explanation(node="far", now=evaluation(own=own)))
    assert "Its own node, ruled out: node in quarantine:" in text
    assert "  far " in text


def test_advisory_placement_shows_the_points() -> None:
    best = (candidate("n1", band="fits", points=6),)
    assert "0-10" in printed(explanation(now=evaluation(best=best)))


def test_what_others_wrote_cannot_drive_the_terminal() -> None:
    evil = "x\x1b[2J\x07[bold]y"
    told = explanation(
        annotations=[Annotation(key="pools", value=evil, where="pod", problem=evil)], notes=[evil]
    )
    for width in (None, 80):
        text = printed(told, width=width)
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert "[bold]y" in text


def test_a_narrow_terminal_loses_no_figure() -> None:
    want_lines = {line.rstrip() for line in printed(explanation()).splitlines() if "0.375" in line}
    assert want_lines
    assert want_lines <= {line.rstrip() for line in printed(explanation(), width=40).splitlines()}


@pytest.mark.parametrize(
    ("fields", "want_state"),
    [
        ({"fresh": True}, "ok"),
        ({"fresh": True, "cordoned": True, "quarantine": "xid"}, "cordoned,quarantine=xid"),
        ({"fresh": True, "quarantine": ""}, "quarantine"),
        ({"fresh": False, "reading_age_s": 12.0}, "stale"),
        ({"fresh": False}, "unread"),
        ({"fresh": True, "broken_gpus": 2.0}, "2 broken"),
        ({"fresh": True, "in_pools": ["dc-1", "aws-a"]}, "in 2 pools"),
    ],
)
def test_a_nodes_state_in_words(fields: dict[str, Any], want_state: str) -> None:
    assert tables.node_state(node("n", **fields)) == want_state


@pytest.mark.parametrize(
    ("sort_by", "want_names"),
    [
        ("name", ["n2", "n10", "n1"]),
        ("load", ["n10", "n2", "n1"]),
        ("power", ["n2", "n10", "n1"]),
        ("free", ["n1", "n2", "n10"]),
        ("age", ["n1", "n10", "n2"]),
    ],
)
def test_nodes_are_sorted_with_what_is_unknown_at_one_end(sort_by: str, want_names: list[str]) -> None:
    nodes = [
        node("n1", pool="z"),
        node("n10", free_gpus=1.0, load_frac=0.9, power_w=100.0, reading_age_s=5.0),
        node("n2", free_gpus=3.0, load_frac=0.2, power_w=300.0, reading_age_s=1.0),
    ]
    assert [each.name for each in sorted(nodes, key=tables.SORTS[sort_by])] == want_names


def test_a_node_in_all_its_columns() -> None:
    seen = node(
        "n1", free_gpus=2.0, bound_gpus=5.0, reserved_gpus=1.0, load_frac=0.456, power_w=1234.5, reading_age_s=0.44,
        fresh=True, agent_version="0.1.0", counted_by="allocatable",
            devices=[GpuView(uuid="a", model="H100"), GpuView(uuid="b", model="H100")],
    )  # fmt: skip
    out = Console(file=io.StringIO(), width=tables.PIPE_WIDTH)
    tables.print_nodes(out, [seen], sort_by="name", wide=True)
    assert isinstance(out.file, io.StringIO)
    [_, row] = out.file.getvalue().splitlines()
    want = "n1 dc ok 8 2 46% 1,234 W 0.4s 0.1.0 5 1 0 0 allocatable - H100"
    assert row.split() == want.split()
    tables.print_nodes(out, [node("n2", model="NVIDIA-L4"), node("n3")], sort_by="name", wide=True)
    assert [line.split()[-1] for line in out.file.getvalue().splitlines()[-2:]] == ["NVIDIA-L4", "-"]


@pytest.mark.parametrize(
    ("resources", "want_text"),
    [
        ({}, "-"),
        ({"gpu": (8, 1, 3)}, "-"),
        # Under the GPUs' own name, but not whole.
        ({"gpu": (8, 0.25, 3)}, "gpu 3/8"),
        ({"mig-3g.40gb": (2, 0.429, 1), "gpu": (1, 1, 0)}, "gpu 0/1, mig-3g.40gb 1/2"),
        ({"gpu.shared": (8, 0.25, 8)}, "gpu.shared 8/8"),
    ],
)
def test_what_gpus_are_divided_into_is_shown_with_how_much_is_free(
    resources: dict[str, tuple[float, float, float]], want_text: str
) -> None:
    seen = node(
        "n1",
        gpus=4.571,
        bound_gpus=1.571,
        resources={
            f"nvidia.com/{name}": ResourceView(units=units, unit_gpus=each, bound=units - free, free=free)
            for name, (units, each, free) in resources.items()
        },
    )
    out = Console(file=io.StringIO(), width=tables.PIPE_WIDTH)
    tables.print_nodes(out, [seen], sort_by="name", wide=True)
    assert isinstance(out.file, io.StringIO)
    head, row = out.file.getvalue().splitlines()
    begin, end = head.index("FREE UNITS"), head.index("MODEL")
    assert row[begin:end].strip() == want_text
    assert {"4.57", "1.57"} <= set(row.split())


@pytest.mark.parametrize("counted_by", [None, "allocatable", "resourceslices", "inventory"])
def test_who_counts_the_gpus_stands_in_a_wide_table(counted_by: str | None) -> None:
    out = Console(file=io.StringIO(), width=tables.PIPE_WIDTH)
    tables.print_nodes(out, [node("n1", counted_by=counted_by)], sort_by="name", wide=True)
    assert isinstance(out.file, io.StringIO)
    head, row = out.file.getvalue().splitlines()
    begin, end = head.index("COUNTED BY"), head.index("FREE UNITS")
    assert row[begin:end].strip() == (counted_by or "-")


@pytest.mark.parametrize(
    ("length_s", "want_text"),
    [(-1, "0.0s"), (0.44, "0.4s"), (9.96, "10.0s"), (75, "75s"), (200, "3m20s"), (3599, "59m"), (7200, "2h"),
     (200_000, "2d")],
)  # fmt: skip
def test_lengths_of_time(length_s: float, want_text: str) -> None:
    assert tables.span(length_s) == want_text


def test_a_terminal_gets_headings_in_bold_and_no_color_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1m" in printed(explanation(), width=100)
    seen = node("n1", cordoned=True)

    def listed() -> str:
        out = Console(
            file=io.StringIO(), width=100, force_terminal=True, color_system="standard", highlight=False
        )
        tables.print_nodes(out, [seen], sort_by="name", wide=False)
        assert isinstance(out.file, io.StringIO)
        return out.file.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in listed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in listed()
