"""What a start costs the daemon, and what a watch event does: the real `serve` against the simulated API server.

    python -m benchmarks.start [--nodes 5000] [--pods 50000] [--owners 10000]

The API server and its objects live in a process of their own. Beside it stands a floor: a process that pages through
the same lists and decodes them into the same records, and does nothing with them.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import yaml

from benchmarks._measure import Child, cpu_s, memory_bytes, tell, verdict
from scheduler.cluster.intents import Intents
from scheduler.cluster.objects import (
    Container,
    Meta,
    Node,
    OwnerRef,
    Partial,
    Pod,
    PodSpec,
    Resources,
)
from scheduler.cluster.port import Changed, Kind
from scheduler.cluster.store import Store
from scheduler.cluster.store_settings import StoreSettings
from scheduler.core.clock import ManualClock, SystemClock
from scheduler.core.nouns import PREFIX
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.broker import running_broker
from scheduler.simulate.ports import free_port
from scheduler.unasked import SETTLE_S, Unasked

NAMESPACE = "bench"
GPUS = 8
EVENTS = 5000
# Patches come in groups, so that watches get to send in between.
PATCHES_A_TURN = 20
PAGE = 500
QUIET_S = 3.0
PATIENCE_S = 240.0
PER_DEPLOYMENT = 5
# No collection of the daemon's is larger than it would be in production.
OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": True}
LISTS: dict[str, type[msgspec.Struct]] = {
    "/api/v1/nodes": Node,
    "/api/v1/pods": Pod,
    "/apis/apps/v1/replicasets": Partial,
    "/apis/apps/v1/deployments": Partial,
}


async def world(nodes: int, pods: int, owners: int) -> None:
    """The API server and what is in it. `patch` touches some pods, one event each."""
    server = ApiServer(SystemClock(), token="bench", window_events=2 * EVENTS)
    server.create("namespaces", {"metadata": {"name": NAMESPACE}})
    for index in range(nodes):
        amounts = {"cpu": "96", "memory": "1000Gi", "pods": "110", "nvidia.com/gpu": str(GPUS)}
        labels = {f"label-{n}.example/key": f"value-{n}" for n in range(10)}
        server.create(
            "nodes",
            {
                "metadata": {
                    "name": f"gpu-node-{index:05d}",
                    "labels": {"site": "dc-1" if index % 5 else "aws-a", **labels},
                },
                "status": {
                    "allocatable": amounts,
                    "capacity": amounts,
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "images": [{"names": [f"image-{n}:1"], "sizeBytes": 1} for n in range(20)],
                },
            },
        )
    uids = []
    for index in range(owners // PER_DEPLOYMENT):
        deployment = _owner(f"deployment-{index}", None)
        uid = server.create("deployments", deployment)["metadata"]["uid"]
        for each in range(PER_DEPLOYMENT - 1):
            owned_by = {**OWNER, "kind": "Deployment", "name": f"deployment-{index}", "uid": uid}
            name = f"deployment-{index}-{each}"
            made = server.create("replicasets", _owner(name, owned_by))
            uids.append((name, made["metadata"]["uid"]))
    for index in range(pods):
        name, uid = uids[index % len(uids)]
        server.create(
            "pods", _pod(index, f"gpu-node-{index % nodes:05d}", {**OWNER, "name": name, "uid": uid})
        )
    await server.start()
    tell(url=server.url)
    turn = 0
    while True:
        await asyncio.to_thread(input)
        turn += 1
        for index in range(min(EVENTS, pods)):
            patch = {"metadata": {"labels": {"turn": str(turn)}}}
            server.patch("pods", f"pod-{index}", NAMESPACE, patch)
            if index % PATCHES_A_TURN == 0:
                await asyncio.sleep(0.001)
        tell(events=min(EVENTS, pods))


def _owner(name: str, owned_by: dict[str, object] | None) -> dict[str, object]:
    meta: dict[str, object] = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
    if owned_by is not None:
        meta["ownerReferences"] = [owned_by]
    containers = [{"name": "main", "image": "bench"}]
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}}
    return {"metadata": meta, "spec": {"replicas": 1, "template": template}}


def _pod(index: int, node: str, owned_by: dict[str, object]) -> dict[str, object]:
    limits = {"nvidia.com/gpu": "1"} if index % 2 else {"cpu": "1"}
    env = [{"name": f"SETTING_{n}", "value": "x" * 24} for n in range(20)]
    return {
        "metadata": {
            "name": f"pod-{index}",
            "namespace": NAMESPACE,
            "labels": {"app": "bench"},
            "ownerReferences": [owned_by],
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "bench", "env": env, "resources": {"limits": limits}}],
        },
        "status": {"phase": "Running"},
    }


def read_lists(url: str) -> None:
    """The floor: page through the lists and keep the records."""
    before_s = time.process_time()
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    kept: list[msgspec.Struct] = []
    for path, kind in LISTS.items():
        decoder = msgspec.json.Decoder(_page(kind))
        token = ""
        accept = "application/json"
        if kind is Partial:
            accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        while True:
            connection.request(
                "GET",
                f"{path}?limit={PAGE}&continue={token}",
                headers={"Authorization": "Bearer bench", "Accept": accept},
            )
            page = decoder.decode(connection.getresponse().read())
            kept += page.items  # type: ignore[attr-defined]  # A struct made below.
            token = page.metadata.get("continue", "")  # type: ignore[attr-defined]  # Likewise.
            if not token:
                break
    spent_s = time.process_time() - before_s
    tell(spent_s=spent_s, kept=len(kept), peak_bytes=memory_bytes(os.getpid(), "VmHWM"))


def _page(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    return msgspec.defstruct("Page", [("metadata", dict[str, object]), ("items", list[kind])])  # type: ignore[valid-type]


def write_config(folder: Path, api: str, broker: str, port: int) -> Path:
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "bench", "cluster": {"server": api}}],
                "users": [{"name": "bench", "user": {"token": "bench"}}],
                "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
                "current-context": "bench",
            }
        )
    )
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "cluster": {"name": "bench", "kubeconfig": str(kubeconfig)},
                "telemetry": {"broker": broker},
                "pools": [
                    {"name": "dc-1", "kind": "on-prem", "selector": {"site": "dc-1"}},
                    {"name": "aws-a", "kind": "cloud", "selector": {"site": "aws-a"}},
                ],
                "listeners": [
                    {"address": f"127.0.0.1:{port}", "serves": ["extender", "api", "metrics", "probes"]}
                ],
                "lease": {"namespace": NAMESPACE},
            }
        )
    )
    return config


def wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    said = ""
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
                return
        except urllib.error.HTTPError as error:
            said = error.read().decode()
        except OSError as error:
            said = str(error)
        time.sleep(0.05)
    message = f"serve is not ready: {said}\n{log.read_text(errors='replace')[-2000:]}"
    raise RuntimeError(message)


def event_cpu_s(pid: int, child: Child) -> tuple[float, int]:
    """CPU seconds that the events cost beyond what an idle daemon spends in the time, and how many there were."""
    before_s, start_s = cpu_s(pid), time.monotonic()
    time.sleep(QUIET_S)
    idle_frac = (cpu_s(pid) - before_s) / (time.monotonic() - start_s)
    before_s, start_s = cpu_s(pid), time.monotonic()
    events = int(child.ask("patch")["events"])
    time.sleep(1.0)
    spent_s = cpu_s(pid) - before_s
    return spent_s - idle_frac * (time.monotonic() - start_s), events


async def measure(nodes: int, pods: int, owners: int) -> None:
    size = ("--nodes", str(nodes), "--pods", str(pods), "--owners", str(owners))
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        Child("benchmarks.start", *size, "--world") as api,
    ):
        folder = Path(name)
        url = api.read()["url"]
        with Child("benchmarks.start", "--floor", url) as floor:
            bare = floor.read()
        port = free_port()
        async with running_broker() as broker:
            config = write_config(folder, url, broker.url, port)
            log = folder / "serve.log"
            with log.open("wb") as out:
                began_s = time.monotonic()
                process = subprocess.Popen(
                    [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            try:
                await asyncio.to_thread(wait_ready, process, port, log)
                spent_s, took_s = cpu_s(process.pid), time.monotonic() - began_s
                peak_bytes = memory_bytes(process.pid, "VmHWM")
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/v1/pods?limit=1", timeout=30
                ) as answer:
                    json.loads(answer.read())
                spent_events_s, events = await asyncio.to_thread(event_cpu_s, process.pid, api)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    print(f"{nodes} nodes, {pods} pods, {owners} owners from the simulated API server")
    print(f"  {'':40}{'CPU s':>8}{'peak MiB':>10}{'wall s':>8}")
    print(f"  {'serve, until /readyz says 200':40}{spent_s:8.2f}{peak_bytes / 2**20:10.0f}{took_s:8.1f}")
    print(
        f"  {'bare reader that only decodes the lists':40}{bare['spent_s']:8.2f}{bare['peak_bytes'] / 2**20:10.0f}"
    )
    # Every other pod asks for a GPU.
    told_s = await unasked_cpu_s(pods // 2, owners)
    print(f"  {f'beside, if {pods // 2} pods waited unasked':40}{told_s:8.2f}")
    print(f"  {events} pods patched: {spent_events_s / events * 1e6:.0f} µs of CPU an event\n")
    verdict("CPU until ready", spent_s, 8.0, " s")
    verdict("resident at most", peak_bytes / 2**20, 450, " MiB")
    verdict("annotations of pods that wait, of CPU until ready", 100 * told_s / spent_s, 5.0, " %")
    verdict("a watch event", spent_events_s / events * 1e6, 100, " µs")


async def unasked_cpu_s(pods: int, owners: int) -> float:
    """CPU to judge what so many pods say that wait and that nobody asks about, as `serve` does once it leads."""
    store = Store(StoreSettings(), Intents())
    said = {PREFIX + "gpu-model": "*H100*"}
    for index in range(owners):
        controller = OwnerRef(kind="Deployment", uid=f"deployment-{index}", controller=True)
        name = f"owner-{index}"
        meta = Meta(name=name, namespace=NAMESPACE, uid=name, annotations=said, owner_references=[controller])
        store.apply(Changed(Kind.REPLICASET, Partial(metadata=meta)), 0.0)
    limits: dict[str, int | float | str] = {"nvidia.com/gpu": "1"}
    spec = PodSpec(containers=[Container(resources=Resources(limits=limits))])
    clock = ManualClock()
    unasked = Unasked(store, clock, may_tell=lambda: True, is_ours=lambda _: True, tell=lambda *_: None)
    uids = [f"uid-{index}" for index in range(pods)]
    for index, uid in enumerate(uids):
        owner = OwnerRef(kind="ReplicaSet", uid=f"owner-{index % owners}", controller=True)
        waits = Meta(name=f"pod-{index}", namespace=NAMESPACE, uid=uid, owner_references=[owner])
        store.apply(Changed(Kind.POD, Pod(metadata=waits, spec=spec)), 0.0)
    before_s = time.process_time()
    for uid in uids:
        unasked.see(uid, None, clock.mono_s())
    clock.advance(SETTLE_S)
    await unasked.judge()
    return time.process_time() - before_s


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=50_000)
    parser.add_argument("--owners", type=int, default=10_000)
    parser.add_argument("--world", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--floor", help=argparse.SUPPRESS, metavar="URL")
    args = parser.parse_args()
    if args.floor:
        read_lists(args.floor)
    elif args.world:
        asyncio.run(world(args.nodes, args.pods, args.owners))
    else:
        asyncio.run(measure(args.nodes, args.pods, args.owners))


if __name__ == "__main__":
    main()
