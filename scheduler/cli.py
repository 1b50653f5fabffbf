"""The command line. Each command imports its room inside its function, so that `--help` costs nearly nothing.

Exit codes: 0 done; 1 something failed, one line on stderr says what; 2 the configuration or the command line
is wrong; 130 ended by Ctrl-C; 141 nobody reads what it prints any more, as behind `| head -1`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler import __version__
from scheduler.cli_client import explain, nodes
from scheduler.cli_config import COMPLETE_VARIABLE, completion, config_group
from scheduler.cli_pause import pause, resume
from scheduler.cli_reader import unless_unread
from scheduler.cli_report import report
from scheduler.cli_types import ClusterName, Duration, FloatRange, HostPort, NamedPath

if TYPE_CHECKING:
    from scheduler.core.errors import Problem

INTERRUPTED = 130  # as a shell says of a process that SIGINT ended: 128 + 2
MISUSED = 2

FILE = NamedPath(dir_okay=False)
DIRECTORY = NamedPath(file_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Place GPU pods by measured load, on several pools.

    \b
    Examples:
      wattbalance demo                               a cluster on this machine, with simulated GPUs
      wattbalance config example > wattbalance.yaml  a commented configuration
      wattbalance check-config wattbalance.yaml      every problem in it
      wattbalance serve --config wattbalance.yaml    the daemon
      wattbalance agent --once                       what the GPUs of this machine do
      wattbalance nodes                              what the nodes do, as the daemon knows
      wattbalance explain POD                        why a pod is where it is, or why it waits
      wattbalance report observe                     where pods run, beside where they would with us
    """


@cli.command()
def version() -> None:
    """Print the version.

    \b
    Example:
      wattbalance version
    """
    click.echo(f"wattbalance {__version__}")


@cli.command(short_help="Run the daemon.")
@click.option("--config", "path", type=FILE, required=True, metavar="FILE", help="Configuration file.")
def serve(path: str) -> int:
    """Run the daemon: the extender, telemetry and the cluster's state.

    Stops at SIGTERM or Ctrl-C within its grace; exits 2 if the configuration is wrong.

    \b
    Example:
      wattbalance serve --config /etc/wattbalance/config.yaml
    """
    from scheduler import app, config

    return app.serve(config.load_file(path), path)


@cli.command()
@click.option(
    "--node", envvar="NODE_NAME", metavar="NAME", help="Node; default: NODE_NAME, else the host name."
)
@click.option(
    "--cluster",
    type=ClusterName(),
    default="default",
    show_default=True,
    metavar="NAME",
    help="Cluster, as the daemon's file says.",
)
@click.option(
    "--broker", default="mqtt://127.0.0.1:1883", show_default=True, metavar="URL", help="MQTT broker."
)
@click.option("--ca-file", type=FILE, metavar="FILE", help="CA of the broker; default: the system's.")
@click.option("--cert-file", type=FILE, metavar="FILE", help="Client certificate.")
@click.option("--key-file", type=FILE, metavar="FILE", help="Its key; default: it is in --cert-file.")
@click.option("--username-file", type=FILE, metavar="FILE", help="File that holds the user name.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File that holds the password.")
@click.option(
    "--interval",
    "interval_s",
    # More than ten a second tells nothing new; after a minute the daemon has long taken the node for silent.
    type=Duration(0.1, 60.0),
    default="1s",
    show_default=True,
    help="Time between messages, 100ms to 60s; a bare number is seconds.",
)
@click.option(
    "--sample-hz",
    type=FloatRange(0.1, 50),
    default=5.0,
    show_default=True,
    help="Readings per second; fewer where a read is slow.",
)
@click.option(
    "--listen",
    type=HostPort(),
    default="127.0.0.1:9401",
    show_default=True,
    metavar="HOST:PORT",
    help="Address of /metrics and /healthz; port 0: any free one.",
)
@click.option("--once", is_flag=True, help="Print one reading and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: as JSON.")
def agent(*, once: bool, as_json: bool, **flags: Any) -> int:  # noqa: ANN401 - the options above, by name
    """Read this node's GPUs and publish what they do.

    \b
    Examples:
      wattbalance agent --once
      wattbalance agent --once --json
      wattbalance agent --cluster prod --broker mqtts://broker:8883 --ca-file ca.crt
    """
    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    import asyncio
    import json
    import signal

    from scheduler.core.aio import tell_unhandled
    from scheduler.core.clock import SystemClock
    from scheduler.core.errors import ConfigError
    from scheduler.core.log import setup
    from scheduler.device.nvml import NvmlDevices
    from scheduler.telemetry import agent as room
    from scheduler.telemetry.broker import BrokerSettings

    clock = SystemClock()
    # A look must change nothing, not even to learn whether it could.
    devices = NvmlDevices(clock, probe_write=not once)
    if once:
        from scheduler.telemetry.once import read_once, render_once

        found = asyncio.run(read_once(devices))
        click.echo(json.dumps(found, indent=2) if as_json else render_once(found).rstrip("\n"))
        return 0
    files = {key: flags.pop(key) for key in list(flags) if key.endswith("_file")}
    flags["node"] = _node_name(flags["node"])
    flags["metrics_host"], flags["metrics_port"] = flags.pop("listen")
    try:
        flags["broker"] = BrokerSettings(url=flags["broker"], **files)
        options = room.AgentOptions(**flags)
    except ConfigError as error:
        raise ConfigError([_as_option(problem) for problem in error.problems]) from error
    writer = setup("info", "json")

    async def until_told() -> int:
        """Run until SIGTERM, as Kubernetes ends a pod."""
        running = asyncio.current_task()
        assert running is not None  # noqa: S101 - asyncio.run made it
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(tell_unhandled)
        loop.add_signal_handler(signal.SIGTERM, running.cancel)
        try:
            await room.run_agent(options, devices, clock)
        except asyncio.CancelledError:
            return 0
        return 1

    try:
        return asyncio.run(until_told())
    finally:
        writer.stop()


