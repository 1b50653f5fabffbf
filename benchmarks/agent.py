"""What an agent costs its node: `wattbalance agent`, 8 GPUs through NVML, one message a second to a real mosquitto.

    python -m benchmarks.agent [--seconds 30]

Four agents at once, as real processes: sampling at 1 Hz and at 5 Hz, over TCP and over TLS with a client certificate.
The library that they load is the tests' stub of libnvidia-ml, which answers at once: what a real driver takes is on
top of it. Beside each, as the floor, a process that makes the same calls at the same rate through pynvml and
publishes the numbers with plain paho, and does nothing else: no deadlines, no metrics, no means, no reconnecting.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks._measure import Child, cpu_s, memory_bytes, verdict
from scheduler.telemetry.topics import SAMPLES, node_topic

CLUSTER = "bench"
GPUS = 8
RATES_HZ = (1.0, 5.0)
# Imports, connecting, and the first publish; all that an agent does only once.
WARM_S = 5.0
PATIENCE_S = 120.0
RARE_S = 10.0
MOST_CORE_PERCENT = {1.0: 0.3, 5.0: 1.0}
MOST_MIB = 40.0


# --- the floor -------------------------------------------------------------------------------------------------------


def connect(name: str, url: str, files: Sequence[str]) -> paho.Client:
    """Connect with plain paho; `files` are CA, certificate and key, or none."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    if files:
        client.tls_set(ca_certs=files[0], certfile=files[1], keyfile=files[2])
    where = urlsplit(url)
    client.connect(str(where.hostname), int(where.port or 0))
    return client


def read_and_publish(node: str, url: str, sample_hz: float, files: Sequence[str]) -> None:
    """Read what the agent reads and publish it, with nothing in between."""
    import pynvml  # here: the parent must not load a library that only the children may find

    client = connect(node, url, files)
    client.loop_start()
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    rare: list[list[object]] = []
    looks, rare_due_s, next_s = 0, 0.0, time.monotonic()
    while True:
        rows = [look(pynvml, handle) for handle in handles]
        if time.monotonic() >= rare_due_s:
            rare_due_s = time.monotonic() + RARE_S
            rare = [look_rarely(pynvml, handle) for handle in handles]
        looks += 1
        if looks % round(sample_hz) == 0:
            columns = [*zip(*rows, strict=True), *zip(*rare, strict=True)]
            client.publish(node_topic(CLUSTER, node, SAMPLES), json.dumps(columns))
        next_s += 1.0 / sample_hz
        time.sleep(max(0.0, next_s - time.monotonic()))


def look(nvml: Any, handle: object) -> list[object]:
    """Make the calls that the agent makes at each look."""
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return [
        *(field.value.ullVal for field in nvml.nvmlDeviceGetFieldValues(handle, [186, 185, 83])),
        rates.gpu,
        rates.memory,
        nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used,
        nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
    ]


def look_rarely(nvml: Any, handle: object) -> list[object]:
    """Make the calls that it makes every ten seconds."""
    return [
        nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        nvml.nvmlDeviceGetPowerManagementLimit(handle),
        nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle),
        nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle),
        nvml.nvmlDeviceGetTotalEccErrors(handle, 0, 0),
        nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 0),
        nvml.nvmlDeviceGetRemappedRows(handle),
        nvml.nvmlDeviceGetMigMode(handle),
    ]


# --- the measurement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One agent and its floor."""

    sample_hz: float
    url: str
    files: tuple[str, ...]

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.sample_hz:g} Hz, {'TLS' if self.files else 'TCP'}"

    def node(self, kind: str) -> str:
        """What a process of it calls itself."""
        return f"{kind}-{self.sample_hz:g}-{'tls' if self.files else 'tcp'}"

    def agent(self) -> Child:
        """Start the real agent, as a node would."""
        options = ("--ca-file", "--cert-file", "--key-file")
        return Child(
            *("scheduler.cli", "agent", "--node", self.node("agent"), "--cluster", CLUSTER),
            *("--broker", self.url, "--sample-hz", f"{self.sample_hz}", "--listen", "127.0.0.1:0"),
            *(word for pair in zip(options, self.files, strict=False) for word in pair),
            stderr=subprocess.DEVNULL,
        )

    def floor(self) -> Child:
        """Start what it is compared with."""
        return Child(
            *("benchmarks.agent", "--role", "floor", "--node", self.node("floor"), "--url", self.url),
            *("--hz", f"{self.sample_hz}", "--files", *self.files),
        )


