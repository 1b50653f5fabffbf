"""What deploy/ ships for mosquitto, tried on a real one: it starts, and it refuses what must be refused."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from scheduler.core.aio import RetryDelays
from scheduler.core.clock import SystemClock
from scheduler.telemetry.bus import BrokerSettings, NodePublisher, TelemetrySubscriber
from scheduler.telemetry.sample import MOST_PAYLOAD_BYTES
from tests.brokers import Authority, Broker, Identity, run_mosquitto
from tests.telemetry.bus_tools import Collector, eventually, make_inventory, make_sample, running

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = "wattbalance/v1/c1/nodes"
# Replaced by the test's own: paths of the image, and where to listen and to log.
REPLACED = re.compile(r"^(listener|cafile|certfile|keyfile|acl_file|persistence_location|log_dest)\b")


class Site:
    """A broker with the shipped settings, and the people who use it."""

    def __init__(self, directory: Path, authority: Authority, broker: Broker) -> None:
        self.broker = broker
        self.authority = authority
        names = ("wattbalance-0", "n1", "n2")
        self.identities = {name: authority.issue(name) for name in names}

    def settings(self, name: str) -> BrokerSettings:
        identity = self.identities[name]
        return BrokerSettings(
            url=self.broker.url,
            ca_file=self.authority.ca_file,
            cert_file=identity.cert_file,
            key_file=identity.key_file,
        )

    def client(self, name: str, identifier: str | None = None) -> aiomqtt.Client:
        identity: Identity = self.identities[name]
        context = ssl.create_default_context(cafile=self.authority.ca_file)
        context.load_cert_chain(identity.cert_file, identity.key_file)
        return aiomqtt.Client(
            self.broker.host, self.broker.port, tls_context=context, identifier=identifier or name
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    shipped = (DEPLOY / "mosquitto.conf").read_text(encoding="utf-8").splitlines()
    options = [line for line in shipped if line and not line.startswith("#") and not REPLACED.match(line)]
    options += [f"acl_file {DEPLOY / 'mosquitto.acl'}", f"persistence_location {tmp_path}/"]
    authority = Authority(tmp_path)
    with run_mosquitto(tmp_path, options=options, authority=authority) as broker:
        yield Site(tmp_path, authority, broker)


def make_publisher(site: Site, name: str, node: str) -> NodePublisher:
    delays = RetryDelays([0.05])
    return NodePublisher(site.settings(name), cluster="c1", node=node, clock=SystemClock(), delays=delays)


async def test_a_node_reaches_the_daemon_with_its_own_name_only(site: Site) -> None:
    collector = Collector()
    subscriber = TelemetrySubscriber(
        site.settings("wattbalance-0"), cluster="c1", handler=collector, clock=SystemClock()
    )
    honest, liar = make_publisher(site, "n1", "n1"), make_publisher(site, "n2", "n1-victim")
    honest.set_inventory(make_inventory("n1"))
    liar.set_inventory(make_inventory("n1-victim"))
    async with running(subscriber.run(), honest.run()):
        await asyncio.wait_for(subscriber.wait_connected(), 30)
        async with running(liar.run()):
            await eventually(lambda: "does not let us write" in liar.last_error)
        assert not liar.connects
        assert "nodes/n1-victim/status (Not authorized)" in liar.last_error
        async with site.client("n2") as raw:
            for kind, payload in (("inventory", make_inventory), ("samples", make_sample)):
                await raw.publish(f"{ROOT}/n1-victim/{kind}", payload("n1-victim"), qos=1)
        # What the broker refused is gone by now: the honest one's message comes later on the same broker.
        honest.offer(make_sample("n1", seq=1))
        await eventually(lambda: collector.taken)
    assert {node for node, _, _ in collector.inventories} == {"n1"}
    assert {node for node, _ in collector.taken} == {"n1"}
    assert {node for node, _ in collector.statuses} == {"n1"}


async def test_a_node_cannot_write_caps_and_reads_its_own_only(site: Site) -> None:
    async with site.client("n1") as node, site.client("wattbalance-0") as daemon:
        await node.subscribe(f"{ROOT}/+/caps")
        # Each is acknowledged as if it had been taken; the last is the one that is allowed.
        await node.publish(f"{ROOT}/n1/caps", b"forged", qos=1)
        await daemon.publish(f"{ROOT}/n2/caps", b"of another", qos=1)
        await daemon.publish(f"{ROOT}/n1/caps", b"true", qos=1)
        message = await asyncio.wait_for(anext(aiter(node.messages)), 30)
    assert message.payload == b"true"


async def test_the_reserved_topics_are_a_nodes_own_too(site: Site) -> None:
    async with site.client("n1") as node, site.client("wattbalance-0") as daemon:
        await daemon.subscribe(f"{ROOT}/#")
        for kind in ("assignments", "caps/applied"):
            await node.publish(f"{ROOT}/n2/{kind}", b"forged", qos=1)
            await node.publish(f"{ROOT}/n1/{kind}", b"true", qos=1)
        messages = aiter(daemon.messages)
        got = [await asyncio.wait_for(anext(messages), 30) for _ in range(2)]
    assert [(message.topic.value, message.payload) for message in got] == [
        (f"{ROOT}/n1/assignments", b"true"),
        (f"{ROOT}/n1/caps/applied", b"true"),
    ]


async def test_another_clients_id_does_not_kick_it_off(site: Site) -> None:
    async with site.client("n1") as first, site.client("n2", identifier="n1"):
        await first.subscribe(f"{ROOT}/n1/caps")
        async with site.client("wattbalance-0") as daemon:
            await daemon.publish(f"{ROOT}/n1/caps", b"still there", qos=1)
        message = await asyncio.wait_for(anext(aiter(first.messages)), 30)
    assert message.payload == b"still there"


async def test_what_the_daemon_would_refuse_by_its_size_does_not_pass_the_broker(site: Site) -> None:
    async with site.client("wattbalance-0") as daemon:
        await daemon.subscribe(f"{ROOT}/n1/inventory")
        with contextlib.suppress(aiomqtt.MqttError):
            async with site.client("n1") as node:
                # Where the write fails first, the library keeps the hang-up for somebody who never asks.
                node._disconnected.add_done_callback(
                    lambda hang_up: hang_up.cancelled() or hang_up.exception()
                )
                await node.publish(f"{ROOT}/n1/inventory", b"y" * 2 * MOST_PAYLOAD_BYTES, qos=1, timeout=1)
        async with site.client("n1") as node:
            await node.publish(f"{ROOT}/n1/inventory", b"x" * MOST_PAYLOAD_BYTES, qos=1)
        message = await asyncio.wait_for(anext(aiter(daemon.messages)), 30)
    assert message.payload == b"x" * MOST_PAYLOAD_BYTES


def test_the_shipped_limits_stand() -> None:
    text = (DEPLOY / "mosquitto.conf").read_text(encoding="utf-8")
    for line in ("max_queued_messages 20000", "max_inflight_messages 0", "max_packet_size 263168"):
        assert f"\n{line}\n" in text
    assert "require_certificate true" in text
