"""How long filter and prioritize take, measured from outside, beside a null extender in the same server.

    python -m benchmarks.extender_latency [--nodes 5000] [--rounds 5] [--calls 400] [--telemetry]

The server process holds the daemon's store, decider, verbs and listener, without Kubernetes. The null extender decodes
the same body, maps its names to rows and answers the same bytes: it is what no policy could be faster than. Each call
is a pod of its own, and its names are freshly shuffled, before the clock starts; rounds of ours and of the null's
alternate. With --telemetry another server is asked too, into whose store samples of all nodes flow, each once a
second; a heartbeat of 1 ms then says how long its loop is held by other things than calls.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import subprocess
import time
from dataclasses import dataclass

import msgspec

from benchmarks._flow import Flow, Heartbeat, answer_words
from benchmarks._measure import Child, cpu_s, percentile, tell, verdict
from benchmarks._null import NullVerbs
from benchmarks._questions import Connection, Questions, node_name
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.config import load
from scheduler.core.clock import SystemClock
from scheduler.core.log import setup
from scheduler.extender.server import ExtenderCounters, ExtenderServer
from scheduler.extender.verbs import Fence, Verbs
from scheduler.extender.wire import FilterArgs
from scheduler.listeners import Listeners, ListenerSpec
from scheduler.parts import make_decider, make_store
from scheduler.telemetry.sample import GpuInventory, Inventory, Sample

GPUS = 8
VERBS = ("filter", "prioritize")
# A binding is seen about this long after the filter, and ends the reservation.
BOUND_AFTER_S = 0.05
TICK_S = 0.25
MANY_PODS = 50_000
# Of a call with --telemetry's heartbeat: far enough apart that most beats have none near.
PACED_EVERY_S = 0.02
BEATING_S = 10.0

# All policies on; a reading stays fresh for the whole run, so that the two sides have nothing else to do.
CONFIG = """
cluster: {name: bench}
telemetry: {broker: "mqtt://127.0.0.1:1", stale: 1h}
pools:
  - {name: dc-1, kind: on-prem, selector: {site: dc-1}, spill: {after: 5m}}
  - {name: aws-a, kind: cloud, selector: {site: aws-a}}
profiles:
  batch:
    placement: decisive
    policies: {least-loaded: {weight: 3}, pack: {weight: 1}, freshness: {weight: 1}}
