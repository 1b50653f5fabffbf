"""The world as it would be with us: by a plain reference of its own, and without a trace in the real store."""

from __future__ import annotations

import dataclasses
import math
import random
import zlib
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from scheduler.cluster.objects import NodeImage
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.preference_objects import Taint
from scheduler.core.nouns import PoolSpec
from scheduler.decision import shadow as shadows
from scheduler.decision.decider import Decider
from scheduler.decision.shadow import NO_ROOM, Shadow
from scheduler.decision.worlds import LOAD, POWER, World
from tests.builders import make_decider, make_inventory, make_node, make_pod, make_sample, make_store
from tests.dra import make_claim, make_class, make_slice

REST_W, BUSY_W = 60.0, 300.0
POOLS = (PoolSpec(name="dc-1", selector={"site": "dc-1"}), PoolSpec(name="aws-a", selector={"site": "aws-a"}))


@dataclass
class Scene:
    """A store with a decider, pods that are asked about and bound by somebody else, and the shadow beside."""

    sizes: dict[str, int]
    weights: dict[str, float] = field(default_factory=lambda: {"pack": 1.0})
    watched: bool = True
    sites: dict[str, str] = field(default_factory=dict)
    pools: tuple[PoolSpec, ...] = POOLS
    silent: tuple[str, ...] = ()
    """Nodes without an agent."""

    def __post_init__(self) -> None:
        self.now_s = 100.0
        self.store = make_store(self.pools)
        self.decider: Decider = make_decider(self.store, weights=self.weights)
        self.pods: dict[str, tuple[int, str, float]] = {}
        self.shadow: Shadow | None = None
        if self.watched:
            self.shadow = Shadow(self.decider, self.now_s, 1e9)
            self.decider.on_observed = self.shadow.ask
        for kind in (Kind.NODE, Kind.POD):
            self.apply(Listed(kind, frozenset()))
            if self.shadow is not None:
                self.shadow.store.synced.add(kind)
        for name in self.sizes:
            self.node(name)

    def apply(self, event: Any) -> None:
        """As the daemon does: first the store, then the shadow."""
        self.store.apply(event, self.now_s)
        shadow = self.shadow
        if shadow is None:
            return
        if isinstance(event, Listed):
            shadow.keep(event.kind, self.now_s)
        elif event.kind is Kind.NODE:
            shadow.see_node(event.object.metadata.name, self.now_s)
        else:
            shadow.see_pod(event.object.metadata.uid, self.now_s)

    def node(self, name: str, labels: dict[str, str] | None = None, *, cordoned: bool = False) -> None:
        site = self.sites.get(name, "dc-1")
        node = make_node(name, self.sizes[name], {"site": site, **(labels or {})}, cordoned=cordoned)
        self.apply(Changed(Kind.NODE, node))
        for store in self.stores if name not in self.silent else ():
            store.see_inventory(name, make_inventory(name, self.sizes[name]))

    @property
    def stores(self) -> list[Any]:
        return [self.store, *([self.shadow.store] if self.shadow is not None else [])]

    def ask(self, name: str, gpus: int, *nodes: str) -> str:
        """kube-scheduler asks about a pod, and is given everything back; the node that we would choose."""
        self.apply(Changed(Kind.POD, make_pod(name, gpus)))
        request = self.store.request(make_pod(name, gpus), 0.0, self.decider.profile_facts)
        rows = np.array([self.store.rows[node] for node in nodes or self.sizes], np.intp)
        self.decider.place(request, rows, self.now_s, 1e9, observe=True)
        return self.choice(name)

    def choice(self, name: str) -> str:
        if self.shadow is None:
            return ""
        promised = self.shadow.store.reservations.get(f"uid-{name}")
        return promised.node if promised is not None else ""

    def bind(self, name: str, gpus: int, node: str, busy_frac: float = 0.5) -> None:
        self.pods[name] = (gpus, node, busy_frac)
        self.apply(Changed(Kind.POD, make_pod(name, gpus, node=node)))

    def end(self, name: str) -> None:
        self.apply(Gone(Kind.POD, make_pod(name, self.pods.pop(name)[0])))

    def read(self, *unread: str) -> None:
        """Every agent tells what its GPUs do: those of a pod are busy, others rest."""
        for node, size in self.sizes.items():
            if node in self.silent:
                continue
            busy = [b for gpus, where, b in self.pods.values() if where == node for _ in range(gpus)]
            busy = (busy + [0.0] * size)[:size]
            util: list[float | None] = [None if node in unread else each for each in busy]
            sample = make_sample(node, util)
            sample.power_w[:] = [REST_W + BUSY_W * each for each in busy]
            for store in self.stores:
                store.see_samples([(node, sample, self.now_s)])
                store.tick(self.now_s)
        if self.shadow is not None:
            list(self.shadow.measure(self.now_s))

    def wait(self, span_s: float) -> None:
        self.now_s += span_s
        for store in self.stores:
            store.tick(self.now_s)
        if self.shadow is not None:
            list(self.shadow.try_waiting(self.now_s))

    def stands(self, name: str) -> tuple[str, str]:
        """Where it runs, and where it stands with us."""
        assert self.shadow is not None
        followed = self.shadow.pods[f"uid-{name}"]
        return followed.real, followed.node


# --- a reference of its own -----------------------------------------------------------------------------------------


def best_fit(sizes: dict[str, int], held: dict[str, int], gpus: int) -> str:
    """What `pack` chooses, in plain words: the node that is left with fewest free, then by a hash of its name."""
    room = [name for name, size in sizes.items() if size - held.get(name, 0) >= gpus]
    key = {name: (sizes[name] - held.get(name, 0) - gpus, zlib.crc32(name.encode())) for name in room}
    return min(room, key=lambda name: key[name], default="")


def figures(
    sizes: dict[str, int], pods: dict[str, tuple[int, str, float]], places: dict[str, str]
) -> tuple[float, float, int, float]:
    """Spread, stranded GPUs, nodes in use and their watts, of pods that stand somewhere; all of it added up by hand."""
    load, power_w, held = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0)
    for node, size in sizes.items():
        power_w[node] = REST_W * size
    for name, (gpus, real, _) in pods.items():
        # Of its node's bound GPUs each is taken to do the same.
        there = [(g, b) for g, where, b in pods.values() if where == real]
        mean = sum(g * b for g, b in there) / sum(g for g, _ in there)
        if places[name]:
            load[places[name]] += gpus * mean
            power_w[places[name]] += gpus * mean * BUSY_W
            held[places[name]] += gpus
    total = sum(sizes.values())
    mean_load = sum(load.values()) / total
    variance = sum(size * (load[n] / size - mean_load) ** 2 for n, size in sizes.items()) / total
    free = {n: size - held[n] for n, size in sizes.items()}
    used = [n for n in sizes if held[n]]
    return (
        math.sqrt(variance),
        float(sum(f for f in free.values() if f < 8)),
        len(used),
        sum(power_w[n] for n in used),
    )


def spread_by_kube_scheduler(sizes: dict[str, int], held: dict[str, int], gpus: int) -> str:
    room = [name for name in sizes if sizes[name] - held[name] >= gpus]
    return max(room, key=lambda name: (sizes[name] - held[name], name), default="")


