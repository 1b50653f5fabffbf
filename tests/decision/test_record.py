"""What a decision's record says to a person, in the log."""

from __future__ import annotations

import json
import logging
from typing import Any

from scheduler.core import log
from scheduler.core.log import kv
from scheduler.decision.record import DecisionLog, DecisionRecord, Ranked, Weighed


def record(**fields: Any) -> DecisionRecord:
    best = tuple(
        Ranked(node=f"n{number}", score=0.9 - number / 10, pool="dc", free_gpus=8.0, scores=(0.5, 0.25))
        for number in range(10)
    )
    values: dict[str, Any] = {
        "cycle": "ab-1",
        "unix_s": 1000.0,
        "verb": "filter",
        "namespace": "ml",
        "pod": "train-0",
        "uid": "u",
        "profile": "training",
        "placement": "decisive",
        "gpus": 4,
        "resources": {"nvidia.com/gpu": 4.0},
        "asked": 1200,
        "fitting": 15,
        "chosen": "n1",
        "result": "placed",
        "reserved": True,
        "reasons": {"node in quarantine": 3, "waiting for pool dc-1": 1182},
        "policies": (Weighed(policy="pack", weight=0.75), Weighed(policy="least-loaded", weight=0.25)),
        "best": best,
    }
    return DecisionRecord(**values | fields)


def logged(told: DecisionRecord) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "verbs", "msg": "decision", **kv(decision=told)})


def test_a_text_log_tells_a_decision_in_a_line_that_a_person_reads() -> None:
    line = log.TextFormatter().format(logged(record()))
    want = (
        "decision  ml/train-0 -> n1; placed, promised; filter, profile training, decisive; score 0.800; 1200 asked, 15 "
        "fit; 1182 waiting for pool dc-1; 3 node in quarantine; cycle ab-1"
    )
    assert line.endswith(want)


def test_a_decision_without_a_node_says_so() -> None:
    line = record(chosen="", result="no_fit", reserved=False, fitting=0, best=(), reasons={}).in_words()
    assert (
        line
        == "ml/train-0 -> no node; no_fit; filter, profile training, decisive; 1200 asked, 0 fit; cycle ab-1"
    )


def test_the_terms_of_the_ten_best_stand_in_the_json_log() -> None:
    told = json.loads(log.JsonFormatter().format(logged(record())))["decision"]
    assert [each["scores"] for each in told["best"]] == [[0.5, 0.25]] * 10
    assert told["reasons"] == {"node in quarantine": 3, "waiting for pool dc-1": 1182}


def test_the_last_ten_thousand_are_kept() -> None:
    kept = DecisionLog()
    for number in range(10_002):
        kept.add(record(uid=f"u{number}"))
    assert len(kept) == 10_000
    assert [kept.of_pod(uid) is None for uid in ("u0", "u1", "u2")] == [True, True, False]
