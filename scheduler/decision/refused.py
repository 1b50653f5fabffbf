"""Pods that we refused and that wait since: which of them would fit now, in queue order, never more than fit. Pure.

kube-scheduler offers us what passes its own filters, so a refusal is for what it cannot see, and so is its end. Judged
are the nodes that were offered then: what opens elsewhere in Kubernetes' eyes, Kubernetes tells kube-scheduler itself.
Pods that ask for the same and were offered the same are one group, judged once. A group is judged again when something
has opened among its nodes (openings.py), when time has (`spill.after`), or a what-if has closed what it fitted.

A pod that waits since somebody else refused it, a replica beside another kube-scheduler or one before us, or since
nobody answered, is judged by all nodes that its selector, its affinity and their taints allow: it is not known which
it was offered. It is woken once if it fits, and from then on where a reason of ours has ended since.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator
from dataclasses import replace
from heapq import heapify, heappop, heappush
from math import inf

import numpy as np

from scheduler.cluster.pods import PodFacts
from scheduler.core.nouns import PodRequest, Reason
from scheduler.decision.cycle import Mask, PolicyFailures
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.kube_filters import allowed
from scheduler.decision.openings import Openings, widened
from scheduler.decision.regrouping import Regrouping
from scheduler.decision.waiters import Choice, Group, Key, Rank, Waiter

# As many as decisions are kept; beyond that, whoever was refused first is left to kube-scheduler.
MOST_REFUSED = 10_000
# A policy may look at what nobody thought of here: whatever opened, it is found by then.
JUDGE_ALL_S = 5.0
# The question may come before the watch tells of the pod; a pod that nobody knows by then has gone.
UNKNOWN_S = 60.0
# Groups looked at in a step: a tenth of a millisecond.
GROUPS_A_STEP = 50


class Refused:
    """Remembers refusals; `find` gives the next pod to wake.

    Args:
        decider: whose store, filters and profiles.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._store = decider.store
        self._openings = Openings(decider)
        self._pods: dict[str, Waiter] = {}
        self._groups: dict[Key, Group] = {}
        self._regrouping = Regrouping(decider, self._pods)
        self._on_their_way: dict[str, tuple[PodFacts, float]] = {}
        """Pods that were woken, with the node where they fit, until they are bound or their time is over."""
        self._rests: dict[str, float] = {}
        """Until when a pod is not woken again."""
        self._arrivals = 0
        self._all_judged_mono_s = -inf

    def __len__(self) -> int:
        return len(self._pods)

    def __contains__(self, uid: str) -> bool:
        return uid in self._pods

    # --- what is known of a pod ----------------------------------------------------------------------------------

    def rests_until_mono_s(self, uid: str) -> float:
        """Until when a pod is not woken again; the past if it may be."""
        return self._rests.get(uid, -inf)

    def before(self, uid: str, now_mono_s: float) -> int | None:
        """How many pods that fit, too, are before one in the queue; None if it fits nowhere, by the last look."""
        pod = self._pods.get(uid)
        if pod is None or pod.group is None or pod.group.fits is None:
            return None
        fitting = (group for group in self._groups.values() if group.fits is not None)
        return sum(len(group.before(pod.rank, self._rests, now_mono_s)) for group in fitting)

    # --- what happens to pods ------------------------------------------------------------------------------------

    def see(self, outcome: Outcome, now_mono_s: float) -> None:
        """Take a decision of filter: a refusal begins to wait, anything else ends that."""
        request = outcome.request
        if outcome.result != "no_fit" or not request.uid:
            self._forget(request.uid)
            if outcome.reserved:
                # Its promise counts instead, be it there or elsewhere.
                self._end_way(request.uid)
            return
        # What it was woken for has come to nothing.
        self._end_way(request.uid)
        rows = self._store.snapshot.rows
        strangers = bool(outcome.judgement.offered[rows:].any())
        new_nodes = strangers or Reason.UNKNOWN_NODE.text in outcome.record.reasons
        offered = outcome.judgement.offered[:rows]
        if new_nodes or offered.any():
            self._wait(request, offered.copy(), now_mono_s, new_nodes=new_nodes)

    def see_unbound(self, uid: str, now_mono_s: float) -> None:
        """A pod that was chosen for a node was not bound, for a reason of ours: it may go anywhere now."""
        facts = self._store.waiting.get(uid)
        if facts is not None:
            self._wait(self._request(facts, 0.0), None, now_mono_s, new_nodes=True)

    def see_elsewhere(self, facts: PodFacts, waited_s: float, now_mono_s: float) -> None:
        """A pod waits that we did not refuse, though its status says that one of us did, or that nobody answered."""
        if facts.uid not in self._pods and len(self._pods) < MOST_REFUSED:
            request = self._request(facts, waited_s)
            self._wait(request, None, now_mono_s, new_nodes=True, elsewhere=True)

    def _wait(
        self,
        request: PodRequest,
        offered: Mask | None,
        now_mono_s: float,
        *,
        new_nodes: bool,
        elsewhere: bool = False,
    ) -> None:
        self._note_rows()
        before = self._pods.pop(request.uid, None)
        self._leave(request.uid, before)
        self._arrivals += 1
        self._pods[request.uid] = Waiter(
            request=request,
            # A pod keeps its place: what its clock and ours differ by is not the same each time.
            created_mono_s=before.created_mono_s if before else now_mono_s - request.waited_s,
            refused_mono_s=now_mono_s,
            order=before.order if before else self._arrivals,
            offered=offered,
            new_nodes=new_nodes,
            elsewhere=elsewhere,
        )
        self._regrouping.due[request.uid] = None
        if len(self._pods) > MOST_REFUSED:
            self._forget(next(iter(self._pods)))

    def _forget(self, uid: str) -> None:
        self._leave(uid, self._pods.pop(uid, None))

    def _leave(self, uid: str, pod: Waiter | None) -> None:
        if pod is None:
            return
        self._regrouping.forget(uid, pod)
        self._leave_group(uid, pod)

    def _leave_group(self, uid: str, pod: Waiter) -> None:
        group, pod.group = pod.group, None
        if group is None:
            return
        group.pods.discard(uid)
        if not group.pods and self._groups.get(group.key) is group:
            del self._groups[group.key]

    # --- whom to wake --------------------------------------------------------------------------------------------

    def find(self, now_mono_s: float) -> Generator[None, None, Choice | None]:
        """Find the first pod in the queue that would fit now, in steps of a fraction of a millisecond."""
        yield from self._look(now_mono_s)
        for uid in list(self._regrouping.due):
            self._join(uid, now_mono_s)
            yield
        for group in list(self._groups.values()):
            # Those that fitted at the last look have their place in the queue; whether they still do is seen to there.
            if group.dirty and group.fits is None:
                self._judge(group, now_mono_s)
                yield
        while (head := (yield from self._head(now_mono_s))) is not None:
            uid, group = head
            if uid not in group.pods or group.fits is None:
                # It was asked about meanwhile.
                continue
            pod, facts, name = self._pods[uid], self._store.waiting.get(uid), self._store.names[group.choice]
            if facts is not None and name and not self._is_over(uid, pod, facts, now_mono_s):
                waited_s = now_mono_s - pod.created_mono_s
                return Choice(facts, name, waited_s, pod.refused_mono_s, group.against)
            self._drop_unknown(uid, pod, now_mono_s)
        return None

    def take(self, choice: Choice, until_mono_s: float) -> None:
        """The pod is being woken: it counts as on its way to that node until it is bound, or until then."""
        facts = replace(choice.pod, nominated_node=choice.node)
        self._on_their_way[facts.uid] = (facts, until_mono_s)
        self._rests[facts.uid] = until_mono_s
        row = self._store.rows.get(choice.node, -1)
        for group in self._groups.values():
            if group.fits is not None and group.fits[row]:
                group.dirty = True

    def woken(self, choice: Choice, now_mono_s: float) -> None:
        """It was: that refusal is over, and kube-scheduler asks again or has reasons of its own."""
        pod = self._pods.get(choice.pod.uid)
        # kube-scheduler may have asked again before we were told that it was woken.
        if pod is None or pod.refused_mono_s != choice.refused_mono_s:
            return
        if choice.against is None:
            self._forget(choice.pod.uid)
        else:
            # Nobody tells us what becomes of it. Where it has no reason of ours against it, kube-scheduler has one.
            self._wait(pod.request, choice.against.copy(), now_mono_s, new_nodes=False, elsewhere=True)

    def not_woken(self, choice: Choice, until_mono_s: float = -inf) -> None:
        """It was not: nothing is on its way, and it waits on; others have their turn until then."""
        uid = choice.pod.uid
        self._end_way(uid)
        self._rests[uid] = max(self._rests.get(uid, -inf), until_mono_s)

    def _head(self, now_mono_s: float) -> Generator[None, None, tuple[str, Group] | None]:
        """The first pod in the queue that may be woken of all groups that fit somewhere."""
        heads: list[tuple[Rank, str, Group]] = []
        for index, group in enumerate(list(self._groups.values())):
            if group.fits is not None and (head := group.head(self._rests, now_mono_s)) is not None:
                heads.append((*head, group))
            if index % GROUPS_A_STEP == GROUPS_A_STEP - 1:
                yield
        heapify(heads)
        while heads:
            _, uid, group = heappop(heads)
            if group.dirty and self._groups.get(group.key) is group:
                self._judge(group, now_mono_s)
                yield
            if group.fits is not None and self._groups.get(group.key) is group:
                return uid, group
        return None

    def _drop_unknown(self, uid: str, pod: Waiter, now_mono_s: float) -> None:
        """Forget a pod that waits no more; one of which the watch has not told yet is looked at again later."""
        if self._is_over(uid, pod, self._store.waiting.get(uid), now_mono_s):
            self._forget(uid)
        else:
            self._rests[uid] = now_mono_s + JUDGE_ALL_S

    def _is_over(self, uid: str, pod: Waiter, facts: PodFacts | None, now_mono_s: float) -> bool:
        """Whether a pod waits for us no more; of one that was refused elsewhere only its status tells."""
        if facts is not None:
            return pod.elsewhere and not facts.refused
        return uid in self._store.pods or now_mono_s - pod.refused_mono_s > UNKNOWN_S

    # --- groups --------------------------------------------------------------------------------------------------

    def _look(self, now_mono_s: float) -> Generator[None, None, None]:
        """See what has opened since the last look, and whose time has come."""
        self._note_rows()
        self._pass_time(now_mono_s)
        opened = self._openings.look()
        yield
        every = now_mono_s - self._all_judged_mono_s >= JUDGE_ALL_S
        if every:
            self._all_judged_mono_s = now_mono_s
        # What is wanted of pods, or how it is judged, may be another by now.
        all_of_them = (yield from self._regrouping.look(now_mono_s, every=every)) or every
        if opened is None and not all_of_them:
            return
        for index, group in enumerate(list(self._groups.values())):
            # A reason that comes counts for those of which we do not know what they were offered.
            if all_of_them or group.elsewhere or (opened is not None and _any_of(opened, group.offered)):
                group.dirty = True
            if index % GROUPS_A_STEP == GROUPS_A_STEP - 1:
                yield

    def _join(self, uid: str, now_mono_s: float) -> None:
        """Put a pod into the group of those that ask for the same, as its annotations are now."""
        pod = self._pods.get(uid)
        if pod is None:
            self._regrouping.due.pop(uid, None)
            return
        waited_s = now_mono_s - pod.created_mono_s
        facts = self._store.waiting.get(uid)
        if self._is_over(uid, pod, facts, now_mono_s):
            self._forget(uid)
            return
        if facts is not None:
            pod.request = self._request(facts, waited_s)
        ages_s = sorted({pool.spill_after_s for pool in self._store.settings.pools} | {0.0})
        at = bisect_right(ages_s, waited_s)
        older_mono_s = pod.created_mono_s + ages_s[at] if at < len(ages_s) else inf
        # What is a pod's own, or its owner's, and rules no node out: pods that ask for the same are judged together.
        request = replace(
            pod.request,
            uid="",
            name="",
            namespace="",
            waited_s=ages_s[max(at - 1, 0)],
            siblings_of=(),
            controller=None,
            images=(),
            preferences=None,
        )
        offered = pod.offered if pod.group is None else pod.group.offered
        if offered is None:
            offered = self._store.snapshot.present.copy()
        key = (request, np.packbits(offered).tobytes(), pod.new_nodes, pod.elsewhere)
        group = self._groups.get(key)
        if group is None or group is not pod.group:
            self._leave_group(uid, pod)
            group = self._groups.setdefault(key, group or Group(key, offered))
            group.pods.add(uid)
            heappush(group.queue, (pod.rank, uid))
            pod.group = group
        self._regrouping.joined(uid, pod, facts, older_mono_s)

    def _request(self, facts: PodFacts, waited_s: float) -> PodRequest:
        intent = self._store.intents.resolve(facts.meta, facts.priority_class)
        profile = self._decider.profile_facts[intent.workload]
        return self._store.request_again(facts, intent, waited_s, profile)

    def _judge(self, group: Group, now_mono_s: float) -> None:
        """Find where one more of the group would fit, beside those that are on their way."""
        group.dirty = False
        snapshot = self._store.snapshot
        offered = widened(group.offered, snapshot.rows) & snapshot.present & ~snapshot.cordoned
        # Of one that was refused elsewhere it is not known what it was offered; of others, taints may be new.
        offered &= allowed(self._store, group.request)
        # Where we only observe, we wake nobody either.
        pools = [pool.observe for pool in self._store.settings.pools]
        if any(pools):
            offered &= ~np.array([*pools, False])[snapshot.pool]
        beside = [facts for facts, _ in self._on_their_way.values()]
        request = group.request
        if request.nominated_node:
            # For one of them room was made there: what is kept for it is kept for others, not from it.
            request = replace(request, uid=next(iter(group.pods), ""))
        judgement = self._decider.judge(
            request,
            np.flatnonzero(offered),
            now_mono_s,
            beside=beside,
            failures=PolicyFailures(),
        )
        group.fits = judgement.fits if judgement.fitting else None
        group.choice = judgement.choice
        if group.elsewhere:
            group.against = judgement.codes > 0
            offered = widened(group.offered, snapshot.rows)
            if (group.against & ~offered).any():
                # When that ends there, too, it is news.
                self._offer(group, offered | group.against)

    def _note_rows(self) -> None:
        """Rows may stand for other nodes than when pods were offered them."""
        changed = self._openings.changed_rows()
        if changed is None:
            return
        for group in list(self._groups.values()):
            offered = widened(group.offered, len(changed))
            if len(offered) == len(group.offered) and (offered[changed] == group.new_nodes).all():
                continue
            # A node that kube-scheduler learns of now is told to it; one that only we did not know is not.
            offered[changed] = group.new_nodes
            self._offer(group, offered)
        for uid in self._regrouping.due:
            pod = self._pods[uid]
            if pod.group is None and pod.offered is not None:
                pod.offered = widened(pod.offered, len(changed))
                pod.offered[changed] = pod.new_nodes

    def _offer(self, group: Group, offered: Mask) -> None:
        """Let a group be of other nodes from now on; if there is such a group, its pods join that one later."""
        del self._groups[group.key]
        group.offered, group.dirty = offered, True
        group.key = (group.key[0], np.packbits(offered).tobytes(), *group.key[2:])
        if group.key not in self._groups:
            self._groups[group.key] = group
            return
        for uid in group.pods:
            pod = self._pods[uid]
            pod.group, pod.offered = None, offered
            self._regrouping.due[uid] = None

    # --- those on their way --------------------------------------------------------------------------------------

    def _pass_time(self, now_mono_s: float) -> None:
        for uid in [uid for uid, until_mono_s in self._rests.items() if until_mono_s <= now_mono_s]:
            del self._rests[uid]
        for uid, (_, until_mono_s) in list(self._on_their_way.items()):
            bound_or_gone = uid not in self._store.waiting
            if bound_or_gone or until_mono_s <= now_mono_s:
                self._end_way(uid)

    def _end_way(self, uid: str) -> None:
        held = self._on_their_way.pop(uid, None)
        row = self._store.rows.get(held[0].nominated_node, -1) if held is not None else -1
        if row < 0:
            return
        for group in self._groups.values():
            if row < len(group.offered) and group.offered[row]:
                group.dirty = True


def _any_of(some: Mask, offered: Mask) -> bool:
    # Nodes may have come between two steps.
    count = min(len(some), len(offered))
    return bool((some[:count] & offered[:count]).any())
