"""What a GPU adapter must offer, in SI units. Two adapters: nvml.py (real) and simulated.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.core.nouns import DeviceState


class FieldFault(StrEnum):
    """Why a field of a reading is None. A metric's label: the set is closed."""

    NOT_SUPPORTED = "not_supported"
    NO_PERMISSION = "no_permission"
    TIMEOUT = "timeout"
    LOST = "lost"
    UNKNOWN = "unknown"
    NO_DATA = "no_data"


class Throttle(StrEnum):
    """What holds a GPU's clocks down. A metric's label: the set is closed, a bit without a name is `other`."""

    IDLE = "idle"
    CLOCKS_SETTING = "clocks_setting"
    SW_POWER_CAP = "sw_power_cap"
    HW_SLOWDOWN = "hw_slowdown"
    SYNC_BOOST = "sync_boost"
    SW_THERMAL = "sw_thermal"
    HW_THERMAL = "hw_thermal"
    HW_POWER_BRAKE = "hw_power_brake"
    DISPLAY_CLOCK = "display_clock"
    BOARD_LIMIT = "board_limit"
    RELIABILITY = "reliability"
    OTHER = "other"


class Ancestor(StrEnum):
    """The nearest thing that the ways from two devices to the host have in common; nearer first."""

    BOARD = "board"
    SWITCH = "switch"
    """One PCIe switch."""
    SWITCHES = "switches"
    """Several PCIe switches, without a host bridge between them."""
    HOST_BRIDGE = "host_bridge"
    NUMA_NODE = "numa_node"
    """Several host bridges of one NUMA node."""
    SYSTEM = "system"
    """Only the link between NUMA nodes."""


@dataclass(slots=True)
class DeviceCounters:
    """What an adapter counted since it was made; metrics read it when they are scraped."""

    last_read_s: float = 0.0
    failed_calls: int = 0
    """Driver calls answered by an error other than "not on this GPU"."""
    timeouts: int = 0
    abandoned_threads: int = 0
    """Threads that are stuck in the driver now: goes down again when the call returns."""
    xids: int = 0
    ignored_xids: int = 0
    """XIDs that an application caused, not the GPU."""
    event_errors: int = 0
    """Failures to hear of XIDs: registrations and waits that the driver refused, events of no GPU that we know."""
    reopens: int = 0
    """Times the driver library was shut down and opened again because it had gone away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One GPU, as it stays for hours: MIG mode and the range of limits are seldom changed, the rest never is.

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
class DeviceLink:
    """How near two devices are, by their indices; `first` is the lower one."""

    first: int
    second: int
    ancestor: Ancestor | None
    """None: the driver does not tell."""
    nvlinks: int | None
    """NVLinks between the two, directly or by way of a switch; None: there are or may be some, uncounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a node has, apart from what it does."""

    driver: str = ""
    """The driver's version."""
    devices: tuple[DeviceInfo, ...] = ()
    links: tuple[DeviceLink, ...] = ()
    """Of those pairs of which something is known."""


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


# The fields of a reading that a lost or hung GPU leaves unknown, in the order of Reading.
MEASURED_FIELDS = (
    "power_w",
    "limit_w",
    "limit_requested_w",
    "energy_j",
    "util_frac",
    "mem_util_frac",
    "mem_used_bytes",
    "temp_c",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "throttle",
    "ecc_corrected",
    "ecc_uncorrected",
    "remapped_rows",
)


def unread(
    uuid: str,
    mono_s: float,
    state: DeviceState,
    fault: FieldFault,
    *,
    epoch: int = 0,
    xid: int | None = None,
) -> Reading:
    """Build the reading of a GPU that told nothing: every field None, for one and the same reason."""
    faults = tuple((name, str(fault)) for name in MEASURED_FIELDS)
    return Reading(
        uuid=uuid,
        mono_s=mono_s,
        state=state,
        energy_epoch=epoch,
        xid=xid,
        faults=faults,
    )


class DevicePort(Protocol):
    """The GPU seam. Methods are coroutines; any threads live inside the adapter. No vendor exception leaves it."""

    @property
    def counters(self) -> DeviceCounters:
        """What the adapter counted since it was made."""
        ...

    @property
    def hardware(self) -> Hardware:
        """What open() found and read() keeps up to date: compare it after each read. Empty while nothing is open."""
        ...

    async def open(self) -> tuple[DeviceInfo, ...]:
        """Find the devices. Raises DriverUnavailable (retry with a back-off) or DriverMismatch (exit)."""
        ...

    async def read(self) -> tuple[Reading, ...]:
        """Read every device, in the order of open(); never raises for a single device.

        Raises DriverMismatch if the driver was replaced under the process: only a new process can go on.
        """
        ...

    async def set_limit(self, uuid: str, limit_w: float) -> float:
        """Set the requested limit and return what the device says it is afterwards, in watts.

        Raises NotSupported, NoPermission, DeviceTimeout, GpuLost or DeviceUnknown.
        """
        ...

    async def close(self) -> None:
        """Let go of the driver; never waits for a hung call."""
        ...
