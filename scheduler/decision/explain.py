"""What would be decided about a pod now, and what stands in its way. Pure; changes nothing but the passing of time.

Judged are all nodes that exist: which of them kube-scheduler's own filters would leave (taints, affinity, CPU, memory,
volumes) is not known to us. What we see of theirs is the cordon, and how many GPUs a node has at all. What would
unblock a pod is found by judging again as if one hindrance were gone; so each says how many nodes the pod would fit
by that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from math import inf
from typing import Any

import msgspec
import numpy as np

from scheduler.cluster.shares import words
from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest, Reason
from scheduler.decision.cycle import (
    BAND_FITS,
    BAND_FULL,
    BAND_FULL_LAST,
    BAND_LAST,
    Judgement,
    Mask,
    PolicyFailures,
    best_rows,
    judge,
)
from scheduler.decision.decider import BEST_KEPT, Decider
from scheduler.decision.evaluation import Candidate, Evaluation, Hindrance, RuledOut, Term
from scheduler.decision.observed_pools import ObservedPools
from scheduler.policy.base import POOL_CODES

# What a person reads at a glance; the count beside tells of the rest.
EXAMPLES = 5
CORDONED = "node cordoned"
TOO_SMALL = "node has too few GPUs"
# What a pod may ask for: without it, and the reasons that it brings about.
ASKED: dict[str, tuple[dict[str, Any], tuple[Reason, ...]]] = {
    "pools": ({"pools": ()}, (Reason.OTHER_POOL,)),
    "gpu-model": ({"gpu_models": ()}, (Reason.OTHER_MODEL, Reason.UNKNOWN_MODEL)),
    "gpu-memory": ({"gpu_memory_bytes": 0}, (Reason.TOO_LITTLE_MEMORY, Reason.UNKNOWN_MEMORY)),
}
# Where nobody tells, asking for something else would help, and so would telling.
UNTOLD = {Reason.UNKNOWN_MODEL: "nvidia.com/gpu.product", Reason.UNKNOWN_MEMORY: "nvidia.com/gpu.memory"}
BANDS = {BAND_FITS: "fits", BAND_LAST: "chosen_before", BAND_FULL: "full", BAND_FULL_LAST: "full"}


class Waking(Enum):
    """Whether a pod that fits again, and that was refused before, is woken; the value is for a person."""

    SOON = (
        "If we had refused it, it is woken within seconds; else kube-scheduler asks again at the next event of the "
        "cluster, at the latest after five minutes. If the pod goes on waiting, kube-scheduler's own filters keep it "
        "from these nodes"
    )
    OFF = (
        "Nobody wakes it (nudge.enabled is off): kube-scheduler asks again at the next event of the cluster, at the "
        "latest after five minutes. If the pod goes on waiting, kube-scheduler's own filters keep it from these nodes"
    )
    PAUSED = (
        "We are paused, and wake nobody until `wattbalance resume`: kube-scheduler asks again at the next event of the "
        "cluster, at the latest after five minutes. If the pod goes on waiting, kube-scheduler's own filters keep it "
        "from these nodes"
    )
    OBSERVED = (
        "Here we only observe: nothing of ours keeps it from these nodes, and nobody wakes it. If it waits, "
        "kube-scheduler's own filters keep it from them"
    )


def evaluate(
    decider: Decider,
    request: PodRequest,
    now_mono_s: float,
    unix_s: float,
    *,
    held_on: str = "",
    waking: Waking = Waking.SOON,
) -> Evaluation:
    """Judge a pod at the present state.

    Args:
        decider: Whose store, filters and profiles.
        request: The pod; for one that is bound, as if it came now.
        now_mono_s: The instant.
        unix_s: The same, for people.
        held_on: Where it is bound; empty while it waits.
        waking: What becomes of it if it waits and fits.
    """
    store = decider.store
    failures = PolicyFailures()
    exists = store.snapshot.present
    large = exists & store.snapshot.is_large_enough(request)
    offered = large & ~store.snapshot.cordoned
    if held_on in store.rows:
        # It runs there, whatever has been closed since.
        offered[store.rows[held_on]] = True
    judgement = decider.judge(
        request, np.flatnonzero(offered), now_mono_s, held_on=held_on, failures=failures
    )
    look = _Look(decider, request, judgement, large & ~offered, exists & ~large & ~offered, unix_s)
    own = store.rows.get(held_on, -1)
    return Evaluation(
        unix_s=unix_s,
        nodes=int(np.count_nonzero(exists)),
        fitting=judgement.fitting,
        full=int(np.count_nonzero(judgement.full)),
        profile=decider.profiles[request.workload].name,
        placement=decider.profiles[request.workload].placement.value,
        chosen=look.name(judgement.choice) if judgement.choice >= 0 else "",
        held_on=held_on,
        ruled_out=look.ruled_out(),
        best=tuple(look.candidate(row) for row in best_rows(judgement, BEST_KEPT).tolist()),
        own=look.candidate(own) if own >= 0 else None,
        unblock=() if held_on else look.unblock(waking),
        failed_policies=tuple(sorted(failures.counts)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """One evaluation while it is told."""

    decider: Decider
    request: PodRequest
    judgement: Judgement
    closed: Mask
    """Cordoned, and so not offered."""
    small: Mask
    """Likewise, since they have too few GPUs at all."""
    unix_s: float

    def name(self, row: int) -> str:
        return self.decider.store.names[row] or ""

    def examples(self, members: Mask) -> tuple[str, ...]:
        """Some nodes by name, those with most free GPUs first."""
        rows = np.flatnonzero(members)
        free = self.judgement.snapshot.free_gpus[rows]
        return tuple(self.name(row) for row in rows[np.argsort(-free, kind="stable")][:EXAMPLES].tolist())

    def candidate(self, row: int) -> Candidate:
        judgement = self.judgement
        code = int(judgement.codes[row])
        terms = tuple(
            # As the cycle multiplies: in double precision.
            Term(policy, weight, float(score[row]), float(score[row]) * weight)
            for policy, weight, score in zip(
                judgement.policies, judgement.weights, judgement.scores, strict=True
            )
        )
        return Candidate(
            node=self.name(row),
            pool=self.decider.store.pool_names[judgement.snapshot.pool[row]],
            score=float(judgement.total[row]),
            free_gpus=float(judgement.snapshot.free_gpus[row]),
            terms=terms,
            band="ruled_out" if code else BANDS.get(int(judgement.bands[row]), ""),
            reason=self.decider.reason_texts[code] if code else "",
        )

    def ruled_out(self) -> tuple[RuledOut, ...]:
        judgement = self.judgement
        against = {
            self.decider.reason_texts[code]: judgement.offered & (judgement.codes == code)
            for code in np.unique(judgement.codes[judgement.failed]).tolist()
        }
        if self.closed.any():
            against[CORDONED] = self.closed
        if self.small.any():
            against[TOO_SMALL] = self.small
        if judgement.last is not None and judgement.last.any():
            against[Reason.CHOSEN_BEFORE_NOT_BOUND.text] = judgement.last
        told = [
            RuledOut(reason, int(np.count_nonzero(members)), self.examples(members))
            for reason, members in against.items()
        ]
        return tuple(sorted(told, key=lambda each: (-each.nodes, each.reason)))

    # --- what would unblock it -----------------------------------------------------------------------------------

    def unblock(self, waking: Waking) -> tuple[Hindrance, ...]:
        judgement = self.judgement
        if not (judgement.offered | self.closed | self.small).any():
            return (Hindrance("no_nodes", "There is no node: none is listed by the API server."),)
        if not (judgement.offered | self.closed).any():
            return (self._node_size(),)
        found = (
            self._quarantine(),
            self._cordon(),
            self._two_pools(),
            self._broken(),
            *self._pools(),
            *self._asked(),
            None if judgement.fitting else self._free(),
        )
        told = sorted((each for each in found if each is not None), key=lambda each: -each.helps)
        if judgement.fitting:
            # kube-scheduler may not offer those that fit; what would open others is worth knowing then.
            return (self._fits(waking), *(each for each in told if each.helps))
        return tuple(told)

    def _node_size(self) -> Hindrance:
        snapshot, asked = self.judgement.snapshot, self.request.units
        sizes = [np.where(self.small, snapshot.units_of(name, snapshot.units), 0) for name, _ in asked]
        for (name, count), size in zip(asked, sizes, strict=True):
            largest = int(size.argmax())
            if size[largest] <= 0:
                return Hindrance(
                    "node_size", f"No node has {name}: its allocatable tells, kubectl describe node."
                )
            if size[largest] < count:
                text = (
                    f"No node has {words(((name, count),))}; the largest has {size[largest]:g}. "
                    "Ask for fewer, or add a larger node."
                )
                return Hindrance("node_size", text, nodes=(self.name(largest),))
        text = (
            f"No node has {words(asked)} together. Ask for less of one of them, or add a node that has all."
        )
        return Hindrance("node_size", text, nodes=self.examples(self.small))

    def _fits(self, waking: Waking) -> Hindrance:
        observed = ObservedPools(self.decider.store.settings.pools).rows(self.judgement.snapshot)
        if not (self.judgement.fits & ~observed).any():
            waking = Waking.OBSERVED
        text = (
            f"It fits now, by what we know. {waking.value} (taints, affinity, CPU, memory, volumes): "
            "kubectl describe pod tells."
        )
        return Hindrance("none", text, self.judgement.fitting, self.examples(self.judgement.fits))

    def _again(
        self,
        *,
        change: Callable[[Snapshot], Snapshot] = lambda same: same,
        request: PodRequest | None = None,
        offered: Mask | None = None,
    ) -> Mask:
        """Which nodes would fit, if something were otherwise, that do not as it is."""
        decider, judgement = self.decider, self.judgement
        fits = judge(
            request or self.request,
            np.flatnonzero(judgement.offered if offered is None else offered),
            change(judgement.snapshot),
            decider.profiles[self.request.workload],
            decider.filters,
            PolicyFailures(),
        ).fits
        return fits & ~judgement.fits

    def _hindrance(self, kind: str, concerned: Mask, helped: Mask, what: str, remedy: str) -> Hindrance:
        helps, count = int(np.count_nonzero(helped)), int(np.count_nonzero(concerned))
        nodes = "1 node" if count == 1 else f"{count:,} nodes"
        alone = f"{helps:,} would take the pod" if helps else "that alone would not let the pod in"
        return Hindrance(
            kind, f"{nodes} {what}: {alone}. {remedy}", helps, self.examples(helped if helps else concerned)
        )

    def _quarantine(self) -> Hindrance | None:
        snapshot = self.judgement.snapshot
        concerned = self.judgement.offered & snapshot.quarantined
        if not concerned.any():
            return None
        helped = self._again(change=lambda now: now.replace(quarantined=np.zeros_like(now.quarantined)))
        remedy = "To end it: kubectl label node NODE wattbalance.io/quarantine-"
        return self._hindrance("quarantine", concerned, helped, "in quarantine", remedy)

    def _two_pools(self) -> Hindrance | None:
        both = self.judgement.snapshot.in_two_pools
        if both is None or not (concerned := self.judgement.offered & both).any():
            return None
        nodes, pool_names = self.decider.store.nodes, self.decider.store.pool_names
        pools_of = {row: nodes[self.name(row)].in_pools for row in np.flatnonzero(concerned).tolist()}
        helped = np.zeros_like(concerned)
        # It may stay in any of them.
        for turn in range(max(map(len, pools_of.values()))):
            pool = self.judgement.snapshot.pool.copy()
            for row, names in pools_of.items():
                pool[row] = pool_names.index(names[min(turn, len(names) - 1)])
            helped |= self._again(change=partial(Snapshot.replace, in_two_pools=None, pool=pool))
        told = "; ".join(f"{name}: {' and '.join(nodes[name].in_pools)}" for name in self.examples(concerned))
        remedy = f"{told}. Change the labels of the nodes, or the pools' selectors."
        return self._hindrance("two_pools", concerned, helped, "taken by the selectors of two pools", remedy)

    def _cordon(self) -> Hindrance | None:
        if not self.closed.any():
            return None
        helped = self._again(offered=self.closed)
        return self._hindrance("cordon", self.closed, helped, "cordoned", "To end it: kubectl uncordon NODE")

    def _broken(self) -> Hindrance | None:
        snapshot = self.judgement.snapshot
        concerned = self.judgement.offered & (snapshot.healthy_gpus < snapshot.gpu_count)
        if not concerned.any():
            return None

        def repaired(now: Snapshot) -> Snapshot:
            free = now.units - now.bound_units - now.reserved_units
            return now.replace(healthy_gpus=np.full_like(now.healthy_gpus, np.inf), free_units=free)

        helped = self._again(change=repaired)
        remedy = "The agent's log and `wattbalance agent --once` on the node say what is wrong with them."
        return self._hindrance("broken_gpus", concerned, helped, "with broken GPUs", remedy)

    def _pools(self) -> list[Hindrance]:
        store, codes = self.decider.store, self.judgement.codes
        helped = None
        found = []
        for index, pool in enumerate(store.settings.pools):
            concerned = self.judgement.offered & (codes == POOL_CODES + index)
            if not concerned.any():
                continue
            if helped is None:
                helped = self._again(request=replace(self.request, waited_s=inf))
            left_s = max(pool.spill_after_s - self.request.waited_s, 0.0)
            remedy = (
                f"`spill.after` of pool {pool.name} says how long a pod waits for it before later pools open."
            )
            told = self._hindrance(
                "pool",
                concerned,
                helped & concerned,
                f"closed while the pod waits for pool {pool.name}",
                remedy,
            )
            found.append(msgspec.structs.replace(told, until_unix_s=self.unix_s + left_s))
        return found

    def _asked(self) -> list[Hindrance]:
        """What the pod itself asks for by annotations."""
        found = []
        for key, (without, reasons) in ASKED.items():
            concerned = self.judgement.offered & np.isin(self.judgement.codes, reasons)
            if not concerned.any():
                continue
            helped = self._again(request=replace(self.request, **without))
            what = f"not as the pod's wattbalance.io/{key} asks"
            remedy = " ".join(self._remedies(concerned, reasons))
            found.append(self._hindrance("annotation", concerned, helped, what, remedy))
        return found

    def _remedies(self, concerned: Mask, reasons: tuple[Reason, ...]) -> Iterator[str]:
        for reason in reasons:
            count = int(np.count_nonzero(concerned & (self.judgement.codes == reason)))
            if count and (label := UNTOLD.get(reason)):
                yield f"Of {count:,} nobody tells it: run wattbalance's agent there, or label them with {label}."
            elif count:
                yield "It may ask for less, or for more kinds."

    def _free(self) -> Hindrance | None:
        snapshot, big = self.judgement.snapshot, self.judgement.full
        if not big.any():
            return None
        asked = self.request.units
        lacking = [
            np.maximum(count - snapshot.units_of(name, snapshot.free_units), 0) for name, count in asked
        ]
        # As the cycle breaks ties, so that the answer stands still.
        nearest = int(np.where(big, sum(lacking), np.inf).argmin())
        ends = tuple((name, float(each[nearest])) for (name, _), each in zip(asked, lacking, strict=True))
        lacking_gpus = sum(
            count * float(snapshot.units_of(name, snapshot.unit_gpus)[nearest]) for name, count in ends
        )
        count = int(np.count_nonzero(big))
        nodes = "1 node has" if count == 1 else f"{count:,} nodes have"
        free = "" if len(asked) > 1 else f"{asked[0][1] - ends[0][1]:g} free, "
        more = words(tuple(each for each in ends if each[1])) if len(asked) > 1 else f"{ends[0][1]:g}"
        text = (
            f"{nodes} no {words(asked)} free by our count. Nearest is {self.name(nearest)}: {free}"
            f"{more} more must end there."
        )
        return Hindrance("free_gpus", text, nodes=self.examples(big), lacking_gpus=lacking_gpus)
