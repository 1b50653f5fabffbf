"""A DevicePort over a blocking driver: deadlines, hung GPUs, a library that went away, events. Knows no vendor."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from scheduler.core.clock import Clock
from scheduler.core.errors import DeviceError, DeviceTimeout, DriverUnavailable, GpuLost
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import (
    DeviceCounters,
    DeviceInfo,
    DeviceLink,
    FieldFault,
    Hardware,
    Reading,
    unread,
)
from scheduler.device.threads import LIBRARY, CallThread, HungError

T = TypeVar("T")

# One read waits out this many hangs at most; GPUs it did not get to are unknown until the next read. Each further
# hung GPU costs one deadline once, and a driver that hangs as a whole must not make one read take sixteen seconds.
HANGS_PER_READ = 2
# Describing eight GPUs one of which hangs must end within the time that an agent gives to opening; the library itself,
# which wakes the GPUs, has longer.
DESCRIBE_DEADLINE_S = 5.0
FIND_DEADLINE_S = 10.0
# Links seldom change, but whatever sets up an NVLink fabric may come up after us. Eight GPUs are 500 short calls.
LINKS_EVERY_S = 600.0
# Delays before the library is opened anew after it went away; the last one repeats.
REOPEN_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)


class BlockingGpu(Protocol):
    """One GPU of a blocking driver. Its methods run in a thread and make each call through `via.call`."""

    position: int
    uuid: str
    xid: int | None

    @property
    def epoch(self) -> int:
        """The energy epoch of its last reading."""
        ...

    @property
    def info(self) -> DeviceInfo | None:
        """What it is, as describe() found it and read() keeps it; None until it answered."""
        ...

    def find(self, via: CallThread) -> None:
        """Get hold of it, and of its UUID; raises only DriverUnavailable and DriverMismatch."""
        ...

    def describe(self, via: CallThread) -> None:
        """Find out what it is; raises only DriverUnavailable and DriverMismatch."""
        ...

    def find_links(self, via: CallThread) -> None:
        """Find out what it is connected to; raises only DriverUnavailable and DriverMismatch."""
        ...

    def read(self, via: CallThread, mono_s: float) -> Reading:
        """Read it; raises only DriverUnavailable and DriverMismatch."""
        ...

    def set_limit(self, via: CallThread, limit_w: float) -> float:
        """Set its limit and read it back; raises a DeviceError."""
        ...


class BlockingDriver(Protocol):
    """A vendor's library, as a thread sees it."""

    version: str

    def open(self, via: CallThread) -> Sequence[BlockingGpu]:
        """Start the library and count the GPUs. Raises DriverUnavailable or DriverMismatch, with nothing left open."""
        ...

    def reopen(self, via: CallThread) -> None:
        """Shut the library down, start it and find the same GPUs again by UUID."""
        ...

    def links(self, via: CallThread, position: int, hung: Container[int]) -> tuple[DeviceLink, ...]:
        """Say how near one GPU is to each after it; raises only DriverUnavailable and DriverMismatch."""
        ...

    def watch_events(self, stop: threading.Event) -> None:
        """Put fault codes into `xid` of the GPUs until told to stop; the loop of a thread of its own."""
        ...

    def shutdown(self) -> None:
        """Undo one open()."""
        ...


@dataclass(slots=True)
class _Threads:
    """Counts the threads of one open(); the last one to leave shuts the library down, so that nobody waits."""

    driver: BlockingDriver
    lock: threading.Lock
    inside: int = 0
    opened: bool = False
    """Whether there is anything to undo: the shutdown of a failed open must not hit the open that came after it."""

    def enter(self) -> None:
        with self.lock:
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            last = self.inside == 0
        if last and self.opened:
            self.driver.shutdown()


