"""The cycle: bands, ranks, scores and ties; and policies that fail."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.cluster.snapshot import Snapshot
from scheduler.cluster.store import Store
from scheduler.core.nouns import Placement, PodRequest, PoolSpec, Reason, Workload
from scheduler.decision.cycle import (
    BAND_FITS,
    BAND_FULL,
    BAND_FULL_LAST,
    BAND_LAST,
    BAND_NEVER,
    Judgement,
    PolicyFailures,
    Rows,
    best_rows,
    judge,
    near_best,
)
from scheduler.policy.profiles import NamedFilter, Profile, Weighted
from tests.builders import all_rows, make_pod, make_request, make_store, see_node, see_pod

POOLS = (
    PoolSpec(name="first", selector={"pool": "first"}),
    PoolSpec(name="second", selector={"pool": "second"}),
)


class ByNode:
    """A score, or a filter, that says what the test wants of each row."""

    def __init__(self, store: Store, values: dict[str, float], default: float = 0.0) -> None:
        self.store, self.values, self.default = store, values, default

    def score(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.float32]:
        answer = np.full(snapshot.rows, self.default, np.float32)
        for name, value in self.values.items():
            answer[self.store.rows[name]] = value
        return answer

    def filter(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.uint8]:
        return self.score(request, snapshot).astype(np.uint8)


class Answers:
    """A policy that answers whatever it was given, or raises it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def score(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.float32]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]  # nonsense is what it is for

    def filter(self, request: PodRequest, snapshot: Snapshot) -> NDArray[np.uint8]:
        return self.score(request, snapshot)  # type: ignore[return-value]  # likewise


def profile_of(*scores: Weighted) -> Profile:
    return Profile(
        name="p", workload=Workload.BATCH, placement=Placement.DECISIVE, expected_load=0.9, scores=scores
    )


def store_with(*names: str, gpus: int = 8) -> Store:
    store = make_store(POOLS)
    for name in names:
        see_node(store, name, gpus)
    return store


def judged(
    store: Store,
    scores: dict[str, float] | None = None,
    *,
    request: PodRequest | None = None,
    refused: dict[str, float] | None = None,
    last: list[str] | None = None,
    promised: str = "",
    rows: Rows | None = None,
) -> Judgement:
    return judge(
        request or make_request(),
        all_rows(store) if rows is None else rows,
        store.snapshot,
        profile_of(Weighted("s", 1.0, ByNode(store, scores or {}))),
        [NamedFilter("f", ByNode(store, refused or {}))],
        PolicyFailures(),
        last_choices=np.array([store.rows[n] for n in last], np.intp) if last else None,
        promised_row=store.rows.get(promised, -1),
    )


def chosen(store: Store, judgement: Judgement) -> str:
    return (store.names[judgement.choice] or "") if judgement.choice >= 0 else ""


def test_a_node_that_fits_beats_a_last_choice_beats_a_full_one_whatever_their_scores() -> None:
    store = store_with("fits", "full", "last", "never")
    see_pod(store, make_pod("x", gpus=8, node="full"))
    scores = {"fits": 0.1, "last": 0.5, "full": 0.9, "never": 1.0}
    refused = {"never": float(Reason.QUARANTINED)}
    judgement = judged(store, scores, refused=refused, last=["last"])
    want_bands = [BAND_FITS, BAND_FULL, BAND_LAST, BAND_NEVER]
    assert judgement.bands[all_rows(store)].tolist() == want_bands
    assert chosen(store, judgement) == "fits"
    refused["fits"] = float(Reason.BROKEN_GPUS)
    assert chosen(store, judged(store, scores, refused=refused, last=["last"])) == "last"
    refused["last"] = float(Reason.BROKEN_GPUS)
    assert chosen(store, judged(store, scores, refused=refused, last=["last"])) == "full"
    refused["full"] = float(Reason.BROKEN_GPUS)
    assert chosen(store, judged(store, scores, refused=refused, last=["last"])) == ""


def test_a_full_node_that_was_a_last_choice_too_comes_after_other_full_ones() -> None:
    store = store_with("n1", "n2")
    for name in ("n1", "n2"):
        see_pod(store, make_pod(f"on-{name}", gpus=8, node=name))
    judgement = judged(store, {"n1": 0.9, "n2": 0.1}, last=["n1"])
    assert judgement.bands[all_rows(store)].tolist() == [BAND_FULL_LAST, BAND_FULL]
    assert chosen(store, judgement) == "n2"
    assert chosen(store, judged(store, last=["n1", "n2"])) in {"n1", "n2"}


def test_an_earlier_pool_beats_a_better_score_and_default_comes_last() -> None:
    store = make_store(POOLS)
    see_node(store, "a-default")
    see_node(store, "b-second", labels={"pool": "second"})
    see_node(store, "c-first", labels={"pool": "first"})
    scores = {"a-default": 1.0, "b-second": 0.9, "c-first": 0.1}
    assert chosen(store, judged(store, scores)) == "c-first"
    see_pod(store, make_pod("x", gpus=8, node="c-first"))
    assert chosen(store, judged(store, scores)) == "b-second"
    see_pod(store, make_pod("y", gpus=8, node="b-second"))
    assert chosen(store, judged(store, scores)) == "a-default"


