"""What explain says of a pod's own wishes: who has them, what there is instead, and what would help. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.cluster.intent import CONFIGURATION, LIMIT, POD, Intent, IntentSettings
from scheduler.cluster.limits import limits_of, listed
from scheduler.cluster.nodes import MEMORY_LABEL, NodeRecord
from scheduler.cluster.shares import MODEL_LABEL, named_memory_bytes
from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.models import folded, matches
from scheduler.core.nouns import PREFIX, PodRequest, Reason
from scheduler.core.units import format_bytes
from scheduler.decision.cycle import Mask
from scheduler.decision.lifts import MIB, LessMemory, Standing

# A cluster has a dozen models; whoever looks for a slip of the pen reads no more.
MOST_MODELS = 8
FULLEST = (
    "Where GPUs are shared it has to be free on each of the node's: the device plugin chooses among them, so the "
    "fullest counts (docs/adr/0011)."
)
UNTAKEN = (
    "What pods there have asked for counts on top of what is measured, until they are bound and have run for "
    "a minute."
)
# Who could tell what nobody tells of some nodes.
BY_LABEL = "Nobody tells it of {}: run wattbalance's agent there, or label with {}."
UNREADABLE = "The agent of {} cannot read it: look at its log, and at nvidia-smi there."
ONLY_AGENT = (
    "Nobody measures it on {} with shared GPUs: wattbalance's agent has to run there and read it; no label tells what "
    "is free."
)
BY_NAME = "Of slices on {} only the name tells, and promises {}: feature discovery, or a label {} in MiB, tells more."
SHARED_SLICES = (
    "On {} slices are shared, and nobody can measure what is free of them: only leaving it out helps there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One annotation that counts for a pod."""

    where: str = POD
    """Whose it is."""
    values: tuple[str, ...] = ()
    """As they were written, if it is a list."""
    limit: str = ""
    """What the configuration lets the pod's namespace ask for; empty: anything."""


