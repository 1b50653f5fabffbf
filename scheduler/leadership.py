"""Who acts: the Lease's holder, and the label by which a Service finds it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.lease import Elector
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.objects import Pod
from scheduler.cluster.port import Changed, ClusterEvent, Gone
from scheduler.config_settings import Mode, Settings
from scheduler.core.clock import Clock
from scheduler.core.errors import ClusterError
from scheduler.core.log import kv
from scheduler.own_pod import check_own_names, own_name, own_namespace, runs_in_pod

log = logging.getLogger(__name__)

ROLE_LABEL = "wattbalance.io/role"
LEADER = "leader"
RELABEL_S = 5.0


class Leadership:
    """What this replica may do now. `over` is set when it is to stop."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        cluster: KubernetesCluster,
        *,
        instance: str,
        over: asyncio.Event,
        is_fit: Callable[[], bool],
    ) -> None:
        """Raises ConfigError where the environment names our pod or namespace as Kubernetes names none."""
        self.observing = settings.mode is Mode.OBSERVE
        """Whether everything is decided and nothing done, by our configuration."""
        self.is_paused: Callable[[], bool] = lambda: False
        """Whether it is so for a while, or nobody knows yet that it is not; leading goes on."""
        check_own_names()
        self.pod_name = own_name()
        self.pod_uid = ""
        """Its uid, once the watch has told of it."""
        self.namespace = settings.lease.namespace or own_namespace()
        self.identity = f"{settings.lease.identity or self.pod_name or socket.gethostname()}-{instance}"
        self.elector: Elector | None = None
        """None where there is no election."""
        self._clock = clock
        self._cluster = cluster
        self._over = over
        self._leader_pods: set[str] = set()
        # Told once: it is tried every few seconds, and a pod that is not there never comes.
        self._label_trouble: tuple[type[ClusterError], int] | None = None
        # With a kubeconfig it may be a pod of any cluster, and not of the one that it serves.
        self._nameless = not self.pod_name and runs_in_pod() and settings.cluster.kubeconfig is None
        if self._nameless and not self.observing:
            log.warning(
                "POD_NAME is not set: this pod cannot take the leader's label, so no Service and no `kubectl "
                "wattbalance` finds it; give the container env POD_NAME from fieldRef metadata.name (downward API)"
            )
        # Who observes changes nothing, so there is nothing to guard and nobody to elect (docs/adr/0009).
        if settings.lease.enabled and not self.observing:
            lease = settings.lease
            self.elector = cluster.elector(
                namespace=self.namespace,
                identity=self.identity,
                name=lease.name,
                times=LeaseTimes(
                    lease_s=float(lease.duration_s),
                    deadline_s=float(lease.renew_deadline_s),
                    retry_s=float(lease.retry_s),
                ),
            )
            # A Service that selects the leader has no endpoint where that is not ready.
            self.elector.is_fit = is_fit

    def leads(self) -> bool:
        """Whether it leads now: never while it observes."""
        if self._over.is_set() or self.observing:
            return False
        return self.elector is None or self.elector.is_leading(self._clock.mono_s())

    def may_act(self) -> bool:
        """Whether it may write about the work of others now: it leads, and nobody has paused it."""
        return self.leads() and not self.is_paused()

    def may_decide(self) -> bool:
        """Whether it may answer from off this machine: the leader, or anyone whose decisions change nothing."""
        return self.leads() or (self.observing and not self._over.is_set())

    @property
    def role(self) -> str:
        """`leader` or `standby`; `observer` takes no part in that."""
        if self.observing:
            return "observer"
        return LEADER if self.leads() else "standby"

    @property
    def leader_name(self) -> str:
        """Who leads, as far as we know."""
        if self.elector is not None:
            return self.elector.leader
        return "" if self.observing else self.identity

    @property
    def term(self) -> int:
        """How often the Lease has changed hands; 0 without one."""
        return self.elector.term if self.elector else 0

    def see(self, event: ClusterEvent) -> None:
        """Note which of our replicas' pods carry the leader's label."""
        if not isinstance(event, Changed | Gone) or not isinstance(event.object, Pod):
            return
        meta = event.object.metadata
        if meta.namespace != self.namespace:
            return
        if meta.name == self.pod_name:
            self.pod_uid = meta.uid
        if isinstance(event, Changed) and (meta.labels or {}).get(ROLE_LABEL) == LEADER:
            self._leader_pods.add(meta.name)
        else:
            self._leader_pods.discard(meta.name)

    def lacks_lease(self) -> bool:
        """Say whether the last attempt to lead, or to go on leading, failed: the API server refused or lost it."""
        return self.elector is not None and self.elector.fails

    def lacks_label(self) -> bool:
        """Say whether we lead, and the label by which a Service finds the leader could not be moved."""
        return self._label_trouble is not None or (self._nameless and self.leads())

    async def carry_label(self) -> None:
        """Take the leader's label and keep it, until cancelled."""
        try:
            while True:
                await self._take_label()
                await asyncio.sleep(RELABEL_S)
        finally:
            self._label_trouble = None

    async def _take_label(self) -> None:
        if not self.pod_name:
            return
        try:
            if self.pod_name not in self._leader_pods:
                await self._cluster.label_pod(self.namespace, self.pod_name, {ROLE_LABEL: LEADER})
                log.info("took the leader's label", extra=kv(pod=self.pod_name, term=self.term))
            for other in sorted(self._leader_pods - {self.pod_name}):
                await self._cluster.label_pod(self.namespace, other, {ROLE_LABEL: None})
        except ClusterError as error:
            trouble = type(error), error.status
            if trouble != self._label_trouble:
                log.warning("cannot move the leader's label, trying on: %s", error)
            self._label_trouble = trouble
            return
        if self._label_trouble is not None:
            log.info("the leader's label can be moved again", extra=kv(pod=self.pod_name))
        self._label_trouble = None
