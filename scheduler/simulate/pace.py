"""Whether this machine keeps up: how many pods a second it can play at most, and how far a run is behind.

The limit is measured before the run, without the daemon's own work, so that it errs on the high side; what a run is
behind is measured while it goes.
"""

from __future__ import annotations

from itertools import islice

from scheduler.core.clock import Clock
from scheduler.simulate.apiserver import ApiServer
from scheduler.simulate.apiserver_rules import NAMESPACES, NODES, PODS
from scheduler.simulate.kubescheduler import KubeScheduler
from scheduler.simulate.manifests import NAMESPACE, node_object, pod_object
from scheduler.simulate.workload import WorkloadModel

# Enough for a mean that is good to a tenth, and over in a fraction of a second.
_TRIED_PODS = 150
# Of the measured limit: the rest goes to the agents, the daemon and its watches. On two cores, 1,213 nodes, 2026-11-21:
# limits of 1,100 and 640 pods a second were measured (quiet, and beside other work); 560 a second kept up in the first
# case and not in the second, 1,120 in neither.
USABLE_FRAC = 0.6
# A pod that no cycle has reached for so long is late; a busy second alone is not worth a word.
LATE_S = 1.0


async def most_pods_per_s(model: WorkloadModel, clock: Clock, round_trip_s: float) -> float:
    """Play some pods on a cluster of their own (create, choose, bind, delete) and say how many a second that makes.

    Args:
        model: Its nodes and arrivals.
        clock: For the cluster's times.
        round_trip_s: Of one call of the extender's server, which each pod waits for.
    """
    server = ApiServer(clock)
    server.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for node in model.trace.nodes:
        server.create(NODES, node_object(node))
    scheduler = KubeScheduler(server, clock)
    scheduler.watch()
    began_mono_s = clock.mono_s()
    for arrival in islice(model.arrivals(), _TRIED_PODS):
        server.create(PODS, pod_object(arrival))
        await scheduler.settle()
        server.delete(PODS, arrival.name, NAMESPACE, grace_s=0)
    own_s = (clock.mono_s() - began_mono_s) / _TRIED_PODS
    await scheduler.close()
    return 1.0 / (own_s + round_trip_s)


def too_fast(wanted_per_s: float, most_per_s: float, speed_per_s: float) -> str | None:
    """What to say before a run that this machine will hardly keep up with; None if it will."""
    usable_per_s = USABLE_FRAC * most_per_s
    if wanted_per_s <= usable_per_s:
        return None
    speed = _rounded_down(speed_per_s * usable_per_s / wanted_per_s)
    return (
        f"{wanted_per_s:.0f} pods a second are too many for this machine: it plays {most_per_s:.0f} at most with "
        f"nothing else to do, about {usable_per_s:.0f} in the demo. Pods will wait for the scheduler, not for GPUs, "
        f"and the figures mean little. Use --speed {speed:g}, or fewer nodes"
    )


def fell_behind(
    *,
    most_behind_s: float,
    behind_s: float,
    untried: int,
    wanted_per_s: float,
    tried_per_s: float,
    speed_per_s: float,
    failed_calls: int,
) -> str | None:
    """What the summary says of a run that did not keep up; None if it did."""
    if most_behind_s <= LATE_S:
        return None
    if failed_calls:
        # Each held the scheduler until its time was up; that is told of a machine by no figure here.
        left = f"; at the end {untried} had not been tried once" if untried else ""
        return (
            f"{failed_calls} calls of the daemon failed, and pods waited for them up to {most_behind_s:.0f} s{left}: "
            "the figures above mean little"
        )
    if behind_s <= LATE_S:
        return f"pods waited for the scheduler up to {most_behind_s:.1f} s; it caught up"
    speed = _rounded_down(speed_per_s * min(1.0, USABLE_FRAC * tried_per_s / wanted_per_s))
    return (
        f"this machine did not keep up: {wanted_per_s:.0f} pods a second wanted, {tried_per_s:.0f} tried; at the end "
        f"{untried} pods had not been tried once, the oldest for {behind_s:.0f} s. The figures above mean little: "
        f"use --speed {speed:g}, or fewer nodes"
    )


def _rounded_down(speed_per_s: float) -> float:
    """To a number that a person would type."""
    for step in (100.0, 10.0, 1.0):
        if speed_per_s >= 2 * step:
            return speed_per_s // step * step
    return max(round(speed_per_s, 1), 0.1)
