"""Loops that must not end, and how long to wait before trying again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from scheduler.core.errors import CannotListen, ConfigError
from scheduler.core.log import kv

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

T = TypeVar("T")

_log = logging.getLogger(__name__)


class LoopEndedError(Exception):
    """A loop returned that should run for ever: a fault of ours, and the end of its task group."""


async def guard(name: str, loop: Awaitable[object]) -> NoReturn:
    """Await a loop that must not return; log under `name` why it ended, if not by cancellation.

    Raises:
        LoopEndedError: the loop returned. Let it end the task group: the process exits and is started anew.
    """
    try:
        await loop
    except (CannotListen, ConfigError):
        # What a person has to put right is said in one line by whoever ends the process.
        raise
    except Exception:
        # Logged here because an ExceptionGroup's traceback no longer says which loop it was.
        _log.exception("loop %s failed", name)
        raise
    _log.error("loop %s returned, which it must not", name)
    raise LoopEndedError(name)


def tell_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught, in one line; for `loop.set_exception_handler`.

    The loop's own handler prints a traceback, most of it asyncio's, for what is often a peer's hanging up.
    """
    error = context.get("exception")
    what = {} if error is None else {"exception": type(error).__name__, "text": str(error)}
    task = context.get("task") or context.get("future")
    if isinstance(task, asyncio.Task):
        what["task"] = task.get_name()
    traceback = error if _log.isEnabledFor(logging.DEBUG) else None
    _log.error("%s", context.get("message") or "unhandled", extra=kv(**what), exc_info=traceback)


def end_if_cancelled() -> None:
    """Raise what was lost: call it after each wait of a client library.

    Python 3.11's asyncio.wait_for, inside such a library, loses a cancellation that meets the wait's own end. What goes
    on then is cancelled by nobody again, and the process ends by SIGKILL only.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextlib.contextmanager
def own_cancellations() -> Iterator[None]:
    """Take back the cancellation that a task group asks of its own task when a child fails; 3.11's leaves it."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    except BaseExceptionGroup:
        if task is not None and task.cancelling() > before:
            task.uncancel()
        raise


class SideThread:
    """Runs a call that may block, one at a time, in a daemon thread, which does not hold the end of the process.

    `asyncio.to_thread` would: its threads are joined at the end, and a file on a dead mount is read for ever.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: asyncio.Future[object] | None = None

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Give the result of `work`.

        Raises:
            TimeoutError: it took longer, or an earlier call has not come back yet, so that a call that hangs costs
                one thread however often it is tried again.
        """
        if self._open is not None:
            raise TimeoutError(f"{self._name}: the call before has not come back")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        result: list[T] = []

        def finish(error: BaseException | None) -> None:
            self._open = None
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

        def call() -> None:
            error: BaseException | None = None
            try:
                result.append(work())
            except BaseException as raised:  # noqa: BLE001 - carried to whoever awaits it, whatever it is
                error = raised
            # The loop may be closed by now: then nobody is left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, error)

        self._open = future
        threading.Thread(target=call, name=self._name, daemon=True).start()
        async with asyncio.timeout(timeout_s):
            await future
        return result[0]


class RetryDelays:
    """A list of delays, the last one repeated, each spread by half of itself either way.

    The spread keeps thousands of agents from coming back to a restarted broker in the same instant.
    """

    def __init__(self, delays_s: Sequence[float], random_frac: Callable[[], float] = random.random) -> None:
        if not delays_s or min(delays_s) < 0:
            message = f"delays must be a non-empty list of numbers >= 0, not {delays_s!r}"
            raise ValueError(message)
        self._delays_s = tuple(delays_s)
        self._random_frac = random_frac
        self.attempts = 0

    def next_s(self) -> float:
        """Say how long to wait before the next attempt, in seconds."""
        delay_s = self._delays_s[min(self.attempts, len(self._delays_s) - 1)]
        self.attempts += 1
        return delay_s * (0.5 + self._random_frac())

    def reset(self) -> None:
        """Start from the first delay again: the last attempt held."""
        self.attempts = 0
