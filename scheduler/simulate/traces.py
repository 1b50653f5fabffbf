"""Read node and task lists of the openb trace: real GPU nodes, real tasks.

The built-in slice lies in data/ beside this file (data/SOURCE.md: origin, licence, how it was drawn); whole lists are
read by path. The lists are an arrival multiset: their creation times are thinned and are not replayed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from scheduler.core.errors import TraceError
from scheduler.core.names import LABEL_VALUE, is_label_value
from scheduler.telemetry.sample import MOST_GPUS

NODE_FILE = "openb_node_list_gpu_node.csv"
TASK_FILE = "openb_pod_list_default.csv"
_TASK_PREFIX = "openb_pod_list_"
SLICE = "built-in slice of openb"
BUILT_IN_NODES = "openb_nodes.csv"
BUILT_IN_TASKS = "openb_tasks.csv"

# Milliseconds since 1970 have 13; sums of such numbers are exact as floats.
_MOST_DIGITS = 13
# What one machine can have, with room: in 2026 some 2,000 processors and 64 TiB of memory at most; as many GPUs as an
# agent may tell of (16 are the most in one machine). What is beyond is a slip of the pen, and arrays of a row per node
# and a column per GPU would be made of it.
MOST_CPU_MILLI = 10_000_000
MOST_MEMORY_MIB = 2**30
# What Kubernetes takes as a pod's name, with room for the number that is put behind it.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNode:
    """One machine of the trace."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str
    replicas: int = 1
    """How many pods share each of its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTask:
    """One task of the trace, as it stands there. `models` is empty where the task names no GPU model."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    """Of each GPU; below 1000 the task shares one."""
    models: tuple[str, ...]
    qos: str
    run_s: float
    """From being scheduled (where that is not told: from creation) to deletion."""
    replicas: int = 1
    """It asks for one of so many replicas of a GPU; 1: for whole ones."""

    @property
    def shares_gpu(self) -> bool:
        """Whether it asks less than one whole GPU."""
        return self.gpus == 1 and self.gpu_milli < 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Nodes and tasks together."""

    nodes: tuple[TraceNode, ...]
    tasks: tuple[TraceTask, ...]
    source: str
    """For the first line that a person sees: where the lists came from."""

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


def load_trace(
    *, nodes: int | None = None, trace_dir: Path | None = None, trace_file: Path | None = None
) -> Trace:
    """Load the built-in slice, or whole lists of a directory, or a given task list.

    Args:
        nodes: How many nodes to keep, in the list's mix of models; None keeps all.
        trace_dir: A directory with the published file names.
        trace_file: A task list, as a file or as the name of a list of `trace_dir`, with `.csv` and openb's prefix or
            without. Its nodes come from `trace_dir`, else from the directory it lies in if that has the node list,
            else from the built-in slice.

    Raises:
        TraceError: A file is missing or a row cannot be read; names file and line. Stop and say so.
    """
    built_in = Path(str(files("scheduler.simulate") / "data"))
    if trace_dir is None and trace_file is not None and (trace_file.parent / NODE_FILE).exists():
        trace_dir = trace_file.parent
    node_file = built_in / BUILT_IN_NODES if trace_dir is None else trace_dir / NODE_FILE
    found = [node for node in load_nodes(node_file) if node.gpus > 0]
    task_file = trace_file or built_in / BUILT_IN_TASKS
    if trace_dir is not None:
        task_file = _pod_list(trace_dir, trace_file)
    if nodes is not None and nodes > len(found):
        where, advice = str(node_file), "take fewer --nodes"
        if trace_dir is None:
            where, advice = SLICE, f"{advice}, or the whole published lists with --trace-dir DIR"
        raise TraceError(where, 0, f"{nodes} nodes asked, it has {len(found)} with a GPU; {advice}")
    chosen = found if nodes is None else pick_evenly(found, nodes, key=node_kind)
    source = SLICE if trace_dir is None and trace_file is None else str(task_file)
    return Trace(nodes=tuple(chosen), tasks=tuple(load_tasks(task_file)), source=source)


def _pod_list(folder: Path, named: Path | None) -> Path:
    """Find a pod list by its name in the directory; what is a path to a file is taken as it is."""
    if named is None:
        return folder / TASK_FILE
    name = str(named)
    places = [folder / name, folder / f"{name}.csv", folder / f"{_TASK_PREFIX}{name}.csv", named]
    found = next((place for place in places if place.is_file()), None)
    if found is None and len(named.parts) == 1:
        there = sorted(path.stem.removeprefix(_TASK_PREFIX) for path in folder.glob(f"{_TASK_PREFIX}*.csv"))
        raise TraceError(
            str(folder), 0, f"it has no pod list {name!r}, but {', '.join(there) or 'none at all'}"
        )
    return found or named


