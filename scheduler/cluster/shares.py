"""What a node offers of its GPUs: whole ones, replicas that share a GPU, slices. Pure.

Allocatable counts, since that is what kube-scheduler counts; labels only say what a unit of it is. Where a label
claims what allocatable does not have, that is a contradiction: told, and the unit taken for the larger thing.

Source: NVIDIA's device plugin and GPU feature discovery (labels, `renameByDefault`, MIG strategies `single` and
`mixed`); the MIG user guide for slices a GPU: seven, four on A30 and RTX PRO 6000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scheduler.cluster.objects import Amounts, quantity
from scheduler.core.nouns import GPU_RESOURCE, Units

# GPU feature discovery's, where no agent tells.
MODEL_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"
SHARED_SUFFIX = ".shared"
MIG_PREFIX = "nvidia.com/mig-"
_PROFILE = re.compile(r"(?:(\d{1,2})c\.)?(\d{1,2})g\.(\d{1,4})gb")
# With the strategy `single`, slices are called nvidia.com/gpu, and the product tells which.
_SINGLE = re.compile(r"-MIG-(\d{1,2}g\.\d{1,4}gb)")
_FOUR_SLICES = re.compile(r"\bA30\b|RTX[ -]PRO[ -]6000", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Offer:
    """One resource of a node."""

    units: float
    """Allocatable."""
    gpus: float = 1.0
    """How much of a GPU a unit is."""
    memory_bytes: float = 0.0
    """A unit's own memory; 0: it is its GPU's."""
    shared: bool = False
    """Whether units share the memory of their GPU."""


def is_gpu_resource(name: str) -> bool:
    """Whether a resource is GPUs, replicas of them or slices."""
    return name in (GPU_RESOURCE, GPU_RESOURCE + SHARED_SUFFIX) or name.startswith(MIG_PREFIX)


def words(units: Units) -> str:
    """So many of some resources, as people say it."""
    return " and ".join(f"{count:g} {_noun(name, count)}" for name, count in units) or "no GPU"


def _noun(name: str, count: float) -> str:
    if name != GPU_RESOURCE:
        return name
    return "GPU" if count == 1 else "GPUs"


def offers(
    allocatable: Amounts,
    labels: Mapping[str, str],
    *,
    model: str = "",
    gpus: int | None = None,
) -> tuple[dict[str, Offer], tuple[str, ...]]:
    """What a node offers, by resource, and what its labels contradict.

    Args:
        allocatable: Of its status.
        labels: Its labels.
        model: As its agent tells; empty: the label's counts.
        gpus: How many its agent found; None: the label's count.
    """
    units = {name: quantity(amount) for name, amount in allocatable.items() if is_gpu_resource(name)}
    units = {name: amount for name, amount in units.items() if amount > 0}
    labelled = _Labelled(units, labels, model or labels.get(MODEL_LABEL, ""), gpus)
    found: dict[str, Offer] = {}
    wrong: list[str] = []
    for name in units:
        found[name], complaint = labelled.offer(name)
        if complaint:
            wrong.append(complaint)
    return found, (*wrong, *_absent_slices(units, labels))


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Allocatable units beside what is said of them."""

    units: Mapping[str, float]
    labels: Mapping[str, str]
    model: str
    gpus: int | None

    def offer(self, name: str) -> tuple[Offer, str]:
        """One resource, and what is wrong with its labels."""
        base = name.removesuffix(SHARED_SUFFIX)
        single = _SINGLE.search(self.labels.get(MODEL_LABEL, "")) if base == GPU_RESOURCE else None
        profile = _PROFILE.search(single[1] if single else base)
        gpus, memory_bytes = 1.0, 0.0
        there: float | None = self.gpus
        if profile is not None:
            gpus = min(int(profile[1] or profile[2]) / (4 if _FOUR_SLICES.search(self.model) else 7), 1.0)
            # As its name says where no label does: a little less than there is, since names round up.
            memory_bytes = quantity(self.labels.get(f"{base}.memory")) * 2.0**20 or float(profile[3]) * 1e9
            # Those that replicas are made of are slices, and an agent counts GPUs.
            there = None
        if there is None:
            there = quantity(self.labels.get(f"{base}.count")) or None
        replicas, complaint = self._replicas(name, base, there)
        return Offer(self.units[name], gpus / replicas, memory_bytes, shared=replicas > 1), complaint

    def _replicas(self, name: str, base: str, there: float | None) -> tuple[float, str]:
        """How many units share a GPU or slice, of which there are so many; and what is wrong with the label."""
        units, renamed = self.units[name], name != base
        claimed = quantity(self.labels.get(f"{base}.replicas"))
        if not renamed and (claimed <= 1 or base + SHARED_SUFFIX in self.units):
            # Whole. Beside renamed ones the label is about those.
            return 1.0, ""
        if claimed <= 1:
            if there is not None and units > there:
                return units / there, ""
            return 1.0, f"{name} is allocatable, but no label {base}.replicas says how many share a GPU"
        said = f"label {base}.replicas is {claimed:g}, but allocatable {name} is {units:g}"
        if there is not None and units > there * claimed:
            return units / there, f"{said} on {there:g}"
        if there is not None and units <= there and not renamed:
            return 1.0, f"{said} on {there:g}"
        if there is None and units % claimed:
            # Replicas of a GPU come and go together.
            return 1.0, said
        return claimed, ""


def _absent_slices(units: Mapping[str, float], labels: Mapping[str, str]) -> Iterator[str]:
    for label, count in labels.items():
        name = label.removesuffix(".count")
        if name == label or not name.startswith(MIG_PREFIX) or quantity(count) <= 0:
            continue
        if name not in units and name + SHARED_SUFFIX not in units:
            yield f"label {label} is {count[:20]}, but no {name} is allocatable"