@pytest.mark.parametrize("seed", range(8))
def test_the_figures_are_those_of_a_plain_reference(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {f"n{index}": rng.choice((4, 8, 8, 8)) for index in range(rng.randint(3, 9))}
    scene = Scene(sizes)
    held, ours_held = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
    places: dict[str, str] = {}
    for index in range(40):
        name, gpus = f"p{index}", rng.choice((1, 1, 2, 4))
        if scene.pods and rng.random() < 0.3:
            ended = rng.choice(list(scene.pods))
            gone, real, _ = scene.pods[ended]
            held[real] -= gone
            ours_held[places.pop(ended)] -= gone
            scene.end(ended)
        real = spread_by_kube_scheduler(sizes, held, gpus)
        ours = best_fit(sizes, ours_held, gpus)
        # Neither of the two is to wait here: see below.
        if not real or not ours or sum(held.values()) + gpus > 0.8 * sum(sizes.values()):
            continue
        assert scene.ask(name, gpus) == ours
        scene.bind(name, gpus, real, busy_frac=rng.choice((0.1, 0.5, 0.9)))
        held[real] += gpus
        ours_held[ours] += gpus
        places[name] = ours
        assert scene.stands(name) == (real, ours)
    scene.read()
    assert scene.shadow is not None
    worlds = scene.shadow.worlds()
    for world, where in ((worlds.real, {n: p[1] for n, p in scene.pods.items()}), (worlds.ours, places)):
        want = figures(sizes, scene.pods, where)
        got = (world.load_spread_frac, world.stranded_gpus, world.used_nodes, world.power_in_use_w)
        assert got == pytest.approx(want, rel=1e-5)
        assert world.power_nodes == world.used_nodes
    # What stands still is its own mean.
    scene.now_s += 5.0
    list(scene.shadow.measure(scene.now_s))
    means = scene.shadow.means.worlds()
    assert means is not None
    for mean, world in zip(means, (worlds.real, worlds.ours), strict=True):
        for each in fields(World):
            assert getattr(mean, each.name) == pytest.approx(getattr(world, each.name))
    assert worlds.real.gpu_nodes == worlds.ours.load_nodes == len(sizes)
    assert worlds.nodes_power_known == worlds.nodes_in_use
    assert scene.shadow.tally(scene.now_s).waiting == scene.shadow.waited_so_far == 0
    assert worlds.ours.used_nodes <= worlds.real.used_nodes


def by_hand(scene: Scene, places: dict[str, str]) -> tuple[float, float | None, float]:
    """Spread, watts and GPUs at work of pods that stand somewhere, by what each node measures at this instant.

    That is what `wattbalance nodes` says; a pod takes its share of its node's bound GPUs along.
    """
    load, power_w, bound = {}, {}, dict.fromkeys(scene.sizes, 0)
    for node in scene.sizes:
        readings = scene.store.gpu_readings(node)
        load[node] = sum(util or 0.0 for _, util, _ in readings)
        power_w[node] = sum(each_w or 0.0 for _, _, each_w in readings)
    for gpus, real, _ in scene.pods.values():
        bound[real] += gpus
    # What ended a moment ago is in the load still; no GPU is more than busy.
    shares = {
        name: (
            gpus * min(load[real] / bound[real], 1.0),
            gpus * (power_w[real] - REST_W * scene.sizes[real]) / bound[real],
        )
        for name, (gpus, real, _) in scene.pods.items()
    }
    for name, (_, real, _) in scene.pods.items():
        for column, share in zip((load, power_w), shares[name], strict=True):
            column[real] -= share
            if places[name]:
                column[places[name]] += share
    total = sum(scene.sizes.values())
    mean = sum(load.values()) / total
    variance = sum(size * (load[node] / size - mean) ** 2 for node, size in scene.sizes.items()) / total
    used = {place for place in places.values() if place}
    held = sum(gpus for name, (gpus, _, _) in scene.pods.items() if places[name])
    return math.sqrt(max(variance, 0.0)), sum(power_w[node] for node in used), float(held)


@pytest.mark.parametrize("seed", range(6))
def test_now_is_what_is_measured_now_and_the_mean_is_its_average_over_time(seed: int) -> None:
    rng = random.Random(seed)
    scene = Scene({"a": 8, "b": 8, "c": 4, "d": 8})
    shadow = scene.shadow
    assert shadow is not None
    places: dict[str, str] = {}
    spans: list[tuple[float, list[tuple[float, float | None, float]]]] = []
    for _ in range(30):
        name, gpus = f"p{len(places)}", rng.choice((1, 2))
        held = {node: sum(g for g, where, _ in scene.pods.values() if where == node) for node in scene.sizes}
        real = spread_by_kube_scheduler(scene.sizes, held, gpus)
        if len(scene.pods) < 9 and real:
            places[name] = scene.ask(name, gpus)
            scene.bind(name, gpus, real)
        if rng.random() < 0.3:
            ended = rng.choice(list(scene.pods))
            scene.end(ended)
        # What pods do changes all the time, also to nothing.
        scene.pods = {
            key: (g, where, rng.choice((0.0, 0.2, 0.9))) for key, (g, where, _) in scene.pods.items()
        }
        span_s = rng.choice((2.0, 5.0, 11.0))
        scene.now_s += span_s
        scene.read()
        worlds = shadow.worlds()
        want = [
            by_hand(scene, {pod: where for pod, (_, where, _) in scene.pods.items()}),
            by_hand(scene, {pod: places[pod] for pod in scene.pods}),
        ]
        for world, (spread, power_w, held_gpus) in zip((worlds.real, worlds.ours), want, strict=True):
            assert world.load_spread_frac == pytest.approx(spread, abs=1e-6)
            assert world.power_in_use_w == pytest.approx(power_w, rel=1e-6)
            assert world.held_gpus == held_gpus
        spans.append((span_s, want))
    means = shadow.means.worlds()
    assert means is not None
    total_s = sum(span_s for span_s, _ in spans)
    assert shadow.means.span_s == pytest.approx(total_s)
    for index, world in enumerate(means):
        sums = [sum(span_s * (want[index][each] or 0.0) for span_s, want in spans) for each in range(3)]
        got = (world.load_spread_frac, world.power_in_use_w, world.held_gpus)
        assert got == pytest.approx(tuple(each / total_s for each in sums), rel=1e-5)


def by_hand_as_far_as_measured(
    scene: Scene, places: dict[str, str]
) -> tuple[float, float | None, int, int, set[str]]:
    """Spread, watts, nodes in use and those of them that are measured, of the nodes with an agent alone; who counts
    where it runs.

    Who runs on a node without an agent, or would, counts where it runs, in both worlds.
    """
    measured = [node for node in scene.sizes if node not in scene.silent]
    load, power_w, bound = {}, {}, dict.fromkeys(scene.sizes, 0)
    for node in measured:
        readings = scene.store.gpu_readings(node)
        load[node] = sum(util or 0.0 for _, util, _ in readings)
        power_w[node] = sum(each_w or 0.0 for _, _, each_w in readings)
    before = dict(load), dict(power_w)
    for gpus, real, _ in scene.pods.values():
        bound[real] += gpus
    stay = set()
    for name, (gpus, real, _) in scene.pods.items():
        if real not in measured or (places[name] and places[name] not in measured):
            stay.add(name)
            continue
        share = gpus * min(before[0][real] / bound[real], 1.0)
        share_w = gpus * (before[1][real] - REST_W * scene.sizes[real]) / bound[real]
        for column, each in ((load, share), (power_w, share_w)):
            column[real] -= each
            if places[name]:
                column[places[name]] += each
    total = sum(scene.sizes[node] for node in measured)
    mean = sum(load.values()) / total
    variance = (
        sum(scene.sizes[node] * (load[node] / scene.sizes[node] - mean) ** 2 for node in measured) / total
    )
    used = {place for place in places.values() if place}
    drawing = (used | {scene.pods[name][1] for name in stay}) & set(measured)
    watts = sum(power_w[node] for node in drawing) if drawing or not used else None
    return math.sqrt(max(variance, 0.0)), watts, len(used), len(used & set(measured)), stay


@pytest.mark.parametrize("silent", [("a",), ("b", "c"), ("d",), ("a", "b", "d")], ids=",".join)
@pytest.mark.parametrize("seed", range(3))
def test_of_nodes_without_an_agent_nothing_is_guessed_and_nothing_saved(
    seed: int, silent: tuple[str, ...]
) -> None:
    rng = random.Random(seed)
    # On the last one no pod fits: it tells what a GPU draws at rest.
    scene = Scene({"a": 8, "b": 8, "c": 4, "d": 8, "rest": 1}, silent=silent)
    shadow = scene.shadow
    assert shadow is not None
    places: dict[str, str] = {}
    spans: list[tuple[float, list[tuple[float, float | None, int, int, set[str]]]]] = []
    for _ in range(30):
        name, gpus = f"p{len(places)}", rng.choice((2, 3))
        held = {node: sum(g for g, where, _ in scene.pods.values() if where == node) for node in scene.sizes}
        real = spread_by_kube_scheduler(scene.sizes, held, gpus)
        if real:
            places[name] = scene.ask(name, gpus)
            scene.bind(name, gpus, real, busy_frac=rng.choice((0.0, 0.2, 0.9)))
        if rng.random() < 0.5 and scene.pods:
            scene.end(rng.choice(list(scene.pods)))
        span_s = rng.choice((2.0, 5.0, 11.0))
        scene.now_s += span_s
        scene.read()
        worlds, places = shadow.worlds(), places | {pod: scene.stands(pod)[1] for pod in scene.pods}
        want = [
            by_hand_as_far_as_measured(scene, {pod: where for pod, (_, where, _) in scene.pods.items()}),
            by_hand_as_far_as_measured(scene, {pod: places[pod] for pod in scene.pods}),
        ]
        for world, (spread, power_w, used, measured, _) in zip((worlds.real, worlds.ours), want, strict=True):
            assert world.load_spread_frac == pytest.approx(spread, abs=1e-6)
            assert world.power_in_use_w == (None if power_w is None else pytest.approx(power_w, rel=1e-6))
            assert (world.used_nodes, world.power_nodes) == (used, measured)
            assert (world.gpu_nodes, world.load_nodes) == (5, 5 - len(silent))
        moved = {name: scene.pods[name][1] for name in scene.pods if places[name] != scene.pods[name][1]}
        slots = {name: shadow.pods[f"uid-{name}"].slot for name in moved}
        assert {name for name in moved if not worlds.power_taken[slots[name]]} == want[1][4] & moved.keys()
        assert worlds.unmeasured == sum(real in silent for real in moved.values())
        assert worlds.to_unmeasured == sum(places[name] in silent for name in moved)
        spans.append((span_s, want))
    means = shadow.means.worlds()
    assert means is not None
    # A mean is over the same instants in both columns.
    both = [(span_s, want) for span_s, want in spans if want[0][1] is not None and want[1][1] is not None]
    known_s = sum(span_s for span_s, _ in both)
    assert shadow.means.known_frac(POWER) == pytest.approx(known_s / sum(span_s for span_s, _ in spans))
    for index, world in enumerate(means):
        watts = sum(span_s * (want[index][1] or 0.0) for span_s, want in both) / known_s
        assert world.power_in_use_w == pytest.approx(watts, rel=1e-5)
        assert world.power_nodes <= world.used_nodes


def test_a_pod_that_would_be_on_a_node_without_an_agent_saves_nothing() -> None:
    """It alone is on the measured node: with us that one would be empty, and its watts gone to where nobody looks."""
    scene = Scene({"dark": 4, "lit": 4, "rest": 1}, silent=("dark",))
    shadow = scene.shadow
    assert shadow is not None
    assert scene.ask("p", 2, "dark") == "dark"
    scene.bind("p", 2, "lit", busy_frac=0.5)
    scene.now_s += 5.0
    scene.read()
    worlds = shadow.worlds()
    assert (worlds.unmeasured, worlds.to_unmeasured) == (0, 1)
    assert (worlds.real.used_nodes, worlds.real.power_nodes) == (1, 1)
    assert (worlds.ours.used_nodes, worlds.ours.power_nodes) == (1, 0)
    assert worlds.ours.power_in_use_w == worlds.real.power_in_use_w == pytest.approx(4 * REST_W + BUSY_W)
    assert worlds.ours.load_spread_frac == worlds.real.load_spread_frac
    slot = shadow.pods["uid-p"].slot
    assert (worlds.load_taken[slot], worlds.power_taken[slot]) == (False, False)
    # Its own measurement is known all the same.
    assert worlds.moved_power_w[slot] == pytest.approx(BUSY_W)


@pytest.mark.parametrize("what", ["load", "watts"])
def test_of_a_pod_that_would_be_where_only_one_of_both_is_measured_the_other_counts_where_it_runs(
    what: str,
) -> None:
    scene = Scene({"half": 4, "lit": 4, "rest": 1}, silent=("half",))
    shadow = scene.shadow
    assert shadow is not None
    scene.ask("p", 2, "half")
    scene.bind("p", 2, "lit", busy_frac=0.5)
    scene.read()
    sample = make_sample("half", [None if what == "watts" else 0.0] * 4)
    if what == "load":
        sample.power_w[:] = [None] * 4
    for store in scene.stores:
        store.see_inventory("half", make_inventory("half", 4))
        store.see_samples([("half", sample, scene.now_s)])
    worlds, slot = shadow.worlds(), shadow.pods["uid-p"].slot
    assert (worlds.unmeasured, worlds.to_unmeasured) == (0, 1)
    assert (worlds.load_taken[slot], worlds.power_taken[slot]) == (what == "load", what == "watts")
    # Of one node alone, the other half of a figure is not known.
    want_w = 4 * 100.0 + BUSY_W if what == "watts" else worlds.real.power_in_use_w
    assert worlds.ours.power_in_use_w == pytest.approx(want_w)
    assert (worlds.real.load_nodes, worlds.ours.power_nodes) == ((3, 0) if what == "load" else (2, 1))


def test_a_node_is_measured_if_all_of_its_gpus_are_and_one_without_gpus_is_none() -> None:
    scene = Scene({"a": 4, "b": 4, "bare": 0}, silent=("a", "bare"))
    scene.read()
    for store in scene.stores:
        store.see_inventory("a", make_inventory("a", 4))
        store.see_samples([("a", make_sample("a", [0.5, 0.5, 0.5, None]), scene.now_s)])
    assert scene.shadow is not None
    worlds = scene.shadow.worlds()
    for world in (worlds.real, worlds.ours):
        assert (world.gpu_nodes, world.load_nodes, world.load_spread_frac) == (2, 1, 0.0)


def test_gpus_that_are_broken_are_not_stranded() -> None:
    scene = Scene({"a": 4, "b": 8})
    for store in scene.stores:
        store.see_samples([("a", make_sample("a", [0.0] * 4, ["ok", "lost", "hung", "ok"]), scene.now_s)])
        store.see_samples([("b", make_sample("b", [0.0] * 8, ["lost"] + ["ok"] * 7), scene.now_s)])
    assert scene.shadow is not None
    worlds = scene.shadow.worlds()
    assert worlds.real.stranded_gpus == worlds.ours.stranded_gpus == 2 + 7


def test_who_draws_less_than_others_do_at_rest_takes_no_watts_along() -> None:
    scene = Scene({"a": 1, "b": 1, "rest": 2})
    ours = scene.ask("p", 1, "a", "b")
    real = "b" if ours == "a" else "a"
    scene.bind("p", 1, real)
    scene.bind("q", 1, ours)
    scene.read()
    sample = make_sample(real, [0.1])
    sample.power_w[:] = [REST_W - 20.0]
    for store in scene.stores:
        store.see_samples([(real, sample, scene.now_s)])
    shadow = scene.shadow
    assert shadow is not None
    worlds = shadow.worlds()
    assert worlds.moved_power_w[shadow.pods["uid-p"].slot] == 0.0
    assert worlds.real.power_in_use_w == pytest.approx(REST_W - 20.0 + REST_W + BUSY_W / 2)
    assert worlds.ours.power_in_use_w == pytest.approx(REST_W + BUSY_W / 2)


def test_an_instant_at_which_nothing_is_known_with_us_is_in_no_mean_of_watts_on_either_side() -> None:
    """What runs on the measured node would wait; what runs on the other stands there in both worlds."""
    scene = Scene({"dark": 4, "lit": 4, "rest": 1}, silent=("dark",))
    shadow = scene.shadow
    assert shadow is not None
    scene.bind("stays", 4, "dark")
    scene.apply(Changed(Kind.POD, make_pod("first", 4, nominated="lit", priority=10)))
    assert scene.ask("p", 4, "lit") == ""
    scene.node("lit", {"wattbalance.io/quarantine": "x"})
    scene.bind("p", 4, "lit")
    for _ in range(2):
        scene.now_s += 5.0
        scene.read()
    worlds, means = shadow.worlds(), shadow.means.worlds()
    assert worlds.real.power_in_use_w == pytest.approx(4 * REST_W + 2 * BUSY_W)
    assert worlds.ours.power_in_use_w is None
    assert means is not None
    assert means[0].power_in_use_w is means[1].power_in_use_w is None
    assert (shadow.means.known_frac(POWER), shadow.means.known_frac(LOAD)) == (0.0, 1.0)


def test_a_node_that_only_a_pod_without_a_reading_would_use_draws_what_it_draws_at_rest() -> None:
    scene = Scene({"dark": 4, "lit": 4, "rest": 1}, silent=("dark",))
    shadow = scene.shadow
    assert shadow is not None
    assert scene.ask("p", 2, "lit") == "lit"
    scene.bind("p", 2, "dark")
    scene.bind("other", 1, "rest", busy_frac=0.0)
    scene.now_s += 5.0
    scene.read()
    worlds = shadow.worlds()
    assert (worlds.unmeasured, worlds.to_unmeasured) == (1, 0)
    assert (worlds.real.used_nodes, worlds.real.power_nodes) == (2, 1)
    assert (worlds.ours.used_nodes, worlds.ours.power_nodes) == (2, 2)
    assert worlds.real.power_in_use_w == pytest.approx(REST_W)
    assert worlds.ours.power_in_use_w == pytest.approx(5 * REST_W)


def test_what_pods_did_once_is_in_their_mean_and_not_in_what_is_now() -> None:
    """Two nodes of 8, four GPUs busy on one and three on the other; then all of them idle."""
    scene = Scene({"aws1": 8, "dc1": 8})
    shadow = scene.shadow
    assert shadow is not None
    for index, node in enumerate(("aws1", "dc1") * 3 + ("aws1",)):
        scene.ask(f"p{index}", 1)
        scene.bind(f"p{index}", 1, node, busy_frac=0.8 if node == "aws1" else 0.4)
    scene.now_s += 5.0
    scene.read()
    busy = shadow.worlds().real
    assert busy.load_spread_frac == pytest.approx((4 * 0.8 - 3 * 0.4) / 8 / 2)
    assert busy.power_in_use_w == pytest.approx(16 * REST_W + BUSY_W * (4 * 0.8 + 3 * 0.4))
    scene.pods = {name: (gpus, node, 0.0) for name, (gpus, node, _) in scene.pods.items()}
    for _ in range(20):
        scene.wait(5.0)
        scene.read()
    worlds = shadow.worlds()
    one = scene.stands("p0")[1]
    assert worlds.ours.used_nodes == 1, f"all would be on {one}"
    assert worlds.real.power_in_use_w == 16 * REST_W
    assert worlds.ours.power_in_use_w == 8 * REST_W
    for world in (worlds.real, worlds.ours):
        assert world.load_spread_frac == pytest.approx(0.0, abs=1e-3)
    # The pods' own means, of 21 readings, are what they were.
    slots = [each.slot for each in shadow.pods.values() if each.slot >= 0]
    assert slots
    share = 0.8 if one == "dc1" else 0.4
    assert [shadow.moved.power_w[slot] for slot in slots] == pytest.approx([share * BUSY_W / 21] * len(slots))
    assert all(shadow.moved.load[slot] > 0.03 for slot in slots)
    assert all(worlds.moved_power_w[slot] == 0.0 for slot in slots)


def test_where_no_node_is_in_use_it_draws_nothing_and_work_is_missing() -> None:
    """A pod that would wait saves nothing: it does not run."""
    scene = Scene({"a": 4, "b": 4})
    shadow = scene.shadow
    assert shadow is not None
    scene.apply(Changed(Kind.POD, make_pod("first", 4, nominated="a", priority=10)))
    assert scene.ask("p", 4, "a") == ""
    for name in ("a", "b"):
        scene.node(name, {"wattbalance.io/quarantine": "x"})
    scene.bind("p", 4, "a", busy_frac=0.5)
    scene.now_s += 4.0
    scene.read()
    worlds, means = shadow.worlds(), shadow.means.worlds()
    assert means is not None
    busy_w = 4 * (REST_W + 0.5 * BUSY_W)
    for real, ours in ((worlds.real, worlds.ours), means):
        assert (real.used_nodes, real.power_in_use_w, real.held_gpus) == pytest.approx((1, busy_w, 4.0))
        assert (ours.used_nodes, ours.power_in_use_w, ours.held_gpus) == (0, 0.0, 0.0)
    assert shadow.means.known_frac(POWER) == 1.0


def test_an_instant_at_which_no_node_in_use_is_known_is_in_no_mean_of_watts_on_either_side() -> None:
    scene = Scene({"a": 8, "b": 8, "c": 8})
    shadow = scene.shadow
    assert shadow is not None
    ours = scene.ask("p", 4)
    real = next(name for name in scene.sizes if name != ours)
    scene.bind("p", 4, real, busy_frac=0.5)
    scene.now_s += 10.0
    scene.read()
    known = shadow.worlds()
    # For 1000 s nothing is heard of where it runs; where it would is read, and draws what it draws without it.
    silent = [name for name in scene.sizes if name != real]
    for span_s in (500.0, 500.0):
        scene.now_s += span_s
        for store in scene.stores:
            store.see_samples([(name, make_sample(name, [1.0] * 8), scene.now_s) for name in silent])
            store.tick(scene.now_s)
        list(shadow.measure(scene.now_s))
        now = shadow.worlds()
        assert now.nodes_power_known < now.nodes_in_use
        assert (now.real.power_in_use_w, now.ours.power_in_use_w) == (None, 800.0)
    means = shadow.means.worlds()
    assert means is not None
    assert (means[0].power_in_use_w, means[1].power_in_use_w) == pytest.approx(
        (known.real.power_in_use_w, known.ours.power_in_use_w)
    )
    assert shadow.means.known_frac(POWER) == pytest.approx(10 / 1010)
    assert shadow.means.known_frac(LOAD) == 1.0, "that of another node is known"
    assert means[0].held_gpus == means[1].held_gpus == 4.0


def test_what_a_pod_asks_for_of_memory_is_measured_where_it_runs_and_nowhere_else() -> None:
    scene = Scene({"a": 2, "b": 2})
    assert scene.shadow is not None
    for name, want in (("p", True), ("q", False)):
        ours = scene.ask(name, 1)
        node = next(each for each in ("a", "b") if (each == ours) is want)
        scene.apply(Changed(Kind.POD, make_pod(name, 1, node=node)))
        assert scene.stands(name) == (node, ours)
        scene.apply(Changed(Kind.POD, make_pod(name, 1, node=node, phase="Running")))
        assert scene.shadow.store.pods[f"uid-{name}"].running is want


def test_a_pod_that_waits_still_is_counted_up_to_now() -> None:
    scene = Scene({"a": 4})
    shadow = scene.shadow
    assert shadow is not None
    scene.bind("other", 4, "a")
    for name in ("p", "q"):
        scene.ask(name, 1)
        scene.bind(name, 1, "a")
        scene.wait(10.0)
    pods = shadow.tally(scene.now_s + 1.0)
    assert (pods.waiting, pods.waited_so_far, pods.waited_so_far_s) == (2, 2, 21.0 + 11.0)
    # Once it has room, its wait is over; what it was is kept, also when it ends.
    scene.end("other")
    scene.wait(1.0)
    for _ in range(2):
        pods = shadow.tally(scene.now_s)
        assert (pods.waiting, pods.waited_so_far, pods.waited_so_far_s) == (0, 2, 32.0)
        scene.now_s += 100.0
    # Where its node goes with us, it waits again: one pod, and more of its time.
    scene.end("q")
    scene.sizes["b"] = 4
    scene.node("b")
    scene.bind("r", 1, "b")
    scene.ask("s", 1, "a")
    scene.bind("s", 1, "b")
    assert scene.stands("s") == ("b", "a")
    scene.node("b", cordoned=True)
    del scene.sizes["a"]
    scene.apply(Gone(Kind.NODE, make_node("a")))
    assert scene.stands("s") == ("b", "")
    scene.now_s += 7.0
    pods = shadow.tally(scene.now_s)
    assert (pods.waiting, pods.waited_so_far, pods.waited_so_far_s) == (1, 3, 39.0)
    scene.sizes["c"] = 4
    scene.node("c")
    scene.wait(0.0)
    assert scene.stands("s") == ("b", "c")
    del scene.sizes["c"]
    scene.apply(Gone(Kind.NODE, make_node("c")))
    scene.now_s += 2.0
    pods = shadow.tally(scene.now_s)
    assert (pods.waiting, pods.waited_so_far, pods.waited_so_far_s) == (1, 3, 41.0)


def test_what_claims_hold_is_held_in_both_worlds() -> None:
    """Who asks by claims alone stands where it is: neither work nor a node in use is missing with us."""
    scene = Scene({})
    shadow = scene.shadow
    assert shadow is not None
    scene.store.on_devices = lambda name: shadow.see_node(name, scene.now_s)
    scene.store.apply(Changed(Kind.DEVICECLASS, make_class()), scene.now_s)
    for name in ("a", "b"):
        scene.sizes[name] = 0
        scene.store.apply(Changed(Kind.RESOURCESLICE, make_slice(name)), scene.now_s)
        scene.node(name)
    devices = [f"gpu-{index}" for index in range(3)]
    claim = make_claim("held", devices, "a", ("uid-somebody",))
    scene.store.apply(Changed(Kind.RESOURCECLAIM, claim), scene.now_s)
    scene.bind("q", 2, "b")
    worlds = shadow.worlds()
    for world in (worlds.real, worlds.ours):
        assert (world.held_gpus, world.used_nodes, world.stranded_gpus) == (5.0, 2, 11.0)


# --- case by case ---------------------------------------------------------------------------------------------------


def test_where_pods_stand_as_they_do_anyway_both_worlds_are_the_same() -> None:
    scene = Scene({"a": 8, "b": 8})
    for index in range(4):
        scene.bind(f"p{index}", 1, scene.ask(f"p{index}", 1))
    # Nobody asked about this one: it stands where it is.
    scene.bind("other", 2, "b")
    scene.read()
    assert scene.shadow is not None
    worlds, pods = scene.shadow.worlds(), scene.shadow.tally(scene.now_s)
    assert worlds.real == worlds.ours
    assert (pods.same, pods.elsewhere, pods.so_far) == (4, 0, 4)


def test_a_pod_that_has_no_room_with_us_waits_until_it_has() -> None:
    scene = Scene({"a": 4, "b": 4})
    # With us both are on one node, and the next finds room; really they are on two, and so does it.
    for name, node in (("p1", "a"), ("p2", "b")):
        scene.ask(name, 2)
        scene.bind(name, 2, node)
    one, other = sorted({scene.stands("p1")[1]} ^ {"a", "b"}), scene.stands("p1")[1]
    # With us this one takes the whole of the other node, and the last has none.
    assert scene.ask("big", 4) == one[0]
    scene.apply(Gone(Kind.POD, make_pod("big", 4)))
    scene.bind("past", 4, one[0])
    assert scene.ask("p3", 2, other) == ""
    scene.bind("p3", 2, other)
    assert scene.shadow is not None
    followed = scene.shadow.pods["uid-p3"]
    assert (followed.node, followed.reason) == ("", NO_ROOM)
    assert scene.shadow.tally(scene.now_s).waiting == 1
    assert len(scene.shadow.store.waiting) == 1
    worlds = scene.shadow.worlds()
    assert (worlds.real.waiting_pods, worlds.ours.waiting_pods) == (0, 1)
    scene.wait(30.0)
    assert followed.node == ""
    scene.end("p1")
    scene.wait(10.0)
    assert (followed.node, followed.reason) == (other, "")
    pods = scene.shadow.tally(scene.now_s)
    assert (pods.waiting, pods.waited_so_far, pods.waited_so_far_s) == (0, 1, 40.0)
    assert followed.waited_s == 40.0


def test_a_node_that_really_has_no_room_may_have_some_with_us() -> None:
    scene = Scene({"a": 4, "b": 4, "far": 4}, sites={"far": "aws-a"})
    first = scene.ask("p1", 4)
    other = next(name for name in ("a", "b") if name != first)
    scene.bind("p1", 4, other)
    # kube-scheduler cannot offer where it runs; nor does it offer the other pool, for reasons of its own.
    assert scene.ask("p2", 4, first) == other
    scene.bind("p2", 4, first)
    assert scene.stands("p2") == (first, other)


def test_gpus_that_only_an_agent_finds_are_in_both_worlds_alike_and_nothing_of_them_is_free() -> None:
    scene = Scene({"n1": 8, "bare": 0})
    shadow = scene.shadow
    assert shadow is not None
    for store in scene.stores:
        store.see_inventory("bare", make_inventory("bare"))
    for store in scene.stores:
        store.see_samples(
            [(name, make_sample(name, [util] * 8), 100.0) for name, util in (("n1", 0.0), ("bare", 1.0))]
        )
    worlds = shadow.worlds()
    assert worlds is not None
    assert (worlds.real.gpu_nodes, worlds.real.load_nodes) == (2, 2)
    assert worlds.real == worlds.ours
    assert worlds.real.load_spread_frac == pytest.approx(0.5)
    assert worlds.real.stranded_gpus == 0


def crossed(sizes: dict[str, int], sites: dict[str, str] | None = None) -> tuple[Scene, str, str]:
    """A pod that fills one of the first two nodes stands on the other with us: where it runs, and where it would."""
    scene = Scene(sizes, sites=sites or {})
    first, second = list(sizes)[:2]
    ours = scene.ask("p", sizes[first], first, second)
    real = second if ours == first else first
    scene.bind("p", sizes[first], real)
    assert scene.stands("p") == (real, ours)
    return scene, real, ours


def test_a_node_of_another_pool_or_one_that_is_cordoned_is_not_chosen_for_its_room_with_us() -> None:
    scene, real, ours = crossed({"a": 4, "b": 4})
    scene.node(real, cordoned=True)
    assert scene.ask("q", 4, ours) == ""
    scene.node(real)
    assert scene.ask("q", 4, ours) == real
    scene, real, _ = crossed({"far-1": 4, "far-2": 4, "a": 4}, {"far-1": "aws-a", "far-2": "aws-a"})
    scene.bind("other", 4, "a")
    assert scene.ask("q", 4, "a") == "", f"{real} is full really, and free with us, for pods of its pool"


def test_a_pod_that_waits_stands_on_no_node_that_is_cordoned_or_of_another_pool() -> None:
    scene = Scene({"a": 4, "far": 8}, sites={"far": "aws-a"})
    scene.bind("other", 4, "a")
    assert scene.ask("p", 4, "a") == ""
    scene.bind("p", 4, "a")
    scene.sizes["c"] = 4
    scene.node("c", cordoned=True)
    scene.wait(10.0)
    assert scene.stands("p") == ("a", "")
    scene.node("c")
    scene.wait(10.0)
    assert scene.stands("p") == ("a", "c")


def test_a_pod_that_waits_for_a_pool_goes_on_to_the_next_in_time() -> None:
    patient = (PoolSpec(name="dc-1", selector={"site": "dc-1"}, spill_after_s=60.0), POOLS[1])
    scene = Scene({"a": 4, "far": 8}, sites={"far": "aws-a"}, pools=patient)
    scene.bind("other", 4, "a")
    assert scene.ask("p", 4) == ""
    scene.bind("p", 4, "far")
    scene.wait(50.0)
    assert scene.stands("p") == ("far", "")
    scene.wait(11.0)
    assert scene.stands("p") == ("far", "far")
    assert scene.shadow is not None
    assert scene.shadow.tally(scene.now_s).waited_so_far_s == 61.0


def test_a_pod_that_waits_says_what_keeps_it_from_most_nodes() -> None:
    scene = Scene({"a": 8, "b": 8, "c": 8}, sites={"c": "aws-a"})
    for name in ("a", "b"):
        scene.node(name, {"wattbalance.io/quarantine": "x"})
    scene.apply(Changed(Kind.POD, make_pod("p", 1)))
    # It names its pool, and so one of three nodes is of another.
    request = dataclasses.replace(
        scene.store.request(make_pod("p", 1), 0.0, scene.decider.profile_facts), pools=(0,)
    )
    rows = np.array(list(scene.store.rows.values()), np.intp)
    scene.decider.place(request, rows, scene.now_s, 1e9, observe=True)
    scene.bind("p", 1, "c")
    assert scene.shadow is not None
    assert scene.shadow.pods["uid-p"].reason == "node in quarantine"
    # One that could take it, but for room.
    scene.sizes["full"] = 4
    scene.node("full")
    scene.bind("other", 4, "full")
    scene.wait(1.0)
    assert scene.shadow.pods["uid-p"].reason == NO_ROOM


def test_each_pod_that_waits_is_tried_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "TRIED_A_TURN", 1)
    scene = Scene({"a": 4})
    scene.bind("other", 4, "a")
    for name, gpus in (("large", 4), ("small", 1)):
        scene.ask(name, gpus)
        scene.bind(name, gpus, "a")
    scene.sizes["b"] = 2
    scene.node("b")
    scene.wait(1.0)
    assert scene.stands("small") == ("a", "")
    scene.wait(1.0)
    assert scene.stands("small") == ("a", "b")


