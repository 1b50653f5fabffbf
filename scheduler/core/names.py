"""What Kubernetes takes for a name (RFC 1123): what is refused here would be refused there, again and again."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# As Kubernetes checks it: only the whole has a limit, not each part between dots.
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_MOST_LABEL = 63
_MOST_SUBDOMAIN = 253

SUBDOMAIN = f"small letters, digits, - and . as in RFC 1123, at most {_MOST_SUBDOMAIN} long"
"""In words, for messages."""
LABEL = f"small letters, digits and - as in RFC 1123, at most {_MOST_LABEL} long"
"""Likewise."""
LABEL_VALUE = f"a label's value: letters, digits, - _ . as Kubernetes takes them, at most {_MOST_LABEL} long"
"""Likewise."""


def is_subdomain(name: str) -> bool:
    """Whether a node, a pod or a Lease may be called so."""
    return len(name) <= _MOST_SUBDOMAIN and _SUBDOMAIN.fullmatch(name) is not None


def is_label(name: str) -> bool:
    """Whether a namespace may be called so."""
    return len(name) <= _MOST_LABEL and _LABEL.fullmatch(name) is not None


def is_label_value(value: str) -> bool:
    """Whether a label may hold it; an empty one is a value too."""
    return len(value) <= _MOST_LABEL and _LABEL_VALUE.fullmatch(value) is not None
