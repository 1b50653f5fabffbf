"""What the demo's daemon is configured with: least-loaded for every class, or the shipped example's policies and pools.

Either way the classes expect the load that the shipped example says, and everything else has its default.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from scheduler.config_example import TEXT
from scheduler.core.units import parse_duration
from scheduler.simulate.manifests import HOME

CLUSTER = "demo"
# The daemon's own default; a big fleet's agents send more rarely, and its readings may be older.
_STALE_S = 10.0
# A pod that waits for its pool less than this would be asked about hardly twice.
_LEAST_SPILL_S = 1.0


class Policies(StrEnum):
    """Which policies choose."""

    LEAST_LOADED = "least-loaded"
    """Measured load alone, one pool: what the comparison with random choice is about."""
    SHIPPED = "shipped"
    """The example's: training and batch packed, inference spread, the first pool before the second."""


def write_kubeconfig(folder: Path, api_url: str) -> Path:
    """Write what a user of the simulated API server would have."""
    path = folder / "kubeconfig"
    context = {"cluster": CLUSTER, "user": CLUSTER}
    made = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CLUSTER, "cluster": {"server": api_url}}],
        "users": [{"name": CLUSTER, "user": {"token": "demo"}}],
        "contexts": [{"name": CLUSTER, "context": context}],
        "current-context": CLUSTER,
    }
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


def write_config(
    folder: Path,
    *,
    api_url: str,
    broker_url: str,
    address: str,
    policies: Policies,
    speed_per_s: float,
    interval_s: float,
) -> Path:
    """Write the daemon's configuration and say where.

    Args:
        folder: Where to.
        api_url: Of the simulated API server.
        broker_url: Of the broker.
        address: The one listener.
        policies: Which choose.
        speed_per_s: The pools' waiting times are divided by it, as the jobs' run times are.
        interval_s: Between two samples of a node.
    """
    made: dict[str, Any] = {
        "cluster": {"name": CLUSTER, "kubeconfig": str(write_kubeconfig(folder, api_url))},
        "telemetry": {"broker": broker_url, "stale": f"{max(10 * interval_s, _STALE_S):g}s"},
        **chosen(policies, speed_per_s),
        "listeners": [{"address": address, "serves": ["extender", "api", "metrics", "probes"]}],
        "lease": {"namespace": HOME},
        "shutdown": {"grace": "5s"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return path


def chosen(policies: Policies, speed_per_s: float) -> dict[str, Any]:
    """Profiles, and pools if there are any, as the configuration writes them."""
    example = yaml.safe_load(TEXT)
    profiles, pools = example["profiles"], example["pools"]
    if policies is Policies.LEAST_LOADED:
        for profile in profiles.values():
            profile["policies"] = {"least-loaded": {"weight": 1}}
        return {"profiles": profiles}
    for pool in pools:
        if "spill" in pool:
            after_s = max(parse_duration(pool["spill"]["after"]) / speed_per_s, _LEAST_SPILL_S)
            pool["spill"]["after"] = f"{after_s:.3g}s"
    return {"profiles": profiles, "pools": pools}
