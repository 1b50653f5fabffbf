"""What Kubernetes takes for a name."""

from __future__ import annotations

import pytest

from scheduler.core.names import is_label, is_label_value, is_subdomain


@pytest.mark.parametrize("name", ["a", "node-1", "ip-10-0-0-1.eu.example", "1", "a" * 64, "a." * 126 + "a"])
def test_a_subdomain_is_taken(name: str) -> None:
    assert is_subdomain(name)


@pytest.mark.parametrize(
    "name", ["", "ä", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a.-b", "a\n", "a/b", "a" * 254, "\u0661"]
)
def test_what_is_no_subdomain_is_refused(name: str) -> None:
    assert not is_subdomain(name)
    assert not is_label(name)


@pytest.mark.parametrize(
    ("name", "want"), [("a" * 63, True), ("a" * 64, False), ("a.b", False), ("a-1", True)]
)
def test_a_label_is_shorter_and_has_no_dot(name: str, want: bool) -> None:
    assert is_label(name) is want


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("", True),
        ("a" * 63, True),
        ("A.b_c-1", True),
        ("a" * 64, False),
        ("-a", False),
        ("a b", False),
        ("ä", False),
    ],
)
def test_a_label_value_may_be_empty_and_have_capitals(value: str, want: bool) -> None:
    assert is_label_value(value) is want
