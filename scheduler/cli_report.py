"""Reports of a running daemon.

Exit codes: 0 told; 1 no daemon answers; 2 the command line is wrong.
"""

from __future__ import annotations

import click

from scheduler.cli_client import asks_daemon, found_daemon, print_json

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
@asks_daemon
def observe(
    *,
    server: str | None,
    context: str | None,
    daemon_namespace: str | None,
    output: str,
) -> None:
    """Say what observing has shown: where pods run, beside where we would have placed them. An estimate.

    While `mode: observe` holds, for all or for a pool, or while paused. `table` shows the last 20 pods, `wide` 100,
    `json` 1000.

    \b
    Examples:
      wattbalance report observe
      wattbalance report observe -o wide --server http://127.0.0.1:9441
      kubectl wattbalance report observe -o json
    """
    limit = {"table": SHOWN, "wide": SHOWN_WIDE}.get(output, MOST)
    with found_daemon(server, context, daemon_namespace) as (daemon, _):
        told, body = daemon.observe(limit)
    if output == "json":
        print_json(body)
        return
    from scheduler.client import observed, tables

    observed.print_observed(tables.console(), told)
