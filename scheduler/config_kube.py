"""Decides a kube-scheduler's configuration that fits ours; `config_kube_text` writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec

from scheduler import config
from scheduler.cluster.shares import MIG_PREFIX, SHARED_SUFFIX
from scheduler.config_kube_text import API_SINCE, Scheduler, configuration, rights
from scheduler.config_rules import IGNORABLE_COVERS_BIND
from scheduler.config_settings import Face, ListenerSettings, Settings
from scheduler.config_types import Address, NamespaceName, ObjectName
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.nouns import GPU_RESOURCE

# What our protocol was checked against begins with the first; the last is the newest that is out today.
OLDEST, NEWEST = API_SINCE[-1][0], 37

NAME = "wattbalance-scheduler"
NAMESPACE = "wattbalance"
CERTIFICATES = "/etc/wattbalance"
# Where kubeadm puts the kubeconfig of the scheduler that all share.
SHARED_KUBECONFIG = "/etc/kubernetes/scheduler.conf"
SHARED_SCHEDULER = "default-scheduler"
MOST_PORT = 65535
# Slices that NVIDIA's guide to MIG and its default configurations name, A30 to B300. A name that no node offers does
# no harm.
_SLICES = (
    *("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb", "1g.6gb", "2g.12gb", "4g.24gb"),
    *("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    *("1g.12gb", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb", "3g.48gb", "4g.48gb", "7g.96gb"),
    *("1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"),
    *("1g.36gb", "2g.36gb", "3g.72gb", "4g.72gb", "7g.144gb"),
    *("1g.23gb", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb"),
    *("1g.47gb", "2g.47gb", "3g.95gb", "4g.95gb", "7g.189gb"),
    *("1g.34gb", "1g.67gb", "2g.67gb", "3g.135gb", "4g.135gb", "7g.269gb"),
    *("2g.48gb", "4g.96gb", "1g.24gb.gfx", "2g.48gb.gfx", "4g.96gb.gfx"),
    *("1g.24gb-me", "2g.48gb-me", "1g.24gb.me", "1g.24gb.me.all", "2g.48gb.me.all"),
    *("1g.5gb.me", "1g.6gb.me", "2g.12gb.me", "1g.10gb.me", "1g.12gb.me", "1g.18gb.me", "1g.23gb.me"),
)
# What kube-scheduler takes in managedResources, else it does not start.
EXTENDED = (
    "expected extended resources such as nvidia.com/gpu, for kube-scheduler asks extenders about no others"
)
SHARES = GPU_RESOURCE + SHARED_SUFFIX
# A slice may be shared as well, and `renameByDefault` renames it like a GPU.
GPU_RESOURCES = tuple(
    name + suffix
    for name in (GPU_RESOURCE, *(f"{MIG_PREFIX}{slice_}" for slice_ in _SLICES))
    for suffix in ("", SHARED_SUFFIX)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asks for; what is empty follows from the rest."""

    version: str
    shared: bool = False
    break_glass: bool = False
    part: str = "all"
    url: str = ""
    ca_file: str = f"{CERTIFICATES}/ca.crt"
    cert_file: str = f"{CERTIFICATES}/scheduler.crt"
    key_file: str = f"{CERTIFICATES}/scheduler.key"
    server_name: str = ""
    kubeconfig: str = ""
    namespace: str = NAMESPACE
    name: str = NAME
    scheduler_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Printed:
    """The documents, and what a person should know beside them."""

    text: str
    warnings: list[Problem] = field(default_factory=list)


def render(wanted: Wanted, settings: Settings | None = None) -> Printed:
    """Write the configuration of a kube-scheduler that asks us, and its RBAC.

    Args:
        wanted: what the person asked for.
        settings: of the daemon that it shall ask; None: those of the example.

    Raises:
        ConfigError: for a version of Kubernetes that is unknown, and for what would not work together.
    """
    found = settings or config.load(config.example())
    problems: list[Problem] = []
    scheduler = _decide(wanted, found, problems)
    _check(scheduler, found, problems)
    if problems:
        raise ConfigError(problems)
    documents = []
    if wanted.part != "rbac":
        documents.append(configuration(scheduler))
    if wanted.part != "config" and not wanted.shared:
        # The scheduler that all share has its rights.
        documents.append(rights(scheduler))
    return Printed("---\n".join(documents), [] if settings is None else _warnings(scheduler, settings))


