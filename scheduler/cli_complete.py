"""What a shell offers at the tabulator key where only the cluster knows: pods, namespaces, contexts.

By the user's own kubectl, within moments. Whatever goes wrong, nothing is offered and nothing is said: somebody types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

REQUEST_S = 2
# With the time that a login takes; then whoever types has long gone on.
MOST_S = 4.0
# As people of kubectl write the kind before a name.
KINDS = ("pod", "pods", "po")


def namespaces(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a namespace."""
    return _beginning(incomplete, _names(context, "get", "namespaces"))


def contexts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a context of the kubeconfig."""
    return _beginning(incomplete, _names(context, "config", "get-contexts", named=False))


def pods(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete POD, pod/POD and NAMESPACE/POD."""
    prefix, slash, _ = incomplete.rpartition("/")
    namespace = prefix if slash and prefix not in KINDS else str(context.params.get("namespace") or "")
    where = ["-n", namespace] if namespace else []
    return _beginning(
        incomplete, [f"{prefix}{slash}{name}" for name in _names(context, "get", "pods", *where)]
    )


def versions(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a version of Kubernetes that we know."""
    from scheduler.config_kube import NEWEST, OLDEST

    return _beginning(incomplete, [f"1.{minor}" for minor in range(OLDEST, NEWEST + 1)])


def _beginning(incomplete: str, found: Sequence[str]) -> list[str]:
    return [each for each in found if each.startswith(incomplete)]


def _names(context: click.Context, *arguments: str, named: bool = True) -> list[str]:
    """Names as kubectl prints them; none where it cannot. `named`: whether the options of the line say where."""
    given = [
        f"--{name}={value}"
        for name in (("context", "kubeconfig") if named else ("kubeconfig",))
        if (value := context.params.get(name))
    ]
    said = _run([*given, *arguments, "-o", "name", f"--request-timeout={REQUEST_S}s"])
    return [line.rpartition("/")[2] if named else line for line in said.splitlines()]


def _run(arguments: Sequence[str]) -> str:
    """What kubectl prints; nothing where there is none, or it fails, or is not done in time."""
    import contextlib
    import os
    import shutil
    import signal
    import subprocess

    program = shutil.which("kubectl")
    if program is None:
        return ""
    try:
        child = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # With what it starts itself, such as a plugin that logs in: nobody of them may stay, or ask the terminal.
            start_new_session=True,
        )
    except OSError:
        return ""
    with child:
        try:
            said, _ = child.communicate(timeout=MOST_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            return ""
        return said.decode(errors="replace") if child.returncode == 0 else ""
