"""The daemon's own lines: standard logging, fields through `kv`, written by a thread so that stderr never blocks.

A line is encoded where it is logged and put into a bounded queue; what does not fit is dropped and counted, and the
count is a line of its own once there is room. The thread is a daemon and writes to the file descriptor itself: a
stderr that nobody reads can delay neither the event loop nor the end of the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
import traceback
from datetime import UTC, datetime

import msgspec

# 10,000 lines of 200 bytes are 2 MB, and ten seconds of a busy daemon.
MOST_LINES = 10_000
# A pipe takes 64 KiB at once.
_MOST_BATCH_BYTES = 65_536
# How long lines gather before they are written: to wake the thread for each would take the interpreter's lock from
# the event loop hundreds of times a second.
_LINGER_S = 0.05
# Fields may not take the names of what every line has.
_OWN_KEYS = frozenset({"time", "level", "logger", "message", "error"})


def kv(**fields: object) -> dict[str, dict[str, object]]:
    """Give fields to a log call: `logger.info("bound", extra=kv(pod=name, node=node))`."""
    return {"kv": fields}


def _plain(value: object) -> object:
    """Encode what msgspec does not know: numpy scalars by their value, all else by its text."""
    item = getattr(value, "item", None)
    if callable(item):
        with contextlib.suppress(Exception):  # an array's item() fails; its text is as good
            return item()
    return str(value)


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line[f"{key}_" if key in _OWN_KEYS else key] = value
        error = _error(record)
        if error:
            line["error"] = error
        try:
            return _ENCODER.encode(line).decode()
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            # A lone surrogate, a key that is no text, a cycle: the line matters more than its form.
            return _ENCODER.encode({key: ascii(value) for key, value in line.items()}).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00.000 INFO  scheduler.app: message  key=value`, for people.

    A value that has `in_words()` says by itself what a person wants to know of it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the line without its end; tracebacks follow on lines of their own."""
        instant = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f"  {_words(key, value)}" for key, value in _fields(record).items())
        line = f"{instant} {record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        error = _error(record)
        return f"{line}\n{error}" if error else line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "kv", None)
    return fields if isinstance(fields, dict) else {}


def _error(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return record.exc_text or ""


def _words(key: str, value: object) -> str:
    in_words = getattr(value, "in_words", None)
    if not callable(in_words):
        return f"{key}={_text(value)}"
    return "".join(each if each.isprintable() else "?" for each in str(in_words()))


def _text(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character in text for character in ' "\n\r\t=') else text


class LogWriter(logging.Handler):
    """Takes records from any thread and never waits; its own thread writes them."""

    def __init__(self, descriptor: int, most_lines: int = MOST_LINES) -> None:
        super().__init__()
        self.dropped = 0
        """Lines that did not fit, or that could not be written; since start."""
        self._descriptor = descriptor
        self._most_lines = most_lines
        # SimpleQueue may be put into from a signal handler or a finaliser while it is being put into; Queue may not.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._told = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log.write", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Encode one record and queue it."""
        # Not exact when several threads log at once, and need not be: it bounds memory.
        if self._lines.qsize() >= self._most_lines:
            self.dropped += 1
            return
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a format string that fits not its arguments must not stop the caller
            line = f"unprintable log call of {record.name}: {record.msg!r}"
        self._lines.put(line.encode(errors="backslashreplace") + b"\n")

    def stop(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, as far as that goes within the time; then let the thread end."""
        self._stopping.set()
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        ended = False
        while not ended:
            line = self._lines.get()
            self._stopping.wait(_LINGER_S)
            batch = bytearray()
            while line is not None:
                batch += line
                if len(batch) >= _MOST_BATCH_BYTES:
                    break
                try:
                    line = self._lines.get_nowait()
                except queue.Empty:
                    break
            ended = line is None
            batch += self._drops()
            self._write(bytes(batch))

    def _drops(self) -> bytes:
        count = self.dropped - self._told
        if not count:
            return b""
        self._told += count
        record = logging.makeLogRecord(
            {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "created": time.time()}
            | {"msg": "log lines dropped"}
            | kv(count=count)
        )
        return self.format(record).encode() + b"\n"

    def _write(self, batch: bytes) -> None:
        view = memoryview(batch)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Somebody set the terminal non-blocking; this thread may wait, nobody else does.
                time.sleep(0.01)
            except OSError:
                # Nobody reads any more. Saying so would need somewhere to write.
                lost = bytes(view).count(b"\n")
                self.dropped += lost
                self._told += lost
                return


def setup(level: str, form: str, descriptor: int | None = None) -> LogWriter:
    """Send all logging through one writer, and replace what was set up before.

    Args:
        level: debug, info, warning or error.
        form: json or text.
        descriptor: where to; None: stderr.

    Returns:
        The writer: `dropped` is for the metrics, `stop()` for the end of the process.
    """
    if descriptor is None:
        descriptor = sys.stderr.fileno()
    writer = LogWriter(descriptor)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if isinstance(handler, LogWriter):
            handler.stop()
    root.addHandler(writer)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # No line shows these, and asking for them is a third of a log call (Python's logging HOWTO, Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented switch for the caller's place
    return writer
