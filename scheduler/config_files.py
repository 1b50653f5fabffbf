"""The files that a configuration names: whether they are there and are what they should be.

Only `check-config` asks: a running daemon reads them when it needs them, and again when they change. What is said of a
secret never shows it.
"""

from __future__ import annotations

import binascii
import contextlib
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path as FileSystemPath

import yaml

from scheduler.config_settings import Settings
from scheduler.config_yaml import Document, Path, show_path
from scheduler.core.der import Validity, validity_of
from scheduler.core.errors import Problem
from scheduler.core.files import read_regular
from scheduler.core.units import format_instant

# As much as MQTT can carry of a user name or a password, and the end of a line.
MOST_SECRET_BYTES = 64 * 2**10
# Whoever renews certificates by hand needs days; tools renew them long before.
SOON_S = 7 * 86_400.0
_CERTIFICATE = re.compile(r"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
# Around the blocks of a PEM file may stand anything, and what OpenSSL skips is no fault.
_ANY_BYTES = "latin-1"
_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_LOCKED = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")


@dataclass(slots=True)
class Files:
    """What was found in the files of one configuration.

    Args:
        document: for the lines.
        now_unix_s: for what has ended.
    """

    document: Document
    now_unix_s: float
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def check(self, settings: Settings) -> None:
        """Look at all of them."""
        if settings.cluster.kubeconfig is not None:
            self._check_kubeconfig(("cluster", "kubeconfig"), settings.cluster.kubeconfig)
        broker = settings.telemetry
        for name, file in (("username_file", broker.username_file), ("password_file", broker.password_file)):
            if file is not None:
                self._check_secret(("telemetry", name), file)
        if broker.ca_file is not None:
            self._check_authority(("telemetry", "ca_file"), broker.ca_file)
        if broker.cert_file is not None:
            self._check_pair(("telemetry",), broker.cert_file, broker.key_file)
        for index, listener in enumerate(settings.listeners):
            if (tls := listener.tls) is None:
                continue
            path: Path = ("listeners", index, "tls")
            self._check_pair(path, tls.cert_file, tls.key_file)
            if tls.client_ca_file is not None:
                self._check_authority((*path, "client_ca_file"), tls.client_ca_file)

    def _check_pair(self, path: Path, cert_file: str, key_file: str | None) -> None:
        cert_path, key_path = (*path, "cert_file"), (*path, "key_file" if key_file else "cert_file")
        certificates = self._certificates(cert_path, cert_file)
        key = self._text(key_path, key_file, _ANY_BYTES) if key_file else certificates
        if certificates is None or key is None:
            return
        file = key_file or cert_file
        if _LOCKED.search(key):
            self._refuse(
                key_path, "a key without a password, since nobody is there to type it", file, "a locked one"
            )
        elif not _KEY.search(key):
            self._refuse(key_path, "a private key in PEM", file, "none in it")
        else:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
            except ssl.SSLError as error:
                matches = error.reason != "KEY_VALUES_MISMATCH"
                expected = (
                    "a private key in PEM" if matches else f"the key of the certificate in {cert_file!r}"
                )
                got = (
                    f"what OpenSSL cannot use ({error.reason or error})" if matches else "the key of another"
                )
                self._refuse(key_path, expected, file, got)
            except OSError as error:
                self._refuse(key_path, "a readable file", file, error.strerror or str(error))
        # The first is its own; those behind it lead up to its authority.
        self._judge(cert_path, cert_file, _validities(certificates)[:1])

    def _check_authority(self, path: Path, file: str) -> None:
        if (text := self._certificates(path, file)) is not None:
            self._judge(path, file, _validities(text))

    def _certificates(self, path: Path, file: str) -> str | None:
        """The text of a file of certificates; None if it is none."""
        if (text := self._text(path, file, _ANY_BYTES)) is None:
            return None
        if _CERTIFICATE.search(text) is None:
            self._refuse(path, "certificates in PEM", file, "none in it")
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or error
            self._refuse(path, "certificates in PEM", file, f"what OpenSSL cannot read ({reason})")
            return None
        return text

    def _judge(self, path: Path, file: str, found: list[Validity]) -> None:
        """Warn of what does not hold now: who is asked for it may say no."""
        for each in found:
            if each.until_unix_s <= self.now_unix_s:
                got = f"one that ended at {format_instant(each.until_unix_s)}"
            elif each.from_unix_s > self.now_unix_s:
                got = f"one that begins at {format_instant(each.from_unix_s)}"
            elif each.until_unix_s - self.now_unix_s < SOON_S:
                got = f"one that ends at {format_instant(each.until_unix_s)}"
            else:
                continue
            self.warnings.append(
                self._problem(path, "a certificate that holds for a week or more", file, got)
            )

    def _check_secret(self, path: Path, file: str) -> None:
        if (text := self._text(path, file)) is None:
            return
        if len(text.encode()) > MOST_SECRET_BYTES:
            self._refuse(path, f"at most {MOST_SECRET_BYTES} bytes", file, "more")
        elif not text.rstrip("\r\n"):
            self._refuse(path, "a line of text", file, "an empty file")

    def _check_kubeconfig(self, path: Path, file: str) -> None:
        if (text := self._text(path, file)) is None:
            return
        expected = "a kubeconfig"
        try:
            found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe one
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            what = getattr(error, "problem", None) or type(error).__name__
            self._refuse(path, expected, file, f"what is no YAML ({what})")
            return
        parts = found if isinstance(found, dict) else {}
        missing = [key for key in ("clusters", "contexts", "users", "current-context") if not parts.get(key)]
        if missing:
            self._refuse(path, expected, file, f"one without {', '.join(missing)}")
            return
        contexts = parts["contexts"] if isinstance(parts["contexts"], list) else []
        names = [each.get("name") for each in contexts if isinstance(each, dict)]
        if parts["current-context"] not in names:
            self._refuse(path, "a kubeconfig whose current-context is among its contexts", file, "another")

    def _text(self, path: Path, file: str, encoding: str = "utf-8") -> str | None:
        try:
            return read_regular(FileSystemPath(file)).decode(encoding)
        except UnicodeDecodeError:
            self._refuse(path, "text", file, "other bytes")
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error).removeprefix(f"{file}: ")
            self._refuse(path, "a readable file", file, str(said).removeprefix("expected a file, got "))
        return None

    def _refuse(self, path: Path, expected: str, file: str, got: str) -> None:
        self.problems.append(self._problem(path, expected, file, got))

    def _problem(self, path: Path, expected: str, file: str, got: str) -> Problem:
        message = f"expected {expected}, got {file!r}: {got}"
        return Problem(path=show_path(path), message=message, line=self.document.line(path))


def _validities(text: str) -> list[Validity]:
    found = []
    for _, block in _CERTIFICATE.findall(text):
        with contextlib.suppress(binascii.Error):
            found.append(validity_of(binascii.a2b_base64(block)))
    return [each for each in found if each is not None]
