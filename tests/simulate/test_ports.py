"""Ports for programs that must be told theirs before they start."""

import socket
from pathlib import Path

import pytest

from scheduler.simulate import ports
from scheduler.simulate.ports import HOST, free_port


def test_no_port_is_given_twice_nor_from_where_outgoing_connections_draw_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text("10400\t60999\n")
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    # Beside other workers most of the range is theirs (tests/conftest.py).
    monkeypatch.setattr(ports, "_given", set())
    given = [free_port() for _ in range(50)]
    assert len(set(given)) == len(given)
    assert 10_000 <= min(given) <= max(given) < 10_400


def test_a_taken_port_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    with socket.create_server((HOST, free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_given", set())
        monkeypatch.setattr(ports, "range", lambda *_: (port, free), raising=False)
        assert free_port() == free
        with pytest.raises(OSError, match="no port of 127"):
            free_port()


@pytest.mark.parametrize("words", ["", "1024\t65535\n", "many"])
def test_a_range_that_leaves_nothing_below_it_is_taken_for_the_usual_one(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(words)
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    assert 10_000 <= free_port() < 32_768
