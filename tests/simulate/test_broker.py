"""Both brokers are started for real; the check is a message that goes through."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiomqtt
import pytest

from scheduler.simulate.broker import BrokerHandle, BrokerKind, NoBroker, find_mosquitto, running_broker

# Only so that a message that never comes fails the test.
PATIENCE_S = 60.0
KINDS = [
    pytest.param(
        BrokerKind.MOSQUITTO,
        marks=pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto is installed"),
    ),
    BrokerKind.IOTCORE,
]


def client(broker: BrokerHandle, name: str) -> aiomqtt.Client:
    return aiomqtt.Client(broker.host, broker.port, identifier=name, protocol=aiomqtt.ProtocolVersion.V5)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_goes_through(kind: BrokerKind) -> None:
    async with running_broker(kind) as broker:
        assert broker.kind is kind
        async with (
            asyncio.timeout(PATIENCE_S),
            client(broker, "in") as reader,
            client(broker, "out") as writer,
        ):
            await reader.subscribe("a/#")
            await writer.publish("a/b", b"x" * 30_000, qos=1)
            message = await anext(aiter(reader.messages))
        assert len(message.payload) == 30_000


@pytest.mark.parametrize("kind", KINDS)
async def test_a_late_subscriber_gets_what_was_retained_by_many(kind: BrokerKind) -> None:
    want_names = {f"a/{i}" for i in range(300)}
    async with running_broker(kind) as broker, asyncio.timeout(PATIENCE_S):
        async with client(broker, "out") as writer:
            for name in sorted(want_names):
                await writer.publish(name, b"here", qos=1, retain=True)
        async with client(broker, "in") as reader:
            await reader.subscribe("a/+", qos=0)
            got: set[str] = set()
            async for message in reader.messages:
                got.add(message.topic.value)
                if len(got) == len(want_names):
                    break
    assert got == want_names


@pytest.mark.parametrize("kind", KINDS)
async def test_the_child_is_gone_after_the_block_even_if_it_fails(kind: BrokerKind) -> None:
    pids: list[int] = []

    async def fail_inside() -> None:
        async with running_broker(kind) as broker:
            pids.append(broker.pid)
            os.kill(broker.pid, 0)
            raise KeyError

    with pytest.raises(KeyError):
        await fail_inside()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_two_brokers_live_side_by_side() -> None:
    async with running_broker() as one, running_broker() as two:
        assert one.port != two.port


async def test_a_named_mosquitto_that_is_not_there_is_said() -> None:
    with pytest.raises(NoBroker, match="/no/such/mosquitto"):
        async with running_broker(mosquitto="/no/such/mosquitto"):
            pass


async def test_no_broker_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.simulate.broker.find_mosquitto", lambda _named: None)
    with pytest.raises(NoBroker, match="apt install mosquitto"):
        async with running_broker(BrokerKind.MOSQUITTO):
            pass


async def test_a_broker_that_dies_at_start_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "mosquitto"
    script.write_text("#!/bin/sh\necho my last words >&2\nexit 3\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(NoBroker, match="my last words"):
        async with running_broker(mosquitto=str(script)):
            pass
