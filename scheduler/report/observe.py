"""`/api/v1/observe`: what observing has shown so far: where pods run, beside where they would with us.

An estimate, and labelled as one: `notes` say what it rests on, `legend` what the columns are. Asking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from http import HTTPStatus
from itertools import islice
from typing import Protocol

import msgspec
import numpy as np
from aiohttp import web
from msgspec.structs import replace

from scheduler.core.clock import Clock
from scheduler.core.units import format_instant
from scheduler.decision.followed import Followed, Tally
from scheduler.decision.moved import Floats
from scheduler.decision.shadow import MOST_FOLLOWED, Shadow
from scheduler.decision.worlds import LOAD, POWER, World, Worlds
from scheduler.report.observation import ObservedPod, ObservedWorld, ObserveReport
from scheduler.report.openapi import OBSERVE_LIMIT, OBSERVE_MOST, OBSERVE_PATH
from scheduler.report.queries import BadQuery, check_names, refusal

_encode = msgspec.json.Encoder().encode

ACTING = (
    "Nothing is observed now: we act everywhere. To observe, set `mode: observe` in the configuration, or at a pool, "
    "or run `wattbalance pause`."
)
STARTING = (
    "It has just begun: the nodes and pods that there are are being taken over. Ask again in some seconds."
)
FAILED = (
    "It failed, and is given up until what is observed changes, or a restart; the log says why. Nothing else depends "
    "on it."
)
NO_DATA = (
    "No data yet: no pod that kube-scheduler asked us about has been bound since. Pods that ran before stand where "
    "they are in both worlds."
)
ESTIMATE = (
    "An estimate: `with us` is a second accounting in which each pod that was only observed stands where we would have "
    "put it, with the load and watts that are measured of it where it really runs. A pod is taken to run as long and "
    "to do as much there, whatever the GPU. `explain` judges a pod beside the others where these really run, and may "
    "name another node."
)
CANDIDATES = (
    "We choose among the nodes that kube-scheduler offered, and those of the same pools that had no room: what else it "
    "may have had against those (taints, affinity, volumes) is not known to us."
)
SHARE = (
    "A pod's load is its GPUs' share of what its node's bound GPUs do, its watts likewise, above what an idle GPU "
    "there draws: what an idle GPU draws is learnt where one of that model is free. Of a pod that was bound since its "
    "node was last read, that is what the others did there. Our choices go by it, too."
)
ONE_REPLICA = (
    "It is what this replica was asked since it began to observe; another mode or configuration begins anew. What the "
    "last one showed is kept until the next begins, or the process ends."
)
LOST = (
    "This process has run since {}. What was observed before then, or by another replica, is not known here: save "
    "reports that you want to keep (`-o json > FILE`; `--from FILE` reads one). What one had shown when it ended is in "
    "the log of its process, without its pods."
)
COLUMNS = (
    "REALLY is what is measured. WITH US is that same measurement, with LOAD and POWER of each pod below that is "
    "elsewhere or would wait taken off the node where it runs and put where it would be: nothing else differs. The "
    "watts are of the nodes in use in that column, with their idle GPUs."
)
KEPT = (
    "A pod of which nothing is measured, or that would be on a node of which nothing is, counts where it runs in both "
    "columns: it saves nothing."
)
SPREAD_KNOWN = "Its spread is over the {:.1%} of that time in which the load of some node was measured."
WATTS_KNOWN = (
    "Its watts are over the {:.1%} of that time in which some node in use was measured in both columns."
)
# Below it two decimals are 0; shares of a GPU add up to no whole number of bits.
LEAST = 0.005


class Watching(Protocol):
    """What is observed."""

    shadow: Shadow | None
    last: ObserveReport | None
    failed: bool
    what: Callable[[], str]
    began_for: str
    process_since_unix_s: float


class ObserveReporter:
    """Answers about what was observed.

    Args:
        watching: what is observed now.
        clock: for the present.
    """

    def __init__(self, watching: Watching, clock: Clock) -> None:
        self._watching = watching
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Routes of a listener that serves `api`."""
        return [web.get(OBSERVE_PATH, self._get)]

    async def _get(self, request: web.Request) -> web.Response:
        try:
            check_names(request, ["limit"])
        except BadQuery as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        limit = request.query.get("limit", str(OBSERVE_LIMIT))
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9):
            text = f"limit: expected a whole number from 0 to {OBSERVE_MOST}, got {limit[:60]!r}"
            return refusal(HTTPStatus.BAD_REQUEST, text)
        body = _encode(self.report(min(int(limit), OBSERVE_MOST)))
        return web.Response(body=body, content_type="application/json")

    def report(self, limit: int = OBSERVE_LIMIT) -> ObserveReport:
        """All of it, with so many pods at most."""
        told, since_unix_s = self._told(limit), self._watching.process_since_unix_s
        lost = LOST.format(format_instant(round(since_unix_s)))
        return replace(told, process_since_unix_s=since_unix_s, notes=[*told.notes, lost])

    def _told(self, limit: int) -> ObserveReport:
        watching, mono_s, unix_s = self._watching, self._clock.mono_s(), self._clock.unix_s()
        what, shadow, last = watching.what(), watching.shadow, watching.last
        if shadow is not None and not what:
            # It has ended, and nobody has looked since.
            last, shadow = ended(shadow, watching.began_for, mono_s, unix_s), None
        if shadow is not None:
            return so_far(shadow, what, mono_s, unix_s, limit)
        if what:
            status, note = ("failed", FAILED) if watching.failed else ("starting", STARTING)
            return ObserveReport(status=status, observing=what, unix_s=unix_s, notes=[note])
        if last is not None:
            return replace(last, unix_s=unix_s, pods=last.pods[:limit])
        return ObserveReport(status="acting", observing="", unix_s=unix_s, notes=[ACTING])


