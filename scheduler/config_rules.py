"""What no single value of the configuration can tell: rules about several keys.

Each rule is judged as soon as the keys that it reads are good, whatever else is wrong beside them: a person is told
of every problem at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

import msgspec

from scheduler.cluster.annotation_values import BadValue
from scheduler.cluster.annotations import TABLE, read, unknown_key
from scheduler.cluster.contradictions import contradictions, unknown_pools
from scheduler.cluster.intent import Word
from scheduler.cluster.limits import allows, listed
from scheduler.cluster.shares import SHARED_SUFFIX, is_gpu_resource
from scheduler.config_intent import NamespaceSettings
from scheduler.config_problems import Checker, decode, shown
from scheduler.config_settings import (
    ExtenderSettings,
    Face,
    LeaseSettings,
    ListenerSettings,
    Mode,
    PoolSettings,
    TelemetrySettings,
)
from scheduler.config_types import Address, PositiveSeconds
from scheduler.config_yaml import Path
from scheduler.core.nouns import PREFIX
from scheduler.core.units import quoted

# From 1.30 on, kube-scheduler's `ignorable` covers bind too.
IGNORABLE_COVERS_BIND = (1, 30)
DEFAULT_POOL = "default"
# It is written into the Lease, and others wait for so long even after they are configured otherwise.
MOST_LEASE_S = 3600.0
# It is written in whole seconds.
LEAST_LEASE_S = 1.0
# Each try is a request, of every replica.
LEAST_RETRY_S = 0.1
# LeaseTimes waits a random 1 to 1.2 times `retry`.
RETRY_SPREAD = 1.2
# What the other faces answer; below these, `extender.prefix` would take their paths or look as if it did.
FACE_PATHS: Mapping[Face, tuple[str, ...]] = {
    Face.API: ("/api/v1",),
    Face.METRICS: ("/metrics",),
    Face.PROBES: ("/livez", "/readyz"),
}

_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class _Part(Generic[_T]):
    """A section, as far as it can be used: only the keys in `good` mean something."""

    settings: _T
    good: frozenset[str]

    def has(self, *names: str) -> bool:
        """Whether a rule that reads these keys can be judged."""
        return self.good.issuperset(names)


def check(data: dict[str, object], checker: Checker) -> None:
    """Refuse what is wrong with several keys together, in the whole file."""
    telemetry = _part(data.get("telemetry"), TelemetrySettings, ("telemetry",), checker)
    if telemetry is not None:
        _check_telemetry(telemetry, checker)
    extender = _part(data.get("extender", {}), ExtenderSettings, ("extender",), checker)
    listeners = _parts(data, "listeners", ListenerSettings, checker)
    if extender is not None:
        _check_extender(extender, checker)
        _check_prefix(extender, listeners, checker)
    lease = _part(data.get("lease"), LeaseSettings, ("lease",), checker)
    if lease is not None:
        _check_lease(lease, checker)
    pools = _parts(data, "pools", PoolSettings, checker)
    _check_pools(pools, checker)
    _check_modes(data, pools, checker)
    names = {pool.settings.name for pool in pools.values() if pool.has("name")}
    rules = _parts(data, "namespaces", NamespaceSettings, checker)
    _check_namespaces(rules, names | {DEFAULT_POOL}, checker)
    _check_annotations(data, names | {DEFAULT_POOL}, rules, checker)
    _check_listeners(listeners, checker)
    _check_gpu_resources(data.get("gpu_resources"), checker)


def _part(value: object, kind: type[_T], path: Path, checker: Checker) -> _Part[_T] | None:
    if not isinstance(value, dict):
        return None
    values: dict[str, object] = {}
    good = set()
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if not checker.good((*path, name)) or (field.required and name not in value):
            values[field.name] = msgspec.UNSET
            continue
        good.add(field.name)
        if name in value:
            values[field.name] = msgspec.convert(value[name], field.type, dec_hook=decode)
    # Structs do not look at what they are made of; what is not good is never read.
    return _Part(kind(**values), frozenset(good))


def _parts(data: dict[str, object], name: str, kind: type[_T], checker: Checker) -> dict[int, _Part[_T]]:
    found = data.get(name)
    parts = enumerate(found if isinstance(found, list) else ())
    made = {index: _part(value, kind, (name, index), checker) for index, value in parts}
    return {index: part for index, part in made.items() if part is not None}


def _check_annotations(
    data: dict[str, object],
    pools: AbstractSet[str],
    rules: dict[int, _Part[NamespaceSettings]],
    checker: Checker,
) -> None:
    """Those that hold for everybody must be good ones: nobody would see the event of a pod that says nothing."""
    given = data.get("annotations")
    if not isinstance(given, dict):
        return
    texts = {key: text for key, text in given.items() if checker.good(("annotations", key))}
    for key in given:
        _check_annotation(("annotations", key), key, [texts[key]] if key in texts else [], checker)
    # What is wrong with one key is no reason to be silent about what others say against each other.
    words = {
        key: Word(value=read(key, text), text=text, where="")
        for key, text in texts.items()
        if checker.good(("annotations", key))
    }
    for found in contradictions(words, None):
        if found.message_of_other:
            checker.refuse(("annotations", found.other), found.message_of_other)
        elif found.other in given:
            # It is there, and what is wrong with it is said.
            continue
        checker.refuse(("annotations", found.key), found.message)
    for key, word in words.items():
        strange = unknown_pools(word.value, pools) if key == "pools" else ""
        if message := strange or _refused_default(key, word, rules, checker):
            checker.refuse(("annotations", key), message)


def _refused_default(
    key: str, word: Word, rules: dict[int, _Part[NamespaceSettings]], checker: Checker
) -> str:
    """Why a default cannot be one: what some namespaces may not ask for would be theirs unasked."""
    for index, rule in rules.items():
        if not rule.has("allow") or not checker.good(("namespaces", index, "allow", key)):
            continue
        # None at all: nobody may ask there, and the default holds.
        allowed = [read(key, text) for text in rule.settings.allow.get(key, ())]
        if allowed and not allows(key, allowed, word.value):
            takes = f"namespaces[{index}].allow.{key} takes ({listed(key, allowed)})"
            return f"expected a default that {takes}, got {quoted(word.text)}"
    return ""


def _check_annotation(path: Path, key: str, texts: Iterable[str], checker: Checker) -> None:
    if key not in TABLE:
        if key.startswith(PREFIX):
            problem = f"expected it without {PREFIX}: {shown(key.removeprefix(PREFIX))}, got {shown(key)}"
        else:
            problem = unknown_key(key) or f"expected an annotation that people write, got {shown(key)}"
        checker.refuse(path, problem)
        return
    for text in texts:
        try:
            read(key, text)
        except BadValue as error:
            checker.refuse(path, str(error))


def _check_namespaces(
    rules: dict[int, _Part[NamespaceSettings]], pools: AbstractSet[str], checker: Checker
) -> None:
    """A limit that nobody meets, or that no namespace comes to, is one that somebody believes in."""
    globs: dict[str, int] = {}
    for index, rule in rules.items():
        for key, texts in rule.settings.allow.items() if rule.has("allow") else ():
            path: Path = ("namespaces", index, "allow", key)
            _check_annotation(path, key, texts, checker)
            for text in texts if key == "pools" and checker.good(path) else ():
                if message := unknown_pools(read(key, text), pools):
                    checker.refuse(path, message)
        if rule.has("match"):
            glob = rule.settings.match
            first = min((globs[each] for each in ("*", glob) if each in globs), default=None)
            if first is not None:
                message = (
                    f"expected namespaces that no entry before takes, got {glob!r} after namespaces[{first}]"
                )
                checker.refuse(("namespaces", index, "match"), message)
            globs.setdefault(glob, index)


def _check_gpu_resources(names: object, checker: Checker) -> None:
    """What is never allocatable by such a name would be counted nowhere, and somebody believes that it is."""
    for index, name in enumerate(names if isinstance(names, list) else ()):
        path: Path = ("gpu_resources", index)
        if not checker.good(path):
            continue
        if is_gpu_resource(name):
            checker.refuse(path, f"expected a name that does not count by itself, got {shown(name)}")
        elif name.endswith(SHARED_SUFFIX):
            checker.refuse(
                path, f"expected the name without {SHARED_SUFFIX}, which goes with it, got {shown(name)}"
            )
        elif "/" not in name or name.startswith("requests.") or "kubernetes.io/" in name:
            checker.refuse(path, f"expected an extended resource such as example.com/gpu, got {shown(name)}")


def _check_pools(pools: dict[int, _Part[PoolSettings]], checker: Checker) -> None:
    first: dict[str, int] = {}
    named = {index: pool.settings.name for index, pool in pools.items() if pool.has("name")}
    for index, name in named.items():
        path: Path = ("pools", index, "name")
        if name == DEFAULT_POOL:
            checker.refuse(
                path,
                "expected another name: default is the pool of nodes that are in no other, got 'default'",
            )
        elif name in first:
            checker.refuse(path, f"expected each name once, got {name!r} again (pools[{first[name]}])")
        first.setdefault(name, index)
    selecting = [(index, pool.settings.selector) for index, pool in pools.items() if pool.has("selector")]
    for (index_a, a), (index_b, b) in combinations(selecting, 2):
        # If one asks for all labels of the other and more, each of its nodes is in both.
        if a.items() <= b.items() or b.items() <= a.items():
            called = f" ({named[index_a]})" if index_a in named else ""
            message = (
                f"expected pools that share no node, got a selector that overlaps pools[{index_a}]{called}"
            )
            checker.refuse(("pools", index_b, "selector"), message)


def _check_modes(data: dict[str, object], pools: dict[int, _Part[PoolSettings]], checker: Checker) -> None:
    """Who observes everything has no election, no label and no promises to act in a single pool with."""
    if data.get("mode") != Mode.OBSERVE:
        return
    for index, pool in pools.items():
        if pool.has("mode") and pool.settings.mode is Mode.ACT:
            message = "expected observe or nothing beside `mode: observe`, got 'act'"
            hint = "to act in some pools only, let the file's `mode` be act, and observe in the others"
            checker.refuse(("pools", index, "mode"), f"{message}: {hint}")


def _check_listeners(listeners: dict[int, _Part[ListenerSettings]], checker: Checker) -> None:
    first: dict[Address, int] = {}
    for index, part in listeners.items():
        path: Path = ("listeners", index)
        listener = part.settings
        if part.has("address"):
            _check_address(path, listener.address, first, checker)
            first.setdefault(listener.address, index)
        if not part.has("serves"):
            continue
        twice = next((face for face in Face if listener.serves.count(face) > 1), None)
        if twice is not None:
            checker.refuse((*path, "serves"), f"expected each thing once, got {twice.value} twice")
        if not part.has("address") or listener.address.loopback:
            continue
        open_to_all = part.has("tls") and (listener.tls is None or listener.tls.client_ca_file is None)
        if Face.EXTENDER in listener.serves and open_to_all:
            message = "expected tls with client_ca_file, since whoever reaches the extender can place pods; got none"
            checker.refuse((*path, "tls"), message)
        if Face.API in listener.serves:
            message = "expected a loopback address where api is served (use kubectl port-forward), got "
            checker.refuse((*path, "address"), message + shown(str(listener.address)))


def _check_address(path: Path, address: Address, first: dict[Address, int], checker: Checker) -> None:
    if address in first and address.port != 0:
        message = f"expected each address once, got it again (listeners[{first[address]}])"
        checker.refuse((*path, "address"), message)
    elif (same := _on_all_interfaces(address, first)) is not None:
        checker.refuse(
            (*path, "address"),
            f"expected another port: {same} and {address} cannot both be bound (listeners[{first[same]}])",
        )


def _on_all_interfaces(address: Address, others: Iterable[Address]) -> Address | None:
    """Give an address with the same port where one of the two takes all interfaces; IPv6's are apart from IPv4's."""
    for other in others:
        for wildcard, one in ((address.host, other.host), (other.host, address.host)):
            # A name may mean either family; it is left to the kernel.
            same_family = (":" in wildcard) == (":" in one) and not one[:1].isalpha()
            if wildcard in ("0.0.0.0", "::") and same_family and address.port == other.port != 0:  # noqa: S104 - compared, not bound
                return other
    return None


def _check_telemetry(part: _Part[TelemetrySettings], checker: Checker) -> None:
    telemetry = part.settings
    pairs = (("key_file", "cert_file"), ("password_file", "username_file"))
    for one, other in pairs:
        if part.has(one, other) and getattr(telemetry, one) is not None and getattr(telemetry, other) is None:
            checker.refuse(("telemetry", other), f"expected a file, since {one} is set; got nothing")
    for name in ("ca_file", "cert_file", "key_file"):
        if part.has("broker", name) and getattr(telemetry, name) is not None and not telemetry.broker.tls:
            checker.refuse(
                ("telemetry", "broker"), f"expected mqtts://, since {name} is set; got {telemetry.broker!r}"
            )


def _check_extender(part: _Part[ExtenderSettings], checker: Checker) -> None:
    extender = part.settings
    if not part.has("bind", "ignorable", "kubernetes_version"):
        return
    if not (extender.bind and extender.ignorable and extender.kubernetes_version):
        return
    major, minor = extender.kubernetes_version.lstrip("v").split(".")[:2]
    if (int(major), int(minor.split("-")[0].split("+")[0])) < IGNORABLE_COVERS_BIND:
        message = (
            "expected false together with ignorable: true before Kubernetes 1.30, where a failed bind is not"
        )
        checker.refuse(("extender", "bind"), f"{message} ignored; got true")


def _check_prefix(
    part: _Part[ExtenderSettings], listeners: dict[int, _Part[ListenerSettings]], checker: Checker
) -> None:
    if not part.has("prefix"):
        return
    prefix = part.settings.prefix
    for index, listener in listeners.items():
        if not listener.has("serves") or Face.EXTENDER not in listener.settings.serves:
            continue
        for face in listener.settings.serves:
            for taken in FACE_PATHS.get(face, ()):
                # Either below the other: what is asked of one would be answered by the other, or seem to be.
                if f"{prefix}/".startswith(f"{taken}/") or f"{taken}/".startswith(f"{prefix}/"):
                    message = f"expected a path apart from {taken}, which listeners[{index}] serves too ({face.value})"
                    checker.refuse(("extender", "prefix"), f"{message}; got {prefix!r}")
                    return


def _check_lease(part: _Part[LeaseSettings], checker: Checker) -> None:
    # A leader must have stopped before another may start, and must have tried more than once before it stops.
    lease = part.settings
    if part.has("duration_s") and lease.duration_s > MOST_LEASE_S:
        message = (
            f"expected at most {PositiveSeconds(MOST_LEASE_S)}, for which a dead leader's place stays empty"
        )
        checker.refuse(("lease", "duration"), f"{message}; got {lease.duration_s}")
    for name, given_s, least_s in (
        ("duration", lease.duration_s, LEAST_LEASE_S),
        ("retry", lease.retry_s, LEAST_RETRY_S),
    ):
        if part.has(f"{name}_s") and given_s < least_s:
            checker.refuse(("lease", name), f"expected at least {PositiveSeconds(least_s)}; got {given_s}")
    if part.has("duration_s", "renew_deadline_s") and lease.renew_deadline_s >= lease.duration_s:
        message = f"expected less than duration ({lease.duration_s}), got {lease.renew_deadline_s}"
        checker.refuse(("lease", "renew_deadline"), message)
    if not part.has("renew_deadline_s", "retry_s"):
        return
    if lease.retry_s >= lease.renew_deadline_s:
        checker.refuse(
            ("lease", "retry"),
            f"expected less than renew_deadline ({lease.renew_deadline_s}), got {lease.retry_s}",
        )
    elif lease.retry_s * RETRY_SPREAD >= lease.renew_deadline_s:
        message = f"expected less than renew_deadline ({lease.renew_deadline_s}) over {RETRY_SPREAD:g}"
        checker.refuse(("lease", "retry"), f"{message}, since retries are spread; got {lease.retry_s}")
