"""What the Dates of the API server's answers tell of its clock."""

import logging
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.server_clock import LEAST_OFFSET_S, ServerClock
from scheduler.core.clock import ManualClock


class World:
    """Our clock, a true one that the server has, and answers that take their time."""

    def __init__(self, ahead_s: float = 0.0) -> None:
        self.ours = ManualClock()
        self.ahead_s = ahead_s
        """The server's."""
        self.clock = ServerClock(self.ours)

    @property
    def server_unix_s(self) -> float:
        return self.ours.unix_s() + self.ahead_s

    def ask(self, there_s: float = 0.01, back_s: float = 0.01) -> None:
        asked_mono_s = self.ours.mono_s()
        self.ours.advance(there_s)
        date = formatdate(self.server_unix_s, usegmt=True)
        self.ours.advance(back_s)
        self.clock.see(date, asked_mono_s)

    def step(self, by_s: float) -> None:
        """Somebody sets our wall clock, not the server's."""
        mono_s = self.ours.mono_s()
        self.ours.__init__(mono_s, self.ours.unix_s() + by_s)  # type: ignore[misc]  # the same object goes on
        self.ahead_s -= by_s


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, -7200.0, 10.0])
def test_a_wrong_clock_of_ours_is_known_and_corrected(ahead_s: float) -> None:
    world = World(ahead_s)
    assert world.clock.offset_s is None
    for _ in range(3):
        world.ask()
    assert world.clock.offset_s == pytest.approx(ahead_s, abs=1.1)
    assert world.clock.unix_s() == pytest.approx(world.server_unix_s, abs=1.1)
    assert world.clock.mono_s() == world.ours.mono_s()
    assert world.clock.is_off()


@given(
    start_s=st.floats(0, 1),
    trips_s=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=10),
    ahead_s=st.floats(-0.9, 0.9),
)
def test_slow_answers_of_a_server_that_agrees_change_nothing(
    start_s: float, trips_s: list[tuple[float, float]], ahead_s: float
) -> None:
    world = World(ahead_s)
    world.ours.advance(start_s)
    for there_s, back_s in trips_s:
        world.ask(there_s, back_s)
    assert not world.clock.is_off()
    assert world.clock.unix_s() == world.ours.unix_s()


@given(
    ahead_s=st.floats(-7200, 7200),
    trips_s=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=3, max_size=9),
)
def test_however_slow_the_answers_we_are_never_made_worse(
    ahead_s: float, trips_s: list[tuple[float, float]]
) -> None:
    world = World(ahead_s)
    for there_s, back_s in trips_s:
        world.ask(there_s, back_s)
    wrong_s = abs(world.clock.unix_s() - world.server_unix_s)
    # A second is what Date leaves open.
    assert wrong_s <= max(abs(ahead_s), LEAST_OFFSET_S) + 1e-3


def test_our_clock_that_is_set_right_is_believed_at_once() -> None:
    world = World(3600.0)
    for _ in range(5):
        world.ask()
    world.step(3600.0)
    assert world.clock.unix_s() == world.ours.unix_s()
    assert not world.clock.is_off()


def test_our_clock_that_steps_while_we_run_makes_no_pod_older() -> None:
    world = World()
    for _ in range(5):
        world.ask()
    world.step(3600.0)
    assert world.clock.unix_s() == pytest.approx(world.server_unix_s, abs=0.1)
    assert world.clock.is_off()


def test_what_is_no_date_and_few_wrong_answers_say_nothing() -> None:
    world = World()
    for text in ("", "yesterday", "Mon, 99 Nov 2026 99:99:99 GMT", "-", "\ud800"):
        world.clock.see(text, world.ours.mono_s())
    assert world.clock.offset_s is None
    for _ in range(3):
        world.ask()
    for _ in range(2):
        world.clock.see("Thu, 01 Jan 1970 00:00:00 GMT", world.ours.mono_s())
    assert world.clock.unix_s() == world.ours.unix_s()


def test_it_is_told_once_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(-3600.0)
    for _ in range(6):
        world.ask()
    world.step(-3600.0)
    for _ in range(3):
        world.ask()
    assert [record.getMessage() for record in caplog.records] == [
        "our clock is 3599 s ahead of the API server's, whose counts for the age of pods: set the time here",
        "our clock agrees with the API server's again",
    ]
