"""Logging in: kubeconfig, login plugins, service accounts, and what happens when any of it goes stale."""

from __future__ import annotations

import base64
import itertools
import json
import os
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.aio.config import incluster_config

from scheduler.cluster import access as access_module
from scheduler.cluster.access import Credentials
from scheduler.cluster.credentials import find, from_kubeconfig, in_cluster
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.core.clock import ManualClock, SystemClock
from scheduler.core.errors import ApiForbidden, ApiUnavailable, ConfigError
from tests.certs import lock

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGIN = """
import json, os, pathlib, sys
count = pathlib.Path(sys.argv[1])
number = int(count.read_text() or "0") + 1 if count.exists() else 1
count.write_text(str(number))
print(json.dumps({
    "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
    "status": {"token": f"token-{number}", **json.loads(os.environ["EXTRA"])},
}))
"""


@pytest.fixture
def clock() -> ManualClock:
    """A clock whose wall time is now: the loader compares expiries with the machine's."""
    return ManualClock(unix_s=SystemClock().unix_s())


def write_config(path: Path, user: dict[str, object], **cluster: object) -> Path:
    """A kubeconfig with one context."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://kube.example:6443", **cluster}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


def plugin_user(folder: Path, **extra: object) -> dict[str, object]:
    """A user whose token comes from a plugin that counts its runs."""
    script = folder / "plugin.py"
    script.write_text(PLUGIN)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(script), str(folder / "count")],
            "env": [{"name": "EXTRA", "value": json.dumps(extra)}],
        }
    }


def make_certificate(name: str, folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for a DNS name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    cert_file, key_file = folder / "tls.crt", folder / "tls.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_file, key_file


async def test_a_kubeconfig_gives_host_token_name_and_proxy(tmp_path: Path, clock: ManualClock) -> None:
    names: dict[str, object] = {"tls-server-name": "inner.example", "proxy-url": "http://proxy.example:3128"}
    path = write_config(tmp_path / "config", {"token": "secret\n"}, **names)
    access = await from_kubeconfig(path, clock=clock).access()
    assert access.host == "https://kube.example:6443"
    # The final newline would make an illegal header.
    assert await access.token() == "Bearer secret"
    assert access.tls_server_name == "inner.example"
    assert access.proxy == "http://proxy.example:3128"
    assert access.ssl_context is not None
    assert access.ssl_context.verify_mode == ssl.CERT_REQUIRED


async def test_inline_client_keys_leave_no_file_behind(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert_file, key_file = make_certificate("client", tmp_path / "keys")
    user: dict[str, object] = {
        "client-certificate-data": base64.b64encode(cert_file.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key_file.read_bytes()).decode(),
    }
    path = write_config(tmp_path / "config", user)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for _ in range(2):
        access = await from_kubeconfig(path, clock=clock).access()
        assert await access.token() == ""
        assert not list(scratch.rglob("*"))


async def test_a_plugin_runs_again_five_minutes_before_its_token_ends(
    tmp_path: Path, clock: ManualClock
) -> None:
    ends = datetime.fromtimestamp(clock.unix_s() + 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = write_config(tmp_path / "config", plugin_user(tmp_path, expirationTimestamp=ends))
    credentials = from_kubeconfig(path, clock=clock)
    assert await (await credentials.access()).token() == "Bearer token-1"
    clock.advance(3600 - 305)
    assert await (await credentials.access()).token() == "Bearer token-1"
    clock.advance(10)
    assert await (await credentials.access()).token() == "Bearer token-2"
    assert (tmp_path / "count").read_text() == "2"


@pytest.mark.parametrize("command", ["/does/not/exist", "false"], ids=["missing plugin", "plugin that fails"])
async def test_a_plugin_that_gives_nothing_is_an_error_instead_of_an_anonymous_request(
    tmp_path: Path, clock: ManualClock, command: str
) -> None:
    user: dict[str, object] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": command}}
    path = write_config(tmp_path / "config", user)
    with pytest.raises(ConfigError, match="plugin"):
        await from_kubeconfig(path, clock=clock).access()


async def test_a_plugin_that_fails_later_keeps_the_token_we_have(tmp_path: Path, clock: ManualClock) -> None:
    user = plugin_user(tmp_path)
    path = write_config(tmp_path / "config", user)
    credentials = from_kubeconfig(path, clock=clock)
    access = await credentials.access()
    (tmp_path / "plugin.py").write_text("raise SystemExit(1)")
    clock.advance(60)
    assert await credentials.reload(access) is access
    assert await (await credentials.access()).token() == "Bearer token-1"


@pytest.mark.parametrize("text", ["", "[]", "clusters: 3", "{", "current-context: x", "apiVersion: v1"])
async def test_a_broken_kubeconfig_is_a_config_error(tmp_path: Path, clock: ManualClock, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match="kubeconfig"):
        await from_kubeconfig(path, clock=clock).access()


async def test_a_missing_kubeconfig_names_its_path(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(ConfigError, match=r"no-such-file"):
        await from_kubeconfig(tmp_path / "no-such-file", clock=clock).access()


async def test_a_kubeconfig_that_is_no_file_says_so(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(ConfigError, match="expected a file, got a directory"):
        await from_kubeconfig(tmp_path, clock=clock).access()


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("users[].user", "tokenFile"),
        ("users[].user", "client-certificate"),
        ("users[].user", "client-key"),
        ("clusters[].cluster", "certificate-authority"),
    ],
)
async def test_a_pipe_that_a_kubeconfig_names_is_refused_instead_of_waited_for(
    tmp_path: Path, clock: ManualClock, part: str, key: str
) -> None:
    # Relative to the kubeconfig, as clients have it.
    os.mkfifo(tmp_path / "pipe")
    given: dict[str, object] = {key: "pipe"}
    path = (
        write_config(tmp_path / "config", given)
        if part == "users[].user"
        else write_config(tmp_path / "config", {"token": "t"}, **given)
    )
    with pytest.raises(ConfigError) as caught:
        await from_kubeconfig(path, clock=clock).access()
    what = f"{tmp_path / 'pipe'}: expected a file, got a pipe"
    assert str(caught.value) == f"cluster: kubeconfig {path}: {part}.{key}: {what}"


async def test_a_locked_client_key_is_refused_instead_of_asking_on_the_terminal(
    tmp_path: Path, clock: ManualClock, capfd: pytest.CaptureFixture[str]
) -> None:
    chain, key = make_certificate("u", tmp_path)
    lock(key)
    path = write_config(tmp_path / "config", {"client-certificate": str(chain), "client-key": str(key)})
    with pytest.raises(ConfigError, match="expected PEM certificates and an unlocked key, got: "):
        await from_kubeconfig(path, clock=clock).access()
    assert capfd.readouterr().err == ""


async def test_a_token_file_may_be_a_link_and_a_pipe_of_another_user_is_left_alone(
    tmp_path: Path, clock: ManualClock
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text("abc\n")
    (tmp_path / "token").symlink_to("..data/token")
    path = write_config(tmp_path / "config", {"tokenFile": "token"})
    whole = yaml.safe_load(path.read_text())
    whole["users"].append({"name": "other", "user": {"tokenFile": "pipe"}})
    path.write_text(yaml.safe_dump(whole))
    access = await from_kubeconfig(path, clock=clock).access()
    assert await access.token() == "Bearer abc"
    # What stands in the file itself goes before a file.
    inline = write_config(tmp_path / "inline", {"token": "xyz", "tokenFile": "pipe"})
    assert await (await from_kubeconfig(inline, clock=clock).access()).token() == "Bearer xyz"


@pytest.mark.parametrize(
    "server",
    ["", "ftp://x", "10.0.0.1:6443", "https://", "https://a b:1", "https://a:99999", "https://u:pw@a:1"],
)
async def test_a_server_that_is_no_url_is_refused_at_once(
    tmp_path: Path, clock: ManualClock, server: str
) -> None:
    path = write_config(tmp_path / "config", {"token": "t"}, server=server)
    with pytest.raises(ConfigError, match=r"cluster\.server: expected a URL"):
        await from_kubeconfig(path, clock=clock).access()


async def test_a_proxy_that_is_no_url_is_refused_at_once(tmp_path: Path, clock: ManualClock) -> None:
    path = write_config(tmp_path / "config", {"token": "t"}, **{"proxy-url": "proxy"})
    with pytest.raises(ConfigError, match=r"proxy-url: expected a URL .* got 'proxy'"):
        await from_kubeconfig(path, clock=clock).access()


async def test_a_url_with_a_password_is_refused_without_repeating_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    path = write_config(tmp_path / "config", {"token": "t"}, server="https://me:hunter2@kube:6443")
    with pytest.raises(ConfigError) as caught:
        await from_kubeconfig(path, clock=clock).access()
    assert "hunter2" not in str(caught.value)


async def test_a_context_of_an_unknown_user_is_not_anonymous(tmp_path: Path, clock: ManualClock) -> None:
    path = write_config(tmp_path / "config", {"token": "t"})
    path.write_text(path.read_text().replace("user: u", "user: nobody"))
    with pytest.raises(ConfigError, match="current-context, and what that names"):
        await from_kubeconfig(path, clock=clock).access()


async def test_a_plugin_that_is_text_is_a_config_error(tmp_path: Path, clock: ManualClock) -> None:
    path = write_config(tmp_path / "config", {"exec": "aws eks get-token"})
    with pytest.raises(ConfigError, match="aws eks get-token"):
        await from_kubeconfig(path, clock=clock).access()


async def test_the_environment_may_list_kubeconfigs_of_which_some_are_missing(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_config(tmp_path / "config", {"token": "t"})
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}:{there}")
    assert (await find(clock=clock).access()).host == "https://kube.example:6443"


async def test_in_cluster_reads_the_token_again_each_minute(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, (ca, _) = tmp_path / "token", make_certificate("kube", tmp_path)
    token.write_text("one\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(ca))
    readings = itertools.count()

    class LaterDatetime(datetime):
        """The loader looks at the machine's clock: here each look is two minutes after the last."""

        @classmethod
        def now(cls, tz: object = None) -> Self:
            return cls(2026, 1, 1, 0, 2 * next(readings))

    monkeypatch.setattr(
        incluster_config, "datetime", SimpleNamespace(datetime=LaterDatetime, timedelta=timedelta)
    )
    credentials = find(clock=clock)
    access = await credentials.access()
    assert access.host == "https://10.0.0.1:443"
    assert await access.token() == "Bearer one"
    token.write_text("two\n")
    assert await access.token() == "Bearer two"
    token.unlink()
    # While the file is being replaced the last one is sent.
    assert await access.token() == "Bearer two"


