"""What a request is about, the limits it runs under, and what is counted. Pure data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EVENT_DROPS = ("full", "spam", "failed", "not_leading")
"""Why an event is not written: too many wait, too many of one object, the API server refused it or did not answer, it
was queued when the Lease was lost or a pause began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request is about; knows its path and the RBAC rule that allows it."""

    group: str = ""
    version: str = "v1"
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    raw_path: str = ""
    """For what is not a resource: `/readyz`."""
    without: str = ""
    """What follows where this is refused, for who has to allow it; said behind the rule."""
    ours: bool = False
    """Whether it is done in our own namespace only: a matter of the Role in deploy/rbac.yaml, as the Lease is."""

    @property
    def path(self) -> str:
        """The URL path, e.g. `/apis/batch/v1/namespaces/ml/jobs/train`."""
        if self.raw_path:
            return self.raw_path
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        space = f"/namespaces/{self.namespace}" if self.namespace else ""
        tail = "".join(f"/{part}" for part in (self.name, self.subresource) if part)
        return f"{base}{space}/{self.resource}{tail}"

    @property
    def rbac_resource(self) -> str:
        """The resource as an RBAC rule names it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    def rule(self, verb: str) -> str:
        """The sentence that tells an administrator what to add."""
        where = f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"
        kind = "Role" if self.ours or self.rbac_resource in {"leases", "configmaps"} else "ClusterRole"
        return (
            f"may not {verb} {self.rbac_resource} {where}; add to wattbalance's {kind}: "
            f'{{apiGroups: ["{self.group}"], resources: ["{self.rbac_resource}"], verbs: ["{verb}"]}}'
            + (f"; {self.without}" if self.without else "")
        )


@dataclass(slots=True)
class Counters:
    """Plain counts, read by report/metrics.py when scraped."""

    requests: Counter[str] = field(default_factory=Counter)
    """By verb."""
    errors: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By verb, resource and HTTP status, or `timeout`, `connection`."""
    relists: Counter[str] = field(default_factory=Counter)
    """By kind; the first list is not one."""
    watch_restarts: Counter[str] = field(default_factory=Counter)
    """By kind; a watch that ended as announced and was resumed counts too."""
    watch_events: Counter[str] = field(default_factory=Counter)
    """By kind, bookmarks not counted."""
    undecodable: Counter[str] = field(default_factory=Counter)
    """Objects skipped because they are not what their kind should be, by kind."""
    throttled: int = 0
    """Answers 429."""
    events_written: int = 0
    events_dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(EVENT_DROPS, 0)))
    """By reason, zeros too: a series that is not there cannot be watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits and sizes of the transport; settable so that tests are quick."""

    call_timeout_s: float = 10.0
    """One call with its repetitions after 429; a bind must end before kube-scheduler's own 30 s."""
    page_timeout_s: float = 60.0
    """One page of a list; 500 pods took under 1 s from a busy server."""
    lease_timeout_s: float = 5.0
    """One request of the elector: half its deadline, so that a lost one can be repeated."""
    connect_timeout_s: float = 5.0
    silence_s: float = 90.0
    """A watch without a byte for this long is dead: bookmarks come each 60 s where there is traffic."""
    page_size: int = 500
    """client-go's own."""
