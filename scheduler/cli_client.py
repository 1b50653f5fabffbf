"""Commands that ask a running daemon: what its nodes do, and why a pod is where it is.

Exit codes: 0 found; 1 nothing is known of the pod, or no daemon answers; 2 the command line is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click

from scheduler.cli_complete import KINDS, namespaces, pods
from scheduler.cli_types import MOST_SHOWN, Named, Namespace, context_option

if TYPE_CHECKING:
    from scheduler.client.fetch import Daemon

Command = TypeVar("Command", bound=Callable[..., object])

# A dozen pools by name; the table says it of each node.
MOST_OBSERVING_CHARS = 1000


class ServerUrl(click.ParamType[str]):
    """`http://host:port`; the scheme may be left away."""

    name = "server"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text."""
        import urllib.parse

        text = str(value).strip()
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urllib.parse.urlsplit(url)
            # What HTTP can ask for: blanks and other letters would have to be written otherwise.
            plain = url.isascii() and url.isprintable() and " " not in url
            good = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or parts.username is not None:
            self.fail(f"expected a URL such as http://127.0.0.1:9441, got {text[:300]!r}", param, ctx)
        return url


def asks_daemon(command: Command) -> Command:
    """Add the options by which the daemon is found, and what is printed."""
    for option in (
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "wide", "json"]),
            default="table",
            show_default=True,
            help="What to print.",
        ),
        click.option(
            "--daemon-namespace",
            type=Namespace(),
            shell_complete=namespaces,
            metavar="NAME",
            help="Where the daemon's pods are; default: looked for in all namespaces, or `wattbalance` if you may not.",
        ),
        context_option,
        click.option(
            "--server",
            envvar="WATTBALANCE_SERVER",
            type=ServerUrl(),
            metavar="URL",
            help="The daemon's api, such as the demo's URL; default: WATTBALANCE_SERVER, else by kubectl "
            "port-forward to the leader.",
        ),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def found_daemon(
    server: str | None, context: str | None, daemon_namespace: str | None
) -> Iterator[tuple[Daemon, Callable[[], str]]]:
    """The daemon at an address, else through kubectl; and what namespace a pod is in if none is said."""
    from scheduler.client.connect import Kubectl
    from scheduler.client.fetch import Daemon

    if server is not None:
        daemon = Daemon(server)
        try:
            yield daemon, lambda: _namespace_of(context or "")
        finally:
            _say_if_paused(daemon)
        return
    kubectl = Kubectl(context or "", daemon_namespace or "")
    with kubectl.forwarded() as daemon:
        try:
            yield daemon, kubectl.namespace
        finally:
            _say_if_paused(daemon)


def _namespace_of(context: str) -> str:
    """As `kubectl wattbalance` that of its context, wherever the daemon is; there may be no kubeconfig at all."""
    from scheduler.client.connect import Kubectl
    from scheduler.client.fetch import NoDaemon

    if (click.get_current_context().find_root().info_name or "").startswith("kubectl"):
        with contextlib.suppress(NoDaemon):
            return Kubectl(context).namespace()
    return "default"


def _say_if_paused(daemon: Daemon) -> None:
    """Whatever is looked at, what was decided since then has changed nothing."""
    if not daemon.paused:
        return
    from scheduler.pause import MOST_BY_CHARS, MOST_REASON_CHARS, plain

    said = plain(daemon.paused, MOST_BY_CHARS + MOST_REASON_CHARS + 100)
    click.echo(f"warning: the daemon is {said}", err=True)


def _say_if_observing(daemon: Daemon) -> None:
    if not daemon.observing:
        return
    from scheduler.pause import plain

    told = plain(daemon.observing, MOST_OBSERVING_CHARS)
    click.echo(
        f"warning: the daemon only observes {told}: it places nothing there, and writes nothing", err=True
    )


def _check_names(pod: str, namespace: str | None) -> None:
    """Refuse here what no cluster has, with the rule: the daemon could only say that it knows none."""
    from scheduler.core.names import LABEL, SUBDOMAIN, is_label, is_subdomain

    if not is_subdomain(pod):
        raise click.BadParameter(f"expected a pod's name of {SUBDOMAIN}; got {_cut(pod)}", param_hint="POD")
    if namespace and not is_label(namespace):
        message = f"expected a namespace's name of {LABEL}; got {_cut(namespace)}"
        raise click.BadParameter(message, param_hint="--namespace")