@dataclass(frozen=True, slots=True, eq=False)
class Wishes:
    """Those of one pod."""

    store: Store
    request: PodRequest
    said: Mapping[str, Asked]

    def of(self, key: str) -> Asked:
        """One of them; of a pod that is not known better, its own."""
        return self.said.get(key, Asked())

    def name(self, key: str) -> str:
        """The annotation, with whose it is."""
        where = self.of(key).where
        whose = {
            POD: "the pod's",
            LIMIT: "the configuration's limit on its namespace for",
            CONFIGURATION: "the configuration's default of",
        }.get(where, f"{where}'s")
        return f"{whose} {PREFIX}{key}"

    def remedies(self, key: str, standing: Standing, concerned: Mask) -> Iterator[str]:
        """What helps where a wish stands against nodes, each a sentence."""
        if key == "pools":
            yield f"{self._ask(key)} for more pools."
        if key == "gpu-model":
            yield from self._models(standing, concerned)
        if key == "gpu-memory":
            yield from self._memory(standing, concerned)
        yield from self._limit(key)

    def _ask(self, key: str) -> str:
        where = self.of(key).where
        if where == POD:
            return "It may ask"
        if where == LIMIT:
            return "`namespaces` in the configuration may let it ask"
        if where == CONFIGURATION and self.of(key).limit:
            return "`annotations` and `namespaces` in the configuration may let it ask"
        if where == CONFIGURATION:
            return "The pod, its owner or its namespace may say otherwise, or `annotations` in the configuration ask"
        kind, _, name = where.partition(" ")
        return f"{kind.capitalize()} {name} may ask, or the pod itself,"

    def _limit(self, key: str) -> Iterator[str]:
        asked = self.of(key)
        if asked.limit and asked.where != LIMIT:
            yield f"`namespaces` in the configuration lets this namespace ask for no other than {asked.limit}."
        elif asked.where == LIMIT:
            yield f"The pod itself may not ask for other than {asked.limit or 'that'}."

    def _models(self, standing: Standing, concerned: Mask) -> Iterator[str]:
        if (concerned & standing.has(Reason.OTHER_MODEL)).any():
            there = self.models()
            more = f" and {len(there) - MOST_MODELS} more" if len(there) > MOST_MODELS else ""
            yield f"{self._ask('gpu-model')} for models that there are: {', '.join(there[:MOST_MODELS])}{more}."
            if better := self.with_globs():
                yield f"Models are compared whole: {' and '.join(better)} would match."
        yield from self._telling(concerned & standing.has(Reason.UNKNOWN_MODEL), MODEL_LABEL)

    def _memory(self, standing: Standing, concerned: Mask) -> Iterator[str]:
        little = concerned & standing.has(Reason.TOO_LITTLE_MEMORY)
        if little.any():
            largest_bytes, node = self.largest_memory()
            most = f": {node} has most, {memory_words(largest_bytes)}" if node else ""
            yield f"{self._ask('gpu-memory')} for less{most}."
        unknown = concerned & standing.has(Reason.UNKNOWN_MEMORY)
        yield from self._telling(unknown, MEMORY_LABEL)
        if any(self._is_shared(record) for record in self._records(little | unknown)):
            yield FULLEST
        if any(self._is_shared(record) and self._is_coming(record) for record in self._records(little)):
            yield UNTAKEN

    def _telling(self, rows: Mask, label: str) -> Iterator[str]:
        """Who could tell what nobody tells of these nodes."""
        counts: dict[str, int] = {}
        memory = label == MEMORY_LABEL
        for record in self._records(rows):
            offered = [record.offers[name] for name, _ in self.request.units if name in record.offers]
            found = record.inventory is not None and bool(record.inventory.gpus)
            if memory and any(each.shared and each.memory_bytes for each in offered):
                how = SHARED_SLICES
            elif memory and any(each.shared for each in offered):
                how = ONLY_AGENT
            else:
                how = UNREADABLE if found else BY_LABEL
            if memory:
                how = self._by_name(record) or how
            counts[how] = counts.get(how, 0) + 1
        for how, count in sorted(counts.items()):
            yield how.format(nodes(count), label)

    def _by_name(self, record: NodeRecord) -> str:
        """What to say of a slice of which only the name is known; empty where there is none."""
        for name, _ in self.request.units:
            surely_bytes, _ = named_memory_bytes(name)
            offer = record.offers.get(name)
            if surely_bytes and offer is not None and offer.memory_bytes == surely_bytes and not offer.shared:
                return BY_NAME.format("{}", memory_words(surely_bytes), f"{name}.memory")
        return ""

    def _records(self, rows: Mask) -> Iterator[NodeRecord]:
        for row in np.flatnonzero(rows).tolist():
            yield self.store.nodes[self.store.names[row] or ""]

    def _is_shared(self, record: NodeRecord) -> bool:
        return any(name in record.offers and record.offers[name].shared for name, _ in self.request.units)

    def _is_coming(self, record: NodeRecord) -> bool:
        """Whether pods have asked for memory there that they may not have taken yet."""
        promised = self.store.reservations.on_node(record.name)
        return bool(record.untaken) or any(held.memory_bytes for held in promised)

    def models(self, rows: Mask | None = None) -> list[str]:
        """Models that there are, or that some nodes have, the commonest first."""
        snapshot = self.store.snapshot
        indexes = snapshot.models[snapshot.present if rows is None else rows]
        found: dict[str, int] = {}
        numbers, firsts, counts = np.unique(indexes, return_index=True, return_counts=True)
        places = np.flatnonzero(snapshot.present if rows is None else rows)
        for number, first, count in zip(numbers.tolist(), firsts.tolist(), counts.tolist(), strict=True):
            if number:
                for model in self._spelled(int(places[first])):
                    found[model] = found.get(model, 0) + count
        return sorted(found, key=lambda model: (-found[model], model))

    def _spelled(self, row: int) -> Sequence[str]:
        """A node's models as it spells them; columns have them folded."""
        record = self.store.nodes[self.store.names[row] or ""]
        if record.inventory is not None and record.inventory.gpus:
            return sorted({gpu.model for gpu in record.inventory.gpus})
        small = self.store.snapshot.model_sets[int(self.store.snapshot.models[row])]
        return [record.model] if {folded(record.model)} == small else sorted(small)

    def with_globs(self) -> list[str]:
        """What was probably meant: names that match nothing as they are, and something with globs around them."""
        models = [model for models in self.store.snapshot.model_sets for model in models]
        written = self.of("gpu-model").values or self.request.gpu_models
        return [
            f"*{each}*"
            for each in written
            if not any(matches(model, each) for model in models)
            and any(matches(model, f"*{each}*") for model in models)
        ]

    def largest_memory(self) -> tuple[float, str]:
        """The most memory that any node has of what is asked for, and which node; 0 and none if nobody tells."""
        snapshot = self.store.snapshot
        present = np.flatnonzero(self._has_units(snapshot))
        rows = np.zeros(snapshot.rows, bool)
        rows[present] = True
        there = LessMemory.there(snapshot, self.request, rows)
        if not there or not max(there):
            return 0, ""
        return max(there), self.store.names[int(present[int(np.argmax(there))])] or ""

    def _has_units(self, snapshot: Snapshot) -> Mask:
        parts = [snapshot.units_of(name, snapshot.units) > 0 for name, _ in self.request.units]
        return snapshot.present & np.logical_and.reduce(parts) if parts else snapshot.present


def nodes(count: int) -> str:
    """So many."""
    return "1 node" if count == 1 else f"{count:,} nodes"


def memory_words(size_bytes: float) -> str:
    """As it may be asked for, never more than there is."""
    return format_bytes(int(size_bytes // MIB * MIB))


def asked_by(intent: Intent, settings: IntentSettings, namespace: str) -> dict[str, Asked]:
    """What counts for a pod, with whose words they are and what its namespace may ask for."""
    allow = limits_of(namespace, settings.rules, settings.pools).allow
    return {
        key: Asked(
            where=word.where,
            values=tuple(map(str, word.value)) if isinstance(word.value, tuple) else (),
            limit=listed(key, allow[key]) if key in allow else "",
        )
        for key, word in intent.words.items()
    }
