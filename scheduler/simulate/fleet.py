"""The agents of a whole simulated cluster in one process, each with its own connection to a real broker.

What travels is what a real agent sends (inventory, status with last will, samples), by the agent's own publisher. The
samples of all nodes are spread evenly over the interval; a big fleet stretches it, so that one process can keep up.
Watts and joules are those of wall time, whatever the speed of the simulated jobs.
"""

from __future__ import annotations

import asyncio
import resource
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.core.aio import guard
from scheduler.core.clock import Clock
from scheduler.core.errors import SchedulerError
from scheduler.device.simulated import COOLEST_C, WARMING_C
from scheduler.simulate.traces import TraceNode
from scheduler.simulate.utilisation import OTHER_MODEL, FloatArray, LoadModel, gpu_model
from scheduler.telemetry.bus import BrokerSettings, NodePublisher
from scheduler.telemetry.sample import (
    SCHEMA_VERSION,
    GpuInventory,
    Inventory,
    Sample,
    encode,
    inventory_hash,
)

# 400 samples a second over 1,213 connections take 0.13 of a core (measured 2026-11-21); the world has more to do than
# that, and the daemon on the other side as well.
MOST_SAMPLES_PER_S = 400.0
# How often the pacing loop wakes: fine enough to look like a steady stream.
_TURN_S = 0.05
# Fields that rarely change are sent this often.
_SLOW_FIELDS_S = 10.0
# Connections are opened this far apart: a thousand at once overrun the broker's backlog.
_CONNECT_GAP_S = 0.002
# Files that a process needs besides its connections; a guess, generous.
_OTHER_FILES = 200


# What is on the wire beside load and power (docs/model.md): for something to look at, so simple and invented but for
# the clocks, which are the boost clocks of vendors' data sheets.
MEMORY_BUSY_FRAC = 0.5
MEMORY_USED_FRAC = 0.8
IDLE_CLOCK_MHZ = 300.0
BOOST_CLOCK_MHZ = {
    "V100M16": 1530.0,
    "V100M32": 1530.0,
    "P100": 1303.0,
    "T4": 1590.0,
    "A10": 1695.0,
    "G2": 1695.0,
    "G3": 1410.0,
}


class TooFewFiles(SchedulerError):
    """The system does not let us open as many files as there are nodes; the message says what to raise."""


def interval_for(nodes: int, interval_s: float = 1.0) -> float:
    """Seconds between two samples of one node: as asked, or longer for a big fleet."""
    return max(interval_s, nodes / MOST_SAMPLES_PER_S)


