"""Leaf types of the settings: names, durations, addresses, URLs, policies; each with the words for what it expects."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

from scheduler.config_problems import shown
from scheduler.core.units import QuantityError, format_duration, parse_duration

# `$(?!\n)` and not `\Z`, which JSON schema's readers do not know; `$` alone lets a last newline through.
END = r"$(?!\n)"
_NAME = rf"^[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?{END}"
_LABEL_KEY = rf"^([a-z0-9][-a-z0-9.]{{0,252}}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?{END}"
_LABEL_VALUE = rf"^([A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?)?{END}"

NAME_EXPECTED = "a name of letters, digits, - _ . such as dc-1, at most 63 long"
Name = Annotated[str, Meta(pattern=_NAME, extra={"expected": NAME_EXPECTED})]
# What the API server takes for a Lease (RFC 1123); `Name` would pass here and be refused there, for ever.
ObjectName = Annotated[
    str,
    Meta(
        pattern=rf"^[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?){{0,3}}{END}",
        extra={"expected": "a Kubernetes name of small letters, digits, - and . such as wattbalance"},
    ),
]
NamespaceName = Annotated[
    str,
    Meta(
        pattern=rf"^[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?{END}",
        extra={"expected": "a namespace of small letters, digits and - such as wattbalance, at most 63 long"},
    ),
]
LabelKey = Annotated[
    str, Meta(pattern=_LABEL_KEY, extra={"expected": "a label such as site or example.com/site"})
]
LabelValue = Annotated[
    str, Meta(pattern=_LABEL_VALUE, extra={"expected": "a label's value, at most 63 long"})
]
ResourceName = Annotated[
    str,
    Meta(
        pattern=_LABEL_KEY,
        extra={
            "expected": "a resource such as nvidia.com/gpu, by its whole name (a glob like nvidia.com/* is not taken)"
        },
    ),
]
FilePath = Annotated[str, Meta(min_length=1, max_length=4096, extra={"expected": "the path of a file"})]
Text = Annotated[str, Meta(min_length=1, max_length=253, extra={"expected": "text of 1 to 253 characters"})]
# Weights are relative; a thousand to one already silences the other policies.
Weight = Annotated[float, Meta(gt=0, le=1000, description="Relative weight of this policy's score.")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all settings."""


class Seconds(float):
    """A duration that may be zero, written with its unit."""

    EXPECTED: ClassVar[str] = "a duration such as 30s, 250ms or 4h30m"
    EXAMPLES: ClassVar[list[str]] = ["30s", "4h30m"]

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the file's text. Raises ValueError."""
        if not isinstance(value, str):
            message = f"expected {cls.EXPECTED}, got {shown(value)}"
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                message += " without a unit"
                with suppress(QuantityError):
                    parse_duration(f"{value}s")
                    message += f"; did you mean {value}s?"
            # Not a TypeError: msgspec gives a person only the text of a ValueError.
            raise ValueError(message)  # noqa: TRY004 - explained above
        return cls(parse_duration(value))

    def __str__(self) -> str:
        """Write it as the file does."""
        return format_duration(self)


class PositiveSeconds(Seconds):
    """A duration longer than zero."""

    EXPECTED: ClassVar[str] = "a duration longer than zero such as 30s, 250ms or 4h30m"

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the file's text. Raises ValueError."""
        seconds = super().parse(value)
        if seconds <= 0:
            raise ValueError(f"expected {cls.EXPECTED}, got {value!r}")
        return seconds


class Address(str):
    """Where a listener listens: `127.0.0.1:9443`, `[::]:9440`, `localhost:0` (any free port)."""

    __slots__ = ()
    EXPECTED: ClassVar[str] = "an address such as 127.0.0.1:9443 or [::1]:9443"
    EXAMPLES: ClassVar[list[str]] = ["127.0.0.1:9443", "[::]:9440"]

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the file's text. Raises ValueError."""
        match = re.fullmatch(
            r"(\[[0-9A-Fa-f:.%]{2,60}\]|[A-Za-z0-9][-A-Za-z0-9.]{0,252}):([0-9]{1,5})", str(value)
        )
        if not isinstance(value, str) or match is None or int(match[2]) > 65_535:
            raise ValueError(f"expected {cls.EXPECTED}, got {str(value)[:60]!r}")
        return cls(value)

    @property
    def host(self) -> str:
        """Host without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port; 0 takes any free one."""
        return int(self.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether only this machine (or pod) can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class BrokerUrl(str):
    """The MQTT broker: `mqtts://broker:8883`, or `mqtt://` without TLS."""

    __slots__ = ()
    EXPECTED: ClassVar[str] = "a broker such as mqtts://broker:8883 or mqtt://127.0.0.1:1883"
    EXAMPLES: ClassVar[list[str]] = ["mqtts://broker:8883"]

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the file's text. Raises ValueError, which never shows what may be a password."""
        if isinstance(value, str) and "@" in value:
            raise ValueError(
                "expected a broker without user or password (use username_file, password_file), got an @"
            )
        pattern = r"mqtts?://(\[[0-9A-Fa-f:.%]{2,60}\]|[A-Za-z0-9][-A-Za-z0-9_.]{0,252})(:[0-9]{1,5})?/?"
        match = re.fullmatch(pattern, str(value))
        if not isinstance(value, str) or match is None or not 0 < int((match[2] or ":1")[1:]) <= 65_535:
            raise ValueError(f"expected {cls.EXPECTED}, got {str(value)[:60]!r}")
        return cls(value.rstrip("/"))

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.startswith("mqtts:")

    @property
    def host(self) -> str:
        """Host without brackets."""
        return re.sub(r":[0-9]+$", "", self.partition("://")[2]).strip("[]")

    @property
    def port(self) -> int:
        """Port; MQTT's registered ones where none is given."""
        match = re.search(r":([0-9]+)$", self)
        return int(match[1]) if match else 8883 if self.tls else 1883


class PolicyUse:
    """One policy in a profile: its weight, and its arguments as written (checked when the file was loaded)."""

    EXPECTED: ClassVar[str] = "a mapping with weight and the policy's own arguments"
    __slots__ = ("options", "weight")

    def __init__(self, weight: float, **options: object) -> None:
        self.weight = weight
        self.options = options

    @classmethod
    def parse(cls, value: object) -> Self:
        """Split the weight from the rest. Raises ValueError."""
        if not isinstance(value, dict) or not isinstance(value.get("weight"), (int, float)):
            raise ValueError(f"expected {cls.EXPECTED}, got {shown(value)}")  # noqa: TRY004 - as above
        rest = {key: part for key, part in value.items() if key != "weight"}
        return cls(float(value["weight"]), **rest)

    def __eq__(self, other: object) -> bool:
        """Compare by value, so that a reload can tell what changed."""
        return isinstance(other, PolicyUse) and (self.weight, self.options) == (other.weight, other.options)

    def __hash__(self) -> int:
        """Agree with `==`."""
        return hash((self.weight, *sorted(self.options)))

    def __repr__(self) -> str:
        """Show as it would be constructed."""
        return f"PolicyUse(weight={self.weight}, {self.options})"
