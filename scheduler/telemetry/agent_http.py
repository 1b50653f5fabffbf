"""A few text pages over HTTP, without a web framework: the agent's /metrics and /healthz.

Every request gets one answer and the end of the connection; nothing that a client does can do more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from scheduler.core.errors import CannotListen

_log = logging.getLogger(__name__)

# A scrape's head is a few hundred bytes.
_MOST_HEAD_BYTES = 8192
# For reading the head, and again for sending the answer: a slow client is let go.
PATIENCE_S = 5.0
# Prometheus, a probe and a few people.
MOST_CLIENTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer."""

    body: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class TextServer:
    """Serves pages that are made when they are asked for."""

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Callable[[], Page]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._host = host
        self._port = port
        self._pages = pages
        self._patience_s = patience_s
        self._clients = 0
        self.port: int | None = None
        """The port that it listens on, once it does; of use where port 0 was asked for."""

    async def run(self) -> NoReturn:
        """Listen until cancelled. Raises CannotListen if the address cannot be had."""
        try:
            server = await asyncio.start_server(self._serve, self._host, self._port, limit=_MOST_HEAD_BYTES)
        except OSError as error:
            host = f"[{self._host}]" if ":" in self._host else self._host
            raise CannotListen.at("--listen", f"{host}:{self._port}", error) from error
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            await server.serve_forever()
        raise AssertionError  # pragma: no cover  # serve_forever ends by cancellation only.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MOST_CLIENTS:
                return
            try:
                async with asyncio.timeout(self._patience_s):
                    head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, TimeoutError):
                return
            except asyncio.LimitOverrunError:
                await self._send(writer, Page(body="head too large\n", status=400), head_only=False)
                return
            page, head_only = self._answer(head)
            await self._send(writer, page, head_only=head_only)
        except (OSError, TimeoutError):
            # It went away or reads too slowly: its loss.
            pass
        finally:
            self._clients -= 1
            # Closed without waiting: a client that does not read would keep us.
            writer.close()
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _send(self, writer: asyncio.StreamWriter, page: Page, *, head_only: bool) -> None:
        body = page.body.encode()
        allow = "Allow: GET, HEAD\r\n" if page.status == 405 else ""
        head = (
            f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.content_type}\r\n"
            f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if head_only else body))
        # Down to nothing, not to the low-water mark: the connection is closed next.
        writer.transport.set_write_buffer_limits(high=0)
        async with asyncio.timeout(self._patience_s):
            await writer.drain()

    def _answer(self, head: bytes) -> tuple[Page, bool]:
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return Page(body="not an HTTP/1.x request\n", status=400), False
        method, path = words[0], words[1].split(b"?", 1)[0].decode("latin-1")
        head_only = method == b"HEAD"
        if method not in {b"GET", b"HEAD"}:
            return Page(body="GET or HEAD only\n", status=405), False
        make = self._pages.get(path)
        if make is None:
            return Page(body=f"not here; try {' '.join(self._pages)}\n", status=404), head_only
        try:
            return make(), head_only
        except Exception:  # noqa: BLE001  # The HTTP boundary: the next request is served.
            _log.exception("making %s failed", path)
            return Page(body="failed; see the log\n", status=500), head_only
