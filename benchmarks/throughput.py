"""Pods bound per second on a real control plane: with us as the extender, and the same kube-scheduler without.

    KUBEBUILDER_ASSETS=... python -m benchmarks.throughput [--nodes 200] [--pods 600] [--runs 2] [--sampling 100]
        [--write-back]

Runs of all modes alternate. In each, kube-scheduler starts when the pods are there, and what counts is the time
from the first binding to the last one, as the API server tells it. `percentageOfNodesToScore` is the same on all
sides; 0 is kube-scheduler's own default. No telemetry flows: all loads are the neutral ones. The null extender is our
HTTP server without watch, decision and log: it takes the names in turn (decisive), or leaves all of them (advisory).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import shutil
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._measure import Child, cpu_s, tell, verdict
from benchmarks._null import ThoughtlessVerbs
from scheduler.core.clock import SystemClock
from scheduler.extender.server import ExtenderCounters, ExtenderServer
from scheduler.listeners import Listeners, ListenerSpec
from tests.brokers import mosquitto_path
from tests.controlplane import WHY_NOT, assets, node_manifest, pod_manifest
from tests.e2e.system import SCHEDULER_NAME, System, run_system

PODS = "/api/v1/namespaces/default/pods"
ALONE, DECISIVE, ADVISORY, BINDING = "alone", "decisive", "advisory", "decisive, bindVerb on"
SILENT, FLOOD = "decisive, no write-back", "decisive, write-back unlimited"
NULL_DECISIVE, NULL_ADVISORY = "null extender, decisive", "null extender, advisory"
CREATORS = 8
STALL_S = 60.0
POLL_S = 0.1
BIG_CLUSTER = 1000


@dataclass
class Bindings:
    """Instants at which pods were seen bound, from a watch of its own."""

    system: System
    seen_mono_s: dict[str, float] = field(default_factory=dict)
    ended: bool = False

    def follow(self, version: str) -> None:
        """Read the watch until it is ended; runs in a thread."""
        plane = self.system.plane
        host = plane.url.removeprefix("https://")
        context = ssl.create_default_context(cafile=plane.ca_file)
        connection = http.client.HTTPSConnection(host, context=context, timeout=1.0 + STALL_S)
        connection.request(
            "GET",
            f"{PODS}?watch=1&resourceVersion={version}",
            headers={"Authorization": f"Bearer {plane.admin_token}"},
        )
        answer = connection.getresponse()
        with contextlib.closing(connection), contextlib.suppress(OSError):
            while not self.ended and (line := answer.readline()):
                item = json.loads(line)["object"]
                if item.get("spec", {}).get("nodeName"):
                    self.seen_mono_s.setdefault(item["metadata"]["name"], time.monotonic())


def create_pods(system: System, names: list[str]) -> None:
    with ThreadPoolExecutor(CREATORS) as pool:
        list(pool.map(lambda name: system.plane.apply(pod_manifest(name, scheduler=SCHEDULER_NAME)), names))


def delete_pods(system: System) -> None:
    """All of them at once, without grace: there are no kubelets that would confirm."""
    system.plane.request("DELETE", PODS, {"kind": "DeleteOptions", "gracePeriodSeconds": 0})
    while True:
        listed = system.plane.request("GET", f"{PODS}?limit=1")
        assert isinstance(listed, dict)
        if not listed["items"]:
            return
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Run:
    """One run."""

    per_s: float
    bound: int
    serve_cpu_ms: float
    """CPU of the daemon per pod."""


def node_name(index: int) -> str:
    return f"gpu-node-{index:05d}"


async def serve_null(nodes: int, mode: str) -> None:
    """Be the null extender; the port goes to stdout."""
    verbs = ThoughtlessVerbs([node_name(index) for index in range(nodes)], decisive=mode == NULL_DECISIVE)
    server = ExtenderServer(verbs, ExtenderCounters(), SystemClock())
    listeners = Listeners(
        [ListenerSpec(address="127.0.0.1:0", serves=frozenset({"extender"}))],
        {"extender": server.routes("/scheduler")},
    )
    await listeners.start()
    tell(port=listeners.addresses[0][1])
    await asyncio.Event().wait()


@contextlib.contextmanager
def extender_of(system: System, mode: str, nodes: int) -> Iterator[tuple[int, int]]:
    """Run the mode's extender; gives its process id and port."""
    if mode in {NULL_DECISIVE, NULL_ADVISORY}:
        with Child("benchmarks.throughput", "--nodes", str(nodes), "--null", mode) as child:
            yield child.pid, child.read()["port"]
        return
    replica = system.serve(
        profiles={"batch": {"placement": "advisory" if mode == ADVISORY else "decisive"}},
        lease={"enabled": False},
        extender={
            "bind": mode == BINDING,
            "annotate": mode != SILENT,
            # More than any kube-scheduler binds.
            "annotations_per_second": 100_000 if mode == FLOOD else 20,
        },
    )
    try:
        yield replica.process.popen.pid, replica.port
    finally:
        replica.process.stop()
        system.processes.remove(replica.process)


def run(system: System, mode: str, nodes: int, pods: int, turn: int, sampling: int) -> Run:
    """Bind so many pods in one mode."""
    if mode == ALONE:
        return bind_all(system, pods, turn, {"percentageOfNodesToScore": sampling}, None)
    with extender_of(system, mode, nodes) as (pid, port):
        extender = {
            "urlPrefix": f"http://127.0.0.1:{port}/scheduler",
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "weight": 1,
            "nodeCacheCapable": True,
            "httpTimeout": "5s",
            **({"bindVerb": "bind"} if mode == BINDING else {}),
        }
        given = {"percentageOfNodesToScore": sampling, "extenders": [extender]}
        return bind_all(system, pods, turn, given, pid)


