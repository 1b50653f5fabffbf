"""The configuration of a running daemon: what changes with its file, what stays, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from scheduler import config, parts, reload
from scheduler.bindings import Bindings
from scheduler.cluster.objects import Meta, Partial, Pod
from scheduler.cluster.port import Changed, EventNote, Gone, Kind
from scheduler.cluster.store import Store, StoreSettings
from scheduler.config_changes import APPLIED, differing, merge, needs_restart
from scheduler.config_settings import Settings
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PREFIX, PoolSpec, Workload
from scheduler.extender.verbs import Fence, Verbs
from scheduler.extender.wire import read_filter
from scheduler.reload import Content, Reload, Running, read
from tests.builders import (
    all_rows,
    make_inventory,
    make_node,
    make_pod,
    make_request,
    make_sample,
    make_store,
    see_node,
    see_pod,
)
from tests.contracts.cluster_contract import beside, eventually

BASE: dict[str, object] = {
    "cluster": {"name": "test"},
    "telemetry": {"broker": "mqtt://127.0.0.1"},
    "pools": [{"name": "dc", "selector": {"site": "dc"}}, {"name": "aws", "selector": {"site": "aws"}}],
}
SWAPPED = {"pools": list(reversed(cast("list[object]", BASE["pools"])))}

# What a running daemon cannot take. A new key must be here or in APPLIED: whoever adds one decides.
WANT_RESTART = {
    "mode",
    "cluster.name",
    "cluster.kubeconfig",
    "cluster.api_timeout",
    "telemetry.broker",
    "telemetry.ca_file",
    "telemetry.cert_file",
    "telemetry.key_file",
    "telemetry.username_file",
    "telemetry.password_file",
    "listeners",
    "extender.prefix",
    "extender.bind",
    "gpu_resources",
    "lease.enabled",
    "lease.name",
    "lease.namespace",
    "lease.duration",
    "lease.renew_deadline",
    "lease.retry",
    "lease.identity",
    "log.format",
    "shutdown.grace",
}


def text(**changes: object) -> str:
    return yaml.safe_dump(BASE | changes)


def load(**changes: object) -> Settings:
    return config.load(text(**changes))


def content(**changes: object) -> Content:
    raw = text(**changes).encode()
    return Content(digest=str(hash(raw)), raw=raw)


@dataclass
class World:
    """The parts of a daemon that a reload exchanges; those that talk to a cluster are stood in for."""

    settings: Settings = field(default_factory=load)
    clock: ManualClock = field(default_factory=ManualClock)
    leads: bool = True
    pod_name: str = "wb-0"
    file: Path = Path("wattbalance.yaml")

    def __post_init__(self) -> None:
        self.store = parts.make_store(self.settings)
        self.decider = parts.make_decider(self.settings, self.store, instance="test")
        self.bindings = Bindings(
            self.settings.scheduler_names,
            self.settings.managed_resources,
            decision_of=self.decider.log.of_pod,
            judges=lambda: True,
        )
        self.known: list[Settings] = []
        self.knowledge = SimpleNamespace(use=self.known.append)
        self.cluster = SimpleNamespace(probe_every_s=10.0)
        self.leadership = SimpleNamespace(
            may_act=lambda: self.leads,
            pod_name=self.pod_name,
            pod_uid="uid-0" if self.pod_name else "",
            namespace="wb",
            elector=object(),
        )
        self.notes: list[EventNote] = []
        self.reload = Reload(self.file, cast("Running", self), self.notes.append)

    def told(self) -> list[tuple[str, str, str, bool]]:
        return [(note.kind, note.name, note.reason, note.warning) for note in self.notes]

    async def begin(self) -> None:
        """The first look finds what the daemon was started with."""
        await self.reload.judge(content())


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    return made


# --- which keys -----------------------------------------------------------------------------------------------------


def all_keys(settings: msgspec.Struct, path: str = "") -> Iterator[str]:
    for each in msgspec.structs.fields(settings):
        key, value = f"{path}{each.encode_name}", getattr(settings, each.name)
        if isinstance(value, msgspec.Struct) and key not in APPLIED:
            yield from all_keys(value, f"{key}.")
        else:
            yield key


def test_of_every_key_it_is_known_whether_a_running_daemon_takes_it() -> None:
    assert set(all_keys(load())) == APPLIED | WANT_RESTART
    assert all(needs_restart(key) for key in WANT_RESTART)
    assert not any(needs_restart(key) for key in (*APPLIED, "pools[].name", "models.NAME.capability"))


def test_what_can_be_taken_is_and_the_rest_stays_and_is_named() -> None:
    before = load()
    wanted = load(
        cluster={"name": "other", "stale": "30s"},
        telemetry={
            "broker": "mqtt://127.0.0.1:1884",
            "stale": "20s",
            "half_life": "3s",
            "neutral_load": 0.25,
        },
        extender={"reservation": "7s", "bind": True},
        listeners=[{"address": "127.0.0.1:9999", "serves": ["extender"]}],
        lease={"duration": "20s"},
        log={"level": "debug", "format": "text"},
        scheduler_names=["mine"],
        **SWAPPED,
    )
    merged = merge(before, wanted)
    assert differing(before, merged) == [
        "cluster.stale",
        "telemetry.stale",
        "telemetry.half_life",
        "telemetry.neutral_load",
        "pools",
        "extender.reservation",
        "scheduler_names",
        "log.level",
    ]
    assert differing(merged, wanted) == [
        "cluster.name",
        "telemetry.broker",
        "listeners",
        "extender.bind",
        "lease.duration",
        "log.format",
    ]
    assert merge(merged, before) == before


# --- what is exchanged ----------------------------------------------------------------------------------------------


async def test_nodes_change_pools_and_the_next_decision_goes_by_the_new_order(world: World) -> None:
    for name, site in (("a", "dc"), ("b", "aws"), ("c", "nowhere")):
        world.store.apply(Changed(Kind.NODE, make_node(name, labels={"site": site})), 0.0)
    request = make_request("p1", workload=Workload.TRAINING, profile="training")
    first = world.decider.place(request, all_rows(world.store), 1000.0, 0.0)
    assert first.record.chosen == "a"
    await world.reload.judge(
        content(**SWAPPED, profiles={"training": {"policies": {"freshness": {"weight": 1}}}})
    )
    assert world.store.pool_names == ["aws", "dc", "default"]
    assert {name: record.pool for name, record in world.store.nodes.items()} == {
        "a": "dc",
        "b": "aws",
        "c": "default",
    }
    assert world.store.snapshot.pool_sizes == (1, 1, 1)
    second = world.decider.place(
        make_request("p2", workload=Workload.TRAINING, profile="training"), all_rows(world.store), 1000.0, 0.0
    )
    assert second.record.chosen == "b"
    assert [each.policy for each in second.record.policies] == ["freshness"]
    assert {each.pool for each in second.record.best} <= set(world.store.pool_names)
    # What was promised and decided before is as it was.
    held = world.store.reservations.get("uid-p1")
    assert held is not None
    assert held.node == "a"
    assert world.decider.log.of_pod("uid-p1") is first.record
    assert world.known == [world.settings]


async def test_a_refusal_after_the_reload_names_a_pool_that_there_is(world: World) -> None:
    def see(name: str, site: str, *, ill: bool) -> None:
        labels = {"site": site} | ({"wattbalance.io/quarantine": ""} if ill else {})
        world.store.apply(Changed(Kind.NODE, make_node(name, labels=labels)), 0.0)

    see("a", "dc", ill=False)
    see("b", "aws", ill=True)
    verbs = Verbs(world.decider, None, world.clock, Fence())
    pod = {
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
    }

    def refusals() -> str:
        asked = {"Pod": pod, "NodeNames": ["a", "b"]}
        return bytes(verbs.filter(read_filter(msgspec.json.encode(asked)))).decode()

    assert "waiting for pool" not in refusals()
    waits = {"spill": {"after": "1h"}}
    await world.reload.judge(content(pools=[{"name": "near", "selector": {"site": "aws"}, **waits}]))
    assert "waiting for pool near" in refusals()
    see("a", "dc", ill=True)
    see("b", "aws", ill=False)
    await world.reload.judge(content(pools=[{"name": "far", "selector": {"site": "dc"}, **waits}]))
    assert "waiting for pool far" in refusals()


@pytest.mark.parametrize("named", [True, False])
async def test_who_names_a_pool_that_is_gone_is_counted_in_one_line(
    world: World, caplog: pytest.LogCaptureFixture, *, named: bool
) -> None:
    said = {PREFIX + "pools": "dc,aws"} if named else {}
    for name in ("p1", "p2"):
        see_pod(world.store, make_pod(name, annotations=said))
    see_pod(world.store, make_pod("bound", annotations=said, node="n1"))
    see_pod(world.store, make_pod("p3", annotations={PREFIX + "pools": "aws"}))
    space = Partial(metadata=Meta(name="team-b", annotations=said))
    world.store.apply(Changed(Kind.NAMESPACE, space), world.clock.mono_s())

    def told() -> list[object]:
        return [each.__dict__["kv"] for each in caplog.records if "pools that are gone" in each.message]

    await world.reload.judge(content(**SWAPPED))
    assert not told()
    renamed = [{"name": "home", "selector": {"site": "dc"}}, {"name": "aws", "selector": {"site": "aws"}}]
    await world.reload.judge(content(pools=renamed))
    assert told() == [{"pools": ["dc"], "waiting_pods": 2, "namespaces": 1}] * named
    faults = world.store.intents.resolve(world.store.waiting["uid-p1"].meta, "").faults
    assert [fault.key for fault in faults] == ["pools"] * named


async def test_filters_workloads_models_and_names_are_exchanged(world: World) -> None:
    world.store.apply(Changed(Kind.NODE, make_node("ill", labels={"wattbalance.io/quarantine": "x"})), 0.0)
    world.store.see_inventory("ill", make_inventory("ill", model="H100 80GB"))
    request = make_request("p1")
    assert not world.decider.place(request, all_rows(world.store), 1000.0, 0.0).record.chosen
    await world.reload.judge(
        content(
            filters={"quarantine": False},
            models={"H100*": {"capability": 2.5}},
            workload={"default": "inference"},
            scheduler_names=["mine"],
            cluster={"name": "test", "stale": "4s"},
        )
    )
    assert world.decider.place(request, all_rows(world.store), 1000.0, 0.0).record.chosen == "ill"
    assert world.store.snapshot.capability_max == 2.5
    assert world.store.intents.workload(make_pod().metadata, "") is Workload.INFERENCE
    assert world.cluster.probe_every_s == 2.0
    world.store.on_bound = lambda facts: world.bindings.bound(facts, "", 1000.0)
    world.store.synced.add(Kind.POD)
    stray = make_pod("stray", node="ill")
    spec = msgspec.structs.replace(stray.spec, scheduler_name="wattbalance")
    see_pod(world.store, msgspec.structs.replace(stray, spec=spec), 1000.0)
    assert world.bindings.past["other_scheduler"] == 1


def test_what_is_pending_stays_and_fades_at_the_new_rate() -> None:
    store = make_store(half_life_s=10.0)
    see_node(store)
    store.tick(1000.0)
    assert store.reserve(make_request("p1", 4, expected_load=1.0), "n1", 1000.0)
    row = store.rows["n1"]
    store.use(StoreSettings(half_life_s=1.0), store.intents.settings, 1010.0)
    assert store.snapshot.pending_load[row] == pytest.approx(2.0)
    store.tick(1011.0)
    assert store.snapshot.pending_load[row] == pytest.approx(1.0)
    # Taken back, it leaves nothing behind: neither load that nobody brings, nor less than none.
    store.release("uid-p1", 1011.0)
    assert store.snapshot.pending_load[row] == pytest.approx(0.0, abs=1e-6)
    assert store.snapshot.free_gpus[row] == 8


def test_a_promise_lasts_as_long_as_it_did_when_it_was_made() -> None:
    store = make_store(reservation_s=30.0)
    see_node(store)
    store.tick(1000.0)
    assert store.reserve(make_request("old"), "n1", 1000.0)
    store.use(StoreSettings(reservation_s=5.0), store.intents.settings, 1001.0)
    assert store.reserve(make_request("new"), "n1", 1001.0)
    store.tick(1020.0)
    assert store.reservations.get("uid-old") is not None
    assert store.reservations.get("uid-new") is None


def test_a_longer_limit_brings_readings_back_and_not_those_that_were_forgotten() -> None:
    store = make_store(stale_s=10.0)
    for name in ("silent", "offline"):
        see_node(store, name)
        store.see_samples([(name, make_sample(name, [0.1] * 8), 1000.0)])
    store.see_status("offline", online=False)
    store.tick(1015.0)
    assert not store.snapshot.fresh.any()
    store.use(StoreSettings(stale_s=20.0), store.intents.settings, 1016.0)
    fresh, known = store.snapshot.fresh, store.snapshot.known_gpus
    assert [bool(fresh[store.rows[name]]) for name in ("silent", "offline")] == [True, False]
    assert [known[store.rows[name]] for name in ("silent", "offline")] == [8, 0]
    store.use(StoreSettings(stale_s=5.0), store.intents.settings, 1016.0)
    assert not store.snapshot.fresh.any()


# --- the same store as one built anew -------------------------------------------------------------------------------

NAMES = ("n0", "n1", "n2")
SITES = ("dc", "aws", "edge", "")
MODELS = ("H100", "A10", "T4")
POOLS = [
    PoolSpec(name="dc", selector={"site": "dc"}),
    PoolSpec(name="aws", selector={"site": "aws"}),
    PoolSpec(name="both", selector={"site": "edge", "rack": "r1"}),
]
SETTINGS = st.builds(
    StoreSettings,
    pools=st.permutations(POOLS).flatmap(lambda pools: st.integers(0, 3).map(lambda n: tuple(pools[:n]))),
    stale_s=st.sampled_from([2.0, 10.0, 30.0]),
    neutral_load=st.sampled_from([0.0, 0.5, 1.0]),
    capabilities=st.dictionaries(
        st.sampled_from([*MODELS, "*"]), st.sampled_from([0.25, 1.0, 3.0]), max_size=3
    ),
)
NODE = st.sampled_from(NAMES)
LOADS = st.lists(st.sampled_from([None, 0.0, 0.25, 1.0]), min_size=4, max_size=4)
HEALTH = st.lists(st.sampled_from(["ok", "ok", "lost", "unknown"]), min_size=4, max_size=4)
STEP = st.one_of(
    st.tuples(st.just("node"), NODE, st.sampled_from(SITES), st.sampled_from(["", "r1"]), st.integers(0, 5)),
    st.tuples(st.just("node_gone"), NODE),
    st.tuples(st.just("inventory"), NODE, st.sampled_from(MODELS)),
    st.tuples(st.just("inventory_gone"), NODE),
    st.tuples(st.just("sample"), NODE, LOADS, HEALTH),
    st.tuples(st.just("offline"), NODE),
    st.tuples(st.just("bind"), NODE, st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("reserve"), NODE, st.integers(1, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.5, 4.0, 12.0])),
)
PENDING = "pending"


class Life:
    """One store's life, told in steps."""

    def __init__(self, settings: StoreSettings) -> None:
        self.store = make_store()
        self.store = Store(settings, self.store.intents)
        self.now = 1000.0
        self.pods: list[Pod] = []
        self.serial = 0

    def live(self, step: tuple[object, ...]) -> None:
        kind, *given = step
        getattr(self, f"_{kind}")(*given)
        self.store.tick(self.now)

    def _node(self, name: str, site: str, rack: str, gpus: int) -> None:
        self.store.apply(Changed(Kind.NODE, make_node(name, gpus, {"site": site, "rack": rack})), self.now)

    def _node_gone(self, name: str) -> None:
        self.store.apply(Gone(Kind.NODE, make_node(name)), self.now)

    def _inventory(self, name: str, model: str) -> None:
        self.store.see_inventory(name, make_inventory(name, 4, model))

    def _inventory_gone(self, name: str) -> None:
        self.store.forget_inventory(name)

    def _sample(self, name: str, util: list[float | None], state: list[str]) -> None:
        self.store.see_samples([(name, make_sample(name, list(util), list(state)), self.now)])

    def _offline(self, name: str) -> None:
        self.store.see_status(name, online=False)

    def _bind(self, name: str, gpus: int) -> None:
        self.serial += 1
        self.pods.append(make_pod(f"p{self.serial}", gpus, node=name))
        self.store.apply(Changed(Kind.POD, self.pods[-1]), self.now)

    def _end(self, which: int) -> None:
        if which < len(self.pods):
            self.store.apply(Gone(Kind.POD, self.pods.pop(which)), self.now)

    def _reserve(self, name: str, gpus: int) -> None:
        self.serial += 1
        self.store.reserve(make_request(f"p{self.serial}", gpus), name, self.now)

    def _wait(self, by_s: float) -> None:
        self.now += by_s


