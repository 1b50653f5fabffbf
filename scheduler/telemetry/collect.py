"""From the readings of one interval to one sample: means, maxima, last counters; rare fields only at times. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from msgspec import UNSET

from scheduler.core.nouns import DeviceState
from scheduler.device.protocol import DeviceLink, Hardware, Reading
from scheduler.telemetry.sample import MOST_POWER_W, SCHEMA_VERSION, GpuInventory, Inventory, Sample

# How often fields are sent that seldom change; in between only when they did. DESIGN 4.3.
RARE_S = 10.0
_MOST_ENERGY_J = 1e15

Number = float | None
Value = TypeVar("Value", int, float)


def make_inventory(node: str, hardware: Hardware, agent_version: str) -> Inventory:
    """Say what a node has."""
    infos = hardware.devices
    return Inventory(
        v=SCHEMA_VERSION,
        node=node,
        gpus=[
            GpuInventory(
                uuid=info.uuid,
                model=info.model,
                index=info.index,
                memory_total_bytes=info.memory_total_bytes,
                limit_min_w=info.limit_min_w,
                limit_max_w=info.limit_max_w,
                limit_default_w=info.limit_default_w,
                power_domain=info.power_domain,
                mig_enabled=info.mig_enabled,
                pci_bus_id=info.pci_bus_id,
            )
            for info in infos
        ],
        driver=hardware.driver,
        agent_version=agent_version,
        topology=topology_of(hardware),
        can_set_limit=bool(infos) and all(info.can_set_limit for info in infos),
    )


def topology_of(hardware: Hardware) -> dict[str, str]:
    """Say of each pair of GPUs how it is connected: `{"0-1": "nvlink=18 system"}`, by index; nothing known, no key."""
    return {f"{link.first}-{link.second}": _path(link) for link in hardware.links}


def _path(link: DeviceLink) -> str:
    """First NVLinks, `nvlink=?` where there may be some, uncounted; then the nearest thing that they share."""
    words = [] if link.nvlinks == 0 else [f"nvlink={'?' if link.nvlinks is None else link.nvlinks}"]
    return " ".join([*words, *([link.ancestor] if link.ancestor else [])])


class Collector:
    """Gathers the readings of all GPUs of a node and makes one sample of them per interval."""

    def __init__(self, *, node: str, agent: str, boot: str, rare_s: float = RARE_S) -> None:
        self._node = node
        self._agent = agent
        self._boot = boot
        self._rare_s = rare_s
        self._inventory = ""
        self._looks: list[tuple[Reading, ...]] = []
        self._seq = 0
        self._began_mono_s: float | None = None
        self._rare_sent: dict[str, object] = {}
        self._rare_mono_s = -math.inf

    def begin(self, inventory: str, now_mono_s: float) -> None:
        """Start over with another set of GPUs; `inventory` is the hash that samples shall refer to."""
        self._inventory = inventory
        self._looks.clear()
        self._rare_mono_s = -math.inf
        if self._began_mono_s is None:
            self._began_mono_s = now_mono_s

    def add(self, readings: tuple[Reading, ...]) -> None:
        """Take in one look at all GPUs."""
        self._looks.append(readings)

    def close(self, now_mono_s: float, now_unix_s: float) -> Sample:
        """End the interval: make a sample of what was added since the last one."""
        began_mono_s = self._began_mono_s if self._began_mono_s is not None else now_mono_s
        gpus = [_Gpu(looks) for looks in zip(*self._looks, strict=True)]
        self._looks.clear()
        self._began_mono_s = now_mono_s
        self._seq += 1
        return Sample(
            v=SCHEMA_VERSION,
            node=self._node,
            agent=self._agent,
            boot=self._boot,
            seq=self._seq,
            unix_s=round(now_unix_s, 3),
            # More than 0 even where the clock stood still: the wire wants it so.
            span_s=max(round(now_mono_s - began_mono_s, 3), 0.001),
            inventory=self._inventory,
            state=[str(gpu.last.state) for gpu in gpus],
            power_w=[gpu.power_w for gpu in gpus],
            util_frac=[gpu.util_frac for gpu in gpus],
            energy_j=[gpu.energy_j for gpu in gpus],
            power_max_w=[gpu.highest(lambda look: look.power_w, MOST_POWER_W) for gpu in gpus],
            util_max_frac=[gpu.highest(lambda look: look.util_frac, 1.0) for gpu in gpus],
            mem_util_frac=[gpu.mean(lambda look: look.mem_util_frac, 1.0) for gpu in gpus],
            mem_used_bytes=[gpu.newest(lambda look: look.mem_used_bytes) for gpu in gpus],
            temp_c=[gpu.newest(lambda look: look.temp_c) for gpu in gpus],
            sm_clock_mhz=[gpu.mean(lambda look: look.sm_clock_mhz, 1e6) for gpu in gpus],
            limit_w=[_within(gpu.newest(lambda look: look.limit_w), MOST_POWER_W) for gpu in gpus],
            # Not rare: without it a counter that began anew would look like energy given back.
            energy_epoch=[gpu.energy_epoch for gpu in gpus],
            **self._rare(gpus, now_mono_s),
        )

    def _rare(self, gpus: Sequence[_Gpu], now_mono_s: float) -> dict[str, Any]:
        # Any: the columns have different types, which Sample's own annotations say.
        columns: dict[str, Any] = {
            "limit_requested_w": [
                _within(gpu.newest(lambda look: look.limit_requested_w), MOST_POWER_W) for gpu in gpus
            ],
            "throttle": [gpu.throttle for gpu in gpus],
            "ecc_uncorrected": [gpu.newest(lambda look: look.ecc_uncorrected) for gpu in gpus],
            "remapped_rows": [gpu.newest(lambda look: look.remapped_rows) for gpu in gpus],
            "xid": [gpu.last.xid for gpu in gpus],
            "faults": [gpu.faults for gpu in gpus],
        }
        if now_mono_s - self._rare_mono_s >= self._rare_s:
            self._rare_mono_s = now_mono_s
            self._rare_sent = columns
            return columns
        # Absent means unchanged, so what changed must go out.
        changed = {
            name: column for name, column in columns.items() if self._rare_sent.get(name, UNSET) != column
        }
        self._rare_sent = self._rare_sent | changed
        return changed


class _Gpu:
    """The looks at one GPU within one interval, oldest first."""

    def __init__(self, looks: tuple[Reading, ...]) -> None:
        self.last = looks[-1]
        # Of a GPU that is gone, what it was before says nothing of now.
        gone = self.last.state in {DeviceState.LOST, DeviceState.HUNG}
        self._looks = (self.last,) if gone else looks
        self.power_w = self.mean(lambda look: look.power_w, MOST_POWER_W)
        self.util_frac = self.mean(lambda look: look.util_frac, 1.0)
        counted = [look for look in self._looks if _within(look.energy_j, _MOST_ENERGY_J) is not None]
        newest = counted[-1] if counted else self.last
        self.energy_j = _within(newest.energy_j, _MOST_ENERGY_J)
        self.energy_epoch = newest.energy_epoch

    @property
    def throttle(self) -> list[str] | None:
        """What held its clocks down at any time in the interval."""
        seen = [look.throttle for look in self._looks if look.throttle is not None]
        return sorted(set().union(*seen)) if seen else None

    @property
    def faults(self) -> dict[str, str]:
        """Why fields of the newest look are null; those that an older look filled are not."""
        filled = {"power_w": self.power_w, "util_frac": self.util_frac, "energy_j": self.energy_j}
        return {
            name: reason for name, reason in self.last.faults if name in _ON_WIRE and filled.get(name) is None
        }

    def mean(self, field: Callable[[Reading], Number], most: float) -> Number:
        """Mean of the known values; None if there is none."""
        known = self._known(field, most)
        return round(math.fsum(known) / len(known), 4) if known else None

    def highest(self, field: Callable[[Reading], Number], most: float) -> Number:
        """Highest known value."""
        return round(max(known), 4) if (known := self._known(field, most)) else None

    def newest(self, field: Callable[[Reading], Value | None]) -> Value | None:
        """Newest known value."""
        return next((value for look in reversed(self._looks) if (value := field(look)) is not None), None)

    def _known(self, field: Callable[[Reading], Number], most: float) -> list[float]:
        values: Iterable[Number] = (_within(field(look), most) for look in self._looks)
        return [value for value in values if value is not None]


_ON_WIRE = {
    "power_w",
    "util_frac",
    "energy_j",
    "mem_util_frac",
    "mem_used_bytes",
    "temp_c",
    "sm_clock_mhz",
    "limit_w",
    "limit_requested_w",
    "throttle",
    "ecc_uncorrected",
    "remapped_rows",
}


def _within(value: Number, most: float) -> Number:
    """Pass what a sound sensor can say; a message with anything else would be refused as a whole."""
    return round(value, 3) if value is not None and 0.0 <= value <= most else None
