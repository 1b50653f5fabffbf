"""Guarded loops and retry delays."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging

import pytest

from scheduler.core.aio import LoopEndedError, RetryDelays, guard, tell_unhandled
from scheduler.core.errors import CannotListen, ConfigError, Problem


async def test_a_loop_that_returns_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def returns() -> None:
        return

    with pytest.raises(LoopEndedError, match=r"telemetry\.drain"), caplog.at_level(logging.ERROR):
        await guard("telemetry.drain", returns())
    assert "telemetry.drain returned" in caplog.text


async def test_a_loop_that_fails_is_named_in_the_log_and_its_error_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise OSError(5, "boom")

    with pytest.raises(OSError, match="boom"), caplog.at_level(logging.ERROR):
        await guard("agent.sample", fails())
    assert "loop agent.sample failed" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        CannotListen.at("--listen", "127.0.0.1:1", OSError(errno.EADDRINUSE, "in use")),
        ConfigError([Problem(path="cluster", message="no")]),
    ],
)
async def test_what_a_person_must_put_right_goes_on_without_a_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)), caplog.at_level(logging.DEBUG, logger="scheduler.core.aio"):
        await guard("listeners.run", fails())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("number", "want"),
    [
        (errno.EADDRINUSE, "Address already in use; end what listens there"),
        (errno.EADDRNOTAVAIL, "Cannot assign requested address; set an address of this machine"),
        (errno.EACCES, "Permission denied; set a port from 1024 on"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_an_address_that_cannot_be_bound_is_told_with_what_to_do(number: int, want: str) -> None:
    told = str(CannotListen.at("listeners[0]", "10.9.9.9:80", OSError(number, "while attempting to bind")))
    assert told.startswith(f"listeners[0] (10.9.9.9:80): cannot be bound: {want}")


async def test_cancelling_a_guarded_loop_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="scheduler.core.aio"):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(guard("x", asyncio.Event().wait()))
            await asyncio.sleep(0)
            task.cancel()
    assert task.cancelled()
    assert caplog.text == ""


def test_the_last_delay_repeats_and_reset_starts_over() -> None:
    delays = RetryDelays([1.0, 2.0, 5.0], random_frac=lambda: 0.5)
    assert [delays.next_s() for _ in range(5)] == [1.0, 2.0, 5.0, 5.0, 5.0]
    delays.reset()
    want_first_s = 1.0
    assert delays.next_s() == want_first_s


def test_delays_are_spread_by_half_of_themselves() -> None:
    fractions = iter([0.0, 0.999_999])
    delays = RetryDelays([4.0], random_frac=lambda: next(fractions))
    assert delays.next_s() == pytest.approx(2.0)
    assert delays.next_s() == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize("bad", [[], [1.0, -1.0]])
def test_an_empty_or_negative_list_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="delays"):
        RetryDelays(bad)


@pytest.mark.parametrize(("level", "want_traceback"), [(logging.INFO, False), (logging.DEBUG, True)])
async def test_what_fails_in_a_callback_is_one_line(
    caplog: pytest.LogCaptureFixture, *, level: int, want_traceback: bool
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("in a task")

    def hang_up() -> None:
        raise OSError(9, "Bad file descriptor")

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(tell_unhandled)
    try:
        with caplog.at_level(level, logger="scheduler.core.aio"):
            loop.call_soon(hang_up)
            lost = loop.create_task(fail(), name="lost")
            await asyncio.wait([lost])
            # Nobody read its error.
            del lost
            gc.collect()
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    told = [
        (record.getMessage(), getattr(record, "kv", None), record.exc_info is not None)
        for record in caplog.records
    ]
    (callback, *first), (task, *second) = told
    assert callback.startswith("Exception in callback ")
    assert task == "Task exception was never retrieved"
    assert first == [{"exception": "OSError", "text": "[Errno 9] Bad file descriptor"}, want_traceback]
    assert second == [{"exception": "ZeroDivisionError", "text": "in a task", "task": "lost"}, want_traceback]
