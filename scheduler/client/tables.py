"""What a person reads: tables of nodes, and why a pod is where it is. Plain in a pipe, in colour on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scheduler.cluster.shares import words
from scheduler.core.nouns import GPU_RESOURCE
from scheduler.core.units import format_instant
from scheduler.decision.evaluation import Candidate, Evaluation, RuledOut
from scheduler.report.explanation import Decision, Explanation
from scheduler.report.views import NodeView

# In a pipe nothing is folded: a line is a record.
PIPE_WIDTH = 100_000
# Of the ten best; `wide` has them all.
BEST_SHOWN = 5
MOST_TEXT = 200
UNKNOWN = "-"

SORTS: dict[str, Callable[[NodeView], tuple[object, ...]]] = {
    # What is unknown comes last, whatever it is sorted by.
    "name": lambda node: (node.pool, _natural(node.name)),
    "load": lambda node: (node.load_frac is None, -(node.load_frac or 0), _natural(node.name)),
    "power": lambda node: (node.power_w is None, -(node.power_w or 0), _natural(node.name)),
    "free": lambda node: (-node.free_gpus, _natural(node.name)),
    "age": lambda node: (
        -(node.reading_age_s if node.reading_age_s is not None else float("inf")),
        _natural(node.name),
    ),
}


def console() -> Console:
    """Standard output; NO_COLOR and a dumb terminal are heeded by rich."""
    return Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )


def print_nodes(out: Console, nodes: Sequence[NodeView], *, sort_by: str, wide: bool) -> None:
    """One line a node."""
    names = ["NODE", "POOL", "STATE", ">GPUS", ">FREE", ">LOAD", ">POWER", ">AGE", "AGENT"]
    if wide:
        names += [">BOUND", ">RESERVED", ">BROKEN", ">UNKNOWN", "COUNTED BY", "FREE UNITS", "MODEL"]
    table = table_of(out, names)
    for node in sorted(nodes, key=SORTS[sort_by]):
        state = node_state(node)
        cells: list[str | Text] = [
            node.name,
            node.pool,
            _coloured(state, "" if state == "ok" else "yellow"),
            f"{round(node.gpus, 2):g}",
            f"{round(node.free_gpus, 2):g}",
            UNKNOWN if node.load_frac is None else f"{node.load_frac:.0%}",
            UNKNOWN if node.power_w is None else f"{node.power_w:,.0f} W",
            UNKNOWN if node.reading_age_s is None else span(node.reading_age_s),
            node.agent_version or UNKNOWN,
        ]
        if wide:
            counts = (node.bound_gpus, node.reserved_gpus, node.broken_gpus, node.unknown_gpus)
            cells += [f"{round(count, 2):g}" for count in counts]
            cells += [node.counted_by or UNKNOWN, _free_units(node)]
            models = {gpu.model for gpu in node.devices if gpu.model}
            cells.append(", ".join(sorted(models)) or node.model or UNKNOWN)
        table.add_row(*(safe_cell(each) for each in cells))
    print_table(out, table)


def _free_units(node: NodeView) -> str:
    """Of what GPUs are divided into, how much is free: `gpu.shared 3/8`. Whole ones alone stand in other columns."""
    if all(name == GPU_RESOURCE and each.unit_gpus == 1 for name, each in node.resources.items()):
        return UNKNOWN
    found = sorted(node.resources.items())
    return ", ".join(
        f"{name.removeprefix('nvidia.com/')} {each.free:g}/{each.units:g}" for name, each in found
    )


def node_state(node: NodeView) -> str:
    """What keeps pods, measurements or us off a node, in words; `ok` if nothing does."""
    found = ["observed"] if node.observed else []
    if node.cordoned:
        found.append("cordoned")
    if node.quarantine is not None:
        found.append(f"quarantine={node.quarantine}" if node.quarantine else "quarantine")
    if node.in_pools:
        found.append(f"in {len(node.in_pools)} pools")
    if node.broken_gpus:
        found.append(f"{node.broken_gpus:g} broken")
    if not node.fresh:
        found.append("unread" if node.reading_age_s is None else "stale")
    return ",".join(found) or "ok"


def print_explanation(out: Console, told: Explanation, *, wide: bool) -> None:
    """The pod, its decision, the present, what would unblock it, and what to know of all this."""
    _print_pod(out, told)
    now_unix_s = told.unix_s or None
    if told.decision is not None:
        _print_decision(out, told.decision, now_unix_s, wide=wide)
    else:
        heading(out, f"Decision: none {'about its place ' if told.room is not None else ''}is kept")
    if told.room is not None:
        _print_decision(out, told.room, now_unix_s, wide=wide, what="Room for it")
    if told.now is not None:
        _print_now(out, told.now, wide=wide)
        _print_unblock(out, told.now)
        _print_waking(out, told.now, wide=wide)
    heading(out, "Notes")
    for note in told.notes:
        line(out, f"  {note}")


def _print_pod(out: Console, told: Explanation) -> None:
    if told.state == "bound":
        state = f"bound to {told.node}" + (", which does not exist" if told.node_missing else "")
    elif told.state == "finished":
        state = f"finished: {told.phase}" + (f" on {told.node}" if told.node else "")
    elif told.state == "waiting":
        state = "waiting" + (f" for {span(told.waited_s)}" if told.waited_s is not None else "")
    else:
        state = told.state
    if told.deletion_unix_s is not None:
        left_s = told.deletion_unix_s - told.unix_s
        when = f"has {span(left_s)} left" if left_s > 0 else f"since {span(-left_s)}"
        state += f"; being deleted, {when}"
    lines = [("Pod", f"{told.namespace}/{told.name}"), ("State", state)]
    asks = told.asks or (UNKNOWN if told.resources is None else words(tuple(told.resources.items())))
    if told.reserved_node:
        lines.append(("Promised", f"{'GPUs' if asks == UNKNOWN else asks} of {told.reserved_node}"))
    lines.append(("Asks for", asks))
    if told.workload:
        lines.append(("Workload", f"{told.workload} (from {told.workload_from})"))
    for each in told.annotations:
        problem = f": does not count: {each.problem}" if each.problem else ""
        later = f": not acted on yet ({each.not_yet})" if each.not_yet and not problem else ""
        lines.append(("Says", f"{each.key}={_short(each.value)} ({each.where}){problem}{later}"))
    for name, text in lines:
        line(out, f"{name:<9} {text}")


def _print_decision(
    out: Console, decision: Decision, now_unix_s: float | None, *, wide: bool, what: str = "Decision"
) -> None:
    ago = "" if now_unix_s is None else f", {span(max(now_unix_s - decision.unix_s, 0))} ago"
    where = f" on {decision.chosen}" if decision.chosen else ""
    kept = ", GPUs promised" if decision.reserved else ""
    heading(out, f"{what} {decision.cycle} ({decision.verb}{ago}): {decision.result}{where}{kept}")
    offered = "1 node" if decision.asked == 1 else f"{decision.asked:,} nodes"
    line(out, f"  {offered} offered, {decision.fitting:,} fit; {_by(decision)}")
    for reason, count in sorted(decision.reasons.items(), key=lambda each: -each[1]):
        line(out, f"  {count:,} ruled out: {reason}")
    _print_best(out, decision.best, wide=wide, order=decision.order)


def _by(told: Decision | Evaluation) -> str:
    return f"profile {told.profile}, {told.placement}"


def _print_now(out: Console, now: Evaluation, *, wide: bool) -> None:
    first = f"{now.chosen} would come first" if now.chosen else "no node would be chosen"
    if now.chosen and not now.fitting:
        # It would be named all the same: of what it counts, kube-scheduler's count is the newer one.
        first = f"no room by our count; {now.chosen} would come first if kube-scheduler found room there"
    heading(out, f"Now: {first}")
    nodes = "1 node" if now.nodes == 1 else f"{now.nodes:,} nodes"
    line(out, f"  {nodes}, {now.fitting:,} fit, {now.full:,} full by our count; {_by(now)}")
    for each in now.ruled_out:
        line(out, f"  {each.nodes:,} ruled out: {each.reason} ({_examples(each)})")
    _print_best(out, now.best, wide=wide, order=now.order)
    own = now.own
    shown = now.best if wide else now.best[:BEST_SHOWN]
    if own is not None and own.node not in [each.node for each in shown]:
        line(out, f"  Its own node{f', ruled out: {own.reason}' if own.reason else ''}:")
        _print_best(out, [own], wide=True)


def _print_unblock(out: Console, now: Evaluation) -> None:
    if not now.unblock:
        return
    heading(out, "What would unblock it")
    for each in now.unblock:
        until = "" if each.until_unix_s is None else f" Opens in {span(each.until_unix_s - now.unix_s)}."
        names = f" ({', '.join(each.nodes)})" if each.nodes else ""
        line(out, f"  {each.text}{until}{names}")


def _print_waking(out: Console, now: Evaluation, *, wide: bool) -> None:
    if now.waking is None:
        return
    heading(out, f"Waking: {now.waking.state.replace('_', ' ')}")
    until = ""
    if (until_unix_s := now.waking.until_unix_s) is not None:
        at = f" (at {format_instant(round(until_unix_s))})" if wide else ""
        until = f" Ends in {span(max(until_unix_s - now.unix_s, 0.0))}{at}."
    line(out, f"  {now.waking.text}{until}")


def _print_best(out: Console, best: Sequence[Candidate], *, wide: bool, order: str = "") -> None:
    """Nodes with what each policy added: `term (raw score)`."""
    if not best:
        return
    names = [f">{each.policy} x{each.weight:.3g}" for each in best[0].terms]
    points = any(each.points is not None for each in best)
    bands = any(each.band not in ("", "fits") for each in best)
    extra = [">0-10"] * points + ["BAND"] * bands
    table = table_of(out, ["  NODE", "POOL", ">FREE", ">SCORE", *names, *extra])
    for each in best if wide else best[:BEST_SHOWN]:
        terms = [f"{term.term:.3f} ({term.score:.3f})" for term in each.terms]
        more = [f"{each.points}"] * points + [each.band] * bands
        cells = [f"  {each.node}", each.pool, f"{each.free_gpus:g}", f"{each.score:.3f}", *terms, *more]
        table.add_row(*(safe_cell(cell) for cell in cells))
    print_table(out, table)
    if order:
        line(out, f"  {order}")


def _examples(told: RuledOut) -> str:
    more = told.nodes - len(told.examples)
    return ", ".join(told.examples) + (f" and {more:,} more" if more else "")


def span(length_s: float) -> str:
    """A length of time, as short as kubectl's."""
    if length_s < 10:
        return f"{max(length_s, 0):.1f}s"
    seconds = round(length_s)
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m{seconds % 60}s" if seconds < 600 else f"{seconds // 60}m"
    hours = seconds // 3600
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"


def table_of(out: Console, names: Sequence[str]) -> Table:
    """Columns without lines, as kubectl's; `>` before a name is for figures."""
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold" if out.is_terminal else ""
    )
    for name in names:
        figures = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if figures else "left", no_wrap=True, overflow="fold"
        )
    return table


