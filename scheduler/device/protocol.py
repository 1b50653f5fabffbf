"""What a GPU adapter must offer, in SI units. Two adapters: nvml.py (real) and simulated.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from scheduler.core.nouns import DeviceState


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One GPU, as it will stay until the driver is reloaded.

    None means the device does not tell. `power_domain` names what owns limit and energy counter (card, socket,
    module): devices that share it share both.
    """

    index: int
    uuid: str
    model: str
    memory_total_bytes: int | None
    limit_min_w: float | None
    limit_max_w: float | None
    limit_default_w: float | None
    power_domain: str
    mig_enabled: bool | None = None
    pci_bus_id: str = ""
    can_set_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at one GPU. None means unknown now: never a zero.

    `energy_j` counts since `energy_epoch` began; a new epoch means that the counter started anew (driver reload).
    `faults` names, per field, the reason why it is None ("power_w": "not_supported"), from a closed set.
    """

    uuid: str
    mono_s: float
    state: DeviceState
    power_w: float | None = None
    limit_w: float | None = None
    limit_requested_w: float | None = None
    energy_j: float | None = None
    energy_epoch: int = 0
    util_frac: float | None = None
    mem_util_frac: float | None = None
    mem_used_bytes: int | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    xid: int | None = None
    faults: tuple[tuple[str, str], ...] = ()


class DevicePort(Protocol):
    """The GPU seam. Methods are coroutines; any threads live inside the adapter. No vendor exception leaves it."""

    async def open(self) -> tuple[DeviceInfo, ...]:
        """Find the devices. Raises DriverUnavailable (retry with a back-off) or DriverMismatch (exit)."""
        ...

    async def read(self) -> tuple[Reading, ...]:
        """Read every device, in the order of open(); never raises for a single device."""
        ...

    async def set_limit(self, uuid: str, limit_w: float) -> float:
        """Set the requested limit and return what the device says it is afterwards, in watts.

        Raises NotSupported, NoPermission, DeviceTimeout, GpuLost or DeviceUnknown.
        """
        ...

    async def close(self) -> None:
        """Let go of the driver; never waits for a hung call."""
        ...
