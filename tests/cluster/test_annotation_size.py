"""Annotations are counted as the API server does."""

from __future__ import annotations

import pytest

from scheduler.cluster.annotation_size import MOST_BYTES, annotations_bytes, fits


def test_keys_and_values_count_in_bytes() -> None:
    assert annotations_bytes({}) == 0
    assert annotations_bytes({"ab": "cde", "k": "Grüße"}) == 5 + 8


@pytest.mark.parametrize(
    ("room_bytes", "held", "want"),
    [
        (5, {}, True),
        (4, {}, False),
        (0, {"k": "1234"}, True),
        (0, {"k": "123"}, False),
        (0, {"other": "1234"}, False),
    ],
)
def test_what_is_written_again_takes_the_room_of_what_was_there(
    room_bytes: int, held: dict[str, str], *, want: bool
) -> None:
    assert fits(MOST_BYTES - room_bytes, held, {"k": "5678"}) is want
