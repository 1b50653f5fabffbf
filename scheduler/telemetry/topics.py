"""The names of the MQTT topics. DESIGN: docs/architecture.md, MQTT."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.errors import ConfigError, Problem

SAMPLES = "samples"
INVENTORY = "inventory"
STATUS = "status"
# Read by the subscriber, in this order: what a sample refers to arrives before it.
READ_KINDS = (INVENTORY, STATUS, SAMPLES)
ONLINE = b"online"
OFFLINE = b"offline"

_ROOT = "wattbalance/v1"
_LEVELS = 6


class NodeTopic(NamedTuple):
    """One topic of one node, taken apart."""

    node: str
    kind: str


def node_topic(cluster: str, node: str, kind: str) -> str:
    """Name one topic of one node."""
    return f"{_ROOT}/{cluster}/nodes/{node}/{kind}"


def parse_topic(topic: str, cluster: str) -> NodeTopic | None:
    """Take a topic apart; None if it is not one of ours or of another cluster."""
    levels = topic.split("/")
    if len(levels) != _LEVELS or levels[0] != "wattbalance" or levels[1] != "v1":
        return None
    if levels[2] != cluster or levels[3] != "nodes" or not levels[4] or levels[5] not in READ_KINDS:
        return None
    return NodeTopic(levels[4], levels[5])


def check_level(name: str, path: str) -> None:
    """Refuse a cluster or node name that cannot be one level of a topic.

    Raises:
        ConfigError: it is empty, or holds a separator, a wildcard or a NUL.
    """
    if not name or any(mark in name for mark in "/+#\0"):
        raise ConfigError([Problem(path=path, message=f"expected a name without / + #, got {name!r}")])
