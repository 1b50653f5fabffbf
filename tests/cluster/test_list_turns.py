"""A list must not hold the event loop: its objects are handed out in turns, with everybody else in between."""

from __future__ import annotations

import asyncio
import itertools

from scheduler.cluster.port import ClusterEvent, Kind, Listed
from scheduler.cluster.reflector import MOST_A_TURN, Health, Reflector
from scheduler.cluster.transport import Transport
from scheduler.core.clock import ManualClock
from tests.cluster.test_kubernetes_traps import Script, a_list, a_watch, pod

PODS = 500


async def most_between_two_turns(transport: Transport, cost_s: float, kinds: int = 1) -> float:
    """Follow lists whose objects cost so much to take; return the most that was spent in one turn of the loop."""
    clock = transport.clock
    assert isinstance(clock, ManualClock)
    loop, health = asyncio.get_running_loop(), Health()
    spent_s = most_s = 0.0
    listed = 0
    beating = True

    def beat() -> None:
        nonlocal spent_s, most_s
        most_s, spent_s = max(most_s, spent_s), 0.0
        if beating:
            loop.call_soon(beat)

    async def follow() -> None:
        nonlocal spent_s, listed
        async for event in Reflector(Kind.POD, transport, health).events():
            if isinstance(event, Listed):
                listed += 1
                return
            # As the store does: within the reflector's own turn.
            clock.advance(cost_s)
            spent_s += cost_s

    beat()
    async with asyncio.TaskGroup() as group:
        for _ in range(kinds):
            group.create_task(follow())
    beating = False
    await asyncio.sleep(0)
    assert listed == kinds
    assert health.reading == 0
    return most_s


async def run(cost_s: float, kinds: int = 1) -> float:
    script = Script(lists=[a_list(*(pod(f"p{n}") for n in range(PODS)))], watches=[a_watch()])
    async with script.cluster() as cluster:
        cluster.transport.clock = ManualClock()
        return await most_between_two_turns(cluster.transport, cost_s, kinds)


async def test_costly_objects_are_taken_for_half_a_millisecond_at_a_time() -> None:
    cost_s = 0.000_05
    assert await run(cost_s) <= 0.000_5 + 2 * cost_s


async def test_lists_that_are_read_together_share_the_turns() -> None:
    cost_s = 0.000_05
    kinds = 4
    # Whoever begins reckons with those that have begun: where all begin in one turn, that one is longer.
    want_first_s = 0.000_5 * sum(1 / n for n in range(1, kinds + 1))
    assert await run(cost_s, kinds) <= want_first_s + cost_s * kinds


async def test_a_clock_that_stands_still_does_not_make_one_long_turn() -> None:
    took: list[int] = []
    script = Script(lists=[a_list(*(pod(f"p{n}") for n in range(PODS)))], watches=[a_watch()])
    events: list[ClusterEvent] = []
    loop = asyncio.get_running_loop()

    def beat() -> None:
        took.append(len(events))
        if len(events) <= PODS:
            loop.call_soon(beat)

    async with script.cluster() as cluster:
        cluster.transport.clock = ManualClock()
        beat()
        async for event in Reflector(Kind.POD, cluster.transport, Health()).events():
            events.append(event)
            if isinstance(event, Listed):
                break
        await asyncio.sleep(0)
    assert max(after - before for before, after in itertools.pairwise(took)) <= MOST_A_TURN + 1
