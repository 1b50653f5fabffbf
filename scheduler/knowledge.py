"""Whether this replica knows enough to answer, and what is missing though it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.port import Kind
from scheduler.cluster.reflector import REQUIRED
from scheduler.cluster.store import Store
from scheduler.config_settings import Mode, Settings
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.telemetry.bus import TelemetrySubscriber

log = logging.getLogger(__name__)


class Knowledge:
    """The words behind `/readyz`, read from the rooms when asked. `over` is set when we are to stop."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Store,
        cluster: KubernetesCluster,
        subscriber: TelemetrySubscriber,
        over: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._store = store
        self._cluster = cluster
        self._subscriber = subscriber
        self._over = over
        self.broker_waited = False
        """Whether the wait for the broker at start is over, with it or without."""
        self._was_ready = False
        self.faults: Mapping[str, Callable[[], bool]] = {}
        """What else may be wrong though we answer, by its word; told by whoever composes us."""

    def use(self, settings: Settings) -> None:
        """Take other settings."""
        self._settings = settings

    def not_ready(self) -> str | None:
        """Why we do not know enough to answer; None if we do."""
        if self._over.is_set():
            return "stopping"
        heard_mono_s = self._cluster.last_contact_mono_s
        if heard_mono_s is None:
            return f"the API server has not answered yet{self._why_failing(Kind)}"
        silent_s = self._clock.mono_s() - heard_mono_s
        if silent_s > self._settings.cluster.stale_s:
            return "the API server is silent"
        refused = self._cluster.refused
        for kind, why in refused.items():
            if kind in REQUIRED:
                return why
        if missing := self.missing():
            return f"not synced yet: {', '.join(missing)}{self._why_failing(missing)}"
        if not self.broker_waited:
            return "waiting for the broker"
        return None

    def tell(self) -> None:
        """Log when we begin to know enough, and when and why we cease to; called often. The end has its own line."""
        why_not = self.not_ready()
        if (why_not is None) is self._was_ready or self._over.is_set():
            return
        self._was_ready = why_not is None
        if why_not is None:
            log.info("ready", extra=kv(degraded=self.degraded()))
        else:
            log.warning("not ready any more: %s", why_not)

    def missing(self) -> list[Kind]:
        """Kinds whose first list is still to come."""
        return [kind for kind in Kind if not self.knows(kind)]

    def knows(self, kind: Kind) -> bool:
        """Whether a kind has been listed once, or may not or cannot be."""
        cluster = self._cluster
        return kind in self._store.synced or kind in cluster.refused or kind in cluster.absent

    def _why_failing(self, kinds: Iterable[Kind]) -> str:
        """What the last attempt at the first of these that fails ended with."""
        failing = self._cluster.failing
        return next((f" ({failing[kind]})" for kind in kinds if kind in failing), "")

    def degraded(self) -> list[str]:
        """What is missing though we answer: a closed set of words for metrics and `/readyz`."""
        found = []
        if not self._subscriber.connected:
            found.append("broker_away")
        else:
            last = self._subscriber.last_accepted_mono_s
            if self._store.nodes and (
                last is None or self._clock.mono_s() - last > self._settings.telemetry.stale_s
            ):
                found.append("broker_silent")
        found += [f"cannot_list_{kind.value}" for kind in self._cluster.refused]
        if self._cluster.forbidden:
            found.append("forbidden")
        if self._settings.mode is Mode.OBSERVE:
            found.append("observing")
        found += [word for word, holds in self.faults.items() if holds()]
        return found