def print_table(out: Console, table: Table) -> None:
    """Print it; in a pipe without what is for eyes only."""
    if out.is_terminal:
        # A narrow terminal breaks a line by itself; half a figure or the first letter of a name tells nothing.
        table.width = out.measure(table, options=out.options.update(max_width=PIPE_WIDTH)).maximum
        out.print(table, crop=False)
        return
    with out.capture() as capture:
        out.print(table)
    # Padding is for eyes; who reads a pipe would find it at the end of each line.
    out.file.write("".join(f"{each.rstrip()}\n" for each in capture.get().splitlines()))


def heading(out: Console, text: str) -> None:
    """Begin a part."""
    out.print()
    out.print(Text(_clean(text), style="bold"), soft_wrap=True)


def line(out: Console, text: str) -> None:
    """Print a line, folded on a terminal only; what it begins with blanks is indented."""
    if not out.is_terminal:
        out.print(Text(_clean(text)), soft_wrap=True)
        return
    indent = len(text) - len(text.lstrip())
    out.print(Padding(Text(_clean(text.lstrip())), (0, 0, 0, indent)))


def safe_cell(value: str | Text) -> Text:
    """A cell without what could drive a terminal."""
    return value if isinstance(value, Text) else Text(_clean(value))


def _coloured(text: str, style: str) -> Text:
    return Text(_clean(text), style=style)


def _clean(text: str) -> str:
    """Without what could drive a terminal: labels and annotations are other people's."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts n2 before n10."""
    return tuple(
        (0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part
    )
