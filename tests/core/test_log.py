"""Log lines: their form, their fields, and that nobody ever waits for stderr."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from scheduler.core import log
from scheduler.core.log import kv


def record_of(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("room.file").makeRecord(
        "room.file", logging.INFO, "file.py", 7, message, args, None, extra=extra
    )


def json_line(record: logging.LogRecord) -> dict[str, object]:
    line = log.JsonFormatter().format(record)
    assert "\n" not in line
    decoded = json.loads(line)
    assert isinstance(decoded, dict)
    return decoded


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def test_a_json_line_holds_time_level_logger_message_and_fields() -> None:
    line = json_line(record_of("bound %s", "pod-1", **kv(node="n1", score=0.5)))
    assert str(line.pop("time")).endswith("+00:00")
    want_line = {"level": "info", "logger": "room.file", "message": "bound pod-1", "node": "n1", "score": 0.5}
    assert line == want_line


def test_a_field_cannot_take_the_place_of_what_every_line_has() -> None:
    line = json_line(record_of("hello", **kv(message="other", level=3)))
    assert (line["message"], line["level"]) == ("hello", "info")
    assert (line["message_"], line["level_"]) == ("other", 3)


@pytest.mark.parametrize(
    ("value", "want_value"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (float("nan"), None),
        (b"\xff", "/w=="),
        (ValueError("x"), "x"),
        ({"a": {1, 2}}, {"a": [1, 2]}),
    ],
)
def test_any_value_becomes_json(value: object, want_value: object) -> None:
    assert json_line(record_of("m", **kv(field=value)))["field"] == want_value


def test_a_value_that_json_cannot_hold_still_gives_a_line() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    for value in ("\ud800", cycle, {(1, 2): 3}):
        assert json_line(record_of("m", **kv(field=value)))


def test_an_error_carries_its_traceback_in_one_line() -> None:
    logger = logging.getLogger("room.file")
    try:
        raise ValueError("broken")
    except ValueError:
        record = logger.makeRecord("room.file", logging.ERROR, "file.py", 7, "failed", (), sys.exc_info())
    assert str(json_line(record)["error"]).endswith("ValueError: broken")
    assert log.TextFormatter().format(record).endswith("ValueError: broken")


def test_a_text_line_quotes_only_where_needed() -> None:
    line = log.TextFormatter().format(record_of("bound", **kv(node="n1", why="two words", empty="")))
    assert line.endswith("room.file: bound  node=n1  why='two words'  empty=''")


class Told:
    """What has more to say than a person wants to read in a line."""

    def in_words(self) -> str:
        return "all that\x1b[2J\nmatters"


def test_a_text_line_tells_in_words_what_has_words_and_nothing_that_drives_a_terminal() -> None:
    line = log.TextFormatter().format(record_of("decision", **kv(decision=Told(), node="n1")))
    assert line.endswith("room.file: decision  all that?[2J?matters  node=n1")


def test_lines_arrive_in_order_and_stop_writes_what_is_left(pipe: tuple[int, int]) -> None:
    writer = log.LogWriter(pipe[1])
    writer.setFormatter(log.JsonFormatter())
    for number in range(100):
        writer.handle(record_of("m", **kv(number=number)))
    writer.stop(timeout_s=30)
    lines = os.read(pipe[0], 65_536).splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(100))
    assert writer.dropped == 0


def test_a_stderr_that_nobody_reads_drops_and_counts_and_never_blocks(pipe: tuple[int, int]) -> None:
    writer = log.LogWriter(pipe[1], most_lines=50)
    writer.setFormatter(log.JsonFormatter())
    # The pipe holds 64 KiB and the writer as much again; these are 200 kB.
    for _ in range(200):
        writer.handle(record_of("x" * 1000))
    assert writer.dropped >= 20
    # Once somebody reads, the count is a line of its own.
    text = b""
    stopper = threading.Thread(target=writer.stop, kwargs={"timeout_s": 30})
    stopper.start()
    while b"log lines dropped" not in text:
        text += os.read(pipe[0], 65_536)
    stopper.join(30)
    told = next(json.loads(line) for line in text.splitlines() if b"dropped" in line)
    assert told["count"] == writer.dropped
    assert text.count(b"\n") - 1 + writer.dropped == 200


def test_a_closed_stderr_is_survived() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = log.LogWriter(write_end)
    writer.setFormatter(log.TextFormatter())
    writer.handle(record_of("lost"))
    writer.stop(timeout_s=30)
    os.close(write_end)
    assert writer.dropped == 1


def test_arguments_that_do_not_fit_their_format_do_not_stop_the_caller(pipe: tuple[int, int]) -> None:
    writer = log.LogWriter(pipe[1])
    writer.setFormatter(log.JsonFormatter())
    writer.handle(record_of("%d apples", "no"))
    writer.stop(timeout_s=30)
    assert b"unprintable log call of room.file: '%d apples'" in os.read(pipe[0], 65_536)


def test_setup_takes_other_libraries_lines_along_and_a_blocked_stderr_does_not_delay_the_end() -> None:
    """In a process of its own, since it replaces the root logger's handlers. Nobody reads its stderr."""
    script = """
import logging
from scheduler.core import log
writer = log.setup("info", "json")
logging.getLogger("other.library").debug("hidden")
for _ in range(500):
    logging.getLogger("other.library").warning("y" * 1000)
writer.stop(timeout_s=0.1)
print("ended")
"""
    read_end, write_end = os.pipe()
    try:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=write_end, timeout=60, check=True)
        first = os.read(read_end, 65_536).splitlines()[0]
    finally:
        os.close(read_end)
        os.close(write_end)
    assert done.stdout == b"ended\n"
    assert json.loads(first)["logger"] == "other.library"