async def test_outside_a_pod_in_cluster_says_so(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="not in a pod"):
        await in_cluster(clock=clock).access()


async def serve(
    answer: Callable[[web.Request], web.Response], context: ssl.SSLContext | None = None
) -> TestServer:
    """A server on loopback with one answer."""

    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(app, host="127.0.0.1", scheme="https" if context else "http")
    await server.start_server(ssl=context)
    return server


async def test_a_401_logs_in_anew_once_and_repeats_the_request(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        good = seen[-1] == "Bearer token-2"
        return web.json_response({"metadata": {"name": "p", "uid": "u"}}, status=200 if good else 401)

    server = await serve(answer)
    clock = ManualClock(unix_s=SystemClock().unix_s())
    try:
        path = write_config(tmp_path / "config", plugin_user(tmp_path), server=str(server.make_url("")))
        async with KubernetesCluster(from_kubeconfig(path, clock=clock), clock) as cluster:
            clock.advance(60)
            assert (await cluster.get_pod("x", "p")).metadata.name == "p"
            assert seen == ["Bearer token-1", "Bearer token-2"]
    finally:
        await server.close()


async def test_a_server_that_says_401_for_ever_does_not_run_the_plugin_each_time(tmp_path: Path) -> None:
    server = await serve(lambda _: web.json_response({}, status=401))
    clock = ManualClock(unix_s=SystemClock().unix_s())
    try:
        path = write_config(tmp_path / "config", plugin_user(tmp_path), server=str(server.make_url("")))
        async with KubernetesCluster(from_kubeconfig(path, clock=clock), clock) as cluster:
            for _ in range(5):
                with pytest.raises(ApiForbidden):
                    await cluster.get_pod("x", "p")
                clock.advance(access_module.RELOAD_AT_MOST_EVERY_S / 5)
        assert (tmp_path / "count").read_text() == "1"
    finally:
        await server.close()


async def test_a_replaced_ca_is_read_again_after_the_verification_failed(tmp_path: Path) -> None:
    new_cert, new_key = make_certificate("kube.example", tmp_path / "new")
    old_cert, _ = make_certificate("kube.example", tmp_path / "old")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(new_cert, new_key)
    server = await serve(lambda _: web.json_response({"metadata": {"name": "p", "uid": "u"}}), context)
    clock = ManualClock()
    ca = tmp_path / "ca.crt"
    ca.write_bytes(old_cert.read_bytes())
    try:
        names: dict[str, object] = {
            "server": str(server.make_url("")),
            "certificate-authority": str(ca),
            # The certificate is for another name than 127.0.0.1.
            "tls-server-name": "kube.example",
        }
        path = write_config(tmp_path / "config", {"token": "t"}, **names)
        async with KubernetesCluster(from_kubeconfig(path, clock=clock), clock) as cluster:
            ca.write_bytes(new_cert.read_bytes())
            clock.advance(60)
            with pytest.raises(ApiUnavailable, match="certificate verify failed"):
                await cluster.get_pod("x", "p")
            assert (await cluster.get_pod("x", "p")).metadata.name == "p"
    finally:
        await server.close()


async def test_ten_calls_that_were_refused_together_log_in_once(clock: ManualClock) -> None:
    loads: list[int] = []

    async def source() -> access_module.Access:
        loads.append(1)

        async def header() -> str:
            return ""

        return access_module.Access(host="http://x", ssl_context=None, token=header)

    credentials = Credentials(source, clock)
    refused = await credentials.access()
    clock.advance(60)
    for _ in range(10):
        await credentials.reload(refused)
    assert len(loads) == 2


async def test_a_wrong_ca_file_is_a_config_error(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("not a certificate")
    config = write_config(tmp_path / "config", {"token": "t"}, **{"certificate-authority": str(path)})
    with pytest.raises(ConfigError, match="CA"):
        await from_kubeconfig(config, clock=clock).access()
