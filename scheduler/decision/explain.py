"""What would be decided about a pod now, and what stands in its way. Pure; changes nothing but the passing of time.

Judged are all nodes that kube-scheduler may offer, as far as we see its own filters: a node's size, its cordon, its
labels and taints (kube_filters.py). What it sees beside (CPU, memory, ports, volumes, other pods) is not known to us.
What would unblock a pod is found by judging again as if hindrances were gone (hindrances.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from scheduler.cluster.unit_words import said
from scheduler.core.nouns import GPU_RESOURCE, PodRequest, Reason, Units
from scheduler.decision.asked import Asked, Wishes
from scheduler.decision.cycle import (
    BAND_FITS,
    BAND_FULL,
    BAND_FULL_LAST,
    BAND_LAST,
    Judgement,
    Mask,
    PolicyFailures,
    best_rows,
)
from scheduler.decision.decider import BEST_KEPT, Decider
from scheduler.decision.evaluation import (
    Candidate,
    Evaluation,
    Hindrance,
    Nearest,
    RuledOut,
    Term,
    Waking,
    why_first,
)
from scheduler.decision.hindrances import EXAMPLES, Hindrances
from scheduler.decision.kube_filters import kube_filters
from scheduler.decision.lifts import World
from scheduler.decision.observed_pools import ObservedPools

CORDONED = "node cordoned"
TOO_SMALL = "node has too few GPUs"
UNSELECTED = "kube-scheduler: nodeSelector or affinity of the pod"
TAINTED = "kube-scheduler: taint that the pod does not tolerate"
BANDS = {BAND_FITS: "fits", BAND_LAST: "chosen_before", BAND_FULL: "full", BAND_FULL_LAST: "full"}


SOON = Waking("soon", "It is woken within a second or two once it fits.")
IF_OFFERED = Waking(
    "soon",
    "It is woken within a second or two if kube-scheduler had offered us one of the nodes where it fits. What opens "
    "where its own filters kept the pod away, Kubernetes tells it by itself.",
)
OBSERVED = Waking(
    "observed",
    "It fits only where we just observe: nothing of ours keeps it from these nodes, and nobody wakes it.",
)


def evaluate(
    decider: Decider,
    request: PodRequest,
    now_mono_s: float,
    unix_s: float,
    *,
    held_on: str = "",
    waking: Waking | None = None,
    said: Mapping[str, Asked] | None = None,
) -> Evaluation:
    """Judge a pod at the present state.

    Args:
        decider: Whose store, filters and profiles.
        request: The pod; for one that is bound, as if it came now.
        now_mono_s: The instant.
        unix_s: The same, for people.
        held_on: Where it is bound; empty while it waits.
        waking: Whether it is woken once it fits, if it waits.
        said: Whose words its annotations are, by key without the prefix; those not named are its own.
    """
    store = decider.store
    failures = PolicyFailures()
    exists = store.snapshot.present
    kube = kube_filters(store, request)
    offered = exists & ~kube.against
    if held_on in store.rows:
        # It runs there, whatever has been closed since.
        offered[store.rows[held_on]] = True
    judgement = decider.judge(
        request, np.flatnonzero(offered), now_mono_s, held_on=held_on, failures=failures
    )
    base = World(
        request=request,
        snapshot=store.snapshot_for(request, held_on=held_on),
        kube=kube,
        selected=np.zeros(store.snapshot.rows, bool),
    )
    look = _Look(decider, judgement, base, Wishes(store, request, said or {}), unix_s)
    unblock, nearest = ((), None) if held_on else look.unblock()
    best = tuple(look.candidate(row) for row in best_rows(judgement, BEST_KEPT).tolist())
    ranks = [store.pool_names[pool] for pool in request.pools] or store.pool_names
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
        best=best,
        own=look.candidate(own) if own >= 0 else None,
        unblock=unblock,
        failed_policies=tuple(sorted(failures.counts)),
        nearest=nearest,
        order=why_first(best, ranks),
        waking=None if held_on or waking is None else look.waking(waking),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """One evaluation while it is told."""

    decider: Decider
    judgement: Judgement
    base: World
    wishes: Wishes
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
        against |= {reason: members for reason, members in self._not_offered() if members.any()}
        if judgement.last is not None and judgement.last.any():
            against[Reason.CHOSEN_BEFORE_NOT_BOUND.text] = judgement.last
        told = [
            RuledOut(reason, int(np.count_nonzero(members)), self.examples(members))
            for reason, members in against.items()
        ]
        return tuple(sorted(told, key=lambda each: (-each.nodes, each.reason)))

    def _not_offered(self) -> Iterator[tuple[str, Mask]]:
        """Nodes that kube-scheduler keeps from it, as far as that is known, each by the first of its reasons."""
        kube = self.base.kube
        left = self.base.snapshot.present & ~self.judgement.offered
        for name, count in self.base.request.units:
            units = self.base.snapshot.units_of(name, self.base.snapshot.units)
            yield f"node has no {name}", left & (units <= 0)
            left &= units > 0
            few = TOO_SMALL if name == GPU_RESOURCE else f"node has too few {name}"
            yield few, left & (units < count)
            left &= units >= count
        for reason, members in (
            (CORDONED, kube.cordoned),
            (UNSELECTED, kube.unselected),
            (TAINTED, kube.tainted),
        ):
            yield reason, left & members
            left &= ~members

    # --- what would unblock it -----------------------------------------------------------------------------------

    def unblock(self) -> tuple[tuple[Hindrance, ...], Nearest | None]:
        exists = self.base.snapshot.present
        if not exists.any():
            return (Hindrance("no_nodes", "There is no node: none is listed by the API server."),), None
        if not (exists & ~self.base.kube.small).any():
            return (self._node_size(),), None
        hindrances = Hindrances(self.decider, self.base, self.judgement, self.wishes, self.unix_s)
        told = hindrances.each()
        if self.judgement.fitting:
            # kube-scheduler may not offer those that fit; what would open others is worth knowing then.
            return (self._fits(), *(each for each in told if each.helps)), None
        nearest = hindrances.nearest()
        if nearest is not None and len(nearest.steps) > 1:
            told.insert(0, _together(nearest))
        return tuple(told), nearest

    def _node_size(self) -> Hindrance:
        snapshot, asked = self.judgement.snapshot, self.base.request.units
        sizes = [snapshot.units_of(name, snapshot.units) for name, _ in asked]
        for (name, count), size in zip(asked, sizes, strict=True):
            largest = int(size.argmax())
            if size[largest] <= 0:
                return Hindrance(
                    "node_size", f"No node has {name}: its allocatable tells, kubectl describe node."
                )
            if size[largest] < count:
                text = (
                    f"No node has {self._said(((name, count),))}; the largest has {size[largest]:g}. "
                    "Ask for fewer, or add a larger node."
                )
                return Hindrance("node_size", text, nodes=(self.name(largest),))
        text = f"No node has {self._said(asked)} together. Ask for less of one of them, or add a node that has all."
        return Hindrance("node_size", text, nodes=self.examples(self.base.kube.small))

    def _said(self, units: Units) -> str:
        return said(self.decider.store, units, snapshot=self.judgement.snapshot)

    def waking(self, waking: Waking) -> Waking:
        """The same, but for a pod that fits only where we observe."""
        observed = ObservedPools(self.decider.store.settings.pools).rows(self.judgement.snapshot)
        only_observed = self.judgement.fitting and not (self.judgement.fits & ~observed).any()
        if only_observed:
            return OBSERVED
        if waking == SOON and self.judgement.fitting:
            # Whoever wakes looks ten times a second, and has not found that it fits where it was offered.
            return IF_OFFERED
        # It fitted when it was looked at last, and does not any more.
        return SOON if waking.before is not None and not self.judgement.fitting else waking

    def _fits(self) -> Hindrance:
        text = (
            "It fits now, by what we know. If the pod goes on waiting, kube-scheduler's own filters keep it from these "
            "nodes (CPU, memory, ports, volumes, other pods): kubectl describe pod tells."
        )
        return Hindrance("none", text, self.judgement.fitting, self.examples(self.judgement.fits))


def _together(nearest: Nearest) -> Hindrance:
    """What the nearest node takes, in one sentence."""
    steps = "; ".join(f"({number}) {step.text}" for number, step in enumerate(nearest.steps, 1))
    return Hindrance(
        "together",
        f"Nearest is {nearest.node}. All of this together lets the pod in there: {steps}.",
        1,
        (nearest.node,),
    )
