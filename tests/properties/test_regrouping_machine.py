"""Whom the groups would wake is who would be if each pod were judged by itself, whatever changes in any order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.cluster.intent import IntentSettings
from scheduler.cluster.objects import Meta, OwnerRef, Partial
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.core.nouns import PREFIX
from scheduler.decision import refused
from scheduler.decision.cycle import PolicyFailures
from scheduler.decision.kube_filters import allowed
from scheduler.decision.waiters import Waiter
from tests.builders import lose_pod, make_decider, make_node, make_pod, see_pod
from tests.decision.test_refused import AGAIN_S, POOLS, SICK, World

NODES = ("n0", "n1", "n2")
ONE = st.sampled_from(NODES)
LABELS = st.fixed_dictionaries(
    {"site": st.sampled_from(("dc-1", "aws-a")), "nvidia.com/gpu.product": st.sampled_from(("A100", "H100"))},
    optional=dict.fromkeys(SICK, st.just("xid-79")),
)
WORDS = st.sampled_from(
    (
        {},
        {PREFIX + "gpu-model": "A100"},
        {PREFIX + "gpu-model": "H100"},
        {PREFIX + "gpu-model": "nonsense["},
        {PREFIX + "pools": "aws-a"},
    )
)
OWNERS = {
    "rs-1": (Kind.REPLICASET, OwnerRef(kind="Deployment", uid="d-1", controller=True)),
    "rs-2": (Kind.REPLICASET, OwnerRef(kind="Deployment", uid="d-1", controller=True)),
    "d-1": (Kind.DEPLOYMENT, None),
    "job-1": (Kind.JOB, None),
}
OWNER = st.sampled_from(sorted(OWNERS))
POD = st.integers(0, 7)


class RegroupingMachine(RuleBasedStateMachine):
    """Nodes, owners, namespaces, pods and the configuration change; after each step all are judged both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POOLS)
        self.serial = 0
        self.pods: dict[str, tuple[dict[str, str], str]] = {}
        """Those that wait, with their own words and their owner."""
        self.changed: set[str] = set()
        """Pods that changed themselves since the last round over all."""

    @initialize(words=WORDS, parent_words=WORDS)
    def begin(self, words: dict[str, str], parent_words: dict[str, str]) -> None:
        """A pod waits for the first pool, and the next one has room."""
        self._label("n0", {"site": "dc-1", "nvidia.com/gpu.product": "A100", **SICK})
        self._label("n1", {"site": "aws-a", "nvidia.com/gpu.product": "H100"})
        for uid, said in (("rs-1", words), ("rs-2", {}), ("d-1", parent_words)):
            self.owner_says(uid, said)
        self.refuse({}, "rs-1", 299.0)
        self.refuse({}, "job-1", 0.0)

    @property
    def now(self) -> float:
        return self.world.clock.mono_s()

    def _label(self, name: str, labels: dict[str, str]) -> None:
        self.world.store.apply(Changed(Kind.NODE, make_node(name, 8, labels)), self.now)

    def _see(self, name: str, *, node: str = "") -> None:
        words, owner = self.pods[name]
        kind = {"rs": "ReplicaSet", "job": "Job"}[owner.split("-")[0]]
        ref = OwnerRef(kind=kind, uid=owner, controller=True)
        pod = make_pod(name, 4, annotations=words, owner=ref, node=node, refused="1 node in quarantine")
        see_pod(self.world.store, pod, self.now)

    @rule(name=ONE, labels=LABELS)
    def label_node(self, name: str, labels: dict[str, str]) -> None:
        self._label(name, labels)

    @rule(name=ONE)
    def lose_node(self, name: str) -> None:
        self.world.store.apply(Gone(Kind.NODE, make_node(name)), self.now)

    @rule(uid=OWNER, words=WORDS)
    def owner_says(self, uid: str, words: dict[str, str]) -> None:
        kind, parent = OWNERS[uid]
        meta = Meta(
            name=uid,
            namespace="team-a",
            uid=uid,
            annotations=words,
            owner_references=[parent] if parent else None,
        )
        self.world.store.apply(Changed(kind, Partial(metadata=meta)), self.now)

    @rule(uid=OWNER)
    def lose_owner(self, uid: str) -> None:
        meta = Meta(name=uid, namespace="team-a", uid=uid)
        self.world.store.apply(Gone(OWNERS[uid][0], Partial(metadata=meta)), self.now)

    @rule(kept=st.sets(OWNER))
    def list_deployments(self, kept: set[str]) -> None:
        self.world.store.apply(Listed(Kind.DEPLOYMENT, frozenset(kept)), self.now)

    @rule(words=WORDS)
    def namespace_says(self, words: dict[str, str]) -> None:
        meta = Meta(name="team-a", uid="ns", annotations=words)
        self.world.store.apply(Changed(Kind.NAMESPACE, Partial(metadata=meta)), self.now)

    @rule(model=st.sampled_from(("", "A100", "H100")), spill_s=st.sampled_from((0.0, 300.0, 600.0)))
    def configure(self, model: str, spill_s: float) -> None:
        store, decider = self.world.store, self.world.decider
        pools = (replace(POOLS[0], spill_after_s=spill_s), POOLS[1])
        store.use(
            replace(store.settings, pools=pools),
            IntentSettings(defaults={"gpu-model": model} if model else {}),
            self.now,
        )
        decider.use(decider.profiles, make_decider(store).filters)

    @rule(
        words=WORDS, owner=st.sampled_from(("rs-1", "rs-2", "job-1")), waited_s=st.sampled_from((0.0, 299.0))
    )
    def refuse(self, words: dict[str, str], owner: str, waited_s: float) -> None:
        """Somewhere, since somebody saw a reason; which of ours it was is not known."""
        self.serial += 1
        name = f"p{self.serial}"
        self.pods[name] = words, owner
        self._see(name)
        facts = self.world.store.waiting[f"uid-{name}"]
        self.world.refused.see_elsewhere(facts, waited_s, self.now)

    @rule(which=POD, words=WORDS)
    def pod_says(self, which: int, words: dict[str, str]) -> None:
        if self.pods:
            name = sorted(self.pods)[which % len(self.pods)]
            self.pods[name] = words, self.pods[name][1]
            self._see(name)
            self.changed.add(f"uid-{name}")

    @rule(which=POD)
    def end(self, which: int) -> None:
        if self.pods:
            name = sorted(self.pods)[which % len(self.pods)]
            del self.pods[name]
            lose_pod(self.world.store, make_pod(name), self.now)

    @rule(by_s=st.sampled_from((1.0, refused.JUDGE_ALL_S, 300.0)))
    def pass_time(self, by_s: float) -> None:
        self.world.clock.advance(by_s)
        self.world.store.tick(self.now)

    @rule()
    def wake(self) -> None:
        choice = self.world.find()
        if choice is not None:
            self.world.refused.take(choice, self.now + AGAIN_S)
            self.world.refused.not_woken(choice, self.now + AGAIN_S)

    def _fits(self, pod: Waiter, uid: str) -> bool:
        """Judge one pod by itself, by what is known of it now."""
        group = pod.group
        assert group is not None, uid
        store, waits = self.world.store, self.world.refused
        request = waits._request(store.waiting[uid], self.now - pod.created_mono_s)
        offered = np.zeros(store.snapshot.rows, bool)
        offered[: len(group.offered)] = group.offered
        offered &= store.snapshot.present & ~store.snapshot.cordoned & allowed(store, request)
        judgement = self.world.decider.judge(
            request, np.flatnonzero(offered), self.now, failures=PolicyFailures()
        )
        return bool(judgement.fitting)

    @invariant()
    def the_groups_say_what_each_pod_says(self) -> None:
        before_mono_s = self.world.refused._all_judged_mono_s
        choice = self.world.find()
        if self.world.refused._regrouping.due:
            # Two groups have become one; its pods join it at the next look.
            choice = self.world.find()
        if self.world.refused._all_judged_mono_s != before_mono_s:
            self.changed.clear()
        if self.changed:
            # Of a pod that changed itself kube-scheduler hears from Kubernetes.
            return
        waits = self.world.refused
        waiting = {uid: pod for uid, pod in waits._pods.items() if uid in self.world.store.waiting}
        fitting = {uid for uid, pod in waiting.items() if self._fits(pod, uid)}
        awake = {uid for uid in fitting if waits._rests.get(uid, 0.0) <= self.now}
        want = min(awake, key=lambda uid: waiting[uid].rank, default="")
        assert (choice.pod.uid if choice is not None else "") == want
        for uid, pod in waiting.items():
            group = pod.group
            assert group is not None
            # One that comes to be first is judged then.
            assert group.dirty or (group.fits is not None) == (uid in fitting), uid
            assert group.fits is not None or uid not in fitting, uid


TestRegroupingMachine = RegroupingMachine.TestCase
# The profile's examples, each of up to forty steps.
TestRegroupingMachine.settings = settings(stateful_step_count=40)
