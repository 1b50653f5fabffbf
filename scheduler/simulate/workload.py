"""Turn a trace into arrivals: who comes when, runs how long, and asks for what. docs/model.md states the rules.

Pure and seeded: the same trace, arguments and seed give the same arrivals on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from scheduler.core.errors import TraceError
from scheduler.core.nouns import Workload
from scheduler.simulate.traces import Trace, TraceTask
from scheduler.simulate.utilisation import draw_mean_util

SHORTEST_RUN_S = 60.0
LONGEST_RUN_S = 4 * 3600.0
# docs/model.md: 60 % training and batch.
INFERENCE_FRAC = 0.4
# qos of the trace: latency-sensitive and best-effort.
LATENCY_SENSITIVE = "LS"
BEST_EFFORT = "BE"


class RunTimes(Enum):
    """Where run times come from."""

    TRACE = "trace"
    """Each task's own, clipped."""
    EXPONENTIAL = "exponential"
    """Drawn anew for every arrival, with the mean of the trace's: no task is long by nature, and none very long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task of the trace as it is run here."""

    task: TraceTask
    gpus: int
    """Whole ones, or replicas of one."""
    workload: Workload
    run_s: float
    """In the trace's seconds; where run times are drawn, their mean."""

    @property
    def replicas(self) -> int:
        """How many pods share each GPU that it runs on."""
        return self.task.replicas

    @property
    def gpu_share(self) -> float:
        """How many GPUs' worth it takes."""
        return self.gpus / self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One pod to come. Times are seconds of the world's own clock (`at_s` after its start)."""

    name: str
    job: Job
    at_s: float
    run_s: float
    mean_util_frac: float

    @property
    def gpus(self) -> int:
        """Units of GPUs asked: whole ones, or replicas."""
        return self.job.gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What became of the trace's tasks; the summary shows each."""

    jobs: int
    cpu_only_left_out: int
    no_such_model_left_out: int
    """The task names only models that no node here has, or needs more GPUs or cores than any such node has."""
    sharing: int
    """They ask for a replica of a GPU."""
    shares_made_whole: int
    """They would share a GPU, and ask for a whole one: more than half of it, or no node here has replicas for it."""
    naming_a_model: int
    clipped: int
    """Run times outside 60 s to 4 h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One pod that runs when the world starts: `arrival.run_s` is what is left of it."""

    arrival: Arrival
    node: str


class WorkloadModel:
    """Jobs of a trace, and seeded streams of their arrivals."""

    def __init__(
        self,
        trace: Trace,
        *,
        load_frac: float,
        speed_per_s: float,
        seed: int,
        run_times: RunTimes = RunTimes.TRACE,
    ) -> None:
        """Prepare the jobs.

        Args:
            trace: Nodes and tasks; the nodes set the rate.
            load_frac: Offered GPU seconds over capacity.
            speed_per_s: Trace seconds per second of the world's clock.
            seed: Of everything drawn here.
            run_times: The trace's, or drawn.
        """
        self.trace = trace
        self.speed_per_s = speed_per_s
        self.load_frac = load_frac
        self._seed = seed
        self._drawn = run_times is RunTimes.EXPONENTIAL
        self.jobs, self.counted = _jobs(trace, np.random.default_rng([seed, 0]))
        if self._drawn:
            mean_s = float(np.mean([job.run_s for job in self.jobs]))
            self.jobs = [replace(job, run_s=mean_s) for job in self.jobs]
        gpu_s = np.array([job.gpu_share * job.run_s for job in self.jobs]) / speed_per_s
        self.mean_gpu_s = float(gpu_s.mean())
        """E[GPUs x run time] on the world's clock."""
        self.mean_run_s = float(np.mean([job.run_s for job in self.jobs])) / speed_per_s
        self.rate_per_s = load_frac * trace.gpus / self.mean_gpu_s

    def arrivals(self) -> Iterator[Arrival]:
        """The stream: exponential gaps; the trace's order permuted, and permuted anew each time it is used up."""
        rng = np.random.default_rng([self._seed, 1])
        at_s, lap = 0.0, 0
        while True:
            for index in rng.permutation(len(self.jobs)):
                job = self.jobs[int(index)]
                at_s += float(rng.exponential(1.0 / self.rate_per_s))
                yield self._arrival(job, f"{job.task.name}-{lap}", at_s, 1.0, rng)
            lap += 1

    def fill(self) -> list[Placed]:
        """Pods that run at the start, on nodes chosen at random, until GPUs are allocated to the load.

        In a steady state a job is met running in proportion to its run time, at an instant uniform within it.
        """
        rng = np.random.default_rng([self._seed, 2])
        room = Room(self.trace)
        weights = np.array([job.run_s for job in self.jobs])
        weights /= weights.sum()
        left = float(int(self.load_frac * self.trace.gpus))
        placed: list[Placed] = []
        # Some draws fit nowhere; ten times the GPUs is far more draws than filling takes.
        for turn in range(10 * self.trace.gpus):
            if left <= 0:
                break
            job = self.jobs[int(rng.choice(len(self.jobs), p=weights))]
            arrival = self._arrival(job, f"{job.task.name}-s{turn}", 0.0, float(rng.uniform(0.0, 1.0)), rng)
            fitting = room.fitting(job)
            if job.gpu_share > left or not fitting.size:
                continue
            row = int(rng.choice(fitting))
            room.take(row, job)
            left -= job.gpu_share
            placed.append(Placed(arrival=arrival, node=self.trace.nodes[row].name))
        return placed

    def _arrival(
        self, job: Job, name: str, at_s: float, left_frac: float, rng: np.random.Generator
    ) -> Arrival:
        mean_util_frac = draw_mean_util(job.workload, rng)
        # What is left of an exponential run time is distributed like a whole one.
        run_s = (
            float(rng.exponential(job.run_s)) if self._drawn else job.run_s * left_frac
        ) / self.speed_per_s
        return Arrival(name=name, job=job, at_s=at_s, run_s=run_s, mean_util_frac=mean_util_frac)