def load_nodes(path: Path) -> list[TraceNode]:
    """Read a node list. Raises TraceError with file and line."""
    nodes = [
        TraceNode(
            name=row.name("sn"),
            cpu_milli=row.count("cpu_milli", MOST_CPU_MILLI),
            memory_mib=row.count("memory_mib", MOST_MEMORY_MIB),
            gpus=row.count("gpu", MOST_GPUS),
            model=row.label("model", row.text("model", allow_empty=True)),
        )
        for row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"))
    ]
    _refuse_twins(path, [node.name for node in nodes])
    return nodes


def load_tasks(path: Path) -> list[TraceTask]:
    """Read a task list.

    Raises:
        TraceError: With file and line; also where the list has no times (the multigpu lists), since run times are
            not invented.
    """
    wanted = (
        "name",
        "cpu_milli",
        "memory_mib",
        "num_gpu",
        "gpu_milli",
        "qos",
        "creation_time",
        "deletion_time",
    )
    tasks = [_task(row) for row in _rows(path, wanted)]
    _refuse_twins(path, [task.name for task in tasks])
    return tasks


def pick_evenly(items: Sequence[T], count: int, *, key: Callable[[T], tuple[str | int, ...]]) -> list[T]:
    """Pick `count` of the items, evenly spaced in their order by `key`: each kind keeps its share to within one.

    No randomness: the same list gives the same picks on every machine. The picks keep the list's own order.
    """
    order = sorted(range(len(items)), key=lambda i: key(items[i]))
    picked = sorted(order[(2 * i + 1) * len(items) // (2 * count)] for i in range(count))
    return [items[i] for i in picked]


@dataclass(frozen=True, slots=True)
class _Row:
    """One CSV row that knows where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    def text(self, column: str, *, allow_empty: bool = False) -> str:
        value = self.cells[column].strip()
        if not value and not allow_empty:
            raise self.wrong(f"{column} is empty")
        return value

    def count(self, column: str, most: int | None = None) -> int:
        value = self.text(column)
        if not value.isdecimal() or len(value) > _MOST_DIGITS:
            raise self.wrong(
                f"{column}: expected a whole number, got {value[:40]!r} (up to {_MOST_DIGITS} digits)"
            )
        if most is not None and int(value) > most:
            raise self.wrong(f"{column}: expected at most {most}, got {value}")
        return int(value)

    def label(self, column: str, value: str) -> str:
        if not is_label_value(value):
            raise self.wrong(f"{column}: expected {LABEL_VALUE}, got {value[:40]!r}")
        return value

    def name(self, column: str) -> str:
        value = self.text(column)
        if not _NAME.fullmatch(value):
            raise self.wrong(f"{column}: expected lower-case letters, digits and dashes, got {value[:40]!r}")
        return value

    def wrong(self, detail: str) -> TraceError:
        return TraceError(str(self.path), self.line, detail)


def _task(row: _Row) -> TraceTask:
    gpus, gpu_milli = row.count("num_gpu", MOST_GPUS), row.count("gpu_milli")
    # One GPU or several whole ones: a share of several is not a thing in this trace, nor on Kubernetes.
    if gpus > 0 and not 0 < gpu_milli <= 1000:
        raise TraceError(str(row.path), row.line, f"gpu_milli: expected 1 to 1000, got {gpu_milli}")
    # Tasks that never left Pending have no scheduled_time: what they waited stands in for what they ran.
    scheduled = row.cells.get("scheduled_time", "").strip()
    start_s = row.count("scheduled_time") if scheduled else row.count("creation_time")
    spec = row.cells.get("gpu_spec", "")
    return TraceTask(
        name=row.name("name"),
        cpu_milli=row.count("cpu_milli", MOST_CPU_MILLI),
        memory_mib=row.count("memory_mib", MOST_MEMORY_MIB),
        gpus=gpus,
        gpu_milli=gpu_milli,
        # Some rows name a model twice; the set is what counts.
        models=tuple(
            sorted({row.label("gpu_spec", part.strip()) for part in spec.split("|") if part.strip()})
        ),
        qos=row.text("qos", allow_empty=True),
        run_s=float(max(row.count("deletion_time") - start_s, 0)),
    )


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[_Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [column for column in wanted if column not in header]
            if missing:
                raise TraceError(str(path), 1, f"missing columns: {', '.join(missing)}")
            empty = True
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    detail = f"{len(cells)} cells where the header has {len(header)}"
                    raise TraceError(str(path), reader.line_num, detail)
                empty = False
                yield _Row(path, reader.line_num, dict(zip(header, cells, strict=True)))
            if empty:
                raise TraceError(str(path), 1, "no rows")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TraceError(
            str(path), 0, f"cannot be read: {why}; --trace-dir wants the published lists"
        ) from error


def _refuse_twins(path: Path, names: list[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise TraceError(
                str(path), index + 2, f"name {name!r} stands there twice"
            )  # +1 header, +1 from 1
        seen.add(name)


def node_kind(node: TraceNode) -> tuple[str | int, ...]:
    """What to sort nodes by, so that like stands beside like."""
    return (node.model, node.gpus, node.cpu_milli, node.memory_mib, node.name)
