"""That the alarm of tests/conftest.py goes off: without it, lost tasks and unread errors pass unseen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANTED = """
import asyncio


async def fails() -> None:
    raise ZeroDivisionError


async def test_that_is_clean():
    task = asyncio.create_task(asyncio.sleep(0))
    await task


async def test_that_leaves_a_task_running():
    asyncio.get_running_loop().lost = asyncio.create_task(asyncio.Event().wait())


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


def test_lost_tasks_and_unread_errors_fail_their_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_planted.py").write_text(PLANTED, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = re.findall(r"^ERROR \S*::(\w+)", done.stdout, re.MULTILINE)
    assert sorted(told) == [
        "test_that_leaves_a_task_running",
        "test_that_never_reads_an_error",
        "test_that_never_reads_an_error_in_a_cycle",
    ], done.stdout
    assert "4 passed, 3 errors" in done.stdout