def _cut(name: str) -> str:
    return repr(name) if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]!r}... of {len(name):,} characters"


@click.command(short_help="Say why a pod is where it is, or why it waits.")
@click.argument("pod", metavar="POD", shell_complete=pods)
@click.option(
    "-n",
    "--namespace",
    type=Named(),
    shell_complete=namespaces,
    metavar="NAME",
    help="The pod's namespace; default: `default`, or through kubectl that of its context.",
)
@asks_daemon
def explain(
    *,
    pod: str,
    namespace: str | None,
    server: str | None,
    context: str | None,
    daemon_namespace: str | None,
    output: str,
) -> None:
    """Say why a pod is where it is, or why it waits, and what would unblock it.

    First the last decision as it was recorded, below it what would be decided now.

    \b
    Examples:
      wattbalance explain train-0 -n ml
      wattbalance explain ml/train-0 -o wide
      wattbalance explain train-0 --server http://127.0.0.1:8080
      kubectl wattbalance explain train-0
    """
    prefix, slash, name = pod.rpartition("/")
    if slash and prefix not in KINDS:
        if namespace and namespace != prefix:
            raise click.UsageError(f"the pod is named with namespace {prefix}, and -n says {namespace}")
        namespace = prefix
    if not name or "/" in (namespace or "") or (slash and not prefix):
        raise click.BadParameter(
            f"expected a pod's name or NAMESPACE/NAME, got {pod[:MOST_SHOWN]!r}", param_hint="POD"
        )
    _check_names(name, namespace)
    with found_daemon(server, context, daemon_namespace) as (daemon, usual_namespace):
        told, body = daemon.explain(namespace or usual_namespace(), name)
    if output == "json":
        print_json(body)
        return
    from scheduler.client import tables

    tables.print_explanation(tables.console(), told, wide=output == "wide")


@click.command(short_help="List nodes: load, power, free GPUs, age of the reading.")
@click.option("--pool", type=Named(), metavar="NAME", help="Only nodes of this pool.")
@click.option(
    "--sort-by",
    type=click.Choice(["name", "load", "power", "free", "age"]),
    default="name",
    show_default=True,
    help="name: by pool, then name; else the highest first, unknown last (age: oldest first).",
)
@asks_daemon
def nodes(
    *,
    pool: str | None,
    sort_by: str,
    server: str | None,
    context: str | None,
    daemon_namespace: str | None,
    output: str,
) -> None:
    """List nodes: measured load and power, free GPUs, age of the reading, the agent's version.

    What is unknown is `-`, never a zero. Above the table stands whether the daemon is paused, or only observes.

    \b
    Examples:
      wattbalance nodes
      wattbalance nodes --pool dc-1 --sort-by load
      wattbalance nodes --server http://127.0.0.1:8080 -o wide
      kubectl wattbalance nodes -o json
    """
    with found_daemon(server, context, daemon_namespace) as (daemon, _):
        views, raw = daemon.nodes(pool or "")
        # Before the table, as what is said of a pause.
        _say_if_observing(daemon)
        elsewhere = sorted({view.pool for view in daemon.nodes()[0]}) if pool and not views else []
    if output == "json":
        import msgspec

        print_json(msgspec.json.encode({"items": raw}))
        return
    from scheduler.client import tables

    out = tables.console()
    if not views:
        known = (
            f"those that the daemon knows are in {', '.join(elsewhere)}"
            if elsewhere
            else "the daemon knows none yet"
        )
        where = f" in pool {pool}" if pool else ""
        click.echo(f"no GPU nodes{where}: {known}", err=True)
    tables.print_nodes(out, views, sort_by=sort_by, wide=output == "wide")


def print_json(body: bytes) -> None:
    """Print what a daemon answered, indented."""
    import msgspec

    click.echo(msgspec.json.format(body, indent=2))
