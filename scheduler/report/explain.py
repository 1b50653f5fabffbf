"""`/api/v1/explain/{namespace}/{pod}`: why a pod is where it is, or why it waits.

First what was decided, as it was recorded; below it, as `now`, a fresh evaluation at the present state. Nothing is
promised or recorded by asking. Where nothing is known, the answer is 404 with a JSON body that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

from scheduler.cluster.intent import Intent
from scheduler.cluster.lineage import gaps
from scheduler.cluster.objects import Pod
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Kind
from scheduler.cluster.unit_words import said_of
from scheduler.core.clock import Clock
from scheduler.core.nouns import Placement, PodRequest
from scheduler.core.units import format_instant
from scheduler.decision.asked import asked_by
from scheduler.decision.decider import Decider
from scheduler.decision.evaluation import Evaluation, Waking
from scheduler.decision.explain import evaluate
from scheduler.decision.record import PREEMPT, DecisionRecord
from scheduler.report.absent import ROOM, Absent, by_claims, instant
from scheduler.report.explanation import Annotation, Explanation, NotFound, decision_of, with_points
from scheduler.report.no_record import NoRecord
from scheduler.report.openapi import EXPLAIN_PATH
from scheduler.report.queries import without_query
from scheduler.report.unoffered import unoffered
from scheduler.report.written import MOST_SHOWN

# Names compared in a turn of the loop: a quarter of a millisecond.
NAMES_A_TURN = 2000

_encode = msgspec.json.Encoder().encode

ADVISORY = (
    "Advisory placement: kube-scheduler chooses. It multiplies our 0 to 10 (`points`) by ten times the extender's "
    "`weight` in its configuration, and adds the sum of its own scores, each 0 to 100 by its plugin's weight, which "
    "we do not see."
)
DECISIVE = (
    "Decisive placement: kube-scheduler's own filters (taints, affinity, CPU, memory, volumes) say which nodes we are "
    "offered; of these we name one, and its scores change nothing."
)
SOFT = (
    "The pod prefers something that we could not weigh: kube-scheduler's own scores chose among the nodes within 2 % "
    "of the best."
)
NOT_WEIGHED = "Of what the pod's spec prefers, this is left to kube-scheduler's own scores: "
NOW = (
    "Judged are all nodes that exist. Of kube-scheduler's own filters we see a node's size, cordon and taints, and the "
    "pod's nodeSelector and required node affinity; by others (CPU, memory, ports, volumes, other pods) it may have "
    "offered fewer."
)
NOW_BOUND = (
    " The pod's own GPUs are counted free on its node; what it does there now is in that node's measured load all the "
    "same, so that its own node looks somewhat worse than it is to this pod. Its images are there by now, and are not "
    "weighed."
)
WOKEN = (
    "It had been refused, fitted again and was woken at {}. If kube-scheduler has not asked us since, its own filters "
    "keep the pod from these nodes (kubectl describe pod tells)."
)
NOMINATED = (
    "kube-scheduler has others make room for it on {} (status.nominatedNodeName): they end first, and hold their GPUs "
    "until they are gone; then it asks us again."
)
ENDING = (
    "It is being deleted: it has until {} to end (metadata.deletionTimestamp). Its GPUs are held until then."
)
ENDING_LATE = (
    "It is being deleted, and was to be gone at {} (metadata.deletionTimestamp): its node has not said yet that it has "
    "ended, or a finalizer holds it (metadata.finalizers). Until then its GPUs count as held."
)
ENDING_WAITING = (
    "It is being deleted, since {} (metadata.deletionTimestamp): no scheduler places it any more. It is there as long "
    "as a finalizer holds it (metadata.finalizers)."
)
NO_NODE = (
    "Its node {} does not exist: it was deleted, or never was. Nothing runs there, and Kubernetes' pod garbage "
    "collection removes such pods."
)
STRANGER = (
    "Its spec.schedulerName is {}, which is none of our scheduler_names ({}): nobody is expected to ask us about it. "
    "Name one of these in the pod's spec, or that scheduler in our configuration, if it asks us."
)


class Explainer:
    """Answers about one pod; changes nothing.

    Args:
        decider: Whose store, profiles and log.
        clock: For the present.
        role: Says which role this replica has: a standby's log lacks what the leader decided.
        woken_unix_s: When a pod, by its uid, was woken last after a refusal; None if never.
        refused: Kinds that cannot be listed, each with the reason.
        scheduler_names: Whose pods should come to us; none: nothing is known of that.
        waking: Whether a pod that waits is woken once it fits; None: nothing is known of that.
        get_pod: Asks the API server for a pod that is not seen here; None: nobody is asked.
    """

    def __init__(
        self,
        decider: Decider,
        clock: Clock,
        role: Callable[[], str],
        woken_unix_s: Callable[[str], float | None] = lambda _: None,
        refused: Callable[[], Mapping[Kind, str]] = dict,
        scheduler_names: Callable[[], Collection[str]] = frozenset,
        *,
        waking: Callable[[PodFacts], Waking | None] = lambda _: None,
        get_pod: Callable[[str, str], Awaitable[Pod]] | None = None,
    ) -> None:
        self._decider = decider
        self._clock = clock
        self._woken_unix_s = woken_unix_s
        self._refused = refused
        self._scheduler_names = scheduler_names
        self._waking = waking
        self._no_record = NoRecord(decider, role, scheduler_names, clock.unix_s())
        self._absent = Absent(decider, self._no_record, get_pod)

    def routes(self) -> list[web.RouteDef]:
        """Routes of a listener that serves `api`."""
        return [web.get(EXPLAIN_PATH, without_query(self._get))]

    async def _get(self, request: web.Request) -> web.Response:
        found = await self.explain(request.match_info["namespace"], request.match_info["pod"])
        if isinstance(found, NotFound):
            return _json(found, HTTPStatus.NOT_FOUND)
        return _json(found, HTTPStatus.OK)

    async def explain(self, namespace: str, name: str) -> Explanation | NotFound:
        """Explain one pod. In turns of the loop until it is found, in one turn from then on."""
        facts, living = await self._living(namespace, name)
        record, room, recorded = await self._recorded(namespace, name)
        if facts is not None:
            # The store went on while we looked.
            facts = self._decider.store.pods.get(facts.uid, facts)
            record = self._decider.log.of_pod(facts.uid) or record
            return self._known(facts, record, room if room is not None and room.uid == facts.uid else None)
        claimer = self._decider.store.claimers.find(namespace, name)
        if claimer is not None:
            return by_claims(claimer, self._decider.store, self._clock.unix_s())
        return await self._absent.told(
            namespace, name, record or room, living | recorded, self._clock.unix_s()
        )

    async def _living(self, namespace: str, name: str) -> tuple[PodFacts | None, set[str]]:
        """The pod among those that hold or want GPUs now, and the namespaces that have one of this name."""
        namespaces: set[str] = set()
        pods = list(self._decider.store.pods.values())
        for start in range(0, len(pods), NAMES_A_TURN):
            for facts in pods[start : start + NAMES_A_TURN]:
                if facts.name == name:
                    if facts.namespace == namespace:
                        return facts, namespaces
                    namespaces.add(facts.namespace)
            await asyncio.sleep(0)
        return None, namespaces

    async def _recorded(
        self, namespace: str, name: str
    ) -> tuple[DecisionRecord | None, DecisionRecord | None, set[str]]:
        """The newest decision about the place of a pod of this name, and the namespaces that had one.

        Between them, where it is newer or the only one: the newest about where room may be made for such a pod.
        """
        namespaces: set[str] = set()
        room = None
        records = list(self._decider.log)
        for start in range(0, len(records), NAMES_A_TURN):
            for record in records[start : start + NAMES_A_TURN]:
                if record.pod != name:
                    continue
                if record.namespace != namespace:
                    namespaces.add(record.namespace)
                elif record.verb != PREEMPT:
                    return record, room, namespaces
                elif room is None:
                    room = record
            await asyncio.sleep(0)
        return None, room, namespaces

    def _known(
        self, facts: PodFacts, record: DecisionRecord | None, room: DecisionRecord | None
    ) -> Explanation:
        if record is not None and record.uid == facts.uid:
            room = None
        decider, unix_s = self._decider, self._clock.unix_s()
        store = decider.store
        created_unix_s = instant(facts.meta.creation_timestamp)
        age_s = 0.0 if created_unix_s is None else max(unix_s - created_unix_s, 0.0)
        intent = store.intents.resolve(facts.meta, facts.priority_class)
        workload = intent.workload
        held = store.reservations.get(facts.uid)
        request = store.request_again(facts, intent, age_s, decider.profile_facts[workload])
        deletion_unix_s = instant(facts.meta.deletion_timestamp)
        missing = bool(facts.node) and Kind.NODE in store.synced and facts.node not in store.nodes
        now = None
        if facts.node or deletion_unix_s is None:
            now = evaluate(
                decider,
                request,
                self._clock.mono_s(),
                unix_s,
                held_on=facts.node,
                waking=None if facts.node else self._waking(facts),
                said=asked_by(intent, store.intents.settings, facts.namespace),
            )
        advisory = now is not None and now.placement == Placement.ADVISORY
        ranks = [store.pool_names[pool] for pool in request.pools] or store.pool_names
        return Explanation(
            namespace=facts.namespace,
            name=facts.name,
            uid=facts.uid,
            state="bound" if facts.node else "waiting",
            unix_s=unix_s,
            node=facts.node,
            node_missing=missing,
            deletion_unix_s=deletion_unix_s,
            gpus=facts.gpus,
            resources=dict(facts.units),
            asks=said_of(store, facts),
            scheduler=facts.scheduler_name,
            workload=workload.value,
            workload_from=intent.workload_by,
            annotations=_annotations(intent),
            created_unix_s=created_unix_s,
            waited_s=None if facts.node or created_unix_s is None else age_s,
            woken_unix_s=self._woken_unix_s(facts.uid),
            reserved_node=held.node if held else "",
            notes=[
                *([_ending(facts, deletion_unix_s, unix_s)] if deletion_unix_s is not None else []),
                *([NO_NODE.format(facts.node)] if missing else []),
                *self._notes(facts, record, now),
                *([ROOM] if room is not None else []),
                *self._preferences(request),
                *gaps(store.intents, facts.meta, synced=store.synced, refused=self._refused()),
                *([NOW + (NOW_BOUND if facts.node else "")] if now is not None else []),
            ],
            decision=decision_of(record, ranks) if record is not None else None,
            room=decision_of(room) if room is not None else None,
            now=with_points(now) if now is not None and advisory else now,
        )

    def _notes(self, facts: PodFacts, record: DecisionRecord | None, now: Evaluation | None) -> list[str]:
        """What is to be said of the record, or of its absence; of a pod that is not judged any more, no advice."""
        if record is None:
            notes = [*(self._stranger(facts) if now is not None else []), self._no_record.of(facts)]
        elif record.uid != facts.uid:
            notes = [
                "The decision is about an earlier pod of this name; none about this one is kept: "
                + self._no_record.of(facts)
            ]
        elif record.result == "observed":
            notes = [_observed(facts, record)]
        elif facts.node and record.chosen and record.chosen != facts.node:
            notes = [f"It was bound to {facts.node}, past our decision for {record.chosen}."]
        elif facts.node and record.result == "no_fit":
            notes = [f"It was bound to {facts.node}, though our decision left no node."]
        else:
            notes = []
        if now is None:
            return notes
        if (woken_unix_s := self._woken_unix_s(facts.uid)) is not None and not facts.node:
            notes.append(WOKEN.format(format_instant(round(woken_unix_s))))
        if facts.nominated_node and not facts.node:
            notes.append(NOMINATED.format(facts.nominated_node))
        soft = record is not None and record.result == "passed_soft"
        notes.append(SOFT if soft else ADVISORY if now.placement == Placement.ADVISORY else DECISIVE)
        notes += unoffered(self._decider.store, facts)
        if now.failed_policies:
            notes.append(f"Policies that failed and were left out: {', '.join(now.failed_policies)}.")
        return notes

    def _stranger(self, facts: PodFacts) -> list[str]:
        """That the pod is for a scheduler which does not ask us, as far as we know."""
        names = self._scheduler_names()
        if not names or facts.scheduler_name in names:
            return []
        return [STRANGER.format(facts.scheduler_name[:MOST_SHOWN], ", ".join(sorted(names)))]

    def _preferences(self, request: PodRequest) -> list[str]:
        """What of the pod's own preferences we do not weigh; nothing to say where we weigh them all."""
        policies = (each.name for each in self._decider.profiles[request.workload].scores)
        left = request.preferences.not_weighed(policies) if request.preferences is not None else ()
        return [f"{NOT_WEIGHED}{'; '.join(left)}."] if left else []


