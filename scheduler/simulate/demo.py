"""`wattbalance demo`: a world in one process, and the real daemon and a real broker as its children.

The world is a simulated cluster with an API face, agents on simulated GPUs, a stand-in for kube-scheduler and the
terminal. What is shown is the product: `wattbalance serve` reads its configuration, watches the API over HTTP, hears
the agents over MQTT and answers the extender over HTTP, as it would anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml
from rich.console import Console

from scheduler.core.clock import Clock, SystemClock
from scheduler.core.errors import SchedulerError
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.broker import BrokerHandle, running_broker
from scheduler.simulate.fleet import Fleet, interval_for, raise_file_limit
from scheduler.simulate.kubescheduler import KubeScheduler, SchedulerConfig
from scheduler.simulate.kubescheduler_extender import ExtenderConfig
from scheduler.simulate.manifests import SCHEDULER_NAME
from scheduler.simulate.terminal import Progress, summary_view
from scheduler.simulate.traces import load_trace
from scheduler.simulate.workload import WorkloadModel
from scheduler.simulate.world import World
from scheduler.telemetry.broker import BrokerSettings

CLUSTER = "demo"
HOST = "127.0.0.1"
# Loading 1,213 nodes and 5,000 pods takes the daemon about two seconds; slow machines take longer.
READY_S = 60.0
# Agents connect 2 ms apart; a fleet of 1,213 needs some seconds.
CONNECTED_S = 60.0
STOP_S = 12.0
SHOW_EVERY_S = 0.5
# Means of docs/model.md.
EXPECTED_LOADS = {"training": 0.95, "inference": 0.35, "batch": 0.95}
LOG_LINES_SHOWN = 15


class DemoFailed(SchedulerError):
    """A part of the demo would not start, or ended; the message says which and what it said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The command line's flags."""

    nodes: int | None = 200
    speed: float = 60.0
    load: float = 0.85
    duration_s: float | None = None
    """Wall time; None runs until Ctrl-C."""
    port: int = 8080
    seed: int = 1
    trace_dir: str | None = None
    trace: str | None = None
    mosquitto: str | None = None


def run(options: DemoOptions) -> int:
    """Run the demo. Returns the exit code; raises SchedulerError with what to do."""
    return asyncio.run(_run(options, SystemClock(), Console()))


async def _run(options: DemoOptions, clock: Clock, console: Console) -> int:
    # 1. What the world is made of.
    trace = load_trace(
        nodes=options.nodes,
        trace_dir=Path(options.trace_dir) if options.trace_dir else None,
        trace_file=Path(options.trace) if options.trace else None,
    )
    raise_file_limit(2 * len(trace.nodes))
    port = _free_port(options.port)
    model = WorkloadModel(trace, load_frac=options.load, speed_per_s=options.speed, seed=options.seed)
    world = World(model, ApiServer(clock, seed=options.seed), clock, seed=options.seed)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    interval_s = interval_for(len(trace.nodes))
    console.print(
        f"{trace.source}: {len(trace.nodes)} nodes, {trace.gpus} GPUs, {len(model.jobs)} jobs; "
        f"filled to {options.load:.0%} by random choice, {model.rate_per_s:.1f} pods arrive per second",
        highlight=False,
    )
    if interval_s > 1:
        console.print(
            f"one process plays all agents: each sends a sample every {interval_s:.1f} s", highlight=False
        )
    async with contextlib.AsyncExitStack() as stack:
        # 2. The broker and the API server, then the daemon as its user would start it.
        broker = await stack.enter_async_context(running_broker(mosquitto=options.mosquitto))
        await world.server.start(HOST)
        stack.push_async_callback(world.server.stop)
        world.fill()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wattbalance-demo-")))
        config = _write_config(folder, world.server.url, broker, port, trace_stale_s=10 * interval_s)
        daemon = await stack.enter_async_context(_serving(config, folder / "serve.log", port, stop))
        # 3. The world runs, in one task group, until it is told to stop.
        with contextlib.suppress(asyncio.CancelledError):
            await _live(options, world, broker, port, daemon, stop, console, interval_s)
    return 0