listeners: [{address: "127.0.0.1:0", serves: [extender]}]
"""


# --- the server process ----------------------------------------------------------------------------------------------


def fill(store: Store, nodes: int, pods: int, now_mono_s: float) -> None:
    """Nodes with inventories and one reading each; ten pods a node, four of them with a GPU."""
    rng = random.Random(1)
    for index in range(nodes):
        name = node_name(index)
        site = "dc-1" if index % 5 else "aws-a"
        made = {
            "metadata": {"name": name, "labels": {"site": site}},
            "status": {"allocatable": {"nvidia.com/gpu": str(GPUS)}},
        }
        store.apply(Changed(Kind.NODE, msgspec.convert(made, Node)), now_mono_s)
        store.see_inventory(name, inventory(name))
    for index in range(pods):
        made = {
            "metadata": {"name": f"old-{index}", "namespace": "bench", "uid": f"old-{index}"},
            "spec": {
                "nodeName": node_name(index % nodes),
                "containers": [
                    {"resources": {"limits": {"nvidia.com/gpu": "1"} if index // nodes < GPUS // 2 else {}}}
                ],
            },
            "status": {"phase": "Running"},
        }
        store.apply(Changed(Kind.POD, msgspec.convert(made, Pod)), now_mono_s)
    for kind in Kind:
        if kind not in {Kind.NODE, Kind.POD}:
            store.apply(Listed(kind, frozenset()), now_mono_s)
    store.synced.update(Kind)
    names = [node_name(index) for index in range(nodes)]
    store.see_samples([(name, _sample(name, rng), now_mono_s) for name in names])


def inventory(name: str) -> Inventory:
    gpus = [GpuInventory(uuid=f"{name}-{gpu}", model="NVIDIA H100") for gpu in range(GPUS)]
    return Inventory(v=1, node=name, gpus=gpus)


def _sample(name: str, rng: random.Random) -> Sample:
    return Sample(
        v=1,
        node=name,
        agent="a",
        boot="b",
        seq=1,
        unix_s=0.0,
        span_s=1.0,
        inventory="h",
        state=["ok"] * GPUS,
        power_w=[round(rng.uniform(80, 700), 1) for _ in range(GPUS)],
        util_frac=[round(rng.random(), 3) for _ in range(GPUS)],
        energy_j=[1.0] * GPUS,
    )


class Served(Verbs):
    """Our verbs. The answer is kept for the null extender, and the pod counts as bound a moment later."""

    last: dict[str, bytes | bytearray]

    def filter(self, args: FilterArgs) -> bytes | bytearray:
        self.last["filter"] = answer = super().filter(args)
        asyncio.get_running_loop().call_later(
            BOUND_AFTER_S, self.store.release, args.pod.metadata.uid, self.clock.mono_s()
        )
        return answer

    def prioritize(self, args: FilterArgs) -> bytes | bytearray:
        self.last["prioritize"] = answer = super().prioritize(args)
        return answer


async def serve(nodes: int, pods: int, *, telemetry: bool) -> None:
    clock = SystemClock()
    settings = load(CONFIG)
    store = make_store(settings)
    fill(store, nodes, pods, clock.mono_s())
    verbs = Served(make_decider(settings, store, instance="bench"), None, clock, Fence())
    verbs.last = {}
    counters, null_counters = ExtenderCounters(), ExtenderCounters()
    server = ExtenderServer(verbs, counters, clock)
    null = ExtenderServer(NullVerbs(store.rows, verbs.last), null_counters, clock)
    listeners = Listeners(
        [ListenerSpec(address="127.0.0.1:0", serves=frozenset({"extender"}))],
        {"extender": [*server.routes("/scheduler"), *null.routes("/null")]},
    )
    await listeners.start()
    flow = None
    if telemetry:
        rng = random.Random(3)
        names = [node_name(index) for index in range(nodes)]
        flow = Flow(store, clock, [(inventory(name), _sample(name, rng)) for name in names])
    # As the daemon does once it is synced: what lives for ever need not be looked at by each collection.
    gc.collect()
    gc.freeze()
    tell(port=listeners.addresses[0][1])
    async with asyncio.TaskGroup() as group:
        group.create_task(_tick(store, clock), name="bench.tick")
        if flow is not None:
            heartbeat = Heartbeat(lambda: counters.requests.total() + null_counters.requests.total())
            group.create_task(flow.run(), name="bench.flow")
            group.create_task(answer_words(flow, heartbeat), name="bench.words")


async def _tick(store: Store, clock: SystemClock) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        store.tick(clock.mono_s())
        store.reservations.forget_old_choices(clock.mono_s())


# --- the client ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """One round: milliseconds."""

    p50_ms: float
    p99_ms: float
    cpu_ms: float


class Side:
    """One server under one path."""

    def __init__(self, child: Child, port: int, prefix: str, nodes: int) -> None:
        self.child, self.prefix, self.questions = child, prefix, Questions(nodes)
        self.connection = Connection(port)
        self.rounds: dict[str, list[Round]] = {verb: [] for verb in VERBS}

    def round(self, verb: str, calls: int, *, keep: bool = True) -> None:
        before_s = cpu_s(self.child.pid)
        took_s = [self.connection.post(f"{self.prefix}/{verb}", self.questions.next()) for _ in range(calls)]
        spent_s = cpu_s(self.child.pid) - before_s
        if keep:
            made = Round(percentile(took_s, 0.5) * 1e3, percentile(took_s, 0.99) * 1e3, spent_s / calls * 1e3)
            self.rounds[verb].append(made)

    def best(self, verb: str, figure: str) -> float:
        """The best round's."""
        return min(float(getattr(each, figure)) for each in self.rounds[verb])