class ThreadedDevices:
    """Reads, sets and watches in three daemon threads; a thread whose call hangs is left behind with its GPU.

    Args:
        clock: Told to readings and used for delays. Deadlines run on the loop's own time: a driver hangs in it.
        driver: The library.
        counters: Shared with the driver, which counts calls and XIDs.
        deadline_s: How long one call may take before its GPU counts as hung.
        open_deadline_s: The same while opening, where a driver without persistence mode wakes its GPUs.
    """

    def __init__(
        self,
        clock: Clock,
        driver: BlockingDriver,
        counters: DeviceCounters,
        *,
        deadline_s: float,
        open_deadline_s: float,
    ) -> None:
        self.counters = counters
        self._clock = clock
        self._driver = driver
        self._deadline_s = deadline_s
        self._open_deadline_s = open_deadline_s
        self._gpus: Sequence[BlockingGpu] = ()
        self._hung: dict[int, int] = {}  # device number -> threads stuck on it
        self._generation = 0
        self._threads: _Threads | None = None
        self._reader: CallThread | None = None
        self._writer: CallThread | None = None
        self._stop_events = threading.Event()
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._reopen_at_mono_s: float | None = None
        self._reopen_tries = 0
        self._links: tuple[DeviceLink, ...] = ()
        self._links_due_mono_s = -math.inf
        self._hardware = Hardware()

    @property
    def hardware(self) -> Hardware:
        """See DevicePort."""
        return self._hardware

    async def open(self) -> tuple[DeviceInfo, ...]:
        """Start the library and describe the GPUs; one that hangs while it is described gets a bare entry.

        Raises DriverUnavailable (retry with a back-off) or DriverMismatch (exit).
        """
        if self._hung:
            # A second try would hang too, and leave one thread more behind each time.
            raise DriverUnavailable("an earlier call into the driver has not returned")
        await self.close()
        self._threads = threads = _Threads(self._driver, threading.Lock())
        self._reader, self._writer = self._start("read"), self._start("write")
        reader = self._reader

        def start() -> Sequence[BlockingGpu]:
            gpus = self._driver.open(reader)
            threads.opened = True
            return gpus

        try:
            self._gpus = await reader.run(start, self._open_deadline_s)
            deadline_s = min(self._open_deadline_s, FIND_DEADLINE_S)
            await self._each(lambda via, gpu: gpu.find(via), deadline_s, len(self._gpus))
            deadline_s = min(self._open_deadline_s, DESCRIBE_DEADLINE_S)
            await self._each(lambda via, gpu: gpu.describe(via), deadline_s, len(self._gpus))
            await self._find_links(deadline_s)
        except HungError as hung:
            self._give_up(hung)
            self._reader = None
            await self.close()
            raise DriverUnavailable(f"the driver does not answer: {hung}") from None
        except DeviceError:
            await self.close()
            raise
        self._start_events()
        self._sum_up()
        return self._hardware.devices

    async def read(self) -> tuple[Reading, ...]:
        """Read every GPU that answers; see DevicePort."""
        async with self._reading:
            start_mono_s = self._clock.mono_s()
            try:
                found = await self._read_all() if await self._is_open() else {}
            except DriverUnavailable:
                self._library_went_away()
                found = {}
            self.counters.last_read_s = self._clock.mono_s() - start_mono_s
            self._sum_up()
            return tuple(found.get(gpu.position) or self._missed(gpu) for gpu in self._gpus)

    async def set_limit(self, uuid: str, limit_w: float) -> float:
        """Set and read back; see DevicePort."""
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)
        if gpu is None:
            raise GpuLost(f"no GPU {uuid}")
        async with self._writing:
            writer = self._writer
            if writer is None or gpu.position in self._hung:
                raise DeviceTimeout(f"GPU {uuid} does not answer")
            try:
                return await writer.run(lambda: gpu.set_limit(writer, limit_w), self._deadline_s)
            except HungError as hung:
                self._give_up(hung)
                self._writer = self._start("write")
                raise DeviceTimeout(f"GPU {uuid} does not answer") from None

    async def close(self) -> None:
        """Tell the threads to end; the last one out shuts the library down. None is awaited: one may never end."""
        self._stop_events.set()
        for thread in (self._reader, self._writer):
            if thread is not None:
                thread.stop()
        self._reader = self._writer = self._threads = None
        self._gpus, self._links, self._links_due_mono_s = (), (), -math.inf
        self._sum_up()
        self._reopen_at_mono_s, self._reopen_tries = None, 0

    async def _each(
        self, job: Callable[[CallThread, BlockingGpu], T], deadline_s: float, hangs: int
    ) -> dict[int, T]:
        """Run a job on every GPU that is not hung; a GPU that hangs is left behind and the rest goes on."""
        done: dict[int, T] = {}
        while (reader := self._reader) is not None and LIBRARY not in self._hung:
            left = [gpu for gpu in self._gpus if gpu.position not in done and gpu.position not in self._hung]
            if not left or hangs < 1:
                break
            try:
                await reader.run(_over(job, reader, left, done), deadline_s)
            except HungError as hung:
                hangs -= 1
                self._give_up(hung)
                self._reader = self._start("read")
        return done

    async def _find_links(self, deadline_s: float) -> None:
        """Find out anew how the GPUs are connected; those that hang meanwhile have no links."""
        self._links_due_mono_s = self._clock.mono_s() + LINKS_EVERY_S
        await self._each(lambda via, gpu: gpu.find_links(via), deadline_s, HANGS_PER_READ)
        # A set of its own: the thread reads it while the loop may add to the original.
        hung = frozenset(self._hung)
        found = await self._each(
            lambda via, gpu: self._driver.links(via, gpu.position, hung), deadline_s, HANGS_PER_READ
        )
        self._links = tuple(link for position in sorted(found) for link in found[position])

    def _sum_up(self) -> None:
        """Make another description of the hardware if something about it has changed."""
        hardware = Hardware(
            driver=self._driver.version if self._gpus else "",
            devices=tuple([gpu.info or _bare(gpu) for gpu in self._gpus]),
            links=self._links,
        )
        if hardware != self._hardware:
            self._hardware = hardware

    def _missed(self, gpu: BlockingGpu) -> Reading:
        hung = gpu.position in self._hung
        down = self._reopen_at_mono_s is not None
        state = DeviceState.HUNG if hung else DeviceState.UNKNOWN
        fault = FieldFault.UNKNOWN if down and not hung else FieldFault.TIMEOUT
        return unread(gpu.uuid, self._clock.mono_s(), state, fault, epoch=gpu.epoch, xid=gpu.xid)

    def _start(self, kind: str) -> CallThread:
        threads = self._threads
        if threads is None:
            raise DriverUnavailable("the driver is not open")
        self._generation += 1
        threads.enter()
        return CallThread(f"device.{kind}[{self._generation}]", self._came_back, threads.leave)

    def _give_up(self, hung: HungError) -> None:
        self.counters.timeouts += 1
        self.counters.abandoned_threads += 1
        self._hung[hung.device] = self._hung.get(hung.device, 0) + 1

    def _came_back(self, device: int) -> None:
        self.counters.abandoned_threads -= 1
        self._hung[device] -= 1
        if not self._hung[device]:
            del self._hung[device]

    def _start_events(self) -> None:
        self._stop_events = stop = threading.Event()
        threads = self._threads
        if threads is None:
            return
        threads.enter()

        def watch() -> None:
            try:
                self._driver.watch_events(stop)
            finally:
                threads.leave()

        self._generation += 1
        threading.Thread(target=watch, name=f"device.events[{self._generation}]", daemon=True).start()

    def _library_went_away(self) -> None:
        delay_s = REOPEN_DELAYS_S[min(self._reopen_tries, len(REOPEN_DELAYS_S) - 1)]
        self._reopen_tries += 1
        self._reopen_at_mono_s = self._clock.mono_s() + delay_s

    async def _read_all(self) -> dict[int, Reading]:
        if self._clock.mono_s() >= self._links_due_mono_s:
            await self._find_links(self._deadline_s)
        return await self._each(
            lambda via, gpu: gpu.read(via, self._clock.mono_s()), self._deadline_s, HANGS_PER_READ
        )

    async def _is_open(self) -> bool:
        """Bring a library back that had gone away, when it is time to. Raises DriverUnavailable if that fails."""
        if self._reopen_at_mono_s is None:
            return True
        # With a thread stuck in it the library cannot be shut down.
        if self._hung or self._clock.mono_s() < self._reopen_at_mono_s:
            return False
        reader = self._reader
        if reader is None:
            return False
        self._stop_events.set()
        try:
            await reader.run(lambda: self._driver.reopen(reader), self._open_deadline_s)
        except HungError as hung:
            self._give_up(hung)
            self._reader = self._start("read")
            raise DriverUnavailable(f"the driver does not answer: {hung}") from None
        self.counters.reopens += 1
        self._reopen_at_mono_s, self._reopen_tries = None, 0
        self._links_due_mono_s = -math.inf
        self._start_events()
        return True


def _over(
    job: Callable[[CallThread, BlockingGpu], T],
    via: CallThread,
    gpus: Sequence[BlockingGpu],
    done: dict[int, T],
) -> Callable[[], None]:
    """Make one job of many GPUs, whose results are kept as they come: a hang loses only its own."""

    def work() -> None:
        for gpu in gpus:
            done[gpu.position] = job(via, gpu)

    return work


def _bare(gpu: BlockingGpu) -> DeviceInfo:
    return DeviceInfo(
        index=gpu.position,
        uuid=gpu.uuid,
        model="",
        memory_total_bytes=None,
        limit_min_w=None,
        limit_max_w=None,
        limit_default_w=None,
        power_domain=gpu.uuid,
    )
