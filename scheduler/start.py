"""Where the program starts. It is this small so that Ctrl-C is quiet, too, while the rest is being imported."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit."""
    try:
        from scheduler.cli import main as run
    except KeyboardInterrupt:
        # As cli.py has it: 128 + SIGINT.
        raise SystemExit(130) from None
    run()


def complete_for_kubectl() -> None:
    """Answer `kubectl wattbalance` and the tabulator key: kubectl calls a program of a name of its own for it."""
    try:
        from scheduler.cli_config import main_for_kubectl as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()
