"""What explain tells of a pod that is not among those that want or hold GPUs by a name that we count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import msgspec

from scheduler.cluster.claimers import Claimer
from scheduler.cluster.objects import Pod, PodStatus
from scheduler.cluster.pods import FINISHED, pod_facts
from scheduler.cluster.port import Kind
from scheduler.cluster.shares import words
from scheduler.cluster.store import Store
from scheduler.core.errors import ApiNotFound, ClusterError
from scheduler.core.names import is_label, is_subdomain
from scheduler.core.units import parse_instant
from scheduler.decision.decider import Decider
from scheduler.decision.record import PREEMPT, DecisionRecord
from scheduler.report.explanation import Explanation, NotFound, decision_of
from scheduler.report.no_record import NoRecord
from scheduler.report.written import MOST_SHOWN

# Of a name that is in other namespaces, or was: some of them are enough of a hint.
MOST_ELSEWHERE = 5
# Who asks waits for it; what the API server has not told by then is left out.
READ_S = 2.0
# Questions about pods that are not there must not crowd out what decisions ask the API server for.
MOST_READ = 4

BY_CLAIMS = (
    "The pod asks for devices by resource claims alone, which kube-scheduler places by itself: it gets back all nodes "
    "that it offers us, and no scores. What claims hold counts as taken for all other pods."
)
ROOM = (
    "kube-scheduler asked us on which nodes others may make room for it (preempt): that answer is kept, and is no "
    "decision about its place."
)
HAS_FINISHED = "The pod has finished ({}): it holds no GPUs any more, and is judged no more."
EARLIER = "The decision is about an earlier pod of this name."
DELETED = "The API server has no such pod: it was deleted. What is left is the last decision about it."
GONE = (
    "The pod is not among those that want or hold GPUs, by what this replica sees now: it ended, was deleted, or is "
    "too new to have been seen (kubectl get pod tells). What is left is the last decision about it."
)
NOT_LISTED = (
    "This replica has not listed the pods yet: whether there still is such a pod is not known here. Ask again in some "
    "seconds. What is shown is the last decision about it."
)


def by_claims(pod: Claimer, store: Store, unix_s: float) -> Explanation:
    """What kube-scheduler places alone, and what claims hold for it."""
    created_unix_s = instant(pod.created)
    waits = created_unix_s is not None and not pod.node
    return Explanation(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        state="bound" if pod.node else "waiting",
        unix_s=unix_s,
        node=pod.node,
        scheduler=pod.scheduler_name,
        created_unix_s=created_unix_s,
        waited_s=max(unix_s - created_unix_s, 0.0) if waits and created_unix_s is not None else None,
        notes=[BY_CLAIMS, *(f"{held}." for held in store.devices.held_by(pod.uid))],
    )


class Absent:
    """Tells of pods that the store does not have.

    Args:
        decider: Whose store and log.
        no_record: Says what is known without one.
        get_pod: Asks the API server for one; None: nobody is asked.
    """

    def __init__(
        self,
        decider: Decider,
        no_record: NoRecord,
        get_pod: Callable[[str, str], Awaitable[Pod]] | None = None,
    ) -> None:
        self._decider = decider
        self._no_record = no_record
        self._get_pod = get_pod
        self._reading = 0

    async def told(
        self,
        namespace: str,
        name: str,
        last: DecisionRecord | None,
        elsewhere: Collection[str],
        unix_s: float,
    ) -> Explanation | NotFound:
        """What is known of it: by the API server, where it answers soon, and by the last decision."""
        pod, is_deleted = await self._read(namespace, name)
        if pod is not None and pod.status.phase in FINISHED:
            finished = self._finished(pod, last, unix_s)
            if finished is not None:
                return finished
        if last is not None:
            return self._decided(last, unix_s, is_deleted=is_deleted)
        if pod is not None:
            return self._without_gpus(pod)
        return self._unknown(namespace, name, sorted(elsewhere))

    async def _read(self, namespace: str, name: str) -> tuple[Pod | None, bool]:
        """The pod, and whether there is surely none."""
        # Whatever else stands in a path of the API server would be another question.
        sound = is_label(namespace) and is_subdomain(name)
        if self._get_pod is None or not sound or self._reading >= MOST_READ:
            return None, False
        self._reading += 1
        try:
            async with asyncio.timeout(READ_S):
                return await self._get_pod(namespace, name), False
        except ApiNotFound:
            return None, True
        except (ClusterError, TimeoutError):
            return None, False
        finally:
            self._reading -= 1

    def _finished(self, pod: Pod, last: DecisionRecord | None, unix_s: float) -> Explanation | None:
        """What stands on a pod that has finished; None if it asked for no GPU."""
        store = self._decider.store
        facts = pod_facts(msgspec.structs.replace(pod, status=PodStatus()), also=store.settings.gpu_resources)
        if facts is None:
            return None
        notes = [HAS_FINISHED.format(pod.status.phase)]
        record = last if last is not None and last.verb != PREEMPT else None
        if record is None:
            notes.append(self._no_record.of(facts))
        elif record.uid != facts.uid:
            notes.append(f"{EARLIER} {self._no_record.of(facts)}")
        return Explanation(
            namespace=facts.namespace,
            name=facts.name,
            uid=facts.uid,
            state="finished",
            unix_s=unix_s,
            node=facts.node,
            phase=pod.status.phase,
            deletion_unix_s=instant(facts.meta.deletion_timestamp),
            gpus=facts.gpus,
            resources=dict(facts.units),
            asks=words(facts.units),
            scheduler=facts.scheduler_name,
            created_unix_s=instant(facts.meta.creation_timestamp),
            notes=notes,
            decision=decision_of(record, store.pool_names) if record is not None else None,
        )

    def _without_gpus(self, pod: Pod) -> NotFound:
        which = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if pod_facts(pod, also=self._decider.store.settings.gpu_resources) is not None:
            text = f"pod {which} is there, and this replica has not seen it yet: ask again in some seconds"
        else:
            text = (
                f"pod {which} asks for no GPU by a name that is counted: kube-scheduler places it without us "
                "(kubectl describe pod)"
            )
        return NotFound(error=text)

    def _decided(self, record: DecisionRecord, unix_s: float, *, is_deleted: bool) -> Explanation:
        """Of which only a decision is left."""
        of_room = record.verb == PREEMPT
        why = GONE if Kind.POD in self._decider.store.synced else NOT_LISTED
        if is_deleted:
            why = DELETED
        return Explanation(
            namespace=record.namespace,
            name=record.pod,
            uid=record.uid,
            state="not seen",
            unix_s=unix_s,
            gpus=record.gpus,
            resources=record.resources,
            asks=words(tuple(record.resources.items())),
            workload=record.profile,
            workload_from="the decision",
            notes=[why, ROOM] if of_room else [why],
            decision=None if of_room else decision_of(record, self._decider.store.pool_names),
            room=decision_of(record) if of_room else None,
        )

    def _unknown(self, namespace: str, name: str, elsewhere: list[str]) -> NotFound:
        """Of which nothing is known but where others of its name are, or were."""
        which = f"{namespace[:MOST_SHOWN]}/{name[:MOST_SHOWN]}"
        if Kind.POD not in self._decider.store.synced:
            text = f"pod {which} is not known yet: this replica has not listed the pods; ask again in some seconds"
        elif elsewhere:
            more = ", ".join(elsewhere[:MOST_ELSEWHERE])
            text = f"no pod {which} wants or holds GPUs; one of this name is, or was, in namespace {more}"
        else:
            text = (
                f"nothing is known of pod {which}: no pod of this name wants or holds GPUs now, and no decision "
                f"that is kept was about one. {self._no_record.since()} An older one, if there was one, is in its "
                "log. A pod that asks for no GPU is not known here: kube-scheduler places it without us (kubectl "
                "describe pod)"
            )
        return NotFound(error=text, namespaces=elsewhere)


def instant(stamp: str | None) -> float | None:
    """Kubernetes' instant in seconds since 1970; None where there is none, or none that can be read."""
    try:
        return parse_instant(stamp) if stamp else None
    except ValueError:
        return None
