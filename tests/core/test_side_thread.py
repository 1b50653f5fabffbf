"""Calls that may block for ever: they are given up, they pile up nowhere, and they do not hold the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from scheduler.core.aio import SideThread

HANG_S = 60.0


async def test_a_result_and_an_error_come_back() -> None:
    side = SideThread("side")
    assert await side.run(lambda: threading.current_thread().name, HANG_S) == "side"
    with pytest.raises(ZeroDivisionError):
        await side.run(lambda: 1 // 0, HANG_S)
    assert await side.run(lambda: 7, HANG_S) == 7


async def test_a_call_that_hangs_costs_one_thread_however_often_it_is_tried() -> None:
    side, release = SideThread("side"), threading.Event()
    try:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await side.run(release.wait, 0.01)
        assert sum(thread.name == "side" for thread in threading.enumerate()) == 1
    finally:
        release.set()
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                assert await side.run(lambda: "again", HANG_S) == "again"
                break
            except TimeoutError:
                await asyncio.sleep(0.005)


async def test_whoever_waits_may_be_cancelled() -> None:
    side, release = SideThread("side"), threading.Event()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await side.run(release.wait, HANG_S)
    finally:
        release.set()


def test_a_call_that_hangs_does_not_hold_the_end_of_the_process() -> None:
    program = (
        "import asyncio, threading\n"
        "from scheduler.core.aio import SideThread\n"
        "async def main():\n"
        "    try:\n"
        "        await SideThread('side').run(threading.Event().wait, 0.01)\n"
        "    except TimeoutError:\n"
        "        print('given up')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout == "given up\n"