def test_a_pod_that_is_asked_about_again_keeps_what_it_was_promised() -> None:
    scene = Scene({"a": 8})
    assert scene.ask("p", 4) == "a"
    assert scene.ask("p", 4) == "a"
    scene.sizes["tight"] = 4
    scene.node("tight")
    assert scene.ask("p", 4) == "a"


def test_what_moved_pods_do_counts_where_they_stand_and_not_where_they_run() -> None:
    """The two nodes are equal but for one pod: the next goes where that one would not be."""
    scene = Scene({"a": 8, "b": 8}, {"least-loaded": 1.0})
    ours = scene.ask("p", 4)
    real = next(name for name in scene.sizes if name != ours)
    scene.bind("p", 4, real, busy_frac=0.9)
    for _ in range(3):
        scene.wait(60.0)
        scene.read()
    assert scene.ask("q", 1) == real


def test_there_is_no_mean_before_a_pod_is_followed() -> None:
    scene = Scene({"a": 8, "b": 8})
    assert scene.shadow is not None
    scene.read()
    assert scene.shadow.means.worlds() is None
    scene.bind("p", 1, scene.ask("p", 1))
    scene.read()
    assert scene.shadow.means.worlds() is None, "no time has passed"
    scene.wait(5.0)
    scene.read()
    assert scene.shadow.means.worlds() is not None
    assert scene.shadow.means.span_s == 5.0
    # It is of all the time since then, also before another pod.
    scene.wait(3.0)
    scene.bind("q", 1, scene.ask("q", 1))
    scene.wait(4.0)
    scene.read()
    assert scene.shadow.means.span_s == 12.0


