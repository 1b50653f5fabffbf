"""What speaks MQTT: an agent's publisher, the daemon's subscriber. Vendor errors stay here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from scheduler.core.aio import RetryDelays, SideThread, end_if_cancelled, guard, own_cancellations
from scheduler.core.errors import Disconnected
from scheduler.telemetry.broker import BrokerSettings, read_credentials
from scheduler.telemetry.drain import Drain, TelemetryHandler
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.mailbox import Mailbox
from scheduler.telemetry.mqtt_client import Client, HungUp, LastWords, NoAnswer, NotMqtt
from scheduler.telemetry.topics import (
    INVENTORY,
    OFFLINE,
    ONLINE,
    READ_KINDS,
    SAMPLES,
    STATUS,
    check_level,
    node_topic,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.core.clock import Clock

__all__ = ["BrokerSettings", "NodePublisher", "TelemetryHandler", "TelemetrySubscriber"]

_log = logging.getLogger(__name__)

# Between attempts to connect. Short first, since most losses are a broker's restart; 10 s bounds how long a
# recovered broker stays unused.
RECONNECT_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# A connection that lived this long was a good one: the delays start over. Two clients that kick each other
# off by their common id never live as long.
_HELD_S = 15.0
# The broker waits this long before it believes that an agent is gone, so that a flap stays quiet.
_WILL_DELAY_S = 2
# A last will is sent at the end of the session if that comes first, so the session must outlive the delay.
_SESSION_EXPIRY_S = 30
# How long a clean stop waits for the broker to take the word `offline`.
_GOODBYE_S = 2.0
# One PUBLISH that the daemon would take off the wire at all: above our own limit, so that what is too large
# is counted by us, and far below what would hurt; the broker holds back the rest.
_MOST_PACKET_BYTES = 16 * 2**20
# UnicodeError: a host name that no resolver takes.
_VENDOR_ERRORS = (aiomqtt.MqttError, OSError, UnicodeError)
# Without it a QoS 1 message on a connection that also receives waits 40 ms for the peer's delayed ACK.
_SOCKET_OPTIONS = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


class _Reconnecting(ABC):
    """What both sides are: one connection at a time, made again whenever it fails or ends."""

    def __init__(self, settings: BrokerSettings, clock: Clock, delays: RetryDelays | None) -> None:
        self._settings = settings
        self._clock = clock
        self._delays = delays or RetryDelays(RECONNECT_DELAYS_S)
        self._files = SideThread("telemetry-credentials")
        self.last_error = "not yet connected"
        """Why there is no connection, for people; empty while there is one."""
        self.connects = 0

    @abstractmethod
    async def _connection(self) -> None:
        """Hold one connection; raise Disconnected when it cannot be made or is lost."""

    async def _stay_connected(self) -> NoReturn:
        while True:
            began_mono_s = self._clock.mono_s()
            try:
                await self._connection()
            except Disconnected as error:
                self.last_error = str(error)
            end_if_cancelled()
            if self._clock.mono_s() - began_mono_s > _HELD_S:
                self._delays.reset()
            delay_s = self._delays.next_s()
            _log.warning("broker %s: %s; again in %.1f s", self._settings.url, self.last_error, delay_s)
            await asyncio.sleep(delay_s)


class NodePublisher(_Reconnecting):
    """The agent's side: keeps one connection and the newest unsent sample.

    The broker's memory is not relied upon: `online` and the inventory are sent on every connect.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        cluster: str,
        node: str,
        clock: Clock,
        delays: RetryDelays | None = None,
    ) -> None:
        check_level(cluster, "cluster")
        check_level(node, "node")
        super().__init__(settings, clock, delays)
        self._cluster = cluster
        self._node = node
        self._news = asyncio.Event()
        self._inventory: bytes | None = None
        self._inventory_sent = True
        self._sample: bytes | None = None
        self.connected = False
        self.published = 0
        """Samples handed to the connection. QoS 0: the broker may still not have got them."""
        self.dropped = 0
        """Samples that a newer one replaced before they could be sent."""

    def set_inventory(self, payload: bytes) -> None:
        """Publish an inventory, now and on every connect; always ahead of samples offered later."""
        self._inventory = payload
        self._inventory_sent = False
        self._news.set()

    def offer(self, payload: bytes) -> None:
        """Hand over a sample; the one before it, if still unsent, is dropped and counted."""
        if self._sample is not None:
            self.dropped += 1
        self._sample = payload
        self._news.set()

    async def run(self) -> NoReturn:
        """Connect, publish, and connect again, until cancelled; then say `offline`."""
        await self._stay_connected()

    async def _connection(self) -> NoReturn:
        will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho's.
        will.WillDelayInterval = _WILL_DELAY_S
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's.
        connect.SessionExpiryInterval = _SESSION_EXPIRY_S
        async with _connected(
            self._settings,
            self._files,
            client_id=self._settings.client_id or f"wattbalance-agent-{self._node}",
            properties=connect,
            will=aiomqtt.Will(self._topic(STATUS), OFFLINE, 1, True, will),  # Retained.
        ) as client:
            try:
                await client.publish(self._topic(STATUS), ONLINE, qos=1, retain=True)
                end_if_cancelled()
                if client.refused:
                    # Samples go out unanswered: without this word the node would be silent with nobody saying why.
                    text = (
                        f"the broker does not let us write {self._topic(STATUS)} ({client.refused}): see its "
                    )
                    raise Disconnected(
                        text + "access list, and whether node and certificate are the same name"
                    )
                self._inventory_sent = self._inventory is None
                self._news.set()
                self.connected = True
                self.last_error = ""
                self.connects += 1
                with own_cancellations():
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_until_lost(client), name="telemetry.watch")
                        group.create_task(self._publish(client), name="telemetry.publish")
            except asyncio.CancelledError:
                # Leaving the connection cleanly sends no last will, so say it.
                with contextlib.suppress(aiomqtt.MqttError):
                    await client.publish(self._topic(STATUS), OFFLINE, qos=1, retain=True, timeout=_GOODBYE_S)
                raise
            finally:
                self.connected = False
        raise AssertionError  # pragma: no cover  # The group never ends without an error.

    async def _publish(self, client: aiomqtt.Client) -> NoReturn:
        while True:
            end_if_cancelled()
            await self._news.wait()
            self._news.clear()
            if not self._inventory_sent and self._inventory is not None:
                self._inventory_sent = True
                await client.publish(self._topic(INVENTORY), self._inventory, qos=1, retain=True)
            if self._sample is not None:
                sample, self._sample = self._sample, None
                await client.publish(self._topic(SAMPLES), sample, qos=0)
                self.published += 1

    def _topic(self, kind: str) -> str:
        return node_topic(self._cluster, self._node, kind)


