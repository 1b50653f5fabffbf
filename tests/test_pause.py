"""Pause and resume: what stands in the cluster, what a running daemon makes of it, what the command line says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scheduler.cluster.objects import ConfigMap, Meta
from scheduler.cluster.port import Changed, EventNote, Gone, Kind, Listed
from scheduler.core.errors import ApiForbidden, ApiNotFound
from scheduler.pause import (
    MOST_BY_CHARS,
    MOST_REASON_CHARS,
    NAME,
    Pause,
    Paused,
    odd_character,
    plain,
)
from scheduler.pause_orders import Outcome, order
from tests.contracts.cluster_contract import eventually
from tests.test_app import NAMESPACE, Replica, World, cluster

SINCE = "2026-01-01T00:00:00Z"


def found(uid: str = "u", *, going: bool = False, **data: str) -> ConfigMap:
    meta = Meta(
        name=NAME,
        namespace=NAMESPACE,
        uid=uid,
        creation_timestamp=SINCE,
        deletion_timestamp=SINCE if going else None,
    )
    return ConfigMap(metadata=meta, data={key.replace("_", "-"): value for key, value in data.items()})


# --- what the watch tells --------------------------------------------------------------------------------------------


def test_its_presence_is_the_pause_whatever_it_holds() -> None:
    for each in (
        found(),
        ConfigMap(metadata=found().metadata),
        found(by="kim", by_is="known", reason="drill"),
    ):
        pause = Pause()
        pause.see(Changed(Kind.CONFIGMAP, each))
        assert pause.now is not None
        assert pause.now.since == SINCE
    assert str(pause.now) == f"paused by kim since {SINCE}: drill"
    assert str(Paused.of(found(by="kim", reason="drill"))) == f"paused by kim (claimed) since {SINCE}: drill"
    assert str(Paused.of(found())) == f"paused by somebody since {SINCE}: (no reason given)"


def test_it_ends_when_it_is_deleted_or_going_or_missing_from_a_list() -> None:
    for end in (
        Gone(Kind.CONFIGMAP, found()),
        Changed(Kind.CONFIGMAP, found(going=True)),
        Listed(Kind.CONFIGMAP, frozenset()),
    ):
        pause = Pause()
        began: list[str] = []
        pause.on_begin = lambda began=began: began.append("")  # type: ignore[misc]  # bound now
        pause.see(Changed(Kind.CONFIGMAP, found()))
        pause.see(Changed(Kind.CONFIGMAP, found(reason="more of it")))
        pause.see(Listed(Kind.CONFIGMAP, frozenset({"u"})))
        assert pause.now is not None
        assert len(began) == 1
        pause.see(end)
        assert pause.now is None


def test_a_pause_is_logged_when_it_begins_and_changes_and_not_each_time_it_is_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pause = Pause()
    for reason in ("a drill", "a drill", "no drill", "no drill"):
        pause.see(Changed(Kind.CONFIGMAP, found(reason=reason)))
    assert [each.message for each in caplog.records] == ["paused"] * 2


def test_the_end_of_an_older_pause_does_not_end_a_newer_one() -> None:
    pause = Pause()
    pause.see(Changed(Kind.CONFIGMAP, found("new")))
    pause.see(Gone(Kind.CONFIGMAP, found("old")))
    assert pause.now is not None


def test_another_object_does_not_pause() -> None:
    pause = Pause()
    pause.see(Changed(Kind.CONFIGMAP, ConfigMap(metadata=Meta(name="other", uid="u"))))
    assert pause.now is None


def test_whatever_somebody_wrote_is_told_in_one_short_line() -> None:
    awful = "a\x1b[31m\nb\u202e\ud800" + "x" * 1_000_000
    paused = Paused.of(found(by=awful, reason=awful))
    assert paused is not None
    assert (len(paused.by), len(paused.reason)) == (MOST_BY_CHARS, MOST_REASON_CHARS)
    for text in (paused.by, paused.reason):
        assert odd_character(text) is None
        assert text.startswith("a [31m b x")
    assert plain("", 5) == ""
    assert plain("12345", 5) == "12345"
    assert plain("123456", 5) == "1234…"


# --- what people write ----------------------------------------------------------------------------------------------


async def say(world: World, reason: str | None, *, namespace: str = NAMESPACE) -> Outcome:
    return await order(
        namespace=namespace, kubeconfig=world.folder / "kubeconfig", context=None, reason=reason
    )


@pytest.mark.parametrize(
    ("minor", "want_by", "want_claimed"), [(32, "wattbalance", False), (20, "u", True)], ids=["1.32", "1.20"]
)
async def test_who_pauses_is_whom_the_server_knows_else_the_kubeconfigs_user(
    minor: int, want_by: str, want_claimed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch, minor=minor) as world:
        outcome = await say(world, "a drill")
        assert outcome.done
        assert outcome.paused is not None
        assert (outcome.paused.by, outcome.paused.claimed) == (want_by, want_claimed)
        assert outcome.paused.reason == "a drill"
        [written] = world.api.list("configmaps")
        assert written["metadata"]["name"] == "wattbalance-pause"
        assert outcome.paused.since == written["metadata"]["creationTimestamp"]
        assert Paused.of(found(**{k.replace("-", "_"): v for k, v in written["data"].items()})) is not None


async def test_twice_keeps_the_first_and_resume_ends_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        first = await say(world, "the first")
        second = await say(world, "the second")
        assert (first.done, second.done) == (True, False)
        assert second.paused == first.paused
        ended = await say(world, None)
        assert (ended.done, ended.paused) == (True, first.paused)
        assert world.api.list("configmaps") == []
        again = await say(world, None)
        assert (again.done, again.paused) == (False, None)


async def test_who_may_not_is_told_what_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.api.faults.forbidden.add(("create", "configmaps"))
        with pytest.raises(
            ApiForbidden, match=r"you may not create configmaps in namespace wattbalance.*pause-role"
        ):
            await say(world, "a drill")
        world.api.faults.forbidden.clear()
        # Whom he is need not be known to the server, nor need anybody have led.
        world.api.faults.forbidden.add(("get", "leases"))
        outcome = await say(world, "a drill")
        assert (outcome.done, outcome.lonely) == (True, "")


async def test_where_nobody_ever_led_it_says_so_and_where_no_namespace_is_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        outcome = await say(world, "a drill", namespace="default")
        assert "no replica has led in namespace default" in outcome.lonely
        with pytest.raises(ApiNotFound, match="namespace absent does not exist"):
            await say(world, "a drill", namespace="absent")


# --- the program -----------------------------------------------------------------------------------------------------


async def program(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the real one; exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    said, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def test_the_program_pauses_and_resumes_and_says_who_and_since_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        where = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "KUBERNETES_SERVICE_HOST": ""}
        code, said, complained = await program("pause", "--reason", "a drill, ask Kim", **where)
        [written] = world.api.list("configmaps")
        since = written["metadata"]["creationTimestamp"]
        want = f"paused by wattbalance since {since}: a drill, ask Kim"
        assert (code, said) == (0, f"{want}\n`wattbalance resume` ends it.\n")
        assert "no replica has led" in complained
        code, said, _ = await program(
            "pause", "--reason", "there", "-n", "default", "--context", "x", **where
        )
        assert (code, said.splitlines()[1]) == (0, "`wattbalance resume -n default --context x` ends it.")
        code, said, _ = await program("pause", "--reason", "me too", "--context", "x", **where)
        assert (code, said) == (0, f"already {want}\n")
        code, said, _ = await program("resume", "--kubeconfig", str(tmp_path / "kubeconfig"))
        assert (code, said) == (0, f"resumed; it was {want}\n")
        code, said, complained = await program("resume", **where)
        # Another's pause stands: whoever meant that must not take it for ended.
        assert (code, said) == (1, "nothing to resume: nobody paused it in namespace wattbalance\n")
        assert "namespace default: `wattbalance resume -n default` ends it" in complained
        code, _, _ = await program("resume", "-n", "default", **where)
        assert code == 0
        # Said twice it is done twice.
        code, said, complained = await program("resume", **where)
        assert (code, said) == (0, "nothing to resume: nobody paused it in namespace wattbalance\n")
        code, _, complained = await program("resume", "--context", "absent", **where)
        assert code == 2
        assert "absent" in complained
        await world.api.refuse()
        code, _, complained = await program("resume", **where)
        assert code == 1
        assert "refused" in complained
        assert len(complained.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["pause"], "Missing option '--reason'"),
        (["pause", "--reason", " "], "expected why"),
        (["pause", "--reason", "a\nb"], r"got '\n' in it"),
        (["pause", "--reason", "a\x1b[31m"], r"got '\x1b' in it"),
        (["pause", "--reason", "\u202eabc"], "control characters"),
        (["pause", "--reason", "x" * 501], "at most 500 characters, got 501"),
        (["pause", "--reason", "x", "--namespace", ""], "expected a namespace"),
        (["resume", "--namespace", "A_b"], "expected a namespace"),
        (["resume", "--context", ""], "expected a name, got nothing"),
        (["resume", "--kubeconfig", ""], "expected a path, got nothing"),
        (["resume", "--reason", "x"], "No such option"),
    ],
)
async def test_a_wrong_command_line_says_what_was_expected(arguments: list[str], want: str) -> None:
    code, said, complained = await program(*arguments)
    assert (code, said) == (2, "")
    assert want in complained


# --- a running daemon -----------------------------------------------------------------------------------------------


async def readiness(replica: Replica) -> dict[str, Any]:
    async with replica.session.get("/readyz") as page:
        return dict(await page.json(content_type=None))


async def figure(replica: Replica, name: str) -> str:
    async with replica.session.get("/metrics") as page:
        return next(line for line in (await page.text()).splitlines() if line.startswith(name + " "))


def everything(world: World) -> dict[str, list[dict[str, object]]]:
    """All objects but the Lease, which a paused replica goes on renewing, and the pause itself."""
    return {kind: found for kind, found in world.everything().items() if kind != "leases"}


async def test_a_pause_holds_a_running_leader_until_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("well")
        world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
        for name in ("promised", "asked", "later"):
            world.add_pod(name)
        world.add_pod("own", namespace=NAMESPACE)
        async with world.replica("own") as replica:
            daemon = replica.daemon
            await replica.knows("well", "sick")
            await replica.leads()
            await eventually(lambda: replica.labelled(world.api))
            pods = {name: world.api.get("pods", name, "default") for name in ("promised", "asked", "later")}
            assert (await replica.filter(pods["promised"], "well", "sick"))["NodeNames"] == ["well"]
            assert len(daemon.store.reservations) == 1
            # 1. A pause takes back what was promised.
            outcome = await say(world, "a drill")
            await eventually(lambda: daemon.pause.now is not None)
            assert outcome.lonely == ""
            assert not len(daemon.store.reservations)
            before = everything(world)
            # 2. Everything that would be a refusal, a choice, an event is an observation.
            for nodes in (("well", "sick"), ("sick",)):
                assert (await replica.filter(pods["asked"], *nodes))["NodeNames"] == list(nodes)
            world.api.bind("asked", "default", "sick")
            world.add_pod("foreign", node="sick", schedulerName="default-scheduler")
            bad = {
                "name": "bad",
                "namespace": "default",
                "annotations": {"wattbalance.io/workload": "trainning"},
            }
            world.api.create("pods", {"metadata": bad, "spec": pods["asked"]["spec"]})
            await eventually(lambda: len(daemon.store.pods) == 6)
            answer = await replica.filter(world.api.get("pods", "bad", "default"), "sick")
            assert (answer["NodeNames"], sum(daemon.store.intents.errors.values())) == (["sick"], 1)
            # No event is even queued.
            assert not daemon.cluster.counters.events_dropped.total()
            assert sum(daemon.bindings.past.values()) == 0
            said = await readiness(replica)
            assert (said["ready"], said["role"], said["mode"]) == (True, "leader", "act")
            assert said["paused"] == {
                "by": "wattbalance",
                "claimed": False,
                "since": outcome.paused and outcome.paused.since,
                "reason": "a drill",
            }
            assert {"paused", "observing"} & set(said["degraded"]) == {"paused"}
            assert await figure(replica, "wattbalance_paused") == "wattbalance_paused 1.0"
            assert await figure(replica, "wattbalance_observing") == "wattbalance_observing 1.0"
            # It leads on: the Lease is renewed.
            renewed = world.api.list("leases")[0]["spec"]["renewTime"]
            await eventually(lambda: world.api.list("leases")[0]["spec"]["renewTime"] != renewed)
            assert world.api.list("events") == []
            want = {**before, "pods": everything(world)["pods"]}
            assert everything(world) == want, "nothing but what others did to pods"
            # 3. Resume: it places, refuses and writes again; what was bound meanwhile is held against nobody.
            assert (await say(world, None)).done
            await eventually(lambda: daemon.pause.now is None)
            assert (await replica.filter(pods["later"], "sick"))["NodeNames"] == []
            await eventually(lambda: bool(world.events("NoNodeFits")))
            assert (await replica.filter(pods["later"], "well", "sick"))["NodeNames"] == ["well"]
            assert len(daemon.store.reservations) == 1
            assert world.events("PlacedPastWattbalance") == []
            said = await readiness(replica)
            assert said["paused"] is None
            assert "paused" not in said["degraded"]
            assert await figure(replica, "wattbalance_paused") == "wattbalance_paused 0.0"


async def test_whoever_asks_about_a_paused_daemon_is_told_and_json_stays_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "Wärmestau: 50 % in dc-1 ✂"
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("n1")
        world.add_pod("p")
        async with world.replica() as replica:
            await replica.knows("n1")
            server = ("--server", f"http://127.0.0.1:{replica.daemon.listeners.addresses[0][1]}")
            code, _, complained = await program("nodes", *server)
            assert (code, complained) == (0, "")
            outcome = await say(world, reason)
            await eventually(lambda: replica.daemon.pause.now is not None)
            want = f"warning: the daemon is {outcome.paused}\n"
            assert reason in want
            for arguments in (
                ("nodes",),
                ("explain", "p"),
                ("nodes", "-o", "json"),
                ("explain", "p", "-o", "json"),
            ):
                code, said, complained = await program(*arguments, *server, PYTHONIOENCODING="utf-8")
                assert (code, complained) == (0, want)
                if "json" in arguments:
                    assert isinstance(json.loads(said), dict)
            code, _, complained = await program("explain", "absent", *server, PYTHONIOENCODING="utf-8")
            assert code == 1
            assert want in complained
            async with replica.session.get("/api/v1/nodes") as page:
                assert page.headers["Wattbalance-Paused"].isascii()
            async with replica.session.get("/metrics") as page:
                assert "Wattbalance-Paused" not in page.headers


async def test_an_event_that_was_queued_when_a_pause_began_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world, world.replica() as replica:
        await replica.leads()
        await say(world, "a drill")
        await eventually(lambda: replica.daemon.pause.now is not None)
        adapter = replica.daemon.cluster
        adapter.note(EventNote(kind="Pod", namespace="default", name="p", uid="u", reason="R", note=""))
        await eventually(lambda: adapter.counters.events_dropped["not_leading"] == 1)
        assert world.api.list("events") == []


async def test_what_was_decided_while_paused_is_no_ones_disobedience_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        for name in ("n1", "n2"):
            world.add_node(name)
        world.add_pod("p")
        async with world.replica() as replica:
            await replica.knows("n1", "n2")
            await replica.leads()
            await say(world, "a drill")
            await eventually(lambda: replica.daemon.pause.now is not None)
            pod = world.api.get("pods", "p", "default")
            await replica.filter(pod, "n1", "n2")
            [record] = replica.daemon.decider.log
            [other] = {"n1", "n2"} - {record.chosen}
            await say(world, None)
            await eventually(lambda: replica.daemon.pause.now is None)
            world.api.bind("p", "default", other)
            await eventually(lambda: replica.daemon.store.pods[pod["metadata"]["uid"]].node == other)
            assert sum(replica.daemon.bindings.past.values()) == 0
            # Nor is it written on the pod as what it was bound by; that of the next one is.
            world.add_pod("next")
            answer = await replica.filter(world.api.get("pods", "next", "default"), "n1")
            world.api.bind("next", "default", *answer["NodeNames"])
            await eventually(lambda: decided(world, "next"))
            assert not decided(world, "p")


def decided(world: World, pod: str) -> bool:
    annotations = world.api.get("pods", pod, "default")["metadata"].get("annotations", {})
    return "wattbalance.io/decision" in annotations


async def test_a_replica_that_starts_knows_of_the_pause_before_it_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.add_node("sick", **{"wattbalance.io/quarantine": "xid-79"})
        world.add_pod("p")
        await say(world, "a drill")
        async with world.replica() as replica:
            # Ready is when it has been read.
            assert replica.daemon.pause.now is not None
            assert not replica.daemon.leadership.may_act()
            await replica.knows("sick")
            answer = await replica.filter(world.api.get("pods", "p", "default"), "sick")
            assert answer["NodeNames"] == ["sick"]


async def test_until_it_is_read_nobody_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        world.api.faults.frozen = True
        async with world.replica(ready=False, lease={"enabled": False}) as replica:
            assert replica.daemon.leadership.leads()
            assert not replica.daemon.leadership.may_act()
            assert replica.daemon.knowledge.not_ready() is not None
            world.api.faults.frozen = False
            await eventually(replica.daemon.leadership.may_act)


async def test_a_role_that_may_not_read_it_is_named_and_nothing_is_done_before_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world:
        await say(world, "a drill")
        world.api.faults.forbidden.add(("list", "configmaps"))
        world.add_node("n1")
        world.add_pod("p")
        async with world.replica(ready=False) as replica:
            await replica.knows("n1")
            await eventually(lambda: Kind.CONFIGMAP in replica.daemon.cluster.refused)
            said = await readiness(replica)
            assert not said["ready"]
            assert {"forbidden", "cannot_list_configmaps"} <= set(said["degraded"])
            want = (
                "may not list configmaps in namespace wattbalance; add to wattbalance's Role: "
                '{apiGroups: [""], resources: ["configmaps"], verbs: ["list"]}; resourceNames: ["wattbalance-pause"]'
            )
            assert said["forbidden"][0].startswith(want)
            assert any(want in why for why in said["reasons"])
            question = {"Pod": world.api.get("pods", "p", "default"), "NodeNames": ["n1"]}
            async with replica.session.post("/scheduler/filter", json=question) as answer:
                assert answer.status == 503
            world.api.faults.forbidden.clear()
            await eventually(lambda: replica.daemon.pause.now is not None)
            await eventually(lambda: replica.daemon.knowledge.not_ready() is None)
            assert (await replica.filter(world.api.get("pods", "p", "default"), "n1"))["NodeNames"] == ["n1"]
            assert len(replica.daemon.store.reservations) == 0, "paused from the first question on"


async def test_a_pause_that_was_seen_holds_while_watches_fail_and_ends_when_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world, world.replica() as replica:
        pause = replica.daemon.pause
        await say(world, "a drill")
        await eventually(lambda: pause.now is not None)
        # 1. Cut off, and resumed meanwhile: the watch goes on from where it was.
        await world.api.refuse()
        assert pause.now is not None
        world.api.delete("configmaps", NAME, NAMESPACE)
        assert pause.now is not None
        await world.api.accept()
        await eventually(lambda: pause.now is None)
        # 2. Too old a version (410): listed anew.
        await say(world, "another")
        await eventually(lambda: pause.now is not None)
        world.api.faults.expire_watches = True
        world.api.drop_watches()
        world.api.delete("configmaps", NAME, NAMESPACE)
        await eventually(lambda: pause.now is None)
        world.api.faults.expire_watches = False
        assert replica.daemon.cluster.counters.relists[Kind.CONFIGMAP] >= 1


async def test_an_observer_knows_of_a_pause_too_and_stays_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, monkeypatch) as world, world.replica(mode="observe") as replica:
        await say(world, "a drill")
        await eventually(lambda: replica.daemon.pause.now is not None)
        said = await readiness(replica)
        assert {"observing", "paused"} <= set(said["degraded"])
        await say(world, None)
        await eventually(lambda: replica.daemon.pause.now is None)
        assert replica.daemon.verbs.is_observing()