def minor_of(version: str) -> int:
    """Give the 32 of `1.32`, `v1.32.4` and `1.32.4-gke.100`. Raises ConfigError if it is none that we know."""
    match = re.fullmatch(r"v?1\.([0-9]{1,3})(?:[.+-][-+.0-9A-Za-z]{0,40})?", version)
    minor = int(match[1]) if match else 0
    if OLDEST <= minor <= NEWEST:
        return minor
    message = f"expected a minor version of Kubernetes from 1.{OLDEST} to 1.{NEWEST}, got {version[:60]!r}"
    if minor > NEWEST:
        message += f": newer than this program, so what it serves is not known here; try 1.{NEWEST} and look at its log"
    raise ConfigError([Problem(path="--kubernetes-version", message=message)])


def _decide(wanted: Wanted, settings: Settings, problems: list[Problem]) -> Scheduler:
    minor = minor_of(wanted.version)
    listener = _listener(settings)
    tls = None if listener is None else listener.tls
    names = _names(wanted, settings, problems)
    ignorable = settings.extender.ignorable
    # Where we can't see how certificates are asked for, one too many does no harm.
    asked = bool(wanted.url) or tls is None or tls.client_ca_file is not None
    return Scheduler(
        minor=minor,
        shared=wanted.shared,
        break_glass=wanted.break_glass,
        namespace=wanted.namespace,
        name=wanted.name,
        kubeconfig=wanted.kubeconfig or (SHARED_KUBECONFIG if wanted.shared else ""),
        scheduler_names=tuple(dict.fromkeys(names)),
        url=_given_url(wanted, settings, problems)
        if wanted.url
        else _url(wanted, settings, listener, problems),
        loopback=not wanted.url and listener is not None and listener.address.loopback,
        ca_file=wanted.ca_file,
        server_name=wanted.server_name,
        cert_file=wanted.cert_file if asked else "",
        key_file=wanted.key_file if asked else "",
        bind=settings.extender.bind,
        ignorable=wanted.shared if ignorable is None else ignorable,
        resources=tuple(dict.fromkeys(_resources(settings))) if wanted.shared else (),
    )


def _resources(settings: Settings) -> tuple[str, ...]:
    """Which pods the scheduler that others share asks about: those named, else all that may be GPUs."""
    further = (each for name in settings.gpu_resources for each in (name, name + SHARED_SUFFIX))
    return settings.managed_resources or (*GPU_RESOURCES, *further)


def _names(wanted: Wanted, settings: Settings, problems: list[Problem]) -> tuple[str, ...]:
    """Whose pods it takes: a second scheduler none that the cluster's own takes as well, or both hand out a GPU."""
    if wanted.shared:
        return wanted.scheduler_names or (SHARED_SCHEDULER,)
    own = tuple(name for name in settings.scheduler_names if name != SHARED_SCHEDULER)
    names = wanted.scheduler_names or own
    if SHARED_SCHEDULER in names or not names:
        message = (
            "expected a name of its own for a second scheduler, such as wattbalance, since the cluster's takes the "
            f"pods of {SHARED_SCHEDULER} (--shared is for that one); got {SHARED_SCHEDULER!r}"
        )
        path = "--scheduler-name" if wanted.scheduler_names else "scheduler_names"
        problems.append(Problem(path=path, message=message))
    return names


def _listener(settings: Settings) -> ListenerSettings | None:
    serving = [each for each in settings.listeners if Face.EXTENDER in each.serves]
    # What other machines reach is meant for a kube-scheduler elsewhere, loopback for one in the same pod.
    return next((each for each in serving if not each.address.loopback), serving[0] if serving else None)


