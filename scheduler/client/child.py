"""A program of the user's that runs for as long as we need it, and does not outlive us, however we end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

STOPPING_S = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def next_words(child: subprocess.Popen[bytes], patience_s: float) -> bytes:
    """What it said since; empty at the end, and if nothing comes in time."""
    assert child.stdout is not None  # noqa: S101 - piped by us
    ready, _, _ = select.select([child.stdout], [], [], patience_s)
    return os.read(child.stdout.fileno(), 65_536) if ready else b""


@contextlib.contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """End as after Ctrl-C: by default SIGTERM would end this program before it has ended its child."""

    def unwind(number: int, _: object) -> None:
        sys.exit(128 + number)  # as a shell says of a process that a signal ended

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ending_with_us() -> Callable[[], None] | None:
    """Run in the child before it becomes kubectl: it ends even if this program is killed. Only Linux can."""
    if sys.platform != "linux":
        return None
    ours, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def end_with_us() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != ours:
            os._exit(1)  # killed between the two lines above: nobody would tell

    return end_with_us


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL."""
    child.terminate()
    try:
        child.wait(STOPPING_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
