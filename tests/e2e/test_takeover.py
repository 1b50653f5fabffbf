"""The leader is killed or frozen under work: a real kube-scheduler asks through a Service, pods come all the time."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from scheduler.simulate.ports import free_port
from tests.certs import Authority
from tests.e2e.service import BoundPods, LeaderService
from tests.e2e.system import Replica, System, metric, readiness, until_seen, wait_for

pytestmark = pytest.mark.e2e

NODES = tuple(f"takeover-{n}" for n in range(8))
GPUS = 8
# Before the leader goes, while it goes, and with the new one. Together fewer than there are GPUs, so that each finds a
# place, and more than fit on half of the nodes.
BEFORE, MEANWHILE, AFTER = 12, 24, 12
COME_EVERY_S = 0.2
ALL_BOUND_S = 180.0


class Site:
    """Two replicas whose extender is reachable, as behind a Service: over TLS, for clients of one authority only."""

    def __init__(self, system: System, folder: Path, *, bind: bool) -> None:
        self.system = system
        self.bind = bind
        authority = Authority()
        self.ca_file = str(authority.write(folder / "ca.crt"))
        self.cert_file, self.key_file = str(folder / "tls.crt"), str(folder / "tls.key")
        authority.issue("wattbalance", Path(self.cert_file), Path(self.key_file))
        self.ports: dict[str, int] = {}

    def serve(self, pod_name: str) -> Replica:
        self.system.add_own_pod(pod_name)
        port, door = free_port(), free_port()
        tls = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.ca_file}
        listeners = [
            {"address": f"127.0.0.1:{port}", "serves": ["api", "metrics", "probes"]},
            # Loopback as the kernel reads it, and a name like any other to us: a door that a standby does not open.
            {"address": f"127.1:{door}", "serves": ["extender"], "tls": tls},
        ]
        self.ports[pod_name] = door
        replica = self.system.serve(pod_name, port, listeners=listeners, extender={"bind": self.bind})
        until_seen(replica, *NODES)
        return replica

    @contextlib.contextmanager
    def scheduler(self, service: LeaderService) -> Iterator[None]:
        tls = {"caFile": self.ca_file, "certFile": self.cert_file, "keyFile": self.key_file}
        extender: dict[str, object] = {"bindVerb": "bind"} if self.bind else {}
        extender |= {"enableHTTPS": True, "tlsConfig": tls, "httpTimeout": "3s"}
        daemon = self.system.scheduler(service.port, ignorable=False, scheme="https", **extender)
        try:
            yield
        finally:
            daemon.stop()


class Stream:
    """One-GPU pods, one after the other."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._come)
        self.names: list[str] = []
        self._most = 0

    def __enter__(self) -> Self:
        """Start; none comes yet."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def let_come(self, pods: int) -> None:
        """Let so many come from now on: on a slow machine as many as on a fast one."""
        self._most = len(self.names) + pods

    def until_bound(self, pods: int) -> None:
        """Wait until so many of all are bound; the cluster is as busy as clusters are."""
        rounds = itertools.count()

        def bound() -> bool:
            # kube-scheduler tries again at the next event of a node, or after a minute.
            for name in NODES:
                self._system.plane.request(
                    "PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {"round": str(next(rounds))}}}
                )
            return len(self.names) >= pods and len([n for n in self.nodes().values() if n]) >= pods

        wait_for(f"{pods} pods are bound", bound, ALL_BOUND_S)

    def nodes(self) -> dict[str, str]:
        """By pod, where it is."""
        listed = self._system.plane.request("GET", "/api/v1/namespaces/default/pods")
        assert isinstance(listed, dict)
        return {item["metadata"]["name"]: item["spec"].get("nodeName", "") for item in listed["items"]}

    def _come(self) -> None:
        while not self._ended.wait(COME_EVERY_S):
            if len(self.names) < self._most:
                name = f"steady-{len(self.names)}"
                self._system.add_pod(name)
                self.names.append(name)


NOBODY = {"no_decision": 0.0, "other_node": 0.0, "other_scheduler": 0.0}


def role(replica: Replica) -> str:
    return str(readiness(replica)["role"])


def past_us(replica: Replica) -> dict[str, float]:
    return {reason: metric(replica, "wattbalance_bypassed_pods_total", reason=reason) for reason in NOBODY}


def kill(leader: Replica) -> None:
    leader.process.popen.kill()
    leader.process.popen.wait()


def freeze(leader: Replica) -> None:
    leader.process.signal(signal.SIGSTOP)


# Bound by kube-scheduler, or by us: a leader that freezes may have sent a Binding, or find a question for one later.
@pytest.mark.parametrize("bind", [False, True], ids=["kube-scheduler binds", "we bind"])
@pytest.mark.parametrize("lose", [kill, freeze])
def test_no_pod_is_bound_twice_or_past_us_when_the_leader_goes_under_work(
    system: System, tmp_path: Path, lose: Callable[[Replica], None], *, bind: bool
) -> None:
    for name in NODES:
        system.add_node(name, GPUS)
    site = Site(system, tmp_path, bind=bind)
    leader = site.serve("replica-a")
    wait_for("the first leads", lambda: role(leader) == "leader")
    standby = site.serve("replica-b")
    assert role(standby) == "standby"
    bindings_before = len(system.bound_pods())
    with (
        LeaderService(system.plane, site.ports) as service,
        site.scheduler(service),
        BoundPods(system.plane) as seen,
        Stream(system) as stream,
    ):
        stream.let_come(BEFORE)
        stream.until_bound(BEFORE)
        assert past_us(leader) == NOBODY
        stream.let_come(MEANWHILE)
        # In the midst of it.
        stream.until_bound(BEFORE + 2)
        lose(leader)
        wait_for("the standby leads", lambda: role(standby) == "leader")
        stream.until_bound(BEFORE + MEANWHILE)
        stream.let_come(AFTER)
        if lose is freeze:
            # Whatever waited for it is answered now, late.
            leader.process.signal(signal.SIGCONT)
            wait_for("the old leader is standby", lambda: role(leader) == "standby")
        stream.until_bound(BEFORE + MEANWHILE + AFTER)
    bound = stream.nodes()
    assert len(bound) == BEFORE + MEANWHILE + AFTER
    assert seen.nodes == {name: [node] for name, node in bound.items()}
    want_once = dict.fromkeys(bound, 1)
    assert Counter(system.bound_pods()[bindings_before:]) == want_once
    assert max(Counter(bound.values()).values()) <= GPUS
    assert past_us(standby) == NOBODY
    assert role(standby) == "leader"
    last = stream.names[-1]
    assert [d["chosen"] for d in standby.get(f"/api/v1/decisions?pod={last}")["items"]][:1] == [bound[last]]
    if lose is freeze:
        assert past_us(leader) == NOBODY