class TelemetrySubscriber(_Reconnecting):
    """The daemon's side: reads the telemetry of all nodes of one cluster into a handler."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        cluster: str,
        handler: TelemetryHandler,
        clock: Clock,
        delays: RetryDelays | None = None,
        turn_s: float = 0.000_35,
        linger_s: float = 0.02,
    ) -> None:
        """Prepare; nothing is connected before run().

        Args:
            settings: Where the broker is.
            cluster: Second level of the topics.
            handler: What to do with the telemetry.
            clock: For instants of receipt and for the length of turns.
            delays: Between attempts to connect.
            turn_s: How long decoding and handling may hold the loop at a time.
            linger_s: How long messages gather before they are decoded.
        """
        check_level(cluster, "cluster")
        super().__init__(settings, clock, delays)
        self._cluster = cluster
        self._mailbox = Mailbox(cluster, clock)
        self.intake = Intake()
        self._drain = Drain(self._mailbox, self.intake, handler, clock, turn_s=turn_s, linger_s=linger_s)
        self._client_id = settings.client_id or f"wattbalance-serve-{uuid.uuid4().hex[:12]}"
        self._subscribed = asyncio.Event()

    @property
    def received(self) -> int:
        """Samples that the handler took."""
        return self._drain.received

    @property
    def connected(self) -> bool:
        """Whether the broker has taken our subscriptions and the connection stands."""
        return self._subscribed.is_set()

    @property
    def last_accepted_mono_s(self) -> float | None:
        """When the newest message came in that was of use, of whatever kind; None: never."""
        return self._drain.last_accepted_mono_s

    async def wait_connected(self) -> None:
        """Return once connected. Give it a time limit: placing goes on without telemetry."""
        await self._subscribed.wait()

    async def run(self) -> NoReturn:
        """Connect and hand over telemetry, for ever, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(guard("telemetry.connect", self._stay_connected()), name="telemetry.connect")
            group.create_task(guard("telemetry.drain", self._drain.run()), name="telemetry.drain")
        raise AssertionError  # pragma: no cover  # Guarded loops never end without an error.

    async def _connection(self) -> None:
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's.
        connect.MaximumPacketSize = _MOST_PACKET_BYTES
        mailbox = self._mailbox

        class Sink(asyncio.Queue[aiomqtt.Message]):
            """Called by the client for each PUBLISH, in place of a queue and a task per message."""

            def put_nowait(self, item: aiomqtt.Message) -> None:
                # An exception out of here would make the client handle the same packet again, for ever.
                try:
                    mailbox.put(item.topic.value, item.payload, retained=item.retain)
                except Exception:  # noqa: BLE001  # Whatever it was, it is one message: counted.
                    mailbox.count("handler_failed")

        async with _connected(
            self._settings, self._files, client_id=self._client_id, properties=connect, sink=Sink
        ) as client:
            try:
                # QoS 0: some brokers stop after 100 retained messages at QoS 1. A status that is lost is
                # covered by the limit on a sample's age.
                topics = [(node_topic(self._cluster, "+", kind), 0) for kind in READ_KINDS]
                await client.subscribe(topics)
                end_if_cancelled()
                self._subscribed.set()
                self.last_error = ""
                self.connects += 1
                await _until_lost(client)
            finally:
                self._subscribed.clear()


