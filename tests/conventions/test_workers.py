"""`make test` shares the tests among processes: each runs once, what is `alone` by itself, and no failure is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLANTED = """
import os
from pathlib import Path

import pytest

from scheduler.simulate.ports import free_port


@pytest.mark.parametrize("number", range(8))
def test_beside_others(number):
    ports = [free_port() for _ in range(200)]
    (Path(__file__).parent / f"{os.environ['PYTEST_XDIST_WORKER']}-{number}").write_text(repr(ports))


@pytest.mark.alone
def test_alone():
    (Path(__file__).parent / "alone").touch(exist_ok=False)
"""


@pytest.mark.slow
def test_workers_share_tests_and_ports_and_leave_alone_what_is_alone(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]

    def run(*options: str) -> str:
        done = subprocess.run(
            [*command, *options, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "8 passed" in run("--numprocesses", "2", "--dist", "load", "--alone", "without")
    assert not (tmp_path / "alone").exists()
    ports: dict[str, set[int]] = {"gw0": set(), "gw1": set()}
    for path in tmp_path.glob("gw*-*"):
        ports[path.name.partition("-")[0]] |= {int(port) for port in re.findall(r"\d+", path.read_text())}
    assert all(ports.values())
    assert sum(map(len, ports.values())) == 8 * 200
    assert ports["gw0"].isdisjoint(ports["gw1"])

    assert "1 passed, 8 deselected" in run("--alone", "only")
    assert (tmp_path / "alone").exists()


# Pytest's: 0 all passed, 1 some failed, 2 interrupted, 3 and 4 it could not run, 5 there was none.
@pytest.mark.parametrize(
    ("beside", "alone", "want"),
    [
        (0, 0, 0),
        *((failed, alone, failed) for failed in (1, 3, 4, 139) for alone in (0, 1, 5)),
        *((beside, failed, failed) for beside in (0, 5) for failed in (1, 2, 3, 4)),
        (0, 5, 0),
        (5, 0, 0),
        (5, 5, 5),
    ],
)
def test_a_failure_of_either_run_is_one_of_the_whole(
    tmp_path: Path, beside: int, alone: int, want: int
) -> None:
    done = run_tests(tmp_path, beside, alone)
    assert done.returncode == want
    assert done.stdout.splitlines() == [
        "-m pytest --numprocesses 7 --dist worksteal --alone without -k two words",
        "-m pytest --alone only -k two words",
    ]
    assert ("the first of the two runs failed" in done.stderr) == (beside not in {0, 5})


def test_whoever_interrupts_the_first_run_wants_no_second(tmp_path: Path) -> None:
    done = run_tests(tmp_path, 2, 0)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1


def run_tests(venv: Path, beside: int, alone: int) -> subprocess.CompletedProcess[str]:
    python = venv / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\necho "$*"\ncase "$*" in *"alone only"*) exit {alone} ;; esac\nexit {beside}\n'
    )
    python.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "scripts" / "run-tests"), "7", "-k", "two words"],
        env={**os.environ, "WATTBALANCE_VENV": str(venv)},
        capture_output=True,
        text=True,
        check=False,
    )
