"""A real mosquitto on a free loopback port, and certificates to reach it with."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scheduler.simulate.ports import free_port

# Only a broker that hangs runs into it.
START_S = 60.0
ATTEMPTS = 5


def mosquitto_path() -> str | None:
    """Where mosquitto is; Debian puts it into /usr/sbin, which often is not on the path."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its key, as files."""

    cert_file: str
    key_file: str


class Authority:
    """A certificate authority that lives as long as the test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._serial = 0
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key).add_extension(basic, critical=True)
        self.ca_file = str(directory / "ca.pem")
        _write_certificate(Path(self.ca_file), certificate.sign(self._key, hashes.SHA256()))

    def issue(self, common_name: str) -> Identity:
        """Issue a certificate that is good for servers on loopback and for clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
        )
        certificate = self._builder(name, key).add_extension(names, critical=False)
        cert_file = self._directory / f"{common_name}.pem"
        key_file = self._directory / f"{common_name}.key"
        _write_certificate(cert_file, certificate.sign(self._key, hashes.SHA256()))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        return Identity(cert_file=str(cert_file), key_file=str(key_file))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        self._serial += 1
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(self._serial)
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
        )


def _write_certificate(file: Path, certificate: x509.Certificate) -> None:
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class Broker:
    """One mosquitto; stopped and started again on the same port."""

    def __init__(self, directory: Path, port: int, options: Sequence[str], *, scheme: str) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.url = f"{scheme}://{self.host}:{port}"
        self._log = directory / "mosquitto.log"
        self._configuration = directory / "mosquitto.conf"
        # Root would be swapped for a user that cannot read the test's directory.
        user = ["user root"] if os.geteuid() == 0 else []
        self._configuration.write_text("\n".join([*user, *options, ""]), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        path = mosquitto_path()
        if path is None:
            pytest.skip("mosquitto is not installed: scripts/install-debian installs it")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [path, "-c", str(self._configuration)],
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                message = f"mosquitto ended with {self._process.returncode}: {self.log}"
                raise OSError(message)
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1.0):
                return
            time.sleep(0.02)
        message = f"mosquitto took no connection within {START_S} s: {self.log}"
        raise TimeoutError(message)

    def stop(self) -> None:
        """End it, frozen or not, and wait for it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """Keep its sockets open and answer nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def run_mosquitto(
    directory: Path,
    *,
    options: Sequence[str] = (),
    authority: Authority | None = None,
) -> Iterator[Broker]:
    """Run a broker for the length of the block.

    Args:
        directory: For its configuration and log.
        options: Further lines of the configuration; without any, everybody may do everything.
        authority: Who vouches for server and clients; None means no TLS.
    """
    lines = list(options) or ["allow_anonymous true"]
    if authority is not None:
        server = authority.issue("localhost")
        lines += [f"cafile {authority.ca_file}", f"certfile {server.cert_file}", f"keyfile {server.key_file}"]
    for attempt in range(ATTEMPTS):
        port = free_port()
        listener = f"listener {port} 127.0.0.1"
        broker = Broker(
            directory,
            port,
            [listener, "log_dest stderr", *lines],
            scheme="mqtts" if authority else "mqtt",
        )
        try:
            broker.start()
            break
        except OSError:
            broker.stop()
            # Somebody else may have taken the port in between; a wrong configuration fails every time.
            if attempt == ATTEMPTS - 1:
                raise
    try:
        yield broker
    finally:
        broker.stop()