def columns(store: Store) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """All arrays of a store, those that no snapshot shows too."""
    return {k: v for k, v in vars(store._columns).items() if isinstance(v, np.ndarray)}


@limits(max_examples=300, deadline=None)
@given(
    first=SETTINGS,
    second=SETTINGS,
    last=SETTINGS,
    lives=st.tuples(*[st.lists(STEP, max_size=20)] * 3),
)
def test_after_a_reload_the_store_is_as_one_that_was_built_with_the_new_settings(
    first: StoreSettings,
    second: StoreSettings,
    last: StoreSettings,
    lives: tuple[list[tuple[object, ...]], ...],
) -> None:
    reloaded, anew = Life(first), Life(last)
    for name, model in zip(NAMES, MODELS, strict=True):
        for life in (reloaded, anew):
            life.live(("node", name, "dc", "", 4))
            life.live(("inventory", name, model))
    for steps, then in zip(lives, (second, last, None), strict=True):
        for step in steps:
            reloaded.live(step)
            anew.live(step)
        if then is not None:
            pending = columns(reloaded.store)[PENDING].copy()
            promised = reloaded.store.reservations.made_before(np.inf)
            reloaded.store.use(then, reloaded.store.intents.settings, reloaded.now)
            assert np.array_equal(columns(reloaded.store)[PENDING], pending)
            assert reloaded.store.reservations.made_before(np.inf) == promised
    for life in (reloaded, anew):
        life.live(("wait", 1.0))
    want, got = columns(anew.store), columns(reloaded.store)
    # What was pending when a pod ended on a node that was stale by one of the two is theirs.
    for name in want.keys() - {PENDING}:
        assert np.array_equal(got[name], want[name], equal_nan=want[name].dtype.kind == "f"), name
    assert reloaded.store.pool_names == anew.store.pool_names
    one, other = reloaded.store.snapshot, anew.store.snapshot
    assert (one.pool_sizes, one.capability_max, one.stale_s) == (
        other.pool_sizes,
        other.capability_max,
        other.stale_s,
    )
    assert {n: r.pool for n, r in reloaded.store.nodes.items()} == {
        n: r.pool for n, r in anew.store.nodes.items()
    }
    assert reloaded.store.reservations.made_before(np.inf) == anew.store.reservations.made_before(np.inf)


