"""Calls into the driver for one GPU: how each is made, counted, and remembered where the GPU has no such thing.

The binding is handed in by nvml.py, which stays the only file that imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scheduler.core.errors import (
    DeviceError,
    DeviceUnknown,
    DriverMismatch,
    DriverUnavailable,
    GpuLost,
    NotSupported,
)
from scheduler.device.nvml_codes import UNKNOWN, fault_of
from scheduler.device.protocol import DeviceCounters, FieldFault
from scheduler.device.threads import CallThread

# The binding has no types: a handle, and what a getter returns, is whatever ctypes makes of it.
Handle = Any
Binding = Any
AnswerOf = Callable[..., Any]

# What a GPU does not support may come with a driver that is replaced under us: rare, and asking costs 1.4 µs.
ASK_AGAIN_S = 3600.0


class GpuCalls:
    """One GPU's handle and the three ways to use it: `_call`, `_ask` and `_try`.

    Args:
        uuid: Its name for as long as it lives; indices move.
        nvml: The binding's module.
        answer_of: Calls a function of the binding and raises a DeviceError instead of its exception.
        counters: Shared by all GPUs of an adapter.
    """

    def __init__(self, uuid: str, nvml: Binding, answer_of: AnswerOf, counters: DeviceCounters) -> None:
        self.uuid = uuid
        self.position = 0
        self.handle: Handle | None = None
        self._nvml = nvml
        self._answer_of = answer_of
        self._counters = counters
        self._absent: dict[str, float] = {}
        # State of one reading, reused to spare allocations.
        self._mono_s = -math.inf
        self._faults: dict[str, FieldFault] = {}
        self._answered = 0
        self._unknowns = 0

    def _call(self, via: CallThread, name: str, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (see Handle)
        try:
            answer = via.call(self.position, name, self._answer_of, name, function, self.handle, *args)
        except DeviceUnknown as error:
            self._unknowns += error.code == UNKNOWN
            self._counters.failed_calls += 1
            raise
        except NotSupported:
            raise
        except DeviceError:
            self._counters.failed_calls += 1
            raise
        self._answered += 1
        return answer

    def _ask(self, via: CallThread, name: str, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (see Handle)
        """Like _call, but remember for an hour that this GPU has no such thing."""
        again_mono_s = self._absent.get(name)
        if again_mono_s is not None and self._mono_s < again_mono_s:
            raise NotSupported(name)
        try:
            answer = self._call(via, name, function, *args)
        except NotSupported:
            self._absent[name] = self._mono_s + ASK_AGAIN_S
            raise
        self._absent.pop(name, None)
        return answer

    def _try(
        self, via: CallThread, fields: str, name: str, function: Callable[..., Any], *args: object
    ) -> Any:  # noqa: ANN401 (see Handle)
        """Like _ask, but None on failure, its reason noted for each of the fields; what ends a reading is raised."""
        try:
            return self._ask(via, name, function, *args)
        except (GpuLost, DriverUnavailable, DriverMismatch):
            raise
        except DeviceError as error:
            for field in fields.split():
                self._faults[field] = fault_of(error)
            return None

    def _memory(self, via: CallThread) -> Handle | None:
        # v1 counts what the driver reserves as used; v2 came with driver 510.
        for name, version in (("memory_v2", self._nvml.nvmlMemory_v2), ("memory", None)):
            memory = self._try(via, "mem_used_bytes", name, self._nvml.nvmlDeviceGetMemoryInfo, version)
            if memory is not None:
                self._faults.pop("mem_used_bytes", None)
                return memory
        return None
