"""What every test gets: hypothesis profiles, and an alarm for tasks and sockets that were started and forgotten.

And what several workers at once need (`make test`): ports of their own, and tests marked `alone` left for later.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from scheduler.simulate import ports

# No deadline: on a shared core it measures the neighbours. `ci` is the same on every run; `nightly` searches.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    deadline=None,
    max_examples=5000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# What a closing transport needs to say goodbye once the test has let go of it.
TURNS_TO_SETTLE = 10
# A TLS connection is closed when the other side has said goodbye too, which takes a busy one a while. A socket that is
# open at the end of its loop would fail another test, whichever is running when it is collected.
GOODBYE_S = 60.0
MOST_PORTS = 65_536


def open_sockets() -> list[object]:
    """What the loop still watches, but for the pipe by which threads wake it; asyncio has no public word for either."""
    loop: Any = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return []
    return [key for key in loop._selector.get_map().values() if key.fd != loop._ssock.fileno()]  # type: ignore[attr-defined]  # as said


@pytest.fixture
async def no_lost_tasks() -> AsyncIterator[None]:
    """Fail a test that leaves a task running or a socket open, or whose task failed without anybody reading the error.

    Both pass unseen otherwise. It is given to async tests only: in a sync test it would start a loop for nothing.
    """
    lost: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks()
    # Set aside all that is older, which costs nothing. To go through all that pytest collected and rooms imported took
    # 100 ms a test, two thirds of the whole run.
    gc.freeze()
    yield
    for _ in range(TURNS_TO_SETTLE):
        await asyncio.sleep(0)
    ends_s = loop.time() + GOODBYE_S
    while (sockets := open_sockets()) and loop.time() < ends_s:
        await asyncio.sleep(0.001)
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    # A task's unread error is reported when the task is collected.
    gc.collect()
    gc.unfreeze()
    await asyncio.sleep(0)
    assert not sockets, f"sockets left open: {sockets}"
    assert not left, f"tasks left running: {left}"
    assert not lost, f"errors that nobody read: {lost}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` runs the tests twice, each test once."""
    parser.addoption(
        "--alone", choices=("only", "without"), help="run only the tests marked `alone`, or all but those"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Share the ports out: two workers that ask for one at the same time shall not both be given the same."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        number, workers = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
        ports._given.update(port for port in range(MOST_PORTS) if port % workers != number)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another run has, and give every async test the alarm, first: it is torn down after all else."""
    runs = config.getoption("--alone")
    if runs:
        alone = [item for item in items if item.get_closest_marker("alone")]
        beside = [item for item in items if not item.get_closest_marker("alone")]
        items[:], left_out = (alone, beside) if runs == "only" else (beside, alone)
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "no_lost_tasks")
