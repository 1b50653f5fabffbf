"""The commands that print what others read: our configuration, kube-scheduler's, and completion for shells."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_complete import versions
from scheduler.cli_types import NamedPath

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE = NamedPath(dir_okay=False)
# The variable by which a shell's script asks the program for completions, whatever name it was called by.
COMPLETE_VARIABLE = "_WATTBALANCE_COMPLETE"
# What kubectl is to do beside the lines that it got, as its own commands tell it (cobra's ShellCompDirective).
FILES_TOO, NO_FILES, DIRECTORIES = 0, 4, 16


@click.group("config")
def config_group() -> None:
    """Print an example configuration, its schema, or kube-scheduler's configuration.

    \b
    Examples:
      wattbalance config example > wattbalance.yaml
      wattbalance config schema > wattbalance.schema.json
      wattbalance config kube-scheduler --kubernetes-version 1.32 --config wattbalance.yaml
    """


@config_group.command("example")
def config_example() -> None:
    """Print a commented configuration.

    \b
    Example:
      wattbalance config example > wattbalance.yaml
    """
    from scheduler.config_example import TEXT

    click.echo(TEXT, nl=False)


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration, for editors.

    \b
    Example:
      wattbalance config schema > wattbalance.schema.json
    """
    import json

    from scheduler import config

    click.echo(json.dumps(config.schema(), indent=2))


@config_group.command("kube-scheduler", short_help="Print a kube-scheduler's configuration and RBAC.")
@click.option(
    "--kubernetes-version",
    "version",
    shell_complete=versions,
    metavar="1.N",
    help="Version of the kube-scheduler, such as 1.32; default: extender.kubernetes_version of --config.",
)
@click.option("--shared", is_flag=True, help="For the scheduler that the cluster has, not a second one.")
@click.option("--break-glass", is_flag=True, help="The same scheduler without us, for the day we fail.")
@click.option("--config", "path", type=FILE, metavar="FILE", help="The daemon's file; default: the example.")
@click.option(
    "--only",
    "part",
    type=click.Choice(["config", "rbac"]),
    help="Only the scheduler's own document, or only what kubectl applies.",
)
@click.option(
    "--url",
    metavar="URL",
    help="Where it reaches us; default: the listener's port, at the Service wattbalance.",
)
@click.option("--ca-file", metavar="PATH", help="CA of our certificate, as kube-scheduler sees it.")
@click.option("--cert-file", metavar="PATH", help="Its client certificate, as it sees it.")
@click.option("--key-file", metavar="PATH", help="Key of that, as it sees it.")
@click.option("--server-name", metavar="NAME", help="Name in our certificate, if --url has another.")
@click.option("--kubeconfig", metavar="PATH", help="Its kubeconfig; default: the pod's service account.")
@click.option(
    "--namespace",
    metavar="NAME",
    help="Where it runs and keeps its Lease; default: lease.namespace of --config, else the pod's that this runs in, "
    "outside a pod wattbalance.",
)
@click.option(
    "--name", metavar="NAME", help="Of its Lease and service account; default: wattbalance-scheduler."
)
@click.option(
    "--scheduler-name",
    "scheduler_names",
    multiple=True,
    metavar="NAME",
    help="Pods choose it by this, can be given again; default: scheduler_names; --shared: default-scheduler.",
)
def config_kube_scheduler(
    *,
    path: str | None,
    version: str | None,
    part: str | None,
    scheduler_names: tuple[str, ...],
    **rest: Any,  # noqa: ANN401 - the options above, by name, become Wanted
) -> None:
    """Print the configuration of a kube-scheduler that asks us, then its service account and RBAC.

    \b
    Examples:
      wattbalance config kube-scheduler --kubernetes-version 1.32 --config wattbalance.yaml
      wattbalance config kube-scheduler --kubernetes-version 1.32 --only rbac | kubectl apply -f -
      wattbalance config kube-scheduler --kubernetes-version 1.32 --only config > scheduler.yaml
      wattbalance config kube-scheduler --kubernetes-version 1.32 --only config --break-glass
      wattbalance config kube-scheduler --kubernetes-version 1.32 --shared --url https://10.96.0.9:9443
    """
    from scheduler import config, config_kube
    from scheduler.own_pod import own_namespace

    settings = None if path is None else config.load_file(path)
    if version is None and settings is not None:
        version = settings.extender.kubernetes_version
    if version is None:
        raise click.UsageError("Missing option '--kubernetes-version', which no file has told either.")
    if part == "rbac" and rest["shared"]:
        raise click.UsageError("--only rbac goes without --shared: the cluster's scheduler has its rights")
    # An unset variable of a shell must not mean the default.
    empty = [name for name, value in rest.items() if value == ""] + [n for n in scheduler_names if not n]
    if empty:
        option = (empty[0] or "scheduler-name").replace("_", "-")
        raise click.UsageError(f"--{option}: expected a value, got nothing")
    given = {name: value for name, value in rest.items() if value is not None}
    given.setdefault("namespace", (settings.lease.namespace if settings else None) or own_namespace())
    wanted = config_kube.Wanted(version=version, part=part or "all", scheduler_names=scheduler_names, **given)
    printed = config_kube.render(wanted, settings)
    for problem in printed.warnings:
        click.echo(f"warning: {problem}", err=True)
    click.echo(printed.text, nl=False)


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes our commands and options in a shell.

    `kubectl wattbalance` is completed by kubectl's own script.

    \b
    Examples:
      source <(wattbalance completion bash)
      source <(wattbalance completion zsh)
      wattbalance completion zsh > "${fpath[1]}/_wattbalance"
      wattbalance completion fish > ~/.config/fish/completions/wattbalance.fish
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    called_by_kubectl = (root.info_name or "").startswith("kubectl")
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has all three
    program = "kubectl-wattbalance" if called_by_kubectl else "wattbalance"
    script = made(root.command, {}, program, COMPLETE_VARIABLE).source()
    if shell == "zsh":
        # A zsh without a framework has no `compdef` until somebody asks for it.
        needed = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"
        script = script.replace("    compdef _", f"    {needed}\n    compdef _")
    click.echo(script)


def completions_for_kubectl(root: click.Command, words: Sequence[str]) -> list[str]:
    """Give the lines that kubectl wants: a word and its help each, at the end what else it may offer.

    Args:
        root: the whole command line.
        words: what stands after `kubectl wattbalance`; the last is incomplete, maybe empty.
    """
    from click.shell_completion import ShellComplete

    *done, incomplete = words or [""]
    found = ShellComplete(root, {}, "wattbalance", COMPLETE_VARIABLE).get_completions(list(done), incomplete)
    kinds = {item.type for item in found}
    lines = [
        f"{item.value}\t{item.help}" if item.help else item.value for item in found if item.type == "plain"
    ]
    directive = FILES_TOO if "file" in kinds else DIRECTORIES if "dir" in kinds else NO_FILES
    return [*lines, f":{directive}"]


def main_for_kubectl() -> None:
    """Answer `kubectl wattbalance` and the tabulator key, as the program `kubectl_complete-wattbalance`."""
    from scheduler.cli import cli
    from scheduler.cli_reader import unless_unread

    def complete() -> int:
        for line in completions_for_kubectl(cli, sys.argv[1:]):
            click.echo(line)
        return 0

    sys.exit(unless_unread(complete))
