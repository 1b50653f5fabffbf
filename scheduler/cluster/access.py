"""Access to an API server that renews itself: before its token ends, after a 401, after a failed verification."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from scheduler.core.clock import Clock
from scheduler.core.errors import ConfigError

log = logging.getLogger(__name__)

# A token is renewed this long before its end: client-go's and the loader's own margin.
RENEW_BEFORE_S = 300.0
# A server that answers 401 to everything must not make us run a login plugin for every request.
RELOAD_AT_MOST_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the transport needs to reach and convince an API server."""

    host: str
    ssl_context: ssl.SSLContext | None
    token: Callable[[], Awaitable[str]]
    """The value of the Authorization header, read anew for each request; empty with client certificates."""
    expires_unix_s: float | None = None
    user: str = ""
    """What the kubeconfig calls us; the API server may know us by another name."""
    tls_server_name: str | None = None
    proxy: str | None = None


class Source(Protocol):
    """One way to get access. Called at start, before a token ends, and after a 401 or a failed verification."""

    async def __call__(self) -> Access:
        """Read files and run plugins anew. Raises ConfigError."""
        ...


class Credentials:
    """Access that renews itself."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._access: Access | None = None
        self._loaded_mono_s = 0.0
        self._lock = asyncio.Lock()

    async def access(self) -> Access:
        """The current access, renewed if its token is about to end.

        Raises:
            ConfigError: nobody could be logged in, and nothing older is at hand.
        """
        access = self._access
        if access is None:
            async with self._lock:
                if self._access is None:
                    await self._load()
                access = self._access
            assert access is not None  # noqa: S101 - _load sets it or raises; for mypy
            return access
        ends = access.expires_unix_s
        if ends is not None and self._clock.unix_s() >= ends - RENEW_BEFORE_S:
            return await self.reload(access)
        return access

    async def reload(self, refused: Access) -> Access:
        """Log in again unless somebody just did; a failure keeps what we have and is logged.

        Args:
            refused: the access that did not work, so that ten calls that failed together log in once.
        """
        async with self._lock:
            current = self._access
            if current is not None:
                recent = self._clock.mono_s() - self._loaded_mono_s < RELOAD_AT_MOST_EVERY_S
                if current is not refused or recent:
                    return current
            try:
                await self._load()
            except ConfigError as error:
                if current is None:
                    raise
                self._loaded_mono_s = self._clock.mono_s()
                log.warning("could not renew the credentials: %s", error)
                return current
            assert self._access is not None  # noqa: S101 - _load sets it or raises; for mypy
            return self._access

    async def _load(self) -> None:
        self._access = await self._source()
        self._loaded_mono_s = self._clock.mono_s()
