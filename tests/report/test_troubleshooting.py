"""That docs/troubleshooting.md knows each word that we print about trouble, and no metric that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.core.nouns import REASON_TEXTS, Reason
from scheduler.facts import DEGRADED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.FITS])
def test_each_reason_against_a_node_is_explained(reason: Reason) -> None:
    # The pool's own name follows.
    want_text = f"{reason.text} NAME" if reason is Reason.WAITING_FOR_POOL else REASON_TEXTS[reason]
    assert want_text in NAMED


@pytest.mark.parametrize("word", DEGRADED)
def test_each_word_of_what_is_degraded_is_explained(word: str) -> None:
    assert NAMED & {word, f"degraded: {word}"}


def test_each_metric_that_it_names_is_there() -> None:
    named = {word for word in NAMED if re.fullmatch(r"wattbalance_\w+", word)}
    assert named
    missing = [word for word in sorted(named) if f"`{word}`" not in METRICS]
    assert missing == []
