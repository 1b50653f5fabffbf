"""The NVML stub, loaded into this process for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.nvml_stub.stub import NvmlStub, compiler


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[NvmlStub]:
    if compiler() is None:
        pytest.skip("SKIPPED ALOUD: no C compiler, so the stub of libnvidia-ml cannot be built")
    stub = NvmlStub(tmp_path / "nvml")
    stub.load()
    try:
        yield stub
    finally:
        stub.unload()
