"""The decision cycle: filter, score, combine, choose. Pure and vectorised; no loop over nodes.

Precedence of bands, best first (one table, nowhere else):

    | band       | nodes                                                        | answered                        |
    |------------|--------------------------------------------------------------|---------------------------------|
    | FITS       | pass all filters, enough GPUs free by our count              | best pool rank, then score      |
    | LAST       | fit, but were chosen three times for this pod without a bind | only if no node is in FITS      |
    | FULL       | pass all filters; full by our count, offered all the same    | only if none above; no promise  |
    | FULL_LAST  | full, and chosen three times too                             | only if none above; no promise  |
    | never      | a filter gave a reason, or was not offered                   | in the failed maps              |

Within a band: pool rank, then the weighted sum of scores, then a stable hash of the node's name.

Everything here is a column over all rows of the snapshot, with a mask of what was offered: gathering the candidates
costs more than judging a few rows too many, and a node that is named twice is one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy.base import CodeArray, ScoreArray
from scheduler.policy.profiles import NamedFilter, Profile

BAND_FITS, BAND_LAST, BAND_FULL, BAND_FULL_LAST, BAND_NEVER = range(5)
# What kube-scheduler's own scores may still choose among, for pods with soft preferences of their own.
NEAR_BEST_FRAC = 0.02

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What the cycle thinks of the nodes; all columns have the snapshot's rows, shape (rows,).

    `total` is the weighted mean of scores, in [0, 1]. `scores[i]` are the raw scores of policy i.
    """

    snapshot: Snapshot
    """What was judged, valid within this turn."""
    offered: Mask
    codes: CodeArray
    """Reason codes, 0 where no filter objects; for rows that were not offered, too."""
    total: NDArray[np.float64]
    fits: Mask
    """Pass all filters and have room by our count; those that are a last choice, too."""
    full: Mask
    """Likewise, without room."""
    last: Mask | None
    """Last choices of this pod; None if there is none."""
    scores: tuple[ScoreArray, ...]
    policies: tuple[str, ...]
    weights: tuple[float, ...]
    best_band: int
    peers: Mask
    """The best band's best pool rank."""
    choice: int
    """Row of the choice, or -1."""

    @property
    def fitting(self) -> int:
        """How many nodes are in FITS or LAST."""
        return int(np.count_nonzero(self.fits))

    @property
    def failed(self) -> Rows:
        """Rows that were offered and that a filter objects to."""
        return np.flatnonzero(self.offered & (self.codes > 0))

    @property
    def bands(self) -> NDArray[np.uint8]:
        """The band of every row."""
        bands = np.full(len(self.offered), BAND_NEVER, np.uint8)
        for band, members in _bands(self.fits, self.full, self.last):
            bands[members] = band
        return bands


class PolicyFailures:
    """Counts of policies that raised or answered nonsense, by name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, policy: str) -> None:
        """Count one."""
        self.counts[policy] = self.counts.get(policy, 0) + 1


def judge(
    request: PodRequest,
    rows: Rows,
    snapshot: Snapshot,
    profile: Profile,
    filters: Sequence[NamedFilter],
    failures: PolicyFailures,
    *,
    last_choices: Rows | None = None,
    promised_row: int = -1,
) -> Judgement:
    """Judge candidates for one pod.

    Args:
        request: The pod.
        rows: Candidate rows, in any order.
        snapshot: The present state, what only concerns this pod already in it.
        profile: Scores and weights.
        filters: Filter policies in order; the first reason stands.
        failures: Where failing policies are counted.
        last_choices: Rows that were chosen too often without a binding.
        promised_row: The node this pod was promised before: while it fits, the answer stays the same.
    """
    offered = np.zeros(snapshot.rows, bool)
    offered[rows] = True
    codes = _codes(request, snapshot, filters, failures)
    passing = offered & (codes == 0)
    fits = passing & snapshot.has_room(request)
    full = passing ^ fits
    last = None
    if last_choices is not None and len(last_choices):
        last = np.zeros(snapshot.rows, bool)
        last[last_choices] = passing[last_choices]
    names, weights, scores, total = _scores(request, snapshot, profile, failures)
    best_band, peers, choice = BAND_NEVER, fits, -1
    for band, members in _bands(fits, full, last):
        if np.count_nonzero(members):
            best_band = band
            peers = _best_rank(members, snapshot, request.pools)
            # Below any score, so that one maximum serves.
            among = np.where(peers, total, -1.0)
            top = (among == among.max()).nonzero()[0]
            choice = int(top[0]) if len(top) == 1 else int(top[np.argmin(snapshot.name_hash[top])])
            break
    if promised_row >= 0 and fits[promised_row] and (last is None or not last[promised_row]):
        choice = promised_row
    return Judgement(
        snapshot=snapshot,
        offered=offered,
        codes=codes,
        total=total,
        fits=fits,
        last=last,
        full=full,
        scores=scores,
        policies=names,
        weights=weights,
        best_band=best_band,
        peers=peers,
        choice=choice,
    )


def _bands(fits: Mask, full: Mask, last: Mask | None) -> Iterator[tuple[int, Mask]]:
    """The table's bands with their members, best first; those of last choices only where there are some."""
    yield BAND_FITS, fits if last is None else fits & ~last
    if last is not None:
        yield BAND_LAST, fits & last
    yield BAND_FULL, full if last is None else full & ~last
    if last is not None:
        yield BAND_FULL_LAST, full & last


