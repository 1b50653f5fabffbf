"""Draw the built-in slice of the openb trace from the whole lists.

    python scripts/slice_openb.py DIR      # DIR holds the published CSV files

No randomness: rows are sorted by kind and taken at even spacing, so the slice keeps the mix and is drawn the same
everywhere. Rows are copied unchanged.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from scheduler.simulate.traces import BUILT_IN_NODES, BUILT_IN_TASKS, NODE_FILE, pick_evenly

NODES = 300
# With its share of CPU-only tasks, which the workload counts and leaves out: about 1,500 ask for a GPU.
TASKS = 1730
# One task in ten names a model. In the 33 % list 18 % of tasks insist on T4, which is 14 % of the GPUs: at a load of
# 0.85 their queue would grow for ever.
TASK_FILE = "openb_pod_list_gpuspec10.csv"

Row = dict[str, str]


def main(source: Path) -> None:
    """Write both lists into the package."""
    target = Path(__file__).parent.parent / "scheduler" / "simulate" / "data"
    nodes = _read(source / NODE_FILE)
    _write(target / BUILT_IN_NODES, pick_evenly(nodes, NODES, key=_node_kind))
    tasks = _read(source / TASK_FILE)
    _write(target / BUILT_IN_TASKS, pick_evenly(tasks, TASKS, key=_task_kind))


def _node_kind(row: Row) -> tuple[str | int, ...]:
    return (row["model"], int(row["gpu"]), int(row["cpu_milli"]), int(row["memory_mib"]), row["sn"])


def _task_kind(row: Row) -> tuple[str | int, ...]:
    # Run time last but one: within each kind, long and short tasks keep their share too.
    run_s = int(row["deletion_time"]) - int(row["scheduled_time"] or row["creation_time"])
    return (int(row["num_gpu"]), row["gpu_spec"], row["qos"], run_s, row["name"])


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
