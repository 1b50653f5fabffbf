"""Pods that were on a node before its GPUs were divided anew, or called otherwise: what they hold of it now. Pure.

A device plugin that begins to share GPUs, or ceases to, leaves running pods what it gave them, and kube-scheduler goes
on counting them by the number that they asked for: a pod with a whole GPU then seems to hold a fourth. Here it holds
four fourths. A replica that has come to a node of whole GPUs keeps its GPU from being anybody else's: it holds one.

What a unit was is known of pods that were seen there before, as long as this process runs. Who comes later, or was
there before it began, is taken for what the node says now; where replicas have another name now, for a whole GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil

from scheduler.cluster.pods import PodFacts
from scheduler.cluster.shares import MIG_PREFIX, SHARED_SUFFIX, Offer
from scheduler.core.nouns import Units

Offers = Mapping[str, Offer]

_WHOLE = Offer(1.0)
# Into more parts nobody divides a GPU.
_MOST_PARTS = 1000


def note(pods: Mapping[str, PodFacts], came_to: dict[str, Offers], before: Offers, now: Offers) -> None:
    """What a node offers has changed: keep of its pods what was offered when they came, unless it is so again.

    Args:
        pods: Those on the node, by uid.
        came_to: What was offered when they came, of those of whom it is not offered now.
        before: What was offered until now. Nothing, while the plugin restarts, or since the node has just been seen.
        now: What is offered.
    """
    if before == now:
        return
    for uid in pods:
        if before:
            came_to.setdefault(uid, before)
        if came_to.get(uid) == now:
            del came_to[uid]


def held(facts: PodFacts, came_to: Mapping[str, Offers], now: Offers) -> Units:
    """What a pod holds, in units of what its node offers now."""
    came = came_to.get(facts.uid)
    if came is None and all(name in now for name, _ in facts.units):
        return facts.units
    return tuple(_held(name, count, came or {}, now) for name, count in facts.units)


def told(facts: PodFacts, came_to: Mapping[str, Offers], now: Offers) -> list[str]:
    """What to say of a pod that holds more than kube-scheduler counts, for each resource; mostly nothing."""
    came = came_to.get(facts.uid, {})
    wrong = []
    for name, count in facts.units:
        counted, units = _held(name, count, came, now)
        if counted != name:
            wrong.append(f"pods hold {name}, of which none is allocatable, and {counted} is of the same GPUs")
        elif units != count:
            wrong.append(
                f"pods hold {name} from when a unit was {_part(came[name].gpus)}; now it is {_part(now[name].gpus)}"
            )
    return wrong


def _held(name: str, count: float, came: Offers, now: Offers) -> tuple[str, float]:
    successor = name if name in now else _successor(name, came, now)
    if not successor:
        return name, count
    then = came.get(name, now[successor] if successor == name or name.endswith(SHARED_SUFFIX) else _WHOLE)
    if successor == name and then.units == now[name].units:
        # The same units as ever, of which a label tells otherwise: one that was missing for a while, or wrong.
        return name, count
    larger = max(then.gpus / now[successor].gpus, 1.0)
    # Sums of sevenths round; and what holds a part of a unit keeps it from others.
    return successor, float(ceil(round(count * larger, 3)))


def _successor(name: str, came: Offers, now: Offers) -> str:
    """By which name a node offers now what it called so; empty if it does not.

    Slices are what they are called: who holds one keeps its GPU from being divided otherwise.
    """
    base = name.removesuffix(SHARED_SUFFIX)
    akin = [
        other
        for other in now
        if other.removesuffix(SHARED_SUFFIX) == base
        or not (base.startswith(MIG_PREFIX) or other.startswith(MIG_PREFIX))
    ]
    # Those that were there beside it, and are no more than before, are other GPUs.
    akin = [other for other in akin if other not in came or _gpus(now[other]) > _gpus(came[other]) + 1e-3]
    own = [other for other in akin if other.removesuffix(SHARED_SUFFIX) == base]
    return max(own or akin, key=lambda other: (_gpus(now[other]), other), default="")


def _gpus(offer: Offer) -> float:
    return offer.units * offer.gpus


def _part(gpus: float) -> str:
    part = Fraction(gpus).limit_denominator(_MOST_PARTS)
    return "a whole GPU" if part == 1 else f"{part} of a GPU"
