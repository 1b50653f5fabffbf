"""What is printed for each family of versions, as text: `python -m tests.kube_scheduler.golden` writes it anew."""

from __future__ import annotations

from pathlib import Path

from scheduler.config_kube import Wanted, render

FOLDER = Path(__file__).parent
CASES = {
    "second-1.20-v1beta1": Wanted(version="1.20"),
    "second-1.22-v1beta2": Wanted(version="1.22", part="config"),
    "second-1.23-v1beta3": Wanted(version="1.23", part="config"),
    "second-1.32-v1": Wanted(version="1.32"),
    "shared-1.37-v1": Wanted(version="1.37", shared=True),
    "break-glass-1.32-v1": Wanted(version="1.32", break_glass=True, part="config"),
    "shared-break-glass-1.32-v1": Wanted(version="1.32", break_glass=True, shared=True),
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


if __name__ == "__main__":
    for each, wanted in CASES.items():
        path_of(each).write_text(render(wanted).text)
