"""What runs on every GPU node: reads the devices, publishes one message per interval, answers /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from scheduler import __version__
from scheduler.core.aio import RetryDelays, guard
from scheduler.core.clock import Clock
from scheduler.core.errors import ConfigError, DeviceError, DriverMismatch, DriverUnavailable, Problem
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import DeviceInfo, DevicePort, FieldFault, Hardware, Reading, unread
from scheduler.telemetry import agent_metrics as metrics
from scheduler.telemetry.agent_http import Page, TextServer
from scheduler.telemetry.bus import BrokerSettings, NodePublisher
from scheduler.telemetry.collect import Collector, make_inventory
from scheduler.telemetry.sample import encode, inventory_hash

_log = logging.getLogger(__name__)

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
# A driver that is being installed or upgraded takes minutes; a node without one for good is asked twice a minute.
OPEN_DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What an agent is told at start."""

    node: str
    """Kubernetes' name of the node; with certificates also the identity that the broker knows."""
    cluster: str = "default"
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    interval_s: float = 1.0
    """Time between messages."""
    sample_hz: float = 5.0
    """Looks at the GPUs per second; fewer where a look takes longer."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 9401
    """Where /metrics and /healthz are; 0 takes a free port, None serves none."""
    read_deadline_s: float = 5.0
    """A look that takes longer is given up and every GPU unknown. The adapter gives up single calls sooner."""
    open_deadline_s: float = 120.0
    """Likewise for finding the GPUs; a driver that loads takes seconds, and one that hangs on some of the GPUs is
    left in peace until the adapter has given up each: giving up here would lose the others too."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        wrong = [
            Problem(path=f"agent.{name}", message=f"expected more than 0, got {getattr(self, name)}")
            for name in ("interval_s", "sample_hz", "read_deadline_s", "open_deadline_s")
            if not getattr(self, name) > 0
        ]
        if wrong:
            raise ConfigError(wrong)


