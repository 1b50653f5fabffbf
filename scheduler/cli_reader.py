"""How a command ends whose reader went away, as `head` does once it has enough: quietly, by SIGPIPE's convention."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

UNREAD = 141  # as a shell says of a process that SIGPIPE ended: 128 + 13


def unless_unread(run: Callable[[], int]) -> int:
    """The exit code of a command, or UNREAD if what it had to say could not be written since nobody reads it.

    SIGPIPE itself stays ignored, as Python has it: it would end a daemon whose client hangs up.
    """
    try:
        code = run()
        # What is not flushed now would fail while the interpreter ends, with a traceback.
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go()
        return UNREAD
    except SystemExit as error:
        # click and rich end so at a broken pipe, and 1 means something else here. Rich has replaced stdout by then.
        by_rich = isinstance(error.__context__, BrokenPipeError)
        if error.code != 1 or not (by_rich or _is_gone(sys.stdout) or _is_gone(sys.stderr)):
            raise
        _let_go()
        return UNREAD
    return code


def _is_gone(stream: TextIO) -> bool:
    """Whether who read a stream has closed it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):
        # No stream of the system's.
        return False
    return bool(poll.poll(0))


def _let_go() -> None:
    """Let what is still in a buffer go nowhere: it is written when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if _is_gone(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