def _codes(
    request: PodRequest, snapshot: Snapshot, filters: Sequence[NamedFilter], failures: PolicyFailures
) -> CodeArray:
    """Ask the filters; one that fails rules nothing out (its nodes are unknown to it, not bad)."""
    codes: CodeArray = np.zeros(snapshot.rows, np.uint8)
    for named in filters:
        try:
            answer = named.policy.filter(request, snapshot)
            if answer.shape != (snapshot.rows,) or answer.dtype != np.uint8:
                raise ValueError("not one reason code a row")
        except Exception:  # noqa: BLE001 - the boundary around one policy's call (docs/architecture.md, 5.7)
            failures.add(named.name)
            continue
        if np.count_nonzero(answer):
            codes = np.where(codes == 0, answer, codes)
    return codes


def _scores(
    request: PodRequest, snapshot: Snapshot, profile: Profile, failures: PolicyFailures
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[ScoreArray, ...], NDArray[np.float64]]:
    """Ask the scores: names, shares of the weight, raw scores, and their sum.

    One that fails is left out, and so is one that does not apply: what it would say of all nodes alike would only
    bring their sums nearer to each other.
    """
    names: list[str] = []
    weights: list[float] = []
    scores: list[ScoreArray] = []
    for weighted in profile.scores:
        try:
            if weighted.conditional is not None and not weighted.conditional.applies(request, snapshot):
                continue
            score = weighted.policy.score(request, snapshot)
            if not _sound(score, snapshot.rows):
                raise ValueError("not finite in [0, 1]")
        except Exception:  # noqa: BLE001 - likewise
            failures.add(weighted.name)
            continue
        names.append(weighted.name)
        weights.append(weighted.weight)
        scores.append(score)
    weight_sum = sum(weights) or 1.0
    shares = tuple(weight / weight_sum for weight in weights)
    total = np.zeros(snapshot.rows, np.float64)
    for share, score in zip(shares, scores, strict=True):
        # In double precision, in this order: the record's terms then add up to the very same number.
        total += np.multiply(score, share, dtype=np.float64)
    return tuple(names), shares, tuple(scores), total


def _best_rank(members: Mask, snapshot: Snapshot, pools: Sequence[int]) -> Mask:
    # A step per pool, of which there are a handful; ranks beyond the first that has members are never looked at.
    for pool in pools or range(len(snapshot.pool_sizes)):
        in_rank: Mask = members & (snapshot.pool == pool)
        if np.count_nonzero(in_rank):
            return in_rank
    return members


def near_best(judgement: Judgement) -> Rows:
    """Rows within 2 % of the best score among its peers: what kube-scheduler's own scores may choose from."""
    if judgement.choice < 0:
        return np.empty(0, np.intp)
    floor = judgement.total[judgement.choice] * (1 - NEAR_BEST_FRAC)
    return np.flatnonzero(judgement.peers & (judgement.total >= floor))


def best_rows(judgement: Judgement, count: int) -> Rows:
    """The best few rows by band and score, the choice first; a row that a filter objects to never."""
    if judgement.choice < 0:
        return np.empty(0, np.intp)
    candidates = judgement.fits if judgement.last is None else judgement.fits & ~judgement.last
    key = np.where(candidates, judgement.total, -np.inf)
    if np.count_nonzero(candidates) < count:
        bands = judgement.bands
        candidates = bands < BAND_NEVER
        # A band weighs more than any score; scores are 0 to 1.
        key = np.where(candidates, judgement.total - 2.0 * bands, -np.inf)
        count = min(count, int(np.count_nonzero(candidates)))
    # Pool rank and hash are in the choice already; the rest is for people to compare it with.
    key[judgement.choice] = np.inf
    # partition is several times faster than argpartition on thousands of near-ties (numpy 2.4, 5,000 keys).
    bound = np.partition(key, len(key) - count)[len(key) - count]
    top = np.flatnonzero(key >= bound)
    return top[np.argsort(-key[top], kind="stable")][:count]


def _sound(score: ScoreArray, rows: int) -> bool:
    # NaN fails both comparisons.
    return score.shape == (rows,) and (rows == 0 or (float(score.min()) >= 0 and float(score.max()) <= 1))