# --- what is said ---------------------------------------------------------------------------------------------------


async def test_what_it_was_started_with_is_no_reload(world: World) -> None:
    assert world.reload.results == {"ok": 0, "refused": 0}
    assert not world.notes
    assert world.reload.taken_digest == content().digest


async def test_a_bad_file_changes_nothing_and_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    before = world.settings
    bad = content(pools=[{"name": "dc"}], profiles={"traning": {}}, modes=1, filters={"nope": True})
    world.clock.advance(60)
    for _ in range(3):
        await world.reload.judge(bad)
    assert world.settings is before
    assert world.reload.results == {"ok": 0, "refused": 1}
    assert world.reload.taken_unix_s == world.clock.unix_s() - 60
    [line] = [each for each in caplog.records if "refused" in each.message]
    told = " ".join(line.__dict__["kv"]["problems"])
    for key in ("pools[0].selector", "profiles.traning", "modes", "filters.nope"):
        assert key in told
    [note] = world.notes
    assert (note.kind, note.namespace, note.name, note.uid) == ("Pod", "wb", "wb-0", "uid-0")
    assert (note.reason, note.warning) == ("ConfigRefused", True)
    assert "and 1 more" in note.note
    # The good one again: nothing changes, and it is well.
    await world.reload.judge(content())
    assert world.reload.problems == ()
    assert world.settings == before
    assert world.reload.results == {"ok": 1, "refused": 1}
    assert world.reload.taken_unix_s == world.clock.unix_s()