class Agent:
    """One node's agent. `tick` is one step; the loops around it only wait."""

    def __init__(
        self,
        options: AgentOptions,
        devices: DevicePort,
        clock: Clock,
        *,
        boot: str = "",
        open_delays: RetryDelays | None = None,
    ) -> None:
        self.options = options
        self._devices = devices
        self._clock = clock
        self._open_delays = open_delays or RetryDelays(OPEN_DELAYS_S)
        self._next_open_mono_s = clock.mono_s()
        self._opened = False
        self._next_publish_mono_s = clock.mono_s() + options.interval_s
        self._collector = Collector(node=options.node, agent=uuid.uuid4().hex, boot=boot or read_boot_id())
        self._read_times = metrics.ReadTimes()
        self._faults = metrics.GpuFaults()
        self._read_failures = 0
        self._last_tick_mono_s = clock.mono_s()
        self.publisher = NodePublisher(
            options.broker, cluster=options.cluster, node=options.node, clock=clock
        )
        self._hardware = Hardware()
        self.readings: tuple[Reading, ...] = ()
        self.driver_error = "not yet opened"
        """Why there are no GPUs to read, for people; empty while there are."""
        pages = {"/metrics": self.metrics_page, "/healthz": self.health_page}
        self.server = TextServer(options.metrics_host, options.metrics_port or 0, pages)

    @property
    def infos(self) -> tuple[DeviceInfo, ...]:
        """The GPUs, as the inventory names them."""
        return self._hardware.devices

    async def run(self) -> NoReturn:
        """Read and publish, for ever, until cancelled; then say `offline` and let go of the driver."""
        loops = [("agent.publish", self.publisher.run()), ("agent.read", self._read_on())]
        if self.options.metrics_port is not None:
            loops.append(("agent.http", self.server.run()))
        try:
            async with asyncio.TaskGroup() as group:
                for name, loop in loops:
                    group.create_task(guard(name, loop), name=name)
        finally:
            await self._devices.close()
        raise AssertionError  # pragma: no cover  # Guarded loops never end without an error.

    async def _read_on(self) -> NoReturn:
        # All agents of a fleet start together when a DaemonSet rolls; their messages need not come together.
        await asyncio.sleep(random.uniform(0.0, min(1.0, self.options.interval_s)))  # noqa: S311  # No secret.
        period_s = 1.0 / self.options.sample_hz
        next_mono_s = self._clock.mono_s()
        while True:
            await self.tick()
            now_mono_s = self._clock.mono_s()
            # What was missed is not made up for: a slow read means fewer looks, not a burst of them.
            next_mono_s = max(next_mono_s + period_s, now_mono_s)
            await asyncio.sleep(next_mono_s - now_mono_s)

    async def tick(self) -> None:
        """Look at the GPUs once, and publish if the interval is over.

        Raises:
            DriverMismatch: only a new process can load the new driver library; end this one.
        """
        if not self._opened and self._clock.mono_s() >= self._next_open_mono_s:
            await self._open()
        if self._opened:
            await self._read()
        now_mono_s = self._last_tick_mono_s = self._clock.mono_s()
        # Half a look early is nearer than half a look late.
        if now_mono_s + 0.5 / self.options.sample_hz >= self._next_publish_mono_s:
            sample = self._collector.close(now_mono_s, self._clock.unix_s())
            self.publisher.offer(encode(sample))
            self._next_publish_mono_s += self.options.interval_s
            if self._next_publish_mono_s <= now_mono_s:
                self._next_publish_mono_s = now_mono_s + self.options.interval_s

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self.options.open_deadline_s):
                await self._devices.open()
        except DriverMismatch:
            raise
        except (DeviceError, TimeoutError) as error:
            self._lose_driver(str(error) or f"no answer within {self.options.open_deadline_s:g} s")
            return
        self._opened = True
        self.driver_error = ""
        self._open_delays.reset()
        self._publish_inventory(self._devices.hardware)

    def _lose_driver(self, reason: str) -> None:
        delay_s = self._open_delays.next_s()
        _log.warning("no GPU driver: %s; again in %.0f s", reason, delay_s)
        first = self.driver_error in {"", "not yet opened"}
        self.driver_error = reason
        self._opened = False
        self._next_open_mono_s = self._clock.mono_s() + delay_s
        self.readings = ()
        if first:
            # An inventory without GPUs says: this node lives, and nothing is known of its GPUs.
            self._publish_inventory(Hardware())

    def _publish_inventory(self, hardware: Hardware) -> None:
        self._hardware = hardware
        payload = encode(make_inventory(self.options.node, hardware, __version__))
        self._collector.begin(inventory_hash(payload), self._clock.mono_s())
        self.publisher.set_inventory(payload)

    async def _read(self) -> None:
        began_mono_s = self._clock.mono_s()
        try:
            async with asyncio.timeout(self.options.read_deadline_s):
                readings = await self._devices.read()
        except DriverMismatch:
            raise
        except DriverUnavailable as error:
            self._read_failures += 1
            self._lose_driver(str(error))
            return
        except (DeviceError, TimeoutError) as error:
            self._read_failures += 1
            fault = FieldFault.TIMEOUT if isinstance(error, TimeoutError) else FieldFault.UNKNOWN
            readings = tuple(
                unread(info.uuid, began_mono_s, DeviceState.UNKNOWN, fault) for info in self.infos
            )
        self._read_times.add(self._clock.mono_s() - began_mono_s)
        if self._devices.hardware != self._hardware:
            _log.info("the GPUs have changed: the inventory goes out again")
            self._publish_inventory(self._devices.hardware)
        self.readings = readings
        self._faults.add(readings)
        self._collector.add(readings)

    def health_page(self) -> Page:
        """Say whether the loop goes on (else 503: restart us), and what else is wrong (a restart cannot help)."""
        silent_s = self._clock.mono_s() - self._last_tick_mono_s
        deadline_s = self.options.read_deadline_s if self._opened else self.options.open_deadline_s
        most_s = 2 * (deadline_s + 1.0 / self.options.sample_hz)
        broker = "ok" if self.publisher.connected else self.publisher.last_error
        states = [
            f"gpu {info.index}: {reading.state}"
            for info, reading in zip(self.infos, self.readings, strict=False)
        ]
        lines = [
            f"agent: {'ok' if silent_s <= most_s else f'no reading finished for {silent_s:.0f} s'}",
            f"driver: {self.driver_error or 'ok'}",
            f"broker: {broker}",
            *states,
        ]
        return Page(body="\n".join(lines) + "\n", status=200 if silent_s <= most_s else 503)

    def metrics_page(self) -> Page:
        """Render all series of this agent."""
        node = metrics.label_text(node=self.options.node)
        publisher = self.publisher
        own = (
            (metrics.PUBLISHED, publisher.published),
            (metrics.DROPPED, publisher.dropped),
            (metrics.CONNECTED, publisher.connected),
            (metrics.CONNECTS, publisher.connects),
            (metrics.DRIVER_UP, self._opened),
            (metrics.GPUS, len(self.infos)),
            (metrics.READ_FAILURES, self._read_failures),
            *((family, getattr(self._devices.counters, field)) for family, field in metrics.DRIVER_COUNTS),
        )
        times = [
            *metrics.header(metrics.READ_SECONDS),
            *self._read_times.lines(metrics.READ_SECONDS, node),
            "",
        ]
        body = (
            metrics.gpu_text(self.options.node, self.infos, self.readings, self._faults)
            + "".join(metrics.block(family, [(node, value)]) for family, value in own)
            + "\n".join(times)
            + metrics.block(metrics.BUILD, [(metrics.label_text(version=__version__), 1)])
        )
        return Page(body=body, content_type=metrics.CONTENT_TYPE)


async def run_agent(options: AgentOptions, devices: DevicePort, clock: Clock) -> None:
    """Run an agent until it is cancelled, which is what the command line does at SIGTERM.

    Raises:
        ConfigError: a name cannot be one level of a topic.
        ExceptionGroup: an address is taken (CannotListen), the driver was replaced (DriverMismatch): end the process.
    """
    return_free_memory()
    await Agent(options, devices, clock).run()


def return_free_memory() -> None:
    """Hand back to the kernel what loading the program needed and does not any more.

    Where no bytecode lies beside the sources (a read-only image, an install that did not compile), the compiler leaves
    11 MiB behind that the C library would keep for ever: 42 instead of 31 MiB (measured 2026-11-21, glibc 2.36).
    """
    # Not every C library has it; then there is nothing to be done.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def read_boot_id() -> str:
    """The kernel's name for this boot; empty where it has none."""
    try:
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return ""
