"""What stands in for a node's kubelet, as far as `kubectl port-forward` needs one: no kubelet runs in these tests.

The API server hands the upgraded connection through, so that here kubectl itself is spoken to: SPDY/3.1 (draft 3.1 of
that protocol), and in it `portforward.k8s.io`, two streams a connection: `data` and `error`. A pod's loopback is a
table: which port of the pod is which port of this machine. Websockets are refused as kubelet of 1.20 refuses them, and
kubectl of 1.31 and later then takes SPDY.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
import zlib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Self

from tests.certs import Authority
from tests.controlplane import Json, node_manifest

# Words of the header dictionary that SPDY 3 is compressed with; zlib checks that both sides have the same.
WORDS = """
options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow
authorization cache-control connection content-base content-encoding content-language content-length content-location
content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match
if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range
referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get
status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin
"""
TAIL = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    b"404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    b"Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    b"chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    b"publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _sized(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


DICTIONARY = b"".join(_sized(word.replace("_", " ").encode()) for word in WORDS.split()) + TAIL
CONTROL, FIN = 0x8003_0000, 0x01
MOST_BYTES = 65_536
NO_PORT = 1  # of this machine: nobody listens there, so that it refuses as a pod does where nobody listens


class Frame(IntEnum):
    """The control frames that matter here."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    PING = 6
    GOAWAY = 7


class Kubelet:
    """Serves `/portForward/NAMESPACE/POD` of one node, until the end of the block.

    Args:
        folder: For its certificate.
        ports: By pod, and by port of its loopback, the port of this machine that is behind it; none is refused.
    """

    def __init__(self, folder: Path, ports: Mapping[str, Mapping[int, int]]) -> None:
        self._ports = ports
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        Authority().issue("kubelet", folder / "kubelet.crt", folder / "kubelet.key")
        self._context.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self.port = 0
        self.asked: list[tuple[str, str]] = []
        """Each upgraded connection so far: the pod's namespace and name."""
        self.cut_after_bytes: int | None = None
        """After so many bytes of an answer the connection to kubectl breaks; None for never."""

    @property
    def connected(self) -> int:
        """How many of kubectl's connections are open."""
        return len(self._open)

    def node(self, name: str) -> Json:
        """A node whose kubelet this is; it offers no GPU."""
        manifest = node_manifest(name, gpus=0)
        status = manifest["status"]
        assert isinstance(status, dict)
        status["addresses"] = [{"type": "InternalIP", "address": "127.0.0.1"}]
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": self.port}}
        return manifest

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections and the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        left = dict(self._open)
        for writer, task in left.items():
            task.cancel()
            # kubectl may not be there any more to take leave of.
            writer.transport.abort()
        await asyncio.gather(*left.values(), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        # Whoever goes away, or is cut off, has ended it.
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ExceptionGroup
        ):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            _, _, namespace, pod = head.split(" ", 2)[1].split("?")[0].split("/")
            if "upgrade: spdy/3.1" in head and "x-stream-protocol-version: portforward.k8s.io" in head:
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
                    b"X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
                )
                self.asked.append((namespace, pod))
                forward = _Forward(reader, writer, self._ports.get(pod, {}), self.cut_after_bytes)
                self._open[writer] = task
                try:
                    await forward.run()
                finally:
                    del self._open[writer]
            else:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n")
                await writer.drain()
        writer.close()


class _Forward:
    """One connection of kubectl's: frames of SPDY, and a connection to the pod for each `data` stream."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ports: Mapping[int, int],
        cut_after_bytes: int | None,
    ) -> None:
        self._reader, self._writer, self._ports = reader, writer, ports
        self._left_bytes = cut_after_bytes
        # Each direction is one compressed text, over all its frames.
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._errors: dict[str, int] = {}
        self._pods: dict[int, asyncio.Future[asyncio.StreamWriter | None]] = {}

    async def run(self) -> None:
        """Until kubectl goes away."""
        async with asyncio.TaskGroup() as group:
            while True:
                first, rest = struct.unpack(">II", await self._reader.readexactly(8))
                flags, body = rest >> 24, await self._reader.readexactly(rest & 0xFF_FFFF)
                if first < CONTROL:
                    await self._to_pod(first, flags, body)
                elif first == CONTROL | Frame.SYN_STREAM:
                    self._open_stream(group, struct.unpack(">I", body[:4])[0], self._headers(body[10:]))
                elif first == CONTROL | Frame.PING:
                    self._control(Frame.PING, body)
                elif first == CONTROL | Frame.GOAWAY:
                    raise ConnectionResetError

    def _open_stream(self, group: asyncio.TaskGroup, stream: int, headers: Mapping[str, str]) -> None:
        reply = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._control(Frame.SYN_REPLY, struct.pack(">I", stream) + reply)
        if headers["streamtype"] == "error":
            self._errors[headers["requestid"]] = stream
        else:
            error = self._errors.pop(headers["requestid"])
            self._pods[stream] = asyncio.get_running_loop().create_future()
            group.create_task(self._from_pod(stream, error, int(headers["port"])))

    async def _from_pod(self, stream: int, error: int, port: int) -> None:
        """Connect one data stream to the pod, and bring what the pod says."""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._ports.get(port, NO_PORT))
            self._pods[stream].set_result(writer)
            try:
                while part := await reader.read(MOST_BYTES):
                    await self._data(stream, part)
            finally:
                writer.close()
        if not self._pods[stream].done():
            self._pods[stream].set_result(None)
            words = f"error forwarding port {port} to pod: dial tcp4 127.0.0.1:{port}: connect: connection refused"
            await self._data(error, words.encode())
        for each in (stream, error):
            await self._data(each, b"", FIN)

    async def _to_pod(self, stream: int, flags: int, body: bytes) -> None:
        """Bring what kubectl says; what it says on a stream of errors is that it will say nothing."""
        writer = await self._pods[stream] if stream in self._pods else None
        # Ended by the pod, or never connected: nobody is there to read it.
        if writer is None or writer.is_closing():
            return
        writer.write(body)
        if flags & FIN:
            writer.write_eof()
        await writer.drain()

    async def _data(self, stream: int, body: bytes, flags: int = 0) -> None:
        if body and self._left_bytes is not None:
            body = body[: self._left_bytes]
            self._left_bytes -= len(body)
        self._writer.write(struct.pack(">II", stream, flags << 24 | len(body)) + body)
        await self._writer.drain()
        if self._left_bytes == 0:
            raise ConnectionResetError

    def _control(self, kind: Frame, body: bytes) -> None:
        self._writer.write(struct.pack(">II", CONTROL | kind, len(body)) + body)

    def _headers(self, block: bytes) -> dict[str, str]:
        """A number of pairs, each a name and a value with their lengths before them."""
        text = self._inflate.decompress(block)
        parts, at = [], 4
        while at < len(text):
            end = at + 4 + int.from_bytes(text[at : at + 4])
            parts.append(text[at + 4 : end].decode())
            at = end
        return dict(zip(parts[::2], parts[1::2], strict=True))
