"""What telemetry costs the daemon: nodes of 8 GPUs, one message a second each, through a real broker into the store.

    python -m benchmarks.telemetry [--nodes 1000] [--seconds 30]

Three processes beside the broker: a publisher over a few raw connections, the subscriber with the store behind it, and
as the floor a bare reader, which takes the same packets off a socket and decodes the same JSON, and nothing else. The
subscriber also holds a 1 ms heartbeat: how much CPU time passes between two beats is how long it holds the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from benchmarks._measure import Child, cpu_s, memory_bytes, percentile, tell, verdict
from scheduler.cluster.objects import Node
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.readings import StoreHandler
from scheduler.cluster.store import Store
from scheduler.config import load
from scheduler.core.clock import SystemClock
from scheduler.parts import make_store
from scheduler.simulate.broker import running_broker
from scheduler.telemetry.broker import BrokerSettings
from scheduler.telemetry.bus import TelemetrySubscriber
from scheduler.telemetry.sample import (
    SAMPLE_DECODER,
    GpuInventory,
    Inventory,
    Sample,
    encode,
    inventory_hash,
)
from scheduler.telemetry.topics import INVENTORY, SAMPLES, node_topic

CLUSTER = "bench"
GPUS = 8
CONNECTIONS = 4
# Agents spread over the interval; here in so many bursts.
BURSTS_PER_S = 50
WARM_S = 3.0
TICK_S = 0.25
BEAT_S = 0.001
MOST_DELAY_MS = 60_000
MOST_SHARE = 0.35
FULL_NODES = 5000
PACKET_BYTES = 2**20
CONFIG = """
cluster: {name: bench}
telemetry: {broker: "mqtt://127.0.0.1:1"}
listeners: [{address: "127.0.0.1:0", serves: [extender]}]
"""


def node_name(index: int) -> str:
    return f"gpu-node-{index:05d}.dc-1.example"


# --- MQTT 3.1.1, as much of it as a publisher and a bare reader need -------------------------------------------------


def packet(head: int, body: bytes) -> bytes:
    length, size = bytearray(), len(body)
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([head]) + bytes(length) + body


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def connect(port: int, name: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # No keep-alive: a benchmark ends before it would matter.
    sock.sendall(packet(0x10, text("MQTT") + bytes([4, 2, 0, 0]) + text(name)))
    answer = sock.recv(4)
    if answer[3:] != b"\0":
        message = f"the broker refused: {answer!r}"
        raise ConnectionError(message)
    return sock


def publishes(sock: socket.socket) -> Iterator[bytes]:
    """Payloads of what is received."""
    buffer = bytearray()
    while data := sock.recv(PACKET_BYTES):
        buffer += data
        at = 0
        while True:
            size, shift, pos = 0, 0, at + 1
            while pos < len(buffer):
                size |= (buffer[pos] & 0x7F) << shift
                shift, pos = shift + 7, pos + 1
                if buffer[pos - 1] < 0x80:
                    break
            else:
                break
            if pos + size > len(buffer):
                break
            if buffer[at] >> 4 == 3:
                topic = int.from_bytes(buffer[pos : pos + 2], "big")
                yield bytes(buffer[pos + 2 + topic : pos + size])
            at = pos + size
        del buffer[:at]


# --- the three processes ---------------------------------------------------------------------------------------------


def publish(port: int, nodes: int, seconds_s: float) -> None:
    """Inventories, retained; then a sample of each node each second."""
    rng = random.Random(1)
    connections = [connect(port, f"publisher-{n}") for n in range(CONNECTIONS)]
    names = [node_name(index) for index in range(nodes)]
    hashes = []
    for index, name in enumerate(names):
        gpus = [
            GpuInventory(uuid=f"GPU-{index}-{gpu}", model="NVIDIA H100 80GB HBM3", index=gpu)
            for gpu in range(GPUS)
        ]
        payload = encode(Inventory(v=1, node=name, gpus=gpus))
        hashes.append(inventory_hash(payload))
        connections[index % CONNECTIONS].sendall(
            packet(0x31, text(node_topic(CLUSTER, name, INVENTORY)) + payload)
        )
    samples = [_sample(name, each, rng) for name, each in zip(names, hashes, strict=True)]
    topics = [text(node_topic(CLUSTER, name, SAMPLES)) for name in names]
    time.sleep(1.0)
    start_s = time.monotonic()
    sent, late_s = 0, 0.0
    for turn in range(int(seconds_s * BURSTS_PER_S)):
        due_s = start_s + turn / BURSTS_PER_S
        now_s = time.monotonic()
        late_s = max(late_s, now_s - due_s)
        time.sleep(max(0.0, due_s - now_s))
        burst = [bytearray() for _ in connections]
        for index in range(turn % BURSTS_PER_S, nodes, BURSTS_PER_S):
            changed = msgspec.structs.replace(samples[index], seq=turn + 1, unix_s=time.time())
            burst[index % CONNECTIONS] += packet(0x30, topics[index] + encode(changed))
            sent += 1
        for connection, data in zip(connections, burst, strict=True):
            connection.sendall(data)
    tell(sent=sent, late_s=late_s, bytes=len(encode(samples[0])))
    input()


def _sample(name: str, inventory: str, rng: random.Random) -> Sample:
    def values(low: float, high: float) -> list[float | None]:
        return [round(rng.uniform(low, high), 3) for _ in range(GPUS)]

    return Sample(
        v=1,
        node=name,
        agent="0123456789abcdef",
        boot="b",
        seq=0,
        unix_s=0.0,
        span_s=1.0,
        inventory=inventory,
        state=["ok"] * GPUS,
        power_w=values(80, 700),
        util_frac=values(0, 1),
        energy_j=values(1e6, 1e9),
        power_max_w=values(80, 700),
        util_max_frac=values(0, 1),
        mem_util_frac=values(0, 1),
        mem_used_bytes=[rng.randrange(2**36) for _ in range(GPUS)],
        temp_c=values(30, 80),
        sm_clock_mhz=values(300, 1980),
    )


class Timed(StoreHandler):
    """The store's handler, with the age of each sample once the store has it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        # Milliseconds, counted: a list of them would grow, and growth is what is measured.
        self.delays_ms = np.zeros(MOST_DELAY_MS, np.int64)

    def samples(self, batch: Sequence[tuple[str, Sample, float]]) -> None:
        super().samples(batch)
        now_unix_s = time.time()
        for _, sample, _ in batch:
            self.delays_ms[min(int((now_unix_s - sample.unix_s) * 1e3), MOST_DELAY_MS - 1)] += 1

    def delay_s(self, frac: float) -> float:
        """The delay that this part of the samples did not exceed, to a millisecond, rounded up."""
        total = np.cumsum(self.delays_ms)
        return float(np.searchsorted(total, frac * total[-1]) + 1) / 1e3


