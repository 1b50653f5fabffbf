"""What a person reads of the report of observing: both worlds side by side, the pods, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from scheduler.client.tables import UNKNOWN, heading, line, print_table, safe_cell, span, table_of
from scheduler.core.units import format_instant
from scheduler.report.observation import ObservedPod, ObservedWorld, ObserveReport

FIGURES: tuple[tuple[str, Callable[[ObservedWorld], str]], ...] = (
    ("Spread of load over GPUs (0 is even)", lambda world: _or_unknown(world.load_spread_frac, "{:.3f}")),
    ("  measured, of nodes with GPUs", lambda world: _of(world.load_nodes, world.gpu_nodes)),
    ("Free GPUs where no pod of 8 GPUs fits", lambda world: _count(world.stranded_gpus)),
    ("Nodes in use", lambda world: _count(world.used_nodes)),
    ("Watts of nodes in use", lambda world: _or_unknown(world.power_in_use_w, "{:,.0f}")),
    ("  measured, of nodes in use", lambda world: _of(world.power_nodes, world.used_nodes)),
    ("GPUs at work (held by pods)", lambda world: _count(world.held_gpus)),
    ("Pods that wait", lambda world: _count(world.waiting_pods)),
)
PLACES = {"same": "the same", "elsewhere": "elsewhere", "waiting": "would wait"}


def print_observed(out: Console, told: ObserveReport, *, saved: bool = False) -> None:
    """The whole report.

    Args:
        out: where to.
        told: it.
        saved: whether it is of an instant in the past.
    """
    if saved:
        line(out, f"A saved report; `now` is {format_instant(round(told.unix_s))}.")
    if told.since_unix_s is None or told.real is None or told.ours is None:
        line(out, f"Observing {told.observing}." if told.observing else "Observing nothing.")
    else:
        line(out, _when(told, told.since_unix_s))
        means = () if told.real_mean is None or told.ours_mean is None else (told.real_mean, told.ours_mean)
        _print_worlds(out, "NOW" if told.ended_unix_s is None else "AT ITS END", told.real, told.ours, *means)
        for each in told.legend:
            line(out, f"  {each}")
        _print_counts(out, told)
        _print_pods(out, told.pods)
    heading(out, "What this rests on")
    for note in told.notes:
        line(out, f"  {note}")


def _when(told: ObserveReport, since_unix_s: float) -> str:
    since = format_instant(round(since_unix_s))
    if told.ended_unix_s is None:
        return f"Observing {told.observing}; since {since}, for {span(told.unix_s - since_unix_s)}."
    until = format_instant(round(told.ended_unix_s))
    return (
        f"Observing nothing now. What the last observation showed, of {told.observed}; from {since} until {until}, for "
        f"{span(told.ended_unix_s - since_unix_s)}."
    )


def _print_worlds(out: Console, when: str, *worlds: ObservedWorld) -> None:
    """The real one and ours at an instant, and if there are, the same over time."""
    out.print()
    names = [f">{when}: REALLY", ">WITH US", ">MEAN: REALLY", ">WITH US"]
    table = table_of(out, ["AN ESTIMATE", *names[: len(worlds)]])
    for name, figure in FIGURES:
        table.add_row(name, *map(figure, worlds))
    print_table(out, table)


def _print_counts(out: Console, told: ObserveReport) -> None:
    heading(out, f"Pods placed since then: {told.pods_so_far:,}")
    running = told.pods_same + told.pods_elsewhere + told.pods_waiting
    line(
        out,
        f"  {running:,} still run: {told.pods_same:,} where we would have placed them, {told.pods_elsewhere:,} would "
        f"be elsewhere, {told.pods_waiting:,} would wait.",
    )
    longer = f", {span(told.waited_longer_s)} in all" if told.waited_longer_s else ""
    still = f", and {told.pods_waiting:,} wait still" if told.pods_waiting else ""
    line(out, f"  {told.pods_waited_so_far:,} would have waited longer than they did{longer}{still}.")


def _print_pods(out: Console, pods: list[ObservedPod]) -> None:
    if not pods:
        return
    heading(out, "The last ones, newest first")
    table = table_of(
        out,
        [
            "  POD",
            ">GPUS",
            "REALLY",
            "WITH US",
            "PLACE",
            ">LOAD",
            ">POWER",
            ">MEAN LOAD",
            ">MEAN POWER",
            "WHY",
        ],
    )
    for pod in pods:
        cells = (
            f"  {pod.namespace}/{pod.name}",
            f"{pod.gpus:g}",
            pod.real,
            pod.ours or UNKNOWN,
            PLACES.get(pod.place, pod.place),
            _or_unknown(pod.load, "{:.2f}"),
            _or_unknown(pod.power_w, "{:,.0f} W"),
            _or_unknown(pod.mean_load, "{:.2f}"),
            _or_unknown(pod.mean_power_w, "{:,.0f} W"),
            pod.reason or (f"{kept} counted where it runs" if (kept := pod.counts_where_it_runs) else ""),
        )
        table.add_row(*map(safe_cell, cells))
    print_table(out, table)


def _of(measured: float, nodes: float) -> str:
    return f"{_count(measured)} of {_count(nodes)}"


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _or_unknown(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
