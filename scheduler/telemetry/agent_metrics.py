"""The agent's numbers as Prometheus text: one series per GPU and fact, and its own counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import DeviceInfo, Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a stub's 0.1 ms over the 10 to 20 ms a call that slow drivers take to the 2 s of a hung one.
READ_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Family(NamedTuple):
    """One metric: what docs/metrics.md says of it."""

    name: str
    kind: str
    help: str


class GpuGauge(NamedTuple):
    """A per-GPU family that is one field of a reading, times a factor into base units."""

    family: Family
    field: str
    factor: float = 1.0


GPU_FIELDS = (
    GpuGauge(Family("wattbalance_gpu_power_watts", "gauge", "Power drawn now."), "power_w"),
    GpuGauge(Family("wattbalance_gpu_power_limit_watts", "gauge", "Limit that is enforced."), "limit_w"),
    GpuGauge(
        Family("wattbalance_gpu_power_limit_requested_watts", "gauge", "Limit that was asked for."),
        "limit_requested_w",
    ),
    GpuGauge(
        Family("wattbalance_gpu_energy_joules_total", "counter", "Energy since the counter began."),
        "energy_j",
    ),
    GpuGauge(
        Family("wattbalance_gpu_utilization_ratio", "gauge", "Share of time with a kernel running."),
        "util_frac",
    ),
    GpuGauge(
        Family(
            "wattbalance_gpu_memory_utilization_ratio", "gauge", "Share of time that memory was accessed."
        ),
        "mem_util_frac",
    ),
    GpuGauge(Family("wattbalance_gpu_memory_used_bytes", "gauge", "Memory in use."), "mem_used_bytes"),
    GpuGauge(Family("wattbalance_gpu_temperature_celsius", "gauge", "Temperature of the chip."), "temp_c"),
    GpuGauge(
        Family("wattbalance_gpu_sm_clock_hertz", "gauge", "Clock of the multiprocessors."),
        "sm_clock_mhz",
        1e6,
    ),
    GpuGauge(
        Family("wattbalance_gpu_memory_clock_hertz", "gauge", "Clock of the memory."), "mem_clock_mhz", 1e6
    ),
    GpuGauge(
        Family("wattbalance_gpu_ecc_corrected_total", "counter", "Memory errors that were corrected."),
        "ecc_corrected",
    ),
    GpuGauge(
        Family("wattbalance_gpu_ecc_uncorrected_total", "counter", "Memory errors that were not."),
        "ecc_uncorrected",
    ),
    GpuGauge(
        Family("wattbalance_gpu_remapped_rows", "gauge", "Memory rows that were replaced."), "remapped_rows"
    ),
    GpuGauge(Family("wattbalance_gpu_last_xid", "gauge", "Newest XID error code seen."), "xid"),
)
MIG = Family("wattbalance_gpu_mig_enabled", "gauge", "1 while the GPU is divided by MIG.")
MEMORY_TOTAL = Family("wattbalance_gpu_memory_total_bytes", "gauge", "Memory that the GPU has.")
LIMIT_MIN = Family("wattbalance_gpu_power_limit_min_watts", "gauge", "Lowest limit that can be set.")
LIMIT_MAX = Family("wattbalance_gpu_power_limit_max_watts", "gauge", "Highest limit that can be set.")
STATE = Family("wattbalance_gpu_state", "gauge", "1 for the state that the GPU is in.")
THROTTLE = Family("wattbalance_gpu_throttle", "gauge", "1 for each reason why clocks are held down now.")
FAULTS = Family("wattbalance_gpu_read_faults_total", "counter", "Fields that could not be read, by reason.")
PUBLISHED = Family("wattbalance_agent_samples_published_total", "counter", "Samples handed to the broker.")
DROPPED = Family(
    "wattbalance_agent_samples_dropped_total",
    "counter",
    "Samples replaced by newer ones before they were sent.",
)
CONNECTED = Family("wattbalance_agent_broker_connected", "gauge", "1 while there is a connection.")
CONNECTS = Family("wattbalance_agent_broker_connects_total", "counter", "Connections made.")
DRIVER_UP = Family("wattbalance_agent_driver_up", "gauge", "1 while the GPU driver answers.")
GPUS = Family("wattbalance_agent_gpus", "gauge", "GPUs found.")
READ_FAILURES = Family(
    "wattbalance_agent_read_failures_total", "counter", "Looks at all GPUs that failed whole."
)
READ_SECONDS = Family("wattbalance_agent_read_seconds", "histogram", "How long a look at all GPUs took.")
# Of the adapter's own counters, by the name of the field.
DRIVER_COUNTS = (
    (
        Family("wattbalance_agent_driver_failed_calls_total", "counter", "Driver calls that failed."),
        "failed_calls",
    ),
    (
        Family("wattbalance_agent_driver_timeouts_total", "counter", "Driver calls given up as hung."),
        "timeouts",
    ),
    (
        Family("wattbalance_agent_driver_stuck_threads", "gauge", "Driver calls that are hung now."),
        "abandoned_threads",
    ),
    (
        Family("wattbalance_agent_driver_reopens_total", "counter", "Times the driver was opened anew."),
        "reopens",
    ),
    (
        Family(
            "wattbalance_agent_xid_watch_errors_total",
            "counter",
            "Failures of the driver to tell of XID errors: while it grows, a broken GPU may go unnoticed.",
        ),
        "event_errors",
    ),
    (Family("wattbalance_agent_xids_total", "counter", "XID errors of GPUs."), "xids"),
    (
        Family("wattbalance_agent_xids_ignored_total", "counter", "XID errors that an application caused."),
        "ignored_xids",
    ),
)
BUILD = Family("wattbalance_build_info", "gauge", "1; the version is the label.")

FAMILIES = (
    *(gauge.family for gauge in GPU_FIELDS),
    *(MIG, MEMORY_TOTAL, LIMIT_MIN, LIMIT_MAX, STATE, THROTTLE, FAULTS),
    *(PUBLISHED, DROPPED, CONNECTED, CONNECTS, DRIVER_UP, GPUS, READ_FAILURES, READ_SECONDS, BUILD),
    *(family for family, _ in DRIVER_COUNTS),
)


class ReadTimes:
    """A histogram of how long reads took."""

    def __init__(self) -> None:
        self._counts = [0] * (len(READ_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, took_s: float) -> None:
        """Count one read."""
        self._sum_s += took_s
        self._counts[sum(took_s > edge_s for edge_s in READ_BUCKETS_S)] += 1

    def lines(self, family: Family, labels: str) -> list[str]:
        """Render as Prometheus text."""
        lines, total = [], 0
        edges = [*(f"{edge_s:g}" for edge_s in READ_BUCKETS_S), "+Inf"]
        for edge, count in zip(edges, self._counts, strict=True):
            total += count
            lines.append(f'{family.name}_bucket{{{labels},le="{edge}"}} {total}')
        return [
            *lines,
            f"{family.name}_sum{{{labels}}} {self._sum_s:.9g}",
            f"{family.name}_count{{{labels}}} {total}",
        ]


class GpuFaults:
    """Counts, per GPU and reason, the fields that a reading could not give."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, readings: Iterable[Reading]) -> None:
        """Count the faults of one look at all GPUs."""
        for reading in readings:
            for _, reason in reading.faults:
                self.counts[reading.uuid, reason] += 1