def test_the_time_before_the_first_pod_is_in_no_mean() -> None:
    scene = Scene({"a": 8, "b": 8})
    scene.read()
    scene.wait(1000.0)
    scene.read()
    scene.bind("p", 1, scene.ask("p", 1))
    scene.wait(5.0)
    scene.read()
    assert scene.shadow is not None
    assert scene.shadow.means.span_s == 5.0


def test_a_node_that_goes_in_both_worlds_moves_no_pod_and_one_that_goes_while_all_is_measured_nothing() -> (
    None
):
    scene = Scene({"a": 8, "b": 8, "c": 8})
    where = scene.ask("stays", 1)
    scene.bind("stays", 1, where)
    other = next(name for name in scene.sizes if name != where)
    scene.read()
    assert scene.shadow is not None
    steps = scene.shadow.measure(scene.now_s)
    next(steps)
    scene.apply(Listed(Kind.NODE, frozenset(scene.sizes) - {where, other}, began_mono_s=scene.now_s + 1))
    list(steps)
    assert scene.shadow.store.nodes.keys() == scene.store.nodes.keys() == scene.sizes.keys() - {where, other}
    assert scene.stands("stays") == (where, where)


def test_what_happens_while_all_is_measured_is_not_measured_of_somebody_else() -> None:
    """The node where it runs goes, and another comes into its row; and a first pod comes."""
    scene, real, _ = crossed({"a": 4, "b": 4})
    shadow = scene.shadow
    assert shadow is not None
    row, slot = scene.store.rows[real], shadow.pods["uid-p"].slot
    steps = shadow.measure(scene.now_s)
    next(steps)
    del scene.sizes[real]
    scene.apply(Gone(Kind.NODE, make_node(real)))
    scene.sizes["new"] = 4
    scene.node("new")
    assert scene.store.rows["new"] == row
    scene.bind("other", 4, "new")
    for store in scene.stores:
        store.see_samples([("new", make_sample("new", [0.9] * 4), scene.now_s)])
    list(steps)
    assert math.isnan(shadow.moved.load[slot])
    fresh = Scene({"a": 4})
    assert fresh.shadow is not None
    steps = fresh.shadow.measure(fresh.now_s)
    fresh.now_s += 1.0
    fresh.bind("p", 1, fresh.ask("p", 1))
    list(steps)
    assert fresh.shadow.means.span_s == 0.0
    fresh.now_s += 4.0
    fresh.read()
    assert fresh.shadow.means.span_s == pytest.approx(4.0)


