"""How many of its owner's pods are on each node, as a pod's own snapshot tells it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler.cluster.objects import Meta, OwnerRef, Partial, Pod
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.core.nouns import Workload
from tests.builders import make_node, make_pod, make_store, see_node, see_pod

NO_PROFILES = {workload: (workload.value, 0.5) for workload in Workload}
NODES = ("n1", "n2", "n3")


def owned(name: str, owner: str, *, node: str = "", kind: str = "StatefulSet") -> Pod:
    """A pod of one GPU with a controller."""
    return make_pod(name, node=node, owner=OwnerRef(kind=kind, uid=owner, controller=True))


def beside(store: Store, pod: Pod, *, held_on: str = "") -> dict[str, float] | None:
    """Neighbours by node; None where the column is left out."""
    request = store.request(pod, 0.0, NO_PROFILES)
    column = store.snapshot_for(request, held_on=held_on).neighbours
    return None if column is None else {name: float(column[row]) for name, row in store.rows.items()}


def store_of(*nodes: str) -> Store:
    store = make_store()
    for name in nodes or NODES:
        see_node(store, name)
    return store


def test_bound_pods_of_the_same_owner_count_and_no_others() -> None:
    store = store_of()
    for index, node in enumerate(("n1", "n1", "n2")):
        see_pod(store, owned(f"db-{index}", "db", node=node))
    see_pod(store, owned("other-0", "other", node="n3"))
    see_pod(store, make_pod("bare", node="n3"))
    assert beside(store, owned("db-3", "db")) == {"n1": 2, "n2": 1, "n3": 0}


def test_a_pod_without_an_owner_or_whose_owner_has_nothing_anywhere_gets_no_column() -> None:
    store = store_of()
    see_pod(store, owned("db-0", "db", node="n1"))
    assert beside(store, make_pod("bare")) is None
    assert beside(store, owned("web-0", "web")) is None
    own = store.pods["uid-db-0"]
    assert beside(store, owned(own.name, "db", node="n1"), held_on="n1") is None


def test_what_is_promised_counts_until_the_promise_is_over() -> None:
    store = store_of()
    first, second = owned("db-0", "db"), owned("db-1", "db")
    for pod in (first, second):
        see_pod(store, pod)
    assert store.reserve(store.request(first, 0.0, NO_PROFILES), "n2", 1.0)
    assert beside(store, second) == {"n1": 0, "n2": 1, "n3": 0}
    # Its own promise is no neighbour of it.
    assert beside(store, first) is None
    # The binding turns the promise into a holding: it still counts once.
    see_pod(store, owned("db-0", "db", node="n2"), 2.0)
    assert beside(store, second) == {"n1": 0, "n2": 1, "n3": 0}
    assert store.reserve(store.request(second, 0.0, NO_PROFILES), "n3", 3.0)
    assert beside(store, owned("db-2", "db")) == {"n1": 0, "n2": 1, "n3": 1}
    store.tick(60.0)
    assert beside(store, owned("db-2", "db")) == {"n1": 0, "n2": 1, "n3": 0}


def test_replicas_of_one_deployment_are_siblings_whatever_their_replica_set() -> None:
    store = store_of()
    for uid in ("web-old", "web-new"):
        see_pod(store, owned(f"{uid}-0", uid, node="n1", kind="ReplicaSet"))
    fresh = owned("web-new-1", "web-new", kind="ReplicaSet")
    # Until the ReplicaSets are told, a pod counts by its own.
    assert beside(store, fresh) == {"n1": 1, "n2": 0, "n3": 0}
    for uid in ("web-old", "web-new"):
        see_replica_set(store, uid, "web")
    assert beside(store, fresh) == {"n1": 2, "n2": 0, "n3": 0}
    # Orphaned by `kubectl delete --cascade=orphan`, it is the Deployment's no more.
    store.apply(Changed(Kind.REPLICASET, Partial(metadata=Meta(name="web-old", uid="web-old"))), 0.0)
    assert beside(store, fresh) == {"n1": 1, "n2": 0, "n3": 0}
    see_replica_set(store, "web-old", "web")
    store.apply(Listed(Kind.REPLICASET, frozenset({"web-new"})), 0.0)
    assert beside(store, fresh) == {"n1": 1, "n2": 0, "n3": 0}


def see_replica_set(store: Store, uid: str, deployment: str) -> None:
    owner = OwnerRef(kind="Deployment", uid=deployment, controller=True)
    meta = Meta(name=uid, namespace="team-a", uid=uid, owner_references=[owner])
    store.apply(Changed(Kind.REPLICASET, Partial(metadata=meta)), 0.0)


def test_jobs_of_one_cron_job_are_apart() -> None:
    """Each is work of its own; two of them on one node are no more likely to end together."""
    store = store_of()
    for uid in ("job-1", "job-2"):
        owner = OwnerRef(kind="CronJob", uid="cron", controller=True)
        job = Partial(metadata=Meta(name=uid, uid=uid, owner_references=[owner]))
        store.apply(Changed(Kind.JOB, job), 0.0)
    see_pod(store, owned("a", "job-1", node="n1", kind="Job"))
    assert beside(store, owned("b", "job-2", kind="Job")) is None


def test_a_row_that_another_node_takes_has_nobody_in_it() -> None:
    store = store_of("n1", "n2")
    see_pod(store, owned("db-0", "db", node="n1"))
    store.apply(Gone(Kind.NODE, make_node("n1")), 1.0)
    see_node(store, "n3")
    assert beside(store, owned("db-1", "db")) is None
    see_node(store, "n1")
    assert beside(store, owned("db-1", "db")) == {"n1": 1, "n2": 0, "n3": 0}


def test_a_pod_that_is_adopted_counts_for_who_has_it_now() -> None:
    store = store_of()
    see_pod(store, make_pod("db-0", node="n1"))
    see_pod(store, owned("db-0", "db", node="n1"))
    assert beside(store, owned("db-1", "db")) == {"n1": 1, "n2": 0, "n3": 0}


def test_nodes_that_the_store_does_not_know_have_nobody() -> None:
    store = store_of()
    see_pod(store, owned("db-0", "db", node="n1"))
    request = store.request(owned("db-1", "db"), 0.0, NO_PROFILES)
    more = store.with_strangers(store.snapshot_for(request), [make_node("template")], request)
    assert more.neighbours is not None
    assert len(more.neighbours) == more.rows
    assert more.neighbours[-1] == 0


def one_of(names: Iterable[str], pick: int) -> str:
    ordered = sorted(names)
    return ordered[pick % len(ordered)]


class NeighboursMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order: the column is what one would count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store_of()
        self.store.apply(Listed(Kind.POD, frozenset()), 0.0)
        self.pods: dict[str, Pod] = {}
        self.now_s = 1.0

    @rule(index=st.integers(0, 7), owner=st.sampled_from(["a", "b"]))
    def create(self, index: int, owner: str) -> None:
        name = f"{owner}-{index}"
        if name not in self.pods:
            self.pods[name] = owned(name, owner)
            see_pod(self.store, self.pods[name], self.now_s)

    @rule(pick=st.integers(0, 99), node=st.sampled_from(NODES))
    def promise(self, pick: int, node: str) -> None:
        if self.pods:
            pod = self.pods[one_of(self.pods, pick)]
            self.store.reserve(self.store.request(pod, 0.0, NO_PROFILES), node, self.now_s)

    @rule(pick=st.integers(0, 99), node=st.sampled_from([*NODES, "unseen"]))
    def bind(self, pick: int, node: str) -> None:
        waiting = [name for name, pod in self.pods.items() if not pod.spec.node_name]
        if waiting:
            name = one_of(waiting, pick)
            pod = self.pods[name]
            self.pods[name] = msgspec.structs.replace(
                pod, spec=msgspec.structs.replace(pod.spec, node_name=node)
            )
            see_pod(self.store, self.pods[name], self.now_s)

    @rule(pick=st.integers(0, 99))
    def end(self, pick: int) -> None:
        if self.pods:
            pod = self.pods.pop(one_of(self.pods, pick))
            self.store.apply(Gone(Kind.POD, pod), self.now_s)

    @rule(node=st.sampled_from(NODES))
    def node_comes_or_goes(self, node: str) -> None:
        if node in self.store.rows:
            self.store.apply(Gone(Kind.NODE, make_node(node)), self.now_s)
        else:
            see_node(self.store, node)

    @rule(by_s=st.sampled_from([1.0, 40.0]))
    def time_passes(self, by_s: float) -> None:
        self.now_s += by_s
        self.store.tick(self.now_s)

    @invariant()
    def counted_by_hand(self) -> None:
        store = self.store
        for owner in ("a", "b"):
            want = dict.fromkeys(store.rows, 0.0)
            for pod in self.pods.values():
                held = store.reservations.get(pod.metadata.uid)
                node = pod.spec.node_name or (held.node if held else "")
                if pod.metadata.name.startswith(owner) and node in want:
                    want[node] += 1
            found = beside(store, owned(f"{owner}-new", owner))
            assert (found or dict.fromkeys(store.rows, 0.0)) == want
            assert found is None or np.isfinite(list(found.values())).all()


TestNeighbours = NeighboursMachine.TestCase
TestNeighbours.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
