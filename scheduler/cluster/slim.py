"""The base of all structs of Kubernetes objects."""

from __future__ import annotations

import msgspec


class Slim(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Base: camelCase on the wire, unknown fields skipped."""
