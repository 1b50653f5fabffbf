"""When a pod was woken last is read from the pod, whoever wrote it there."""

from __future__ import annotations

from math import inf

import pytest

from scheduler import last_woken
from scheduler.cluster.pods import PodFacts, pod_facts
from scheduler.core.clock import ManualClock
from scheduler.last_woken import RETRY_ANNOTATION, SKEW_S, LastWoken
from tests.builders import make_pod

AGAIN_S = 10.0


def facts(said: str = "", name: str = "p1") -> PodFacts:
    found = pod_facts(make_pod(name, annotations={RETRY_ANNOTATION: said} if said else None))
    assert found is not None
    return found


def test_what_is_written_is_the_instant() -> None:
    clock = ManualClock()
    assert LastWoken(clock).write(facts()) == str(int(clock.unix_s()))


def test_what_is_written_is_another_each_time() -> None:
    clock = ManualClock()
    last = LastWoken(clock)
    now = int(clock.unix_s())
    assert last.write(facts(str(now))) == str(now + 1)
    # The watch may not have told of it yet.
    assert last.write(facts(str(now))) == str(now + 2)
    assert last.write(facts(str(now + 3))) == str(now + 4)


@pytest.mark.parametrize(
    ("ago_s", "want_left_s"),
    [
        (0, AGAIN_S + SKEW_S),
        (9, 1 + SKEW_S),
        (int(AGAIN_S + SKEW_S), -inf),
        (3600, -inf),
        (-5, AGAIN_S + SKEW_S),
        (-3600, AGAIN_S + SKEW_S),
    ],
)
def test_a_pod_rests_for_what_another_wrote_there(ago_s: int, want_left_s: float) -> None:
    clock = ManualClock()
    last, pod = LastWoken(clock), facts(str(int(clock.unix_s()) - ago_s))
    left_s = last.rests_until_mono_s(pod, AGAIN_S) - clock.mono_s()
    # Whole seconds are written.
    assert left_s == want_left_s or want_left_s - 1 < left_s <= want_left_s
    until_mono_s = last.rests_until_mono_s(pod, AGAIN_S)
    clock.advance(5.0)
    # However far in the future: once.
    assert last.rests_until_mono_s(pod, AGAIN_S) == until_mono_s


def test_for_what_we_wrote_nothing_is_added() -> None:
    clock = ManualClock()
    last = LastWoken(clock)
    assert last.rests_until_mono_s(facts(last.write(facts())), AGAIN_S) == -inf


@pytest.mark.parametrize("said", ["", "41", "soon", "-3", "9" * 11, "9" * 4000, "²", "007", "1e9"])
def test_what_is_no_instant_of_late_keeps_nobody_waiting(said: str) -> None:
    clock = ManualClock()
    last, pod = LastWoken(clock), facts(said)
    assert last.rests_until_mono_s(pod, AGAIN_S) == -inf
    assert last.write(pod) == str(int(clock.unix_s()))


def test_of_the_last_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_woken, "MOST_KEPT", 2)
    clock = ManualClock()
    last = LastWoken(clock)
    for name in ("a", "b", "a", "c"):
        last.write(facts(name=name))
    assert set(last._ours) == {"uid-a", "uid-c"}
