"""Files that a configuration names, read only if they are files."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def check_regular(file: Path) -> None:
    """Refuse what is no file, before it is opened: a pipe would hold its reader for ever, a device fill it.

    A link is followed: a mounted Kubernetes secret is one.

    Raises:
        OSError: it is not there, may not be looked at, or is something else; the text names it.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(f"{file}: expected a file, got a directory, pipe or device")


def read_regular(file: Path) -> bytes:
    """Read a file whole; what is no file is refused. Raises OSError as `check_regular` does."""
    check_regular(file)
    return file.read_bytes()