async def test_what_needs_a_restart_is_named_until_the_file_says_the_old_value_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lease = {"duration": "20s"}
    await world.reload.judge(content(lease=lease))
    await world.reload.judge(content(lease=lease, **SWAPPED))
    assert list(world.reload.restart_needed) == ["lease.duration"]
    assert world.settings.lease.duration_s == 15.0
    assert world.store.pool_names[0] == "aws"
    assert sum("restart only" in each.message for each in caplog.records) == 1
    assert world.told() == [
        ("Pod", "wb-0", "ConfigNeedsRestart", True),
        ("Pod", "wb-0", "ConfigReloaded", False),
    ]
    assert "lease.duration" in world.notes[0].note
    assert "pools" in world.notes[1].note
    # A file that is refused afterwards says nothing of that.
    await world.reload.judge(content(mode="maybe"))
    assert list(world.reload.restart_needed) == ["lease.duration"]
    await world.reload.judge(content(**SWAPPED))
    assert not world.reload.restart_needed


@pytest.mark.parametrize(
    ("leads", "pod_name", "want"),
    [
        pytest.param(True, "wb-0", [("Pod", "wb-0", "ConfigRefused", True)], id="leader in a pod"),
        pytest.param(True, "", [("Lease", "wattbalance", "ConfigRefused", True)], id="leader elsewhere"),
        pytest.param(False, "wb-0", [], id="standby"),
    ],
)
async def test_the_leader_writes_the_event(leads: bool, pod_name: str, want: list[object]) -> None:
    world = World(leads=leads, pod_name=pod_name)
    await world.begin()
    await world.reload.judge(content(mode="maybe"))
    assert world.told() == want
    assert world.reload.problems


