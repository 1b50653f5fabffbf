"""The figures of a run, and how they are shown."""

from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pytest
from rich.console import Console

from scheduler.simulate.scoreboard import Latencies, OverTime, RandomShadow, Scoreboard
from scheduler.simulate.terminal import Progress, histogram, marks_of, spark_lines, summary_view
from scheduler.simulate.traces import Trace, TraceNode, TraceTask, load_trace
from scheduler.simulate.utilisation import LoadModel
from scheduler.simulate.workload import Arrival, WorkloadModel


def make_node(name: str, gpus: int, model: str = "T4") -> TraceNode:
    return TraceNode(name=name, cpu_milli=96_000, memory_mib=393_216, gpus=gpus, model=model)


def make_task(name: str, gpus: int = 1, run_s: float = 100.0) -> TraceTask:
    return TraceTask(
        name=name,
        cpu_milli=1000,
        memory_mib=1024,
        gpus=gpus,
        gpu_milli=1000,
        models=(),
        qos="LS",
        run_s=run_s,
    )


def make_model(nodes: list[TraceNode], tasks: list[TraceTask], load_frac: float = 0.5) -> WorkloadModel:
    trace = Trace(nodes=tuple(nodes), tasks=tuple(tasks), source="test")
    return WorkloadModel(trace, load_frac=load_frac, speed_per_s=1.0, seed=1)


def make_arrival(model: WorkloadModel, name: str, run_s: float) -> Arrival:
    return Arrival(name=name, job=model.jobs[0], at_s=0.0, run_s=run_s, mean_util_frac=0.5)


def test_percentiles_are_within_a_bucket_of_the_truth() -> None:
    latencies = Latencies()
    durations_s = np.random.default_rng(1).lognormal(-6.0, 1.0, 10_000)
    for duration_s in durations_s:
        latencies.add(float(duration_s))
    for frac in (0.5, 0.95, 0.99):
        want_s = float(np.quantile(durations_s, frac))
        got_s = latencies.percentile_s(frac)
        assert got_s is not None
        # A bucket is a factor of 10^(1/16) wide.
        assert want_s * 0.99 <= got_s <= want_s * 10 ** (1 / 16) * 1.01


def test_no_latency_is_no_number() -> None:
    assert Latencies().percentile_s(0.5) is None


def test_means_are_weighted_by_time_and_the_spread_by_gpus() -> None:
    load = LoadModel([make_node("a", 3), make_node("b", 1)], np.random.default_rng(1))
    over_time = OverTime(load)
    held = load.start(0, 3, 1.0)
    load.util_frac[0, :3] = 1.0
    over_time.observe(1.0)
    load.stop(0, held, 1.0)
    over_time.observe(3.0)
    summary = over_time.summary()
    assert summary.allocated_frac == pytest.approx(0.75 / 4)
    assert summary.util_frac == pytest.approx(0.75 / 4)
    # Utilisation 1 on three GPUs, 0 on one: variance 3/16.
    assert summary.std_frac == pytest.approx((3 / 16) ** 0.5 / 4)


def test_the_spread_is_settled_only_once_the_start_has_faded() -> None:
    load = LoadModel([make_node("a", 1), make_node("b", 1)], np.random.default_rng(1))
    over_time = OverTime(load, settle_s=10.0)
    load.util_frac[0, 0] = 1.0
    over_time.observe(10.0)
    assert over_time.summary().settled_std_frac is None
    load.util_frac[0, 0] = 0.2
    over_time.observe(1.0)
    summary = over_time.summary()
    # Of the last second alone: 0.2 and 0 around 0.1.
    assert summary.settled_std_frac == pytest.approx(0.1)
    assert summary.std_frac == pytest.approx((10 * 0.5 + 0.1) / 11)


def test_allocation_is_told_by_site_and_empty_nodes_are_counted() -> None:
    load = LoadModel([make_node("a", 3), make_node("b", 1), make_node("c", 4)], np.random.default_rng(1))
    over_time = OverTime(load, sites=("dc-1", "dc-1", "aws-a"))
    load.start(0, 2, 0.5)
    over_time.observe(1.0)
    summary = over_time.summary()
    assert summary.site_allocated_frac == {"aws-a": 0.0, "dc-1": pytest.approx(0.5)}
    want_empty_nodes = 2
    assert summary.empty_nodes == want_empty_nodes


def test_only_the_summary_multiplies_energy_by_the_speed() -> None:
    load = LoadModel([make_node("a", 2)], np.random.default_rng(1))
    board = Scoreboard(load=load, node_names=("a",), speed_per_s=60.0, start_mono_s=100.0)
    load.advance(1800.0)
    board.tick(1900.0)
    summary = board.summary(1900.0)
    assert summary.ours.energy_j == pytest.approx(2 * 10.0 * 1800.0)
    assert summary.simulated_kwh == pytest.approx(36_000.0 * 60 / 3.6e6)


def test_the_shadow_queues_what_does_not_fit_and_starts_it_when_room_comes_free() -> None:
    model = make_model([make_node("a", 2)], [make_task("t", gpus=2)])
    load = LoadModel(model.trace.nodes, np.random.default_rng(1))
    shadow = RandomShadow(model, load, [], seed=1)
    shadow.arrive(make_arrival(model, "first", run_s=10.0), 0.0)
    shadow.arrive(make_arrival(model, "second", run_s=10.0), 1.0)
    assert shadow.waiting == 1
    shadow.advance(15.0)
    # The second one began at 10, so it ends at 20, not at 25.
    assert (shadow.waiting, int(load.busy.sum())) == (0, 2)
    shadow.advance(20.5)
    assert int(load.busy.sum()) == 0


