"""`check-config` and the files that a configuration names: what is wrong with each, at its path and line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler import config
from scheduler.config_files import SOON_S, Files
from scheduler.config_yaml import Document
from scheduler.core.clock import SystemClock
from scheduler.core.errors import ConfigError
from tests.certs import Authority, lock

KUBECONFIG = """\
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443"}}]
contexts: [{name: k, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: k
"""


class Folder:
    """All the files that a configuration can name, good ones, and the configuration that names them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority = Authority("ours")
        self.authority.write(path / "ca.crt")
        self.authority.issue("server", path / "tls.crt", path / "tls.key")
        self.authority.issue("other", path / "other.crt", path / "other.key")
        (path / "username").write_text("kim\n")
        (path / "password").write_text("secret-word\n")
        (path / "kubeconfig").write_text(KUBECONFIG)
        self.config = path / "config.yaml"
        self.config.write_text(f"""\
cluster:
  name: a
  kubeconfig: {path}/kubeconfig
telemetry:
  broker: mqtts://b
  ca_file: {path}/ca.crt
  cert_file: {path}/tls.crt
  key_file: {path}/tls.key
  username_file: {path}/username
  password_file: {path}/password
listeners:
  - address: 127.0.0.1:9443
    serves: [extender]
    tls:
      cert_file: {path}/tls.crt
      key_file: {path}/tls.key
      client_ca_file: {path}/ca.crt
""")

    def check(self, after_s: float = 0.0) -> list[str]:
        """What is refused, else what is warned of, so long after now."""
        try:
            _, warned = config.load_with_files(str(self.config), SystemClock().unix_s() + after_s)
        except ConfigError as error:
            return [str(each) for each in error.problems]
        return [f"warning: {each}" for each in warned]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    # Its certificates hold for an hour.
    monkeypatch.setattr("scheduler.config_files.SOON_S", 0.0)
    return Folder(tmp_path)


def test_good_files_are_no_problem(folder: Folder) -> None:
    assert folder.check() == []


def test_each_file_that_is_not_there_is_told_with_its_place(folder: Folder) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key", "username", "password", "kubeconfig"):
        (folder.path / name).unlink()
    want = {
        3: ("cluster.kubeconfig", "kubeconfig"),
        6: ("telemetry.ca_file", "ca.crt"),
        7: ("telemetry.cert_file", "tls.crt"),
        8: ("telemetry.key_file", "tls.key"),
        9: ("telemetry.username_file", "username"),
        10: ("telemetry.password_file", "password"),
        15: ("listeners[0].tls.cert_file", "tls.crt"),
        16: ("listeners[0].tls.key_file", "tls.key"),
        17: ("listeners[0].tls.client_ca_file", "ca.crt"),
    }
    want_lines = [
        f"line {line}: {path}: expected a readable file, got {str(folder.path / name)!r}: No such file or directory"
        for line, (path, name) in want.items()
    ]
    assert folder.check() == want_lines


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("spoil", "want"),
    [
        (fifo, "a pipe"),
        (zeros, "a device"),
        (folder_instead, "a directory"),
        (huge, "expected at most 4194304 bytes, got 1099511627776"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), ("other bytes", "none in it")),
    ],
)
@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key", "username", "password", "kubeconfig"])
def test_what_is_no_file_of_text_is_refused_for_what_it_is(
    folder: Folder, name: str, spoil: Callable[[Path], object], want: str | tuple[str, ...]
) -> None:
    spoil(folder.path / name)
    told = folder.check()
    assert told
    for each in told:
        assert f"{folder.path / name}" in each
        assert each.endswith(want)


def swap_keys(folder: Folder) -> None:
    (folder.path / "tls.key").write_bytes((folder.path / "other.key").read_bytes())