class Room:
    """What every node has left, by cpu, memory, GPUs and pods, as kube-scheduler would count it."""

    # The kubelet's own default for pods per node.
    MOST_PODS = 110

    def __init__(self, trace: Trace) -> None:
        nodes = trace.nodes
        self.trace = trace
        self.cpu_milli = np.array([node.cpu_milli for node in nodes], dtype=np.int64)
        self.memory_mib = np.array([node.memory_mib for node in nodes], dtype=np.int64)
        self.gpus = np.array([node.gpus * node.replicas for node in nodes], dtype=np.int64)
        """In units: whole ones, or the node's replicas of them."""
        self._replicas = np.array([node.replicas for node in nodes], dtype=np.int64)
        self.pods = np.full(len(nodes), self.MOST_PODS, dtype=np.int64)
        self._models = np.array([node.model for node in nodes])

    def fitting(self, job: Job) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Rows of the nodes where the job fits now."""
        task = job.task
        fits = (self.gpus >= job.gpus) & (self._replicas == job.replicas) & (self.pods > 0)
        fits &= (self.cpu_milli >= task.cpu_milli) & (self.memory_mib >= task.memory_mib)
        if task.models:
            fits &= np.isin(self._models, task.models)
        return np.flatnonzero(fits)

    def fits(self, row: int, job: Job) -> bool:
        """Whether the job fits on one node now."""
        task = job.task
        enough = self.gpus[row] >= job.gpus and self.pods[row] > 0 and self.cpu_milli[row] >= task.cpu_milli
        named = not task.models or self._models[row] in task.models
        enough &= self._replicas[row] == job.replicas
        return bool(enough and self.memory_mib[row] >= task.memory_mib and named)

    def take(self, row: int, job: Job) -> None:
        """Place the job."""
        self._change(row, job, 1)

    def give_back(self, row: int, job: Job) -> None:
        """The job has ended."""
        self._change(row, job, -1)

    def _change(self, row: int, job: Job, sign: int) -> None:
        self.cpu_milli[row] -= sign * job.task.cpu_milli
        self.memory_mib[row] -= sign * job.task.memory_mib
        self.gpus[row] -= sign * job.gpus
        self.pods[row] -= sign


def _jobs(trace: Trace, rng: np.random.Generator) -> tuple[list[Job], Counted]:
    asking = [task for task in trace.tasks if task.gpus > 0]
    room = Room(trace)
    workloads = _workloads(asking, rng)
    jobs = [
        Job(
            task=task,
            gpus=task.gpus,
            workload=workload,
            run_s=min(max(task.run_s, SHORTEST_RUN_S), LONGEST_RUN_S),
        )
        for task, workload in zip(asking, workloads, strict=True)
    ]
    possible = [job for job in jobs if room.fitting(job).size]
    if not possible:
        raise TraceError(
            trace.source, 0, "no task that asks for a GPU fits on any of the nodes: take more nodes"
        )
    counted = Counted(
        jobs=len(possible),
        cpu_only_left_out=len(trace.tasks) - len(asking),
        no_such_model_left_out=len(jobs) - len(possible),
        sharing=sum(job.replicas > 1 for job in possible),
        shares_made_whole=sum(job.task.shares_gpu and job.replicas == 1 for job in possible),
        naming_a_model=sum(bool(job.task.models) for job in possible),
        clipped=sum(job.run_s != job.task.run_s for job in possible),
    )
    return possible, counted


def _workloads(tasks: list[TraceTask], rng: np.random.Generator) -> list[Workload]:
    # Inference is 40 %: latency-sensitive tasks drawn at random, others only where a list has too few of them.
    score = rng.uniform(size=len(tasks)) + [task.qos != LATENCY_SENSITIVE for task in tasks]
    inference = set(np.argsort(score, kind="stable")[: round(INFERENCE_FRAC * len(tasks))].tolist())
    return [
        Workload.INFERENCE
        if index in inference
        else Workload.BATCH
        if task.qos == BEST_EFFORT
        else Workload.TRAINING
        for index, task in enumerate(tasks)
    ]
