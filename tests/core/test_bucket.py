"""A token bucket gives what it promises: so many at once, then so many a second, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.bucket import TokenBucket


def test_it_gives_a_burst_at_once_and_then_as_fast_as_it_fills() -> None:
    bucket = TokenBucket(3, 2.0, now_mono_s=100.0)
    assert [bucket.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert bucket.wait_s(100.0) == 0.5
    assert [bucket.take(100.25), bucket.take(100.5), bucket.take(100.5)] == [False, True, False]
    assert [bucket.take(101.5) for _ in range(3)] == [True, True, False]


def test_it_holds_no_more_than_a_burst_however_long_it_rests() -> None:
    bucket = TokenBucket(2, 1.0, now_mono_s=0.0)
    assert [bucket.take(1e6) for _ in range(3)] == [True, True, False]
    assert bucket.wait_s(2e6) == 0.0


def test_whoever_waits_as_long_as_it_says_gets_one() -> None:
    bucket = TokenBucket(1, 0.3, now_mono_s=7.0)
    assert bucket.take(7.0)
    now_mono_s = 7.0
    while (wait_s := bucket.wait_s(now_mono_s)) > 0.0:
        assert not bucket.take(now_mono_s)
        now_mono_s += wait_s
    assert bucket.take(now_mono_s)
    assert now_mono_s == pytest.approx(7.0 + 1 / 0.3)


def test_a_clock_that_steps_back_gives_nothing_for_it() -> None:
    bucket = TokenBucket(1, 1.0, now_mono_s=10.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)
    assert bucket.wait_s(5.0) == 1.0


@given(
    burst=st.integers(1, 9),
    rate_per_s=st.floats(0.01, 50),
    gaps_s=st.lists(st.floats(0.0, 5.0), max_size=60),
)
def test_no_span_gets_more_than_the_limit(burst: int, rate_per_s: float, gaps_s: list[float]) -> None:
    bucket, now_mono_s = TokenBucket(burst, rate_per_s, now_mono_s=0.0), 0.0
    taken_mono_s = []
    for gap_s in gaps_s:
        now_mono_s += gap_s
        taken_mono_s += [now_mono_s] * sum(bucket.take(now_mono_s) for _ in range(3))
    for first, from_mono_s in enumerate(taken_mono_s):
        for last, to_mono_s in enumerate(taken_mono_s[first:], first):
            most = burst + rate_per_s * (to_mono_s - from_mono_s)
            assert last - first + 1 <= most + 1e-6
