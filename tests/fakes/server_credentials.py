"""Credentials for an API server that a test names outright, without a kubeconfig."""

from __future__ import annotations

import ssl
from pathlib import Path

from scheduler.cluster.access import Access, Credentials
from scheduler.core.clock import Clock


def from_server(server: str, *, clock: Clock, token: str = "", ca_file: Path | None = None) -> Credentials:
    """A base URL, a bearer token (empty sends none), and who signed the server's certificate."""

    async def header() -> str:
        return f"Bearer {token}" if token else ""

    async def source() -> Access:
        context = ssl.create_default_context(cafile=ca_file) if server.startswith("https") else None
        return Access(host=server.rstrip("/"), ssl_context=context, token=header)

    return Credentials(source, clock)
