"""How the demo ends when it cannot end well."""

from __future__ import annotations

import os
import subprocess
import sys

from scheduler.simulate.ending import INTERRUPTED

CODE = "from scheduler.simulate import ending; ending._give_up()"


def test_giving_up_ends_the_process_though_nobody_reads_what_it_says() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run([sys.executable, "-c", CODE], stderr=write, check=False, timeout=60)
    finally:
        os.close(write)
    assert ended.returncode == INTERRUPTED
