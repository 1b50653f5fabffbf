"""A device of the tests' own: readings are what the test says, errors are raised when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler.core.clock import Clock
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import DeviceCounters, DeviceInfo, DeviceLink, Hardware, Reading


def make_info(index: int = 0, **fields: object) -> DeviceInfo:
    whole: dict[str, object] = {
        "index": index,
        "uuid": f"GPU-{index}",
        "model": "Test GPU",
        "memory_total_bytes": 80 * 2**30,
        "limit_min_w": 100.0,
        "limit_max_w": 400.0,
        "limit_default_w": 400.0,
        "power_domain": f"GPU-{index}",
    }
    return DeviceInfo(**(whole | fields))  # type: ignore[arg-type]  # Fields of a case.


def make_reading(index: int = 0, **fields: object) -> Reading:
    whole: dict[str, object] = {"uuid": f"GPU-{index}", "mono_s": 1000.0, "state": DeviceState.OK}
    known: dict[str, object] = {"power_w": 200.0, "util_frac": 0.5, "energy_j": 1000.0}
    return Reading(**(whole | known | fields))  # type: ignore[arg-type]  # Fields of a case.


class ScriptedDevices:
    """A DevicePort for two GPUs; `open_error`, `read_error` and `hang` are switched by the test."""

    def __init__(self, clock: Clock, gpus: int = 2) -> None:
        self._clock = clock
        self.infos = tuple(make_info(index) for index in range(gpus))
        self.counters = DeviceCounters()
        self.links: tuple[DeviceLink, ...] = ()
        self.make: Callable[[int], Reading] = make_reading
        self.open_error: Exception | None = None
        self.read_error: Exception | None = None
        self.hang = False
        self.opened = 0
        self.closed = 0

    @property
    def hardware(self) -> Hardware:
        return Hardware(driver="580.95.05", devices=self.infos, links=self.links)

    async def open(self) -> tuple[DeviceInfo, ...]:
        self.opened += 1
        if self.open_error is not None:
            raise self.open_error
        return self.infos

    async def read(self) -> tuple[Reading, ...]:
        if self.hang:
            await asyncio.Event().wait()
        if self.read_error is not None:
            raise self.read_error
        return tuple(self.make(info.index) for info in self.infos)

    async def set_limit(self, uuid: str, limit_w: float) -> float:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed += 1
