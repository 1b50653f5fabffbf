"""One reading for a person: `wattbalance agent --once`."""

from __future__ import annotations

import dataclasses
from typing import Any

from scheduler.device.protocol import DevicePort

# Any: what comes out is JSON, of whatever fields the device seam has.
Row = dict[str, Any]


async def read_once(devices: DevicePort) -> dict[str, list[Row]]:
    """Open the devices, read each once and let go of them.

    Returns:
        `{"gpus": [...]}`, each with the fields of DeviceInfo and Reading; ready for JSON.

    Raises:
        DriverUnavailable or DriverMismatch: say so to the person.
    """
    try:
        infos = await devices.open()
        readings = await devices.read()
    finally:
        await devices.close()
    rows: list[Row] = []
    for info, reading in zip(infos, readings, strict=True):
        row = dataclasses.asdict(info) | dataclasses.asdict(reading)
        # An instant of this machine's monotonic clock means nothing to a reader.
        del row["mono_s"]
        row["faults"] = dict(reading.faults)
        row["throttle"] = None if reading.throttle is None else list(reading.throttle)
        row["state"] = str(reading.state)
        rows.append(row)
    return {"gpus": rows}


def render_once(found: dict[str, list[Row]]) -> str:
    """Lay out what read_once found, for a terminal; `-` is what the GPU did not tell."""
    rows = found["gpus"]
    if not rows:
        return "no GPUs found\n"
    head = ("GPU", "MODEL", "STATE", "POWER", "LIMIT", "LOAD", "MEMORY", "TEMP", "ENERGY", "THROTTLED BY")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    lines += [
        f"GPU {row['index']}: no {name}: {reason.replace('_', ' ')}"
        for row in rows
        for name, reason in sorted(row["faults"].items())
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    used = _number(row["mem_used_bytes"], 1024**3, "{:.1f}")
    total = _number(row["memory_total_bytes"], 1024**3, "{:.0f} GiB")
    throttle = row["throttle"]
    return (
        str(row["index"]),
        row["model"],
        row["state"],
        _number(row["power_w"], 1, "{:.0f} W"),
        _number(row["limit_w"], 1, "{:.0f} W"),
        _number(row["util_frac"], 0.01, "{:.0f} %"),
        f"{used}/{total}",
        _number(row["temp_c"], 1, "{:.0f} °C"),
        _number(row["energy_j"], 3_600_000, "{:.2f} kWh"),
        "-" if throttle is None else ", ".join(throttle) or "nothing",
    )


def _number(value: float | None, unit: float, pattern: str) -> str:
    return "-" if value is None else pattern.format(value / unit)
