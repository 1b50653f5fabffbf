"""Sets of taints: counted as nodes come, change and go, and forgotten when no node has them."""

from __future__ import annotations

from scheduler.cluster.node_taints import SPARE_SETS, NodeTaints
from scheduler.cluster.preference_objects import Taint
from scheduler.core.preferences import Toleration

SOFT = Taint(key="old", value="yes", effect="PreferNoSchedule")
HARD = Taint(key="old", value="yes", effect="NoSchedule")
ANY = Toleration(exists=True)


def test_how_many_nodes_have_a_soft_taint_is_known_at_any_time() -> None:
    taints = NodeTaints()
    told = []
    for row, found in ((0, [SOFT]), (1, [SOFT, HARD]), (1, [HARD]), (0, None), (1, [SOFT]), (1, [])):
        taints.see(row, found)
        told.append(taints.soft)
    assert told == [1, 2, 1, 0, 1, 0]


def test_each_effect_counts_for_its_own_question() -> None:
    taints = NodeTaints()
    for row, found in enumerate(([], [SOFT], [HARD], [SOFT, SOFT, HARD])):
        taints.see(row, found)
    assert taints.soft_untolerated((), 5).tolist() == [0, 1, 0, 2, 0]
    assert taints.soft_untolerated((ANY,), 5).tolist() == [0] * 5
    assert taints.forbidding((), 5).tolist() == [False, False, True, True, False]
    assert not taints.forbidding((ANY,), 5).any()


def test_a_taint_whose_value_always_changes_does_not_pile_up() -> None:
    taints = NodeTaints()
    taints.see(1, [HARD])
    for turn in range(10 * SPARE_SETS):
        taints.see(0, [Taint(key="seen", value=str(turn), effect="PreferNoSchedule")])
        assert len(taints._sets) <= SPARE_SETS + 4
        assert taints.soft == 1
    assert taints.soft_untolerated((), 2).tolist() == [1, 0]
    assert taints.forbidding((), 2).tolist() == [False, True]
