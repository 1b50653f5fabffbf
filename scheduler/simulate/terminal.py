"""What a person sees of a run: progress while it goes, the summary when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scheduler.simulate.pace import LATE_S
from scheduler.simulate.scoreboard import ClusterSummary, Live, Summary

# Into a file or a pipe: one line now and then, not a screen.
_LINE_EVERY_S = 5.0
# The curve of a thousand nodes would fill the screen: several nodes then share a mark.
_SPARK_LINES = 3
_SPARK_MOST_WIDTH = 100
_BINS = 10
_BAR_WIDTH = 30
_WIDE = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What bars are drawn with."""

    levels: str = " ▁▂▃▄▅▆▇█"
    """From nothing to full, for one value a mark."""
    full: str = "█"
    empty: str = "░"
    times: str = "×"


MARKS = Marks()
# For an output that cannot say the others: each would be a question mark.
ASCII_MARKS = Marks(levels=" .:-=+*#@", full="#", empty=".", times="x")


def marks_of(console: Console) -> Marks:
    """What this console can draw bars with."""
    try:
        f"{MARKS.levels}{MARKS.full}{MARKS.empty}{MARKS.times}".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII_MARKS
    return MARKS


class Progress:
    """Shows the present on a terminal as a panel, elsewhere as a line every ten seconds."""

    def __init__(self, console: Console, *, title: str, lines: Sequence[str] = ()) -> None:
        """Prepare.

        A terminal that can only print lines (TERM=dumb) gets lines. Colour is left to rich, which heeds NO_COLOR.

        Args:
            console: Where to.
            title: Of the panel.
            lines: Stay visible above the figures: the URLs to open, how to end.
        """
        self._console = console
        self._title = title
        self._lines = tuple(lines)
        screen = console.is_terminal and not console.is_dumb_terminal
        self._display = LiveDisplay(console=console, auto_refresh=False) if screen else None
        self._next_line_s = 0.0
        self._marks = marks_of(console)

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._display is not None:
            self._display.start()
        else:
            text = "\n".join((self._title, *self._lines))
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back."""
        if self._display is not None:
            self._display.stop()

    def show(self, live: Live) -> None:
        """Show the present."""
        if self._display is not None:
            self._display.update(self._panel(live), refresh=True)
        elif live.elapsed_s >= self._next_line_s:
            self._next_line_s = live.elapsed_s + _LINE_EVERY_S
            self._console.print(_line(live), markup=False, highlight=False, soft_wrap=True)

    def _panel(self, live: Live) -> RenderableType:
        cells = [
            ("elapsed", f"{live.elapsed_s:.0f} s"),
            ("GPU power", f"{live.power_w / 1e3:.1f} kW"),
            ("arrived", f"{live.arrived}"),
            ("placed", f"{live.placed}"),
            ("waiting", f"{live.waiting}{_behind(live)}"),
            ("finished", f"{live.finished}"),
            ("allocated", _bar(live.allocated_frac, self._marks)),
            ("decisions", f"{live.decisions_per_s:.1f}/s"),
            ("utilised", _bar(live.util_frac, self._marks)),
            _verb_cells(live),
        ]
        columns = 2 if self._console.width >= _WIDE else 1
        table = Table.grid(padding=(0, 2))
        for at in range(0, len(cells), columns):
            table.add_row(*(text for cell in cells[at : at + columns] for text in cell))
        head = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._lines]
        if live.broker_silent_s:
            head.append(Text(_silence(live), style="bold"))
        return Panel(Group(*head, table), title=self._title, expand=False)


def summary_view(summary: Summary, *, width: int = _WIDE, marks: Marks = MARKS) -> RenderableType:
    """The final page; plain text when the console is no terminal.

    Args:
        summary: What it says.
        width: Of the console.
        marks: What it can draw bars with.
    """
    parts: list[RenderableType] = [_facts(summary, marks), _comparison(summary)]
    if summary.latencies_s:
        parts.append(_latencies(summary))
    if summary.rejected:
        parts.append(_rejections(summary))
    parts.append(_node_chart(summary, width, marks))
    parts += [Text(f"note: {note}") for note in _notes(summary)]
    return Group(*parts)


def _facts(summary: Summary, marks: Marks) -> Table:
    table = Table(title="Run", show_header=False)
    table.add_row("pods placed", f"{summary.placed} of {summary.arrived} arrived")
    if summary.placed_by_class:
        by_class = ", ".join(f"{count} {name}" for name, count in summary.placed_by_class.items())
        table.add_row("by class", by_class)
    table.add_row("pods waiting", f"{summary.waiting}")
    table.add_row("pods finished", f"{summary.finished}")
    table.add_row("decisions", f"{summary.decisions} ({summary.decisions_per_s:.1f} per second)")
    energy_j = summary.ours.energy_j
    table.add_row("GPU energy", f"{energy_j / 1e6:.2f} MJ in {summary.elapsed_s:.0f} s of wall time")
    speed = f"{summary.speed_per_s:g}"
    table.add_row("", f"{summary.simulated_kwh:.1f} simulated kWh ({marks.times} speed {speed})")
    return table


def _comparison(summary: Summary) -> Table:
    """Ours beside random choice, row by row."""
    columns = [("Wattbalance", summary.ours, summary.waiting)]
    if summary.random is not None:
        columns.append(("random choice", summary.random, summary.random_waiting))
    table = Table(title="Same arrivals")
    table.add_column("")
    for name, _, _ in columns:
        table.add_column(name, justify="right")

    def add(name: str, told: Callable[[ClusterSummary], str]) -> None:
        table.add_row(name, *(told(cluster) for _, cluster, _ in columns))

    add("GPUs allocated", lambda cluster: _percent(cluster.allocated_frac))
    for site in summary.ours.site_allocated_frac:
        add(f"  of those in {site}", partial(_allocated_in, site))
    add("GPU utilisation", lambda cluster: _percent(cluster.util_frac))
    settled = summary.ours.settled_std_frac is not None
    if settled:
        add(f"spread over nodes, from {summary.settle_s:.0f} s on", lambda cluster: _percent(spread(cluster)))
    else:
        add("spread over nodes, not settled", lambda cluster: _percent(spread(cluster)))
    add("nodes without a pod at the end", lambda cluster: str(cluster.empty_nodes))
    table.add_row("pods waiting at the end", *(str(waiting) for _, _, waiting in columns))
    ratio = spread_ratio(summary)
    if ratio is not None:
        table.caption = f"spread is {ratio:.2f} of random's" + ("" if settled else ", not settled")
    return table


def _allocated_in(site: str, cluster: ClusterSummary) -> str:
    return _percent(cluster.site_allocated_frac[site])


def spread(cluster: ClusterSummary) -> float:
    """GPU-weighted standard deviation across nodes of utilisation: settled if the run was long enough."""
    return cluster.std_frac if cluster.settled_std_frac is None else cluster.settled_std_frac


def spread_ratio(summary: Summary) -> float | None:
    """Ours over random's: the figure of benchmarks/balance.py, if settled."""
    if summary.random is None or spread(summary.random) <= 0:
        return None
    return spread(summary.ours) / spread(summary.random)


