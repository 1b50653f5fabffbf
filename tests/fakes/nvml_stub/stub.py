"""Builds the stub of libnvidia-ml and writes the readings and faults that it answers with.

In this process: `stub.load()`. In another: start it with `stub.env()`. Either sees a change at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import pynvml

SOURCE = Path(__file__).with_name("stub.c")
STATE_VARIABLE = "WATTBALANCE_NVML_STUB"
THREAD_PREFIX = "device."
BLOCK = 128
FIRST_FAULT = 64
XIDS_KEPT = 16

HEADER_WORDS = ("count", "calls", "xid_seq", "listeners", "event_poll_ms", "driver")
"""`event_poll_ms`: how often a wait for events looks, 2 if 0; a real driver sleeps until there is one. `driver` is text
over four words, so it stands last.
"""
LIBRARY_FUNCTIONS = (
    "init",
    "shutdown",
    "count",
    "handle",
    "driver_version",
    "event_set",
    "event_wait",
)
FIELDS = (
    "uuid",
    "pci_bus",
    "power_mw",
    "power_average_mw",
    "power_instant_mw",
    "limit_requested_mw",
    "limit_default_mw",
    "limit_min_mw",
    "limit_max_mw",
    "out_of_band_cap_mw",
    "energy_mj",
    "util_pct",
    "mem_util_pct",
    "mem_total",
    "mem_used",
    "mem_reserved",
    "temp_c",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "throttle",
    "ecc_corrected",
    "ecc_uncorrected",
    "remapped_correctable",
    "remapped_uncorrectable",
    "mig",
    "event_types",
    "sets",
    "ignore_sets",
    "numa_node",
    "pcie_switch",
    "nvlinks",
    "nvlink_peer",
    "p2p_status",
    "name",
)
"""`name` is text over eight words, so it stands last. `nvlink_peer`: 0 is a switch, n is GPU n - 1."""
FUNCTIONS = (
    "all",
    "handle_by_index",
    "uuid",
    "name",
    "pci",
    "power",
    "limit",
    "limit_requested",
    "limit_default",
    "constraints",
    "set_limit",
    "energy",
    "event_reasons",
    "throttle_reasons",
    "event_types",
    "utilisation",
    "memory",
    "memory_v2",
    "temperature",
    "temperature_v",
    "clock",
    "ecc",
    "remapped",
    "mig",
    "processes",
    "fields",
    "field_energy",
    "field_power_average",
    "field_power_instant",
    "register_events",
    "nvlink_state",
    "nvlink_remote",
    "ancestor",
    "p2p",
)
"""What `fault` can break on one GPU; `all` comes before any other."""

# Where the ring of XIDs begins, three words each: GPU, code, event type.
_XIDS = 32
XID_EVENT = 8
DOUBLE_BIT_ECC_EVENT = 2

# An A100-SXM4-80GB at work, in the driver's units.
_A_GPU = {
    "power_mw": 250_000,
    "power_average_mw": 251_000,
    "power_instant_mw": 252_500,
    "limit_requested_mw": 400_000,
    "limit_default_mw": 400_000,
    "limit_min_mw": 100_000,
    "limit_max_mw": 400_000,
    "energy_mj": 1_000_000,
    "util_pct": 60,
    "mem_util_pct": 30,
    "mem_total": 80 * 1024**3,
    "mem_used": 10 * 1024**3,
    "mem_reserved": 512 * 1024**2,
    "temp_c": 55,
    "sm_clock_mhz": 1410,
    "mem_clock_mhz": 1593,
    "throttle": 4,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "remapped_correctable": 1,
    "remapped_uncorrectable": 2,
    "event_types": XID_EVENT | DOUBLE_BIT_ECC_EVENT | 1,
    "nvlinks": 12,
}


def compiler() -> str | None:
    """Find a C compiler; without one the stub cannot be built."""
    return shutil.which("gcc") or shutil.which("cc")


def _words() -> str:
    numbers = {word.upper(): at for at, word in enumerate(HEADER_WORDS)}
    numbers |= {f"F_{word.upper()}": FIRST_FAULT + at for at, word in enumerate(LIBRARY_FUNCTIONS)}
    numbers |= {word.upper(): at for at, word in enumerate(FIELDS)}
    numbers |= {f"F_{word.upper()}": FIRST_FAULT + at for at, word in enumerate(FUNCTIONS)}
    numbers |= {"BLOCK": BLOCK, "XIDS": _XIDS, "XIDS_KEPT": XIDS_KEPT}
    return "".join(f"#define {name} {number}\n" for name, number in numbers.items())


@cache
def _built() -> bytes:
    """Compile once per process; each stub gets its own copy of the library, so its own globals."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "words.h").write_text(_words())
        library = Path(folder) / "libnvidia-ml.so.1"
        found = compiler()
        if found is None:
            raise FileNotFoundError("no C compiler")
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run([found, *flags, "-I", folder, "-o", library, SOURCE], check=True)
        return library.read_bytes()


