"""What a node offers of its GPUs: whole ones, replicas that share a GPU, slices. Pure.

Allocatable counts, since that is what kube-scheduler counts; labels only say what a unit of it is. Where a label
claims what allocatable does not have, that is a contradiction: told, and the unit taken for the larger thing.

Source: NVIDIA's device plugin and GPU feature discovery (labels, `renameByDefault`, MIG strategies `single` and
`mixed`, sharing strategies `time-slicing` and `mps`); the MIG user guide for slices a GPU, by model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from types import MappingProxyType

from scheduler.cluster.objects import quantity
from scheduler.core.nouns import GPU_RESOURCE, Units

# GPU feature discovery's, where no agent tells.
MODEL_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"
SHARED_SUFFIX = ".shared"
MIG_PREFIX = "nvidia.com/mig-"
_PROFILE = re.compile(r"(?:(\d{1,2})c\.)?(\d{1,2})g\.(\d{1,4})gb")
# With the strategy `single`, slices are called nvidia.com/gpu, and the product tells which.
_SINGLE = re.compile(r"-MIG-(\d{1,2}g\.\d{1,4}gb)")
# Into how many slices a GPU goes at most, by its model.
_MOST_SLICES = (
    (re.compile(r"\bA30X?\b|RTX[ -]PRO[ -]6000", re.IGNORECASE), 4),
    (re.compile(r"RTX[ -]PRO[ -](?:5000|4500)", re.IGNORECASE), 2),
)
_SLICES = 7
# Profiles are named by their memory in GiB, rounded up or to the GPU's: an A100's 1g.5gb has 4864 MiB. The farthest
# below its name in NVIDIA's guide to MIG is GB200's 1g.24gb with 20 GiB, 0.895 of 24 GB: so much is sure by a name.
_NAMED_MEMORY_FRAC = 0.89
_PLURALS = ("GPU", "replica", "slice")
_NO_NOUNS: Mapping[str, str] = MappingProxyType({})
# Whoever may label a node may do so without end.
MOST_TOLD = 10
# No node has as many GPUs, replicas or MiB.
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Offer:
    """One resource of a node."""

    units: float
    """Allocatable."""
    gpus: float = 1.0
    """How much of a GPU a unit is."""
    memory_bytes: float = 0.0
    """A unit's own memory; 0: it is its GPU's."""
    memory_frac: float = 1.0
    """Then: how much of it the unit may take at most."""
    shared: bool = False
    """Whether units take what they like of their GPU's memory, side by side."""


def is_gpu_resource(name: str, also: AbstractSet[str] = frozenset()) -> bool:
    """Whether a resource is GPUs, replicas of them or slices. `also`: further names of GPUs in this cluster."""
    base = name.removesuffix(SHARED_SUFFIX)
    return base == GPU_RESOURCE or name.startswith(MIG_PREFIX) or base in also


def model_of(labels: Mapping[str, str]) -> str:
    """The model of a node's GPUs by its label, without what feature discovery appends for slices and replicas."""
    return labels.get(MODEL_LABEL, "").partition("-MIG-")[0].removesuffix("-SHARED")


@lru_cache(maxsize=256)
def named_memory_bytes(resource: str) -> tuple[float, float]:
    """What a slice has at least and at most by its resource's name alone; zeros where that tells nothing.

    Where no label tells more, the first is what an `Offer` says.
    """
    profile = _PROFILE.search(resource) if resource.startswith(MIG_PREFIX) else None
    return _named_memory(profile) if profile is not None else (0.0, 0.0)


def _named_memory(profile: re.Match[str]) -> tuple[float, float]:
    return float(profile[3]) * 1e9 * _NAMED_MEMORY_FRAC, float(profile[3]) * 2.0**30


def words(units: Units, nouns: Mapping[str, str] = _NO_NOUNS) -> str:
    """So many of some resources, as people say it. `nouns`: what they are where that is known, each in the singular."""
    told = ((count, nouns.get(name) or noun(name)) for name, count in units)
    return " and ".join(f"{count:g} {_many(each, count)}" for count, each in told) or "no GPU"


def noun(name: str) -> str:
    """What people call one unit of a resource, by its name alone."""
    base = name.removesuffix(SHARED_SUFFIX)
    if name.startswith(MIG_PREFIX):
        return f"{'slice' if base == name else 'replica'} of {base.removeprefix(MIG_PREFIX)}"
    if base != name:
        return f"{noun(base)} replica"
    return "GPU" if name == GPU_RESOURCE else name


def _many(noun: str, count: float) -> str:
    if count == 1:
        return noun
    # Names of resources have no plural.
    heads = (one.partition(" of ") for one in noun.split(" or "))
    return " or ".join(f"{head}{'s' * head.endswith(_PLURALS)}{of}{rest}" for head, of, rest in heads)


