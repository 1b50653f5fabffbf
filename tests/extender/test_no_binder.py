"""kube-scheduler leaves binding to us, and we do not bind: who is told, how often, and until when."""

from __future__ import annotations

import pytest

from scheduler.cluster.pod_status import BIND_IS_OFF
from scheduler.core.clock import ManualClock
from scheduler.extender.no_binder import ASKED_LATELY_S, TOLD_AGAIN_S, NoBinder
from scheduler.extender.wire import BindArgs
from tests.extender.world import World

ASKED = BindArgs(namespace="ml", name="p", uid="u", node="n1")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_people_are_told_once_a_minute_which_setting_to_change(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    nobody = NoBinder(clock)
    assert not nobody.is_missed()
    for _ in range(3):
        error = nobody.bind(ASKED)
    assert error.startswith(f"{BIND_IS_OFF}extender.bind is off")
    assert "take bindVerb out" in error
    assert "set extender.bind: true" in error
    assert told(caplog) == [f"no pod is bound: {error}"]
    clock.advance(TOLD_AGAIN_S)
    nobody.bind(ASKED)
    assert len(told(caplog)) == 2
    assert nobody.results == {"off": 4}
    assert nobody.is_missed()
    clock.advance(ASKED_LATELY_S)
    assert not nobody.is_missed()


def test_who_observes_names_the_mode() -> None:
    error = NoBinder(ManualClock(), observe=True).bind(ASKED)
    assert error.startswith(f"{BIND_IS_OFF}mode is observe")
    assert "take bindVerb out" in error


async def test_it_is_counted_as_an_answer_to_bind() -> None:
    world = World(observe=True)
    assert BIND_IS_OFF in await world.bind()
    assert world.verbs.binds == {"off": 1}
    assert world.verbs.no_binder.is_missed()
