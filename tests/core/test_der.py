"""From when until when a certificate holds, as another reader of certificates has it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scheduler.core.der import validity_of


def certificate(begins: datetime, ends: datetime, name: str = "a") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    made = builder.serial_number(2**150 + 1).not_valid_before(begins).not_valid_after(ends)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC)),
        # From 2050 on with four digits of a year.
        (datetime(1999, 12, 31, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
        (datetime(2049, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_both_instants_are_read(begins: datetime, ends: datetime) -> None:
    found = validity_of(certificate(begins, ends, name="n" * 64))
    assert found is not None
    assert (found.from_unix_s, found.until_unix_s) == (begins.timestamp(), ends.timestamp())


def test_what_is_no_certificate_or_ends_early_has_none() -> None:
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    whole = certificate(begins, begins + timedelta(days=1))
    for length in range(len(whole)):
        assert validity_of(whole[:length]) is None
    for wrong in (b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\xff" * 50, b"\x30\x80" * 50):
        assert validity_of(wrong) is None
