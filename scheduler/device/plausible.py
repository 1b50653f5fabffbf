"""What a sound device can say; anything else is unknown. One absurd value must not spoil its node's whole message.

Drivers fill what they do not know with all bits set (2^64 - 1 bytes, 2^32 - 1 °C) and call it success.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scheduler.device.energy import MOST_POWER_W
from scheduler.device.protocol import DeviceInfo, FieldFault, Reading

# Far beyond hardware, far below "all bits set"; the wire's own bounds are no narrower.
_MOST_BYTES = 2**53
_MOST_COUNT = 2**53
_MOST_MHZ = 1e6
_READING: tuple[tuple[str, float], ...] = (
    ("power_w", MOST_POWER_W),
    ("limit_w", MOST_POWER_W),
    ("limit_requested_w", MOST_POWER_W),
    ("energy_j", 1e15),
    ("util_frac", 1.0),
    ("mem_util_frac", 1.0),
    ("mem_used_bytes", _MOST_BYTES),
    ("temp_c", 1000.0),
    ("sm_clock_mhz", _MOST_MHZ),
    ("mem_clock_mhz", _MOST_MHZ),
    ("ecc_corrected", _MOST_COUNT),
    ("ecc_uncorrected", _MOST_COUNT),
    ("remapped_rows", _MOST_COUNT),
)
_INFO: tuple[tuple[str, float], ...] = (
    ("memory_total_bytes", _MOST_BYTES),
    ("limit_min_w", MOST_POWER_W),
    ("limit_max_w", MOST_POWER_W),
    ("limit_default_w", MOST_POWER_W),
)


def plausible_reading(reading: Reading) -> Reading:
    """Make unknown, for want of data, what cannot be."""
    absurd = _absurd(reading, _READING)
    if not absurd:
        return reading
    faults = dict(reading.faults) | dict.fromkeys(absurd, str(FieldFault.NO_DATA))
    return replace(reading, faults=tuple(faults.items()), **absurd)


def plausible_info(info: DeviceInfo) -> DeviceInfo:
    """Make unknown what cannot be."""
    absurd = _absurd(info, _INFO)
    return replace(info, **absurd) if absurd else info


def _absurd(record: Reading | DeviceInfo, bounds: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    # Any: None, in place of fields of different types.
    values = ((name, getattr(record, name), most) for name, most in bounds)
    return {name: None for name, value, most in values if value is not None and not 0 <= value <= most}
