"""Reports of a running daemon.

Exit codes: 0 told; 1 no daemon answers; 2 the command line is wrong, or the file that it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from scheduler.cli_client import asks_daemon, found_daemon, print_json
from scheduler.cli_types import NamedPath

if TYPE_CHECKING:
    from scheduler.report.observation import ObserveReport

# Of the newest pods; all that the API gives at once.
SHOWN, SHOWN_WIDE, MOST = 20, 100, 1000


@click.group("report", short_help="Reports: what observing has shown.")
def report() -> None:
    """Reports of a running daemon.

    \b
    Example:
      wattbalance report observe
    """


@report.command(short_help="Where pods run, beside where they would with us.")
@click.option(
    "--from",
    "saved",
    type=NamedPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Read a report that was saved by -o json; no daemon is asked.",
)
@asks_daemon
def observe(
    *,
    saved: str | None,
    server: str | None,
    context: str | None,
    daemon_namespace: str | None,
    output: str,
) -> None:
    """Say what observing has shown: where pods run, beside where we would have placed them. An estimate.

    While `mode: observe` holds, for all or for a pool, or while paused. `table` shows the last 20 pods, `wide` 100,
    `json` 1000. It ends with the process, and so by a restart: save what you want to keep.

    \b
    Examples:
      wattbalance report observe
      wattbalance report observe -o wide --server http://127.0.0.1:9441
      kubectl wattbalance report observe -o json > monday.json
      wattbalance report observe --from monday.json
    """
    limit = {"table": SHOWN, "wide": SHOWN_WIDE}.get(output, MOST)
    if saved is not None:
        _check_asks_nobody()
        told, body = _read(saved)
    else:
        with found_daemon(server, context, daemon_namespace) as (daemon, _):
            told, body = daemon.observe(limit)
    if output == "json":
        print_json(body)
        return
    from msgspec.structs import replace

    from scheduler.client import observed, tables

    shown = replace(told, pods=told.pods[:limit])
    observed.print_observed(tables.console(), shown, saved=saved is not None)


def _check_asks_nobody() -> None:
    """WATTBALANCE_SERVER may be set for good; who names a daemon here expects its report."""
    context = click.get_current_context()
    for name in ("server", "context", "daemon_namespace"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--from asks no daemon, and --{name.replace('_', '-')} names one")


def _read(path: str) -> tuple[ObserveReport, bytes]:
    from pathlib import Path

    import msgspec

    from scheduler.report.observation import ObserveReport

    try:
        body = Path(path).read_bytes()
        return msgspec.json.decode(body, type=ObserveReport), body
    except (OSError, msgspec.MsgspecError) as error:
        message = f"expected a report, as `report observe -o json` prints it; {path}: {error}"
        raise click.BadParameter(message, param_hint="--from") from error
