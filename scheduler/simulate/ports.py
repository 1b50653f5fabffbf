"""A loopback port for a program that must be told its port before it starts."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
_given: set[int] = set()


def free_port() -> int:
    """A port of loopback that is free now and that this process has not given before.

    The kernel's own choice for port 0 comes from the range that outgoing connections draw from as well: between
    the question and the program's bind any connection on the machine may take it. Below that range none does.

    Raises:
        OSError: no port is free.
    """
    ports = range(_FIRST, _ephemeral_first())
    # Two test runs side by side shall not begin at the same one.
    begin = random.SystemRandom().randrange(len(ports))
    for port in itertools.chain(ports[begin:], ports[:begin]):
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            _given.add(port)
            return port
    msg = f"no port of {HOST} from {_FIRST} to {_ephemeral_first() - 1} is free"
    raise OSError(msg)


def _ephemeral_first() -> int:
    try:
        first = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 0
    # Another system, or a range that leaves nothing below it: Linux' own default.
    return first if first > _FIRST else 32_768
