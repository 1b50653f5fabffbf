"""What may not be committed: hosts of package registries, paths of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Put together here, so that this file does not name what it looks for.
REGISTRIES = re.compile(
    r"pypi\." + r"org|pythonhosted\." + r"org|registry\.npm" + r"js|registry\.yarn" + r"pkg|"
    r"proxy\.golang\." + r"org|artifac" + r"tory|index\.crates\." + r"io|/simple/?[\"'\s]",
    re.IGNORECASE,
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:ro" + r"ot|ho" + r"me/\w+|wo" + r"rk|Use" + r"rs/\w+)/")


@cache
def tracked() -> dict[str, str]:
    """Text of every tracked file; skipped aloud in a copy without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    texts: dict[str, str] = {}
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            texts[name] = path.read_text(errors="replace")
    return texts


def found(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked().items()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_requirements_name_no_address() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert {path.name for path in files} == {"build.txt", "dev.txt", "run.txt"}
    assert [path.name for path in files if "://" in path.read_text()] == []


def test_every_requirement_is_pinned_with_hashes() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        entries = path.read_text().replace("\\\n", " ").splitlines()
        loose = [
            line[:60]
            for line in entries
            if line.strip() and ("==" not in line or "--hash=sha256:" not in line)
        ]
        assert loose == [], path.name


def test_no_tracked_file_names_a_registry() -> None:
    assert found(REGISTRIES) == []


def test_no_tracked_file_names_a_path_of_somebodys_machine() -> None:
    assert found(MACHINE_PATHS) == []


def test_no_lock_file_that_holds_addresses_is_tracked() -> None:
    assert not {"uv.lock", "pylock.toml"} & {Path(name).name for name in tracked()}
