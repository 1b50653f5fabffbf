"""docs/config.md is made from the types, and says something of every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler import config, config_document, config_yaml

PAGE = Path(__file__).parents[1] / "docs" / "config.md"


def rows() -> dict[str, list[str]]:
    """The cells of each key."""
    found = {}
    for line in config_document.document().splitlines():
        match = re.fullmatch(r"\| `([^`]+)` \| (.*) \| (.*) \| (.*) \|", line)
        if match:
            assert match[1] not in found, "each key once"
            found[match[1]] = list(match.groups())[1:]
    return found


def test_the_page_is_up_to_date() -> None:
    assert config_document.document() == PAGE.read_text(), (
        "run: python -m scheduler.config_document > docs/config.md"
    )


def test_every_key_of_the_example_has_a_row_and_every_row_a_meaning() -> None:
    def keys_below(value: object, path: str) -> list[str]:
        if isinstance(value, dict):
            return [
                found
                for key, part in value.items()
                for found in [f"{path}{key}", *keys_below(part, f"{path}{key}.")]
            ]
        if isinstance(value, list):
            return [found for part in value for found in keys_below(part, path.removesuffix(".") + "[].")]
        return []

    documented = rows()
    read = config_yaml.read(config.example()).data
    # Keys that a person chooses: labels, models, policies, which have a table of their own.
    chosen = re.compile(r"pools\[\]\.selector\.|models\.|profiles\.\w+\.policies\.")
    sections = {key.partition(".")[0].partition("[")[0] for key in documented}
    missing = [
        key
        for key in keys_below(read, "")
        if not chosen.match(key) and key not in documented and key not in sections
    ]
    assert missing == []
    assert [key for key, (kind, _, text) in documented.items() if not kind or not text] == []


@pytest.mark.parametrize(
    ("key", "want_kind", "want_default"),
    [
        ("mode", "`act` or `observe`", "`act`"),
        ("cluster.name", "a name of letters, digits, - _ . such as dc-1, at most 63 long", "none: give it"),
        ("telemetry.stale", "a duration longer than zero", "`10s`"),
        ("telemetry.neutral_load", "a number, from 0, to 1", "`0.5`"),
        ("listeners[].tls.client_ca_file", "the path of a file or `null`", "`null`"),
        ("models.NAME.capability", "a number, above 0, to 1000", "`1.0`"),
        ("least-loaded.weight", "a number, above 0, to 1000", "none: give it"),
    ],
)
def test_a_row_says_what_the_loader_takes(key: str, want_kind: str, want_default: str) -> None:
    assert rows()[key][:2] == [want_kind, want_default]
