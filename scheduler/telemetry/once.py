"""One reading for a person: `wattbalance agent --once`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from scheduler.device.protocol import MEASURED_FIELDS, DevicePort
from scheduler.telemetry.collect import topology_of

# Any: what comes out is JSON, of whatever fields the device seam has.
Row = dict[str, Any]


async def read_once(devices: DevicePort) -> dict[str, Any]:
    """Open the devices, read each once and let go of them.

    Returns:
        `{"driver": …, "gpus": [...], "topology": {...}}`, each GPU with the fields of DeviceInfo and Reading; ready
        for JSON.

    Raises:
        DriverUnavailable or DriverMismatch: say so to the person.
    """
    try:
        await devices.open()
        readings = await devices.read()
        hardware = devices.hardware
    finally:
        await devices.close()
    rows: list[Row] = []
    for info, reading in zip(hardware.devices, readings, strict=True):
        row = dataclasses.asdict(info) | dataclasses.asdict(reading)
        # An instant of this machine's monotonic clock means nothing to a reader.
        del row["mono_s"]
        # To learn it means to set a limit, and a look changes nothing.
        del row["can_set_limit"]
        row["faults"] = dict(reading.faults)
        row["throttle"] = None if reading.throttle is None else list(reading.throttle)
        row["state"] = str(reading.state)
        rows.append(row)
    return {"driver": hardware.driver, "gpus": rows, "topology": topology_of(hardware)}


def render_once(found: dict[str, Any]) -> str:
    """Lay out what read_once found, for a terminal; `-` is what the GPU did not tell."""
    rows: list[Row] = found["gpus"]
    if not rows:
        return f"no GPUs found (driver {found['driver'] or 'unknown'})\n"
    head = ("GPU", "MODEL", "STATE", "POWER", "LIMIT", "LOAD", "MEMORY", "TEMP", "ENERGY", "CLOCKS HELD BY")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    remarks = [f"GPU {row['index']}: {remark}" for row in rows for remark in _remarks(row)]
    driver = f"driver {_in_line(found['driver']) or 'unknown'}"
    return "\n".join([*lines, *([""] if remarks else []), *remarks, "", driver]) + "\n"


def _remarks(row: Row) -> Iterator[str]:
    """Say what the table has no column for, where there is something to say."""
    faults: dict[str, str] = row["faults"]
    if set(faults) >= set(MEASURED_FIELDS):
        yield f"tells nothing: {', '.join(sorted(set(faults.values()))).replace('_', ' ')}"
    else:
        for reason in sorted(set(faults.values())):
            names = sorted(name for name, why in faults.items() if why == reason)
            yield f"{reason.replace('_', ' ')}: {', '.join(names)}"
    if row["mig_enabled"]:
        yield "divided by MIG"
    if row["xid"] is not None:
        yield f"XID {row['xid']}"
    if row["ecc_uncorrected"]:
        yield f"uncorrected memory errors: {row['ecc_uncorrected']}"
    if row["remapped_rows"]:
        yield f"remapped memory rows: {row['remapped_rows']}"


def _cells(row: Row) -> tuple[str, ...]:
    used = _number(row["mem_used_bytes"], 1024**3, "{:.1f}")
    total = _number(row["memory_total_bytes"], 1024**3, "{:.0f} GiB")
    throttle = row["throttle"]
    return (
        str(row["index"]),
        _in_line(row["model"]) or "-",
        row["state"],
        _number(row["power_w"], 1, "{:.0f} W"),
        _number(row["limit_w"], 1, "{:.0f} W"),
        _number(row["util_frac"], 0.01, "{:.0f} %"),
        "-" if used == total else f"{used}/{total}",
        _number(row["temp_c"], 1, "{:.0f} °C"),
        _number(row["energy_j"], 3_600_000, "{:.2f} kWh"),
        "-" if throttle is None else ", ".join(throttle) or "nothing",
    )


def _in_line(told: str) -> str:
    """What a driver told, as part of a line: a line's end or an escape in it would break the table."""
    return "".join(mark if mark.isprintable() else "?" for mark in told)


def _number(value: float | None, unit: float, pattern: str) -> str:
    return "-" if value is None else pattern.format(value / unit)
