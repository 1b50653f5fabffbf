"""Annotations written on pods, a few a second, and what became of them: for whoever has something to say on pods."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping

from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import ClusterPort
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiNotFound, ApiRejected, ClusterError

log = logging.getLogger(__name__)

WRITTEN, GONE, FAILED, REJECTED, FORBIDDEN = "written", "gone", "failed", "rejected", "forbidden"

# Of what the API server said of one pod: it may repeat the pod.
MOST_TOLD = 300
# A pace of one an hour, once it is corrected, is not slept out.
LOOK_AGAIN_S = 1.0


class PodWrites:
    """One write after the other, at a pace.

    Args:
        cluster: where to.
        results: counts what became of each: written | gone (the pod) | failed.
        what: what cannot be done without the right to patch pods, for the log.
        most_per_s: how many a second at most; asked after each.
    """

    def __init__(
        self, cluster: ClusterPort, results: Counter[str], what: str, most_per_s: Callable[[], float]
    ) -> None:
        self._cluster = cluster
        self._results = results
        self._what = what
        self._most_per_s = most_per_s
        self._told_forbidden = False

    async def write(self, pod: PodFacts, annotations: Mapping[str, str]) -> str:
        """Annotate one pod; returns what became of it: written | gone | failed | rejected (this pod) | forbidden."""
        result = await self._write(pod, annotations)
        self._results[FAILED if result in {REJECTED, FORBIDDEN} else result] += 1
        return result

    async def pause(self) -> None:
        """Wait until the next one may be written; another pace that is set meanwhile counts at once."""
        slept_s = 0.0
        while (left_s := 1 / self._most_per_s() - slept_s) > 0:
            step_s = min(left_s, LOOK_AGAIN_S)
            await asyncio.sleep(step_s)
            slept_s += step_s

    async def _write(self, pod: PodFacts, annotations: Mapping[str, str]) -> str:
        try:
            await self._cluster.annotate_pod(pod.namespace, pod.name, pod.uid, {**annotations})
        except (ApiNotFound, ApiConflict):
            return GONE
        except ApiForbidden as error:
            if not self._told_forbidden:
                self._told_forbidden = True
                log.warning("%s: %s", self._what, error)
            return FORBIDDEN
        except ApiRejected as error:
            log.info("pod %s/%s takes no annotation: %s", pod.namespace, pod.name, str(error)[:MOST_TOLD])
            return REJECTED
        except ClusterError:
            return FAILED
        return WRITTEN
