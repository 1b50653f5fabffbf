"""Read, check and describe the configuration: every problem at once, with its line, before any task starts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path as FileSystemPath

import msgspec

from scheduler import config_rules, config_yaml
from scheduler.cluster.shares import is_gpu_resource
from scheduler.config_example import TEXT
from scheduler.config_files import Files
from scheduler.config_problems import Checker, decode, unknown
from scheduler.config_settings import Settings
from scheduler.config_types import PolicyUse, Weight
from scheduler.config_yaml import Document, Path
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.files import check_regular

__all__ = [
    "ConfigError",
    "Settings",
    "example",
    "load",
    "load_file",
    "load_raw",
    "load_with_files",
    "schema",
    "warnings",
]

NO_GPU = "expected a name of GPUs (others are named in gpu_resources), or nothing comes of it"
# Past this many nobody reads on, and the file is not a configuration.
MOST_PROBLEMS = 200
_OPENED_BEFORE = re.compile(r"/dev/(stdin|fd/[0-9]+)$|/proc/self/fd/[0-9]+$")


def load(text: str) -> Settings:
    """Read a configuration.

    Raises:
        ConfigError: with all problems, each with path, line, what stands there and what was expected.
    """
    return _load(text)[0]


def _load(text: str) -> tuple[Settings, Document]:
    document = config_yaml.read(text)
    data = {} if document.data is None else document.data
    checker = Checker(document, {PolicyUse: _policy_use})
    checker.check(data, Settings)
    if isinstance(data, dict):
        _check_rules(data, checker)
    if document.problems:
        raise ConfigError(_sorted(document.problems))
    return msgspec.convert(data, Settings, dec_hook=decode), document


def load_file(path: str) -> Settings:
    """Read a configuration file. Raises ConfigError, also if it cannot be read."""
    return load_raw(_read(path), path)


def load_with_files(path: str, now_unix_s: float) -> tuple[Settings, list[Problem]]:
    """Read a configuration file and look at the files that it names. Gives what it warns of, too.

    Raises:
        ConfigError: with all problems of the file; if there are none, with those of the files that it names.
    """
    settings, document = _load(_decoded(_read(path), path))
    files = Files(document, now_unix_s)
    files.check(settings)
    if files.problems:
        raise ConfigError(_sorted(files.problems))
    return settings, files.warnings


def load_raw(raw: bytes, path: str) -> Settings:
    """Read the bytes of a configuration file. Raises ConfigError."""
    return load(_decoded(raw, path))


def _read(path: str) -> bytes:
    file = FileSystemPath(path)
    try:
        # What the shell has opened for us, such as standard input, may be a pipe; one that nobody writes to would
        # hold whoever opens it.
        if not _OPENED_BEFORE.match(path):
            check_regular(file, config_yaml.MOST_CHARACTERS)
        with file.open("rb") as opened:
            # One more than allowed, so that too much is seen without reading a whole disk.
            return opened.read(config_yaml.MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        told = f"expected a readable file, got: {reason or error}"
        if reason is None and isinstance(error, OSError):
            # What is no file says so itself, behind its path.
            told = str(error).removeprefix(f"{file}: ")
        raise ConfigError([Problem(path=path, message=told)]) from error


def _decoded(raw: bytes, path: str) -> str:
    try:
        return raw.decode("utf-8-sig")
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


def policy_arguments() -> tuple[dict[str, type[msgspec.Struct]], list[str]]:
    """Give what a profile may say of each policy that scores, and the names of those that filter; for the page."""
    return {name: _with_weight(name) for name in _policies().scores}, _policies().filters


def warnings(settings: Settings) -> list[Problem]:
    """Tell what can be used as it is, and may be wrong all the same: what could not be checked."""
    extender = settings.extender
    found = [
        Problem(path="managed_resources", message=f"{NO_GPU}, got {name!r}")
        for name in settings.managed_resources
        if not is_gpu_resource(name, frozenset(settings.gpu_resources))
    ]
    if not (extender.bind and extender.ignorable and extender.kubernetes_version is None):
        return found
    message = (
        'expected the version of kube-scheduler, such as "1.32", to check bind with ignorable: true, got nothing: '
        "before Kubernetes 1.30 a failed bind is not ignored"
    )
    return [*found, Problem(path="extender.kubernetes_version", message=message)]


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
    """Check what no single value can tell; each rule on its own, so that one fault does not hide another."""
    config_rules.check(data, checker)
    filters = data.get("filters")
    for name in filters if isinstance(filters, dict) else ():
        if name not in _policies().filters:
            checker.refuse(("filters", name), unknown(name, _policies().filters))


def _sorted(problems: list[Problem]) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    left_out = len(ordered) - MOST_PROBLEMS
    if left_out <= 0:
        return ordered
    more = Problem(
        path="", message=f"expected a configuration, got {left_out} more problems that are not shown"
    )
    return [*ordered[:MOST_PROBLEMS], more]
