"""What the linters cannot say: units in names, who may read a clock, who may start tasks, charters, sizes."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "scheduler").rglob("*.py"))
CHARTERS = sorted((ROOT / "scheduler").glob("*/__init__.py"))

UNITS = ("w", "j", "s", "c", "mhz", "hz", "bytes", "frac", "per_s")
# Only here: converted on the same line.
RAW_UNITS = ("mw", "mj", "ms", "mib", "pct")
RAW_UNIT_FILES = re.compile(r"device/nvml\w*\.py$|wire\.py$")
# Not physical: ratios of their own, counts with a fraction (a share of a GPU is bound), and plain numbers.
DIMENSIONLESS = {
    *("score", "weight", "term", "value", "factor", "load", "load_sum", "expected_load", "neutral_load"),
    *("capability", "capability_max", "gpu_count", "gpu_count_max", "bound", "broken", "free", "reserved"),
    *("neutral", "speed", "ratio", "sigma", "rho", "correlation", "mean", "low", "high", "spread", "noise"),
    "mean_load",
}

# Who may know the time without being handed a Clock.
CLOCK_FILES = {
    "core/clock.py",
    "core/log.py",  # a log line's own instant
    "simulate/kubescheduler_extender.py",  # latencies as kube-scheduler sees them, outside our clock
}
# Who may roll dice: jitter of retries, and worlds, which take a seed.
RANDOM_FILES = re.compile(
    r"core/aio\.py$|cluster/(transport|reflector|lease)\.py$|telemetry/agent\.py$|simulate/"
)

MOST_LINES = 400
# Over 400 lines and why it may be: ask what second thing moved in before adding to this.
LARGE = {
    "app.py": "the one file that knows every room",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "scheduler").as_posix()


def float_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Fields, attributes and arguments that are declared as float."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            target, annotation = node.target, node.annotation
            name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
        elif isinstance(node, ast.arg) and node.annotation is not None:
            name, annotation = node.arg, node.annotation
        else:
            continue
        if ast.unparse(annotation) in {"float", "float | None", "FloatList"}:
            yield node.lineno, name.lower().strip("_")


def says_its_unit(name: str, *, raw_allowed: bool) -> bool:
    units = UNITS + RAW_UNITS if raw_allowed else UNITS
    if name in DIMENSIONLESS or name in units or any(name.endswith(f"_{unit}") for unit in units):
        return True
    # A plural noun is a count; `_ms` and its like are not plurals.
    return name.endswith("s") and not any(name.endswith(f"_{unit}") for unit in RAW_UNITS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_float_field_says_its_unit(path: Path) -> None:
    raw_allowed = RAW_UNIT_FILES.search(path.as_posix()) is not None
    # Fields only: arguments of pure arithmetic may be x and y.
    fields = {
        (line, name)
        for body in ast.walk(tree_of(path))
        if isinstance(body, ast.ClassDef)
        for statement in body.body
        if isinstance(statement, ast.AnnAssign)
        for line, name in float_names(statement)
    }
    unnamed = [
        f"line {line}: {name}"
        for line, name in sorted(fields)
        if not says_its_unit(name, raw_allowed=raw_allowed)
    ]
    assert unnamed == [], f"STYLE: end it in one of {UNITS}, or add it to DIMENSIONLESS"


def test_the_rule_of_units_finds_what_it_is_for() -> None:
    planted = ast.parse("class A:\n    power: float\n    limit_w: float\n    wait_ms: float | None\n")
    found = [name for _, name in float_names(planted) if not says_its_unit(name, raw_allowed=False)]
    assert found == ["power", "wait_ms"]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_tasks_are_started_on_a_task_group_only(path: Path) -> None:
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.unparse(item.context_expr)
    }
    # A group that is handed in is declared as one.
    groups |= {
        node.arg
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.arg)
        and node.annotation is not None
        and "TaskGroup" in ast.unparse(node.annotation)
    }
    loose = [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"create_task", "ensure_future"}
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id in groups)
    ]
    assert loose == []


def imports_of(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_time_and_chance_come_from_where_they_may(path: Path) -> None:
    imported = imports_of(tree_of(path))
    assert "time" not in imported or name_of(path) in CLOCK_FILES, "hand in a core.clock.Clock"
    assert "random" not in imported or RANDOM_FILES.search(path.as_posix()), "hand in a seeded generator"
    assert "now" not in {
        node.func.attr
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and "datetime" in ast.unparse(node.func.value)
    }, "hand in a core.clock.Clock"


@pytest.mark.parametrize("path", CHARTERS, ids=name_of)
def test_a_room_begins_with_its_charter_and_no_code(path: Path) -> None:
    tree = tree_of(path)
    assert len(tree.body) == 1
    charter = (ast.get_docstring(tree) or "").lower()
    assert "takes" in charter
    assert "never" in charter or "pure" in charter, "it says what the room does not do"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_that_has_grown_too_large_says_why(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES or name_of(path) in LARGE, f"{lines} lines: what second thing has moved in?"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_noqa_and_type_ignore_name_their_rule_and_a_reason(path: Path) -> None:
    bare: list[str] = []
    rule_before = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        directive = re.search(r"#\s*(noqa|type: ignore)(: [A-Z0-9, ]+|\[[\w, -]+\])?(.*)$", line)
        rule = directive[2] or "" if directive else ""
        # A reason given once holds for the lines right below it with the same rule.
        if directive and (not rule or (not directive[3].strip() and rule.strip() != rule_before)):
            bare.append(f"line {number}")
        rule_before = rule.strip()
    assert bare == []


def test_every_policy_file_is_registered_and_every_entry_is_a_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    registered = set(project["entry-points"]["wattbalance.policies"].values())
    files = {
        f"scheduler.policy.{path.stem}"
        for path in (ROOT / "scheduler" / "policy").glob("*.py")
        if any(
            isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "NAME" for t in node.targets)
            for node in tree_of(path).body
        )
    }
    assert registered == files
