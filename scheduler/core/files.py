"""Files that a configuration names, read only if they are files."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


# Keys, certificates, tokens: the certificate authorities of a whole system take a quarter of a megabyte.
MOST_BYTES = 4 * 2**20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular(file: Path, most_bytes: int = MOST_BYTES) -> None:
    """Refuse what is no file, before it is opened: a pipe would hold its reader for ever, a device fill it.

    A link is followed: a mounted Kubernetes secret is one.

    Raises:
        OSError: it is not there, may not be looked at, is something else, or is larger than `most_bytes`; the
            text names it.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "a device")
        raise OSError(f"{file}: expected a file, got {kind}")
    if found.st_size > most_bytes:
        raise OSError(f"{file}: expected at most {most_bytes} bytes, got {found.st_size}")


def read_regular(file: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file whole; what is no file is refused. Raises OSError as `check_regular` does."""
    check_regular(file, most_bytes)
    return file.read_bytes()
