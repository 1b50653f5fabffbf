"""While something is only observed: keeps the world as it would be with us beside the real one (decision/shadow.py).

It begins anew when what is observed changes, or by what is decided, and is there only meanwhile: who acts everywhere
pays nothing for it, and keeps the last report. What one shows is in the log when it ends, also by the end of the
process. It is made of what the store knows, a few nodes and pods a turn, and then follows events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from scheduler.cluster.port import ClusterEvent, Kind, Listed
from scheduler.cluster.readings import StoreHandler
from scheduler.config_settings import Mode, Settings
from scheduler.core.clock import Clock
from scheduler.core.log import kv
from scheduler.decision.decider import Decider, Outcome
from scheduler.decision.shadow import Shadow
from scheduler.pause import Pause
from scheduler.report.observation import ObserveReport
from scheduler.report.observe import ended

log = logging.getLogger(__name__)

LOOK_S = 1.0
# Load forgets within seconds: twelve readings a minute make a mean.
MEASURE_S = 5.0
# A node takes 0.4 ms, a pod 0.1 ms.
NODES_A_TURN = 5
PODS_A_TURN = 20
GIVEN_UP = "the world as it would be with us is given up"


def observed(settings: Settings, pause: Pause) -> str:
    """What is only observed, and why; empty while we act everywhere."""
    if settings.mode is Mode.OBSERVE:
        return "everything, by `mode: observe`"
    if pause.now is not None:
        return f"everything, {pause.now}"
    pools = [pool.name for pool in settings.pools if pool.mode is Mode.OBSERVE]
    return f"{'pool' if len(pools) == 1 else 'pools'} {', '.join(pools)}" if pools else ""


def observed_as(settings: Settings, pause: Pause) -> object:
    """What stays the same while the same is observed, whatever words there are for it.

    A pause whose reason is edited goes on; another ConfigMap is another pause.
    """
    if settings.mode is Mode.OBSERVE:
        return Mode.OBSERVE
    if pause.now is not None:
        return pause.now.uid
    return tuple(pool.name for pool in settings.pools if pool.mode is Mode.OBSERVE)


class Observing:
    """Keeps the shadow while there is something to observe.

    Args:
        decider: whose choices are only observed.
        handler: what takes telemetry.
        clock: for the present.
        what: says what is observed and why, in words; empty while we act everywhere.
        by: what else it begins anew with: what is observed (`observed_as`), and what of the configuration decides,
            beside what the store has of it.
        is_ready: whether the first lists are in.
    """

    def __init__(
        self,
        decider: Decider,
        handler: StoreHandler,
        clock: Clock,
        what: Callable[[], str],
        by: Callable[[], object],
        is_ready: Callable[[], bool],
    ) -> None:
        self.shadow: Shadow | None = None
        """None until it has begun, and while nothing is observed."""
        self.last: ObserveReport | None = None
        """What the last one showed when it ended, until the next begins."""
        self.failed = False
        """Whether it is given up until what is observed changes: an estimate must not end what it watches."""
        self.what = what
        self._decider = decider
        self._handler = handler
        self._clock = clock
        self._by = by
        self._is_ready = is_ready
        self._follows: Shadow | None = None
        """The same, from its first moment on."""
        self.began_for = ""
        """What it is of, in the newest words while it goes on."""
        self._rests_on: tuple[object, ...] = ()
        self._measured_mono_s = 0.0
        self.process_since_unix_s = clock.unix_s()
        """Nothing from before is known here."""

    def see(self, event: ClusterEvent) -> None:
        """Take an event of nodes or pods that the store has taken."""
        shadow, now_mono_s = self._follows, self._clock.mono_s()
        if shadow is None:
            return
        try:
            if isinstance(event, Listed):
                shadow.keep(event.kind, now_mono_s)
            elif event.kind is Kind.NODE:
                shadow.see_node(event.object.metadata.name, now_mono_s)
            elif event.kind is Kind.POD:
                shadow.see_pod(event.object.metadata.uid, now_mono_s)
        except Exception:
            log.exception(GIVEN_UP)
            self._give_up()

    def _see_devices(self, node: str) -> None:
        if self._follows is not None:
            try:
                self._follows.see_node(node, self._clock.mono_s())
            except Exception:
                log.exception(GIVEN_UP)
                self._give_up()

    def _ask(self, outcome: Outcome, now_mono_s: float) -> None:
        if self.shadow is not None:
            try:
                self.shadow.ask(outcome, now_mono_s)
            except Exception:
                log.exception(GIVEN_UP)
                self._give_up()

    def _give_up(self) -> None:
        self._end()
        self.failed = True

    async def run(self) -> None:
        """Look for ever."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            self._keep()

    async def look(self) -> None:
        """Begin, go on, or end."""
        what = self.what()
        # By value: a reload exchanges all that is decided by, whatever key has changed.
        rests_on = (bool(what), self._by(), self._decider.store.settings)
        if rests_on != self._rests_on:
            self._keep()
            self._end()
            self._rests_on, self.failed = rests_on, False
        elif self.shadow is not None:
            self.began_for = what
        if not what or self.failed or not self._is_ready():
            return
        try:
            if self.shadow is None:
                await self._begin(what)
            else:
                await self._go_on(self.shadow)
        except Exception:
            log.exception(GIVEN_UP)
            self._give_up()

    def _keep(self) -> None:
        if self.shadow is not None:
            clock = self._clock
            try:
                told = ended(self.shadow, self.began_for, clock.mono_s(), clock.unix_s())
            except Exception:
                log.exception("what was observed cannot be told any more")
                return
            self.last = told
            # The log outlives the process, and is read as a report without its pods.
            log.info("what observing has shown", extra=kv(report=replace(told, pods=[])))

    def _end(self) -> None:
        if self._follows is not None:
            log.info("the world as it would be with us has ended", extra=kv(so_far=self._follows.so_far))
        self.shadow = self._follows = self._handler.beside = self._decider.on_observed = None
        self._decider.store.on_devices = None

    async def _begin(self, what: str) -> None:
        clock, store = self._clock, self._decider.store
        shadow = Shadow(self._decider, clock.mono_s(), clock.unix_s())
        # From here on it hears of what changes; what it has not been told of yet, it is told as it is by then.
        self._follows, self._handler.beside = shadow, shadow.store
        self.began_for, self.last = what, None
        store.on_devices = self._see_devices
        names, uids = list(store.nodes), list(store.pods)
        for start in range(0, len(names), NODES_A_TURN):
            for name in names[start : start + NODES_A_TURN]:
                shadow.see_node(name, clock.mono_s())
            await asyncio.sleep(0)
        for start in range(0, len(uids), PODS_A_TURN):
            for uid in uids[start : start + PODS_A_TURN]:
                shadow.see_pod(uid, clock.mono_s())
            await asyncio.sleep(0)
        shadow.store.synced |= {Kind.NODE, Kind.POD}
        if self._follows is not shadow:
            # Given up meanwhile.
            return
        self._decider.on_observed = self._ask
        self.shadow = shadow
        log.info("observing", extra=kv(what=what, nodes=len(names), pods=len(uids)))

    async def _go_on(self, shadow: Shadow) -> None:
        now_mono_s = self._clock.mono_s()
        for _ in shadow.try_waiting(now_mono_s):
            await asyncio.sleep(0)
        if now_mono_s - self._measured_mono_s >= MEASURE_S:
            self._measured_mono_s = now_mono_s
            for _ in shadow.measure(now_mono_s):
                await asyncio.sleep(0)