@contextlib.asynccontextmanager
async def _connected(
    settings: BrokerSettings,
    files: SideThread,
    *,
    client_id: str,
    properties: Properties,
    will: aiomqtt.Will | None = None,
    sink: type[asyncio.Queue[aiomqtt.Message]] | None = None,
) -> AsyncIterator[Client]:
    """Hold one connection. Raises Disconnected, and nothing else, when it cannot be made or is lost."""
    try:
        credentials = await files.run(lambda: read_credentials(settings), settings.connect_timeout_s)
    except TimeoutError as error:
        message = "certificate, user name or password cannot be read: the file does not answer"
        raise Disconnected(message) from error
    heard = LastWords()
    try:
        async with Client(
            settings.host,
            settings.port,
            username=credentials.username,
            password=credentials.password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=settings.keepalive_s,
            timeout=settings.connect_timeout_s,
            tls_context=credentials.tls_context,
            socket_options=_SOCKET_OPTIONS,
            properties=properties,
            will=will,
            queue_type=sink,
            logger=heard.logger,
        ) as client:
            end_if_cancelled()
            yield client
    except _VENDOR_ERRORS as error:
        raise Disconnected(_in_words(error, settings, client_id, heard.text)) from error
    except BaseExceptionGroup as group:
        # Of the tasks that use the connection: all lost it, or one has a fault of ours, which goes on.
        lost, other = group.split(_VENDOR_ERRORS)
        if lost is None or other is not None:
            raise
        raise Disconnected(_in_words(lost.exceptions[0], settings, client_id, heard.text)) from group


def _in_words(error: BaseException, settings: BrokerSettings, client_id: str, cause: str) -> str:
    if isinstance(error, NotMqtt):
        hint = "" if settings.tls else ", or wants TLS (mqtts://)"
        return f"what answers is no MQTT broker{hint}"
    if isinstance(error, HungUp):
        if "alert" in cause:
            # TLS says what the other side did not like; with TLS 1.3 only after the handshake.
            return f"the broker hung up while we connected: {cause}"
        hint = "it may refuse our certificate" if settings.tls else "it may want TLS (mqtts://)"
        return f"the broker hung up while we connected{cause and ': '}{cause}; {hint}"
    if isinstance(error, NoAnswer) or str(error) == "Operation timed out":
        most_s = min(settings.connect_timeout_s, settings.keepalive_s)
        return f"no answer within {most_s:g} s: frozen, or no MQTT broker"
    if str(error) == "Disconnected during message iteration":
        # mosquitto 2.0 closes without a word when a second client comes with the same id.
        return f"the connection was lost; if that repeats, look for another client with our id {client_id}"
    return str(error) or type(error).__name__


async def _until_lost(client: aiomqtt.Client) -> None:
    """Wait until the connection is lost. Messages go to the sink, so none comes this way."""
    async for _ in client.messages:
        pass