def so_far(shadow: Shadow, what: str, mono_s: float, unix_s: float, limit: int) -> ObserveReport:
    """Tell what observing has shown up to now, with so many pods at most."""
    worlds, means, pods = shadow.worlds(), shadow.means.worlds(), shadow.tally(mono_s)
    newest: Iterable[Followed] = islice(reversed(shadow.pods.values()), limit)
    return ObserveReport(
        status="ok" if pods.so_far else "no_data",
        observing=what,
        unix_s=unix_s,
        since_unix_s=shadow.since_unix_s,
        real=_world(worlds.real),
        ours=_world(worlds.ours),
        real_mean=_world(means[0]) if means else None,
        ours_mean=_world(means[1]) if means else None,
        mean_span_s=shadow.means.span_s,
        mean_load_known_frac=shadow.means.known_frac(LOAD),
        mean_power_known_frac=shadow.means.known_frac(POWER),
        legend=_legend(shadow, worlds),
        pods_so_far=pods.so_far,
        pods_same=pods.same,
        pods_elsewhere=pods.elsewhere,
        pods_waiting=pods.waiting,
        pods_waited_so_far=pods.waited_so_far,
        waited_longer_s=pods.waited_so_far_s,
        pods_unmeasured=worlds.unmeasured,
        pods_to_unmeasured=worlds.to_unmeasured,
        pods_left_out=pods.left_out,
        pods_asked=pods.asked,
        nodes=int(worlds.real.gpu_nodes),
        nodes_load_known=int(worlds.real.load_nodes),
        nodes_in_use=worlds.nodes_in_use,
        nodes_power_known=worlds.nodes_power_known,
        notes=_notes(shadow, worlds, pods),
        pods=[_pod(each, shadow, worlds, mono_s) for each in newest],
    )


def ended(shadow: Shadow, what: str, mono_s: float, unix_s: float) -> ObserveReport:
    """Tell what it has shown, now that it ends; to be kept until the next begins."""
    told = so_far(shadow, what, mono_s, unix_s, OBSERVE_MOST)
    until = format_instant(round(unix_s))
    note = f"The last observation ended {until}; all of this is as of then."
    return replace(
        told,
        status="ended",
        observing="",
        observed=what,
        ended_unix_s=unix_s,
        notes=[ACTING, note, *told.notes],
    )


def _world(world: World) -> ObservedWorld:
    return ObservedWorld(**asdict(world))