def offers(
    allocatable: Mapping[str, str | float],
    labels: Mapping[str, str],
    *,
    model: str = "",
    gpus: int | None = None,
    also: AbstractSet[str] = frozenset(),
) -> tuple[dict[str, Offer], tuple[str, ...]]:
    """What a node offers, by resource, and what its labels contradict.

    Args:
        allocatable: Of its status.
        labels: Its labels.
        model: As its agent tells; empty: the label's counts.
        gpus: How many its agent found; None: the label's count.
        also: Further names that are GPUs in this cluster.
    """
    units = {name: quantity(amount) for name, amount in allocatable.items() if is_gpu_resource(name, also)}
    units = {name: amount for name, amount in units.items() if amount > 0}
    labelled = _Labelled(units, labels, model or model_of(labels), gpus, also)
    found: dict[str, Offer] = {}
    wrong: list[str] = []
    for name in units:
        found[name], complaint = labelled.offer(name)
        if complaint:
            wrong.append(complaint)
    wrong += labelled.absent()
    if len(wrong) > MOST_TOLD:
        wrong[MOST_TOLD:] = [f"and {len(wrong) - MOST_TOLD} more"]
    return found, tuple(wrong)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Allocatable units beside what is said of them."""

    units: Mapping[str, float]
    labels: Mapping[str, str]
    model: str
    gpus: int | None
    also: AbstractSet[str]

    def offer(self, name: str) -> tuple[Offer, str]:
        """One resource, and what is wrong with its labels."""
        base = self._base(name)
        profile = self._profile(base)
        gpus, memory_bytes = self._slice(profile), 0.0
        if profile is not None:
            labelled_bytes = _count(self.labels, f"{base}.memory") * 2.0**20
            memory_bytes = labelled_bytes or _named_memory(profile)[0]
        replicas, complaint = self._replicas(name, base, self._there(name, base, profile))
        # MPS gives each its part of the memory and no more; in time slices each may take all that is left.
        limited = self.labels.get(f"{base}.sharing-strategy") == "mps"
        offer = Offer(
            self.units[name],
            gpus / replicas,
            memory_bytes / replicas if limited else memory_bytes,
            memory_frac=1 / replicas if limited else 1.0,
            shared=replicas > 1 and not limited,
        )
        return offer, complaint

    def _base(self, name: str) -> str:
        """Under which name labels tell of it: feature discovery knows of no names that a cluster gives GPUs."""
        base = name.removesuffix(SHARED_SUFFIX)
        own = base not in self.also or f"{base}.replicas" in self.labels or f"{base}.count" in self.labels
        return base if own else GPU_RESOURCE

    def _profile(self, base: str) -> re.Match[str] | None:
        if base != GPU_RESOURCE:
            return _PROFILE.search(base)
        single = _SINGLE.search(self.labels.get(MODEL_LABEL, ""))
        return _PROFILE.search(single[1]) if single else None

    def _slice(self, profile: re.Match[str] | None) -> float:
        """How much of a GPU a slice is; of what nobody has heard: all."""
        slices = int(profile[1] or profile[2]) if profile is not None else 0
        if not slices:
            return 1.0
        most = next((most for model, most in _MOST_SLICES if model.search(self.model)), _SLICES)
        return min(slices / most, 1.0)

    def _there(self, name: str, base: str, profile: re.Match[str] | None) -> int:
        """How many GPUs or slices replicas may be made of; 0 if nobody tells.

        An agent counts GPUs and feature discovery those of one model, both with the ones that are sliced or whole.
        """
        # Beside renamed replicas those that have the plain name are whole.
        whole = int(self.units.get(base, 0)) if name != base else 0
        if profile is not None:
            return max(_count(self.labels, f"{base}.count") - whole, 0)
        there = self.gpus if self.gpus is not None else _count(self.labels, f"{base}.count")
        sliced = sum(
            amount * self._slice(_PROFILE.search(name))
            for name, amount in self.units.items()
            if name.startswith(MIG_PREFIX) and not name.endswith(SHARED_SUFFIX)
        )
        # Sums of sevenths round.
        return max(there - ceil(round(sliced, 3)) - whole, 0)

    def _replicas(self, name: str, base: str, there: int) -> tuple[float, str]:
        """How many units share a GPU or slice, of which there are so many; and what is wrong with the label."""
        units, plain = self.units[name], not name.endswith(SHARED_SUFFIX)
        claimed = _count(self.labels, f"{base}.replicas")
        if plain and (claimed <= 1 or self._has_renamed(name, base)):
            # Whole. Beside renamed ones the label is about those.
            return 1.0, ""
        told = units / there if there and units > there else 1.0
        if claimed <= 1:
            unsaid = f"{name} is allocatable, but no label {base}.replicas says how many share a GPU"
            return told, unsaid if told == 1 else ""
        said = f"label {base}.replicas is {claimed}, but allocatable {name} is {units:g}"
        if units % claimed:
            # Replicas of a GPU come and go together.
            return min(told, claimed), said
        if there and units <= there and plain:
            return 1.0, f"{said}, of {there} that are there"
        # More than there are may be: GPUs that fell off the bus before the agent came up are still allocatable.
        return claimed, ""

    def _has_renamed(self, name: str, base: str) -> bool:
        """Whether the node offers replicas of what labels call so, under another name than this one."""
        return any(
            self._base(other) == base and (other.endswith(SHARED_SUFFIX) or name == base)
            for other in self.units
            if other != name
        )

    def absent(self) -> Iterator[str]:
        """What labels claim of which nothing is allocatable; whole GPUs need not be, where all are sliced."""
        told_of = {self._base(name) for name in self.units} | self.units.keys()
        for label in self.labels:
            name, dot, what = label.rpartition(".")
            if not dot or not is_gpu_resource(name, self.also) or name in told_of:
                continue
            count = _count(self.labels, label)
            sliced = what == "count" and name.startswith(MIG_PREFIX) and count
            if sliced or (what == "replicas" and count > 1):
                yield f"label {label} is {count}, but no {name} is allocatable"


def _count(labels: Mapping[str, str], label: str) -> int:
    """A label's whole number; 0 if it has none."""
    text = labels.get(label, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else 0
