"""The MQTT client: leaves nothing on the loop when it is given up, and says why a connection could not be made.

aiomqtt forgets the socket of a connection that is cancelled or runs out of time before it stands: it stays registered
until the collector finds it, which may be after the loop has ended. A broker that hangs up meanwhile goes unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode

if TYPE_CHECKING:
    from types import TracebackType

    from aiomqtt.types import PahoSocket
    from paho.mqtt.client import DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_log = logging.getLogger(__name__)

# The client's own look at its keepalive; aiomqtt looks as often.
_LOOK_S = 1.0


class HungUp(aiomqtt.MqttError):
    """The other side ended the connection before it stood."""


class NotMqtt(aiomqtt.MqttError):
    """The other side answered in no words of MQTT."""


class NoAnswer(aiomqtt.MqttError):
    """Nothing came before the keepalive's time was up."""


# CONNACK or AUTH; 0 while there is none.
_FIRST_ANSWERS = (0x00, 0x20, 0xF0)
# By what the library makes of its own error codes.
_ENDS = {"Protocol error": NotMqtt, "Keep alive timeout": NoAnswer}


class Client(aiomqtt.Client):
    """One connection; not to be used again. Pass a `LastWords().logger`: the library tells causes to loggers only."""

    refused = ""
    """What the broker says of a message that it took and will not pass on; aiomqtt drops that word."""
    _left = False
    _timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        try:
            return await super().__aenter__()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Take everything off the loop. What a thread is still connecting is closed when it comes: `_begin`."""
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
        self._client._sock_close()  # noqa: SLF001 - no public method closes without sending
        for future in (self._connected, self._disconnected):
            if future.done() and not future.cancelled():
                # Looked at, so that the loop does not report an error that nobody waits for any more.
                future.exception()

    def _on_socket_open(self, client: object, userdata: object, sock: PahoSocket) -> None:
        # Called in the thread that connects.
        self._loop.call_soon_threadsafe(self._begin, sock)

    def _begin(self, sock: PahoSocket) -> None:
        if self._left:
            self._client._sock_close()  # noqa: SLF001 - as in _leave
        elif sock.fileno() >= 0:
            self._loop.add_reader(sock.fileno(), self._read)
            self._look()

    def _look(self) -> None:
        if self._client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _on_socket_register_write(self, client: object, userdata: object, sock: PahoSocket) -> None:
        # Called in the thread that connects. By the loop's next turn a broker that refuses our certificate may have
        # hung up; aiomqtt would then register a closed file, and the loop's log would have a traceback.
        self._loop.call_soon_threadsafe(self._write_when_possible, sock)

    def _write_when_possible(self, sock: PahoSocket) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _on_socket_unregister_write(self, client: object, userdata: object, sock: PahoSocket) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())

    def _read(self) -> None:
        try:
            more = True
            while more:
                self._client.loop_read()
                first = self._client._in_packet["command"]  # noqa: SLF001 - the library waits for the rest of any
                if not self._connected.done() and first not in _FIRST_ANSWERS:
                    raise NotMqtt
                # TLS may have decoded more than was read, which the loop cannot see.
                pending = getattr(self._client.socket(), "pending", None)
                more = pending is not None and pending() > 0
        except Exception as error:  # noqa: BLE001  # Whatever it was, this connection is over.
            self._fail(error)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001  # Likewise.
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._connected.done():
            told = isinstance(error, aiomqtt.MqttError)
            self._connected.set_exception(error if told else aiomqtt.MqttError(repr(error)))
        elif not self._disconnected.done():
            self._disconnected.set_exception(error)

    def _on_disconnect(
        self,
        client: object,
        userdata: object,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not self._connected.done():
            # Perhaps in the thread that connects. aiomqtt would wait until its time is up.
            error = _ENDS.get(str(reason_code), HungUp)()
            self._loop.call_soon_threadsafe(self._fail, error)
        elif not self._connected.cancelled():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)  # type: ignore[arg-type]  # paho's client

    def _on_publish(
        self, client: object, userdata: object, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            self.refused = str(reason_code)
        super()._on_publish(client, userdata, mid, reason_code, properties)  # type: ignore[arg-type]  # paho's client


class LastWords(logging.Handler):
    """Keeps what the client library last logged of an error, which is the only place where it tells of causes."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""
        # Not one of the named loggers, which live for ever and print.
        self.logger = logging.Logger("mqtt", logging.ERROR)  # noqa: LOG001 - explained above
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.text = record.getMessage().removeprefix("failed to receive on socket: ")
        _log.debug("the client library says: %s", self.text)
