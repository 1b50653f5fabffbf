"""How to reach the broker, and the secrets of one connection, read from files each time."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scheduler.core.errors import ConfigError, Disconnected, Problem
from scheduler.core.files import check_regular

_PORTS = {"mqtt": 1883, "mqtts": 8883}
# As much as MQTT can carry of either, and the end of a line.
_MOST_SECRET_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Where the broker is and who we are to it. Secrets are named by file, never held."""

    url: str = "mqtt://127.0.0.1:1883"
    """`mqtt://host[:port]` or `mqtts://host[:port]`; ports 1883 and 8883 where none is given."""
    ca_file: str | None = None
    """Whom to trust (PEM); None means the system's certificate authorities."""
    cert_file: str | None = None
    """Client certificate (PEM); None means that the broker does not ask for one."""
    key_file: str | None = None
    """Its key; None means that it stands in `cert_file`."""
    username_file: str | None = None
    password_file: str | None = None
    client_id: str = ""
    """Empty means one of our own making. Two clients with one id kick each other off the broker."""
    keepalive_s: int = 5
    """A frozen broker is noticed after twice this; below half a cap's lease."""
    connect_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what can never connect."""
        problems = [Problem(path=f"broker.{path}", message=message) for path, message in self._problems()]
        if problems:
            raise ConfigError(problems)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("mqtts://")

    @property
    def host(self) -> str:
        """The broker's name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The broker's port."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    def _problems(self) -> list[tuple[str, str]]:
        problems: list[tuple[str, str]] = []
        try:
            parts = urlsplit(self.url)
            port_fits = parts.port is None or parts.port > 0
        except ValueError as error:
            return [("url", f"{self.url!r}: {error}")]
        if parts.scheme not in _PORTS or not parts.hostname or not port_fits:
            problems.append(("url", f"expected mqtt://HOST[:PORT] or mqtts://HOST[:PORT], got {self.url!r}"))
        elif parts.username is not None or parts.password is not None:
            problems.append(("url", "holds a user; name username_file and password_file instead"))
        elif parts.path not in {"", "/"} or parts.query or parts.fragment:
            problems.append(("url", f"expected nothing after the port, got {self.url!r}"))
        if parts.scheme == "mqtt" and (self.ca_file or self.cert_file or self.key_file):
            problems.append(("url", "mqtt:// does not use the certificates that are named; say mqtts://"))
        if self.key_file and not self.cert_file:
            problems.append(("key_file", "needs cert_file"))
        if self.password_file and not self.username_file:
            problems.append(("password_file", "needs username_file"))
        if not 1 <= self.keepalive_s <= 65_535:  # The protocol's own limit: 16 bits.
            problems.append(("keepalive_s", f"expected 1 to 65535, got {self.keepalive_s}"))
        if self.connect_timeout_s <= 0:
            problems.append(("connect_timeout_s", "expected more than 0"))
        return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one connection needs, freshly read."""

    username: str | None
    password: str | None
    tls_context: ssl.SSLContext | None


def read_credentials(settings: BrokerSettings) -> Credentials:
    """Read the files that the settings name. Blocks: call it in a thread.

    Read for each connection, so that a rotated certificate or password needs no restart.

    Raises:
        Disconnected: a file cannot be read or used; says which. Retry: it may be in the midst of a rotation.
    """
    return Credentials(
        username=_read_secret("username_file", settings.username_file, "a user name"),
        password=_read_secret("password_file", settings.password_file, "a password"),
        tls_context=_read_certificates(settings) if settings.tls else None,
    )


def _read_certificates(settings: BrokerSettings) -> ssl.SSLContext:
    for key in ("ca_file", "cert_file", "key_file"):
        file = getattr(settings, key)
        if file is not None:
            # OpenSSL would open whatever stands there.
            _check_file(key, file)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        message = f"cannot use ca_file {settings.ca_file}: {error}"
        raise Disconnected(message) from error
    if settings.cert_file:
        try:
            # An empty password makes a locked key an error; without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except (OSError, ValueError) as error:
            what = "expected a PEM certificate and its unlocked key"
            message = f"cannot use cert_file {settings.cert_file}, key_file {settings.key_file}: {what}, got: {error}"
            raise Disconnected(message) from error
    return context


def _read_secret(key: str, file: str | None, what: str) -> str | None:
    if file is None:
        return None
    _check_file(key, file)
    try:
        with Path(file).open("rb") as opened:
            # One more than allowed, so that too much is seen without reading all of it.
            raw = opened.read(_MOST_SECRET_BYTES + 1)
        # Editors and `echo` end a file with a newline, which is no part of the secret.
        secret = raw.decode().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise Disconnected(f"cannot use {key} {file}: expected {what}, got: {error}") from error
    if len(raw) > _MOST_SECRET_BYTES:
        raise Disconnected(
            f"cannot use {key} {file}: expected {what}, got more than {_MOST_SECRET_BYTES} bytes"
        )
    if not secret:
        raise Disconnected(f"cannot use {key} {file}: expected {what}, got an empty file")
    return secret


def _check_file(key: str, file: str) -> None:
    try:
        check_regular(Path(file))
    except OSError as error:
        raise Disconnected(f"cannot use {key}: {error}") from error
