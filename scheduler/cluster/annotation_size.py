"""How large the annotations of one object are, as the API server counts, and what still fits. Pure."""

from __future__ import annotations

from collections.abc import Mapping

# All keys and values of one object together. Source: TotalAnnotationSizeLimitB, apimachinery's api/validation.
MOST_BYTES = 256 * 1024


def annotations_bytes(annotations: Mapping[str, str]) -> int:
    """Count keys and values, in bytes of UTF-8."""
    return sum(_bytes(key) + _bytes(text) for key, text in annotations.items())


def fits(held_bytes: int, replaced: Mapping[str, str], added: Mapping[str, str]) -> bool:
    """Whether there is room for more annotations.

    Args:
        held_bytes: Of all that are there.
        replaced: Some of those, whichever of them are to be written again among them.
        added: What is to be written.
    """
    again = {key: text for key, text in replaced.items() if key in added}
    return held_bytes - annotations_bytes(again) + annotations_bytes(added) <= MOST_BYTES


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
