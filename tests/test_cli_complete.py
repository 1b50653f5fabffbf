"""The tabulator key where only the cluster knows, in a real bash and by kubectl's own way of asking."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scheduler import cli, cli_complete
from scheduler.cli_config import completions_for_kubectl
from scheduler.config_kube import NEWEST, OLDEST

# Prints what it was asked, and answers as kubectl does.
KUBECTL = """#!/bin/sh
echo "$*" >> "$0.asked"
case "$*" in
  *"get namespaces"*) printf 'namespace/default\\nnamespace/ml\\nnamespace/mlops\\n' ;;
  *"get pods -n ml "*) printf 'pod/train-0\\npod/train-1\\npod/web\\n' ;;
  *"get pods"*) printf 'pod/here\\n' ;;
  *"config get-contexts"*) printf 'arn:aws:eks/prod\\nlab\\n' ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One on the path that answers; its text may be exchanged."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


def offered(*words: str) -> list[str]:
    """What is offered for the last of the words."""
    return [line.partition("\t")[0] for line in completions_for_kubectl(cli.cli, words)[:-1]]


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["explain", ""], ["here"]),
        (["explain", "x"], []),
        (["explain", "-n", ""], ["default", "ml", "mlops"]),
        (["explain", "--namespace", "ml"], ["ml", "mlops"]),
        (["explain", "-n", "ml", "train"], ["train-0", "train-1"]),
        (["explain", "ml/t"], ["ml/train-0", "ml/train-1"]),
        (["explain", "-n", "ml", "pod/w"], ["pod/web"]),
        (["explain", "--daemon-namespace", "d"], ["default"]),
        (["nodes", "--context", ""], ["arn:aws:eks/prod", "lab"]),
        (["resume", "-n", "mlo"], ["mlops"]),
        (["pause", "--context", "l"], ["lab"]),
        (["config", "kube-scheduler", "--kubernetes-version", "1.2"], [f"1.{n}" for n in range(20, 30)]),
    ],
)
@pytest.mark.usefixtures("kubectl")
def test_what_the_cluster_knows_is_offered(words: list[str], want: list[str]) -> None:
    assert offered(*words) == want


def test_all_versions_that_we_know_are_offered() -> None:
    want = [f"1.{minor}" for minor in range(OLDEST, NEWEST + 1)]
    assert offered("config", "kube-scheduler", "--kubernetes-version", "") == want


def test_kubectl_is_asked_in_the_cluster_that_the_line_names_and_for_a_moment(kubectl: Path) -> None:
    offered("explain", "--context", "lab", "-n", "ml", "")
    [asked] = Path(f"{kubectl}.asked").read_text().splitlines()
    assert asked == "--context=lab get pods -n ml -o name --request-timeout=2s"


@pytest.mark.parametrize(
    "script", ["echo pod/half; echo no >&2; exit 1", "exec /nowhere", "printf '\\377\\n'"]
)
def test_a_kubectl_that_fails_offers_nothing_and_says_nothing(
    script: str, kubectl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kubectl.write_text(f"#!/bin/sh\n{script}\n")
    assert offered("explain", "p") == []
    assert capfd.readouterr() == ("", "")


def test_without_a_kubectl_nothing_is_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert offered("explain", "") == []


def test_a_kubectl_that_hangs_is_ended_with_what_it_started(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli_complete, "MOST_S", 0.2)
    kubectl.write_text(f"#!/bin/sh\nsleep 3600 & echo $! > {tmp_path}/child\nwait\n")
    assert offered("explain", "") == []
    child = tmp_path / "child"
    if child.exists() and child.read_text().strip():
        while is_running(int(child.read_text())):
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize("program", ["wattbalance", "kubectl-wattbalance"])
def test_a_real_bash_completes_pods(program: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    installed = tmp_path / program
    installed.write_text(
        f"#!{sys.executable}\nimport sys\nfrom scheduler.start import main\nsys.exit(main())\n"
    )
    installed.chmod(0o755)
    script = (
        f"source <({program} completion bash)\n"
        f"COMP_WORDS=({program} explain -n ml train) COMP_CWORD=4\n"
        f"_{program.replace('-', '_')}_completion {program}\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "train-0 train-1\n", "")