async def subscribe(port: int, nodes: int) -> None:
    """The daemon's way in: subscriber, intake, drain, store. Answers each line with what was seen since the last."""
    clock = SystemClock()
    store = make_store(load(CONFIG))
    for index in range(nodes):
        made = {"metadata": {"name": node_name(index)}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
        store.apply(Changed(Kind.NODE, msgspec.convert(made, Node)), 0.0)
    handler = Timed(store)
    subscriber = TelemetrySubscriber(
        BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), cluster=CLUSTER, handler=handler, clock=clock
    )
    held_s: list[float] = []

    def beat(before_s: float | None = None) -> None:
        # A plain timer: a sleeping task would be woken one turn of the loop later than its time.
        now_s = time.thread_time()
        if before_s is not None:
            held_s.append(now_s - before_s)
        beating[:] = [asyncio.get_running_loop().call_later(BEAT_S, beat, now_s)]

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            store.tick(clock.mono_s())

    async def report() -> None:
        await subscriber.wait_connected()
        tell(ready=True)
        while True:
            word = await asyncio.to_thread(input)
            if word == "beat":
                # Only for the heartbeat's window: it costs CPU of its own.
                beat()
            elif beating:
                beating.pop().cancel()
            tell(
                received=subscriber.received,
                drops=dict(handler.drops) | dict(store.counters),
                fresh=int(store.snapshot.fresh.sum()),
                delay_p50_s=handler.delay_s(0.5),
                delay_p99_s=handler.delay_s(0.99),
                held_p999_s=percentile(held_s, 0.999) if held_s else 0,
            )
            handler.delays_ms[:] = 0
            held_s.clear()

    beating: list[asyncio.TimerHandle] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(subscriber.run(), name="telemetry.run")
        group.create_task(tick(), name="bench.tick")
        group.create_task(report(), name="bench.report")