def test_a_pod_that_runs_on_a_node_that_is_not_known_yet_has_its_gpus_once_it_is() -> None:
    scene = Scene({"a": 4})
    shadow = scene.shadow
    assert shadow is not None
    scene.ask("p", 3)
    scene.bind("p", 3, "late")
    slot = shadow.pods["uid-p"].slot
    assert shadow.moved.gpus[slot] == 0
    scene.sizes["late"] = 4
    scene.node("late")
    assert shadow.worlds().real.held_gpus == 3
    assert shadow.moved.gpus[slot] == 3


def test_a_promise_ends_with_us_though_nobody_waits_or_asks() -> None:
    scene = Scene({"a": 4})
    shadow = scene.shadow
    assert shadow is not None
    scene.ask("p", 3)
    free = shadow.store.snapshot.free_gpus.max()
    assert not list(shadow.try_waiting(scene.now_s + 1000.0))
    assert shadow.store.snapshot.free_gpus.max() == free + 3


def test_what_a_gpu_draws_at_rest_is_the_least_that_was_seen() -> None:
    scene = Scene({"a": 1, "b": 1, "rest": 1})
    ours = scene.ask("p", 1, "a", "b")
    scene.bind("p", 1, "b" if ours == "a" else "a")
    scene.bind("q", 1, ours)
    scene.read()
    sample = make_sample("rest", [0.0])
    sample.power_w[:] = [REST_W + 40.0]
    for store in scene.stores:
        store.see_samples([("rest", sample, scene.now_s)])
    shadow = scene.shadow
    assert shadow is not None
    list(shadow.measure(scene.now_s))
    assert shadow.worlds().moved_power_w[shadow.pods["uid-p"].slot] == pytest.approx(BUSY_W / 2)


