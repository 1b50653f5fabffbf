"""The kinds of values that options of the command line take, and the option that several commands have.

What they read with is imported when they read.
"""

from __future__ import annotations

import os

import click

from scheduler.cli_complete import contexts

# Of what was given instead of a name.
MOST_SHOWN = 300


class Named(click.ParamType[str]):
    """A name: an unset variable of a shell must not mean the default."""

    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text."""
        if not value:
            self.fail("expected a name, got nothing", param, ctx)
        text = str(value)
        if any("\ud800" <= each <= "\udfff" for each in text):
            # As Python has bytes of the command line that are no UTF-8.
            self.fail(f"expected a name in UTF-8, got {text[:MOST_SHOWN]!r}", param, ctx)
        return text


class Namespace(click.ParamType[str]):
    """A namespace's name."""

    name = "namespace"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text."""
        from scheduler.core.names import LABEL, is_label

        if not is_label(str(value)):
            self.fail(f"expected a namespace ({LABEL}), got {str(value)[:MOST_SHOWN]!r}", param, ctx)
        return str(value)


context_option = click.option(
    "--context",
    type=Named(),
    shell_complete=contexts,
    metavar="NAME",
    help="Context of the kubeconfig; default: its current one.",
)
"""Gives a command the option that says which cluster is meant."""


class NamedPath(click.Path):
    """click's, without the empty path: an unset variable of a shell must not mean the default."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Read the text."""
        if value == "":
            self.fail("expected a path, got nothing", param, ctx)
        return super().convert(value, param, ctx)


class ClusterName(click.ParamType[str]):
    """What the daemon's file takes as `cluster.name`."""

    name = "cluster"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text."""
        import msgspec

        from scheduler.config_types import NAME_EXPECTED, Name

        try:
            return msgspec.convert(value, Name)
        except msgspec.ValidationError:
            self.fail(f"expected {NAME_EXPECTED}, got {str(value)[:300]!r}", param, ctx)


class FloatRange(click.FloatRange):
    """click's, without NaN, which is neither below nor above a bound."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text."""
        number = float(super().convert(value, param, ctx))  # type: ignore[arg-type]  # click reads text
        if number != number:  # noqa: PLR0124 - only NaN is so; importing math costs more
            self.fail(f"expected a number in the range {self._describe_range()}, got {value}", param, ctx)
        return number


class Duration(click.ParamType[float]):
    """`30s`, `4h30m`, or a bare number of seconds; longer than zero and within the bounds. Seconds inside."""

    name = "duration"

    def __init__(self, least_s: float = 0.0, most_s: float | None = None) -> None:
        self.least_s = least_s
        self.most_s = most_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text."""
        from scheduler.core.units import QuantityError, parse_duration

        try:
            text = str(value)
            # At a prompt, and only there, a bare number can mean nothing but seconds.
            seconds = parse_duration(text + "s" if text[-1:].isdigit() else text)
        except QuantityError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(f"expected a duration longer than zero, got {value}", param, ctx)
        if seconds < self.least_s or (self.most_s is not None and seconds > self.most_s):
            bounds = f"{self.least_s:g}s" + (
                f" to {self.most_s:g}s" if self.most_s is not None else " or more"
            )
            self.fail(f"expected {bounds}, got {value}", param, ctx)
        return seconds


class HostPort(click.ParamType[tuple[str, int]]):
    """`127.0.0.1:9401` or `[::]:9401`."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Take it apart."""
        from scheduler.config_types import Address

        try:
            address = Address.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return address.host, address.port
