"""One NVIDIA GPU, as a thread sees it: which calls it has, what each field means, when it counts as lost.

Units: NVML speaks mW, mJ, MHz, percent; each is converted on the line that reads it. The binding is handed in by
nvml.py, which stays the only file that imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scheduler.core.errors import (
    DeviceError,
    DeviceUnknown,
    DriverMismatch,
    DriverUnavailable,
    GpuLost,
    NotSupported,
)
from scheduler.core.nouns import DeviceState
from scheduler.device.energy import MOST_POWER_W, EnergyMeter
from scheduler.device.nvml_calls import AnswerOf, Binding, Handle
from scheduler.device.nvml_codes import INVALID_ARGUMENT, NOT_FOUND, error_of, fault_of, throttle_names
from scheduler.device.nvml_facts import GpuFacts
from scheduler.device.plausible import plausible_reading
from scheduler.device.protocol import DeviceCounters, FieldFault, Reading, unread
from scheduler.device.threads import CallThread

_VALUE = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
POWER_AVERAGE = 185
POWER_INSTANT = 186
TOTAL_ENERGY = 83
# One trip into the driver for all of these; each answers with a return code of its own.
FIELD_IDS = (POWER_INSTANT, POWER_AVERAGE, TOTAL_ENERGY)
# Limits, error counts and modes change by the minute at most, and a trip into the driver can cost 20 ms.
SLOW_EVERY_S = 10.0
# Of a GPU that could not be opened: trying again wakes a sick driver.
FIND_EVERY_S = 30.0


class NvmlGpu(GpuFacts):
    """One GPU: its readings, slow fields and energy.

    Args:
        index: Where the driver lists it; its name too, until it tells its UUID.
        nvml: See GpuCalls, as the next two.
        answer_of: Calls the binding.
        counters: Shared.
        meter_of: Gives the energy meter of a UUID, which outlives this object.
        probe_write: See GpuFacts.
    """

    def __init__(
        self,
        index: int,
        nvml: Binding,
        answer_of: AnswerOf,
        counters: DeviceCounters,
        meter_of: Callable[[str], EnergyMeter],
        *,
        probe_write: bool,
    ) -> None:
        super().__init__(f"GPU-index-{index}", nvml, answer_of, counters, probe_write=probe_write)
        self.position = index
        self.xid: int | None = None
        self._error: DeviceError | None = None
        self._meter_of = meter_of
        self._meter = EnergyMeter()
        self._named = False
        self._find_due_mono_s = -math.inf
        self._slow: dict[str, Any] = {}
        self._slow_faults: dict[str, FieldFault] = {}
        self._slow_due_mono_s = -math.inf

    @property
    def epoch(self) -> int:
        """The energy epoch that the last reading was in."""
        return self._meter.epoch

    def find(self, via: CallThread) -> None:
        """Get a handle, after the library was opened; nothing learnt through an older one holds any more.

        A GPU that cannot be opened stays in the list, and is looked for again: a node with a dead GPU is not a node
        with one GPU fewer.
        """
        self.handle, self.xid = None, None
        self._absent.clear()
        self._slow_due_mono_s = self._find_due_mono_s = -math.inf
        nvml = self._nvml
        # Indices move when the driver is reloaded: then only the UUID says which is which.
        way = (
            (nvml.nvmlDeviceGetHandleByUUID, self.uuid)
            if self._named
            else (nvml.nvmlDeviceGetHandleByIndex, self.position)
        )
        try:
            handle = via.call(self.position, "handle", self._answer_of, "handle", *way)
            if not self._named:
                uuid = via.call(
                    self.position, "uuid", self._answer_of, "uuid", nvml.nvmlDeviceGetUUID, handle
                )
                self.uuid, self._named = str(uuid), True
                self._meter = self._meter_of(self.uuid)
        except (DriverUnavailable, DriverMismatch):
            raise
        except DeviceError as error:
            gone = isinstance(error, DeviceUnknown) and error.code == NOT_FOUND
            self._error = GpuLost(f"{self.uuid} is not there any more") if gone else error
        else:
            self.handle, self._error = handle, None

    def register(self, event_set: Handle) -> bool:
        """Ask for its XID and ECC events, as far as it has them. Runs in the event thread."""
        wanted = self._nvml.nvmlEventTypeXidCriticalError | self._nvml.nvmlEventTypeDoubleBitEccError
        if self.handle is None:
            return False
        try:
            types = wanted & self._answer_of(
                "event_types", self._nvml.nvmlDeviceGetSupportedEventTypes, self.handle
            )
            if types:
                self._answer_of(
                    "register_events", self._nvml.nvmlDeviceRegisterEvents, self.handle, types, event_set
                )
        except DeviceError:
            self._counters.event_errors += 1
            return False
        return bool(types)

    def set_limit(self, via: CallThread, limit_w: float) -> float:
        """Set the limit with the v1 setter: the binding's v2 drops the return code, so it 'succeeds' always."""
        if self.handle is None:
            raise self._error or GpuLost(self.uuid)
        # Rounded down: the sum of limits may never pass what was allotted. The 1e-6 undoes 299.999999 mW.
        limit_mw = math.floor(limit_w * 1000 + 1e-6)
        self._call(via, "set_limit", self._nvml.nvmlDeviceSetPowerManagementLimit, limit_mw)
        # The next reading asks for the limits anew instead of telling the old ones for ten seconds more.
        self._slow_due_mono_s = -math.inf
        return float(self._call(via, "limit_requested", self._nvml.nvmlDeviceGetPowerManagementLimit) / 1000)

    def read(self, via: CallThread, mono_s: float) -> Reading:
        """Read everything; lost once a call says so, or once every call that was answered said 'unknown error'."""
        self._mono_s, self._faults, self._answered, self._unknowns = mono_s, {}, 0, 0
        if self.handle is None and mono_s >= self._find_due_mono_s:
            self.find(via)
            self._find_due_mono_s = mono_s + FIND_EVERY_S
        if self.handle is None:
            error = self._error or GpuLost(self.uuid)
            state = DeviceState.LOST if isinstance(error, GpuLost) else DeviceState.UNKNOWN
            return unread(self.uuid, mono_s, state, fault_of(error), epoch=self.epoch)
        try:
            reading = plausible_reading(self._read(via, mono_s))
        except GpuLost:
            return self._unread(DeviceState.LOST, FieldFault.LOST)
        if self._answered:
            return reading
        if self._unknowns:
            return self._unread(DeviceState.LOST, FieldFault.LOST)
        return self._unread(DeviceState.UNKNOWN, FieldFault.UNKNOWN)

    def _unread(self, state: DeviceState, fault: FieldFault) -> Reading:
        return unread(self.uuid, self._mono_s, state, fault, epoch=self.epoch, xid=self.xid)

    def _read(self, via: CallThread, mono_s: float) -> Reading:
        power_w, energy_j = self._power_and_energy(via, mono_s)
        rates = self._try(
            via, "util_frac mem_util_frac", "utilisation", self._nvml.nvmlDeviceGetUtilizationRates
        )
        memory = self._memory(via)
        temp_c = self._temp_c(via)
        sm_mhz = self._try(
            via, "sm_clock_mhz", "sm_clock", self._nvml.nvmlDeviceGetClockInfo, self._nvml.NVML_CLOCK_SM
        )
        mem_mhz = self._try(
            via, "mem_clock_mhz", "mem_clock", self._nvml.nvmlDeviceGetClockInfo, self._nvml.NVML_CLOCK_MEM
        )
        throttle = self._throttle(via)
        if mono_s >= self._slow_due_mono_s:
            self._read_slow(via, mono_s)
        return Reading(
            uuid=self.uuid,
            mono_s=mono_s,
            state=DeviceState.OK,
            power_w=power_w,
            energy_j=energy_j,
            energy_epoch=self.epoch,
            util_frac=None if rates is None else min(rates.gpu, 100) / 100,
            mem_util_frac=None if rates is None else min(rates.memory, 100) / 100,
            mem_used_bytes=None if memory is None else int(memory.used),
            temp_c=temp_c,
            sm_clock_mhz=None if sm_mhz is None else float(sm_mhz),
            mem_clock_mhz=None if mem_mhz is None else float(mem_mhz),
            throttle=throttle,
            xid=self.xid,
            faults=tuple([(name, str(fault)) for name, fault in (self._faults | self._slow_faults).items()]),
            **self._slow,
        )

    def _power_and_energy(self, via: CallThread, mono_s: float) -> tuple[float | None, float | None]:
        fields = self._try(via, "power_w", "fields", self._nvml.nvmlDeviceGetFieldValues, FIELD_IDS)
        values: dict[int, float | DeviceError] = {field.fieldId: _field(field) for field in fields or ()}
        power_mw = values.get(POWER_INSTANT)
        if not isinstance(power_mw, float):
            power_mw = values.get(POWER_AVERAGE)
        if not isinstance(power_mw, float):
            power_mw = self._try(via, "power_w", "power", self._nvml.nvmlDeviceGetPowerUsage)
        power_w = None if power_mw is None else float(power_mw) / 1000
        if power_w is None or power_w > MOST_POWER_W:
            # A sensor gone mad: one absurd value must not make the whole node's message unusable.
            self._faults.setdefault("power_w", FieldFault.NO_DATA)
            power_w = None
        else:
            self._faults.pop("power_w", None)
        return power_w, self._energy_j(via, values.get(TOTAL_ENERGY), power_w, mono_s)

    def _energy_j(
        self, via: CallThread, field_mj: float | DeviceError | None, power_w: float | None, mono_s: float
    ) -> float | None:
        energy_mj = field_mj if isinstance(field_mj, float) else None
        if energy_mj is None:
            energy_mj = self._try(via, "energy_j", "energy", self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        if energy_mj is not None:
            return self._meter.counted(energy_mj / 1000, mono_s)
        if self._faults.get("energy_j") is not FieldFault.NOT_SUPPORTED:
            # There is a counter, it just did not answer this time: integrating for one tick would break the epoch.
            return None
        energy_j = self._meter.integrated(power_w, mono_s)
        if energy_j is not None:
            del self._faults["energy_j"]
        return energy_j

    def _either(self, via: CallThread, field: str, *ways: tuple[Any, ...]) -> Any:  # noqa: ANN401 (see Handle)
        """Try a call and, where this driver lacks it, the next."""
        for way in ways:
            answer = self._try(via, field, *way)
            if answer is not None:
                self._faults.pop(field, None)
                return answer
            if self._faults[field] is not FieldFault.NOT_SUPPORTED:
                break
        return None

    def _temp_c(self, via: CallThread) -> float | None:
        # The first is deprecated and will go with CUDA 14's drivers; the second came with 560's.
        answer = self._either(
            via,
            "temp_c",
            ("temperature", self._nvml.nvmlDeviceGetTemperature, self._nvml.NVML_TEMPERATURE_GPU),
            ("temperature_v", self._nvml.nvmlDeviceGetTemperatureV, self._nvml.NVML_TEMPERATURE_GPU),
        )
        return None if answer is None else float(answer)

    def _throttle(self, via: CallThread) -> tuple[str, ...] | None:
        mask = self._either(
            via,
            "throttle",
            ("event_reasons", self._nvml.nvmlDeviceGetCurrentClocksEventReasons),
            # The name before driver 535.
            ("throttle_reasons", self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        )
        return None if mask is None else throttle_names(mask)

    def _read_slow(self, via: CallThread, mono_s: float) -> None:
        """Refresh what changes rarely. Set whole at the end, so that a GPU that is lost midway keeps nothing half."""
        fast_faults, self._faults = self._faults, {}
        self._slow_due_mono_s = mono_s + SLOW_EVERY_S
        limit_mw = self._try(via, "limit_w", "limit", self._nvml.nvmlDeviceGetEnforcedPowerLimit)
        requested_mw = self._try(
            via, "limit_requested_w", "limit_requested", self._nvml.nvmlDeviceGetPowerManagementLimit
        )
        # Volatile counts, since the driver was loaded: the old errors of a card's whole life say little about today.
        ecc = (self._nvml.nvmlDeviceGetTotalEccErrors, self._nvml.NVML_VOLATILE_ECC)
        corrected, uncorrected = (
            self._try(via, f"ecc_{name}", f"ecc_{name}", ecc[0], kind, ecc[1])
            for name, kind in (
                ("corrected", self._nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
                ("uncorrected", self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            )
        )
        rows = self._try(via, "remapped_rows", "remapped", self._nvml.nvmlDeviceGetRemappedRows)
        self._slow = {
            "limit_w": None if limit_mw is None else limit_mw / 1000,
            "limit_requested_w": None if requested_mw is None else requested_mw / 1000,
            "ecc_corrected": corrected,
            "ecc_uncorrected": uncorrected,
            "remapped_rows": None if rows is None else rows[0] + rows[1],
        }
        slow_faults, self._faults = self._faults, {}
        self._refresh(via)
        self._meter.bound(self.info.limit_max_w if self.info else None)
        self._slow_faults, self._faults = slow_faults, fast_faults


def _field(field: Handle) -> float | DeviceError:
    """Take a field's value out of its union; what stands there after a failed return code is rubbish."""
    if field.nvmlReturn == INVALID_ARGUMENT:
        # How older drivers answer a field id that they do not know.
        return NotSupported(f"field {field.fieldId}")
    if field.nvmlReturn:
        return error_of(field.nvmlReturn, f"field {field.fieldId}")
    value: float = getattr(field.value, _VALUE[field.valueType])
    return float(value)