def _latencies(summary: Summary) -> Table:
    table = Table(title="Extender latency at the scheduler")
    for name in ("verb", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if name == "verb" else "right")
    for verb, values_s in summary.latencies_s.items():
        table.add_row(verb, *(_milliseconds(value_s) for value_s in values_s))
    return table


def _rejections(summary: Summary) -> Table:
    table = Table(title="Cycles without a node, by reason")
    table.add_column("reason")
    table.add_column("times", justify="right")
    for reason, count in summary.rejected.items():
        # Reasons are text from outside: never markup.
        table.add_row(Text(reason), str(count))
    return table


def _node_chart(summary: Summary, width: int, marks: Marks) -> RenderableType:
    """The nodes' loads as a falling curve, and how many nodes carry how much."""
    clusters = [("Wattbalance", summary.ours)]
    if summary.random is not None:
        clusters.append(("random choice", summary.random))
    most = min(width - 3, _SPARK_MOST_WIDTH)
    each = nodes_a_mark(len(summary.ours.node_util_frac), most)
    said = "a mark is one node" if each == 1 else f"a mark is the mean of {each} nodes"
    parts: list[RenderableType] = [Text(f"Load by node at the end, busiest first ({said})", style="bold")]
    for name, cluster in clusters:
        parts.append(Text(name))
        parts += [Text("  " + line) for line in spark_lines(cluster.node_util_frac, most, each, marks)]
    return Group(*parts, _histogram(clusters, width, marks))


