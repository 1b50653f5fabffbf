"""The demo's daemon: the real `wattbalance serve` as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import aiohttp

from scheduler.core.clock import Clock
from scheduler.core.errors import SchedulerError
from scheduler.simulate.broker import with_parent
from scheduler.simulate.ending import Ending, wait_for_child

# Loading 1,213 nodes and 5,000 pods takes the daemon about two seconds; slow machines take longer.
READY_S = 60.0
# More than the grace that its configuration says.
STOP_S = 12.0
_LOOK_EVERY_S = 0.1
_LOG_LINES_SHOWN = 15
_ROUND_TRIPS = 30


class DemoFailed(SchedulerError):
    """A part of the demo would not start, or ended; the message says which and what it said last."""


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class DaemonProcess:
    """The running daemon."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.process = process
        self.log = log
        self.url = url

    def failed(self) -> DemoFailed:
        """What to raise when it has ended: how, and what it complained of last."""
        said = complaints(self.log.read_text(encoding="utf-8", errors="replace"))
        head = f"the daemon (process {self.process.pid}) {how_it_ended(self.process.returncode)}"
        return DemoFailed("\n".join([head + (":" if said else ""), *said]))

    async def watch(self) -> NoReturn:
        """Raise once it has ended."""
        while self.process.poll() is None:  # noqa: ASYNC110 - a child of Popen has no event
            await asyncio.sleep(_LOOK_EVERY_S)
        raise self.failed()

    async def round_trip_s(self, clock: Clock) -> float:
        """Mean time of one call over a connection that stays open."""
        async with aiohttp.ClientSession() as session:
            began_mono_s = clock.mono_s()
            for _ in range(_ROUND_TRIPS):
                async with session.get(f"{self.url}/livez") as answer:
                    await answer.read()
            return (clock.mono_s() - began_mono_s) / _ROUND_TRIPS


def complaints(log: str) -> list[str]:
    """The last lines of a log that are not routine: warnings, errors, and what is no log line at all."""
    kept = []
    for line in log.splitlines():
        try:
            level = json.loads(line).get("level")
        except (ValueError, AttributeError):
            level = "error"
        if level not in ("debug", "info"):
            kept.append(line)
    return kept[-_LOG_LINES_SHOWN:]


@contextlib.asynccontextmanager
async def serving(
    config: Path, log: Path, url: str, clock: Clock, ending: Ending
) -> AsyncIterator[DaemonProcess]:
    """`wattbalance serve` as a child, ready unless the end was asked for; stopped by its process id at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - forking takes a millisecond
            # -P: a file in the working directory named like a module (http.py) must not be taken for it.
            [*with_parent(), sys.executable, "-P", "-m", "scheduler.cli", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # A session of its own: Ctrl-C is for us, and we stop it.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    child = DaemonProcess(process, log, url)
    try:
        await _until_ready(child, ending)
        yield child
    finally:
        process.terminate()
        await wait_for_child(process, STOP_S, clock, ending)


async def _until_ready(child: DaemonProcess, ending: Ending) -> None:
    said = "nothing yet"
    async with aiohttp.ClientSession() as session:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while not ending.asked.is_set():
                    if child.process.poll() is not None:
                        raise child.failed()
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"{child.url}/readyz") as answer:
                            said = await answer.text()
                            if answer.ok:
                                return
                    await ending.pause(_LOOK_EVERY_S)
                return
    raise DemoFailed(f"the daemon was not ready within {READY_S:g} s; /readyz said: {said}")
