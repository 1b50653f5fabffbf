"""What a running daemon knows of itself, told in explain: its role, and when it woke a pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contracts.cluster_contract import eventually
from tests.test_app import Replica, cluster


async def explained(replica: Replica, pod: str) -> dict[str, Any]:
    async with replica.session.get(f"/api/v1/explain/default/{pod}") as told:
        assert told.status == 200
        return dict(await told.json())


async def test_where_a_decision_is_missing_a_standby_names_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("n1")
        world.add_pod("bound", node="n1")
        async with world.replica() as leader:
            await leader.leads()
            async with world.replica() as standby:
                for replica, want in (
                    (leader, "was made elsewhere"),
                    (standby, "was made by the leader (this replica stands by)"),
                ):
                    notes = (await explained(replica, "bound"))["notes"]
                    assert any(want in each for each in notes)


async def test_when_a_pod_was_woken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
        world.add_pod("waits")
        async with world.replica() as replica:
            await replica.knows("sick")
            await replica.leads()
            pod = world.api.get("pods", "waits", "default")
            assert (await replica.filter(pod, "sick"))["NodeNames"] == []
            assert (await explained(replica, "waits"))["woken_unix_s"] is None
            world.api.patch(
                "nodes", "sick", "", {"metadata": {"labels": {"wattbalance.io/quarantine": None}}}
            )

            def retry() -> str:
                annotations = world.api.get("pods", "waits", "default")["metadata"].get("annotations", {})
                return str(annotations.get("wattbalance.io/retry", ""))

            await eventually(lambda: bool(retry()))
            await eventually(lambda: bool(replica.daemon.nudges.last_unix_s))
            told = await explained(replica, "waits")
            assert told["woken_unix_s"] == pytest.approx(float(retry()), abs=60)
            assert any("was woken at" in each for each in told["notes"])


async def test_a_finished_pod_tells_after_a_restart_where_it_was_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("n1")
        world.add_pod("done", node="n1")
        said = '{"node":"n1","profile":"training","cycle":"ab-1"}'
        changes = {"metadata": {"annotations": {"wattbalance.io/decision": said}}}
        world.api.patch("pods", "done", "default", changes)
        world.api.patch("pods", "done", "default", {"status": {"phase": "Succeeded"}}, status=True)
        async with world.replica() as replica:
            await replica.knows("n1")
            told = await explained(replica, "done")
            assert (told["state"], told["phase"], told["node"]) == ("finished", "Succeeded", "n1")
            assert any("was placed on n1, profile training" in each for each in told["notes"]), told["notes"]
