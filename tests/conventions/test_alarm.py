"""That the alarm of tests/conftest.py goes off: without it, lost tasks, open sockets and unread errors pass unseen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANTED = """
import asyncio
import os


async def fails() -> None:
    raise ZeroDivisionError


async def test_that_is_clean():
    task = asyncio.create_task(asyncio.sleep(0))
    await task


async def test_that_leaves_a_task_running():
    asyncio.get_running_loop().lost = asyncio.create_task(asyncio.Event().wait())


async def test_that_leaves_a_socket_open():
    asyncio.get_running_loop().add_reader(os.pipe()[0], print)


async def test_whose_other_side_says_goodbye_a_moment_later():
    loop = asyncio.get_running_loop()
    ours, theirs = os.pipe()
    loop.add_reader(ours, lambda: loop.remove_reader(ours))
    loop.call_later(0.05, os.close, theirs)


async def test_that_never_reads_an_error():
    asyncio.create_task(fails())
    await asyncio.sleep(0)


async def fails_and_holds_itself() -> None:
    me = asyncio.current_task()
    raise ZeroDivisionError(me)


async def test_that_never_reads_an_error_in_a_cycle():
    asyncio.create_task(fails_and_holds_itself())
    await asyncio.sleep(0)
"""


def test_lost_tasks_open_sockets_and_unread_errors_fail_their_test(tmp_path: Path) -> None:
    alarm = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    # A socket that stays open is waited for.
    quick = alarm.replace("GOODBYE_S = 60.0", "GOODBYE_S = 3.0")
    assert quick != alarm
    (tmp_path / "conftest.py").write_text(quick, encoding="utf-8")
    (tmp_path / "test_planted.py").write_text(PLANTED, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = re.findall(r"^ERROR \S*::(\w+)", done.stdout, re.MULTILINE)
    assert sorted(told) == [
        "test_that_leaves_a_socket_open",
        "test_that_leaves_a_task_running",
        "test_that_never_reads_an_error",
        "test_that_never_reads_an_error_in_a_cycle",
    ], done.stdout
    assert "6 passed, 4 errors" in done.stdout