@cli.command(short_help="Run a whole cluster on this machine, with simulated GPUs.")
@click.option(
    "--nodes", type=click.IntRange(1, 100_000), default=200, show_default=True, help="How many nodes."
)
@click.option(
    "--speed",
    type=FloatRange(0.1, 10_000),
    default=60.0,
    show_default=True,
    help="How many times faster than life the jobs run.",
)
@click.option(
    "--load",
    type=FloatRange(0.05, 1.5),
    default=0.85,
    show_default=True,
    help="Share of all GPUs that the arriving pods ask for.",
)
@click.option(
    "--duration",
    "duration_s",
    type=Duration(),
    help="End after this time: 90s, 5m, or a bare number of seconds; default: at Ctrl-C.",
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0: any free one."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Same seed, same arrivals."
)
@click.option(
    "--policies",
    type=click.Choice(["least-loaded", "shipped"]),
    default="least-loaded",
    show_default=True,
    help="least-loaded: all classes by measured load, one pool. shipped: the profiles and pools of `config example` "
    "(training and batch packed, inference spread, on-prem before cloud).",
)
@click.option(
    "--trace-dir", type=DIRECTORY, metavar="DIR", help="Whole openb lists instead of the built-in slice."
)
@click.option(
    "--trace",
    type=FILE,
    metavar="NAME",
    help="Which pod list of --trace-dir, such as gpushare40; or a file.",
)
@click.option(
    "--mosquitto", type=FILE, metavar="PATH", help="The broker's program; default: found, else PyPI's."
)
def demo(**flags: Any) -> int:  # noqa: ANN401 - the options above, by name, become DemoOptions
    """Run a whole cluster on this machine: real daemon, real broker, simulated GPUs, a public trace.

    \b
    Examples:
      wattbalance demo
      wattbalance demo --nodes 50 --duration 60s
      wattbalance demo --load 0.7 --seed 7 --speed 120
      wattbalance demo --policies shipped
    """
    from scheduler.simulate import demo as room

    return room.run(room.DemoOptions(**flags))


