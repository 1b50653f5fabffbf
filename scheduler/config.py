"""Read, check and describe the configuration: every problem at once, with its line, before any task starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations
from pathlib import Path as FileSystemPath
from typing import TypeVar

import msgspec

from scheduler import config_yaml
from scheduler.config_example import TEXT
from scheduler.config_problems import Checker, decode, shown, unknown
from scheduler.config_settings import (
    ExtenderSettings,
    Face,
    LeaseSettings,
    ListenerSettings,
    PoolSettings,
    Settings,
    TelemetrySettings,
)
from scheduler.config_types import Address, PolicyUse, PositiveSeconds, Weight
from scheduler.config_yaml import Path
from scheduler.core.errors import ConfigError, Problem

__all__ = ["ConfigError", "Settings", "example", "load", "load_file", "schema", "warnings"]

# Past this many nobody reads on, and the file is not a configuration.
MOST_PROBLEMS = 200
# From 1.30 on, kube-scheduler's `ignorable` covers bind too.
IGNORABLE_COVERS_BIND = (1, 30)
DEFAULT_POOL = "default"
# It is written into the Lease, and others wait for so long even after they are configured otherwise.
MOST_LEASE_S = 3600.0
# LeaseTimes waits a random 1 to 1.2 times `retry`.
RETRY_SPREAD = 1.2

_T = TypeVar("_T")


def load(text: str) -> Settings:
    """Read a configuration.

    Raises:
        ConfigError: with all problems, each with path, line, what stands there and what was expected.
    """
    document = config_yaml.read(text)
    data = {} if document.data is None else document.data
    checker = Checker(document, {PolicyUse: _policy_use})
    checker.check(data, Settings)
    if isinstance(data, dict):
        _check_rules(data, checker)
    if document.problems:
        raise ConfigError(_sorted(document.problems))
    return msgspec.convert(data, Settings, dec_hook=decode)


def load_file(path: str) -> Settings:
    """Read a configuration file. Raises ConfigError, also if it cannot be read."""
    try:
        with FileSystemPath(path).open("rb") as file:
            # One more than allowed, so that too much is seen without reading a whole disk.
            raw = file.read(config_yaml.MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError([Problem(path=path, message=f"expected a readable file, got: {reason}")]) from error
    try:
        return load(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            [Problem(path=path, line=line, message="expected UTF-8 text, got other bytes")]
        ) from error


def example() -> str:
    """Give a commented configuration with one pool on-prem and one in a cloud."""
    return TEXT


def schema() -> dict[str, object]:
    """Describe the file as JSON schema, for editors."""
    from scheduler.config_schema import build_schema  # noqa: PLC0415 - only a person's editor needs it

    return build_schema({name: _with_weight(name) for name in _policies().scores})


def warnings(settings: Settings) -> list[Problem]:
    """Tell what can be used as it is, and may be wrong all the same: what could not be checked."""
    extender = settings.extender
    if not (extender.bind and extender.ignorable and extender.kubernetes_version is None):
        return []
    message = (
        'expected the version of kube-scheduler, such as "1.32", to check bind with ignorable: true, got nothing: '
        "before Kubernetes 1.30 a failed bind is not ignored"
    )
    return [Problem(path="extender.kubernetes_version", message=message)]


class _Policies(msgspec.Struct, frozen=True):
    """Installed policies by what they do."""

    scores: dict[str, type[msgspec.Struct]]
    filters: list[str]


@cache
def _policies() -> _Policies:
    """The only place that asks the registry."""
    from scheduler.policy import base, registry  # noqa: PLC0415 - brings numpy, which reading YAML does not need

    built = {name: module.build(module.Args()) for name, module in registry.known().items()}
    return _Policies(
        scores={
            name: registry.known()[name].Args
            for name, policy in built.items()
            if isinstance(policy, base.Score)
        },
        filters=[name for name, policy in built.items() if isinstance(policy, base.Filter)],
    )


@cache
def _with_weight(policy: str) -> type[msgspec.Struct]:
    """Give the policy's own arguments and the profile's weight as one type."""
    args = _policies().scores[policy]
    return msgspec.defstruct(
        f"{args.__module__.rpartition('.')[2]}_use",
        [("weight", Weight)],
        bases=(args,),
        kw_only=True,
        frozen=True,
    )


def _policy_use(checker: Checker, path: Path) -> type[msgspec.Struct] | None:
    name = str(path[-1])
    if name in _policies().scores:
        return _with_weight(name)
    checker.refuse(path, unknown(name, _policies().scores))
    return None


def _check_rules(data: dict[str, object], checker: Checker) -> None:
    """Check what no single value can tell; each part on its own, so that one fault does not hide another."""
    rules: tuple[tuple[str, type[msgspec.Struct], Callable[..., None]], ...] = (
        ("telemetry", TelemetrySettings, _check_telemetry),
        ("extender", ExtenderSettings, _check_extender),
        ("lease", LeaseSettings, _check_lease),
    )
    for name, kind, rule in rules:
        if name in data and checker.good((name,)):
            rule(msgspec.convert(data[name], kind, dec_hook=decode), checker)
    _check_pools(_good_parts(data, "pools", PoolSettings, checker), checker)
    _check_listeners(_good_parts(data, "listeners", ListenerSettings, checker), checker)
    filters = data.get("filters")
    for name in filters if isinstance(filters, dict) else ():
        if name not in _policies().filters:
            checker.refuse(("filters", name), unknown(name, _policies().filters))


def _good_parts(data: dict[str, object], name: str, kind: type[_T], checker: Checker) -> dict[int, _T]:
    parts = data.get(name)
    if not isinstance(parts, list):
        return {}
    good = [index for index in range(len(parts)) if checker.good((name, index))]
    return {index: msgspec.convert(parts[index], kind, dec_hook=decode) for index in good}


def _check_pools(pools: dict[int, PoolSettings], checker: Checker) -> None:
    first: dict[str, int] = {}
    for index, pool in pools.items():
        path: Path = ("pools", index, "name")
        if pool.name == DEFAULT_POOL:
            checker.refuse(
                path,
                "expected another name: default is the pool of nodes that are in no other, got 'default'",
            )
        elif pool.name in first:
            checker.refuse(
                path, f"expected each name once, got {pool.name!r} again (pools[{first[pool.name]}])"
            )
        first.setdefault(pool.name, index)
    for (index_a, a), (index_b, b) in combinations(pools.items(), 2):
        # If one asks for all labels of the other and more, each of its nodes is in both.
        if a.selector.items() <= b.selector.items() or b.selector.items() <= a.selector.items():
            message = (
                f"expected pools that share no node, got a selector that overlaps pools[{index_a}] ({a.name})"
            )
            checker.refuse(("pools", index_b, "selector"), message)


def _check_listeners(listeners: dict[int, ListenerSettings], checker: Checker) -> None:
    first: dict[Address, int] = {}
    for index, listener in listeners.items():
        path: Path = ("listeners", index)
        if listener.address in first and listener.address.port != 0:
            was = first[listener.address]
            checker.refuse((*path, "address"), f"expected each address once, got it again (listeners[{was}])")
        elif (same := _on_all_interfaces(listener.address, first)) is not None:
            checker.refuse(
                (*path, "address"),
                f"expected another port: {same} and {listener.address} cannot both be bound (listeners[{first[same]}])",
            )
        first.setdefault(listener.address, index)
        twice = next((face for face in Face if listener.serves.count(face) > 1), None)
        if twice is not None:
            checker.refuse((*path, "serves"), f"expected each thing once, got {twice.value} twice")
        if listener.address.loopback:
            continue
        if Face.EXTENDER in listener.serves and (listener.tls is None or listener.tls.client_ca_file is None):
            message = "expected tls with client_ca_file, since whoever reaches the extender can place pods; got none"
            checker.refuse((*path, "tls"), message)
        if Face.API in listener.serves:
            message = "expected a loopback address where api is served (use kubectl port-forward), got "
            checker.refuse((*path, "address"), message + shown(str(listener.address)))


def _on_all_interfaces(address: Address, others: Iterable[Address]) -> Address | None:
    """Give an address with the same port where one of the two takes all interfaces; IPv6's are apart from IPv4's."""
    for other in others:
        for wildcard, one in ((address.host, other.host), (other.host, address.host)):
            # A name may mean either family; it is left to the kernel.
            same_family = (":" in wildcard) == (":" in one) and not one[:1].isalpha()
            if wildcard in ("0.0.0.0", "::") and same_family and address.port == other.port != 0:  # noqa: S104 - compared, not bound
                return other
    return None


def _check_telemetry(telemetry: TelemetrySettings, checker: Checker) -> None:
    pairs = (("key_file", "cert_file"), ("password_file", "username_file"))
    for one, other in pairs:
        if getattr(telemetry, one) is not None and getattr(telemetry, other) is None:
            checker.refuse(("telemetry", other), f"expected a file, since {one} is set; got nothing")
    for name in ("ca_file", "cert_file", "key_file"):
        if getattr(telemetry, name) is not None and not telemetry.broker.tls:
            checker.refuse(
                ("telemetry", "broker"), f"expected mqtts://, since {name} is set; got {telemetry.broker!r}"
            )


def _check_extender(extender: ExtenderSettings, checker: Checker) -> None:
    if not (extender.bind and extender.ignorable and extender.kubernetes_version):
        return
    major, minor = extender.kubernetes_version.lstrip("v").split(".")[:2]
    if (int(major), int(minor.split("-")[0].split("+")[0])) < IGNORABLE_COVERS_BIND:
        message = (
            "expected false together with ignorable: true before Kubernetes 1.30, where a failed bind is not"
        )
        checker.refuse(("extender", "bind"), f"{message} ignored; got true")


def _check_lease(lease: LeaseSettings, checker: Checker) -> None:
    # A leader must have stopped before another may start, and must have tried more than once before it stops.
    if lease.duration_s > MOST_LEASE_S:
        message = (
            f"expected at most {PositiveSeconds(MOST_LEASE_S)}, for which a dead leader's place stays empty"
        )
        checker.refuse(("lease", "duration"), f"{message}; got {lease.duration_s}")
    if lease.renew_deadline_s >= lease.duration_s:
        message = f"expected less than duration ({lease.duration_s}), got {lease.renew_deadline_s}"
        checker.refuse(("lease", "renew_deadline"), message)
    if lease.retry_s >= lease.renew_deadline_s:
        checker.refuse(
            ("lease", "retry"),
            f"expected less than renew_deadline ({lease.renew_deadline_s}), got {lease.retry_s}",
        )
    elif lease.retry_s * RETRY_SPREAD >= lease.renew_deadline_s:
        message = f"expected less than renew_deadline ({lease.renew_deadline_s}) over {RETRY_SPREAD:g}"
        checker.refuse(("lease", "retry"), f"{message}, since retries are spread; got {lease.retry_s}")


def _sorted(problems: list[Problem]) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    left_out = len(ordered) - MOST_PROBLEMS
    if left_out <= 0:
        return ordered
    more = Problem(
        path="", message=f"expected a configuration, got {left_out} more problems that are not shown"
    )
    return [*ordered[:MOST_PROBLEMS], more]