def _legend(shadow: Shadow, worlds: Worlds) -> list[str]:
    means, legend = shadow.means, [COLUMNS]
    pairs = [("now", worlds.real, worlds.ours)]
    if (mean := means.worlds()) is not None:
        legend.append(
            f"MEAN is the average of the same figures over the {means.span_s:,.0f} s since the first pod was placed, "
            "in both columns over the same instants."
        )
        for name, text in ((LOAD, SPREAD_KNOWN), (POWER, WATTS_KNOWN)):
            if (known_frac := means.known_frac(name)) < 1:
                legend.append(text.format(known_frac))
        pairs.append(("in the mean", *mean))
    if worlds.unmeasured or worlds.to_unmeasured:
        legend.append(KEPT)
    if dark := _each((_dark(ours) - _dark(real), when) for when, real, ours in pairs):
        legend.append(
            f"WITH US has more nodes in use whose watts are not measured ({dark}): what they draw is missing there."
        )
    if missing := _each((real.held_gpus - ours.held_gpus, when) for when, real, ours in pairs):
        legend.append(
            f"WITH US lacks the work of pods that would wait (GPUs: {missing}): fewer watts and less load there are "
            "less work, not less power for it."
        )
    return legend


def _dark(world: World) -> float:
    """Nodes in use whose watts are not measured."""
    return world.used_nodes - world.power_nodes


def _each(counts: Iterable[tuple[float, str]]) -> str:
    """What there is of it now and in the mean; empty where there is none."""
    told = [(count, when) for count, when in counts]
    if all(count < LEAST for count, _ in told):
        return ""
    return ", ".join(f"{count:,.2f}".rstrip("0").rstrip(".") + f" {when}" for count, when in told)


def _notes(shadow: Shadow, worlds: Worlds, pods: Tally) -> list[str]:
    since = format_instant(round(shadow.since_unix_s))
    notes = [] if pods.so_far else [NO_DATA]
    notes.append(ESTIMATE)
    notes.append(
        f"It rests on {pods.so_far:,} pods placed since {since}, {pods.same + pods.elsewhere + pods.waiting:,} of "
        "which still run."
    )
    real, ours = worlds.real, worlds.ours
    if real.load_nodes < real.gpu_nodes:
        notes.append(
            f"The spread is about the {real.load_nodes:,} of {real.gpu_nodes:,} nodes whose load is measured. Nothing "
            "is guessed for the others."
        )
    if worlds.nodes_power_known < worlds.nodes_in_use:
        notes.append(
            f"The watts are about the nodes in use that are measured: really {real.power_nodes:,} of "
            f"{real.used_nodes:,}, with us {ours.power_nodes:,} of {ours.used_nodes:,}. Nothing is guessed for the "
            "others."
        )
    if worlds.unmeasured:
        notes.append(
            f"{worlds.unmeasured:,} pods that would stand elsewhere, or wait, are not measured, in load or watts: they "
            "count where they run."
        )
    if worlds.to_unmeasured:
        notes.append(
            f"{worlds.to_unmeasured:,} pods would stand on nodes that are not measured, in load or watts: they count "
            "where they run, and what those nodes would draw is not known."
        )
    if pods.left_out:
        notes.append(
            f"{pods.left_out:,} pods came beyond the {MOST_FOLLOWED:,} that are followed, and stand where they are."
        )
    return [*notes, SHARE, CANDIDATES, ONE_REPLICA]


def _pod(followed: Followed, shadow: Shadow, worlds: Worlds, now_mono_s: float) -> ObservedPod:
    request, slot = followed.request, followed.slot
    waits_s = now_mono_s - followed.waits_since_mono_s if not followed.node else 0.0
    return ObservedPod(
        namespace=request.namespace,
        name=request.name,
        uid=request.uid,
        gpus=sum(count for _, count in request.units),
        real=followed.real,
        ours=followed.node,
        place="same" if followed.node == followed.real else "elsewhere" if followed.node else "waiting",
        reason=followed.reason,
        waited_longer_s=followed.waited_s + waits_s,
        load=_at(worlds.moved_load, slot),
        power_w=_at(worlds.moved_power_w, slot),
        mean_load=_at(shadow.moved.load, slot),
        mean_power_w=_at(shadow.moved.power_w, slot),
        counts_where_it_runs=" and ".join(
            word
            for word, taken in (("load", worlds.load_taken), ("watts", worlds.power_taken))
            if slot >= 0 and not taken[slot]
        ),
    )


def _at(column: Floats, slot: int) -> float | None:
    """Null where it is unknown, and of a pod that stands as it does anyway."""
    if slot < 0 or np.isnan(column[slot]):
        return None
    return float(column[slot])
