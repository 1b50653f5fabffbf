"""docs/annotations.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from scheduler.report.annotations_page import document

PAGE = Path(__file__).parents[2] / "docs" / "annotations.md"


def test_the_page_is_made_from_the_table() -> None:
    assert document() == PAGE.read_text(), (
        "run: python -m scheduler.report.annotations_page > docs/annotations.md"
    )
