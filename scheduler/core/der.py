"""From when until when a certificate holds: the one thing that Python's ssl tells only of those that it has verified.

Source: RFC 5280, section 4.1 (the order of the fields), and X.690, section 8.1 (how each is written).
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.units import QuantityError, parse_instant

_VERSION = 0xA0
_UTC_TIME = 0x17
# RFC 5280, 4.1.2.5.1: two digits of a year from 50 on are of the last century.
_PIVOT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """Between which two instants."""

    from_unix_s: float
    until_unix_s: float


def validity_of(der: bytes) -> Validity | None:
    """Read it from a certificate in DER; None from what is none."""
    try:
        _, at, _ = _element(der, 0)  # the certificate
        _, at, _ = _element(der, at)  # what of it is signed
        tag, _, end = _element(der, at)
        if tag == _VERSION:
            at = end
        for _ in ("serial number", "algorithm", "issuer"):
            _, _, at = _element(der, at)
        _, at, _ = _element(der, at)
        first, at = _instant(der, at)
        last, _ = _instant(der, at)
    except (IndexError, ValueError, QuantityError):
        return None
    return Validity(from_unix_s=first, until_unix_s=last)


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of an element, where its content begins, and where it ends."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size]), begin + size
    if begin + length > len(der):
        raise ValueError("it ends before it should")
    return der[at], begin, begin + length


def _instant(der: bytes, at: int) -> tuple[float, int]:
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= _PIVOT else "20") + text
    year, rest = text[:4], text[4:]
    stamp = f"{year}-{rest[:2]}-{rest[2:4]}T{rest[4:6]}:{rest[6:8]}:{rest[8:]}"
    return parse_instant(stamp), end
