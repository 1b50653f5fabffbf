"""However the demo ends, it says why in words, and leaves no process behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scheduler.simulate.demo import program_name
from scheduler.simulate.ports import free_port
from scheduler.simulate.sharing import REPLICAS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc"),
]
# Far beyond what starting takes on a busy machine; only a demo that hangs runs into it.
PATIENCE_S = 120.0
SHARED = "nvidia.com/gpu.shared"


def until(condition: Callable[[], bool], what: str) -> None:
    ends_mono_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > ends_mono_s:
            pytest.fail(f"never: {what}")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> dict[str, int]:
    """Ids of a process's children, by the command that each runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found["serve" if "serve" in words else "broker"] = int(entry.name)
    return found


@dataclass
class Running:
    """A demo as a process of its own; what it prints goes to a file."""

    process: subprocess.Popen[bytes]
    out: Path

    @property
    def said(self) -> str:
        return self.out.read_text()

    def until_placing(self) -> dict[str, int]:
        """Wait for the first line of progress; returns the children."""
        until(lambda: "placed " in self.said or self.process.poll() is not None, "a line of progress")
        assert self.process.poll() is None, self.said
        children = children_of(self.process.pid)
        assert set(children) == {"serve", "broker"}
        return children

    def end(self) -> int:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_S)
        assert "Traceback" not in self.said
        return code


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def begin(*flags: str) -> Running:
        out = tmp_path / f"out-{len(started)}"
        command = [sys.executable, "-P", "-m", "scheduler.cli", "demo", "--nodes", "20", *flags]
        with out.open("wb") as sink:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        started.append(Running(process, out))
        return started[-1]

    yield begin
    for running in started:
        children = children_of(running.process.pid)
        running.process.kill()
        running.process.wait()
        for pid in children.values():
            until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]  # A default binds it.


def gone(children: dict[str, int]) -> bool:
    return not any(alive(pid) for pid in children.values())


def test_ctrl_c_ends_it_with_a_summary_and_nothing_stays(start: Start) -> None:
    demo = start("--port", "0")
    children = demo.until_placing()
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0
    assert "pods placed" in demo.said
    assert gone(children)
    # Into a file: lines, no colours.
    assert "\x1b" not in demo.said


def test_tasks_that_share_a_gpu_ask_for_replicas_and_get_them(start: Start) -> None:
    port = free_port()
    demo = start("--port", str(port))
    demo.until_placing()

    def listed(kind: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{kind}", timeout=60) as answer:
            return list(json.load(answer)["items"])

    def placed() -> list[str]:
        decisions = listed("decisions?limit=1000&result=placed")
        return [each["chosen"] for each in decisions if set(each["resources"]) == {SHARED}]

    until(lambda: bool(placed()), "a pod that got a replica")
    nodes = {node["name"]: node["resources"] for node in listed("nodes?limit=1000")}
    for name in placed():
        assert nodes[name][SHARED]["unit_gpus"] in {1 / each for each in REPLICAS}


def test_its_daemon_leads_and_lacks_nothing(start: Start) -> None:
    port = free_port()
    demo = start("--port", str(port))
    demo.until_placing()

    def readiness() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
            return dict(json.load(answer))

    until(lambda: readiness()["role"] == "leader", "a daemon that leads")
    until(lambda: readiness()["degraded"] == [], "a daemon that lacks nothing")


def test_ctrl_c_twice_hurries(start: Start) -> None:
    demo = start("--port", "0")
    children = demo.until_placing()
    # A daemon that does not listen would be waited for; the second signal kills it.
    os.kill(children["serve"], signal.SIGSTOP)
    demo.process.send_signal(signal.SIGINT)
    until(lambda: "pods placed" in demo.said, "the summary")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0
    assert gone(children)


def test_a_frozen_broker_is_said_and_leaves_no_traceback(start: Start) -> None:
    demo = start("--port", "0")
    children = demo.until_placing()
    os.kill(children["broker"], signal.SIGSTOP)
    until(lambda: "BROKER SILENT" in demo.said, "a line that says so")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 0
    assert "failed to receive" not in demo.said
    assert "the broker did not answer for" in demo.said
    assert gone(children)


def test_ctrl_c_while_it_starts_ends_it_too(start: Start) -> None:
    demo = start("--port", "0")
    until(lambda: "pods arrive per second" in demo.said, "its first words")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 130
    assert "before the first pod came" in demo.said
    assert not children_of(demo.process.pid)


@pytest.mark.parametrize("who", ["broker", "serve"])
def test_a_child_that_is_killed_is_named(start: Start, who: str) -> None:
    demo = start("--port", "0")
    children = demo.until_placing()
    os.kill(children[who], signal.SIGKILL)
    assert demo.end() == 1
    want_name = {"broker": "the broker (", "serve": "the daemon ("}[who]
    assert want_name in demo.said
    assert f"process {children[who]}) was ended by SIGKILL" in demo.said
    assert gone(children)


@pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="without setpriv (util-linux) only a kind end stops them"
)
def test_children_end_with_a_demo_that_was_killed(start: Start) -> None:
    demo = start("--port", "0")
    children = demo.until_placing()
    demo.process.kill()
    demo.process.wait()
    until(lambda: gone(children), "the end of the children")


def test_a_port_that_is_taken_is_said_before_anything_starts(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = start("--port", str(port))
        assert demo.end() == 1
    assert f"port {port} cannot be had (Address already in use): choose another with --port" in demo.said


def test_a_broker_that_cannot_be_run_is_said(start: Start) -> None:
    demo = start("--port", "0", "--mosquitto", "/nowhere/mosquitto")
    assert demo.end() == 1
    assert "/nowhere/mosquitto is not a program that can be run" in demo.said


def test_what_is_no_broker_is_said_with_a_next_step(start: Start) -> None:
    demo = start("--port", "0", "--mosquitto", "/bin/true")
    assert demo.end() == 1
    assert "it said nothing, and ended with exit code 0; see whether /bin/true is mosquitto" in demo.said


def test_a_file_in_the_working_directory_is_not_taken_for_a_module(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's own program does not look there (-P, as an installed script); its children must not either."""
    (tmp_path / "http.py").write_text("")
    monkeypatch.chdir(tmp_path)
    demo = start("--port", "0", "--duration", "1s")
    assert demo.end() == 0, demo.said


def test_what_to_type_is_the_path_where_a_shell_would_not_find_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/wattbalance", "demo"])
    assert program_name() == ".venv/bin/wattbalance"
    monkeypatch.setattr(sys, "argv", ["/x/scheduler/cli.py", "demo"])
    assert program_name() == "wattbalance"
    (tmp_path / "wattbalance").write_text("#!/bin/sh\n")
    (tmp_path / "wattbalance").chmod(0o755)
    monkeypatch.setattr(sys, "argv", [".venv/bin/wattbalance", "demo"])
    assert program_name() == "wattbalance"
