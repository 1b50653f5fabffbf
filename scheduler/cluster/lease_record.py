"""The Lease as it stands in the API server, the times of an election, and Kubernetes' time format."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from scheduler.cluster.objects import LeaseSpec, Slim
from scheduler.core.errors import ApiUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """client-go's defaults. lease > deadline > a few retries, or leading flaps."""

    lease_s: float = 15.0
    """Others may take over when the record has not changed for this long."""
    deadline_s: float = 10.0
    """We stop acting when we could not renew for this long."""
    retry_s: float = 2.0
    """Between renewals and between attempts, times a random 1 to 1.2."""
    release_s: float = 2.0
    """How long handing back may take at the end; a lost hand-back costs the successor `lease_s`."""

    def __post_init__(self) -> None:
        """Refuse times under which two could lead."""
        if not self.lease_s > self.deadline_s > self.retry_s * 1.2 > 0:
            msg = f"lease times must satisfy lease > deadline > 1.2 x retry > 0, got {self}"
            raise ValueError(msg)


class _Lease(Slim, frozen=True):
    spec: LeaseSpec | None = None


_LEASE = msgspec.json.Decoder(_Lease)


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in the API server. `whole` is kept, since a PUT replaces labels and owners too."""

    whole: dict[str, object]
    spec: LeaseSpec

    @property
    def holder(self) -> str:
        """Who has it; empty = nobody."""
        return self.spec.holder_identity or ""

    @property
    def transitions(self) -> int:
        """The term."""
        return self.spec.lease_transitions or 0


def decode_record(body: bytes) -> Record:
    """Decode a Lease. Raises ApiUnavailable for anything else: it counts as not renewed."""
    try:
        spec = _LEASE.decode(body).spec or LeaseSpec()
        whole = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiUnavailable(f"the answer is not a Lease: {error}") from error
    return Record(whole, spec)


def micro_time(unix_s: float) -> str:
    """A Kubernetes MicroTime: UTC with exactly six digits; `isoformat()` leaves them out at a full second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
