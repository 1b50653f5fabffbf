"""Broker settings that cannot work are refused, each with the field it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.core.errors import ConfigError, Disconnected
from scheduler.telemetry.broker import BrokerSettings, read_credentials


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
