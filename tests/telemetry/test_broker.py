"""Broker settings that cannot work are refused, each with the field it is about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scheduler.core.errors import ConfigError, Disconnected
from scheduler.telemetry.broker import BrokerSettings, read_credentials
from tests.certs import Authority, lock


@pytest.mark.parametrize(
    ("url", "want_host", "want_port", "want_tls"),
    [
        ("mqtt://broker", "broker", 1883, False),
        ("mqtts://broker", "broker", 8883, True),
        ("mqtts://broker.example:9000", "broker.example", 9000, True),
        ("mqtt://[::1]:1884", "::1", 1884, False),
    ],
)
def test_addresses_are_taken_apart(url: str, want_host: str, want_port: int, want_tls: bool) -> None:
    settings = BrokerSettings(url=url)
    assert (settings.host, settings.port, settings.tls) == (want_host, want_port, want_tls)


@pytest.mark.parametrize(
    ("fields", "want_path"),
    [
        ({"url": "http://broker"}, "broker.url"),
        ({"url": "broker:1883"}, "broker.url"),
        ({"url": "mqtt://"}, "broker.url"),
        ({"url": "mqtt://broker:99999"}, "broker.url"),
        ({"url": "mqtt://broker:0"}, "broker.url"),
        ({"url": "mqtt://[broker"}, "broker.url"),
        ({"url": "mqtt://user:secret@broker"}, "broker.url"),
        ({"url": "mqtt://broker/path"}, "broker.url"),
        ({"url": "mqtt://broker", "ca_file": "ca.pem"}, "broker.url"),
        ({"url": "mqtts://broker", "key_file": "key.pem"}, "broker.key_file"),
        ({"password_file": "password"}, "broker.password_file"),
        ({"keepalive_s": 0}, "broker.keepalive_s"),
        ({"connect_timeout_s": 0.0}, "broker.connect_timeout_s"),
    ],
)
def test_what_cannot_connect_is_refused(fields: dict[str, str], want_path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BrokerSettings(**fields)  # type: ignore[arg-type]  # Fields of a case.
    assert [problem.path for problem in caught.value.problems] == [want_path]


def test_secrets_are_read_without_the_line_end_and_anew_each_time(tmp_path: Path) -> None:
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("n1\n", encoding="utf-8")
    password.write_text(" one \r\n", encoding="utf-8")
    settings = BrokerSettings(username_file=str(user), password_file=str(password))
    first = read_credentials(settings)
    password.write_text("two", encoding="utf-8")
    second = read_credentials(settings)
    assert (first.username, first.password, first.tls_context) == ("n1", " one ", None)
    assert second.password == "two"


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "username_file"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, field: str) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe not a certificate")
    with pytest.raises(Disconnected, match="broken"):
        read_credentials(BrokerSettings(url="mqtts://broker", **{field: str(broken)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file", "username_file", "password_file"])
def test_a_pipe_in_place_of_a_secret_is_refused_and_a_link_is_not(tmp_path: Path, field: str) -> None:
    authority = Authority()
    ca, chain, key = (tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key"))
    authority.issue("n1", chain, key)
    files = {name: tmp_path / name for name in ("username_file", "password_file")}
    for name, file in files.items():
        (tmp_path / "mounted").mkdir(exist_ok=True)
        (tmp_path / "mounted" / name).write_text("secret")
        file.symlink_to(tmp_path / "mounted" / name)
    given = {"ca_file": authority.write(ca), "cert_file": chain, "key_file": key, **files}
    settings = BrokerSettings(url="mqtts://broker", **{k: str(v) for k, v in given.items()})  # type: ignore[arg-type]  # All are files.
    assert read_credentials(settings).username == "secret"
    given[field].unlink()
    os.mkfifo(given[field])
    with pytest.raises(Disconnected) as caught:
        read_credentials(settings)
    assert str(caught.value) == f"cannot use {field}: {given[field]}: expected a file, got a pipe"


@pytest.mark.parametrize(
    ("field", "want"), [("username_file", "a user name"), ("password_file", "a password")]
)
@pytest.mark.parametrize("text", ["", "\n", "\r\n\n"])
def test_an_empty_secret_is_named_with_its_key(tmp_path: Path, field: str, want: str, text: str) -> None:
    files = {"username_file": tmp_path / "u", "password_file": tmp_path / "p"}
    for file in files.values():
        file.write_text("secret")
    files[field].write_bytes(text.encode())
    with pytest.raises(Disconnected) as caught:
        read_credentials(BrokerSettings(**{key: str(file) for key, file in files.items()}))  # type: ignore[arg-type]  # As above.
    assert str(caught.value) == f"cannot use {field} {files[field]}: expected {want}, got an empty file"


def test_a_locked_key_is_refused_instead_of_asking_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    Authority().issue("n1", chain, key)
    lock(key)
    with pytest.raises(Disconnected, match=r"cannot use cert_file .*: expected .* its unlocked key, got: "):
        read_credentials(BrokerSettings(url="mqtts://b", cert_file=str(chain), key_file=str(key)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("field", ["username_file", "password_file"])
def test_a_secret_that_is_none_by_its_size_is_refused_and_not_read_whole(tmp_path: Path, field: str) -> None:
    files = {name: tmp_path / name for name in ("username_file", "password_file")}
    for file in files.values():
        file.write_text("x" * 65_535 + "\n")
    settings = BrokerSettings(**{name: str(file) for name, file in files.items()})  # type: ignore[arg-type]
    assert len(read_credentials(settings).password or "") == 65_535
    files[field].write_text("x" * 65_537)
    with pytest.raises(Disconnected, match=f"cannot use {field} .*: expected .*, got more than 65536 bytes"):
        read_credentials(settings)
    with files[field].open("wb") as huge:
        huge.truncate(2**40)
    with pytest.raises(
        Disconnected, match=f"cannot use {field}: .*: expected at most 4194304 bytes, got 1099511627776"
    ):
        read_credentials(settings)
