"""Guarded loops and retry delays."""

from __future__ import annotations

import asyncio
import logging

import pytest

from scheduler.core.aio import LoopEndedError, RetryDelays, guard


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
