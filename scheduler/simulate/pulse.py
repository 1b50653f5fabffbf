"""Whether the demo's broker answers: one small connection that pings.

Agents notice a frozen broker after twice their keepalive, the daemon once its readings are stale: a person who looks
at the demo has placed a dozen pods without readings by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NoReturn

from scheduler.core.clock import Clock

PING_EVERY_S = 1.0
# A busy machine may be late by a second or two; a broker that is later is worth a word.
SILENT_S = 3.0

_CLIENT_ID = b"wattbalance-demo-pulse"
# MQTT 5, a clean start, no keepalive, no properties.
_ABOUT = b"\x00\x04MQTT\x05\x02\x00\x00\x00" + len(_CLIENT_ID).to_bytes(2, "big") + _CLIENT_ID
_CONNECT = bytes([0x10, len(_ABOUT)]) + _ABOUT
_PING = b"\xc0\x00"
_SOME_BYTES = 4096


class BrokerPulse:
    """Pings a broker, and knows for how long it has been silent."""

    def __init__(self, host: str, port: int, clock: Clock) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._heard_mono_s = clock.mono_s()
        self.most_silent_s = 0.0
        """The longest silence that was worth a word; 0: there was none."""

    @property
    def silent_s(self) -> float:
        """For how long nothing has come; 0 while that is no more than usual."""
        silent_s = self._clock.mono_s() - self._heard_mono_s
        if silent_s <= SILENT_S:
            return 0.0
        self.most_silent_s = max(self.most_silent_s, silent_s)
        return silent_s

    async def run(self) -> NoReturn:
        """Ping until cancelled."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    await self._ping_on(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(PING_EVERY_S)

    async def _ping_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the connection ends. A frozen broker's keeps standing, and answers when it is let go on."""
        writer.write(_CONNECT)
        while await reader.read(_SOME_BYTES):
            self._heard()
            await asyncio.sleep(PING_EVERY_S)
            writer.write(_PING)

    def _heard(self) -> None:
        # Read first: it notes how long the silence was that ends here.
        _ = self.silent_s
        self._heard_mono_s = self._clock.mono_s()
