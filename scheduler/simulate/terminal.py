"""What a person sees of a run: progress while it goes, the summary when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scheduler.simulate.scoreboard import ClusterSummary, Live, Summary

# Into a file or a pipe: one line now and then, not a screen.
_LINE_EVERY_S = 10.0
_BLOCKS = " ▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 100
_BINS = 10
_BAR_WIDTH = 30


class Progress:
    """Shows the present on a terminal as a panel, elsewhere as a line every ten seconds."""

    def __init__(self, console: Console, *, title: str, lines: Sequence[str] = ()) -> None:
        """Prepare.

        Args:
            console: Where to.
            title: Of the panel.
            lines: Stay visible above the figures: the URLs to open, how to end.
        """
        self._console = console
        self._title = title
        self._lines = tuple(lines)
        self._display = LiveDisplay(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._display is not None:
            self._display.start()
        else:
            self._console.print(self._title, *self._lines, sep="\n", markup=False, highlight=False)
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
        table = Table.grid(padding=(0, 2))
        table.add_row("elapsed", f"{live.elapsed_s:.0f} s", "GPU power", f"{live.power_w / 1e3:.1f} kW")
        table.add_row("arrived", f"{live.arrived}", "placed", f"{live.placed}")
        table.add_row("waiting", f"{live.waiting}", "finished", f"{live.finished}")
        table.add_row("allocated", _bar(live.allocated_frac), "decisions", f"{live.decisions_per_s:.1f}/s")
        table.add_row("utilised", _bar(live.util_frac), *_verb_cells(live))
        head = [Text(line) for line in self._lines]
        return Panel(Group(*head, table), title=self._title, expand=False)


def summary_view(summary: Summary) -> RenderableType:
    """The final page; plain text when the console is no terminal."""
    parts: list[RenderableType] = [_facts(summary), _comparison(summary)]
    if summary.latencies_s:
        parts.append(_latencies(summary))
    if summary.rejected:
        parts.append(_rejections(summary))
    parts.append(_node_chart(summary))
    parts += [Text(f"note: {note}") for note in _notes(summary)]
    return Group(*parts)


def _facts(summary: Summary) -> Table:
    table = Table(title="Run", show_header=False)
    table.add_row("pods placed", f"{summary.placed} of {summary.arrived} arrived")
    table.add_row("pods waiting", f"{summary.waiting}")
    table.add_row("pods finished", f"{summary.finished}")
    table.add_row("decisions", f"{summary.decisions} ({summary.decisions_per_s:.1f} per second)")
    energy_j = summary.ours.energy_j
    table.add_row("GPU energy", f"{energy_j / 1e6:.2f} MJ in {summary.elapsed_s:.0f} s of wall time")
    speed = f"{summary.speed_per_s:g}"
    table.add_row("", f"{summary.simulated_kwh:.1f} simulated kWh (wall energy × speed {speed})")
    return table


def _comparison(summary: Summary) -> Table:
    table = Table(title="Same arrivals")
    table.add_column("")
    table.add_column("Wattbalance", justify="right")
    rows: list[tuple[str, str, str]] = []
    ours, other = summary.ours, summary.random
    rows.append(
        ("GPUs allocated", _percent(ours.allocated_frac), _percent(other.allocated_frac if other else None))
    )
    rows.append(("GPU utilisation", _percent(ours.util_frac), _percent(other.util_frac if other else None)))
    rows.append(
        (
            "spread of node utilisation (std)",
            _percent(ours.std_frac),
            _percent(other.std_frac if other else None),
        )
    )
    rows.append(("waiting at the end", str(summary.waiting), str(summary.random_waiting)))
    if other is not None:
        table.add_column("random choice", justify="right")
    for name, mine, theirs in rows:
        table.add_row(name, mine, *([theirs] if other is not None else []))
    if other is not None and other.std_frac > 0:
        table.caption = f"spread is {ours.std_frac / other.std_frac:.2f} of random's"
    return table


def _latencies(summary: Summary) -> Table:
    table = Table(title="Extender calls, as the scheduler saw them")
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


def _node_chart(summary: Summary) -> RenderableType:
    """Each node a bar, in the order of the list; and how many nodes carry how much."""
    clusters = [("Wattbalance", summary.ours)]
    if summary.random is not None:
        clusters.append(("random choice", summary.random))
    parts: list[RenderableType] = [Text("Load by node at the end (one bar a node)", style="bold")]
    for name, cluster in clusters:
        parts.append(Text(name))
        parts += [Text("  " + line) for line in spark_lines(cluster.node_util_frac)]
    return Group(*parts, _histogram(clusters))


def spark_lines(values_frac: Sequence[float], width: int = _SPARK_WIDTH) -> list[str]:
    """One block character per value, wrapped."""
    top = len(_BLOCKS) - 1
    marks = [_BLOCKS[round(min(max(value, 0.0), 1.0) * top)] for value in values_frac]
    return ["".join(marks[i : i + width]) for i in range(0, len(marks), width)]


def histogram(values_frac: Sequence[float], bins: int = _BINS) -> list[int]:
    """How many values lie in each of `bins` equal parts of 0 to 1."""
    counts = [0] * bins
    for value in values_frac:
        counts[min(int(value * bins), bins - 1)] += 1
    return counts


def _histogram(clusters: Sequence[tuple[str, ClusterSummary]]) -> Table:
    table = Table(title="Nodes by load")
    table.add_column("load", justify="right")
    counts = []
    for name, cluster in clusters:
        table.add_column(name, justify="left")
        counts.append(histogram(cluster.node_util_frac))
    most = max((max(column) for column in counts), default=1) or 1
    for place in reversed(range(_BINS)):
        cells = [f"{'█' * round(_BAR_WIDTH * column[place] / most)} {column[place]}" for column in counts]
        table.add_row(f"{place * 100 // _BINS}-{(place + 1) * 100 // _BINS} %", *cells)
    return table


def _notes(summary: Summary) -> list[str]:
    notes = list(summary.notes)
    counted = summary.counted
    if counted is not None:
        notes.append(
            f"of the trace: {counted.jobs} tasks run, {counted.cpu_only_left_out} CPU-only ones left out, "
            f"{counted.shares_made_whole} that share a GPU ask for a whole one, {counted.naming_a_model} name a "
            f"GPU model (required node affinity), {counted.no_such_model_left_out} that fit no node here left out, "
            f"{counted.clipped} run times clipped to 60 s to 4 h"
        )
    return notes


def _line(live: Live) -> str:
    parts = [
        f"{live.elapsed_s:6.0f} s",
        f"placed {live.placed}/{live.arrived}",
        f"waiting {live.waiting}",
        f"allocated {_percent(live.allocated_frac)}",
        f"utilised {_percent(live.util_frac)}",
        f"{live.power_w / 1e3:.1f} kW",
        f"{live.decisions_per_s:.1f} decisions/s",
    ]
    parts += [f"{verb} p50 {_milliseconds(values[0])}" for verb, values in live.latencies_s.items()]
    return "  ".join(parts)


def _verb_cells(live: Live) -> tuple[str, str]:
    found = live.latencies_s.get("filter")
    return (
        ("", "")
        if found is None
        else ("filter p50/p99", f"{_milliseconds(found[0])} / {_milliseconds(found[2])}")
    )


def _bar(frac: float, width: int = 20) -> str:
    full = round(min(max(frac, 0.0), 1.0) * width)
    return f"{'█' * full}{'░' * (width - full)} {_percent(frac)}"


def _percent(frac: float | None) -> str:
    return "-" if frac is None else f"{100 * frac:.1f} %"


def _milliseconds(value_s: float | None) -> str:
    return "-" if value_s is None else f"{1e3 * value_s:.2f} ms"
