"""What keeps a pod waiting, and what would let it in: by itself, and together where no single thing would. Pure.

Each hindrance says how many nodes the pod would fit by its end alone. For the node that lacks least it is found out
what must end there altogether: by lifting what stands against it until it fits, and leaving out what was not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from scheduler.cluster.snapshot import FloatColumn
from scheduler.cluster.unit_words import said
from scheduler.core.nouns import PREFIX, Reason
from scheduler.decision.asked import Wishes, memory_words, nodes
from scheduler.decision.cycle import Judgement, Mask
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Hindrance, Nearest, Step
from scheduler.decision.kube_filters import beside_cordon
from scheduler.decision.lifts import (
    Broken,
    Court,
    LessMemory,
    Lift,
    OtherModels,
    OtherPools,
    PoolWait,
    Room,
    Standing,
    TwoPools,
    World,
    lacking_units,
    lifts_of,
)
from scheduler.decision.reach import NO_CONDITIONS
from scheduler.policy.base import POOL_CODES

# What a person reads at a glance; the count beside tells of the rest.
EXAMPLES = 5
# Nodes that lack least by the first look are looked at closely: each takes some judgements.
LOOKED_AT = 4
MOST_TAINTS = 3
WHAT: dict[str, tuple[str, str]] = {
    "quarantine": ("in quarantine", "To end it: kubectl label node NODE wattbalance.io/quarantine-"),
    "cordon": ("cordoned", "To end it: kubectl uncordon NODE"),
    "broken_gpus": (
        "with broken GPUs",
        "The agent's log and `wattbalance agent --once` on the node say what is wrong with them.",
    ),
    "selection": (
        "not as the pod's nodeSelector or node affinity asks",
        "kube-scheduler does not offer us these: change that in the pod's spec, or label a node as it asks.",
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Hindrances:
    """Those of one pod at one instant.

    Args:
        decider: Whose store, filters and profiles.
        base: The world as it is.
        judgement: What the cycle thinks of it.
        wishes: What the pod asks for, and who says so.
        unix_s: The instant.
    """

    decider: Decider
    base: World
    judgement: Judgement
    wishes: Wishes
    unix_s: float
    court: Court = field(init=False)
    standing: Standing = field(init=False)
    lifts: Sequence[Lift] = field(init=False)

    def __post_init__(self) -> None:
        """Judge the world as it is, filter by filter."""
        court = Court(self.decider)
        object.__setattr__(self, "court", court)
        object.__setattr__(self, "standing", court.stand(self.base))
        object.__setattr__(self, "lifts", lifts_of(self.decider.store))

    def name(self, row: int) -> str:
        """A node's."""
        return self.decider.store.names[row] or ""

    def examples(self, members: Mask) -> tuple[str, ...]:
        """Some nodes by name, those with most free GPUs first."""
        rows = np.flatnonzero(members)
        free = self.judgement.snapshot.free_gpus[rows]
        return tuple(self.name(row) for row in rows[np.argsort(-free, kind="stable")][:EXAMPLES].tolist())

    # --- each by itself ------------------------------------------------------------------------------------------

    def each(self) -> list[Hindrance]:
        """All that stands against nodes that are large enough, what helps most first."""
        found = [told for lift in self.lifts for told in self._of(lift)]
        return sorted(found, key=lambda each: -each.helps)

    def _of(self, lift: Lift) -> Iterator[Hindrance]:
        if isinstance(lift, Room):
            # Of what is full among others that it lacks, the nearest node tells.
            if not self.judgement.fitting and (free := self._free()) is not None:
                yield free
            return
        concerned = self.candidates & lift.concerned(self.standing)
        if not concerned.any():
            return
        lifted = self.court.stand(lift.lifted(self.base, concerned))
        helped = lifted.fits & ~self.standing.fits
        if isinstance(lift, PoolWait):
            yield from self._pools(helped)
        elif lift.kind == "annotation":
            yield self._annotation(lift.key, concerned, helped)
        else:
            what, remedy = WHAT.get(lift.kind) or self._told(lift, concerned)
            yield self._hindrance(lift.kind, concerned, helped, what, remedy)

    @property
    def candidates(self) -> Mask:
        """Nodes that are large enough."""
        return self.base.snapshot.present & ~self.base.kube.small

    def _hindrance(self, kind: str, concerned: Mask, helped: Mask, what: str, remedy: str) -> Hindrance:
        helps = int(np.count_nonzero(helped))
        alone = f"{helps:,} would take the pod" if helps else "that alone would not let the pod in"
        text = f"{nodes(int(np.count_nonzero(concerned)))} {what}: {alone}. {remedy}"
        return Hindrance(kind, text, helps, self.examples(helped if helps else concerned))

    def _told(self, lift: Lift, concerned: Mask) -> tuple[str, str]:
        """What it is, and what helps, in words that name nodes."""
        if isinstance(lift, TwoPools):
            in_pools = ((name, self.decider.store.nodes[name].in_pools) for name in self.examples(concerned))
            told = "; ".join(f"{name}: {' and '.join(pools)}" for name, pools in in_pools)
            remedy = f"{told}. Change the labels of the nodes, or the pools' selectors."
            return "taken by the selectors of two pools", remedy
        taints = sorted({taint for row in np.flatnonzero(concerned).tolist() for taint in self.taints(row)})
        more = f" and {len(taints) - MOST_TAINTS} more" if len(taints) > MOST_TAINTS else ""
        named = f"{', '.join(taints[:MOST_TAINTS])}{more}"
        remedy = f"{named}. kube-scheduler does not offer us these: let the pod tolerate it, or take it off."
        return "with a taint that the pod does not tolerate", remedy

    def taints(self, row: int) -> list[str]:
        """Those of a node that keep the pod away, as kubectl writes them."""
        conditions = self.base.request.conditions or NO_CONDITIONS
        known = self.decider.store.known_nodes(len(self.base.kube.small))
        against = known.against(row, beside_cordon(conditions.tolerations))
        return [f"{each.key}{f'={each.value}' if each.value else ''}:{each.effect}" for each in against]

    def _pools(self, helped: Mask) -> Iterator[Hindrance]:
        for index, pool in enumerate(self.decider.store.settings.pools):
            concerned = self.candidates & self.standing.has(POOL_CODES + index)
            if not concerned.any():
                continue
            what = f"closed while the pod waits for pool {pool.name}"
            remedy = (
                f"`spill.after` of pool {pool.name} says how long a pod waits for it before later pools open."
            )
            told = self._hindrance("pool", concerned, helped & concerned, what, remedy)
            left_s = max(pool.spill_after_s - self.base.request.waited_s, 0.0)
            yield Hindrance(told.kind, told.text, told.helps, told.nodes, self.unix_s + left_s)

    def _annotation(self, key: str, concerned: Mask, helped: Mask) -> Hindrance:
        remedy = " ".join(self.wishes.remedies(key, self.standing, concerned))
        told = self._hindrance(
            "annotation", concerned, helped, f"not as {self.wishes.name(key)} asks", remedy
        )
        largest_bytes, _ = self.wishes.largest_memory() if key == "gpu-memory" else (0, "")
        return Hindrance(
            told.kind,
            told.text,
            told.helps,
            told.nodes,
            annotation=key,
            said_by=self.wishes.of(key).where,
            models=tuple(self.wishes.models()) if key == "gpu-model" else (),
            largest_memory_bytes=largest_bytes or None,
        )

    def _free(self) -> Hindrance | None:
        snapshot, full = self.judgement.snapshot, self.judgement.full
        if not full.any():
            return None
        asked = self.base.request.units
        # As the cycle breaks ties, so that the answer stands still.
        row = int(np.where(full, self.lacking_gpus(), inf).argmin())
        ends = self._ends(self.base, row)
        count = int(np.count_nonzero(full))
        have = "1 node has" if count == 1 else f"{count:,} nodes have"
        has = float(snapshot.units_of(asked[0][0], snapshot.free_units)[row])
        free = "" if len(asked) > 1 else f"{has:g} free, "
        more = self._said(ends, row) if len(asked) > 1 else f"{sum(ends.values()):g}"
        nearest = f"Nearest is {self.name(row)}: {free}{more} more must end there."
        free_of = said(self.decider.store, asked, full, snapshot)
        text = f"{have} no {free_of} free by our count. {nearest}"
        lacking_gpus = float(self.lacking_gpus()[row])
        return Hindrance("free_gpus", text, nodes=self.examples(full), lacking_gpus=lacking_gpus)

    def lacking_gpus(self) -> FloatColumn:
        """How many GPUs must end on each node."""
        snapshot = self.base.snapshot
        parts = [
            lacking * snapshot.units_of(name, snapshot.unit_gpus)
            for name, lacking in lacking_units(snapshot, self.base.request)
        ]
        lacking: FloatColumn = np.sum(parts, axis=0) if parts else np.zeros(snapshot.rows, np.float32)
        return lacking

    @staticmethod
    def _ends(world: World, row: int) -> dict[str, float]:
        lacking = lacking_units(world.snapshot, world.request)
        return {name: float(each[row]) for name, each in lacking if each[row] > 0}

    def _said(self, ends: Mapping[str, float], row: int) -> str:
        only = np.zeros(self.base.snapshot.rows, bool)
        only[row] = True
        return said(self.decider.store, tuple(ends.items()), only, self.base.snapshot)

    # --- together ------------------------------------------------------------------------------------------------

    def nearest(self) -> Nearest | None:
        """The node that takes fewest steps, and all of them."""
        best: tuple[int, int, list[Lift]] | None = None
        for row, against in self._near():
            # None takes fewer steps than there are things against it, but for one that another takes with it.
            if best is not None and best[0] <= against:
                break
            way = self._way(row)
            if way is not None and (best is None or len(way) < best[0]):
                best = len(way), row, way
        if best is None:
            return None
        _, row, way = best
        return Nearest(self.name(row), tuple(self._steps(row, way)))

    def _near(self) -> list[tuple[int, int]]:
        """Some nodes that lack least at the first look, and how many things are against each."""
        against = np.zeros(self.base.snapshot.rows, np.int32)
        for lift in self.lifts:
            against += lift.concerned(self.standing)
        rows = np.flatnonzero(self.candidates)
        order = np.lexsort((self.base.snapshot.name_hash[rows], self.lacking_gpus()[rows], against[rows]))
        near = rows[order][:LOOKED_AT]
        return list(zip(near.tolist(), against[near].tolist(), strict=True))

    def _way(self, row: int) -> list[Lift] | None:
        """What must be lifted on a node, in order; None if that does not let the pod in."""
        only = np.zeros(self.base.snapshot.rows, bool)
        only[row] = True
        way: list[Lift] = []
        standing = self.standing
        while not standing.fits[row]:
            found = [lift for lift in self.lifts if lift not in way and bool(lift.concerned(standing)[row])]
            # What lacks of room depends on the others.
            found = [lift for lift in found if not isinstance(lift, Room)] or found
            if not found:
                return None
            way += found
            standing = self._after(way, only)
        for lift in list(way) if len(way) > 1 else ():
            left = [each for each in way if each is not lift]
            if self._after(left, only).fits[row]:
                way = left
        return way

    def _after(self, way: Sequence[Lift], only: Mask) -> Standing:
        world = self.base
        for lift in way:
            world = lift.lifted(world, only)
        return self.court.stand(world)

    def _steps(self, row: int, way: Sequence[Lift]) -> Iterator[Step]:
        only = np.zeros(self.base.snapshot.rows, bool)
        only[row] = True
        world = self.base
        for lift in way:
            after = lift.lifted(world, only)
            if lift.kind == "annotation":
                yield self._step_of_wish(lift, row, after)
            elif isinstance(lift, Room):
                ends = self._ends(world, row)
                yield Step("free_gpus", f"{self._said(ends, row)} more must end there", units=ends)
            else:
                pool = self.decider.store.pool_names[int(after.snapshot.pool[row])]
                asks = pool if isinstance(lift, TwoPools) else ""
                yield Step(lift.kind, self._step(lift, row), asks=asks)
            world = after

    def _step(self, lift: Lift, row: int) -> str:
        node, request, store = self.name(row), self.base.request, self.decider.store
        if isinstance(lift, TwoPools):
            pools = " and ".join(store.nodes[node].in_pools)
            return f"leave it in pool {store.pool_names[lift.stays_in(row, request)]} alone (now in {pools})"
        if isinstance(lift, Broken):
            return "its broken GPUs must be well again"
        if isinstance(lift, PoolWait):
            index = max((int(codes[row]) - POOL_CODES for codes in self.standing.codes), default=-1)
            pool = store.pool_names[index] if index >= 0 else "one that it would wait for then"
            return f"`spill.after` of pool {pool} must be over"
        if lift.kind == "taint":
            return f"the pod must tolerate {', '.join(self.taints(row))}, or it must go"
        return {
            "quarantine": f"end its quarantine (kubectl label node {node} wattbalance.io/quarantine-)",
            "cordon": f"kubectl uncordon {node}",
            "selection": "label it as the pod's nodeSelector or node affinity asks, or change that",
        }[lift.kind]

    def _step_of_wish(self, lift: Lift, row: int, after: World) -> Step:
        key, request = lift.key, after.request
        name = self.wishes.name(key)
        only = np.zeros(self.base.snapshot.rows, bool)
        only[row] = True
        if isinstance(lift, OtherPools):
            asks = ",".join(self.decider.store.pool_names[pool] for pool in request.pools)
            return Step("annotation", f"{name} must ask for {asks}", key, asks=asks)
        if isinstance(lift, OtherModels) and request.gpu_models:
            asks = ", ".join(self.wishes.models(only))
            return Step("annotation", f"{name} must take {asks} too", key, asks=asks)
        if isinstance(lift, LessMemory) and request.gpu_memory_bytes:
            asks = memory_words(request.gpu_memory_bytes)
            return Step("annotation", f"{name} must ask for at most {asks}", key, asks=asks)
        unknown = self.standing.has(Reason.UNKNOWN_MODEL, Reason.UNKNOWN_MEMORY)[row]
        why = ", or somebody tell what the node has" if unknown else ""
        return Step("annotation", f"{PREFIX}{key} must be left out{why}", key)
