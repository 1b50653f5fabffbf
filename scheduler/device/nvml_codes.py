"""What NVML's numbers mean here: its 31 return codes, its throttle bits, its XIDs. Imports no vendor library."""

from __future__ import annotations

from scheduler.core.errors import (
    DeviceError,
    DeviceTimeout,
    DeviceUnknown,
    DriverMismatch,
    DriverUnavailable,
    GpuLost,
    NoPermission,
    NotSupported,
)
from scheduler.device.protocol import Ancestor, FieldFault, Throttle

INVALID_ARGUMENT = 2
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
UNKNOWN = 999

# Every code of nvml.h; a test walks the binding's names and fails on one that is missing here.
ERRORS: dict[int, type[DeviceError]] = {
    1: DriverUnavailable,  # uninitialized
    INVALID_ARGUMENT: DeviceUnknown,
    3: NotSupported,
    4: NoPermission,
    5: DeviceUnknown,  # already initialized: long deprecated, the library counts its users instead
    NOT_FOUND: DeviceUnknown,
    7: DeviceUnknown,  # insufficient size
    8: DeviceUnknown,  # insufficient power: external power cables are not attached
    DRIVER_NOT_LOADED: DriverUnavailable,
    TIMEOUT: DeviceTimeout,
    11: DeviceUnknown,  # irq issue
    12: DriverUnavailable,  # library not found
    13: NotSupported,  # function not found: an older driver
    14: DeviceUnknown,  # corrupted inforom
    15: GpuLost,
    16: GpuLost,  # reset required
    17: DeviceUnknown,  # operating system
    18: DriverMismatch,
    19: DeviceUnknown,  # in use
    20: DeviceUnknown,  # memory
    21: DeviceUnknown,  # no data
    22: NotSupported,  # ECC on a virtual GPU
    23: DeviceUnknown,  # insufficient resources
    24: NotSupported,  # frequency not supported
    25: NotSupported,  # argument version mismatch: a driver that does not know this struct yet
    26: NotSupported,  # deprecated, so removed
    27: DeviceUnknown,  # not ready
    28: GpuLost,  # GPU not found
    29: DeviceUnknown,  # invalid state
    30: NotSupported,  # reset type not supported
    # Seen from GPUs that are gone, but also from single calls on sound ones: nvml.py judges by its company.
    UNKNOWN: DeviceUnknown,
}
# What a person can do, for the codes that end a first try.
ADVICE: dict[int, str] = {
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: see `nvidia-smi` and `dmesg`",
    12: "no libnvidia-ml.so.1: install the NVIDIA driver, or in a container set NVIDIA_DRIVER_CAPABILITIES=utility",
    18: "library and kernel module of the NVIDIA driver differ in version: restart this process",
}
# "Nothing to tell at this moment": not found, no data, not ready.
NO_DATA = frozenset({NOT_FOUND, 21, 27})

_FAULTS: tuple[tuple[type[DeviceError], FieldFault], ...] = (
    (NotSupported, FieldFault.NOT_SUPPORTED),
    (NoPermission, FieldFault.NO_PERMISSION),
    (DeviceTimeout, FieldFault.TIMEOUT),
    (GpuLost, FieldFault.LOST),
)

# Bits of nvmlClocksEventReasons and of their older name, nvmlClocksThrottleReasons.
THROTTLES: dict[int, Throttle] = {
    0x001: Throttle.IDLE,
    0x002: Throttle.CLOCKS_SETTING,
    0x004: Throttle.SW_POWER_CAP,
    0x008: Throttle.HW_SLOWDOWN,
    0x010: Throttle.SYNC_BOOST,
    0x020: Throttle.SW_THERMAL,
    0x040: Throttle.HW_THERMAL,
    0x080: Throttle.HW_POWER_BRAKE,
    0x100: Throttle.DISPLAY_CLOCK,
    0x200: Throttle.BOARD_LIMIT,
    0x400: Throttle.RELIABILITY,
}
_NAMED = sum(THROTTLES)

# nvmlGpuTopologyLevel_t.
ANCESTORS: dict[int, Ancestor] = {
    0: Ancestor.BOARD,
    10: Ancestor.SWITCH,
    20: Ancestor.SWITCHES,
    30: Ancestor.HOST_BRIDGE,
    40: Ancestor.NUMA_NODE,
    50: Ancestor.SYSTEM,
}

# XIDs that an application brings on itself; NVIDIA's device plugin ignores the same ones.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
# A double-bit ECC event carries no XID; this is the one that the driver logs for it.
DOUBLE_BIT_ECC_XID = 48


def error_of(code: int, text: str) -> DeviceError:
    """Make our error of a return code; a code that nvml.h does not name yet is DeviceUnknown."""
    kind = ERRORS.get(code, DeviceUnknown)
    if kind is DeviceUnknown:
        return DeviceUnknown(code, text)
    return kind(f"{text}: {ADVICE.get(code, 'the driver says no')} (driver error {code})")


def fault_of(error: DeviceError) -> FieldFault:
    """Say why a field is None, after its call failed."""
    if isinstance(error, DeviceUnknown):
        return FieldFault.NO_DATA if error.code in NO_DATA else FieldFault.UNKNOWN
    return next((fault for kind, fault in _FAULTS if isinstance(error, kind)), FieldFault.UNKNOWN)


def throttle_names(mask: int) -> tuple[str, ...]:
    """Name the bits of a mask, lowest first."""
    names = [str(name) for bit, name in THROTTLES.items() if mask & bit]
    return tuple([*names, str(Throttle.OTHER)] if mask & ~_NAMED else names)
