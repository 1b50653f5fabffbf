"""A real MQTT broker as a child process: mosquitto where there is one, else iotcore from PyPI.

Loopback and a free port only, no accounts: for the demo, tests and benchmarks, never for production.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from scheduler.core.errors import BusError
from scheduler.simulate.ports import HOST, free_port


class BrokerKind(StrEnum):
    """Which broker."""

    MOSQUITTO = "mosquitto"
    IOTCORE = "iotcore"


class NoBroker(BusError):
    """No broker could be started; the message says what to install. Stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHandle:
    """A broker that accepts connections (MQTT 5)."""

    host: str
    port: int
    kind: BrokerKind
    pid: int
    poll: Callable[[], int | None] = lambda: None
    """Its exit code once it has ended."""

    @property
    def url(self) -> str:
        """As settings write it."""
        return f"mqtt://{self.host}:{self.port}"


# Debian keeps it where only root's PATH looks.
_MOSQUITTO_PLACES = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto")
# Another process may take the port between our choosing it and the broker's listening.
_TRIES = 3
_START_S = 10.0
_POLL_S = 0.02
_STOP_S = 5.0

# It stays the user that it was started as, root too: a change would take back that it ends with its parent.
# Queues: a subscriber that stalls for a second must not lose what 5,000 nodes sent, nor retained inventories.
_MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 20000
max_inflight_messages 0
max_packet_size 263168
memory_limit 536870912
user {user}
"""

# The defaults keep a log per filter without bound, take 20 KB a message, and hand out 200 retained messages.
_IOTCORE_TOML = """\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 2000
max_segment_size = 2097152
max_segment_count = 3
[v5.1]
name = "v5-1"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 100
dynamic_filters = true
"""

# Ends with its parent: stdin closes when the parent goes, however it goes. The logger would write a line per packet.
_IOTCORE_CHILD = """\
import logging, os, sys, threading
from iotcore import IotCoreBroker
logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
IotCoreBroker(config_path=sys.argv[1]).run_forever()
"""


@contextlib.asynccontextmanager
async def running_broker(
    kind: BrokerKind | None = None, *, mosquitto: str | None = None
) -> AsyncIterator[BrokerHandle]:
    """Hold a broker for as long as the block lasts.

    Args:
        kind: Which one; None takes mosquitto where there is one, else iotcore.
        mosquitto: Path of the mosquitto to use; None searches for it.

    Raises:
        NoBroker: There is none, or it would not start; says what to do, with the broker's own last words.
    """
    with tempfile.TemporaryDirectory(prefix="wattbalance-broker-") as folder:
        found, command, config = _choose(kind, mosquitto, Path(folder))
        process, port = await _start(found, command, config, Path(folder), named=mosquitto)
        try:
            yield BrokerHandle(host=HOST, port=port, kind=found, pid=process.pid, poll=process.poll)
        finally:
            await _stop(process)


def find_mosquitto(named: str | None = None) -> str | None:
    """Path of a mosquitto that can be run, if there is one."""
    if named is not None:
        return shutil.which(named)
    places = (shutil.which("mosquitto"), *_MOSQUITTO_PLACES)
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def _choose(
    kind: BrokerKind | None, mosquitto: str | None, folder: Path
) -> tuple[BrokerKind, list[str], str]:
    """What to run, and the template of its configuration."""
    path = find_mosquitto(mosquitto) if kind is not BrokerKind.IOTCORE else None
    if mosquitto is not None and kind is not BrokerKind.IOTCORE and path is None:
        raise NoBroker(f"--mosquitto: {mosquitto} is not a program that can be run")
    config = str(folder / "broker.toml")
    if path is not None:
        return BrokerKind.MOSQUITTO, [*with_parent(), path, "-c", config], _MOSQUITTO_CONF
    if kind is not BrokerKind.MOSQUITTO and importlib.util.find_spec("iotcore") is not None:
        # -P: a folder named iotcore in the working directory must not be taken for it.
        return BrokerKind.IOTCORE, [sys.executable, "-P", "-c", _IOTCORE_CHILD, config], _IOTCORE_TOML
    raise NoBroker("there is no MQTT broker here: `apt install mosquitto`, or `pip install iotcore`")


def with_parent() -> list[str]:
    """Prefix that lets the child end with us even if we are killed; setpriv is in Debian's util-linux."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


async def _start(
    kind: BrokerKind, command: list[str], template: str, folder: Path, *, named: str | None
) -> tuple[subprocess.Popen[bytes], int]:
    words = folder / "stderr"
    for _ in range(_TRIES):
        port = free_port()
        (folder / "broker.toml").write_text(
            template.format(host=HOST, port=port, user=getpass.getuser()), encoding="utf-8"
        )
        with words.open("wb") as stderr:
            # Popen, not asyncio's: the child must be stoppable after the loop has gone.
            process = subprocess.Popen(  # noqa: ASYNC220  # Forking takes a millisecond.
                # A session of its own: Ctrl-C reaches us, and we stop the broker last.
                command,
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            if await _accepts(process, port):
                return process, port
        except BaseException:
            await _stop(process)
            raise
        await _stop(process)
    said = words.read_text(encoding="utf-8", errors="replace").strip()[-500:]
    advice = (
        f"; see whether {named} is mosquitto (its -h says a version), or leave --mosquitto out"
        if named
        else ""
    )
    how = said or f"it said nothing, and ended with exit code {process.returncode}"
    raise NoBroker(f"{kind} did not start listening: {how}{advice}")


async def _accepts(process: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(int(_START_S / _POLL_S)):
        if process.poll() is not None:
            return False
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(_POLL_S)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return process.poll() is None
    return False


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child by its id and wait for it; a second signal if the first does not do."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(sign)
        # Not awaited: this must also work while we are being cancelled, and takes milliseconds.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
            break
    if process.stdin is not None:
        process.stdin.close()
