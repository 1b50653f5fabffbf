"""What is no file is refused by its kind, before it is opened."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from scheduler.core.files import MOST_BYTES, check_regular, read_regular


def test_what_is_no_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        want = {
            tmp_path: "a directory",
            tmp_path / "pipe": "a pipe",
            tmp_path / "socket": "a socket",
            Path("/dev/zero"): "a device",
        }
        for path, kind in want.items():
            with pytest.raises(OSError, match=re.escape(f"{path}: expected a file, got {kind}")):
                check_regular(path)


def test_a_file_that_is_too_large_to_be_one_of_ours_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * MOST_BYTES)
    assert len(read_regular(file)) == MOST_BYTES
    with file.open("ab") as more:
        more.write(b"x")
    with pytest.raises(OSError, match=f"expected at most {MOST_BYTES} bytes, got {MOST_BYTES + 1}"):
        read_regular(file)
