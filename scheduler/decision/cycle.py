"""The decision cycle: filter, score, combine, choose. Pure and vectorised; no loop over nodes.

Precedence of bands, best first (one table, nowhere else):

    | band       | nodes                                                        | answered                        |
    |------------|--------------------------------------------------------------|---------------------------------|
    | FITS       | pass all filters, enough GPUs free by our count              | best pool rank, then score      |
    | LAST       | fit, but were chosen three times for this pod without a bind | only if no node is in FITS      |
    | FULL       | pass all filters; full by our count, offered all the same    | only if none above; no promise  |
    | never      | a filter gave a reason                                       | in the failed maps              |

Within a band: pool rank, then the weighted sum of scores, then a stable hash of the node's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.core.nouns import PodRequest
from scheduler.policy.base import CodeArray, ScoreArray
from scheduler.policy.profiles import NamedFilter, Profile

BAND_FITS, BAND_LAST, BAND_FULL, BAND_NEVER = 0, 1, 2, 3
# What kube-scheduler's own scores may still choose among, for pods with soft preferences of their own.
NEAR_BEST_FRAC = 0.02

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What the cycle thinks of the candidates; all arrays are parallel to `rows`, shape (candidates,).

    `total` is the weighted mean of scores, in [0, 1]. `terms[i]` are the raw scores of policy i for the candidates.
    `best` is in the best band and pool rank, best first by (score, name hash); `best[0]` is the choice.
    """

    rows: Rows
    codes: CodeArray
    bands: NDArray[np.uint8]
    total: NDArray[np.float64]
    free_gpus: NDArray[np.float32]
    scores: tuple[ScoreArray, ...]
    policies: tuple[str, ...]
    weights: tuple[float, ...]
    best_band: int
    peers: Rows
    """Positions (into `rows`) of the best band's best pool rank, unordered."""
    choice: int
    """Position of the choice, or -1."""

    @property
    def chosen_row(self) -> int:
        """Row of the choice, or -1."""
        return int(self.rows[self.choice]) if self.choice >= 0 else -1


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
        rows: Candidate rows, each once.
        snapshot: The present state, what only concerns this pod already in it.
        profile: Scores and weights.
        filters: Filter policies in order; the first reason stands.
        failures: Where failing policies are counted.
        last_choices: Rows that were chosen too often without a binding.
        promised_row: The node this pod was promised before: while it fits, the answer stays the same.
    """
    # 1. Filters, over all rows; a filter that fails rules nothing out (its nodes are unknown to it, not bad).
    codes = np.zeros(snapshot.rows, np.uint8)
    for named in filters:
        try:
            answer = named.policy.filter(request, snapshot)
            if answer.shape != (snapshot.rows,) or answer.dtype != np.uint8:
                raise ValueError("not one reason code a row")
        except Exception:  # noqa: BLE001 - the boundary around one policy call (docs/style: one policy never stops us)
            failures.add(named.name)
            continue
        codes = np.where(codes == 0, answer, codes)
    # 2. Scores, over all rows; one that fails is dropped from the sum.
    total_all = np.zeros(snapshot.rows, np.float64)
    names: list[str] = []
    weights: list[float] = []
    scores: list[ScoreArray] = []
    for weighted in profile.scores:
        try:
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
    for weight, score in zip(weights, scores, strict=True):
        # In double precision, in this order: the record's terms then add up to the very same number.
        total_all += score.astype(np.float64) * (weight / weight_sum)
    # 3. Gather the candidates, once.
    cand_codes = codes[rows]
    total = total_all[rows]
    bands = np.where(cand_codes > 0, np.uint8(BAND_NEVER), np.uint8(BAND_FITS))
    bands[(bands == BAND_FITS) & (snapshot.free_gpus[rows] < request.gpus)] = BAND_FULL
    if last_choices is not None and len(last_choices):
        bands[(bands == BAND_FITS) & np.isin(rows, last_choices)] = BAND_LAST
    # 4. Choose: band, pool rank, score, name hash.
    best_band = int(bands.min()) if len(bands) else BAND_NEVER
    peers = np.empty(0, np.intp)
    choice = -1
    if best_band < BAND_NEVER:
        peers = np.flatnonzero(bands == best_band)
        ranks = snapshot.pool[rows[peers]]
        peers = peers[ranks == ranks.min()]
        top = peers[total[peers] == total[peers].max()]
        choice = int(top[np.argmin(snapshot.name_hash[rows[top]])])
    if promised_row >= 0 and best_band == BAND_FITS:
        again = np.flatnonzero((rows == promised_row) & (bands == BAND_FITS))
        choice = int(again[0]) if len(again) else choice
    return Judgement(
        rows=rows,
        codes=cand_codes,
        bands=bands,
        total=total,
        free_gpus=snapshot.free_gpus[rows],
        scores=tuple(score[rows] for score in scores),
        policies=tuple(names),
        weights=tuple(w / weight_sum for w in weights),
        best_band=best_band,
        peers=peers,
        choice=choice,
    )


def near_best(judgement: Judgement) -> Rows:
    """Positions within 2 % of the best score among its peers: what kube-scheduler's own scores may choose from."""
    if judgement.choice < 0:
        return np.empty(0, np.intp)
    floor = judgement.total[judgement.choice] * (1 - NEAR_BEST_FRAC)
    near: Rows = judgement.peers[judgement.total[judgement.peers] >= floor]
    return near


def best_positions(judgement: Judgement, count: int) -> Rows:
    """Positions of the best few candidates by band and score, the choice first."""
    if not len(judgement.rows):
        return np.empty(0, np.intp)
    key = judgement.total - judgement.bands.astype(np.float32) * 2
    if judgement.choice >= 0:
        # Pool rank and hash are in the choice already; the rest is for people to compare it with.
        key[judgement.choice] = np.inf
    count = min(count, len(key))
    # partition is several times faster than argpartition on thousands of near-ties (numpy 2.4, 5,000 keys).
    bound = np.partition(key, len(key) - count)[len(key) - count]
    above = np.flatnonzero(key > bound)
    top = np.concatenate([above, np.flatnonzero(key == bound)[: count - len(above)]])
    return top[np.argsort(-key[top], kind="stable")]


def _sound(score: ScoreArray, rows: int) -> bool:
    # NaN fails both comparisons.
    return score.shape == (rows,) and (rows == 0 or (float(score.min()) >= 0 and float(score.max()) <= 1))