def test_a_pod_counts_with_its_last_reading_else_with_its_mean_where_others_are_placed() -> None:
    scene, real, ours = crossed({"a": 4, "b": 4})
    shadow = scene.shadow
    assert shadow is not None
    scene.read()
    moved, slot, store = shadow.moved, shadow.pods["uid-p"].slot, shadow.store
    before = store.snapshot.load_sum
    for now, mean, want in ((1.0, 3.0, 1.0), (math.nan, 1.5, 1.5), (math.nan, math.nan, 0.0)):
        moved.load_now[slot], moved.load[slot] = now, mean
        after = shadow._with_loads(store.snapshot).load_sum
        assert after[store.rows[ours]] - before[store.rows[ours]] == pytest.approx(want)
        assert before[store.rows[real]] - after[store.rows[real]] == pytest.approx(want)
    moved.load_now[slot] = 100.0
    assert shadow._with_loads(store.snapshot).load_sum[store.rows[real]] == 0.0


def test_a_pod_takes_no_more_along_than_its_node_has() -> None:
    """As where its GPUs were divided anew since it was moved."""
    scene, _, _ = crossed({"a": 4, "b": 4})
    shadow = scene.shadow
    assert shadow is not None
    shadow.moved.gpus[shadow.pods["uid-p"].slot] = 16
    assert shadow.worlds().ours.held_gpus == 16


def test_the_row_of_a_node_that_went_is_nobodys() -> None:
    scene, real, ours = crossed({"a": 4, "b": 4})
    assert scene.shadow is not None
    moved, slot = scene.shadow.moved, scene.shadow.pods["uid-p"].slot
    assert [moved.real[slot], moved.ours[slot]] == [scene.store.rows[real], scene.shadow.store.rows[ours]]
    scene.apply(Gone(Kind.NODE, make_node(real)))
    scene.shadow.worlds()
    assert [moved.real[slot], moved.ours[slot]] == [-1, scene.shadow.store.rows[ours]]


def test_a_pod_stands_as_it_was_promised_whatever_is_told_of_it_or_comes_later() -> None:
    scene = Scene({"a": 8, "b": 8})
    ours = scene.ask("p", 2)
    scene.sizes["tight"] = 2
    scene.node("tight")
    real = next(name for name in ("a", "b") if name != ours)
    scene.bind("p", 2, real)
    scene.bind("p", 2, real)
    assert scene.stands("p") == (real, ours)
    assert scene.shadow is not None
    assert scene.shadow.store.pods["uid-p"].node == ours
    assert scene.shadow.tally(scene.now_s).so_far == 1


def test_a_node_that_really_has_room_and_is_not_offered_is_not_chosen() -> None:
    scene = Scene({"a": 4, "b": 4})
    scene.bind("other", 4, "a")
    assert scene.ask("p", 4, "a") == ""
    assert scene.ask("p", 4, "a", "b") == "b"


def test_a_promise_that_is_over_holds_nothing_with_us_either() -> None:
    scene = Scene({"a": 4})
    assert scene.ask("p", 4) == "a"
    scene.now_s += 1000.0
    assert scene.ask("q", 4) == "a"


