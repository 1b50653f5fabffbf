"""`wattbalance demo`: a world in one process, and the real daemon and a real broker as its children.

The world is a simulated cluster with an API face, agents on simulated GPUs, a stand-in for kube-scheduler and the
terminal. What is shown is the product: `wattbalance serve` reads its configuration, watches the API over HTTP, hears
the agents over MQTT and answers the extender over HTTP, as it would anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from scheduler.core.clock import Clock, SystemClock
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.broker import BrokerHandle, running_broker
from scheduler.simulate.demo_config import CLUSTER, Policies, write_config
from scheduler.simulate.demo_daemon import DaemonProcess, DemoFailed, how_it_ended, serving
from scheduler.simulate.ending import INTERRUPTED, Ending
from scheduler.simulate.fleet import Fleet, interval_for, raise_file_limit
from scheduler.simulate.kubescheduler import KubeScheduler, SchedulerConfig
from scheduler.simulate.kubescheduler_extender import ExtenderConfig
from scheduler.simulate.manifests import SCHEDULER_NAME
from scheduler.simulate.pace import fell_behind, most_pods_per_s, too_fast
from scheduler.simulate.ports import HOST, free_port
from scheduler.simulate.pulse import BrokerPulse
from scheduler.simulate.scoreboard import Scoreboard
from scheduler.simulate.sharing import share_out
from scheduler.simulate.terminal import Progress, marks_of, summary_view
from scheduler.simulate.traces import load_trace
from scheduler.simulate.workload import WorkloadModel
from scheduler.simulate.world import SETTLE_RUNS, World
from scheduler.telemetry.broker import BrokerSettings

# Agents connect 2 ms apart; a fleet of 1,213 needs some seconds.
CONNECTED_S = 60.0
SHOW_EVERY_S = 0.5
# Fewer than this is more than the odd late turn.
ENOUGH_SAMPLES_FRAC = 0.9


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
    policies: str = Policies.LEAST_LOADED
    trace_dir: str | None = None
    trace: str | None = None
    mosquitto: str | None = None


def run(options: DemoOptions) -> int:
    """Run the demo. Returns the exit code; raises SchedulerError with what to do."""
    # A broker that goes away would fill the screen with a line of each agent; what ends the demo is raised.
    logging.getLogger("scheduler").addHandler(logging.NullHandler())
    return asyncio.run(Demo(options, SystemClock(), Console()).run())


class Demo:
    """One run."""

    def __init__(self, options: DemoOptions, clock: Clock, console: Console) -> None:
        self.options = options
        self.clock = clock
        self.console = console
        self.ending = Ending()

    async def run(self) -> int:
        """Start everything, run until the end, stop everything. Returns the exit code."""
        options = self.options
        self.ending.listen()
        # 1. What the world is made of.
        trace = share_out(
            load_trace(
                nodes=options.nodes,
                trace_dir=Path(options.trace_dir) if options.trace_dir else None,
                trace_file=Path(options.trace) if options.trace else None,
            )
        )
        raise_file_limit(len(trace.nodes))
        port = _asked_for(options.port) if options.port else free_port()
        url = f"http://{HOST}:{port}"
        model = WorkloadModel(trace, load_frac=options.load, speed_per_s=options.speed, seed=options.seed)
        world = World(model, ApiServer(self.clock, seed=options.seed), self.clock, seed=options.seed)
        interval_s = interval_for(len(trace.nodes))
        self._introduce(model, interval_s)
        async with contextlib.AsyncExitStack() as stack:
            # 2. The broker and the API server, then the daemon as its user would start it.
            broker = await stack.enter_async_context(running_broker(mosquitto=options.mosquitto))
            await world.server.start(HOST)
            stack.push_async_callback(world.server.stop)
            world.fill()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wattbalance-demo-")))
            config = write_config(
                folder,
                api_url=world.server.url,
                broker_url=broker.url,
                address=f"{HOST}:{port}",
                policies=Policies(options.policies),
                speed_per_s=options.speed,
                interval_s=interval_s,
            )
            daemon = await stack.enter_async_context(
                serving(config, folder / "serve.log", url, self.clock, self.ending)
            )
            # 3. The world runs, in one task group, until it is told to stop.
            board = None
            if not self.ending.asked.is_set():
                board = await self._live(world, broker, daemon, interval_s)
        if board is None:
            self._say("ended before the first pod came")
            return INTERRUPTED
        return 0

    def _introduce(self, model: WorkloadModel, interval_s: float) -> None:
        trace = model.trace
        self._say(
            f"{trace.source}: {len(trace.nodes)} nodes, {trace.gpus} GPUs, {len(model.jobs)} jobs; "
            f"filled to {self.options.load:.0%} by random choice"
        )
        self._say(
            f"{model.rate_per_s:.1f} pods arrive per second and run {model.mean_run_s:.0f} s on average; "
            f"policies: {self.options.policies}"
        )
        if interval_s > 1:
            self._say(f"one process plays all agents: each sends a sample every {interval_s:.1f} s")
        settled_s = SETTLE_RUNS * model.mean_run_s
        if self.options.duration_s is not None and self.options.duration_s <= settled_s:
            self._say(
                f"the spread settles after three mean run times, {settled_s:.0f} s: later than this run ends"
            )

    async def _live(
        self, world: World, broker: BrokerHandle, daemon: DaemonProcess, interval_s: float
    ) -> Scoreboard | None:
        """Run the world until the end. None: it was asked for before the first pod came."""
        options, model = self.options, world.model
        most_per_s = await most_pods_per_s(model, self.clock, await daemon.round_trip_s(self.clock))
        if warning := too_fast(model.rate_per_s, most_per_s, options.speed):
            self._say(f"WARNING: {warning}")
        fleet = Fleet(
            BrokerSettings(url=broker.url),
            cluster=CLUSTER,
            nodes=model.trace.nodes,
            load=world.load,
            clock=self.clock,
            interval_s=interval_s,
        )
        extender = ExtenderConfig(url_prefix=f"{daemon.url}/scheduler")
        config = SchedulerConfig(
            scheduler_name=SCHEDULER_NAME, extender=extender, max_backoff_s=3.0, seed=options.seed
        )
        scheduler = KubeScheduler(world.server, self.clock, config)
        if scheduler.extender is not None:
            scheduler.extender.on_call = world.on_call
        pulse = BrokerPulse(broker.host, broker.port, self.clock)
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = [
                group.create_task(daemon.watch(), name="demo.daemon"),
                group.create_task(_watch_broker(broker), name="demo.broker"),
                group.create_task(pulse.run(), name="demo.pulse"),
                group.create_task(fleet.run(), name="demo.fleet"),
            ]
            connected_by_mono_s = self.clock.mono_s() + CONNECTED_S
            while fleet.connected < len(model.trace.nodes) and not self.ending.asked.is_set():
                if self.clock.mono_s() > connected_by_mono_s:
                    raise DemoFailed(
                        f"{fleet.connected} agents were connected within {CONNECTED_S:g} s, not all"
                    )
                await self.ending.pause(SHOW_EVERY_S / 10)
            # Readings of all nodes first, so that the first pods are placed by load too.
            await self.ending.pause(2 * interval_s)
            board = None
            if not self.ending.asked.is_set():
                board = world.begin()
                tasks += [
                    group.create_task(scheduler.run(), name="demo.kubescheduler"),
                    group.create_task(world.run(), name="demo.world"),
                ]
                await self._show(board, world, scheduler, daemon.url, broker, pulse)
            for task in tasks:
                task.cancel()
        if board is not None:
            notes = self._notes(board, world, scheduler, fleet, pulse)
            summary = board.summary(self.clock.mono_s(), notes)
            self.console.print(summary_view(summary, width=self.console.width, marks=marks_of(self.console)))
        return board

    async def _show(
        self,
        board: Scoreboard,
        world: World,
        scheduler: KubeScheduler,
        url: str,
        broker: BrokerHandle,
        pulse: BrokerPulse,
    ) -> None:
        lines = (
            f"page       {url}/",
            f"nodes      {url}/api/v1/nodes",
            f"decisions  {url}/api/v1/decisions",
            f"metrics    {url}/metrics",
            f"list       {program_name()} nodes --server {url}",
            f"ask why    {program_name()} explain POD -n demo --server {url}",
            f"broker     {broker.kind} at {broker.url}",
            "Ctrl-C ends it with a summary",
        )
        with Progress(self.console, title="wattbalance demo", lines=lines) as progress:
            while not self.ending.asked.is_set():
                board.rejected = scheduler.counts.unschedulable
                board.on_behind(max(scheduler.untried()[1], world.late_s))
                board.broker_silent_s = pulse.silent_s
                live = board.live(self.clock.mono_s())
                progress.show(live)
                if self.options.duration_s is not None and live.elapsed_s >= self.options.duration_s:
                    break
                await self.ending.pause(SHOW_EVERY_S)

    def _notes(
        self,
        board: Scoreboard,
        world: World,
        scheduler: KubeScheduler,
        fleet: Fleet,
        pulse: BrokerPulse,
    ) -> tuple[str, ...]:
        elapsed_s = max(self.clock.mono_s() - board.start_mono_s, 1.0)
        behind = fell_behind(
            most_behind_s=board.most_behind_s,
            behind_s=board.behind_s,
            untried=scheduler.untried()[0],
            wanted_per_s=world.model.rate_per_s,
            tried_per_s=scheduler.counts.attempts / elapsed_s,
            speed_per_s=self.options.speed,
            failed_calls=scheduler.counts.extender_errors,
        )
        notes = [behind] if behind else []
        if pulse.most_silent_s:
            notes.append(
                f"the broker did not answer for {pulse.most_silent_s:.0f} s: readings grew old, then unknown, and "
                "pods were placed without"
            )
        if self.options.policies == Policies.SHIPPED:
            notes.append(
                "these policies pack training and batch and fill dc-1 first, so load is meant to be uneven; "
                "--policies least-loaded is for comparing the spread"
            )
        if scheduler.counts.extender_errors and not behind:
            notes.append(f"{scheduler.counts.extender_errors} extender calls failed")
        if scheduler.counts.bind_failures:
            notes.append(f"{scheduler.counts.bind_failures} bindings were refused by the API server")
        if fleet.offered < ENOUGH_SAMPLES_FRAC * fleet.due:
            notes.append(f"agents could send {fleet.offered / fleet.due:.0%} of the samples that were due")
        if fleet.dropped:
            notes.append(f"{fleet.dropped} samples were replaced by newer ones before they could be sent")
        return tuple(notes)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


async def _watch_broker(broker: BrokerHandle) -> NoReturn:
    """Raise once the broker has ended."""
    while (code := broker.poll()) is None:  # noqa: ASYNC110 - a child of Popen has no event
        await asyncio.sleep(SHOW_EVERY_S)
    raise DemoFailed(f"the broker ({broker.kind}, process {broker.pid}) {how_it_ended(code)}")


def program_name() -> str:
    """What to type for ourselves: where a shell would not find us, such as in a .venv, the path we were called by."""
    called = Path(sys.argv[0])
    found = shutil.which("wattbalance") is not None or called.name != "wattbalance"
    return "wattbalance" if found else str(called)


def _asked_for(port: int) -> int:
    """The port, once it is seen to be free.

    Raises:
        DemoFailed: somebody else has it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoFailed(
                f"port {port} cannot be had ({error.strerror}): choose another with --port, or --port 0"
            ) from error
    return port