def alternate(sides: list[Side], rounds: int, calls: int) -> None:
    """Let the sides take turns, after a short warm-up that does not count."""
    for verb in VERBS:
        for side in sides:
            side.round(verb, max(20, calls // 10), keep=False)
        for _ in range(rounds):
            for side in sides:
                side.round(verb, calls)


def table(sides: dict[str, Side]) -> None:
    print(f"  {'':34}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}   p50 of each round")
    for verb in VERBS:
        for name, side in sides.items():
            each = " ".join(f"{r.p50_ms:.2f}" for r in side.rounds[verb])
            print(
                f"  {verb + ', ' + name:34}{side.best(verb, 'p50_ms'):9.3f}{side.best(verb, 'p99_ms'):9.3f}"
                f"{side.best(verb, 'cpu_ms'):9.3f}   {each}"
            )


def paced(sides: list[Side], seconds_s: float) -> None:
    """Ask each side in turn, with pauses."""
    until_s = time.monotonic() + seconds_s
    while time.monotonic() < until_s:
        for side in sides:
            for verb in VERBS:
                side.connection.post(f"{side.prefix}/{verb}", side.questions.next())
                time.sleep(PACED_EVERY_S)


def with_telemetry(command: tuple[str, ...], nodes: int, rounds: int, calls: int) -> None:
    """Print the table once more, of a server into which telemetry flows, and what else held its loop."""
    with Child(*command, "0", "--telemetry", stderr=subprocess.DEVNULL) as child:
        port = child.read()["port"]
        ours, null = Side(child, port, "/scheduler", nodes), Side(child, port, "/null", nodes)
        alternate([ours, null], rounds, calls)
        print(f"\nanother server, with samples of {nodes} nodes flowing into its store, each once a second")
        table({"ours": ours, "null": null})
        began, start_s = child.ask("beat"), time.monotonic()
        paced([ours, null], BEATING_S)
        ended, took_s = child.ask("end"), time.monotonic() - start_s
    taken = ended["received"] - began["received"]
    print(
        f"  {taken / took_s:.0f} samples a second taken, {ended['dropped']} dropped; {ended['beats']} beats without a "
        f"call near, p50 {ended['p50_s'] * 1e3:.2f} ms, longest {ended['most_s'] * 1e3:.2f} ms"
    )
    verdict("loop held by other than calls, p99.9, CPU time", ended["p999_s"] * 1e3, 2.0, " ms")
    for verb in VERBS:
        verdict(f"{verb} p50 while telemetry flows", ours.best(verb, "p50_ms"), 1.5, " ms")


def verdicts(ours: Side, null: Side, again: Side, small: Side, placed: Side, nodes: int, few: int) -> None:
    for verb in VERBS:
        both = list(zip(ours.rounds[verb], null.rounds[verb], strict=True))
        verdict(f"{verb} p50", ours.best(verb, "p50_ms"), 1.5, " ms")
        verdict(f"{verb} p50 of null's", min(a.p50_ms / b.p50_ms for a, b in both), 1.5)
        verdict(f"{verb} CPU of null's", min(a.cpu_ms / b.cpu_ms for a, b in both), 1.5)
        p99_ms = ours.best(verb, "p99_ms")
        ratio = min(a.p99_ms / b.p99_ms for a, b in both)
        good = p99_ms <= 4.0 or ratio <= 2.0
        print(
            f"{'PASS' if good else 'MISS'}  {verb} p99: {p99_ms:.3g} ms, {ratio:.3g} of null's "
            "(target ≤ 4 ms or ≤ 2 of null's)"
        )
        slope_us = (again.best(verb, "p50_ms") - small.best(verb, "p50_ms")) / (nodes - few) * 1e3
        verdict(f"{verb} slope a node", slope_us, 0.3, " µs")
        flat = placed.best(verb, "cpu_ms") / again.best(verb, "cpu_ms")
        verdict(f"{verb} CPU with {MANY_PODS} pods bound, of none", flat, 1.1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--telemetry", action="store_true", help="also while samples of all nodes flow in")
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS, metavar="PODS")
    args = parser.parse_args()
    if args.server is not None:
        writer = setup("info", "json")
        try:
            asyncio.run(serve(args.nodes, args.server, telemetry=args.telemetry))
        finally:
            writer.stop()
        return
    few = args.nodes // 5
    command = ("benchmarks.extender_latency", "--nodes", str(args.nodes), "--server")
    # The log goes where it costs least; writing its lines is the server's, as in production.
    with (
        Child(*command, "0", stderr=subprocess.DEVNULL) as child,
        Child(*command, str(MANY_PODS), stderr=subprocess.DEVNULL) as full,
    ):
        port, full_port = child.read()["port"], full.read()["port"]
        print(
            f"{args.nodes} nodes x {GPUS} GPUs with readings, all policies on, keep-alive; best of {args.rounds} "
            f"rounds of {args.calls}; {len(Questions(args.nodes).next())} bytes a question"
        )
        ours, null = Side(child, port, "/scheduler", args.nodes), Side(child, port, "/null", args.nodes)
        alternate([ours, null], args.rounds, args.calls)
        table({"ours": ours, "null": null})
        small, placed = (
            Side(child, port, "/scheduler", few),
            Side(full, full_port, "/scheduler", args.nodes),
        )
        again = Side(child, port, "/scheduler", args.nodes)
        alternate([again, small, placed], args.rounds, max(50, args.calls // 2))
        print("\nthe same server, fewer names; and another with pods bound")
        table({"ours": again, f"{few} names": small, f"{MANY_PODS} pods bound": placed})
    print()
    verdicts(ours, null, again, small, placed, args.nodes, few)
    if args.telemetry:
        with_telemetry(command, args.nodes, args.rounds, args.calls)


if __name__ == "__main__":
    main()