def test_what_is_held_for_a_nominated_pod_is_held_with_us() -> None:
    scene = Scene({"a": 4, "b": 4})
    scene.apply(Changed(Kind.POD, make_pod("first", 4, nominated="a", priority=10)))
    for priority, want in ((5, ""), (20, "a")):
        pod = make_pod(f"p{priority}", 4, priority=priority)
        scene.apply(Changed(Kind.POD, pod))
        request = scene.store.request(pod, 0.0, scene.decider.profile_facts)
        scene.decider.place(
            request, np.array([scene.store.rows["a"]], np.intp), scene.now_s, 1e9, observe=True
        )
        assert scene.choice(pod.metadata.name) == want


def test_free_gpus_of_nodes_that_take_nobody_are_not_stranded_nor_are_there_less_than_none() -> None:
    scene = Scene({"cordoned": 4, "sick": 4, "crowded": 4, "free": 4})
    scene.node("cordoned", cordoned=True)
    scene.node("sick", {"wattbalance.io/quarantine": "x"})
    for name in ("p", "q"):
        scene.bind(name, 4, "crowded")
    assert scene.shadow is not None
    worlds = scene.shadow.worlds()
    assert (worlds.real.stranded_gpus, worlds.ours.stranded_gpus) == (4.0, 4.0)


def test_what_was_measured_long_ago_is_unknown() -> None:
    scene = Scene({"a": 4, "b": 4})
    scene.read()
    assert scene.shadow is not None
    assert scene.shadow.worlds().ours.load_nodes == 2
    scene.wait(1000.0)
    assert scene.shadow.worlds().ours.load_nodes == 0


def test_a_pod_that_moved_since_the_last_reading_hides_no_node_and_what_is_real_stays_what_is_measured() -> (
    None
):
    scene = Scene({"a": 8, "b": 8, "c": 8})
    ours = scene.ask("p", 1)
    real = next(name for name in scene.sizes if name != ours)
    for name, node in (("there", real), ("here", ours)):
        scene.bind(name, 1, node)
    scene.read()
    assert scene.shadow is not None
    before = scene.shadow.worlds()
    scene.bind("p", 1, real)
    assert scene.stands("p") == (real, ours)
    worlds = scene.shadow.worlds()
    assert (worlds.real.load_nodes, worlds.nodes_power_known, worlds.unmeasured) == (3, 2, 0)
    assert worlds.real.load_spread_frac == before.real.load_spread_frac
    assert worlds.real.power_in_use_w == before.real.power_in_use_w
    # Until the node is read again, the two there share what one of them did.
    slot = scene.shadow.pods["uid-p"].slot
    assert worlds.moved_load[slot] == pytest.approx(0.5 / 2)
    scene.read()
    assert scene.shadow.worlds().ours.load_nodes == 3
    # Where its node is silent, it is unknown; the node that it would be on is measured without it.
    scene.wait(1000.0)
    for store in scene.stores:
        store.see_samples(
            [(name, make_sample(name, [0.5] * 8), scene.now_s) for name in scene.sizes if name != real]
        )
        store.tick(scene.now_s)
    worlds = scene.shadow.worlds()
    assert (worlds.real.load_nodes, worlds.unmeasured) == (2, 1)
    scene.end("p")
    assert scene.shadow.worlds().unmeasured == 0


def test_who_finds_no_room_at_a_second_question_is_promised_nothing_any_more() -> None:
    scene = Scene({"a": 4, "b": 4})
    assert scene.ask("p", 4, "a") == "a"
    scene.bind("other", 4, "b")
    assert scene.ask("p", 4, "b") == ""


def test_of_more_pods_than_are_followed_the_others_stand_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadows, "MOST_FOLLOWED", 1)
    scene = Scene({"a": 8, "b": 8})
    for name in ("p", "q"):
        ours = scene.ask(name, 1)
        scene.bind(name, 1, "a" if ours == "b" else "b")
    assert scene.shadow is not None
    assert list(scene.shadow.pods) == ["uid-p"]
    assert scene.shadow.store.pods["uid-q"].node == scene.store.pods["uid-q"].node
    pods = scene.shadow.tally(scene.now_s)
    assert (pods.so_far, pods.left_out, pods.asked) == (1, 1, 0)


def test_what_was_chosen_for_a_pod_long_ago_is_forgotten() -> None:
    """Who is asked about and never bound would be remembered for ever."""
    scene = Scene({"a": 8})
    scene.ask("p", 1)
    assert scene.shadow is not None
    choices = scene.shadow.store.reservations._choices
    assert choices
    scene.wait(100_000.0)
    assert not choices


def test_of_more_pods_than_are_kept_the_one_that_was_asked_about_longest_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadows, "MOST_ASKED", 2)
    scene = Scene({"a": 8, "b": 8})
    for name in ("p", "q", "p", "r"):
        scene.ask(name, 1)
    assert scene.shadow is not None
    assert scene.shadow.tally(scene.now_s).asked == 2
    for name in ("p", "q", "r"):
        scene.bind(name, 1, "a")
    assert sorted(scene.shadow.pods) == ["uid-p", "uid-r"]


def test_a_pod_of_no_gpu_or_that_runs_or_that_nobody_created_is_not_followed() -> None:
    scene = Scene({"a": 8, "b": 8})
    scene.ask("none", 0)
    scene.bind("runs", 1, "a")
    assert scene.shadow is not None
    for pod in (make_pod("runs", 1), make_pod("unseen", 1)):
        request = scene.store.request(pod, 0.0, scene.decider.profile_facts)
        scene.decider.place(request, np.array([0, 1], np.intp), scene.now_s, 1e9, observe=True)
    assert scene.shadow.tally(scene.now_s).asked == 1, "it may be seen soon"
    # A question by hand, about a pod that has no uid yet.
    request = scene.store.request(make_pod("nameless", 1), 0.0, scene.decider.profile_facts)
    request = dataclasses.replace(request, uid="")
    scene.decider.place(request, np.array([0, 1], np.intp), scene.now_s, 1e9, observe=True)
    assert scene.shadow.tally(scene.now_s).asked == 1
    scene.apply(Listed(Kind.POD, frozenset({"uid-runs"}), began_mono_s=scene.now_s + 1))
    assert scene.shadow.tally(scene.now_s).asked == 0


def test_what_is_not_measured_is_left_out_on_both_sides_and_counted() -> None:
    scene = Scene({"a": 8, "b": 8, "c": 8})
    ours = scene.ask("p", 1)
    real, untouched = sorted(set(scene.sizes) - {ours})
    scene.bind("p", 1, real)
    assert scene.shadow is not None
    worlds = scene.shadow.worlds()
    assert (worlds.real.load_spread_frac, worlds.real.power_in_use_w, worlds.real.load_nodes) == (
        None,
        None,
        0,
    )
    scene.read(real)
    worlds = scene.shadow.worlds()
    # Where it runs is out of both; where it would stand is measured, and without it in both.
    assert worlds.real.load_nodes == worlds.ours.load_nodes == 2
    assert worlds.real.load_spread_frac == worlds.ours.load_spread_frac == 0.0
    assert (worlds.unmeasured, worlds.to_unmeasured) == (1, 0)
    scene.read()
    assert scene.shadow.worlds().ours.load_nodes == 3
    assert scene.shadow.worlds().unmeasured == 0
    assert untouched


def test_what_a_full_node_draws_at_rest_is_known_by_others_of_its_model_or_not_at_all() -> None:
    for resting in (False, True):
        scene = Scene({"a": 1, "b": 1})
        ours = scene.ask("p", 1)
        real = next(name for name in scene.sizes if name != ours)
        scene.bind("p", 1, real)
        scene.bind("q", 1, ours)
        if resting:
            scene.sizes["c"] = 2
            scene.node("c")
        scene.read()
        assert scene.shadow is not None
        # Both have but one GPU, and that is held.
        worlds = scene.shadow.worlds()
        assert worlds.unmeasured == (0 if resting else 1)
        busy_w = REST_W + 0.5 * BUSY_W
        assert worlds.real.power_in_use_w == pytest.approx(2 * busy_w)
        # What it draws is in its node's watts, and can be taken off only if it is known.
        assert worlds.ours.power_in_use_w == pytest.approx(2 * busy_w - (REST_W if resting else 0.0))
        assert worlds.nodes_power_known == worlds.nodes_in_use == 2


