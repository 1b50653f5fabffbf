"""GPUs that exist only here: utilisation is told, power and energy follow from it.

For `wattbalance demo`, simulations and tests. One object is one node; a process may hold thousands, so a reading
costs a few microseconds and nothing runs between readings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations

from scheduler.core.clock import Clock
from scheduler.core.errors import (
    DeviceTimeout,
    DeviceUnknown,
    GpuLost,
    NoPermission,
    NotSupported,
)
from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import (
    MEASURED_FIELDS,
    Ancestor,
    DeviceCounters,
    DeviceInfo,
    DeviceLink,
    FieldFault,
    Hardware,
    Reading,
    Throttle,
    unread,
)

Utilisation = Callable[[int, float], float]
"""(GPU index, monotonic instant) -> how busy it is, 0 to 1."""

# NVML's answer to a limit outside the constraints, so that callers meet the same error on both adapters.
INVALID_ARGUMENT = 2
# Invented, for something to look at: a GPU at its highest limit gets this much warmer than the room it stands in.
COOLEST_C = 30.0
WARMING_C = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """What one make of GPU is like. Watts are idle + (limit - idle) * utilisation."""

    model: str = "Simulated A100"
    memory_total_bytes: int = 80 * 1024**3
    idle_w: float = 50.0
    limit_min_w: float = 100.0
    limit_max_w: float = 400.0
    sm_clock_max_mhz: float = 1410.0
    mem_clock_mhz: float = 1593.0
    nvlinks: int = 12
    """Between any two GPUs of a node, by way of a switch; 0: there is none."""


@dataclass(slots=True)
class _Gpu:
    info: DeviceInfo
    limit_w: float
    # What it draws at mono_s; energy has been added up until then.
    power_w: float
    mono_s: float
    util_frac: float = 0.0
    energy_j: float = 0.0
    epoch: int = 0
    state: DeviceState = DeviceState.OK
    missing: dict[str, FieldFault] = field(default_factory=dict)
    mem_used_bytes: int | None = None
    xid: int | None = None
    ecc_uncorrected: int = 0
    remapped_rows: int = 0


class SimulatedDevices:
    """A DevicePort whose GPUs do what they are told; faults are switched by the methods below `close`."""

    def __init__(
        self,
        clock: Clock,
        model: SimulatedModel | None = None,
        *,
        gpus: int = 8,
        node: str = "node",
        utilisation: Utilisation | None = None,
        can_set_limit: bool = True,
    ) -> None:
        self._clock = clock
        self._model = model or SimulatedModel()
        self._utilisation = utilisation
        self._can_set_limit = can_set_limit
        self.counters = DeviceCounters()
        now = clock.mono_s()
        self._gpus = [
            _Gpu(
                self._describe(node, index),
                self._model.limit_max_w,
                self._model.idle_w,
                now,
            )
            for index in range(gpus)
        ]
        self._position = {gpu.info.uuid: gpu for gpu in self._gpus}
        # Made at the first open: simulations hold thousands of nodes of which nobody asks.
        self._hardware = Hardware()

    @property
    def hardware(self) -> Hardware:
        """See DevicePort."""
        return self._hardware

    def _describe(self, node: str, index: int) -> DeviceInfo:
        uuid = f"GPU-{node}-{index}"
        return DeviceInfo(
            index=index,
            uuid=uuid,
            model=self._model.model,
            memory_total_bytes=self._model.memory_total_bytes,
            limit_min_w=self._model.limit_min_w,
            limit_max_w=self._model.limit_max_w,
            limit_default_w=self._model.limit_max_w,
            power_domain=uuid,
            mig_enabled=False,
            pci_bus_id=f"00000000:{index:02X}:00.0",
            can_set_limit=self._can_set_limit,
        )

    async def open(self) -> tuple[DeviceInfo, ...]:
        """Name the devices; nothing can go wrong here."""
        self._sum_up()
        return self._hardware.devices

    async def read(self) -> tuple[Reading, ...]:
        """Read every device at the clock's present instant."""
        now = self._clock.mono_s()
        return tuple([self._reading(gpu, now) for gpu in self._gpus])

    async def set_limit(self, uuid: str, limit_w: float) -> float:
        """Set a limit and return it; refuses what a driver would refuse, with the same errors."""
        gpu = self._position.get(uuid)
        if gpu is None or gpu.state is DeviceState.LOST:
            raise GpuLost(f"{uuid} is gone")
        if gpu.state is DeviceState.HUNG:
            self.counters.timeouts += 1
            raise DeviceTimeout(f"{uuid} does not answer")
        if "limit_requested_w" in gpu.missing:
            raise NotSupported(f"{uuid} has no limit")
        if not self._can_set_limit:
            raise NoPermission(f"{uuid} is read-only")
        if not (gpu.info.limit_min_w or 0.0) <= limit_w <= (gpu.info.limit_max_w or 0.0):
            raise DeviceUnknown(INVALID_ARGUMENT, f"{limit_w} W is outside the constraints of {uuid}")
        self._settle(gpu, self._clock.mono_s())
        gpu.limit_w = limit_w
        gpu.power_w = self._watts(gpu)
        return limit_w

    async def close(self) -> None:
        """Nothing is held, so nothing is let go of."""

    def set_utilisation(self, gpu: int, util_frac: float) -> None:
        """Say how busy a GPU is from now on; energy until now is counted at what it drew before."""
        device = self._gpus[gpu]
        self._settle(device, self._clock.mono_s())
        device.util_frac = min(1.0, max(0.0, util_frac))
        device.power_w = self._watts(device)

    def set_memory_used(self, gpu: int, used_bytes: int | None) -> None:
        """Say how much memory is in use; None goes back to a share of it that follows utilisation."""
        self._gpus[gpu].mem_used_bytes = used_bytes

    def lose(self, gpu: int) -> None:
        """Let a GPU fall off the bus."""
        self._gpus[gpu].state = DeviceState.LOST

    def hang(self, gpu: int) -> None:
        """Let a GPU stop answering. Reads say so at once: no thread is really stuck."""
        self._gpus[gpu].state = DeviceState.HUNG

    def recover(self, gpu: int) -> None:
        """Undo lose, hang, unsupport and raise_xid."""
        device = self._gpus[gpu]
        device.state, device.xid = DeviceState.OK, None
        device.missing.clear()

    def unsupport(self, gpu: int, name: str, fault: FieldFault = FieldFault.NOT_SUPPORTED) -> None:
        """Make one field of a GPU's readings unknown."""
        if name not in MEASURED_FIELDS:
            raise ValueError(f"{name} is no field of a reading: {', '.join(MEASURED_FIELDS)}")
        self._gpus[gpu].missing[name] = fault

    def reset_energy(self, gpu: int) -> None:
        """Start the energy counter anew, as a driver reload does."""
        device = self._gpus[gpu]
        self._settle(device, self._clock.mono_s())
        device.energy_j = 0.0
        device.epoch += 1

    def raise_xid(self, gpu: int, xid: int) -> None:
        """Let the driver report a GPU fault."""
        self._gpus[gpu].xid = xid
        self.counters.xids += 1

    def set_mig(self, gpu: int, *, enabled: bool) -> None:
        """Let an administrator switch MIG on or off. Utilisation stays told: what a driver then hides, say so."""
        device = self._gpus[gpu]
        device.info = replace(device.info, mig_enabled=enabled)
        self._sum_up()

    def set_constraints(self, gpu: int, limit_min_w: float, limit_max_w: float) -> None:
        """Let the range of limits become another one; the limit itself stays what it is."""
        device = self._gpus[gpu]
        device.info = replace(device.info, limit_min_w=limit_min_w, limit_max_w=limit_max_w)
        self._sum_up()

    def _sum_up(self) -> None:
        half = (len(self._gpus) + 1) // 2
        links = tuple(
            DeviceLink(
                first=first,
                second=second,
                # Two processors with half of the GPUs each, as such machines are built.
                ancestor=Ancestor.NUMA_NODE if first // half == second // half else Ancestor.SYSTEM,
                nvlinks=self._model.nvlinks,
            )
            for first, second in combinations(range(len(self._gpus)), 2)
        )
        devices = tuple(gpu.info for gpu in self._gpus)
        self._hardware = Hardware(driver="simulated", devices=devices, links=links)

    def _watts(self, gpu: _Gpu) -> float:
        # A limit below idle cannot be kept: a GPU that does nothing still draws its idle power.
        return self._model.idle_w + max(0.0, gpu.limit_w - self._model.idle_w) * gpu.util_frac

    def _settle(self, gpu: _Gpu, now: float) -> None:
        """Add the energy used since the last look, as a trapezoid, and take the present utilisation."""
        drawn_before_w = gpu.power_w
        if self._utilisation is not None:
            gpu.util_frac = min(1.0, max(0.0, self._utilisation(gpu.info.index, now)))
            gpu.power_w = self._watts(gpu)
        if now > gpu.mono_s:
            gpu.energy_j += 0.5 * (drawn_before_w + gpu.power_w) * (now - gpu.mono_s)
            gpu.mono_s = now

    def _reading(self, gpu: _Gpu, now: float) -> Reading:
        uuid, model = gpu.info.uuid, self._model
        self._settle(gpu, now)
        if gpu.state is not DeviceState.OK:
            fault = FieldFault.LOST if gpu.state is DeviceState.LOST else FieldFault.TIMEOUT
            return unread(uuid, now, gpu.state, fault, epoch=gpu.epoch, xid=gpu.xid)
        util_frac, missing = gpu.util_frac, gpu.missing
        used_bytes = gpu.mem_used_bytes
        if used_bytes is None:
            used_bytes = int(model.memory_total_bytes * 0.8 * util_frac)
        return Reading(
            uuid=uuid,
            mono_s=now,
            state=DeviceState.OK,
            power_w=None if "power_w" in missing else gpu.power_w,
            limit_w=None if "limit_w" in missing else gpu.limit_w,
            limit_requested_w=None if "limit_requested_w" in missing else gpu.limit_w,
            energy_j=None if "energy_j" in missing else gpu.energy_j,
            energy_epoch=gpu.epoch,
            util_frac=None if "util_frac" in missing else util_frac,
            mem_util_frac=None if "mem_util_frac" in missing else 0.5 * util_frac,
            mem_used_bytes=None if "mem_used_bytes" in missing else used_bytes,
            temp_c=None if "temp_c" in missing else COOLEST_C + WARMING_C * gpu.power_w / model.limit_max_w,
            sm_clock_mhz=None if "sm_clock_mhz" in missing else self._sm_clock_mhz(gpu),
            mem_clock_mhz=None if "mem_clock_mhz" in missing else model.mem_clock_mhz,
            throttle=None if "throttle" in missing else self._throttle(gpu),
            ecc_corrected=None if "ecc_corrected" in missing else 0,
            ecc_uncorrected=None if "ecc_uncorrected" in missing else gpu.ecc_uncorrected,
            remapped_rows=None if "remapped_rows" in missing else gpu.remapped_rows,
            xid=gpu.xid,
            faults=tuple([(name, str(fault)) for name, fault in missing.items()]) if missing else (),
        )

    def _sm_clock_mhz(self, gpu: _Gpu) -> float:
        # Clocks scale roughly with the power they are allowed; a guess, good enough to be looked at.
        return self._model.sm_clock_max_mhz * gpu.limit_w / self._model.limit_max_w if gpu.util_frac else 0.0

    def _throttle(self, gpu: _Gpu) -> tuple[str, ...]:
        if not gpu.util_frac:
            return (Throttle.IDLE,)
        return (Throttle.SW_POWER_CAP,) if gpu.limit_w < self._model.limit_max_w else ()
