"""Sets of taints: counted as nodes come, change and go, and forgotten when no node has them."""

from __future__ import annotations

from scheduler.cluster.node_taints import SPARE_SETS, NodeTaints
from scheduler.cluster.preference_objects import Taint
from scheduler.core.preferences import Toleration

SOFT = Taint(key="old", value="yes", effect="PreferNoSchedule")
HARD = Taint(key="old", value="yes", effect="NoSchedule")
HARDER = Taint(key="old", value="yes", effect="NoExecute")
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
    for row, found in enumerate(([], [SOFT], [HARD], [SOFT, SOFT, HARD], [HARDER])):
        taints.see(row, found)
    assert taints.soft_untolerated((), 6).tolist() == [0, 1, 0, 2, 0, 0]
    assert taints.soft_untolerated((ANY,), 6).tolist() == [0] * 6
    assert taints.forbidding((), 6).tolist() == [False, False, True, True, True, False]
    assert not taints.forbidding((ANY,), 6).any()


def test_which_taints_keep_a_pod_away_is_known_by_node() -> None:
    taints = NodeTaints()
    for row, found in enumerate(([], [SOFT, HARD, HARDER])):
        taints.see(row, found)
    assert [taints.against(row, ()) for row in (0, 1, 99)] == [(), (HARD, HARDER), ()]
    assert taints.against(1, (Toleration(key="old", exists=True, effect="NoSchedule"),)) == (HARDER,)
    assert taints.against(1, (ANY,)) == ()


def test_a_taint_whose_value_always_changes_does_not_pile_up() -> None:
    taints = NodeTaints()
    for turn in range(10 * SPARE_SETS):
        taints.see(0, [Taint(key="seen", value=str(turn), effect="PreferNoSchedule")])
        if not turn:
            # Its number changes when those before it are forgotten; the third node has no taint at any time.
            taints.see(1, [HARD])
        assert len(taints._sets) <= SPARE_SETS + 4
        assert taints.soft == 1
        assert taints.soft_untolerated((), 3).tolist() == [1, 0, 0]
        assert taints.forbidding((), 3).tolist() == [False, True, False]