async def _live(  # noqa: PLR0917 - the parts of the demo, each once
    options: DemoOptions,
    world: World,
    broker: BrokerHandle,
    port: int,
    daemon: _Child,
    stop: asyncio.Event,
    console: Console,
    interval_s: float,
) -> None:
    fleet = Fleet(
        BrokerSettings(url=broker.url),
        cluster=CLUSTER,
        nodes=world.model.trace.nodes,
        load=world.load,
        clock=world.clock,
        interval_s=interval_s,
    )
    scheduler = KubeScheduler(
        world.server,
        world.clock,
        SchedulerConfig(
            scheduler_name=SCHEDULER_NAME,
            extender=ExtenderConfig(url_prefix=f"http://{HOST}:{port}/scheduler"),
            max_backoff_s=3.0,
            seed=options.seed,
        ),
    )
    if scheduler.extender is not None:
        scheduler.extender.on_call = world.on_call
    url = f"http://{HOST}:{port}"
    lines = (
        f"open {url}/  nodes {url}/api/v1/nodes  decisions {url}/api/v1/decisions  metrics {url}/metrics",
        f"broker {broker.kind} at {broker.url}; Ctrl-C ends it with a summary",
    )
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = [group.create_task(fleet.run(), name="demo.fleet")]
        async with asyncio.timeout(CONNECTED_S):
            await fleet.wait_connected()
        # Readings of all nodes first, so that the first pods are placed by load too.
        await _pause(stop, 2 * interval_s)
        board = world.begin()
        tasks += [
            group.create_task(scheduler.run(), name="demo.kubescheduler"),
            group.create_task(world.run(), name="demo.world"),
            group.create_task(daemon.watch(), name="demo.daemon"),
        ]
        with Progress(console, title="wattbalance demo", lines=lines) as progress:
            while not stop.is_set():
                board.rejected = scheduler.counts.unschedulable
                live = board.live(world.clock.mono_s())
                progress.show(live)
                if options.duration_s is not None and live.elapsed_s >= options.duration_s:
                    break
                await _pause(stop, SHOW_EVERY_S)
        for task in tasks:
            task.cancel()
    notes = []
    if scheduler.counts.extender_errors:
        notes.append(f"{scheduler.counts.extender_errors} extender calls failed")
    if fleet.dropped:
        notes.append(f"{fleet.dropped} samples were replaced by newer ones before they could be sent")
    console.print(summary_view(board.summary(world.clock.mono_s(), tuple(notes))))


async def _pause(stop: asyncio.Event, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await stop.wait()


def _free_port(port: int) -> int:
    """The port asked for, or any free one for 0.

    Raises:
        DemoFailed: somebody else has it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoFailed(f"port {port} is taken: choose another with --port, or --port 0") from error
        return int(probe.getsockname()[1])


def _write_config(
    folder: Path, api_url: str, broker: BrokerHandle, port: int, *, trace_stale_s: float
) -> Path:
    kubeconfig = folder / "kubeconfig"
    context = {"cluster": CLUSTER, "user": CLUSTER}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": CLUSTER, "cluster": {"server": api_url}}],
                "users": [{"name": CLUSTER, "user": {"token": "demo"}}],
                "contexts": [{"name": CLUSTER, "context": context}],
                "current-context": CLUSTER,
            }
        ),
        encoding="utf-8",
    )
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "cluster": {"name": CLUSTER, "kubeconfig": str(kubeconfig)},
                "telemetry": {"broker": broker.url, "stale": f"{max(trace_stale_s, 10):g}s"},
                # By measured load for all: what the demo is there to show. Packing is the default
                # for training, and pools would be filled one after the other.
                "profiles": {
                    name: {"expected_load": load, "policies": {"least-loaded": {"weight": 1}}}
                    for name, load in EXPECTED_LOADS.items()
                },
                "listeners": [
                    {"address": f"{HOST}:{port}", "serves": ["extender", "api", "metrics", "probes"]}
                ],
                "shutdown": {"grace": "5s"},
            },
            sort_keys=False,
        ),
        encoding="utf-8",
    )
    return config


class _Child:
    """The running daemon."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def failed(self) -> DemoFailed:
        """What to raise when it has ended: with its last lines."""
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return DemoFailed(f"the daemon ended with exit code {self.process.returncode}:\n" + "\n".join(said))

    async def watch(self) -> None:
        """Raise once it has ended."""
        while self.process.poll() is None:  # noqa: ASYNC110 - a child of Popen has no event
            await asyncio.sleep(SHOW_EVERY_S)
        raise self.failed()


@contextlib.asynccontextmanager
async def _serving(config: Path, log: Path, port: int, stop: asyncio.Event) -> AsyncIterator[_Child]:
    """`wattbalance serve` as a child, ready; stopped by its process id at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - forking takes a millisecond
            [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # A session of its own: Ctrl-C is for us, and we stop it.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    child = _Child(process, log)
    try:
        await _until_ready(child, port, stop)
        yield child
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


async def _until_ready(child: _Child, port: int, stop: asyncio.Event) -> None:
    said = "nothing yet"
    async with aiohttp.ClientSession() as session:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while not stop.is_set():
                    if child.process.poll() is not None:
                        raise child.failed()
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"http://{HOST}:{port}/readyz") as answer:
                            said = await answer.text()
                            if answer.ok:
                                return
                    await _pause(stop, 0.1)
                return
    raise DemoFailed(f"the daemon was not ready within {READY_S:g} s; /readyz said: {said}")