def bind_all(system: System, pods: int, turn: int, given: dict[str, object], pid: int | None) -> Run:
    """Create pods, start kube-scheduler with this configuration, and wait until all are bound."""
    names = [f"pod-{turn}-{index}" for index in range(pods)]
    create_pods(system, names)
    listed = system.plane.request("GET", f"{PODS}?limit=1")
    assert isinstance(listed, dict)
    bindings = Bindings(system)
    thread = threading.Thread(
        target=bindings.follow, args=(listed["metadata"]["resourceVersion"],), daemon=True
    )
    thread.start()
    before_s = cpu_s(pid) if pid else 0.0
    scheduler = system.plane.start_scheduler({"profiles": [{"schedulerName": SCHEDULER_NAME}], **given})
    moved_s, count = time.monotonic(), 0
    while len(bindings.seen_mono_s) < pods and time.monotonic() - moved_s < STALL_S:
        time.sleep(POLL_S)
        if len(bindings.seen_mono_s) > count:
            moved_s, count = time.monotonic(), len(bindings.seen_mono_s)
    spent_s = cpu_s(pid) - before_s if pid else 0.0
    scheduler.stop()
    bindings.ended = True
    # The deletions wake the watch, which then ends.
    delete_pods(system)
    thread.join(STALL_S)
    seen = sorted(bindings.seen_mono_s.values())
    took_s = seen[-1] - seen[0] if len(seen) > 1 else 0.0
    return Run((len(seen) - 1) / took_s if took_s else 0.0, len(seen), spent_s / pods * 1e3)


def measure(nodes: int, pods: int, runs: int, sampling: int, modes: list[str]) -> None:
    done: dict[str, list[Run]] = {mode: [] for mode in modes}
    turns = itertools.count()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with run_system(folder) as system:
            with ThreadPoolExecutor(CREATORS) as pool:
                list(
                    pool.map(
                        lambda n: system.plane.apply(node_manifest(node_name(n), labels={"site": "dc-1"})),
                        range(nodes),
                    )
                )
            for _ in range(runs):
                for mode in modes:
                    done[mode].append(run(system, mode, nodes, pods, next(turns), sampling))
                    last = done[mode][-1]
                    print(f"  … {mode}: {last.per_s:.0f} pods/s, {last.bound} bound", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{nodes} nodes, {pods} pods of one GPU, percentageOfNodesToScore {sampling}, {runs} alternating runs"
    )
    print(f"  {'':31}{'pods/s':>8}{'of alone':>10}{'unbound':>9}{'our CPU ms a pod':>18}   each run")
    alone = statistics.fmean(each.per_s for each in done[ALONE])
    for mode, each in done.items():
        mean = statistics.fmean(one.per_s for one in each)
        unbound = sum(pods - one.bound for one in each)
        cpu_ms = statistics.fmean(one.serve_cpu_ms for one in each)
        shown = " ".join(f"{one.per_s:.0f}" for one in each)
        print(f"  {mode:31}{mean:8.0f}{mean / alone:10.2f}{unbound:9}{cpu_ms:18.2f}   {shown}")
    print()
    wanted = {DECISIVE: 1.0 if nodes >= BIG_CLUSTER else 0.9, ADVISORY: 0.6}
    nulls = {DECISIVE: NULL_DECISIVE, ADVISORY: NULL_ADVISORY}
    for mode, target in wanted.items():
        if mode in done:
            mean = statistics.fmean(one.per_s for one in done[mode])
            verdict(f"{mode}, of kube-scheduler alone", mean / alone, target, at_least=True)
            if nulls[mode] in done:
                null = statistics.fmean(one.per_s for one in done[nulls[mode]])
                print(f"      {mode}, of the null extender's: {mean / null:.2f}")
    if SILENT in done:
        silent = statistics.fmean(one.per_s for one in done[SILENT])
        written = statistics.fmean(one.per_s for one in done[DECISIVE])
        verdict("with write-back at 20 a second, of without", written / silent, 0.95, at_least=True)
        flood = statistics.fmean(one.per_s for one in done[FLOOD])
        print(f"      with write-back unlimited, of without: {flood / silent:.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--pods", type=int, default=600)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--sampling", type=int, default=100)
    parser.add_argument("--bind", action="store_true", help="a line with bindVerb on, too")
    parser.add_argument(
        "--write-back", action="store_true", help="what it costs to write decisions on pods, alone"
    )
    parser.add_argument("--null", metavar="MODE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.null:
        asyncio.run(serve_null(args.nodes, args.null))
        return
    if assets() is None:
        print(f"SKIPPED: {WHY_NOT}")
        return
    if mosquitto_path() is None:
        print("SKIPPED: mosquitto is not installed (scripts/install-debian)")
        return
    measure(
        args.nodes,
        args.pods,
        args.runs,
        args.sampling,
        [ALONE, DECISIVE, SILENT, FLOOD]
        if args.write_back
        else [ALONE, DECISIVE, NULL_DECISIVE, ADVISORY, NULL_ADVISORY, *([BINDING] if args.bind else [])],
    )


if __name__ == "__main__":
    main()