def _ending(facts: PodFacts, deletion_unix_s: float, unix_s: float) -> str:
    """That it is being deleted, and what it still holds."""
    at = format_instant(round(deletion_unix_s))
    if not facts.node:
        return ENDING_WAITING.format(at)
    return (ENDING if deletion_unix_s > unix_s else ENDING_LATE).format(at)


def _observed(facts: PodFacts, record: DecisionRecord) -> str:
    ours = f"we would have chosen {record.chosen}" if record.chosen else "we would have left no node"
    return f"It was only observed: {ours}, and kube-scheduler {_chose(facts, record)}."


def _chose(facts: PodFacts, record: DecisionRecord) -> str:
    if not facts.node:
        return "has not bound it yet"
    return "chose the same" if facts.node == record.chosen else f"chose {facts.node}"


def _annotations(intent: Intent) -> list[Annotation]:
    later = intent.not_acted_on
    good = [
        Annotation(key=key, value=word.text, where=word.where, not_yet=later.get(key, ""))
        for key, word in intent.words.items()
    ]
    bad = [
        Annotation(key=each.key, value=each.text, where=each.where, problem=each.message)
        for each in intent.faults
    ]
    return good + bad


def _json(answer: object, status: HTTPStatus) -> web.Response:
    return web.Response(body=_encode(answer), status=status, content_type="application/json")
