"""What was decided is decided again: a change of behaviour shows as a change of a log that people can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replay.player import HERE, LOGS, Player


@pytest.mark.parametrize("log", LOGS, ids=lambda log: str(log.relative_to(HERE)))
def test_a_log_is_decided_as_it_was(log: Path) -> None:
    played = Player().play(log.read_text())
    # After a change that is meant: python -m tests.replay.player, and read the diff.
    assert played == log.read_text()


def test_every_step_that_there_is_has_been_recorded() -> None:
    lines = [line for log in LOGS for line in log.read_text().splitlines() if line and line[0].isdigit()]
    assert {line.split()[1] for line in lines} == set(Player().steps)


def test_another_decision_would_show() -> None:
    log = "0 node n1\n0 pod p\n0 ask p\n"
    played = Player().play(log)
    assert "-> n1" in played
    assert Player().play(played) == played
    assert Player().play(played.replace("0 node n1\n", "0 node n1 quarantined=1\n")) != played
