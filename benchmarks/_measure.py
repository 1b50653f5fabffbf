"""What the benchmarks share: children and what the kernel says of them, percentiles, and the line with the verdict."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

NS_PER_S = 1e9
STOP_S = 20.0


def cpu_s(pid: int) -> float:
    """CPU seconds of all living threads of a process, to the nanosecond; /proc/PID/stat counts in 10 ms."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / NS_PER_S


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """Resident memory now (VmRSS) or at its highest (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    message = f"no {field} of process {pid}"
    raise LookupError(message)


def percentile(values: Sequence[float], frac: float) -> float:
    """The value that this part of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(frac * len(ordered)) - 1)]


def verdict(what: str, value: float, target: float, unit: str = "", *, at_least: bool = False) -> bool:
    """Print PASS or MISS with figure and target. Nothing is asserted: machines differ, and these lines are read."""
    good = value >= target if at_least else value <= target
    sign = "≥" if at_least else "≤"
    print(
        f"{'PASS' if good else 'MISS'}  {what}: {value:.3g}{unit} (target {sign} {target:g}{unit})",
        flush=True,
    )
    return good


class Child:
    """A process of `python -m benchmarks.NAME …` that is spoken to in lines: a word in, JSON out."""

    def __init__(self, *arguments: str, stderr: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def read(self) -> Any:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            message = f"{self.process.args!r} ended with {self.process.wait()}"
            raise RuntimeError(message)
        return json.loads(line)

    def ask(self, word: str) -> Any:
        """Send a line, and wait for one."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def tell(**facts: object) -> None:
    """A child's answer to its parent."""
    print(json.dumps(facts), flush=True)