class Listener:
    """Counts the messages of each node, as the broker hands them on."""

    def __init__(self, url: str, files: Sequence[str]) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._client = connect("listener", url, files)
        self._client.on_message = self._take
        self._client.subscribe(node_topic(CLUSTER, "+", SAMPLES))
        self._client.loop_start()

    def _take(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with self._lock:
            self._counts[message.topic.split("/")[4]] += 1

    def seen(self) -> Counter[str]:
        """How many so far."""
        with self._lock:
            return Counter(self._counts)

    def stop(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def wait_for_all(listeners: Sequence[Listener], nodes: int) -> None:
    """Return once every process has published, so has finished whatever it does only once."""
    until_s = time.monotonic() + PATIENCE_S
    while sum(len(listener.seen()) for listener in listeners) < nodes:
        if time.monotonic() > until_s:
            message = f"not all of {nodes} processes published within {PATIENCE_S:g} s"
            raise TimeoutError(message)
        time.sleep(0.1)
    time.sleep(WARM_S)


def compile_once(folder: Path) -> None:
    """Give the children bytecode, as an installed package has it: compiling at start would show in their peak."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    for module, *words in (("scheduler.cli", "agent", "--once"), ("benchmarks.agent", "--help")):
        subprocess.run([sys.executable, "-m", module, *words], stdout=subprocess.DEVNULL, check=True)


def measure(seconds_s: float) -> None:
    """Run all agents and floors at once, and print what each took."""
    from tests.brokers import Authority, run_mosquitto
    from tests.fakes.nvml_stub.stub import NvmlStub

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("plain", "secure"):
            (folder / name).mkdir()
        stub = NvmlStub(folder / "nvml", gpus=GPUS)
        # A real driver sleeps until there is an event; the stub looks, and that would be what is measured.
        stub.look_for_events_every(1000)
        os.environ.update(stub.env())
        compile_once(folder)
        authority = Authority(folder)
        identity = authority.issue("node")
        files = (authority.ca_file, identity.cert_file, identity.key_file)
        plain = stack.enter_context(run_mosquitto(folder / "plain"))
        options = ["require_certificate true", "allow_anonymous true"]
        secure = stack.enter_context(run_mosquitto(folder / "secure", options=options, authority=authority))
        doors: list[tuple[str, tuple[str, ...]]] = [(plain.url, ()), (secure.url, files)]
        listeners = [Listener(*door) for door in doors]
        for listener in listeners:
            stack.callback(listener.stop)
        cases = [Case(sample_hz=hz, url=url, files=files) for url, files in doors for hz in RATES_HZ]
        children = {}
        for case in cases:
            children[case.node("agent")] = stack.enter_context(case.agent())
            children[case.node("floor")] = stack.enter_context(case.floor())
        wait_for_all(listeners, len(children))

        began_s = time.monotonic()
        spent_s = {name: cpu_s(child.pid) for name, child in children.items()}
        before = sum((listener.seen() for listener in listeners), Counter[str]())
        time.sleep(seconds_s)
        took_s = time.monotonic() - began_s
        core_frac = {name: (cpu_s(child.pid) - spent_s[name]) / took_s for name, child in children.items()}
        after = sum((listener.seen() for listener in listeners), Counter[str]())
        rss_mib = {name: memory_bytes(child.pid) / 2**20 for name, child in children.items()}
        peak_mib = {name: memory_bytes(child.pid, "VmHWM") / 2**20 for name, child in children.items()}

    print(f"{GPUS} GPUs, one message a second, {took_s:.0f} s")
    print(f"  {'':26}{'% of a core':>12}{'messages/s':>12}{'RSS MiB':>9}{'peak MiB':>10}")
    for case in cases:
        for kind, label in (("agent", case.label), ("floor", "  pynvml and paho alone")):
            name = case.node(kind)
            print(
                f"  {label:26}{core_frac[name] * 100:12.3f}{(after[name] - before[name]) / took_s:12.2f}"
                f"{rss_mib[name]:9.1f}{peak_mib[name]:10.1f}"
            )
    print()
    for case in cases:
        name = case.node("agent")
        verdict(f"% of a core, {case.label}", core_frac[name] * 100, MOST_CORE_PERCENT[case.sample_hz], " %")
    agents = [case.node("agent") for case in cases]
    # The window cuts one message off at either end.
    slowest = min(after[name] - before[name] for name in agents)
    verdict("messages of the slowest agent", slowest, int(took_s) - 1, at_least=True)
    verdict("peak memory of the largest agent", max(peak_mib[name] for name in agents), MOST_MIB, " MiB")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    for hidden in ("--role", "--node", "--url"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--hz", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs="*", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "floor":
        read_and_publish(args.node, args.url, args.hz, args.files)
    else:
        measure(args.seconds)


if __name__ == "__main__":
    main()