async def test_a_fault_of_ours_in_checking_keeps_the_daemon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_raw: bytes, _path: str) -> Settings:
        raise RecursionError("too deep")

    monkeypatch.setattr(config, "load_raw", fails)
    before = world.settings
    await world.reload.judge(content(**SWAPPED))
    assert world.settings is before
    assert "too deep" in str(world.reload.problems[0])


async def test_a_check_that_does_not_end_is_said_once_and_the_file_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "CHECK_S", 0.01)
    load_raw, over = config.load_raw, threading.Event()

    def waits(raw: bytes, path: str) -> Settings:
        over.wait()
        return load_raw(raw, path)

    monkeypatch.setattr(config, "load_raw", waits)
    try:
        for _ in range(3):
            await world.reload.judge(content(mode="maybe"))
            await world.reload.judge(content(**SWAPPED))
        assert world.reload.results == {"ok": 0, "refused": 1}
        assert world.store.pool_names[0] == "dc"
        monkeypatch.setattr(reload, "CHECK_S", 60.0)
    finally:
        over.set()
    async with asyncio.timeout(60.0):
        while world.store.pool_names[0] != "aws":
            await world.reload.judge(content(**SWAPPED))
            await asyncio.sleep(0.005)
    assert not world.reload.problems


async def test_the_logs_level_is_exchanged(world: World) -> None:
    root = logging.getLogger()
    before = root.level
    try:
        await world.reload.judge(content(log={"level": "error"}))
        assert root.level == logging.ERROR
        root.setLevel(logging.DEBUG)
        # Nothing is set where the file says what it said.
        await world.reload.judge(content(log={"level": "error"}, **SWAPPED))
        assert root.level == logging.DEBUG
    finally:
        root.setLevel(before)