def test_the_shadow_keeps_its_books_in_step_with_its_load() -> None:
    model = WorkloadModel(load_trace(nodes=30), load_frac=0.9, speed_per_s=60.0, seed=3)
    load = LoadModel(model.trace.nodes, np.random.default_rng(1))
    shadow = RandomShadow(model, load, model.fill(), seed=3)
    for arrival in itertools.islice(model.arrivals(), 500):
        shadow.arrive(arrival, arrival.at_s)
    free = load.gpu_counts - load.busy.sum(axis=1)
    assert (shadow._room.gpus == free).all()
    assert (free >= 0).all()


def run_board(*, with_shadow: bool, settle_s: float = 0.0) -> Scoreboard:
    model = make_model([make_node("a", 4), make_node("b", 4)], [make_task("t")])
    load = LoadModel(model.trace.nodes, np.random.default_rng(1))
    shadow = None
    if with_shadow:
        shadow = RandomShadow(model, LoadModel(model.trace.nodes, np.random.default_rng(2)), [], seed=1)
    board = Scoreboard(
        load=load,
        node_names=("a", "b"),
        speed_per_s=60.0,
        start_mono_s=0.0,
        settle_s=settle_s,
        counted=model.counted,
        shadow=shadow,
    )
    board.on_arrival(make_arrival(model, "first", run_s=50.0), 0.5)
    board.on_call("filter", 0.001)
    board.rejected["waiting for pool [dc-1]"] += 1
    load.start(0, 1, 0.5)
    board.on_placed(make_arrival(model, "first", run_s=50.0))
    load.advance(1.0)
    board.tick(1.0)
    return board


def rendered(board: Scoreboard, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_view(board.summary(1.0, notes=("a note",)), width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_says_all_that_it_should() -> None:
    text = rendered(run_board(with_shadow=True))
    for want_part in (
        "1 of 1 arrived",
        "simulated kWh",
        "random choice",
        "waiting for pool [dc-1]",
        "filter",
        "Load by node",
        "CPU-only",
        "a note",
    ):
        assert want_part in text


def test_a_run_that_ends_before_the_spread_settles_says_so() -> None:
    board = run_board(with_shadow=True)
    assert "use a longer --duration" not in rendered(board)
    unsettled = run_board(with_shadow=True, settle_s=90.0)
    text = rendered(unsettled)
    assert "not settled" in text
    assert "90 s: use a longer --duration" in text


def test_on_a_narrow_terminal_no_line_is_too_long() -> None:
    width = 60
    assert max(len(line) for line in rendered(run_board(with_shadow=True), width).splitlines()) <= width


def test_a_terminal_that_prints_only_lines_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True)
    with Progress(console, title="demo", lines=["open me"]) as progress:
        progress.show(run_board(with_shadow=False).live(1.0))
    assert out.getvalue().splitlines()[:2] == ["demo", "open me"]
    assert "╭" not in out.getvalue()


def test_no_colour_is_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    with Progress(console, title="demo") as progress:
        progress.show(run_board(with_shadow=False).live(1.0))
    console.print(summary_view(run_board(with_shadow=True).summary(1.0), width=80))
    # Select Graphic Rendition 30 to 48 and 90 to 107 are colours; bold and the like stay.
    codes = {
        int(code) for found in re.findall(r"\x1b\[([0-9;]+)m", out.getvalue()) for code in found.split(";")
    }
    assert not {code for code in codes if 30 <= code <= 48 or 90 <= code <= 107}


def test_who_is_behind_is_told_while_it_lasts() -> None:
    board = run_board(with_shadow=False)
    board.on_behind(7.0)
    out = io.StringIO()
    with Progress(Console(file=out, width=200), title="demo") as progress:
        progress.show(board.live(1.0))
    assert "7 s behind" in out.getvalue()
    board.on_behind(0.1)
    assert board.most_behind_s == pytest.approx(7.0)


def test_without_a_shadow_nothing_is_said_of_random_choice() -> None:
    assert "random choice" not in rendered(run_board(with_shadow=False))


def test_progress_into_a_file_is_a_line_every_five_seconds() -> None:
    board = run_board(with_shadow=False)
    out = io.StringIO()
    with Progress(Console(file=out, width=200), title="demo", lines=["http://127.0.0.1:8080/"]) as progress:
        for second in range(1, 22):
            progress.show(board.live(float(second)))
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["demo", "http://127.0.0.1:8080/"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "6", "11", "16", "21"]
    assert "\x1b" not in out.getvalue()


def test_progress_on_a_terminal_is_a_panel() -> None:
    board = run_board(with_shadow=False)
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Progress(console, title="demo", lines=["open me"]) as progress:
        progress.show(board.live(1.0))
    assert "open me" in out.getvalue()
    assert "allocated" in out.getvalue()


def test_an_output_that_knows_ascii_only_gets_bars_of_ascii() -> None:
    raw = io.BytesIO()
    # The command line sets errors to "replace", which makes question marks; this way each would be an error.
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    console = Console(file=out, width=100, force_terminal=True)
    board = run_board(with_shadow=True)
    with Progress(console, title="demo") as progress:
        progress.show(board.live(1.0))
    console.print(summary_view(board.summary(1.0), width=100, marks=marks_of(console)))
    out.flush()
    assert "###" in raw.getvalue().decode()


def test_charts_take_values_at_and_beyond_the_ends() -> None:
    assert spark_lines([0.0, 0.5, 1.0, 1.2, -0.1], width=3) == ["██▄", "  "]
    assert spark_lines([0.0, 1.0, 1.0, 0.5], width=3, each=2) == ["█▂"]
    assert histogram([0.0, 0.05, 0.95, 1.0], bins=10) == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
