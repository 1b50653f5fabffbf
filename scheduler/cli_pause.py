"""`wattbalance pause` and `resume`: a person's word to a running daemon, by way of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from scheduler.cli_complete import namespaces
from scheduler.cli_types import NamedPath, Namespace, context_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.pause_orders import Outcome


class Reason(click.ParamType[str]):
    """One line for people."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text."""
        from scheduler.pause import MOST_REASON_CHARS, odd_character

        text = str(value).strip()
        if not text:
            self.fail("expected why, in a sentence for those who will ask; got nothing", param, ctx)
        if len(text) > MOST_REASON_CHARS:
            self.fail(f"expected at most {MOST_REASON_CHARS} characters, got {len(text)}", param, ctx)
        if (odd := odd_character(text)) is not None:
            self.fail(f"expected one line without control characters, got {odd!r} in it", param, ctx)
        return text


def _own_namespace() -> str:
    from scheduler.own_pod import own_namespace

    return own_namespace()


def _where(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command the options that say which daemon is meant."""
    for option in (
        context_option,
        click.option(
            "--kubeconfig",
            type=NamedPath(dir_okay=False),
            metavar="FILE",
            help="Kubeconfig; default: KUBECONFIG, else ~/.kube/config.",
        ),
        click.option(
            "-n",
            "--namespace",
            type=Namespace(),
            shell_complete=namespaces,
            default=_own_namespace,
            show_default=False,
            metavar="NAME",
            help="Where the daemon runs (its lease.namespace, if it names one); default: the pod's that this runs in, "
            "outside a pod wattbalance.",
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Let a running daemon decide and do nothing.")
@click.option(
    "--reason", type=Reason(), required=True, metavar="TEXT", help="Why: shown wherever the pause is."
)
@_where
def pause(reason: str, namespace: str, kubeconfig: str | None, context: str | None) -> None:
    """Pause all replicas: kube-scheduler gets back all that it offers, until `wattbalance resume`.

    They go on deciding, recording and counting, and promise, bind and write nothing, as with mode: observe. The
    pause is the ConfigMap wattbalance-pause in their namespace: it outlives each of them, and whoever may create it
    may pause. Where kube-scheduler leaves binding to us (bindVerb), its pods wait until then.

    \b
    Examples:
      wattbalance pause --reason "kernel update on the DGX row, ask Kim"
      kubectl wattbalance pause --reason "drill" --context prod
    """
    outcome = _order(reason, namespace, kubeconfig, context)
    if outcome.done:
        click.echo(outcome.paused or "paused")
        click.echo(f"`wattbalance resume{_options(namespace, kubeconfig, context)}` ends it.")
    else:
        click.echo(f"already {outcome.paused}")
    _warn(outcome)


@click.command(short_help="End a pause.")
@_where
def resume(namespace: str, kubeconfig: str | None, context: str | None) -> int:
    """End a pause: the daemon acts again.

    Where nobody has paused it there is nothing to do, and no fault: said twice it is done twice. Exits 1 if a pause
    stands in another namespace, or if no daemon has led in this one and you may not look into others.

    \b
    Examples:
      wattbalance resume
      kubectl wattbalance resume --context prod
    """
    outcome = _order(None, namespace, kubeconfig, context)
    if outcome.done:
        click.echo(f"resumed; it was {outcome.paused}")
    else:
        click.echo(f"nothing to resume: nobody paused it in namespace {namespace}")
    _warn(outcome)
    for other in outcome.elsewhere or ():
        named = _options(other, kubeconfig, context)
        click.echo(f"a pause stands in namespace {other}: `wattbalance resume{named}` ends it", err=True)
    lost = bool(outcome.lonely) and outcome.elsewhere is None
    return 1 if outcome.elsewhere or lost else 0


def _options(namespace: str, kubeconfig: str | None, context: str | None) -> str:
    """What of a command line names the same daemon; with a blank before each, and nothing where defaults do."""
    where = (
        ("-n", namespace, _own_namespace()),
        ("--context", context, None),
        ("--kubeconfig", kubeconfig, None),
    )
    return "".join(f" {option} {value}" for option, value, default in where if value != default)


def _order(reason: str | None, namespace: str, kubeconfig: str | None, context: str | None) -> Outcome:
    import asyncio
    from pathlib import Path

    from scheduler.pause_orders import order

    return asyncio.run(
        order(
            namespace=namespace,
            kubeconfig=Path(kubeconfig) if kubeconfig is not None else None,
            context=context,
            reason=reason,
        )
    )


def _warn(outcome: Outcome) -> None:
    if outcome.lonely:
        click.echo(f"warning: {outcome.lonely}", err=True)