async def test_a_part_that_cannot_be_made_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_settings: Settings) -> dict[Workload, object]:
        raise config.ConfigError([])

    monkeypatch.setattr(parts, "make_profiles", refuses)
    before, pools = world.settings, world.store.pool_names
    await world.reload.judge(content(**SWAPPED))
    assert (world.settings, world.store.pool_names) == (before, pools)
    assert world.reload.results["refused"] == 1


async def test_a_part_that_fails_half_way_leaves_the_settings_before_in_force(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_node(world.store, "n1", labels={"site": "aws"})
    row, before = world.store.rows["n1"], world.settings
    used = world.decider.use

    def fails_once(*made: object) -> None:
        monkeypatch.setattr(world.decider, "use", used)
        raise OverflowError("out of bounds")

    monkeypatch.setattr(world.decider, "use", fails_once)
    await world.reload.judge(content(**SWAPPED))
    assert world.settings is before
    assert world.store.pool_names == ["dc", "aws", "default"]
    assert world.store.snapshot.pool[row] == 1
    assert world.reload.results["refused"] == 1
    assert "OverflowError" in str(world.reload.problems[0])
    await world.reload.judge(content(**SWAPPED, models={"H100": {"capability": 2}}))
    assert world.store.pool_names == ["aws", "dc", "default"]


# --- the file -------------------------------------------------------------------------------------------------------


def test_what_is_no_file_or_far_too_long_is_said_and_never_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 100 * 2**20)
    for path, want in (
        (huge, "expected at most 1048576 bytes, got 104857600"),
        (tmp_path / "gone", "expected a readable file, got: No such file or directory"),
        (tmp_path, "expected a file, got a directory"),
        (pipe, "expected a file, got a pipe"),
    ):
        found = read(path)
        assert str(found.problems[0]) == f"{path}: {want}"
        assert found.raw == b""
    assert reload.watchable(str(pipe)) is None
    assert reload.watchable(str(tmp_path / "gone")) == tmp_path / "gone"


