"""What stays true of one NVIDIA GPU for hours: its name, its range of limits, its MIG mode, its NVLinks.

`describe` reads all of it; `_refresh` reads again what an administrator may change under a running driver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scheduler.core.errors import (
    DeviceError,
    DeviceUnknown,
    DriverMismatch,
    DriverUnavailable,
    GpuLost,
    NotSupported,
)
from scheduler.device.nvml_calls import AnswerOf, Binding, GpuCalls
from scheduler.device.nvml_codes import ANCESTORS
from scheduler.device.plausible import plausible_info
from scheduler.device.protocol import DeviceCounters, DeviceInfo, DeviceLink, FieldFault
from scheduler.device.threads import CallThread


class GpuFacts(GpuCalls):
    """One GPU's description. See GpuCalls; `probe_write`: whether describe() tries if it may set the limit."""

    def __init__(
        self, uuid: str, nvml: Binding, answer_of: AnswerOf, counters: DeviceCounters, *, probe_write: bool
    ) -> None:
        super().__init__(uuid, nvml, answer_of, counters)
        self.info: DeviceInfo | None = None
        """None until the GPU answered when it was to be described: it was hung, or lost."""
        self._probe_write = probe_write
        self.remotes: tuple[str, ...] = ()
        """Where its active NVLinks end: a bus id each, empty where the driver does not tell."""

    def describe(self, via: CallThread) -> None:
        """Read what it is; a call that fails leaves its part unknown."""
        self._faults, self.info = {}, None
        if self.handle is None:
            return
        try:
            name = self._try(via, "model", "name", self._nvml.nvmlDeviceGetName)
            memory = self._memory(via)
            pci = self._try(via, "pci", "pci", self._nvml.nvmlDeviceGetPciInfo)
            facts = self._changeable(via)
            can_set = self._may_set(via)
        except GpuLost:
            return
        info = DeviceInfo(
            index=self.position,
            uuid=self.uuid,
            model=str(name or ""),
            memory_total_bytes=int(memory.total) if memory else None,
            limit_min_w=None,
            limit_max_w=None,
            limit_default_w=None,
            power_domain=self.uuid,
            pci_bus_id=str(pci.busId).upper() if pci else "",
            can_set_limit=can_set,
        )
        self.info = plausible_info(replace(info, **facts))

    def _refresh(self, via: CallThread) -> None:
        """Read again what may have changed; what cannot be read at this moment stays as it was."""
        if self.info is None or not self.info.model:
            self.describe(via)
        else:
            self.info = plausible_info(replace(self.info, **self._changeable(via)))

    def _changeable(self, via: CallThread) -> dict[str, Any]:
        """Read the fields of DeviceInfo that change by command; one that failed in passing is not among them."""
        nvml, facts = self._nvml, dict[str, Any]()

        def note(
            fields: str, name: str, function: Callable[..., Any], convert: Callable[[Any], tuple[Any, ...]]
        ) -> None:
            answer = self._try(via, name, name, function)
            names = fields.split()
            if answer is not None:
                facts.update(zip(names, convert(answer), strict=True))
            elif self._faults[name] is FieldFault.NOT_SUPPORTED:
                facts.update(dict.fromkeys(names))

        note(
            "limit_min_w limit_max_w",
            "constraints",
            nvml.nvmlDeviceGetPowerManagementLimitConstraints,
            lambda range_mw: (range_mw[0] / 1000, range_mw[1] / 1000),
        )
        note(
            "limit_default_w",
            "limit_default",
            nvml.nvmlDeviceGetPowerManagementDefaultLimit,
            lambda limit_mw: (limit_mw / 1000,),
        )
        note(
            "mig_enabled",
            "mig",
            nvml.nvmlDeviceGetMigMode,
            # Present and pending: what is asked for but waits for a reset is not so yet.
            lambda modes: (modes[0] == nvml.NVML_DEVICE_MIG_ENABLE,),
        )
        return facts

    def _may_set(self, via: CallThread) -> bool:
        """Set the limit to what it is: the only way to learn whether the process may."""
        if not self._probe_write:
            return False
        try:
            limit_mw = self._call(via, "limit_requested", self._nvml.nvmlDeviceGetPowerManagementLimit)
            self._call(via, "set_limit", self._nvml.nvmlDeviceSetPowerManagementLimit, limit_mw)
        except (GpuLost, DriverUnavailable, DriverMismatch):
            raise
        except DeviceError:
            return False
        return True

    # Topology.

    def find_links(self, via: CallThread) -> None:
        """Note what its NVLinks lead to: a GPU's bus id, or that of a switch."""
        remotes: list[str] = []
        links = self._nvml.NVML_NVLINK_MAX_LINKS if self.handle is not None else 0
        for link in range(links):
            try:
                if self._call(via, "nvlink_state", self._nvml.nvmlDeviceGetNvLinkState, link):
                    remotes.append(self._remote(via, link))
            except (DriverUnavailable, DriverMismatch):
                raise
            except NotSupported:
                # A later link may exist where this one is not wired; where the first does not, none does.
                if not link:
                    break
            except DeviceError:
                # "Invalid argument" is how a driver says that there are not so many. What else there is, a reading
                # will tell.
                break
        self.remotes = tuple(remotes)

    def _remote(self, via: CallThread, link: int) -> str:
        try:
            pci = self._call(via, "nvlink_remote", self._nvml.nvmlDeviceGetNvLinkRemotePciInfo, link)
        except (NotSupported, DeviceUnknown):
            # A virtual machine does not see the switches, but has the links.
            return ""
        return str(pci.busId).upper()

    def link_to(self, via: CallThread, other: GpuFacts, buses: frozenset[str]) -> DeviceLink | None:
        """Say how near another GPU is; None if nothing is known. Both have found their links before.

        Args:
            via: The thread.
            other: One with a higher position.
            buses: The bus ids of all GPUs, so that links to them are told from links to a switch.
        """
        nvml = self._nvml
        try:
            level = self._ask(via, "ancestor", nvml.nvmlDeviceGetTopologyCommonAncestor, other.handle)
            ancestor = ANCESTORS.get(level)
        except (DriverUnavailable, DriverMismatch):
            raise
        except DeviceError:
            ancestor = None
        nvlinks = self._nvlinks(via, other, buses)
        if ancestor is None and nvlinks == 0:
            return None
        return DeviceLink(first=self.position, second=other.position, ancestor=ancestor, nvlinks=nvlinks)

    def _nvlinks(self, via: CallThread, other: GpuFacts, buses: frozenset[str]) -> int | None:
        their_bus = other.info.pci_bus_id if other.info else ""
        if direct := self.remotes.count(their_bus):
            return direct
        # What does not end at a GPU ends at a switch, and a switch joins all that have links to it.
        switched = min(sum(remote not in buses for remote in gpu.remotes) for gpu in (self, other))
        try:
            status = self._ask(
                via,
                "p2p",
                self._nvml.nvmlDeviceGetP2PStatus,
                other.handle,
                self._nvml.NVML_P2P_CAPS_INDEX_NVLINK,
            )
        except (DriverUnavailable, DriverMismatch):
            raise
        except NotSupported:
            return switched
        except DeviceError:
            return None
        if status != self._nvml.NVML_P2P_STATUS_OK:
            # Links there may be, but the fabric does not carry anything between these two (yet).
            return 0
        return switched or None
