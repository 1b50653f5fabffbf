"""Ways to log in to an API server: a kubeconfig, or a pod's service account. The only file that imports `kubernetes`.

The official client knows every way to log in (exec plugins, OIDC, service account tokens) and is used for that only;
the wire is ours (docs/adr/0005). Its traps: a missing exec plugin raises nothing and leaves no token; plugins run
once, so an expired token would be sent for ever; client keys are written to temporary files that kill -9 leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scheduler.cluster.access import Access, Credentials
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.files import check_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubernetes.aio.client import Configuration

    from scheduler.core.clock import Clock

# What the loader raises where a kubeconfig holds a list for a map, a number for a name, or a key that is no base64.
_BROKEN = (OSError, ValueError, KeyError)
# Keys that name a file, and the key that holds the same itself.
_USER_FILES = {
    "tokenFile": "token",
    "client-certificate": "client-certificate-data",
    "client-key": "client-key-data",
}
_CLUSTER_FILES = {"certificate-authority": "certificate-authority-data"}
# A login plugin that asks a cloud's token service takes 1-3 s; one that hangs must not hang us.
LOGIN_TIMEOUT_S = 30.0


def from_kubeconfig(path: Path, *, clock: Clock, context: str | None = None) -> Credentials:
    """A kubeconfig file; `context` None means its current one."""

    async def source() -> Access:
        # Deferred: the client takes 0.4-0.8 s of CPU to import, which `--help` and the demo need not pay.
        import yaml  # noqa: PLC0415 - likewise
        from kubernetes.aio.client import Configuration  # noqa: PLC0415 - see above
        from kubernetes.aio.config import ConfigException  # noqa: PLC0415 - see above
        from kubernetes.aio.config.kube_config import (  # noqa: PLC0415 - see above
            KubeConfigLoader,
            KubeConfigMerger,
        )

        _check_exists(path)
        configuration = Configuration()
        with tempfile.TemporaryDirectory(prefix="wattbalance-") as folder, _keys_removed():
            try:
                # Not `load_kube_config`: between these two is looked at the files that are opened next.
                loader = KubeConfigLoader(  # type: ignore[no-untyped-call]  # upstream has no types
                    config_dict=KubeConfigMerger(str(path)).config,  # type: ignore[no-untyped-call]  # likewise
                    # Not its default, which is the working directory: files are named from where the kubeconfig lies.
                    config_base_path=None,
                    active_context=context,
                    temp_file_path=folder,
                )
                _check_files(loader, path)
                async with asyncio.timeout(LOGIN_TIMEOUT_S):
                    await loader.load_and_set(configuration)  # type: ignore[no-untyped-call]  # likewise
            except TimeoutError as error:
                raise _bad(
                    f"the login plugin of kubeconfig {path} took over {LOGIN_TIMEOUT_S:g} s"
                ) from error
            except (TypeError, AttributeError) as error:
                # The loader's own stumbling, of no use to a person.
                what = "expected clusters, users, contexts, current-context, and what that names in them"
                raise _bad(f"kubeconfig {path} cannot be used: {what}; got something else") from error
            except (ConfigException, yaml.YAMLError, *_BROKEN) as error:
                raise _bad(f"kubeconfig {path} cannot be used: {error}") from error
            _check_logged_in(configuration, loader, path)
            _check_url(str(configuration.host), "clusters[].cluster.server", "https://10.0.0.1:6443", path)
            if configuration.proxy and "@" not in configuration.proxy:
                _check_url(configuration.proxy, "clusters[].cluster.proxy-url", "http://proxy:3128", path)
            expiry = getattr(loader, "exec_plugin_expiry", None)
            return _access(
                configuration, expiry.timestamp() if expiry is not None else None, user=_user_name(loader)
            )

    return Credentials(source, clock)


def in_cluster(*, clock: Clock) -> Credentials:
    """The service account that Kubernetes mounts into the pod."""

    async def source() -> Access:
        from kubernetes.aio.client import Configuration  # noqa: PLC0415 - see from_kubeconfig
        from kubernetes.aio.config import ConfigException, load_incluster_config  # noqa: PLC0415 - likewise

        configuration = Configuration()
        try:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # upstream has no types
        except (ConfigException, OSError) as error:
            raise _bad(f"not in a pod with a service account: {error}") from error
        return _access(configuration, None)

    return Credentials(source, clock)


def find(*, clock: Clock, kubeconfig: Path | None = None, context: str | None = None) -> Credentials:
    """The named kubeconfig, else the pod's service account, else $KUBECONFIG, else ~/.kube/config.

    Who names a `context` means a kubeconfig, in a pod too.
    """
    if kubeconfig is not None:
        return from_kubeconfig(kubeconfig, clock=clock, context=context)
    if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(clock=clock)
    named = os.environ.get("KUBECONFIG")
    path = Path(named) if named else Path.home() / ".kube" / "config"
    return from_kubeconfig(path, clock=clock, context=context)


def _user_name(loader: object) -> str:
    """The user of the context in use; empty where it names none."""
    context = getattr(loader, "_current_context", None)
    try:
        return str(context["context"].safe_get("user") or "") if context is not None else ""
    except (KeyError, TypeError, AttributeError):
        return ""


def _access(configuration: Configuration, expires_unix_s: float | None, *, user: str = "") -> Access:
    from kubernetes.aio.config import ConfigException  # noqa: PLC0415 - see from_kubeconfig

    host = str(configuration.host)

    async def header() -> str:
        try:
            # A coroutine in the asyncio client, and the only place where it reads the mounted token again.
            value = await configuration.get_api_key_with_prefix("BearerToken")
        except (ConfigException, OSError):
            # The file is being replaced: the token we have is good for a while yet.
            value = configuration.api_key.get("BearerToken")
        scheme, _, rest = (value or "").strip().partition(" ")
        # The in-cluster loader writes a small `bearer`, which some proxies refuse.
        return f"{scheme.capitalize()} {rest}" if rest else ""

    return Access(
        host=host,
        ssl_context=_context(
            configuration.ssl_ca_cert,
            verify=configuration.verify_ssl,
            cert_file=configuration.cert_file,
            key_file=configuration.key_file,
        )
        if host.startswith("https")
        else None,
        token=header,
        expires_unix_s=expires_unix_s,
        user=user,
        tls_server_name=configuration.tls_server_name,
        proxy=configuration.proxy,
    )


def _context(
    ca_file: str | None,
    *,
    verify: bool = True,
    cert_file: str | None = None,
    key_file: str | None = None,
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file:
            # An empty password makes a locked key an error; without one, OpenSSL would ask on the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
    except (OSError, ssl.SSLError) as error:
        what = "expected PEM certificates and an unlocked key"
        raise _bad(f"certificate files of the API server (CA {ca_file}): {what}, got: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_exists(path: Path) -> None:
    # The loader only logs it, and goes on with nothing.
    # $KUBECONFIG may list several files, which the loader merges, and of which some may be missing.
    files = [Path(part).expanduser() for part in str(path).split(os.pathsep) if part]
    there = [file for file in files if file.exists()]
    if not there:
        raise _bad(f"kubeconfig {path} does not exist")
    for file in there:
        if not file.is_file():
            raise _bad(f"kubeconfig {file}: expected a file, got a directory, pipe or device")


def _check_files(loader: object, path: Path) -> None:
    """Look at what the context in use names: the loader would open a pipe and wait for ever."""
    for part, node, keys in (
        ("users[].user", getattr(loader, "_user", None), _USER_FILES),
        ("clusters[].cluster", getattr(loader, "_cluster", None), _CLUSTER_FILES),
    ):
        for key, instead in keys.items():
            # As the loader has it: what stands in the kubeconfig itself goes before a file.
            if node is None or instead in node or key not in node:
                continue
            file = Path(node.path or path).absolute().parent / str(node[key])
            try:
                check_regular(file)
            except OSError as error:
                raise _bad(f"kubeconfig {path}: {part}.{key}: {error}") from error


def _check_url(url: str, key: str, example: str, path: Path) -> None:
    # Asked for ever otherwise, with a message that names neither file nor key.
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if good and "@" not in url and not re.search(r"\s", url):
        return
    # What stands before an @ may be a password.
    got = "an @" if "@" in url else repr(url[:200])
    raise _bad(f"kubeconfig {path}: {key}: expected a URL without user such as {example}, got {got}")


def _check_logged_in(configuration: Configuration, loader: object, path: Path) -> None:
    """A plugin that is missing or fails is only logged by the loader, and requests would go out anonymous."""
    user = getattr(loader, "_user", None)
    wants_plugin = user is not None and "exec" in user
    if wants_plugin and not configuration.api_key and not configuration.cert_file:
        plugin = user["exec"] if user is not None else ""
        command = plugin.safe_get("command") if hasattr(plugin, "safe_get") else plugin
        raise _bad(
            f"the login plugin {command!r} of kubeconfig {path} is missing or gave neither token nor certificate"
        )


@contextlib.contextmanager
def _keys_removed() -> Iterator[None]:
    """Remove the loader's temporary files at once: a private key must not outlive us on the disk.

    The loader remembers file names by content, so deleting behind its back would break the next load.
    """
    from kubernetes.aio.config import kube_config  # noqa: PLC0415 - see from_kubeconfig

    try:
        yield
    finally:
        # No public way, and the alternative leaves keys behind.
        kube_config._cleanup_temp_files()  # type: ignore[no-untyped-call]  # noqa: SLF001 - see above


def _bad(message: str) -> ConfigError:
    return ConfigError([Problem(path="cluster", message=message)])
