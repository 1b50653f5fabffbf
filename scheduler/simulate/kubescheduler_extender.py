"""kube-scheduler's side of the extender protocol, as far as the wire shows it."""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import msgspec
import numpy as np

from scheduler.core.errors import SchedulerError

T = TypeVar("T")

# Latencies kept of each verb, newest last: a million calls of a long demo must not grow it.
_LATENCIES_MAX = 100_000


class ExtenderFailed(SchedulerError):
    """A call failed: no answer in time, another status than 200, not the right JSON, or an `Error` in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtenderConfig:
    """One entry of `extenders` in a KubeSchedulerConfiguration; only node names are sent (nodeCacheCapable)."""

    url_prefix: str
    filter_verb: str = "filter"
    prioritize_verb: str = "prioritize"
    weight: int = 1
    http_timeout_s: float = 5.0
    ignorable: bool = False
    managed_resources: frozenset[str] = frozenset()
    """Only pods that ask one of these are sent; all pods if empty."""
    tls: ssl.SSLContext | None = None

    def manages(self, amounts: dict[str, float]) -> bool:
        """Whether a pod that asks so is sent to this extender."""
        return not self.managed_resources or any(name in amounts for name in self.managed_resources)


class Latencies:
    """The newest latencies of one verb, bounded."""

    def __init__(self) -> None:
        self._seconds = np.zeros(_LATENCIES_MAX)
        self.count = 0
        """Calls ever made."""

    def add(self, seconds_s: float) -> None:
        """One more call."""
        self._seconds[self.count % _LATENCIES_MAX] = seconds_s
        self.count += 1

    def values_s(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Those kept, in no order."""
        return self._seconds[: min(self.count, _LATENCIES_MAX)].copy()

    def percentile_s(self, percent: float) -> float:
        """E.g. 99; not a number before the first call."""
        return float(np.percentile(self.values_s(), percent)) if self.count else float("nan")


class _FilterAnswer(msgspec.Struct, rename="pascal"):
    node_names: list[str] | None = None
    failed_nodes: dict[str, str] | None = None
    failed_and_unresolvable_nodes: dict[str, str] | None = None
    error: str = ""


class _HostPriority(msgspec.Struct, rename="pascal"):
    host: str
    score: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """Nodes left, and why others are not."""

    names: list[str]
    failed: dict[str, str]


@dataclass(slots=True)
class ExtenderClient:
    """Calls one extender over keep-alive HTTP, without retries, as kube-scheduler does."""

    config: ExtenderConfig
    read_mono_s: Callable[[], float] = time.perf_counter
    """Measures calls; a latency is of the real machine even where the cluster's clock is not."""
    latencies: dict[str, Latencies] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    on_call: Callable[[str, float], None] | None = None
    """Told of each call, answered or not: verb and seconds."""
    _session: aiohttp.ClientSession | None = None

    async def filter(self, pod: bytes, names: list[str]) -> Filtered:
        """Raises ExtenderFailed."""
        answer = await self._call(self.config.filter_verb, pod, names, _FilterAnswer)
        if answer.error:
            raise self._failed(self.config.filter_verb, answer.error)
        left = answer.node_names or []
        if unknown := set(left).difference(names):
            raise self._failed(self.config.filter_verb, f"unknown node {min(unknown)}")
        # The unresolvable reason wins where a node has both.
        failed = {**(answer.failed_nodes or {}), **(answer.failed_and_unresolvable_nodes or {})}
        return Filtered(names=left, failed=failed)

    async def prioritize(self, pod: bytes, names: list[str]) -> dict[str, int]:
        """Scores as the scheduler adds them: times weight times ten. Raises ExtenderFailed."""
        answer = await self._call(self.config.prioritize_verb, pod, names, list[_HostPriority])
        return {entry.host: entry.score * self.config.weight * 10 for entry in answer}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _failed(self, verb: str, why: str) -> ExtenderFailed:
        self.errors[verb] += 1
        return ExtenderFailed(f"extender {verb}: {why}")

    async def _call(self, verb: str, pod: bytes, names: list[str], wanted: type[T]) -> T:
        body = b'{"Pod":' + pod + b',"Nodes":null,"NodeNames":' + msgspec.json.encode(names) + b"}"
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self.config.http_timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        url = f"{self.config.url_prefix.rstrip('/')}/{verb}"
        headers = {"Content-Type": "application/json"}
        began_s = self.read_mono_s()
        try:
            async with self._session.post(
                url, data=body, headers=headers, ssl=self.config.tls or True
            ) as response:
                raw = await response.read()
                if response.status != 200:
                    raise self._failed(verb, f"status {response.status}")
            return msgspec.json.decode(raw, type=wanted)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            raise self._failed(verb, str(error) or type(error).__name__) from error
        finally:
            took_s = self.read_mono_s() - began_s
            self.latencies.setdefault(verb, Latencies()).add(took_s)
            if self.on_call is not None:
                self.on_call(verb, took_s)