@cli.command("check-config")
@click.argument("path", type=FILE, metavar="FILE")
@click.option(
    "--no-files", is_flag=True, help="Leave the files alone that it names: for CI away from the cluster."
)
def check_config(path: str, *, no_files: bool) -> None:
    """Check a configuration file, and the files that it names; print every problem.

    Certificates, keys and CAs are read, the kubeconfig, user name and password: are they there, and what they should
    be, does the key fit? Exits 0 if all can be used, else 2. Warns of what it could not check, and of certificates
    that end. `-` is standard input.

    \b
    Examples:
      wattbalance check-config wattbalance.yaml
      wattbalance config example | wattbalance check-config --no-files -
    """
    from scheduler import config
    from scheduler.core.clock import SystemClock

    file = "/dev/stdin" if path == "-" else path
    found: list[Problem] = []
    if no_files:
        settings = config.load_file(file)
    else:
        settings, found = config.load_with_files(file, SystemClock().unix_s())
    for problem in [*config.warnings(settings), *found]:
        click.echo(f"warning: {problem}", err=True)
    pools = ", ".join(pool.name for pool in settings.pools) or "none but default"
    click.echo(f"{path}: ok (cluster {settings.cluster.name}, mode {settings.mode.value}, pools: {pools})")


cli.add_command(config_group)
cli.add_command(completion)
cli.add_command(pause)
cli.add_command(resume)
cli.add_command(explain)
cli.add_command(nodes)
cli.add_command(report)


def _node_name(given: str | None) -> str:
    """Give the node's name: what was given, else the host's, which the kubelet takes in small letters."""
    import socket

    from scheduler.core.errors import ConfigError, Problem
    from scheduler.core.names import SUBDOMAIN, is_subdomain

    host = socket.gethostname()
    # Given and empty is a variable of a shell that was not set: another node's name must not stand in for it.
    name = host.lower() if given is None else given
    if is_subdomain(name):
        return name
    if given is None:
        message = (
            f"expected to be given, since the host name is no Kubernetes node name ({SUBDOMAIN}): {host!r}"
        )
        raise ConfigError([Problem(path="--node", message=message)])
    source = click.get_current_context().get_parameter_source("node")
    path = "NODE_NAME" if source is click.core.ParameterSource.ENVIRONMENT else "--node"
    raise ConfigError(
        [Problem(path=path, message=f"expected a Kubernetes node name ({SUBDOMAIN}), got {given[:300]!r}")]
    )


def _as_option(problem: Problem) -> Problem:
    """Name the option instead of a place in a file, which the agent has not."""
    from scheduler.core.errors import Problem

    name = problem.path.removeprefix("agent.").removeprefix("broker.")
    option = "broker" if name == "url" else name.removesuffix("_s").replace("_", "-")
    message = problem.message
    for each in ("ca", "cert", "key", "username", "password"):
        message = message.replace(f"{each}_file", f"--{each}-file")
    return Problem(path=f"--{option}", message=message)


def program_name(called_as: str) -> str:
    """Name the program as the person called it; kubectl's plugins are called with a space."""
    name = os.path.basename(called_as)  # noqa: PTH119 - pathlib would be the only reason to import it
    return name.replace("kubectl-", "kubectl ", 1) if name.startswith("kubectl-") else name or "wattbalance"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    # Closed by who called us, as by `>&-`: there is nobody to read it, and that is no fault.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows ASCII only gets a question mark for the rest, not a traceback.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors="replace")
    name = program_name(sys.argv[0])
    sys.exit(unless_unread(lambda: _run(name, sys.argv[1:] if arguments is None else arguments)))


def _run(name: str, arguments: list[str]) -> int:
    try:
        result = cli.main(
            args=arguments, prog_name=name, complete_var=COMPLETE_VARIABLE, standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return MISUSED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - raised again unless it was raised on purpose
        return _end(name, error)
    return result if isinstance(result, int) else 0


def _end(name: str, error: Exception) -> int:
    """Say in lines what ended the command; a mistake of ours goes on as it is, with its traceback."""
    from scheduler.core.errors import ConfigError, SchedulerError

    leaves = _leaves(error)
    # An OSError is a port that is taken or a file that cannot be read: its text says all that a person needs.
    if not all(isinstance(leaf, (SchedulerError, OSError)) for leaf in leaves):
        raise error
    for leaf in leaves:
        # A problem of the configuration starts with its place; the program's name would only hide it.
        click.echo(str(leaf) if isinstance(leaf, ConfigError) else f"{name}: {leaf}", err=True)
    return MISUSED if any(isinstance(leaf, ConfigError) for leaf in leaves) else 1


def _leaves(error: Exception) -> list[Exception]:
    """Give the errors of a task group one by one, however deep."""
    if not isinstance(error, ExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]


if __name__ == "__main__":
    main()