def nodes_a_mark(nodes: int, width: int) -> int:
    """How many nodes share a mark, so that the curve stays within a few lines."""
    return max(1, -(-nodes // (width * _SPARK_LINES)))


def spark_lines(values_frac: Sequence[float], width: int, each: int = 1, marks: Marks = MARKS) -> list[str]:
    """One character per `each` values, largest first, wrapped."""
    top = len(marks.levels) - 1
    ordered = sorted((min(max(value, 0.0), 1.0) for value in values_frac), reverse=True)
    groups = [ordered[at : at + each] for at in range(0, len(ordered), each)]
    line = [marks.levels[round(sum(group) / len(group) * top)] for group in groups]
    return ["".join(line[i : i + width]) for i in range(0, len(line), width)]


def histogram(values_frac: Sequence[float], bins: int = _BINS) -> list[int]:
    """How many values lie in each of `bins` equal parts of 0 to 1."""
    counts = [0] * bins
    for value in values_frac:
        counts[min(int(value * bins), bins - 1)] += 1
    return counts


def _histogram(clusters: Sequence[tuple[str, ClusterSummary]], width: int, marks: Marks) -> Table:
    # Beside the bars: the loads, the counts and the frame.
    longest = min(_BAR_WIDTH, max(5, (width - 30) // len(clusters)))
    table = Table(title="Nodes by load")
    table.add_column("load", justify="right")
    counts = []
    for name, cluster in clusters:
        table.add_column(name, justify="left")
        counts.append(histogram(cluster.node_util_frac))
    most = max((max(column) for column in counts), default=1) or 1
    for place in reversed(range(_BINS)):
        cells = [f"{marks.full * round(longest * column[place] / most)} {column[place]}" for column in counts]
        table.add_row(f"{place * 100 // _BINS}-{(place + 1) * 100 // _BINS} %", *cells)
    return table


def _notes(summary: Summary) -> list[str]:
    notes = list(summary.notes)
    if summary.ours.settled_std_frac is None and summary.random is not None:
        notes.append(
            f"the start was drawn by random choice and fades with the pods that it placed; the spread is worth "
            f"comparing after three mean run times, {summary.settle_s:.0f} s: use a longer --duration"
        )
    counted = summary.counted
    if counted is not None:
        notes.append(
            f"of the trace: {counted.jobs} tasks run, {counted.cpu_only_left_out} CPU-only ones left out, "
            f"{counted.sharing} ask for a replica of a GPU, {counted.shares_made_whole} that would share one for a "
            f"whole one, {counted.naming_a_model} name a "
            f"GPU model (required node affinity), {counted.no_such_model_left_out} that fit no node here left out, "
            f"{counted.clipped} run times clipped to 60 s to 4 h"
        )
    return notes


def _line(live: Live) -> str:
    parts = [
        f"{live.elapsed_s:6.0f} s",
        f"placed {live.placed}/{live.arrived}",
        f"waiting {live.waiting}{_behind(live)}",
        f"allocated {_percent(live.allocated_frac)}",
        f"utilised {_percent(live.util_frac)}",
        f"{live.power_w / 1e3:.1f} kW",
        f"{live.decisions_per_s:.1f} decisions/s",
    ]
    parts += [f"{verb} p50 {_milliseconds(values[0])}" for verb, values in live.latencies_s.items()]
    if live.broker_silent_s:
        parts.append(_silence(live))
    return "  ".join(parts)


def _behind(live: Live) -> str:
    return f", {live.behind_s:.0f} s behind" if live.behind_s > LATE_S else ""


def _silence(live: Live) -> str:
    return f"BROKER SILENT for {live.broker_silent_s:.0f} s: readings grow old, then unknown"


def _verb_cells(live: Live) -> tuple[str, str]:
    found = live.latencies_s.get("filter")
    return (
        ("", "")
        if found is None
        else ("filter p50/p99", f"{_milliseconds(found[0])} / {_milliseconds(found[2])}")
    )


def _bar(frac: float, marks: Marks, width: int = 20) -> str:
    full = round(min(max(frac, 0.0), 1.0) * width)
    return f"{marks.full * full}{marks.empty * (width - full)} {_percent(frac)}"


def _percent(frac: float | None) -> str:
    return "-" if frac is None else f"{100 * frac:.1f} %"


def _milliseconds(value_s: float | None) -> str:
    return "-" if value_s is None else f"{1e3 * value_s:.2f} ms"
