"""The pause of a running daemon, as it stands in the cluster: a ConfigMap whose presence is the pause.

Every replica watches it; people write it (pause_orders.py). So a pause outlives each of them, and no replica has to
tell another.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.cluster.objects import ConfigMap
from scheduler.cluster.port import Changed, ClusterEvent, Listed
from scheduler.core.log import kv

log = logging.getLogger(__name__)

NAME = "wattbalance-pause"
BY, BY_IS, REASON = "by", "by-is", "reason"
CLAIMED = "claimed"
"""In `by-is`: what the kubeconfig calls its user."""
KNOWN = "known"
"""In `by-is`: whom the API server took for the user."""
# A sentence or two: it stands in probes, tables and each refused Binding.
MOST_REASON_CHARS = 500
# X.509 and OIDC names are shorter.
MOST_BY_CHARS = 256


def odd_character(text: str) -> str | None:
    """The first character that has no place in a line: of control, invisible, or that begins another line."""
    return next((each for each in text if unicodedata.category(each) in _ODD), None)


_ODD = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def plain(text: str, most_chars: int) -> str:
    """A text that anybody may have written, as one line of bounded length."""
    # Cut first: a ConfigMap may hold a mebibyte.
    line = "".join(" " if unicodedata.category(each) in _ODD else each for each in text[: 2 * most_chars])
    line = " ".join(line.split())
    return line if len(line) <= most_chars else line[: most_chars - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """Who paused us, since when, and why; whatever was left out is empty."""

    uid: str
    by: str
    claimed: bool
    """Whether only the kubeconfig said so: no API server before 1.28 tells whom it takes us for."""
    since: str
    """RFC 3339, by the API server's clock."""
    reason: str

    @classmethod
    def of(cls, found: ConfigMap) -> Paused | None:
        """Read what anybody may have written; None where it is being deleted, as `resume` does."""
        meta, data = found.metadata, found.data or {}
        if meta.deletion_timestamp:
            return None
        return cls(
            uid=meta.uid,
            by=plain(data.get(BY, ""), MOST_BY_CHARS),
            claimed=data.get(BY_IS) != KNOWN,
            since=meta.creation_timestamp or "",
            reason=plain(data.get(REASON, ""), MOST_REASON_CHARS),
        )

    def __str__(self) -> str:
        """For a person, in one line."""
        who = f"{self.by} (claimed)" if self.by and self.claimed else self.by or "somebody"
        since = f" since {self.since}" if self.since else ""
        return f"paused by {who}{since}: {self.reason or '(no reason given)'}"


class Pause:
    """What the watch has told of it so far."""

    def __init__(self) -> None:
        self.now: Paused | None = None
        """None while nobody has paused us."""
        self.on_begin: Callable[[], None] = _nothing
        """Called when a pause begins."""

    def see(self, event: ClusterEvent) -> None:
        """Take one event about the ConfigMap. One that we may read no longer stays as it was seen last."""
        if isinstance(event, Listed):
            if self.now is not None and self.now.uid not in event.keys:
                self._set(None)
        elif isinstance(event.object, ConfigMap) and event.object.metadata.name == NAME:
            if isinstance(event, Changed):
                self._set(Paused.of(event.object))
            elif self.now is not None and self.now.uid == event.object.metadata.uid:
                self._set(None)

    def _set(self, now: Paused | None) -> None:
        before, self.now = self.now, now
        if now is not None and now != before:
            log.warning(
                "paused", extra=kv(by=now.by, claimed=now.claimed, since=now.since, reason=now.reason)
            )
        if now is not None and before is None:
            self.on_begin()
        if now is None and before is not None:
            log.warning("resumed", extra=kv(paused_by=before.by, since=before.since))


def _nothing() -> None:
    pass