def test_what_each_model_draws_at_rest_is_learnt_from_whichever_node_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many free nodes of other models come before."""
    monkeypatch.setattr(shadows, "NODES_A_STEP", 1)
    scene = Scene({"a": 1, "b": 1, "x": 2, "y": 2, "z": 2})
    for name in ("x", "y"):
        for store in scene.stores:
            store.see_inventory(name, make_inventory(name, 2, "NVIDIA T4"))
    ours = scene.ask("p", 1, "a", "b")
    real = next(name for name in ("a", "b") if name != ours)
    scene.bind("p", 1, real)
    scene.bind("q", 1, ours)
    assert scene.shadow is not None
    unmeasured = []
    for _ in range(3):
        scene.read()
        unmeasured.append(scene.shadow.worlds().unmeasured)
    assert unmeasured == [1, 1, 0]


def test_a_node_that_goes_takes_nobody_with_it_who_really_runs_elsewhere() -> None:
    scene = Scene({"a": 8, "b": 8, "c": 8})
    ours = scene.ask("p", 1)
    real = next(name for name in scene.sizes if name != ours)
    scene.bind("p", 1, real)
    scene.apply(Gone(Kind.NODE, make_node(ours)))
    del scene.sizes[ours]
    assert scene.stands("p")[1] in scene.sizes
    assert scene.shadow is not None
    scene.read()
    assert scene.shadow.worlds().ours.gpu_nodes == 2
    # And back again, in another row perhaps.
    scene.sizes[ours] = 8
    scene.node(ours)
    scene.read()
    assert scene.shadow.worlds().ours.load_nodes == 3


def test_a_new_list_forgets_what_it_does_not_name() -> None:
    scene = Scene({"a": 8, "b": 8})
    for name in ("p", "q"):
        scene.ask(name, 1)
    scene.bind("p", 1, "a")
    scene.apply(Listed(Kind.POD, frozenset(), began_mono_s=scene.now_s + 1))
    assert scene.shadow is not None
    assert not scene.shadow.pods
    assert not scene.shadow.store.pods
    assert scene.shadow.tally(scene.now_s).asked == 0
    assert not len(scene.shadow.moved)


@pytest.mark.parametrize("policy", ["image", "taint-toleration"])
@pytest.mark.parametrize("best", ["a", "b", "c"])
def test_it_chooses_by_what_only_the_real_store_is_told_of_nodes(policy: str, best: str) -> None:
    scene = Scene({"goes": 8, "a": 8, "b": 8, "c": 8}, weights={policy: 1.0})
    # The rows of both stores have a hole.
    del scene.sizes["goes"]
    scene.apply(Gone(Kind.NODE, make_node("goes")))
    for name in scene.sizes:
        bare = make_node(name, 8, {"site": "dc-1"})
        if policy == "image" and name == best:
            status = replace(bare.status, images=[NodeImage(names=["docker.io/big:1"], size_bytes=2**30)])
            scene.apply(Changed(Kind.NODE, replace(bare, status=status)))
        if policy != "image" and name != best:
            spec = replace(bare.spec, taints=[Taint(key="old", effect="PreferNoSchedule")])
            scene.apply(Changed(Kind.NODE, replace(bare, spec=spec)))
    asked = make_pod("p", 1)
    container = replace((asked.spec.containers or [])[0], image="docker.io/big:1")
    pod = replace(asked, spec=replace(asked.spec, containers=[container]))
    scene.apply(Changed(Kind.POD, pod))
    request = scene.store.request(pod, 0.0, scene.decider.profile_facts)
    rows = np.array([scene.store.rows[node] for node in scene.sizes], np.intp)
    scene.decider.place(request, rows, scene.now_s, 1e9, observe=True)
    assert scene.choice("p") == best


def test_it_begins_as_the_world_is() -> None:
    scene = Scene({"a": 8, "b": 8}, watched=False)
    scene.bind("p", 3, "a")
    scene.read()
    shadow = Shadow(scene.decider, scene.now_s, 1e9)
    for name in scene.store.nodes:
        shadow.see_node(name, scene.now_s)
    for uid in scene.store.pods:
        shadow.see_pod(uid, scene.now_s)
    for name in scene.store.nodes:
        one, other = scene.store.rows[name], shadow.store.rows[name]
        for column in ("gpu_count", "bound_gpus", "free_gpus", "pool", "models"):
            assert getattr(scene.store.snapshot, column)[one] == getattr(shadow.store.snapshot, column)[other]


# --- properties -----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("ask", "bind", "end", "read", "wait", "go", "come", "list", "sick")),
        st.integers(0, 5),
        st.integers(1, 8),
        st.sampled_from(("a", "b", "c")),
    ),
    max_size=40,
)


def play(scene: Scene, steps: list[tuple[str, int, int, str]]) -> None:
    """The same life for each scene."""
    sizes: dict[str, int] = {}
    for word, number, gpus, node in steps:
        name = f"p{number}"
        scene.now_s += 0.5
        if word == "ask" and node in scene.sizes and name not in scene.pods:
            sizes[name] = gpus
            scene.ask(name, gpus)
        elif word == "bind" and name in sizes and name not in scene.pods:
            scene.bind(name, sizes[name], node)
        elif word == "end" and name in scene.pods:
            scene.end(name)
        elif word == "read":
            scene.read(*([node] if gpus > 4 else []))
        elif word == "wait":
            scene.wait(gpus * 10.0)
        elif word == "go" and node in scene.sizes and len(scene.sizes) > 1:
            del scene.sizes[node]
            scene.apply(Gone(Kind.NODE, make_node(node)))
        elif word == "come" and node not in scene.sizes:
            scene.sizes[node] = 8
            scene.node(node)
        elif word == "list":
            keys = frozenset(f"uid-{each}" for each in scene.pods if each != name)
            scene.pods.pop(name, None)
            scene.apply(Listed(Kind.POD, keys, began_mono_s=scene.now_s + 1))
        elif word == "sick" and node in scene.sizes:
            scene.node(node, {"wattbalance.io/quarantine": "x"})


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_the_real_store_and_its_decisions_are_the_same_without_it(
    steps: list[tuple[str, int, int, str]],
) -> None:
    scenes = [Scene({"a": 8, "b": 4, "c": 8}, watched=watched) for watched in (True, False)]
    for scene in scenes:
        play(scene, steps)
    one, other = (scene.store for scene in scenes)
    for each in fields(one.snapshot):
        got, want = getattr(one.snapshot, each.name), getattr(other.snapshot, each.name)
        if isinstance(want, np.ndarray):
            np.testing.assert_array_equal(got, want)
        else:
            assert got == want
    assert one.pods == other.pods
    assert one.counters == other.counters
    assert list(one.reservations.made_before(math.inf)) == list(other.reservations.made_before(math.inf))
    assert list(scenes[0].decider.log) == list(scenes[1].decider.log)


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_whatever_happens_each_pod_stands_once_and_its_sums_add_up(
    steps: list[tuple[str, int, int, str]],
) -> None:
    scene = Scene({"a": 8, "b": 4, "c": 8}, weights={"least-loaded": 1.0, "pack": 1.0})
    play(scene, steps)
    shadow = scene.shadow
    assert shadow is not None
    # 1. The same pods, each on the node that is noted of it.
    assert shadow.store.pods.keys() == scene.store.pods.keys()
    for uid, facts in scene.store.pods.items():
        followed = shadow.pods.get(uid)
        assert shadow.store.pods[uid].node == (followed.node if followed else facts.node)
    # 2. Every count of it adds up.
    pods = shadow.tally(scene.now_s)
    assert pods.same + pods.elsewhere + pods.waiting == len(shadow.pods) <= pods.so_far
    assert pods.waiting == sum(not each.node for each in shadow.pods.values())
    moved = [each for each in shadow.pods.values() if each.slot >= 0]
    assert len({each.slot for each in moved}) == len(moved) == len(shadow.moved)
    # 3. Figures are figures.
    worlds = shadow.worlds()
    for world in (worlds.real, worlds.ours):
        assert world.load_spread_frac is None or 0 <= world.load_spread_frac < math.inf
        assert world.power_in_use_w is None or 0 <= world.power_in_use_w < math.inf
        assert world.stranded_gpus >= 0
    # 4. What is missing with us is what pods that wait hold; what is not missing there is of nodes that just went.
    lost = sum(
        float(shadow.moved.gpus[each.slot]) * ((each.real in scene.sizes) - bool(each.node)) for each in moved
    )
    assert worlds.real.held_gpus - worlds.ours.held_gpus == pytest.approx(lost)
    # 5. Who waits has waited up to now.
    assert shadow.tally(scene.now_s + 10.0).waited_so_far_s == pytest.approx(
        pods.waited_so_far_s + 10.0 * pods.waiting
    )
    assert pods.waiting <= pods.waited_so_far
