"""`/api/v1/observe`, figure by figure: each stands where it belongs, and each note where it is true."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler.core.clock import ManualClock
from scheduler.decision import shadow as shadows
from scheduler.decision.shadow import Shadow
from scheduler.report.observation import ObservedWorld, ObserveReport
from scheduler.report.observe import KEPT, ObserveReporter, _each, ended
from tests.builders import make_sample
from tests.decision.test_shadow import Scene


class Watched:
    """What is observed, by a scene's shadow."""

    def __init__(self, shadow: Shadow | None) -> None:
        self.shadow = shadow
        self.failed = False
        self.last: ObserveReport | None = None
        self.what: Callable[[], str] = lambda: "everything"
        self.began_for = "everything"
        self.process_since_unix_s = 1e9


def fields(world: ObservedWorld | None) -> tuple[object, ...]:
    assert world is not None
    return (
        world.load_spread_frac,
        world.gpu_nodes,
        world.load_nodes,
        world.stranded_gpus,
        world.used_nodes,
        world.power_in_use_w,
        world.power_nodes,
        world.held_gpus,
        world.waiting_pods,
    )


def life() -> tuple[Scene, Shadow]:
    """Two pods elsewhere, one the same, one that waited 30 s, and one that waits; a node is empty."""
    sizes = {"a": 4, "b": 4, "c": 8, "d": 8, "e": 2, "idle": 8}
    scene = Scene(sizes, sites=dict.fromkeys(("c", "d", "e", "idle"), "aws-a"))
    shadow = scene.shadow
    assert shadow is not None
    for name, gpus, offered in (("far", 4, ("a", "b")), ("away", 2, ("c", "d"))):
        ours = scene.ask(name, gpus, *offered)
        scene.bind(name, gpus, next(each for each in offered if each != ours), busy_frac=0.9)
    scene.bind("same", 2, scene.ask("same", 2, "e"), busy_frac=0.1)
    scene.bind("ends", 4, scene.stands("far")[0])
    for name in ("late", "waits"):
        assert scene.ask(name, 4, "a", "b") == ""
        scene.bind(name, 4, scene.stands("far")[1])
    scene.wait(30.0)
    scene.end("ends")
    scene.wait(0.0)
    scene.read()
    scene.wait(20.0)
    scene.read()
    return scene, shadow


def test_every_figure_is_that_of_the_two_worlds() -> None:
    scene, shadow = life()
    report = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s)).report()
    worlds, means, pods = shadow.worlds(), shadow.means.worlds(), shadow.tally(scene.now_s)
    assert means is not None
    for told, want in (
        (report.real, worlds.real),
        (report.ours, worlds.ours),
        (report.real_mean, means[0]),
        (report.ours_mean, means[1]),
    ):
        assert fields(told) == (
            want.load_spread_frac,
            want.gpu_nodes,
            want.load_nodes,
            want.stranded_gpus,
            want.used_nodes,
            want.power_in_use_w,
            want.power_nodes,
            want.held_gpus,
            want.waiting_pods,
        )
    assert len({fields(each) for each in (report.real, report.ours)}) == 2
    assert (report.pods_so_far, report.pods_same, report.pods_elsewhere, report.pods_waiting) == (5, 1, 3, 1)
    assert (report.pods_waited_so_far, report.waited_longer_s) == (2, pods.waited_so_far_s) == (2, 80.0)
    assert (report.nodes, report.nodes_in_use) == (6, worlds.nodes_in_use)
    assert report.nodes_in_use < report.nodes
    assert any("5 pods placed since" in note and ", 5 of which still run" in note for note in report.notes)


def test_every_pod_is_told_with_what_it_does_newest_first() -> None:
    scene, shadow = life()
    reporter = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s))
    pods = {pod.name: pod for pod in reporter.report().pods}
    assert list(pods) == ["waits", "late", "same", "away", "far"]
    assert [pod.name for pod in reporter.report(2).pods] == ["waits", "late"]
    assert {name: pod.place for name, pod in pods.items()} == {
        "waits": "waiting",
        "late": "elsewhere",
        "same": "same",
        "away": "elsewhere",
        "far": "elsewhere",
    }
    assert [pods[name].waited_longer_s for name in ("waits", "late", "far")] == [50.0, 30.0, 0.0]
    assert (pods["far"].gpus, pods["same"].load, pods["same"].power_w) == (4.0, None, None)
    slot = shadow.pods["uid-far"].slot
    worlds = shadow.worlds()
    assert (pods["far"].load, pods["far"].power_w) == (worlds.moved_load[slot], worlds.moved_power_w[slot])
    assert (pods["far"].mean_load, pods["far"].mean_power_w) == (
        shadow.moved.load[slot],
        shadow.moved.power_w[slot],
    )
    assert pods["same"].mean_load is pods["same"].mean_power_w is None