async def test_a_config_map_that_is_exchanged_vanishes_and_comes_back_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As kubelet mounts it: config.yaml -> ..data/config.yaml, ..data -> a folder per version, exchanged by rename.
    monkeypatch.setattr(reload, "LOOK_S", 0.01)

    def publish(version: str, written: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(written)
        link = tmp_path / "..data_tmp"
        link.symlink_to(version)
        link.rename(tmp_path / "..data")

    publish("v1", text())
    file = tmp_path / "config.yaml"
    file.symlink_to("..data/config.yaml")
    world = World(file=file)
    async with beside(world.reload.run()):
        await eventually(lambda: world.reload.taken_hash > 0)
        first = world.reload.taken_hash
        assert world.reload.results == {"ok": 0, "refused": 0}
        publish("v2", text(**SWAPPED))
        await eventually(lambda: world.reload.results["ok"] == 1)
        assert world.store.pool_names[0] == "aws"
        assert world.reload.taken_hash != first
        (tmp_path / "..data").unlink()
        await eventually(lambda: bool(world.reload.problems))
        assert world.store.pool_names[0] == "aws"
        assert "No such file" in str(world.reload.problems[0])
        publish("v3", text())
        await eventually(lambda: not world.reload.problems)
        assert world.store.pool_names[0] == "dc"
        assert world.reload.taken_hash == first


async def test_a_file_that_is_being_written_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look finds it longer than the one before.
    monkeypatch.setattr(reload, "LOOK_S", 0.0)
    looks = iter(range(1, 1000))
    whole = text(**SWAPPED)
    seen: list[str] = []

    def growing(_: Path) -> Content:
        part = whole[: next(looks) * 20]
        seen.append(part)
        return Content(digest=part, raw=part.encode())

    monkeypatch.setattr(reload, "read", growing)
    world = World(file=tmp_path / "config.yaml")
    async with beside(world.reload.run()):
        await eventually(lambda: world.reload.results["ok"] == 1)
    assert world.reload.results["refused"] == 0
    assert len(seen) > len(whole) / 20


async def test_without_a_file_nothing_is_looked_at() -> None:
    world = World()
    idle = Reload(None, cast("Running", world), world.notes.append)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await idle.run()
    assert idle.taken_hash == 0
