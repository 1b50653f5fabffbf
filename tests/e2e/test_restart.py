"""What is still known of a pod that was decided before a restart: by what stands on it, on a real control plane."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.core.nouns import DECISION_ANNOTATION
from tests.e2e.system import Replica, System, until_seen, wait_for

pytestmark = pytest.mark.e2e


def explained(replica: Replica, pod: str) -> dict[str, Any]:
    return dict(wait_for(f"{pod} is seen", lambda: replica.get(f"/api/v1/explain/default/{pod}")))


def test_a_decision_from_before_a_restart_is_told_by_what_stands_on_the_pod(system: System) -> None:
    system.add_node("again-a")
    system.add_node("again-sick", **{"wattbalance.io/quarantine": "xid-79"})
    first = system.serve()
    until_seen(first, "again-a", "again-sick")
    scheduler = system.scheduler(first.port)
    try:
        system.add_pod("decided", 8)
        assert system.bound("decided") == "again-a"
        system.add_pod("refused", 8)

        def written() -> str:
            return str(system.pod("decided")["metadata"].get("annotations", {}).get(DECISION_ANNOTATION, ""))

        decision = json.loads(wait_for("it is written", written))
        wait_for("the other is refused", lambda: first.get("/api/v1/decisions?pod=refused")["items"])
    finally:
        scheduler.stop()
    assert first.process.stop() == 0
    second = system.serve()
    until_seen(second, "again-a", "again-sick")
    told = explained(second, "decided")
    assert [told["state"], told["node"], told["decision"]] == ["bound", "again-a", None]
    [note] = [each for each in told["notes"] if "No record of the decision is kept here" in each]
    assert "again-a" in note
    assert decision["cycle"] in note
    assert told["now"]["own"]["node"] == "again-a"
    # What was refused has nothing on it: that it may have been decided before is said, and what holds it now.
    told = explained(second, "refused")
    assert [told["state"], told["decision"]] == ["waiting", None]
    assert any("Decisions are kept since this replica began" in each for each in told["notes"])
    assert {each["kind"] for each in told["now"]["unblock"]} == {"quarantine", "free_gpus"}