def test_the_columns_can_be_followed_by_the_pods_below_them() -> None:
    """Ours is the real one, with each pod's load and watts elsewhere: node by node, from what the report tells."""
    scene, shadow = life()
    report = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s)).report()
    readings = {node: scene.store.gpu_readings(node) for node in scene.sizes}
    power_w = {node: sum(each_w or 0.0 for _, _, each_w in each) for node, each in readings.items()}
    assert report.real is not None
    assert report.ours is not None
    assert report.real.power_in_use_w == pytest.approx(
        sum(power_w[node] for node in {pod.real for pod in report.pods})
    )
    for pod in report.pods:
        if pod.place != "same":
            assert pod.power_w is not None
            power_w[pod.real] -= pod.power_w
            if pod.ours:
                power_w[pod.ours] += pod.power_w
    assert report.ours.power_in_use_w == pytest.approx(
        sum(power_w[node] for node in {pod.ours for pod in report.pods if pod.ours})
    )
    assert report.legend[0].startswith("REALLY is what is measured.")


def test_work_that_is_missing_is_told_beside_the_watts() -> None:
    scene, shadow = life()
    report = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s)).report()
    assert report.real is not None
    assert report.ours is not None
    assert (report.real.held_gpus, report.ours.held_gpus) == (16.0, 12.0)
    assert sum(pod.gpus for pod in report.pods if pod.place == "waiting") == 4.0
    assert any(
        line.startswith("WITH US lacks the work of pods that would wait (GPUs: 4 now, 4 in the mean)")
        and line.endswith("less work, not less power for it.")
        for line in report.legend
    ), report.legend
    scene.end("waits")
    # What was missing is still so in the mean.
    legend = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s)).report().legend
    assert any(
        line.startswith("WITH US lacks the work of pods that would wait (GPUs: 0 now, 4 in the mean)")
        for line in legend
    )
    other = Scene({"a": 8})
    other.bind("p", 1, other.ask("p", 1))
    other.now_s += 5.0
    other.read()
    legend = ObserveReporter(Watched(other.shadow), ManualClock(mono_s=other.now_s)).report().legend
    assert len(legend) == 2, "nothing is missing, nothing unknown"


def test_the_share_of_time_that_was_known_is_told() -> None:
    scene = Scene({"a": 8, "b": 8})
    shadow = scene.shadow
    assert shadow is not None
    scene.bind("p", 1, scene.ask("p", 1))
    for span_s, reads in ((30.0, ""), (50.0, "load"), (20.0, "all")):
        scene.now_s += span_s
        if reads == "all":
            scene.read()
        for store in scene.stores if reads == "load" else ():
            for name in scene.sizes:
                sample = make_sample(name)
                sample.power_w[0] = None
                store.see_samples([(name, sample, scene.now_s)])
        list(shadow.measure(scene.now_s))
    report = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s)).report()
    assert (report.mean_span_s, report.mean_load_known_frac, report.mean_power_known_frac) == (
        100.0,
        0.7,
        0.2,
    )
    for text in (
        "MEAN is the average of the same figures over the 100 s",
        "Its spread is over the 70.0%",
        "Its watts are over the 20.0%",
    ):
        assert sum(line.startswith(text) for line in report.legend) == 1, text


def test_what_has_ended_is_kept_as_it_was_and_when() -> None:
    scene, shadow = life()
    watched = Watched(shadow)
    clock = ManualClock(mono_s=scene.now_s, unix_s=2e9)
    reporter = ObserveReporter(watched, clock)
    before = reporter.report()
    # Nobody has looked since it ended.
    watched.what = lambda: ""
    at_once = reporter.report()
    assert (at_once.status, at_once.observing, at_once.observed) == ("ended", "", "everything")
    watched.last, watched.shadow = ended(shadow, "everything", clock.mono_s(), clock.unix_s()), None
    scene.end("far")
    clock.advance(1000.0)
    report = reporter.report()
    assert (report.ended_unix_s, report.unix_s) == (2e9, 2e9 + 1000.0)
    for one, other in ((report, before), (at_once, before)):
        assert (one.real, one.ours, one.real_mean, one.pods) == (
            other.real,
            other.ours,
            other.real_mean,
            other.pods,
        )
    assert [note[:20] for note in report.notes[:2]] == ["Nothing is observed ", "The last observation"]
    assert [pod.name for pod in reporter.report(1).pods] == ["waits"]
    watched.what = lambda: "pool a"
    assert reporter.report().status == "starting", "the next begins"


