"""What may have opened since the last look: no more than that is judged anew, and no less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scheduler.cluster.port import Changed, Kind
from scheduler.core.nouns import PodRequest
from scheduler.decision.cycle import Judgement
from scheduler.decision.openings import Openings, widened
from tests.builders import make_decider, make_node, make_pod, make_store, see_node, see_pod
from tests.decision.test_refused import POOLS, SICK, World

HOME, CLOUD = {"site": "dc-1"}, {"site": "aws-a"}


def test_a_mask_is_widened_only_if_it_has_to_be() -> None:
    mask = np.array([True, False])
    assert widened(mask, 2) is mask
    assert widened(mask, 4).tolist() == [True, False, False, False]


def test_rows_are_told_once() -> None:
    store = make_store()
    openings = Openings(make_decider(store))
    see_node(store, "n1")
    changed = openings.changed_rows()
    assert changed is not None
    assert np.flatnonzero(changed).tolist() == [store.rows["n1"]]
    assert openings.changed_rows() is None


def test_a_pod_that_takes_room_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    see_node(world.store, "n1", labels=SICK)
    world.ask("p1")
    assert world.find() is None
    judged = []
    judge = world.decider.judge

    def counted(request: PodRequest, *rest: Any, **more: Any) -> Judgement:
        judged.append(request)
        return judge(request, *rest, **more)

    monkeypatch.setattr(world.decider, "judge", counted)
    see_pod(world.store, make_pod("runs", 2, node="n1"), world.clock.mono_s())
    assert world.find() is None
    assert judged == []


@pytest.mark.parametrize(("gpus", "labels"), [(1, HOME), (8, CLOUD)])
def test_a_pool_whose_last_node_can_take_the_pod_no_more_opens_the_next(
    gpus: int, labels: dict[str, str]
) -> None:
    """It becomes smaller, or another pool's; kube-scheduler had not offered it."""
    world = World(POOLS)
    see_node(world.store, "home", 8, HOME)
    see_node(world.store, "cloud", 8, CLOUD)
    see_pod(world.store, make_pod("runs", 1, node="home"))
    assert world.ask("p1", 4, nodes=("cloud",)) == "no_fit"
    assert world.find() is None
    world.store.apply(Changed(Kind.NODE, make_node("home", gpus, labels)), world.clock.mono_s())
    assert world.wake_all() == ["p1"]