def test_within_a_rank_the_higher_score_wins() -> None:
    store = store_with("a", "b", "c")
    assert chosen(store, judged(store, {"a": 0.2, "b": 0.7, "c": 0.6})) == "b"


def test_equal_scores_are_decided_by_the_smallest_name_hash() -> None:
    names = [f"node-{i}" for i in range(20)]
    store = store_with(*names)
    want_node = min(names, key=lambda name: zlib.crc32(name.encode()))
    assert chosen(store, judged(store)) == want_node


def test_two_names_of_the_same_hash_still_give_one_choice() -> None:
    # Both are 0x4DDB0C25: crc32 is short, so equal hashes do happen in large clusters.
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    store = store_with("plumless", "buckeroo")
    assert chosen(store, judged(store)) in {"plumless", "buckeroo"}


@given(st.data())
def test_the_order_of_candidates_and_of_arrival_changes_nothing(data: st.DataObject) -> None:
    names = [f"node-{i}" for i in range(6)]
    # Few distinct values, so that ties are the rule.
    scores = {name: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for name in names}
    pools = {name: data.draw(st.sampled_from(["", "first", "second"])) for name in names}
    answers = set()
    for _ in range(3):
        store = make_store(POOLS)
        for name in data.draw(st.permutations(names)):
            see_node(store, name, labels={"pool": pools[name]})
        rows = np.array(data.draw(st.permutations(all_rows(store).tolist())), np.intp)
        answers.add(chosen(store, judged(store, scores, rows=rows)))
    assert len(answers) == 1


def test_the_first_reason_stands() -> None:
    store = store_with("n1")
    filters = [
        NamedFilter("one", ByNode(store, {"n1": float(Reason.QUARANTINED)})),
        NamedFilter("two", ByNode(store, {"n1": float(Reason.BROKEN_GPUS)})),
    ]
    profile = profile_of()
    judgement = judge(make_request(), all_rows(store), store.snapshot, profile, filters, PolicyFailures())
    assert judgement.codes[all_rows(store)].tolist() == [Reason.QUARANTINED]


def test_a_promised_node_is_answered_again_while_it_fits_and_no_longer() -> None:
    store = store_with("better", "promised")
    scores = {"better": 0.9, "promised": 0.1}
    assert chosen(store, judged(store, scores, promised="promised")) == "promised"
    refused = {"promised": float(Reason.QUARANTINED)}
    assert chosen(store, judged(store, scores, promised="promised", refused=refused)) == "better"
    only_better = np.array([store.rows["better"]], np.intp)
    assert chosen(store, judged(store, scores, promised="promised", rows=only_better)) == "better"


def test_a_node_named_twice_is_one_node() -> None:
    store = store_with("a", "b")
    see_pod(store, make_pod("x", gpus=8, node="b"))
    twice = np.array([store.rows["a"], store.rows["b"], store.rows["a"]], np.intp)
    judgement = judged(store, rows=twice)
    assert judgement.fitting == 1
    assert best_rows(judgement, 10).tolist() == [store.rows["a"], store.rows["b"]]


def test_the_best_rows_go_on_into_later_bands_and_leave_out_who_may_never() -> None:
    store = store_with("fits", "full", "last", "never", "elsewhere")
    see_pod(store, make_pod("x", gpus=8, node="full"))
    scores = {"fits": 0.1, "last": 0.5, "full": 0.9, "never": 1.0, "elsewhere": 1.0}
    refused = {"never": float(Reason.QUARANTINED)}
    rows = np.array([row for name, row in store.rows.items() if name != "elsewhere"], np.intp)
    best = best_rows(judged(store, scores, refused=refused, last=["last"], rows=rows), 10)
    assert [store.names[row] for row in best.tolist()] == ["fits", "last", "full"]


def test_no_candidates_are_no_error() -> None:
    store = store_with("n1")
    judgement = judged(store, rows=np.empty(0, np.intp))
    assert judgement.choice == -1
    assert not len(near_best(judgement))
    assert not len(best_rows(judgement, 10))


NONSENSE = {
    "raises": RuntimeError("bug"),
    "too short": np.zeros(1, np.float32),
    "two-dimensional": np.zeros((64, 1), np.float32),
    "a scalar": 0.5,
    "none": None,
    "a list": [0.5] * 64,
}


