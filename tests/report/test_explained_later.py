"""What is said and nothing acts on yet is named in explain with the feature that will, and is read and checked now."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scheduler.client.tables import print_explanation
from scheduler.cluster.annotations import TABLE
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PREFIX
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation
from tests.builders import make_decider, make_pod, make_store, see_node, see_pod

# What does not count without another.
BESIDE = {"gang": "gang-size", "gang-size": "gang", "max-latency": "client-region"}
# What places a pod today.
WANT_ACTED_ON = {"workload", "pools", "gpu-model", "gpu-memory"}


async def explained(said: dict[str, str]) -> tuple[Explanation, str]:
    """Of a pod that says this: what the API answers, and what a person reads."""
    store, clock = make_store(), ManualClock()
    see_node(store)
    see_pod(store, make_pod(annotations={PREFIX + key: text for key, text in said.items()}))
    told = await Explainer(make_decider(store), clock, lambda: "leader").explain("team-a", "p1")
    assert isinstance(told, Explanation)
    out = Console(file=io.StringIO(), width=1000)
    print_explanation(out, told, wide=False)
    assert isinstance(out.file, io.StringIO)
    return told, out.file.getvalue()


@pytest.mark.parametrize("key", TABLE)
async def test_a_key_is_acted_on_or_named_with_the_feature_that_will(key: str) -> None:
    said = {each: TABLE[each].examples[0] for each in (key, BESIDE.get(key, key))}
    told, text = await explained(said)
    [found] = [each for each in told.annotations if each.key == key]
    assert found.problem == ""
    assert bool(found.not_yet) is (key not in WANT_ACTED_ON)
    [line] = [each for each in text.splitlines() if each.startswith(f"Says      {key}=")]
    want_end = "(pod)" if key in WANT_ACTED_ON else f"(pod): not acted on yet ({TABLE[key].later})"
    assert line.endswith(want_end)


async def test_a_bad_value_of_such_a_key_is_told_as_bad_and_not_as_one_for_later() -> None:
    told, text = await explained({"min-power": "250 horses"})
    [found] = told.annotations
    assert found.problem
    [line] = [each for each in text.splitlines() if each.startswith("Says")]
    assert "does not count: expected" in line
    assert "not acted on yet" not in line
