"""Every link, path and reference to a page leads somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from scheduler.cli import cli
from scheduler.config_settings import ExtenderSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "scheduler/simulate/data/SOURCE.md",
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
# A path of this repository in backticks, and the name of a test after `::`. Patterns (`*`, `<`) are left alone.
CODE_PATH = re.compile(
    r"`((?:scheduler|tests|deploy|docs|scripts|benchmarks|requirements)/[\w./-]*)(?:::(\w+))?`"
)
PROMISE = re.compile(r"^### (5\.\d+ .+?)$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
IN_CODE = re.compile(r"docs/(?:adr/\d{4}|[\w/-]+\.md)")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchor(heading: str) -> str:
    """The anchor that forges make of a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, fragment = target.partition("#")
    found = (page.parent / path) if path else page
    if not found.exists():
        return False
    if not fragment:
        return True
    return found.suffix == ".md" and fragment in {anchor(each) for each in HEADING.findall(prose(found))}


@cache
def tracked_lines() -> list[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    return [(name, line) for name in names for line in (ROOT / name).read_text(errors="replace").splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    targets = [target for target in LINK.findall(prose(page)) if "://" not in target]
    broken = [target for target in targets if not leads_somewhere(page, target)]
    assert broken == []


@cache
def collected_from(file: Path) -> frozenset[str]:
    """What pytest collects from a file: functions, methods, and state machines that are assigned to a name."""
    if not re.fullmatch(r"test_\w+\.py", file.name):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(name for name in found if name.startswith(("test_", "Test")))


def absent(text: str) -> list[str]:
    """Paths and tests that a text names and that do not exist."""
    missing = []
    for path, test in CODE_PATH.findall(text):
        file = ROOT / path
        if not file.exists() or (test and test not in collected_from(file)):
            missing.append(f"{path}::{test}" if test else path)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_and_tests_exist(page: Path) -> None:
    assert absent(prose(page)) == []


def test_every_promise_names_tests_that_hold_it() -> None:
    promises = PROMISE.findall((ROOT / "docs/architecture.md").read_text())
    assert promises
    unheld = [title for title, text in promises if not any(test for _, test in CODE_PATH.findall(text))]
    assert unheld == []


def test_a_named_test_that_does_not_exist_would_be_found() -> None:
    here = "tests/conventions/test_docs.py"
    named = f"`{here}::test_every_promise_names_tests_that_hold_it`, `{here}::{{}}`"
    assert absent(named.format("test_a_broken_link_and_a_wrong_anchor_would_be_found")) == []
    # Neither a name that is nowhere, nor the beginning of one, nor a function that pytest does not collect.
    for name in ("test_absent", "test_every_promise", "leads_somewhere"):
        assert absent(named.format(name)) == [f"{here}::{name}"]
    assert absent("`tests/builders.py::make_node`") == ["tests/builders.py::make_node"], "not a file of tests"


def test_code_refers_only_to_pages_that_exist() -> None:
    broken = []
    for name, line in tracked_lines():
        for reference in IN_CODE.findall(line):
            exact = (ROOT / reference).is_file()
            numbered = not reference.endswith(".md") and len(list(ROOT.glob(reference + "-*.md"))) == 1
            if not exact and not numbered:
                broken.append(f"{name}: {reference}")
    assert broken == []


def test_a_broken_link_and_a_wrong_anchor_would_be_found() -> None:
    page = ROOT / "README.md"
    # Put together here, so that this file does not itself name a page that is absent.
    assert not leads_somewhere(page, "docs" + "/absent.md")
    assert not leads_somewhere(page, "docs/architecture.md#absent")
    assert leads_somewhere(page, "docs/architecture.md#43-mqtt")


def test_the_readmes_kube_scheduler_configuration_says_what_matters() -> None:
    blocks = re.findall(
        r"^ *```yaml\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    [config] = [yaml.safe_load(block) for block in blocks if "KubeSchedulerConfiguration" in block]
    [extender] = config["extenders"]
    # Scores are not asked for nodes that are never offered; whole nodes are judged as idle; no CA verifies nothing.
    assert config["percentageOfNodesToScore"] == 100
    assert extender["nodeCacheCapable"] is True
    assert extender["ignorable"] is False
    assert extender["httpTimeout"] == "1s"
    assert extender["enableHTTPS"] is True
    assert extender["tlsConfig"]["caFile"]
    assert (extender["filterVerb"], extender["prioritizeVerb"], extender["preemptVerb"]) == (
        "filter",
        "prioritize",
        "preempt",
    )
    assert extender["urlPrefix"].endswith(ExtenderSettings().prefix)


def test_the_readme_lists_every_command() -> None:
    listed = set(re.findall(r"`wattbalance ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert set(cli.commands) <= listed


def test_every_decision_page_has_its_five_parts_and_is_short() -> None:
    want_parts = ["Goal", "Non-goals", "Choice", "Drawbacks", "Alternatives"]
    pages = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == want_parts, page.name
        assert len(page.read_text().splitlines()) < 60, page.name