def write(name: str, text: str) -> Callable[[Folder], object]:
    return lambda folder: (folder.path / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "want_path", "want"),
    [
        (
            swap_keys,
            "key_file",
            "expected the key of the certificate in '{}/tls.crt', got '{}/tls.key': the key of another",
        ),
        (
            write("tls.key", "nothing"),
            "key_file",
            "expected a private key in PEM, got '{}/tls.key': none in it",
        ),
        (
            write("tls.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "key_file",
            "expected a private key in PEM, got '{}/tls.key': what OpenSSL cannot use",
        ),
        (lambda folder: lock(folder.path / "tls.key"), "key_file", "expected a key without a password"),
        (
            write("tls.crt", "nothing"),
            "cert_file",
            "expected certificates in PEM, got '{}/tls.crt': none in it",
        ),
        (
            write("ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "ca_file",
            "expected certificates in PEM, got '{}/ca.crt': what OpenSSL cannot read",
        ),
        (write("ca.crt", ""), "ca_file", "expected certificates in PEM, got '{}/ca.crt': none in it"),
        (
            write("password", "\n"),
            "password_file",
            "expected a line of text, got '{}/password': an empty file",
        ),
        (
            write("password", "x" * 70_000),
            "password_file",
            "expected at most 65536 bytes, got '{}/password': more",
        ),
        (
            write("kubeconfig", "a: [b"),
            "kubeconfig",
            "expected a kubeconfig, got '{}/kubeconfig': what is no YAML",
        ),
        *(
            (
                write("kubeconfig", KUBECONFIG.replace("contexts: [{name: k,", f"contexts: {odd} #")),
                "kubeconfig",
                "another",
            )
            for odd in ("5", "{a: b}", "[1, [2]]", "[{name: [k]}]")
        ),
        (write("kubeconfig", "[" * 5000), "kubeconfig", "what is no YAML"),
        (write("kubeconfig", "- 1"), "kubeconfig", "one without clusters, contexts, users, current-context"),
        (
            write("kubeconfig", KUBECONFIG.replace("current-context: k", "current-context: gone")),
            "kubeconfig",
            "expected a kubeconfig whose current-context is among its contexts",
        ),
    ],
)
def test_what_a_file_should_be_is_told(
    folder: Folder, spoil: Callable[[Folder], object], want_path: str, want: str
) -> None:
    spoil(folder)
    told = folder.check()
    assert told
    assert not any("secret-word" in each for each in told)
    for each in told:
        assert want_path in each
        assert want.replace("{}", str(folder.path)) in each


def test_what_stands_around_the_blocks_is_no_fault(folder: Folder) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key"):
        file = folder.path / name
        file.write_bytes(
            "# Né à Genève\r\n".encode("latin-1") + file.read_bytes().replace(b"\n", b"\r\n") + b"\xff\n"
        )
    assert folder.check() == []


def test_the_key_may_stand_in_the_certificates_file(folder: Folder) -> None:
    both = (folder.path / "tls.crt").read_bytes() + (folder.path / "tls.key").read_bytes()
    (folder.path / "both.pem").write_bytes(both)
    text = folder.config.read_text()
    folder.config.write_text(
        text.replace(
            f"cert_file: {folder.path}/tls.crt\n  key_file: {folder.path}/tls.key",
            f"cert_file: {folder.path}/both.pem",
            1,
        )
    )
    assert "both.pem" in folder.config.read_text()
    assert folder.check() == []
    (folder.path / "both.pem").write_bytes((folder.path / "tls.crt").read_bytes())
    [told] = folder.check()
    assert "telemetry.cert_file: expected a private key in PEM" in told


@pytest.mark.parametrize(
    ("after_s", "want"),
    [
        (-86_400.0, "one that begins at 20"),
        (0.0, "one that ends at 20"),
        (86_400.0, "one that ended at 20"),
    ],
)
def test_a_certificate_that_does_not_hold_or_not_for_long_is_a_warning(
    folder: Folder, after_s: float, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.config_files.SOON_S", SOON_S)
    told = folder.check(after_s)
    assert {each.split(": ")[2] for each in told} == {
        *("telemetry.ca_file", "telemetry.cert_file"),
        *("listeners[0].tls.cert_file", "listeners[0].tls.client_ca_file"),
    }
    for each in told:
        assert each.startswith("warning: line ")
        assert "expected a certificate that holds for a week or more, got" in each
        assert want in each


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scheduler.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_tells_them_and_leaves_them_alone_where_asked_to(folder: Folder) -> None:
    (folder.path / "tls.key").unlink()
    done = call("check-config", str(folder.config))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0].startswith("line 8: telemetry.key_file: expected a readable file")
    done = call("check-config", "--no-files", str(folder.config))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"]])
@pytest.mark.parametrize(("what", "want"), [("pipe", "a pipe"), ("/dev/zero", "a device")])
def test_what_is_no_file_holds_nobody(tmp_path: Path, command: list[str], what: str, want: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = str(tmp_path / what)
    done = call(*command, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{path}: expected a file, got {want}\n"


def test_what_a_shell_has_opened_may_be_a_pipe() -> None:
    settings = "{cluster: {name: a}, telemetry: {broker: mqtt://b}}"
    command = f"{sys.executable} -m scheduler.cli check-config --no-files <(echo '{settings}')"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("/dev/fd/"), done.stderr


def test_files_of_nothing_are_not_looked_at() -> None:
    files = Files(Document(), 0.0)
    files.check(config.load('cluster: {name: a}\ntelemetry: {broker: "mqtt://b"}\n'))
    assert (files.problems, files.warnings) == ([], [])
