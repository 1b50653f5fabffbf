"""Finds policies through the entry-point group `wattbalance.policies`, in-tree ones too."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Protocol, cast

import msgspec

from scheduler.core.errors import ConfigError, Problem
from scheduler.policy import base

GROUP = "wattbalance.policies"


class PolicyModule(Protocol):
    """What a policy file offers."""

    NAME: str
    Args: type[base.Args]

    def build(self, args: base.Args) -> base.Filter | base.Score:
        """Make the policy."""
        ...


@cache
def known() -> dict[str, PolicyModule]:
    """All installed policies by name, sorted."""
    found = sorted(entry_points(group=GROUP), key=lambda e: e.name)
    return {e.name: cast("PolicyModule", e.load()) for e in found}


def build(name: str, args: dict[str, object]) -> base.Filter | base.Score:
    """Make one policy from its name and raw arguments.

    Raises:
        ConfigError: unknown name or argument; lists what is known.
    """
    module = known().get(name)
    if module is None:
        raise ConfigError([Problem(path=name, message=f"unknown policy; known: {', '.join(known())}")])
    try:
        return module.build(msgspec.convert(args, module.Args))
    except msgspec.ValidationError as error:
        fields = ", ".join(f.encode_name for f in msgspec.structs.fields(module.Args)) or "none"
        raise ConfigError([Problem(path=name, message=f"{error}; known arguments: {fields}")]) from error
