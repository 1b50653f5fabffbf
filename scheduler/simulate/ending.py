"""How the demo ends: the first signal asks for it, the second hurries it; children are waited for by their ids."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

from scheduler.core.clock import Clock

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY_S = 0.02
# Killing children takes milliseconds; what still runs then is stuck.
_HURRY_S = 5.0
# As a shell says of a process that Ctrl-C ended.
INTERRUPTED = 130


class Ending:
    """Whether the end was asked for, and whether once more."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def listen(self) -> None:
        """Take the signals over: Ctrl-C, SIGTERM, and the terminal's closing."""
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self.ask)

    def ask(self) -> None:
        """Ask for the end; asked again, hurry."""
        if self.asked.is_set() and not self.hurried.is_set():
            self.hurried.set()
            asyncio.get_running_loop().call_later(_HURRY_S, _give_up)
        self.asked.set()

    async def pause(self, wait_s: float) -> None:
        """Wait, unless the end is asked for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.asked.wait()


def _give_up() -> None:
    # Whoever read it may be gone too.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"something did not end within {_HURRY_S:g} s of the second signal: leaving it\n")
        sys.stderr.flush()
    # The children end with us (broker.with_parent).
    os._exit(INTERRUPTED)


async def wait_for_child(
    process: subprocess.Popen[bytes], most_s: float, clock: Clock, ending: Ending
) -> None:
    """Wait for a child that was told to end; kill it once it takes too long or the end is hurried."""
    ends_mono_s = clock.mono_s() + most_s
    while process.poll() is None:
        if ending.hurried.is_set() or clock.mono_s() > ends_mono_s:
            process.kill()
            # What was killed ends at once.
            process.wait()
            return
        await asyncio.sleep(_LOOK_EVERY_S)
