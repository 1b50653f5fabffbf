"""What a running daemon takes of a changed configuration, and what only a restart brings about."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from scheduler.config_settings import Settings

# As the file calls them; a section whole where its name stands alone. Everything else needs a restart. Of these,
# `wait_at_start` means something at the start only, and what is said of kube-scheduler (`ignorable`,
# `kubernetes_version`) is checked, and nothing is made of it.
APPLIED = frozenset(
    {
        "annotations",
        "cluster.stale",
        "extender.annotate",
        "extender.annotations_per_second",
        "extender.ignorable",
        "extender.kubernetes_version",
        "extender.reservation",
        "filters",
        "log.level",
        "managed_resources",
        "models",
        "namespaces",
        "nudge",
        "pools",
        "profiles",
        "scheduler_names",
        "telemetry.half_life",
        "telemetry.neutral_load",
        "telemetry.stale",
        "telemetry.wait_at_start",
        "workload",
    }
)

_T = TypeVar("_T", bound=msgspec.Struct)


def needs_restart(key: str) -> bool:
    """Whether a key, as the file calls it, `[]` and `NAME` in it or not, is taken at a start only."""
    parts = key.replace("[", ".").split(".")
    return not any(".".join(parts[:depth]) in APPLIED for depth in range(1, len(parts) + 1))


def merge(before: Settings, wanted: Settings) -> Settings:
    """The settings in force with what a running daemon can take of others."""
    return _merge(before, wanted, "")


def _merge(before: _T, wanted: _T, path: str) -> _T:
    taken: dict[str, object] = {}
    for field in msgspec.structs.fields(before):
        key, old, new = f"{path}{field.encode_name}", getattr(before, field.name), getattr(wanted, field.name)
        if key in APPLIED:
            taken[field.name] = new
        elif any(each.startswith(f"{key}.") for each in APPLIED):
            taken[field.name] = _merge(old, new, f"{key}.")
    return msgspec.structs.replace(before, **taken)


def differing(one: msgspec.Struct, other: msgspec.Struct, path: str = "") -> list[str]:
    """Keys in which two settings differ, as the file calls them, in the order of the settings."""
    keys = []
    for field in msgspec.structs.fields(one):
        key, a, b = f"{path}{field.encode_name}", getattr(one, field.name), getattr(other, field.name)
        if a == b:
            continue
        if isinstance(a, msgspec.Struct) and type(a) is type(b):
            keys += differing(a, b, f"{key}.")
        else:
            keys.append(key)
    return keys