def test_what_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "MOST_FOLLOWED", 1)
    scene = Scene({"a": 8, "b": 8})
    shadow = scene.shadow
    assert shadow is not None
    for name in ("p", "q"):
        ours = scene.ask(name, 1)
        scene.bind(name, 1, "a" if ours == "b" else "b")
    reporter = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s))
    blind = reporter.report()
    for text in (
        "The spread is about the 0 of 2 nodes",
        "The watts are about the nodes in use that are measured: really 0 of 1, with us 0 of 2.",
        "1 pods that would stand elsewhere, or wait, are not measured",
        "1 pods came beyond",
    ):
        assert sum(note.startswith(text) for note in blind.notes) == 1, text
    assert (blind.pods[0].load, blind.pods[0].power_w) == (None, None)
    assert blind.pods_unmeasured == blind.pods_to_unmeasured == 1
    assert (blind.pods[0].place, blind.pods[0].counts_where_it_runs) == ("elsewhere", "load and watts")
    scene.read()
    seen = reporter.report()
    assert seen.pods_unmeasured == seen.pods_to_unmeasured == 0
    assert seen.pods[0].counts_where_it_runs == ""
    assert not any(
        note.startswith(("The spread", "The watts")) or "not measured" in note
        for note in reporter.report().notes
    )


def test_it_says_since_when_its_process_knows_anything_whatever_else_it_says() -> None:
    _, shadow = life()
    acting = Watched(None)
    acting.what = lambda: ""
    for watched in (Watched(shadow), Watched(None), acting):
        report = ObserveReporter(watched, ManualClock()).report()
        assert report.process_since_unix_s == 1e9
        assert report.notes[-1].startswith(
            "This process has run since 2001-09-09T01:46:40Z. What was observed before"
        )


def test_of_nodes_without_an_agent_it_says_how_many_and_that_they_bring_no_saving() -> None:
    """Three nodes; with us two pods are on the one without an agent, and on none of the others."""
    scene = Scene({"dark": 4, "lit": 4, "rest": 1}, silent=("dark",))
    shadow = scene.shadow
    assert shadow is not None
    for index in range(2):
        scene.ask(f"p{index}", 2, "dark")
        scene.bind(f"p{index}", 2, "lit", busy_frac=0.5)
    for _ in range(2):
        scene.now_s += 5.0
        scene.read()
    reporter = ObserveReporter(Watched(shadow), ManualClock(mono_s=scene.now_s))
    report = reporter.report()
    assert report.real is not None
    assert report.ours is not None
    assert report.real.power_in_use_w == report.ours.power_in_use_w
    assert (report.nodes, report.nodes_load_known, report.pods_to_unmeasured) == (3, 2, 2)
    assert {pod.counts_where_it_runs for pod in report.pods} == {"load and watts"}
    for text, lines in (
        ("A pod of which nothing is measured, or that would be on a node", report.legend),
        ("WITH US has more nodes in use whose watts are not measured (1 now, 1 in the mean)", report.legend),
        (
            "The watts are about the nodes in use that are measured: really 1 of 1, with us 0 of 1.",
            report.notes,
        ),
        ("The spread is about the 2 of 3 nodes", report.notes),
        ("2 pods would stand on nodes that are not measured", report.notes),
    ):
        assert sum(line.startswith(text) for line in lines) == 1, text
    # The other way round there is nothing to warn of.
    back = Scene({"dark": 4, "lit": 4, "rest": 1}, silent=("dark",))
    back.ask("p", 2, "lit")
    back.bind("p", 2, "dark")
    back.read()
    legend = ObserveReporter(Watched(back.shadow), ManualClock(mono_s=back.now_s)).report().legend
    assert not any("more nodes in use" in line for line in legend)
    assert KEPT in legend, "it is not measured"
    lit = Scene({"a": 4, "b": 4, "rest": 1})
    ours = lit.ask("p", 2, "a", "b")
    lit.bind("p", 2, "a" if ours == "b" else "b")
    lit.read()
    assert KEPT not in ObserveReporter(Watched(lit.shadow), ManualClock(mono_s=lit.now_s)).report().legend


def test_what_is_nothing_in_two_decimals_is_not_told() -> None:
    assert _each([(0.004, "now"), (-2.0, "in the mean")]) == ""
    assert _each([(0.004, "now"), (1200.5, "in the mean")]) == "0 now, 1,200.5 in the mean"


def test_before_it_has_begun_it_says_so_and_not_that_we_act() -> None:
    assert ObserveReporter(Watched(None), ManualClock()).report().status == "starting"