@pytest.mark.parametrize(
    "answer",
    [
        *NONSENSE.values(),
        np.full(64, np.nan, np.float32),
        np.full(64, 1.5, np.float32),
        np.full(64, -0.1, np.float32),
    ],
    ids=[*NONSENSE, "NaN", "above one", "below zero"],
)
def test_a_failing_score_is_counted_and_dropped_and_the_others_decide(answer: object) -> None:
    store = store_with("a", "b")
    assert store.snapshot.rows == 64
    good = Weighted("good", 1.0, ByNode(store, {"a": 0.2, "b": 0.8}))
    failures = PolicyFailures()
    profile = profile_of(Weighted("bad", 3.0, Answers(answer)), good)
    judgement = judge(make_request(), all_rows(store), store.snapshot, profile, [], failures)
    assert failures.counts == {"bad": 1}
    assert judgement.policies == ("good",)
    assert judgement.weights == (1.0,), "the rest weighs as if it had stood alone"
    assert judgement.total[all_rows(store)].tolist() == pytest.approx([0.2, 0.8])


class Sometimes(ByNode):
    """A score that may have nothing to say."""

    def applies(self, request: PodRequest, snapshot: Snapshot) -> bool:
        del snapshot
        return request.gpus > 1


def test_a_score_that_does_not_apply_is_left_out_and_counts_as_no_failure() -> None:
    store = store_with("a", "b")
    failures = PolicyFailures()
    profile = profile_of(
        Weighted("always", 1.0, ByNode(store, {"a": 0.2, "b": 0.8})),
        Weighted("sometimes", 3.0, Sometimes(store, {"a": 1.0, "b": 0.0})),
    )

    def of(gpus: int) -> Judgement:
        request = make_request(gpus=gpus)
        return judge(request, all_rows(store), store.snapshot, profile, [], failures)

    assert (of(1).policies, of(1).weights, chosen(store, of(1))) == (("always",), (1.0,), "b")
    assert of(1).total[all_rows(store)].tolist() == pytest.approx([0.2, 0.8])
    assert (of(2).policies, of(2).weights, chosen(store, of(2))) == (
        ("always", "sometimes"),
        (0.25, 0.75),
        "a",
    )
    assert failures.counts == {}


def test_with_every_score_failing_the_name_hash_still_chooses() -> None:
    store = store_with("a", "b")
    failures = PolicyFailures()
    profile = profile_of(Weighted("bad", 1.0, Answers(ValueError())))
    judgement = judge(make_request(), all_rows(store), store.snapshot, profile, [], failures)
    assert chosen(store, judgement) == min("ab", key=lambda name: zlib.crc32(name.encode()))


@pytest.mark.parametrize(
    "answer",
    [*NONSENSE.values(), np.full(64, np.nan), np.full(64, 2.0)],
    ids=[*NONSENSE, "NaN", "numbers that are no codes"],
)
def test_a_failing_filter_is_counted_and_rules_nothing_out(answer: object) -> None:
    store = store_with("a", "b")
    filters = [
        NamedFilter("bad", Answers(answer)),
        NamedFilter("good", ByNode(store, {"a": float(Reason.QUARANTINED)})),
    ]
    failures = PolicyFailures()
    judgement = judge(make_request(), all_rows(store), store.snapshot, profile_of(), filters, failures)
    assert failures.counts == {"bad": 1}
    assert judgement.codes[all_rows(store)].tolist() == [Reason.QUARANTINED, 0]
    assert judgement.codes.dtype == np.uint8


def test_near_best_are_those_within_two_percent_in_the_best_rank() -> None:
    store = make_store(POOLS)
    for name, pool in (("a", "first"), ("b", "first"), ("c", "first"), ("d", "second")):
        see_node(store, name, labels={"pool": pool})
    judgement = judged(store, {"a": 1.0, "b": 0.985, "c": 0.97, "d": 1.0})
    near = {store.names[row] for row in near_best(judgement).tolist()}
    assert near == {"a", "b"}


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    st.lists(st.floats(0.001, 100), min_size=1, max_size=6),
    st.data(),
)
def test_scores_stay_in_range_and_terms_add_up_exactly(
    values: list[float], weights: list[float], data: st.DataObject
) -> None:
    names = [f"n{i}" for i in range(len(values))]
    store = store_with(*names)
    policies = [
        ByNode(store, dict(zip(names, data.draw(st.permutations(values)), strict=True))) for _ in weights
    ]
    scores = [Weighted(f"s{i}", w, p) for i, (w, p) in enumerate(zip(weights, policies, strict=True))]
    judgement = judge(
        make_request(), all_rows(store), store.snapshot, profile_of(*scores), [], PolicyFailures()
    )
    for row in all_rows(store).tolist():
        total = 0.0
        for score, weight in zip(judgement.scores, judgement.weights, strict=True):
            total += float(score[row]) * weight
        assert total == judgement.total[row], "not approximately: the record shows what was added"
    assert judgement.total.min() >= 0
    assert judgement.total.max() <= 1 + 1e-12
    assert judgement.total[judgement.choice] == judgement.total[all_rows(store)].max()
    best = best_rows(judgement, 10)
    assert best[0] == judgement.choice
    assert len(set(best.tolist())) == min(10, len(names))
