"""NVIDIA GPUs through nvidia-ml-py: the only file that imports it, and no exception of its leaves here.

Library-wide: start and stop, finding GPUs, events. What is read of one GPU stands in nvml_gpu.py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any

import pynvml

from scheduler.core.clock import Clock
from scheduler.core.errors import (
    DeviceError,
    DriverMismatch,
    DriverUnavailable,
)
from scheduler.device.energy import EnergyMeter
from scheduler.device.nvml_calls import Handle
from scheduler.device.nvml_codes import APPLICATION_XIDS, DOUBLE_BIT_ECC_XID, TIMEOUT, UNKNOWN, error_of
from scheduler.device.nvml_gpu import NvmlGpu
from scheduler.device.protocol import DeviceCounters, DeviceLink
from scheduler.device.threaded import ThreadedDevices
from scheduler.device.threads import LIBRARY, CallThread

EVENT_WAIT_MS = 1000
EVENT_BACKOFF_S = 1.0


class NvmlDevices(ThreadedDevices):
    """The GPUs of this machine. See ThreadedDevices for what happens when one hangs.

    Args:
        clock: The time that readings carry.
        deadline_s: How long one driver call may take before its GPU counts as hung.
        open_deadline_s: The same while opening; waking a GPU without persistence mode takes seconds.
        probe_write: Whether open() sets each limit to its present value to learn if it may.
        event_wait_ms: How long the event thread waits in the driver at a time, so how long it outlives close().
    """

    def __init__(
        self,
        clock: Clock,
        *,
        deadline_s: float = 2.0,
        open_deadline_s: float = 60.0,
        probe_write: bool = True,
        event_wait_ms: int = EVENT_WAIT_MS,
    ) -> None:
        counters = DeviceCounters()
        driver = _Library(counters, probe_write=probe_write, event_wait_ms=event_wait_ms)
        super().__init__(clock, driver, counters, deadline_s=deadline_s, open_deadline_s=open_deadline_s)


def _answer_of(name: str, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (see Handle)
    """Call the binding and translate its exception. NVMLError is unhashable, so it is not even chained to ours."""
    try:
        return function(*args)
    except pynvml.NVMLError as error:
        code = error.value
    except UnicodeDecodeError:
        code = UNKNOWN
    raise error_of(code, name)


def _for_all(error: DeviceError) -> DeviceError:
    """Without this call there is no GPU to go on with, whatever its error was."""
    return error if isinstance(error, DriverMismatch | DriverUnavailable) else DriverUnavailable(str(error))


class _Library:
    """libnvidia-ml as a whole: start, stop, find GPUs, wait for events."""

    def __init__(self, counters: DeviceCounters, *, probe_write: bool, event_wait_ms: int) -> None:
        self.version = ""
        self._counters = counters
        self._probe_write = probe_write
        self._event_wait_ms = event_wait_ms
        self._gpus: list[NvmlGpu] = []
        self._meters: dict[str, EnergyMeter] = {}

    def open(self, via: CallThread) -> Sequence[NvmlGpu]:
        self._gpus = []
        self._init(via)
        try:
            count = via.call(LIBRARY, "count", _answer_of, "count", pynvml.nvmlDeviceGetCount)
        except DeviceError as error:
            self.shutdown()
            raise _for_all(error) from None
        self._gpus = [
            NvmlGpu(index, pynvml, _answer_of, self._counters, self._meter_of, probe_write=self._probe_write)
            for index in range(count)
        ]
        return self._gpus

    def reopen(self, via: CallThread) -> None:
        self.shutdown()
        self._init(via)
        for gpu in self._gpus:
            gpu.find(via)

    def _meter_of(self, uuid: str) -> EnergyMeter:
        # A GPU met before keeps its meter, so that its epochs go on.
        return self._meters.setdefault(uuid, EnergyMeter())

    def _init(self, via: CallThread) -> None:
        try:
            via.call(LIBRARY, "init", _answer_of, "init", pynvml.nvmlInitWithFlags, 0)
        except DeviceError as error:
            raise _for_all(error) from None
        version = via.call(LIBRARY, "driver_version", _answer_of, "driver", pynvml.nvmlSystemGetDriverVersion)
        self.version = str(version)

    def links(self, via: CallThread, position: int, hung: Container[int]) -> tuple[DeviceLink, ...]:
        gpus = [gpu for gpu in self._gpus if gpu.handle is not None and gpu.position not in hung]
        buses = frozenset(gpu.info.pci_bus_id for gpu in gpus if gpu.info)
        mine = self._gpus[position]
        if mine.handle is None:
            return ()
        found = (mine.link_to(via, other, buses) for other in gpus if other.position > position)
        return tuple(link for link in found if link is not None)

    def shutdown(self) -> None:
        try:
            _answer_of("shutdown", pynvml.nvmlShutdown)
        except DeviceError:
            # Never started, or gone already: either way nothing is left to undo.
            self._counters.failed_calls += 1

    def watch_events(self, stop: threading.Event) -> None:
        try:
            event_set = _answer_of("event_set", pynvml.nvmlEventSetCreate)
        except DeviceError:
            self._counters.event_errors += 1
            return
        by_address: dict[int | None, NvmlGpu] = {}
        asked: set[int | None] = set()
        while not stop.is_set():
            # One that did not answer at the start is found later.
            for gpu in self._gpus:
                address = _address(gpu.handle)
                if gpu.handle is not None and address not in asked:
                    asked.add(address)
                    if gpu.register(event_set):
                        by_address[address] = gpu
            if not by_address:
                stop.wait(self._event_wait_ms / 1000)
                continue
            try:
                event = pynvml.nvmlEventSetWait_v2(event_set, self._event_wait_ms)
            except pynvml.NVMLError as error:
                # Nothing within the wait is the normal case. Anything else would come back at once, again and again.
                if error.value != TIMEOUT:
                    self._counters.event_errors += 1
                    stop.wait(EVENT_BACKOFF_S)
                continue
            self._take_event(by_address.get(_address(event.device)), event)
        try:
            _answer_of("event_set_free", pynvml.nvmlEventSetFree, event_set)
        except DeviceError:
            self._counters.event_errors += 1

    def _take_event(self, gpu: NvmlGpu | None, event: Handle) -> None:
        is_ecc = event.eventType == pynvml.nvmlEventTypeDoubleBitEccError
        # Codes have three digits; the field has 64 bits, more than the wire takes.
        xid = DOUBLE_BIT_ECC_XID if is_ecc else int(event.eventData) & 0xFFFF_FFFF
        if gpu is None:
            self._counters.event_errors += 1
        elif xid in APPLICATION_XIDS:
            self._counters.ignored_xids += 1
        else:
            self._counters.xids += 1
            gpu.xid = xid


def _address(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