def raise_file_limit(nodes: int) -> None:
    """Let this process, and the children it starts later, open a file per node. Call it before the broker starts.

    Raises:
        TooFewFiles: The hard limit is too low; only a person can raise it.
    """
    wanted = nodes + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return
    if hard != unlimited and hard < wanted:
        raise TooFewFiles(
            f"{nodes} nodes need {wanted} open files (a connection of each agent), and the hard limit here is {hard}: "
            f"raise it as root (`ulimit -Hn {wanted}`), or take fewer --nodes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(slots=True)
class _Agent:
    """One node's agent."""

    row: int
    node: TraceNode
    publisher: NodePublisher
    agent_id: str
    boot_id: str
    inventory: str
    seq: int = 0
    last_mono_s: float | None = None
    slow_mono_s: float | None = None


class Fleet:
    """All agents of a cluster; reads and advances one LoadModel."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        cluster: str,
        nodes: Sequence[TraceNode],
        load: LoadModel,
        clock: Clock,
        interval_s: float | None = None,
    ) -> None:
        """Prepare; nothing is connected before run().

        Args:
            settings: Where the broker is.
            cluster: Second level of the topics.
            nodes: Rows of `load`, in its order.
            load: What the GPUs are doing. Only run() advances it.
            clock: For intervals and for the samples' instants.
            interval_s: Between samples of one node; None takes interval_for().
        """
        self.interval_s = interval_for(len(nodes)) if interval_s is None else interval_s
        self._load = load
        self._clock = clock
        self._due = 0.0
        self._offered = 0
        self._agents = [
            self._agent(row, node, NodePublisher(settings, cluster=cluster, node=node.name, clock=clock))
            for row, node in enumerate(nodes)
        ]

    @property
    def connected(self) -> int:
        """Nodes whose agent has a connection now."""
        return sum(agent.publisher.connected for agent in self._agents)

    @property
    def published(self) -> int:
        """Samples handed to connections."""
        return sum(agent.publisher.published for agent in self._agents)

    @property
    def due(self) -> float:
        """Samples that should have been offered since the first; a stalled process offers fewer."""
        return self._due

    @property
    def offered(self) -> int:
        """Samples that were."""
        return self._offered

    @property
    def dropped(self) -> int:
        """Samples that a newer one replaced before they could be sent."""
        return sum(agent.publisher.dropped for agent in self._agents)

    async def wait_connected(self) -> None:
        """Return once every agent is connected. Give it a time limit."""
        while self.connected < len(self._agents):  # noqa: ASYNC110  # A count over publishers has no event.
            await asyncio.sleep(_TURN_S)

    async def run(self) -> NoReturn:
        """Publish until cancelled; every agent then says `offline`."""
        async with asyncio.TaskGroup() as group:
            for agent in self._agents:
                name = f"simulate.agent[{agent.node.name}]"
                group.create_task(guard(name, agent.publisher.run()), name=name)
                await asyncio.sleep(_CONNECT_GAP_S)
            group.create_task(guard("simulate.pace", self._pace()), name="simulate.pace")
        raise AssertionError  # pragma: no cover  # Guarded loops never end without an error.

    async def _pace(self) -> NoReturn:
        """Offer samples in a steady round through all nodes, and let the load model's time pass."""
        count = len(self._agents)
        last_mono_s = self._clock.mono_s()
        due = 0.0
        position = 0
        while True:
            await asyncio.sleep(_TURN_S)
            now_mono_s = self._clock.mono_s()
            span_s, last_mono_s = now_mono_s - last_mono_s, now_mono_s
            self._load.advance(span_s)
            # After a stall each node is due once: late samples are not made up for.
            self._due += span_s / self.interval_s * count
            due = min(due + span_s / self.interval_s * count, float(count))
            self._offered += int(due)
            for _ in range(int(due)):
                agent = self._agents[position]
                position = (position + 1) % count
                agent.publisher.offer(encode(self._sample(agent, now_mono_s)))
            due -= int(due)

    def _sample(self, agent: _Agent, now_mono_s: float) -> Sample:
        row, gpus = agent.row, agent.node.gpus
        power_w = np.round(self._load.power_w[row, :gpus], 2).tolist()
        util_frac = np.round(self._load.util_frac[row, :gpus], 3).tolist()
        limit_w = self._load.limit_w[row, :gpus].tolist()
        span_s = self.interval_s if agent.last_mono_s is None else max(now_mono_s - agent.last_mono_s, 1e-3)
        agent.last_mono_s = now_mono_s
        agent.seq += 1
        sample = Sample(
            v=SCHEMA_VERSION,
            node=agent.node.name,
            agent=agent.agent_id,
            boot=agent.boot_id,
            seq=agent.seq,
            unix_s=self._clock.unix_s(),
            span_s=span_s,
            inventory=agent.inventory,
            state=["ok"] * gpus,
            power_w=power_w,
            util_frac=util_frac,
            energy_j=np.round(self._load.energy_j[row, :gpus], 2).tolist(),
            power_max_w=power_w,
            util_max_frac=util_frac,
            mem_util_frac=np.round(MEMORY_BUSY_FRAC * self._load.util_frac[row, :gpus], 3).tolist(),
            mem_used_bytes=_memory_used(agent.node, util_frac),
            temp_c=_temperatures(self._load.power_w[row, :gpus], self._load.limit_w[row, :gpus]),
            sm_clock_mhz=_clocks(agent.node, self._load.busy[row, :gpus]),
            limit_w=limit_w,
            energy_epoch=[0] * gpus,
        )
        if agent.slow_mono_s is not None and now_mono_s - agent.slow_mono_s < _SLOW_FIELDS_S:
            return sample
        agent.slow_mono_s = now_mono_s
        return _with_slow_fields(sample, limit_w)

    def _agent(self, row: int, node: TraceNode, publisher: NodePublisher) -> _Agent:
        payload = encode(inventory_of(node))
        publisher.set_inventory(payload)
        # New with each run of ours, as a real agent's would be with each process.
        return _Agent(row, node, publisher, uuid.uuid4().hex, uuid.uuid4().hex, inventory_hash(payload))


def inventory_of(node: TraceNode) -> Inventory:
    """What a node's agent says it has."""
    model = gpu_model(node.model)
    gpus = [
        GpuInventory(
            uuid=f"GPU-{node.name}-{index}",
            model=node.model,
            index=index,
            memory_total_bytes=model.memory_bytes,
            limit_min_w=model.limit_min_w,
            limit_max_w=model.limit_w,
            limit_default_w=model.limit_w,
            power_domain=f"GPU-{node.name}-{index}",
            mig_enabled=False,
        )
        for index in range(node.gpus)
    ]
    return Inventory(
        v=SCHEMA_VERSION, node=node.name, gpus=gpus, driver="simulated", agent_version="simulated"
    )


def _temperatures(power_w: FloatArray, limit_w: FloatArray) -> list[float | None]:
    return [*np.round(COOLEST_C + WARMING_C * power_w / limit_w, 1).tolist()]


def _clocks(node: TraceNode, busy: NDArray[np.bool_]) -> list[float | None]:
    boost_mhz = BOOST_CLOCK_MHZ.get(node.model, BOOST_CLOCK_MHZ[OTHER_MODEL])
    return [boost_mhz if at_work else IDLE_CLOCK_MHZ for at_work in busy.tolist()]


def _memory_used(node: TraceNode, util_frac: list[float]) -> list[int | None]:
    total_bytes = gpu_model(node.model).memory_bytes
    return [int(MEMORY_USED_FRAC * total_bytes * frac) for frac in util_frac]


def _with_slow_fields(sample: Sample, limit_w: list[float]) -> Sample:
    count = len(limit_w)
    return msgspec.structs.replace(
        sample,
        limit_requested_w=limit_w,
        throttle=[[]] * count,
        ecc_uncorrected=[0] * count,
        remapped_rows=[0] * count,
        xid=[None] * count,
    )
