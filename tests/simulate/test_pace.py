"""Whether a machine keeps up is measured before a run and said after it."""

from __future__ import annotations

from scheduler.core.clock import SystemClock
from scheduler.simulate.pace import USABLE_FRAC, fell_behind, most_pods_per_s, too_fast
from scheduler.simulate.traces import load_trace
from scheduler.simulate.workload import WorkloadModel


async def test_the_limit_falls_with_the_round_trip() -> None:
    model = WorkloadModel(load_trace(nodes=20), load_frac=0.5, speed_per_s=60.0, seed=1)
    alone_per_s = await most_pods_per_s(model, SystemClock(), 0.0)
    slow_per_s = await most_pods_per_s(model, SystemClock(), 1.0)
    assert alone_per_s > 1.0
    # A second of waiting for each pod cannot make more than one a second.
    assert slow_per_s < 1.0


def test_a_rate_within_reach_is_not_worth_a_word() -> None:
    assert too_fast(100.0 * USABLE_FRAC, 100.0, 60.0) is None


def test_a_rate_beyond_reach_is_told_with_numbers_and_a_speed_that_will_do() -> None:
    said = too_fast(1000.0, 500.0, 480.0)
    assert said is not None
    want_speed = 140  # 480 * 0.6 * 500 / 1000 = 144, rounded down.
    assert f"--speed {want_speed}," in said
    assert "1000 pods a second" in said


def behind(*, most_s: float, now_s: float, failed_calls: int = 0) -> str | None:
    return fell_behind(
        most_behind_s=most_s,
        behind_s=now_s,
        untried=700,
        wanted_per_s=1000.0,
        tried_per_s=300.0,
        speed_per_s=60.0,
        failed_calls=failed_calls,
    )


def test_a_run_that_kept_up_is_not_blamed() -> None:
    assert behind(most_s=0.4, now_s=0.2) is None


def test_a_run_that_caught_up_says_how_late_it_was() -> None:
    said = behind(most_s=4.2, now_s=0.1)
    assert said is not None
    assert "4.2 s" in said
    assert "caught up" in said


def test_a_run_that_stayed_behind_says_what_to_do() -> None:
    said = behind(most_s=30.0, now_s=30.0)
    assert said is not None
    assert "700 pods had not been tried" in said
    assert "--speed 10," in said


def test_a_run_whose_calls_failed_is_not_blamed_on_the_machine() -> None:
    said = behind(most_s=30.0, now_s=30.0, failed_calls=3)
    assert said is not None
    assert "3 calls of the daemon failed" in said
    assert "up to 30 s; at the end 700 had not been tried" in said
    assert "--speed" not in said
