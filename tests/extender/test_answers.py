"""Answers, as kube-scheduler reads them: each gathered one equals the same thing written plainly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.extender.answers import (
    Fragments,
    bind_answer,
    filter_all_answer,
    filter_answer,
    filter_nodes_answer,
    preempt_answer,
    prioritize_answer,
    scaled,
)
from scheduler.extender.wire import Victims, read_filter

REASONS = ["", "node unknown to wattbalance", 'waiting, for "pool" dc-1', "waiting for pool ä"]
NONE = np.empty(0, np.intp)


def rows(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array(numbers, np.intp)


def codes(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.array(numbers, np.uint8)


def test_filter_names_the_kept_and_both_kinds_of_failed_nodes() -> None:
    fragments = Fragments(["a", "bb", "ccc", "d"], REASONS)
    answer = filter_answer(
        fragments,
        kept_rows=rows(3),
        failed_rows=rows(2, 0),
        failed_codes=codes(1, 2),
        unresolvable=np.array([True, False]),
        unknown_names=['odd"\\name', "ü"],
        unknown_text="who, is this",
    )
    unknown = {'odd"\\name': "who, is this", "ü": "who, is this"}
    want_answer = {
        "Nodes": None,
        "NodeNames": ["d"],
        "FailedNodes": {"ccc": REASONS[1], "a": REASONS[2], **unknown},
        "FailedAndUnresolvableNodes": {"ccc": REASONS[1], **unknown},
        "Error": "",
    }
    assert json.loads(answer) == want_answer
    # Go's casing and order, as types.go has them.
    assert list(json.loads(answer)) == list(want_answer)


def test_filter_with_nothing_to_say_still_sends_a_list() -> None:
    answer = filter_answer(
        Fragments([], []),
        kept_rows=NONE,
        failed_rows=NONE,
        failed_codes=codes(),
        unresolvable=np.empty(0, bool),
    )
    assert json.loads(answer) == {
        "Nodes": None,
        "NodeNames": [],
        "FailedNodes": {},
        "FailedAndUnresolvableNodes": {},
        "Error": "",
    }


def test_all_reason_codes_can_be_used() -> None:
    texts = [f"waiting for pool dc-{code}" for code in range(256)]
    every = np.arange(256, dtype=np.intp)
    fragments = Fragments([f"n{row}" for row in range(256)], texts)
    answer = filter_answer(
        fragments,
        kept_rows=NONE,
        failed_rows=every,
        failed_codes=every.astype(np.uint8),
        unresolvable=np.zeros(256, bool),
    )
    assert json.loads(answer)["FailedNodes"] == {f"n{code}": text for code, text in enumerate(texts)}
    assert json.loads(answer)["FailedAndUnresolvableNodes"] == {}


def test_rows_without_a_node_never_reach_an_answer() -> None:
    fragments = Fragments([None, "a", None], REASONS)
    answer = filter_answer(
        fragments,
        kept_rows=rows(0, 1, 2),
        failed_rows=rows(1, 2),
        failed_codes=codes(1, 1),
        unresolvable=np.array([True, True]),
    )
    assert json.loads(answer)["NodeNames"] == ["a"]
    assert json.loads(answer)["FailedNodes"] == {"a": REASONS[1]}
    assert json.loads(prioritize_answer(fragments, rows(0, 1), codes(3, 4))) == [{"Host": "a", "Score": 4}]


def test_one_very_long_name_does_not_widen_the_answer_of_all() -> None:
    names = [f"gpu-{number:04d}" for number in range(1000)]
    every = np.arange(1001, dtype=np.intp)
    ones = np.ones(1001, np.uint8)
    with_long = Fragments([*names, "x" * 253], REASONS)
    answer = prioritize_answer(with_long, every, ones)
    want_answer = [{"Host": name, "Score": 1} for name in [*names, "x" * 253]]
    assert json.loads(answer) == want_answer
    assert len(answer) <= len(json.dumps(want_answer))


NAMES = st.lists(
    st.none()
    | st.text(st.characters(codec="utf-8"), max_size=60)
    | st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(names=NAMES, data=st.data())
def test_gathered_answers_equal_plainly_written_ones(names: list[str | None], data: st.DataObject) -> None:
    named = [row for row, name in enumerate(names) if name is not None]
    kept = data.draw(st.lists(st.sampled_from(named), unique=True)) if named else []
    failed = data.draw(st.permutations([row for row in named if row not in kept]))
    why = data.draw(st.lists(st.integers(0, len(REASONS) - 1), min_size=len(failed), max_size=len(failed)))
    never = data.draw(st.lists(st.booleans(), min_size=len(failed), max_size=len(failed)))
    unknown = data.draw(
        st.lists(st.text(st.characters(codec="utf-8")).filter(lambda n: n not in names), unique=True)
    )
    fragments = Fragments(names, REASONS)

    answer = json.loads(
        filter_answer(
            fragments,
            kept_rows=rows(*kept),
            failed_rows=rows(*failed),
            failed_codes=codes(*why),
            unresolvable=np.array(never, bool),
            unknown_names=unknown,
            unknown_text="?",
        )
    )
    want_unknown = dict.fromkeys(unknown, "?")
    assert answer["NodeNames"] == [names[row] for row in kept]
    assert (
        answer["FailedNodes"]
        == {names[row]: REASONS[code] for row, code in zip(failed, why, strict=True)} | want_unknown
    )
    assert (
        answer["FailedAndUnresolvableNodes"]
        == {names[row]: REASONS[code] for row, code, out in zip(failed, why, never, strict=True) if out}
        | want_unknown
    )

    scores = data.draw(st.lists(st.integers(0, 10), min_size=len(kept), max_size=len(kept)))
    want_scores = [{"Host": names[row], "Score": score} for row, score in zip(kept, scores, strict=True)]
    want_scores += [{"Host": name, "Score": 0} for name in unknown]
    assert json.loads(prioritize_answer(fragments, rows(*kept), codes(*scores), unknown)) == want_scores


def test_scores_beyond_ten_are_ten() -> None:
    answer = prioritize_answer(Fragments(["a", "b"], REASONS), rows(0, 1), codes(255, 10))
    assert [item["Score"] for item in json.loads(answer)] == [10, 10]


@pytest.mark.parametrize(
    ("score", "want_score"),
    [(0.0, 0), (1.0, 10), (0.5, 5), (0.96, 10), (2.0, 10), (-1.0, 0), (float("nan"), 0), (float("inf"), 10)],
)
def test_scores_are_scaled_to_whole_tenths(score: float, want_score: int) -> None:
    assert scaled(np.array([score], np.float32)).tolist() == [want_score]


POD = {"metadata": {"name": "p"}}
OFFERED = [{"metadata": {"name": name}, "status": {"nodeInfo": {"arch": name}}} for name in ("a", "b", "c")]


def test_whole_nodes_go_back_as_they_came() -> None:
    offered = read_filter(json.dumps({"Pod": POD, "Nodes": {"items": OFFERED}}).encode()).nodes
    assert offered is not None
    answer = filter_nodes_answer(offered, kept=[2, 0], failed={"b": "no"}, unresolvable={"b": "no"})
    assert json.loads(answer) == {
        "Nodes": {"metadata": {}, "items": [OFFERED[2], OFFERED[0]]},
        "NodeNames": ["c", "a"],
        "FailedNodes": {"b": "no"},
        "FailedAndUnresolvableNodes": {"b": "no"},
        "Error": "",
    }


@pytest.mark.parametrize("asked", [{"NodeNames": ["a", "unknown"]}, {"Nodes": {"items": OFFERED}}])
def test_everything_offered_can_be_given_back(asked: dict[str, object]) -> None:
    args = read_filter(json.dumps({"Pod": POD, **asked}).encode())
    answer = json.loads(filter_all_answer(args))
    assert answer["NodeNames"] == args.names
    assert (answer["Nodes"] is None) == ("Nodes" not in asked)
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}


def test_preempt_answers_by_uid() -> None:
    kept = {"a": Victims(uids=["v1", "v2"], pdb_violations=1), "b": Victims(uids=[])}
    assert json.loads(preempt_answer(kept)) == {
        "NodeNameToMetaVictims": {
            "a": {"Pods": [{"UID": "v1"}, {"UID": "v2"}], "NumPDBViolations": 1},
            "b": {"Pods": [], "NumPDBViolations": 0},
        }
    }
    assert json.loads(preempt_answer({})) == {"NodeNameToMetaVictims": {}}


def test_bind_answers_success_with_an_empty_error() -> None:
    assert json.loads(bind_answer()) == {"Error": ""}
    assert json.loads(bind_answer('node "a" was cordoned')) == {"Error": 'node "a" was cordoned'}
