"""What can go wrong with an API server, as switches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """Switches of a simulated API server; all off at first, and read anew for each request and watch frame.

    A refused connection and dropped watches are acts, not states of a request: see `ApiServer.refuse`,
    `ApiServer.accept` and `ApiServer.drop_watches`.
    """

    frozen: bool = False
    """Requests are accepted and never answered, watches fall silent; both go on where they were once thawed."""
    throttle_next: int = 0
    """So many requests to resources are answered 429."""
    retry_after_s: int = 1
    """Goes into the Retry-After header of each 429."""
    fail_next: int = 0
    """So many requests to resources are answered 500."""
    expire_continue: bool = False
    """Every continue token is answered 410."""
    expire_watches: bool = False
    """Every watch from a resource version is told 410, in an ERROR event after a 200."""
    silent_watches: bool = False
    """Watches send neither events nor bookmarks; what they miss is not sent later."""
    slow_s: float = 0.0
    """Each request waits so long first."""
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    """(verb, resource) pairs that are answered 403, e.g. `("create", "pods/binding")`."""
    unauthorized: bool = False
    """Every request is answered 401, as after a token has expired."""
    pad_bytes: int = 0
    """Each object served grows by an unknown field of this size."""
    lose_bind_answers: int = 0
    """So many Bindings are applied, and their answer never comes."""
    lose_binds: int = 0
    """So many Bindings are neither applied nor answered."""

    async def pass_freeze(self) -> None:
        """Return once the server is not frozen."""
        # Polled: a plain field that any test may set is worth more here than an event.
        while self.frozen:  # noqa: ASYNC110 - see above
            await asyncio.sleep(_THAW_POLL_S)


# Short beside every time limit that a client of a frozen server is tested with.
_THAW_POLL_S = 0.02