def gpu_text(node: str, infos: Sequence[DeviceInfo], readings: Sequence[Reading], faults: GpuFaults) -> str:
    """Render the per-GPU series; what is unknown has no line, since a zero would be believed."""
    labels = {
        info.uuid: label_text(node=node, gpu=str(info.index), uuid=info.uuid, model=info.model)
        for info in infos
    }
    known = [reading for reading in readings if reading.uuid in labels]
    blocks = [
        block(
            gauge.family,
            [
                (labels[reading.uuid], value * gauge.factor)
                for reading in known
                if (value := getattr(reading, gauge.field)) is not None
            ],
        )
        for gauge in GPU_FIELDS
    ]
    for family, field in (
        (MIG, "mig_enabled"),
        (MEMORY_TOTAL, "memory_total_bytes"),
        (LIMIT_MIN, "limit_min_w"),
        (LIMIT_MAX, "limit_max_w"),
    ):
        facts = ((labels[info.uuid], getattr(info, field)) for info in infos)
        blocks.append(block(family, [(text, value) for text, value in facts if value is not None]))
    states = [
        (f'{labels[reading.uuid]},state="{state}"', float(reading.state == state))
        for reading in known
        for state in DeviceState
    ]
    throttled = [
        (f"{labels[reading.uuid]},{label_text(reason=reason)}", 1.0)
        for reading in known
        for reason in reading.throttle or ()
    ]
    failed = [
        (f"{labels[uuid]},{label_text(reason=reason)}", float(count))
        for (uuid, reason), count in sorted(faults.counts.items())
        if uuid in labels
    ]
    blocks += [block(STATE, states), block(THROTTLE, throttled), block(FAULTS, failed)]
    return "".join(blocks)


def block(family: Family, series: Sequence[tuple[str, float]]) -> str:
    """Render one family; nothing if it has no series."""
    if not series:
        return ""
    # repr carries every float64 unchanged: a counter of joules must not be rounded.
    lines = [*header(family), *(f"{family.name}{{{labels}}} {float(value)!r}" for labels, value in series)]
    return "\n".join(lines) + "\n"


def header(family: Family) -> list[str]:
    """Render the two lines that name a family."""
    return [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]


def label_text(**labels: str) -> str:
    """Render labels as they stand between the braces."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