def _given_url(wanted: Wanted, settings: Settings, problems: list[Problem]) -> str:
    url = wanted.url.rstrip("/")
    host = r"\[[0-9A-Fa-f:.%]{2,60}\]|[A-Za-z0-9][-A-Za-z0-9.]{0,252}"
    match = re.fullmatch(rf"https?://(?:{host})(?::([0-9]{{1,5}}))?(/[-A-Za-z0-9_./]*)?", url)
    if match is None or not 0 < int(match[1] or 1) <= MOST_PORT:
        message = f"expected an address such as https://10.96.0.9:9443, got {wanted.url[:300]!r}"
        problems.append(Problem(path="--url", message=message))
    # With a path it is taken as it is: something in between may know us by another.
    return url if match and match[2] else url + settings.extender.prefix


def _url(
    wanted: Wanted, settings: Settings, listener: ListenerSettings | None, problems: list[Problem]
) -> str:
    if listener is None:
        message = "expected one that serves extender (or --url), got none"
        problems.append(Problem(path="listeners", message=message))
        return ""
    address = listener.address
    if address.port == 0:
        message = f"expected a port that kube-scheduler can know (or --url), got {str(address)!r}"
        problems.append(Problem(path="listeners", message=message))
    scheme = "http" if listener.tls is None else "https"
    service = f"wattbalance.{settings.lease.namespace or wanted.namespace}.svc"
    return f"{scheme}://{_host(address) or service}:{address.port}{settings.extender.prefix}"


def _host(address: Address) -> str:
    """Write the host as a URL does; empty if it is all of a machine's."""
    if address.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return ""
    return f"[{address.host}]" if ":" in address.host else address.host


def _check(scheduler: Scheduler, settings: Settings, problems: list[Problem]) -> None:
    for option, value, kind, expected in (
        ("--namespace", scheduler.namespace, NamespaceName, "a Kubernetes namespace"),
        ("--name", scheduler.name, ObjectName, "a Kubernetes name of small letters, digits, - and ."),
    ):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            problems.append(Problem(path=option, message=f"expected {expected}, got {value[:300]!r}"))
    if scheduler.bind and scheduler.ignorable and (1, scheduler.minor) < IGNORABLE_COVERS_BIND:
        message = (
            "expected false together with ignorable: true before Kubernetes 1.30, where a failed bind is not"
        )
        problems.append(Problem(path="extender.bind", message=f"{message} ignored; got true"))
    problems += [
        Problem(path="managed_resources", message=f"{EXTENDED}; got {name!r}")
        for name in scheduler.resources
        if "/" not in name or name.startswith("requests.") or "kubernetes.io/" in name
    ]
    lease = settings.lease
    ours = (lease.name, lease.namespace or scheduler.namespace)
    if ours == (scheduler.name, scheduler.namespace) and not scheduler.shared:
        message = "expected another name than lease.name: each holds an election of its own"
        problems.append(Problem(path="--name", message=f"{message}; got {lease.name!r}"))


def _warnings(scheduler: Scheduler, settings: Settings) -> list[Problem]:
    found = []
    version = settings.extender.kubernetes_version
    if version is not None and re.match(rf"v?1\.{scheduler.minor}(?![0-9])", version) is None:
        message = f"expected 1.{scheduler.minor}, for which this is printed; got {version!r}"
        found.append(Problem(path="extender.kubernetes_version", message=message))
    missing = [name for name in scheduler.scheduler_names if name not in settings.scheduler_names]
    if missing:
        message = (
            f"expected {', '.join(missing)} too, or its pods are not counted when they come past us; got "
        )
        found.append(Problem(path="scheduler_names", message=message + ", ".join(settings.scheduler_names)))
    if GPU_RESOURCE in scheduler.resources and SHARES not in scheduler.resources:
        message = f"expected {SHARES} and each nvidia.com/mig-* that nodes offer too, or kube-scheduler does not ask "
        found.append(Problem(path="managed_resources", message=f"{message}about pods with them; got neither"))
    unasked = [name for name in settings.gpu_resources if name not in scheduler.resources]
    if scheduler.shared and unasked:
        message = f"expected {', '.join(unasked)} of gpu_resources too, or kube-scheduler does not ask about pods with "
        found.append(Problem(path="managed_resources", message=f"{message}them; got neither"))
    return found