def read_bare(port: int) -> None:
    """The floor."""
    sock = connect(port, "bare-reader")
    sock.sendall(packet(0x82, b"\0\1" + text(node_topic(CLUSTER, "+", SAMPLES)) + b"\0"))
    tell(ready=True)
    for payload in publishes(sock):
        SAMPLE_DECODER.decode(payload)


# --- the measurement -------------------------------------------------------------------------------------------------


async def measure(nodes: int, seconds_s: float) -> None:
    name = "benchmarks.telemetry"
    size = ("--nodes", str(nodes))
    # The heartbeat's window comes after the one that CPU is taken in.
    beat_s = min(10.0, seconds_s / 2)
    whole_s = WARM_S + seconds_s + beat_s
    async with running_broker() as broker:
        port = str(broker.port)
        with (
            Child(name, *size, "--role", "subscribe", "--port", port) as ours,
            Child(name, *size, "--role", "bare", "--port", port) as bare,
        ):
            ours.read()
            bare.read()
            with Child(
                name, *size, "--role", "publish", "--port", port, "--seconds", str(whole_s)
            ) as publisher:
                await asyncio.sleep(1.0 + WARM_S)
                ours.ask("start")
                start_s = time.monotonic()
                spent = {child: cpu_s(child.pid) for child in (ours, bare)}
                broker_s = cpu_s(broker.pid)
                rss_bytes = memory_bytes(ours.pid)
                await asyncio.sleep(seconds_s)
                took_s = time.monotonic() - start_s
                share = {child: (cpu_s(child.pid) - at) / took_s for child, at in spent.items()}
                broker_share = (cpu_s(broker.pid) - broker_s) / took_s
                grown_bytes = memory_bytes(ours.pid) - rss_bytes
                seen = ours.ask("beat")
                await asyncio.sleep(beat_s - 1.0)
                held_s = ours.ask("end")["held_p999_s"]
                sent = publisher.read()
                await asyncio.sleep(0.5)
                last = ours.ask("last")
    print(
        f"{nodes} nodes x {GPUS} GPUs at 1 Hz for {took_s:.0f} s, {sent['bytes']} bytes a message, {broker.kind}; "
        f"the publisher was at most {sent['late_s'] * 1e3:.0f} ms behind"
    )
    print(f"  {'':36}{'core share':>11}{'µs a message':>14}")
    for label, value in (
        ("ours, into the store", share[ours]),
        ("bare reader that only decodes", share[bare]),
        ("the broker, both readers", broker_share),
    ):
        print(f"  {label:36}{value:11.3f}{value / nodes * 1e6:14.1f}")
    print(
        f"  sample to store: p50 {seen['delay_p50_s'] * 1e3:.0f} ms, p99 {seen['delay_p99_s'] * 1e3:.0f} ms"
    )
    print(
        f"  taken {last['received']} of {sent['sent']}, dropped {last['drops'] or 0}, fresh {last['fresh']}"
    )
    print(f"  resident {rss_bytes / 2**20:.1f} MiB, {grown_bytes / 2**10:+.0f} KiB in {took_s:.0f} s\n")
    if nodes < FULL_NODES:
        # Not scaled up: larger batches cost less a message.
        print(f"The share's target is one of {FULL_NODES} nodes: --nodes {FULL_NODES}")
    verdict("core share", share[ours], MOST_SHARE)
    verdict("sample to store, p99", seen["delay_p99_s"], 2.0, " s")
    verdict("samples lost", sent["sent"] - last["received"], 0)
    # Ten minutes are the target; a short run says less, so that the allowance is what a page cache of malloc moves.
    verdict("growth", grown_bytes / 2**20, 1.0, " MiB")
    verdict("loop held, p99.9, CPU time between 1 ms beats", held_s * 1e3, 2.0, " ms")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--role", choices=["publish", "subscribe", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with contextlib.suppress(EOFError):
        if args.role == "publish":
            publish(args.port, args.nodes, args.seconds)
        elif args.role == "subscribe":
            asyncio.run(subscribe(args.port, args.nodes))
        elif args.role == "bare":
            read_bare(args.port)
        else:
            asyncio.run(measure(args.nodes, args.seconds))


if __name__ == "__main__":
    main()
