"""By whom a node's GPUs are counted: one source, never two; and what else tells of them otherwise. Pure.

Source: allocatable where it has a resource that is GPUs or parts of them, else DRA's slices, else what the node's
agent found. Only of the first two may a pod ask: GPUs that only an agent found are seen, and nothing of them is free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from scheduler.cluster.dra_devices import NodeDevices
from scheduler.cluster.objects import Amounts
from scheduler.cluster.shares import Offer, offers

# A device plugin that restarts, or an agent that begins, is through with it; nobody should be called for less.
STEADY_S = 60.0
# Sums of sevenths round.
TOLERANCE = 1e-3


class CountedBy(StrEnum):
    """Who tells how many GPUs a node has."""

    ALLOCATABLE = "allocatable"
    SLICES = "resourceslices"
    INVENTORY = "inventory"
    NOBODY = ""


@dataclass(frozen=True, slots=True)
class Count:
    """What the one source has."""

    by: CountedBy
    offers: dict[str, Offer]
    """What pods may ask for, by resource."""
    contradictions: tuple[str, ...]
    """What labels claim that allocatable does not have, and that DRA offers what it has."""


def count(
    allocatable: Amounts,
    labels: Mapping[str, str],
    *,
    model: str,
    found: int | None,
    devices: NodeDevices | None,
    by_devices: dict[str, Offer],
    also: AbstractSet[str],
) -> Count:
    """Count a node's GPUs by the first source that has some.

    Args:
        allocatable: Of its status.
        labels: Its labels.
        model: As its agent, its slices or a label tell.
        found: How many GPUs its agent found; None where no agent tells.
        devices: What DRA offers there; None if nothing.
        by_devices: What that comes to, by resource.
        also: Further resources that are GPUs.
    """
    offered, wrong = offers(allocatable, labels, model=model, gpus=found or None, also=also)
    has_slices = devices is not None and bool(devices.gpus or devices.cut)
    if offered:
        if has_slices and devices is not None:
            names = ", ".join(sorted(offered))
            told = ((len(devices.gpus), "GPU"), (len(devices.cut), "slice"))
            both = " and ".join(f"{number} {what}{'s' * (number != 1)}" for number, what in told if number)
            is_one = len(devices.gpus) + len(devices.cut) == 1
            wrong += (
                f"{both} {'is' if is_one else 'are'} offered by DRA, and allocatable has {names}, which counts",
            )
        return Count(CountedBy.ALLOCATABLE, offered, wrong)
    if has_slices:
        # The slices that labels speak of may be those that DRA offers.
        return Count(CountedBy.SLICES, dict(by_devices), ())
    return Count(CountedBy.INVENTORY if found else CountedBy.NOBODY, {}, wrong)


def disagreement(by: CountedBy, offered: Mapping[str, Offer], gpus: float, found: int | None) -> str:
    """What to say where an agent finds fewer GPUs than are counted; empty where it does not.

    More is nothing wrong: a plugin holds back what is unhealthy, and what is cut into slices that nobody made.
    """
    if found is None or not offered or gpus <= found + TOLERANCE:
        return ""
    amounts = ", ".join(f"{name} {offer.units:g}" for name, offer in sorted(offered.items()))
    whose = "ResourceSlices come" if by is CountedBy.SLICES else "allocatable comes"
    missing = f"{gpus - found:.3g} count as broken" if found else "their load is unknown"
    return f"{whose} to {gpus:.3g} GPUs ({amounts}), but its agent finds {found or 'none'}: {missing}"


class Disagreements:
    """Which of them hold for so long that people should know. Told the time, since agents and plugins restart."""

    def __init__(self) -> None:
        self.steady: dict[str, str] = {}
        """By node."""
        self._new: dict[str, str] = {}
        """Until the time is told."""
        self._since: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """What has held for less, the longest first, with the instant from which on it does."""

    def see(self, node: str, said: str) -> None:
        """What is to be said of a node now; empty if nothing. Another figure is another disagreement."""
        if said and said in (self.steady.get(node), self._since.get(node, ("",))[0]):
            return
        self.steady.pop(node, None)
        self._new.pop(node, None)
        self._since.pop(node, None)
        if said:
            self._new[node] = said

    def pass_time(self, now_mono_s: float) -> list[str]:
        """Let time pass; returns nodes of which there is something to say from now on."""
        for node, said in self._new.items():
            self._since[node] = (said, now_mono_s)
        self._new.clear()
        told = []
        while self._since:
            node, (said, since_mono_s) = next(iter(self._since.items()))
            if now_mono_s - since_mono_s < STEADY_S:
                break
            del self._since[node]
            self.steady[node] = said
            told.append(node)
        return told
