"""TLS handshakes of listeners, and why one was refused: the first thing that a person needs to know, and cannot see.

asyncio drops a connection whose handshake fails without a word. So the handshake is its own protocol (`SSLProtocol`,
the one that `create_server(ssl=…)` makes) over a plain connection, with a future that it tells of its outcome.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.log import kv

_log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0  # a whole one takes two round trips and 2 ms; asyncio's own limit is 60 s
# Of each reason on each listener: who asks wrongly asks again every second, and a stranger as often as he likes.
TELL_EVERY_S = 60.0
NOT_TLS = "not_tls"
OTHER = "other"
# By OpenSSL's own word for it.
_REASONS: Mapping[str, str] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "bad_certificate",
    "HTTP_REQUEST": NOT_TLS,
    "HTTPS_PROXY_REQUEST": NOT_TLS,
    "WRONG_VERSION_NUMBER": NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": NOT_TLS,
    "RECORD_LAYER_FAILURE": NOT_TLS,
    "UNSUPPORTED_PROTOCOL": "old_version",
    "NO_PROTOCOLS_AVAILABLE": "old_version",
    "TLSV1_ALERT_UNKNOWN_CA": "distrusts_us",
    "SSLV3_ALERT_BAD_CERTIFICATE": "distrusts_us",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "distrusts_us",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "distrusts_us",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "distrusts_us",
}
_WORDS: Mapping[str, str] = {
    "no_certificate": "the client showed no certificate, and client_ca_file asks for one",
    "bad_certificate": "the client's certificate is not accepted",
    NOT_TLS: "the client did not speak TLS; it may have asked for http:// instead of https://",
    "old_version": "the client does not speak TLS 1.3",
    "distrusts_us": "the client does not accept our certificate (cert_file); it may know another CA",
    OTHER: "the handshake failed",
}
REASONS = tuple(_WORDS)
"""Why a handshake was refused; a metric's labels."""


@dataclass(slots=True)
class Refusals:
    """Handshakes that one listener refused: counted all, told some.

    Args:
        address: the listener's, for people.
        counts: by reason, shared by all listeners.
    """

    address: str
    counts: dict[str, int]
    _next_tell_s: dict[str, float] = field(default_factory=dict, init=False)
    _untold: dict[str, int] = field(default_factory=dict, init=False)

    def note(self, error: ssl.SSLError, peer: object, now_mono_s: float) -> None:
        """Count one, and tell it unless one like it was told within the last minute."""
        # One that OpenSSL did not raise has none.
        word = getattr(error, "reason", None) or ""
        reason = _REASONS.get(word, OTHER)
        self.counts[reason] += 1
        if now_mono_s < self._next_tell_s.get(reason, 0.0):
            self._untold[reason] = self._untold.get(reason, 0) + 1
            return
        self._next_tell_s[reason] = now_mono_s + TELL_EVERY_S
        _log.warning(
            "tls handshake refused",
            extra=kv(
                listener=self.address,
                peer=_shown(peer),
                reason=reason,
                why=_WORDS[reason],
                openssl=getattr(error, "verify_message", "") or word or str(error),
                untold_before=self._untold.pop(reason, 0),
            ),
        )


def no_refusals() -> dict[str, int]:
    """Counts before the first one."""
    return dict.fromkeys(REASONS, 0)


class Handshake(SSLProtocol):
    """One connection's TLS, from its first byte on.

    Args:
        protocol: what speaks over it once it stands.
        context: certificates.
        refusals: takes it if it fails.
    """

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext, refusals: Refusals) -> None:
        loop = asyncio.get_running_loop()
        self.over = False
        """Whether it has ended, however it did."""
        # Not kept: with its error it leads back to us, who hold a quarter of a megabyte until the next collection.
        outcome: asyncio.Future[None] = loop.create_future()
        outcome.add_done_callback(self._note)
        self._refusals = refusals
        self._plain: asyncio.BaseTransport | None = None
        self._peer: object = None
        super().__init__(
            loop,
            protocol,
            context,
            outcome,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_S,  # type: ignore[arg-type]  # typeshed's int is too narrow: it is seconds
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._peer = transport.get_extra_info("peername")
        self._plain = transport
        super().connection_made(transport)

    def abort(self) -> None:
        """End it at once, wherever it stands."""
        if isinstance(self._plain, asyncio.WriteTransport):
            self._plain.abort()

    def _note(self, outcome: asyncio.Future[None]) -> None:
        self.over = True
        error = None if outcome.cancelled() else outcome.exception()
        # Who goes away before it ends, or says nothing, was not refused: a probe of the port does both.
        if isinstance(error, ssl.SSLError):
            self._refusals.note(error, self._peer, asyncio.get_running_loop().time())
        if error is not None:
            # For the same reason: its frames hold it, and us.
            error.__traceback__ = None


def _shown(peer: object) -> str:
    if not isinstance(peer, tuple) or len(peer) < 2:
        return "unknown"
    host, port = str(peer[0]), peer[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
