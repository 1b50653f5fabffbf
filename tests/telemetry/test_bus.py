"""Publisher and subscriber over a real mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from scheduler.core.aio import RetryDelays
from scheduler.core.clock import SystemClock
from scheduler.core.errors import ConfigError
from scheduler.simulate.ports import free_port
from scheduler.telemetry import mqtt_client
from scheduler.telemetry.bus import BrokerSettings, NodePublisher, TelemetrySubscriber
from scheduler.telemetry.sample import inventory_hash
from tests.brokers import Authority, Broker, run_mosquitto
from tests.telemetry.bus_tools import PATIENCE_S, Collector, eventually, make_inventory, make_sample, running

CLUSTER = "c1"
ROOT = f"wattbalance/v1/{CLUSTER}/nodes"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with run_mosquitto(tmp_path) as started:
        yield started


def make_publisher(settings: BrokerSettings, node: str = "n1") -> NodePublisher:
    delays = RetryDelays([0.05, 0.1])
    return NodePublisher(settings, cluster=CLUSTER, node=node, clock=SystemClock(), delays=delays)


def make_subscriber(settings: BrokerSettings, collector: Collector) -> TelemetrySubscriber:
    return TelemetrySubscriber(
        settings,
        cluster=CLUSTER,
        handler=collector,
        clock=SystemClock(),
        delays=RetryDelays([0.05, 0.1]),
    )


async def publish_raw(broker: Broker, topic: str, payload: bytes, *, retain: bool = False) -> None:
    async with aiomqtt.Client(broker.host, broker.port) as client:
        await client.publish(topic, payload, qos=1, retain=retain)


async def test_a_sample_arrives_after_its_inventory_and_status(broker: Broker) -> None:
    collector = Collector()
    settings = BrokerSettings(url=broker.url)
    subscriber, publisher = make_subscriber(settings, collector), make_publisher(settings)
    publisher.set_inventory(make_inventory())
    async with running(subscriber.run(), publisher.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        publisher.offer(make_sample(seq=1))
        await eventually(lambda: collector.taken)
        assert (subscriber.connected, publisher.connected) == (True, True)
        assert subscriber.last_accepted_mono_s is not None
    want_hash = inventory_hash(make_inventory())
    assert [(node, payload_hash) for node, payload_hash, _ in collector.inventories] == [("n1", want_hash)]
    assert collector.seqs() == [1]
    assert collector.statuses == [("n1", True)]
    assert not collector.drops
    assert (subscriber.connected, publisher.connected) == (False, False)
    assert (publisher.published, publisher.dropped, subscriber.received) == (1, 0, 1)


async def test_a_late_subscriber_gets_what_is_retained(broker: Broker) -> None:
    settings = BrokerSettings(url=broker.url)
    publisher = make_publisher(settings)
    publisher.set_inventory(make_inventory())
    publisher.offer(make_sample(seq=1))
    async with running(publisher.run()):
        await eventually(lambda: publisher.published)
        collector = Collector()
        subscriber = make_subscriber(settings, collector)
        async with running(subscriber.run()):
            await eventually(lambda: collector.inventories and collector.statuses)
            publisher.offer(make_sample(seq=2))
            await eventually(lambda: collector.taken)
    assert collector.seqs() == [2]
    assert collector.statuses == [("n1", True)]


async def test_a_clean_stop_says_offline_at_once(broker: Broker) -> None:
    collector = Collector()
    settings = BrokerSettings(url=broker.url)
    subscriber, publisher = make_subscriber(settings, collector), make_publisher(settings)
    async with running(subscriber.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        async with running(publisher.run()):
            # Seen before it goes: of two messages on one topic that come together, only the newer is kept.
            await eventually(lambda: collector.statuses)
        await eventually(lambda: ("n1", False) in collector.statuses)
    assert collector.statuses == [("n1", True), ("n1", False)]


async def test_the_last_will_speaks_for_an_agent_that_was_killed(broker: Broker) -> None:
    script = (
        "import asyncio, sys\n"
        "from scheduler.core.clock import SystemClock\n"
        "from scheduler.telemetry.bus import BrokerSettings, NodePublisher\n"
        "settings = BrokerSettings(url=sys.argv[1])\n"
        "async def main():\n"
        f"    publisher = NodePublisher(settings, cluster={CLUSTER!r}, node='n1', clock=SystemClock())\n"
        "    await publisher.run()\n"
        "asyncio.run(main())\n"
    )
    collector = Collector()
    subscriber = make_subscriber(BrokerSettings(url=broker.url), collector)
    async with running(subscriber.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, broker.url)
        try:
            await eventually(lambda: collector.statuses)
            os.kill(process.pid, signal.SIGKILL)
            await eventually(lambda: ("n1", False) in collector.statuses)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert collector.statuses == [("n1", True), ("n1", False)]


async def test_after_a_restart_of_the_broker_everything_comes_again(broker: Broker) -> None:
    """The broker has no persistence here, so whatever it knows afterwards was sent anew."""
    collector = Collector()
    settings = BrokerSettings(url=broker.url)
    subscriber, publisher = make_subscriber(settings, collector), make_publisher(settings)
    publisher.set_inventory(make_inventory())
    async with running(subscriber.run(), publisher.run()):
        await eventually(lambda: publisher.connected and subscriber.connected)
        publisher.offer(make_sample(seq=1))
        await eventually(lambda: collector.seqs() == [1])
        broker.stop()
        await eventually(lambda: not publisher.connected and not subscriber.connected)
        assert publisher.last_error
        for seq in (2, 3, 4):
            publisher.offer(make_sample(seq=seq))
        broker.start()
        await eventually(lambda: publisher.connected and subscriber.connected)
        # The newest of those that could not be sent may have gone out before the subscriber was back. Offered again
        # and again, since QoS 0 loses what meets a connection that breaks once more.
        seqs = itertools.count(5)

        def arrived() -> bool:
            publisher.offer(make_sample(seq=next(seqs)))
            return collector.seqs()[-1] > 4

        await eventually(arrived)
        late = Collector()
        newcomer = make_subscriber(settings, late)
        async with running(newcomer.run()):
            await eventually(lambda: late.inventories and ("n1", True) in late.statuses)
    assert not {2, 3} & set(collector.seqs())
    want_least_drops = 2
    assert publisher.dropped >= want_least_drops


@pytest.mark.parametrize(
    ("want_reason", "payload"),
    [
        ("garbage", b"\xff\x00 not json"),
        ("garbage", b""),
        ("too_large", b"x" * 10_000_000),
        ("node_mismatch", make_sample("n2", 9)),
        ("version", make_sample(seq=9, v=2)),
        ("garbage", make_sample(seq=9).replace(b"100.0", b"NaN")),
        ("range", make_sample(seq=9, power_w=[-1.0, 1.0])),
        ("range", make_sample(seq=9, util_frac=[1.5, 0.0])),
        ("range", make_sample(seq=9, xid=[2**70, 0])),
        ("shape", make_sample(seq=9, power_w=[1.0])),
        ("unknown_inventory", make_sample(seq=9, inventory="0" * 16)),
        ("old_sequence", make_sample(seq=1)),
    ],
)
async def test_a_bad_payload_is_counted_and_the_next_sample_taken(
    broker: Broker, want_reason: str, payload: bytes
) -> None:
    collector = Collector()
    subscriber = make_subscriber(BrokerSettings(url=broker.url), collector)
    async with running(subscriber.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        await publish_raw(broker, f"{ROOT}/n1/inventory", make_inventory())
        await publish_raw(broker, f"{ROOT}/n1/samples", make_sample(seq=1))
        await eventually(lambda: collector.seqs() == [1])
        await publish_raw(broker, f"{ROOT}/n1/samples", payload)
        await eventually(lambda: collector.drops)
        await publish_raw(broker, f"{ROOT}/n1/samples", make_sample(seq=2))
        await eventually(lambda: collector.seqs() == [1, 2])
        assert subscriber.connected
    assert collector.drops == {want_reason: 1}


async def test_bad_state_messages_are_counted_and_change_nothing(broker: Broker) -> None:
    collector = Collector()
    subscriber = make_subscriber(BrokerSettings(url=broker.url), collector)
    async with running(subscriber.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        await publish_raw(broker, f"{ROOT}/n1/inventory", make_inventory())
        await eventually(lambda: collector.inventories)
        await publish_raw(broker, f"{ROOT}/n1/status", b"maybe")
        await eventually(lambda: collector.drops["garbage"] == 1)
        await publish_raw(broker, f"{ROOT}/n1/inventory", json.dumps({"v": 7, "node": "n1"}).encode())
        await eventually(lambda: collector.drops["version"] == 1)
        await publish_raw(broker, f"{ROOT}/n1/samples", make_sample(seq=1))
        await eventually(lambda: collector.taken)
    assert not collector.statuses


async def test_a_retained_sample_is_not_a_reading_of_now(broker: Broker) -> None:
    await publish_raw(broker, f"{ROOT}/n1/inventory", make_inventory(), retain=True)
    await publish_raw(broker, f"{ROOT}/n1/samples", make_sample(seq=1), retain=True)
    collector = Collector()
    subscriber = make_subscriber(BrokerSettings(url=broker.url), collector)
    async with running(subscriber.run()):
        await eventually(lambda: collector.drops)
    assert collector.drops == {"old_sequence": 1}
    assert not collector.taken


async def test_a_frozen_broker_is_noticed_by_both_sides_and_survived(broker: Broker) -> None:
    collector = Collector()
    settings = BrokerSettings(url=broker.url, keepalive_s=1, connect_timeout_s=1.0)
    subscriber, publisher = make_subscriber(settings, collector), make_publisher(settings)
    publisher.set_inventory(make_inventory())
    async with running(subscriber.run(), publisher.run()):
        await eventually(lambda: publisher.connected and subscriber.connected)
        broker.freeze()
        try:
            await eventually(lambda: not publisher.connected and not subscriber.connected)
        finally:
            broker.thaw()
        await eventually(lambda: publisher.connected and subscriber.connected)
        # Without an end: the keepalive of a second may cost a stalled machine more connections before one holds.
        seqs = itertools.count(1)

        def arrived() -> bool:
            publisher.offer(make_sample(seq=next(seqs)))
            return bool(collector.taken)

        await eventually(arrived)


async def test_stopping_does_not_wait_for_a_frozen_broker(broker: Broker) -> None:
    # Two seconds are granted for the goodbye; without a limit of its own it would be the keepalive's.
    publisher = make_publisher(BrokerSettings(url=broker.url, connect_timeout_s=1.0, keepalive_s=10_000))
    try:
        async with asyncio.timeout(PATIENCE_S):
            async with running(publisher.run()):
                await eventually(lambda: publisher.connected)
                broker.freeze()
    finally:
        broker.thaw()


async def test_an_absent_broker_is_tried_again_and_its_absence_told() -> None:
    publisher = make_publisher(BrokerSettings(url=f"mqtt://127.0.0.1:{free_port()}"))
    async with running(publisher.run()):
        await eventually(lambda: "refused" in publisher.last_error)
        for seq in range(5):
            publisher.offer(make_sample(seq=seq))
    want_drops = 4
    assert publisher.dropped == want_drops
    assert publisher.published == 0


async def test_tls_with_client_certificates_and_passwords_from_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    identity = authority.issue("n1")
    (tmp_path / "passwords").write_text(await _hashed(tmp_path), encoding="utf-8")
    options = ["require_certificate true", "allow_anonymous false", f"password_file {tmp_path}/passwords"]
    (tmp_path / "user").write_text("n1\n", encoding="utf-8")
    (tmp_path / "password").write_text("wrong\n", encoding="utf-8")
    with run_mosquitto(tmp_path, options=options, authority=authority) as broker:
        settings = BrokerSettings(
            url=broker.url.replace("127.0.0.1", "localhost"),
            ca_file=authority.ca_file,
            cert_file=identity.cert_file,
            key_file=identity.key_file,
            username_file=str(tmp_path / "user"),
            password_file=str(tmp_path / "password"),
        )
        collector = Collector()
        subscriber, publisher = make_subscriber(settings, collector), make_publisher(settings)
        publisher.set_inventory(make_inventory())
        async with running(subscriber.run(), publisher.run()):
            await eventually(lambda: "ot authori" in publisher.last_error)
            # The file is read again for each connection: a password that was put right needs no restart.
            (tmp_path / "password").write_text("secret\n", encoding="utf-8")
            await eventually(lambda: publisher.connected and subscriber.connected)
            publisher.offer(make_sample(seq=1))
            await eventually(lambda: collector.taken)


# paho drops the socket of a failed handshake unclosed; it goes with the last reference.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
async def test_tls_without_the_right_certificates_is_a_told_reason_not_a_crash(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    options = ["require_certificate true", "allow_anonymous true"]
    with run_mosquitto(tmp_path, options=options, authority=authority) as broker:
        distrusts = make_publisher(BrokerSettings(url=broker.url, ca_file=stranger.ca_file))
        unreadable = make_publisher(BrokerSettings(url=broker.url, ca_file=str(tmp_path / "absent.pem")))
        anonymous = make_publisher(BrokerSettings(url=broker.url, ca_file=authority.ca_file))
        async with running(distrusts.run(), unreadable.run(), anonymous.run()):
            await eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in distrusts.last_error)
            await eventually(lambda: "absent.pem" in unreadable.last_error)
            # The alert of TLS, or where the reset overtook it, that the broker hung up.
            await eventually(lambda: "certificate" in anonymous.last_error)
            assert "hung up" in anonymous.last_error
        assert not anonymous.connects


@pytest.mark.parametrize(
    ("answer", "want"),
    [(b"", "hung up while we connected"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no MQTT broker")],
)
async def test_what_is_no_broker_is_told_without_waiting_for_the_time_limit(
    answer: bytes, want: str, capfd: pytest.CaptureFixture[str]
) -> None:
    held: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        held.append(writer)
        if not answer:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        long_s = 100 * PATIENCE_S
        publisher = make_publisher(
            BrokerSettings(url=url, connect_timeout_s=long_s, keepalive_s=int(long_s)),
        )
        async with running(publisher.run()):
            await eventually(lambda: want in publisher.last_error)
            assert "mqtts://" in publisher.last_error
        for writer in held:
            writer.close()
    assert "failed to receive on socket" not in capfd.readouterr().err


@pytest.mark.parametrize("gives_up", ["itself", "cancelled"])
async def test_a_connection_that_never_stood_is_closed_at_once(gives_up: str) -> None:
    """Else it is on the loop until the collector finds it: a traceback when the broker ends, or when the loop has."""
    asked, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        while await reader.read(100):
            pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE_S):
        port = server.sockets[0].getsockname()[1]
        client = mqtt_client.Client("127.0.0.1", port, timeout=0.1 if gives_up == "itself" else PATIENCE_S)
        connecting = asyncio.create_task(client.__aenter__())
        await asked.wait()
        if gives_up == "cancelled":
            connecting.cancel()
        with contextlib.suppress(aiomqtt.MqttError, asyncio.CancelledError):
            await connecting
        # While there is still somebody who holds it.
        await closed.wait()
        assert client.refused == ""


@pytest.mark.parametrize("name", ["", "a/b", "a+", "#"])
async def test_names_that_cannot_be_a_topic_level_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="node"):
        make_publisher(BrokerSettings(), node=name)


async def _hashed(directory: Path) -> str:
    file = directory / "made"
    process = await asyncio.create_subprocess_exec("mosquitto_passwd", "-b", "-c", str(file), "n1", "secret")
    assert await process.wait() == 0
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("at", ["__aenter__", "subscribe", "publish"])
async def test_a_cancellation_that_the_client_library_loses_still_ends_the_loop(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Python 3.11's wait_for does lose one that meets the wait's own end; seen as a daemon that SIGTERM did not end."""
    whole = getattr(aiomqtt.Client, at)

    async def lossy(self: aiomqtt.Client, *given: Any, **named: Any) -> object:
        result = await whole(self, *given, **named)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        # Once: the goodbye is published too.
        monkeypatch.setattr(aiomqtt.Client, at, whole)
        return result

    settings = BrokerSettings(url=broker.url)
    monkeypatch.setattr(aiomqtt.Client, at, lossy)
    one = make_publisher(settings) if at == "publish" else make_subscriber(settings, Collector())
    task = asyncio.create_task(one._stay_connected())
    try:
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S / 4)
        assert done
        assert task.cancelled()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_broker_that_hangs_up_before_the_loops_turn_leaves_no_error_behind() -> None:
    """The alarm of all tests would tell of it; seen where a broker refused our certificate on a busy machine."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # As in the thread that connects.
        mqtt_client.Client("127.0.0.1")._on_socket_register_write(None, None, ours)
    await asyncio.sleep(0)


async def test_what_waits_for_room_on_the_wire_is_written_when_there_is_room() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = mqtt_client.Client("127.0.0.1")
        written = asyncio.Event()
        client._client.loop_write = written.set  # type: ignore[assignment,method-assign]  # Only that it is called.
        client._on_socket_register_write(None, None, ours)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await written.wait()
        finally:
            asyncio.get_running_loop().remove_writer(ours)


async def test_two_agents_of_one_name_are_told_of_each_other(broker: Broker) -> None:
    settings = BrokerSettings(url=broker.url)
    first, second = make_publisher(settings), make_publisher(settings)
    async with running(first.run()):
        await eventually(lambda: first.connected)
        async with running(second.run()):
            # Cleared as soon as one is back; they go on kicking each other off.
            await eventually(lambda: "another client with our id wattbalance-agent-n1" in first.last_error)