class NvmlStub:
    """One folder with a libnvidia-ml.so.1 and the state file that it reads."""

    was_loaded = False
    """Whether this process ever loaded a stub: from then on it cannot find a real library any more."""

    def __init__(self, folder: Path, gpus: int = 8) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.library = folder / "libnvidia-ml.so.1"
        self.library.write_bytes(_built())
        self.state = folder / "nvml-state"
        self.state.write_bytes(bytes(8 * BLOCK * (gpus + 1)))
        with self.state.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("Q")
        self.gpus = gpus
        self._words[HEADER_WORDS.index("count")] = gpus
        self._write_text(HEADER_WORDS.index("driver"), "580.95.05", 4)
        for gpu in range(gpus):
            for field, value in _A_GPU.items():
                self.set(gpu, field, value)
            self.set(gpu, "uuid", 0xA000 + gpu)
            self.set(gpu, "pci_bus", 0x10 + gpu)
            # Two processors, and pairs of GPUs that share a PCIe switch.
            self.set(gpu, "numa_node", gpu // 4)
            self.set(gpu, "pcie_switch", gpu // 2)
            self.set(gpu, "name", "NVIDIA A100-SXM4-80GB")

    def env(self) -> dict[str, str]:
        """Return what a child process needs in its environment to find this stub."""
        before = os.environ.get("LD_LIBRARY_PATH")
        path = f"{self.folder}:{before}" if before else str(self.folder)
        return {"LD_LIBRARY_PATH": path, STATE_VARIABLE: str(self.state)}

    def load(self) -> None:
        """Make pynvml in this process use this stub, whatever it used before."""
        os.environ[STATE_VARIABLE] = str(self.state)
        pynvml.nvmlLib = ctypes.CDLL(str(self.library))
        NvmlStub.was_loaded = True
        pynvml._nvmlGetFunctionPointer_cache.clear()

    def unload(self) -> None:
        """End every hang, wait for the adapter's threads and leave pynvml without a library."""
        self.clear_faults()
        for thread in threading.enumerate():
            if thread.name.startswith(THREAD_PREFIX):
                # They end by themselves once nothing hangs; the bound keeps a broken adapter from stopping all.
                thread.join(timeout=10.0)
        os.environ.pop(STATE_VARIABLE, None)
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()

    def set(self, gpu: int, field: str, value: float | str) -> None:
        """Set what a GPU answers, in the driver's own unit (milliwatts, millijoules, percent, bytes)."""
        at = BLOCK * (gpu + 1) + FIELDS.index(field)
        if isinstance(value, str):
            self._write_text(at, value, 8)
        else:
            self._words[at] = int(value)

    def get(self, gpu: int, field: str) -> int:
        """Read what a GPU answers, so also what was set through the driver."""
        return self._words[BLOCK * (gpu + 1) + FIELDS.index(field)]

    def fault(self, gpu: int | None, function: str, code: int = 0, hang_ms: int = 0) -> None:
        """Let a function hang and then answer a code; code 0 and no hang heal it. GPU None: a library function."""
        names = LIBRARY_FUNCTIONS if gpu is None else FUNCTIONS
        block = 0 if gpu is None else gpu + 1
        self._words[BLOCK * block + FIRST_FAULT + names.index(function)] = hang_ms << 32 | code

    def clear_faults(self) -> None:
        """Heal everything; whoever hangs comes back at once."""
        for gpu in range(-1, self.gpus):
            start = BLOCK * (gpu + 1) + FIRST_FAULT
            for at in range(start, start + BLOCK - FIRST_FAULT):
                self._words[at] = 0

    def xid(self, gpu: int, code: int, event: int = XID_EVENT) -> None:
        """Let the driver report an XID, or with another event type what that event carries."""
        seq = self._words[HEADER_WORDS.index("xid_seq")]
        at = _XIDS + 3 * (seq % XIDS_KEPT)
        self._words[at], self._words[at + 1], self._words[at + 2] = gpu, code, event
        self._words[HEADER_WORDS.index("xid_seq")] = seq + 1

    def look_for_events_every(self, poll_ms: int) -> None:
        """Make waiting for events cheaper and later, for whoever measures what else a process costs."""
        self._words[HEADER_WORDS.index("event_poll_ms")] = poll_ms

    def set_count(self, gpus: int) -> None:
        """Let the last GPUs vanish, as after a driver reload that does not find them again."""
        self._words[HEADER_WORDS.index("count")] = gpus

    @property
    def calls(self) -> int:
        """How many calls reached the library, a hanging one included."""
        return self._words[HEADER_WORDS.index("calls")]

    @property
    def listeners(self) -> int:
        """How many GPUs were registered for events, over all event sets."""
        return self._words[HEADER_WORDS.index("listeners")]

    def _write_text(self, at: int, value: str, words: int) -> None:
        padded = value.encode()[: 8 * words - 1].ljust(8 * words, b"\0")
        for word in range(words):
            self._words[at + word] = int.from_bytes(padded[8 * word : 8 * word + 8], "little")
