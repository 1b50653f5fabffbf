"""One control plane and one broker for all tests; nodes, pods and our own processes are new in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler.simulate.ports import free_port
from tests.brokers import mosquitto_path
from tests.controlplane import WHY_NOT, Daemon, assets
from tests.e2e.system import Process, Replica, System, run_system
from tests.fakes.nvml_stub.stub import NvmlStub, compiler

StartAgent = Callable[..., tuple[Process, int]]


@pytest.fixture(scope="session")
def running_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if assets() is None:
        pytest.skip(WHY_NOT)
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed: scripts/install-debian installs it")
    with run_system(tmp_path_factory.mktemp("system"), audited=True) as system:
        yield system


@pytest.fixture
def system(running_system: System) -> Iterator[System]:
    try:
        yield running_system
    finally:
        running_system.clear()


@pytest.fixture
def replica(system: System) -> Replica:
    """One replica, as it comes."""
    return system.serve()


@pytest.fixture
def scheduler(system: System, replica: Replica) -> Iterator[Daemon]:
    """A kube-scheduler that asks it."""
    daemon = system.scheduler(replica.port)
    yield daemon
    daemon.stop()


@pytest.fixture
def controllers(system: System) -> Iterator[Daemon]:
    """The real controllers of Jobs and Deployments."""
    daemon = system.plane.start_controller_manager("job,deployment,replicaset,garbagecollector")
    yield daemon
    daemon.stop()


@pytest.fixture
def make_stub(tmp_path: Path) -> Callable[[str], NvmlStub]:
    """A GPU library per node, since each node has its own GPUs."""
    if compiler() is None:
        pytest.skip("no C compiler to build the stub of libnvidia-ml with")
    return lambda node: NvmlStub(tmp_path / node, gpus=8)


@pytest.fixture
def start_agent(system: System) -> StartAgent:
    """Start a node's agent on its stub; returns the process and the port of its metrics."""

    def start(node: str, stub: NvmlStub) -> tuple[Process, int]:
        port = free_port()
        arguments = ["agent", "--node", node, "--cluster", "test", "--broker", system.broker.url]
        process = system.start(f"agent-{node}", [*arguments, "--listen", f"127.0.0.1:{port}"], env=stub.env())
        return process, port

    return start
