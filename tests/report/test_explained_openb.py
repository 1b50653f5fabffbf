"""Every pod of the built-in slice of openb: what is explained is what was decided, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.cluster.port import Kind
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import Placement
from scheduler.report.explain import Explainer
from scheduler.report.explanation import Explanation
from scheduler.simulate.traces import load_trace
from tests.builders import (
    added_up,
    all_rows,
    make_decider,
    make_pod,
    make_sample,
    make_store,
    see_node,
    see_pod,
)

WEIGHTS = {"least-loaded": 3.0, "pack": 1.7, "freshness": 0.1}


@pytest.mark.parametrize("placement", list(Placement))
async def test_for_every_pod_of_openb_the_terms_are_the_decision(placement: Placement) -> None:
    trace = load_trace()
    store, clock = make_store(), ManualClock()
    store.synced.add(Kind.POD)
    dice = np.random.default_rng(1)
    for node in trace.nodes:
        if node.gpus:
            see_node(store, node.name, node.gpus)
            busy = dice.random(node.gpus).tolist()
            store.see_samples([(node.name, make_sample(node.name, busy), clock.mono_s())])
    decider = make_decider(store, placement, WEIGHTS)
    explainer = Explainer(decider, clock, lambda: "leader")
    rows = all_rows(store)
    results = set()
    for task in trace.tasks:
        if not task.gpus:
            continue
        clock.advance(0.1)
        pod = make_pod(task.name, task.gpus)
        see_pod(store, pod, clock.mono_s())
        request = store.request(pod, 0.0, decider.profile_facts)
        outcome = decider.place(request, rows, clock.mono_s(), clock.unix_s())
        results.add(outcome.result)
        told = await explainer.explain("team-a", task.name)
        assert isinstance(told, Explanation)
        assert told.decision is not None
        assert told.decision.cycle == outcome.record.cycle
        if outcome.judgement.choice < 0:
            assert told.decision.best == []
            continue
        first = told.decision.best[0]
        for candidate in told.decision.best:
            assert (
                added_up(candidate) == candidate.score == outcome.judgement.total[store.rows[candidate.node]]
            )
        assert store.rows[first.node] == outcome.judgement.choice
        assert first.score == outcome.judgement.total[outcome.judgement.peers].max()
        if placement is Placement.DECISIVE:
            assert told.decision.chosen == first.node
        if outcome.record.result != "full_by_our_count":
            see_pod(store, make_pod(task.name, task.gpus, node=first.node), clock.mono_s())
    assert results >= ({"placed", "full_by_our_count"} if placement is Placement.DECISIVE else {"advised"})
