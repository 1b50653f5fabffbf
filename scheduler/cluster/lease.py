"""Who leads: one holder of a coordination.k8s.io/v1 Lease, and never two that act.

The rule that makes two leaders impossible: we stop acting `deadline_s` after the *beginning* of our last good request,
others take over `lease_s` after they saw the record change, which is later. Both are counted on each machine's own
monotonic clock, so that wall clocks may be hours apart. `renewTime` is written for people and never read.
The published asyncio electors were tried and not used: with a frozen API server both go on acting (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from scheduler.cluster.api_request import Target
from scheduler.cluster.lease_record import LeaseTimes, Record, decode_record, micro_time
from scheduler.cluster.objects import LeaseSpec
from scheduler.cluster.transport import Transport
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiNotFound, ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

# How soon who becomes fit stands for election, if nobody leads.
FIT_EVERY_S = 0.1


class Elector:
    """Takes part in the election for one Lease.

    `term` is the Lease's leaseTransitions: each takeover has a higher one, so it fences what an old leader sent.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        namespace: str,
        name: str = "wattbalance",
        identity: str,
        times: LeaseTimes | None = None,
    ) -> None:
        """Args are the Lease's place and our name in it: pod name and a random part, new with each process."""
        self.identity = identity
        self.times = times or LeaseTimes()
        self.term = 0
        """Of our leading, or the last one we saw."""
        self.deadline_mono_s = -math.inf
        """Until when we may act; -inf while we do not lead."""
        self.leader = ""
        """Who holds the Lease as far as we know; empty = nobody."""
        self.takeovers = 0
        """How often we began to lead, for metrics."""
        self.losses = 0
        """How often leading ended against our will, for metrics."""
        self._transport = transport
        self._clock = transport.clock
        lease = f"the Lease {namespace}/{name} (lease.namespace, lease.name)"
        without = f"until then no replica can lead, which takes {lease}"
        self._target = Target(
            group="coordination.k8s.io",
            resource="leases",
            namespace=namespace,
            name=name,
            without=f'{without}; resourceNames: ["{name}"] is enough',
        )
        # A rule for `create` that names its object allows nothing.
        self._unnamed = replace(self._target, name="", without=without)
        self._seen: LeaseSpec | None = None
        self._seen_mono_s = -math.inf
        self._record: Record | None = None
        self._complained = ""
        self._in_doubt = False
        """Whether a write of ours was sent, and no answer has told what came of it."""
        self.is_fit: Callable[[], bool] = lambda: True
        """Whether we know enough to lead: who does not takes no Lease, and hands back the one it holds."""

    @property
    def fails(self) -> bool:
        """Whether the last attempt at the Lease failed, though nobody else was faster."""
        return bool(self._complained)

    def is_leading(self, now_mono_s: float) -> bool:
        """Whether we may act now. Ask before each act: a stalled event loop does not know that it lost."""
        return now_mono_s < self.deadline_mono_s

    async def run(self, lead: Callable[[int], Awaitable[None]]) -> None:
        """Stand for election for ever; while leading, run `lead(term)`.

        At the deadline `lead` is cancelled *and awaited* before anything else, and so it is when we are cancelled,
        before the Lease is handed back. What `lead` raises ends the election and is raised here; where it returns,
        we step down and return.
        """
        try:
            while True:
                await self._acquire()
                if await self._leading(lead):
                    return
                if not self.is_fit():
                    # Another replica may be fit, and would wait for a Lease that we could renew for ever.
                    await self._release()
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.times.deadline_s):
                    if await self._attempt():
                        return
                self._complained = ""
            except (ClusterError, TimeoutError) as error:
                self._complain(error)
            await self._pause()

    async def _pause(self) -> None:
        """Wait until the next attempt; who becomes fit meanwhile need not wait for it."""
        was_fit, left_s = self.is_fit(), self._retry_s()
        while left_s > 0 and (was_fit or not self.is_fit()):
            await asyncio.sleep(min(left_s, FIT_EVERY_S))
            left_s -= FIT_EVERY_S

    async def _attempt(self) -> bool:
        """Look, and take the Lease if it is free and we are fit. Returns whether it is ours."""
        try:
            record = await self._read()
        except ApiNotFound:
            # After a deletion the count goes on from what we saw, or agents would refuse the new leader.
            return self.is_fit() and await self._create(self.term + 1)
        if record.spec != self._seen:
            self._seen = record.spec
            self._seen_mono_s = self._clock.mono_s()
            self.leader = record.holder
            self.term = max(self.term, record.transitions)
        if record.holder and record.holder != self.identity:
            # A holder may have been configured with a longer lease than ours.
            lasts_s = max(self.times.lease_s, float(record.spec.lease_duration_seconds or 0))
            if self._clock.mono_s() < self._seen_mono_s + lasts_s:
                return False
        return self.is_fit() and await self._write(record, max(self.term, record.transitions) + 1)

    async def _create(self, term: int) -> bool:
        try:
            return await self._write(None, term)
        except ApiNotFound as error:
            namespace = self._target.namespace
            raise ApiNotFound(
                f"{error}; nobody can lead before namespace {namespace} (lease.namespace) is there: kubectl create "
                f"namespace {namespace}, or kubectl apply -f deploy/rbac.yaml",
                status=error.status,
            ) from error

    async def _leading(self, lead: Callable[[int], Awaitable[None]]) -> bool:
        """Lead until it is lost. Returns True if `lead` ended by itself."""
        self.takeovers += 1
        log.info("leading with term %d", self.term)
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(_awaited(lead(self.term)), name=f"lease.lead[{self.term}]")
                renewing = group.create_task(self._renew(), name=f"lease.renew[{self.term}]")
                await asyncio.wait((work, renewing), return_when=asyncio.FIRST_COMPLETED)
                # From here on nothing may be sent, even while the tasks clean up.
                ended = work.done()
                if not ended:
                    self.deadline_mono_s = -math.inf
                work.cancel()
                renewing.cancel()
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:
                raise errors.exceptions[0] from None
            raise
        if not ended:
            self.losses += 1
            log.warning("no longer leading (term %d)", self.term)
        return ended

    async def _renew(self) -> None:
        """Keep the Lease; returns when it is lost, the deadline has come, or we are not fit any more."""
        while True:
            left_s = self.deadline_mono_s - self._clock.mono_s()
            if left_s <= 0:
                return
            # In slices of the retry interval: the loop's clock stands still while a VM is suspended, ours does not.
            await asyncio.sleep(min(self._retry_s(), left_s))
            left_s = self.deadline_mono_s - self._clock.mono_s()
            if left_s <= 0 or not self.is_fit():
                return
            try:
                async with asyncio.timeout(left_s):
                    if not await self._renew_once():
                        return
            except TimeoutError:
                continue
            except ClusterError as error:
                self._complain(error)

    async def _renew_once(self) -> bool:
        """One renewal. Returns False where somebody else holds the Lease now; raises if that is not known."""
        try:
            return await self._write(self._record, self.term)
        except ApiConflict:
            pass
        except ApiNotFound:
            self._record = None
            return False
        try:
            record = await self._read()
        except ApiNotFound:
            self._record = None
            return False
        if record.holder != self.identity or record.transitions != self.term:
            self.leader, self._record = record.holder, None
            return False
        # Somebody touched the labels, or a write of ours that timed out was carried out.
        return await self._write(record, self.term)

    async def _read(self) -> Record:
        return decode_record(await self._call("get"))

    async def _write(self, record: Record | None, term: int) -> bool:
        """Write us as the holder; pinned by the resourceVersion in `whole`. Returns False if another was faster."""
        began_mono_s = self._clock.mono_s()
        now = micro_time(self._clock.unix_s())
        renewal = record is not None and record.holder == self.identity and record.transitions == term
        old_spec = record.whole.get("spec") if record is not None else None
        whole: dict[str, object] = {
            **(record.whole if record is not None else {}),
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "spec": {
                **(old_spec if isinstance(old_spec, dict) else {}),
                "holderIdentity": self.identity,
                "leaseDurationSeconds": math.ceil(self.times.lease_s),
                "acquireTime": record.spec.acquire_time if renewal and record is not None else now,
                "renewTime": now,
                "leaseTransitions": term,
            },
        }
        if record is None:
            whole["metadata"] = {"name": self._target.name, "namespace": self._target.namespace}
        self._in_doubt = True
        try:
            answer = await self._call("update" if record is not None else "create", whole)
        except ApiConflict:
            self._in_doubt = False
            if renewal:
                raise
            return False
        self._record = decode_record(answer)
        self._in_doubt = False
        self._seen, self._seen_mono_s = self._record.spec, self._clock.mono_s()
        self.term = term
        self.leader = self.identity
        self._complained = ""
        # Counted from before the request: others count from when they see it, which is later.
        self.deadline_mono_s = began_mono_s + self.times.deadline_s
        return True

    async def _call(self, verb: str, body: object = None) -> bytes:
        # A lost request must leave time for a second one before the deadline.
        timeout_s = min(self._transport.limits.lease_timeout_s, self.times.deadline_s / 2)
        target = self._unnamed if verb == "create" else self._target
        return await self._transport.call(verb, target, body=body, session="lease", timeout_s=timeout_s)

    async def _release(self) -> None:
        """Hand the Lease back, so that the successor need not wait. Only a courtesy: nothing rests on it."""
        self.deadline_mono_s = -math.inf
        record, self._record = self._record, None
        in_doubt, self._in_doubt = self._in_doubt, False
        if record is None and not in_doubt:
            return
        try:
            async with asyncio.timeout(self.times.release_s):
                try:
                    if record is not None:
                        await self._hand_back(record)
                        return
                except ApiConflict:
                    pass
                # What our end cut off, taking it or a renewal, was carried out all the same.
                record = await self._read()
                if record.holder == self.identity:
                    await self._hand_back(record)
        except (ClusterError, TimeoutError) as error:
            log.info("the Lease was not handed back: %s", error)
        self.leader = ""

    async def _hand_back(self, record: Record) -> None:
        spec = record.whole.get("spec")
        whole = {**record.whole, "spec": {**(spec if isinstance(spec, dict) else {}), "holderIdentity": ""}}
        await self._call("update", whole)

    def _retry_s(self) -> float:
        return self.times.retry_s * random.uniform(1.0, 1.2)  # noqa: S311 - not a secret

    def _complain(self, error: BaseException) -> None:
        # Once per cause, not each two seconds.
        text = type(error).__name__
        if text != self._complained:
            self._complained = text
            level = logging.ERROR if isinstance(error, ApiForbidden) else logging.WARNING
            log.log(level, "Lease %s/%s: %s", self._target.namespace, self._target.name, error)


async def _awaited(work: Awaitable[None]) -> None:
    await work
