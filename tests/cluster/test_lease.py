"""The election against a fake API server that keeps one Lease and can be made to misbehave.

Leases end on a clock that only the test moves, so a machine that stalls loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scheduler.cluster.api_request import Limits
from scheduler.cluster.lease import Elector
from scheduler.cluster.lease_record import LeaseTimes, micro_time
from scheduler.cluster.transport import Transport
from scheduler.core.clock import ManualClock
from tests.contracts.cluster_contract import Json, beside, eventually
from tests.fakes.server_credentials import from_server

# The clock's seconds, but for the retries, which are slept, and the hand-back, which is waited for.
TIMES = LeaseTimes(lease_s=15.0, deadline_s=10.0, retry_s=0.02, release_s=60.0)
# For servers that do not answer: real seconds, after which a request counts as lost and is sent again.
IMPATIENT = Limits(lease_timeout_s=0.2)
PATIENT = Limits(lease_timeout_s=60.0)


@dataclass
class Store:
    """One Lease behind HTTP."""

    clock: ManualClock = field(default_factory=ManualClock)
    """Of all electors."""
    lease: Json | None = None
    version: int = 0
    requests: int = 0
    status: int = 0
    """Answer everything with this; 0 = behave."""
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    body: bytes | None = None
    """Answer this instead of a Lease."""
    conflicts: int = 0
    """So many PUTs are refused as conflicts, since somebody else touched the labels."""
    lost_answers: int = 0
    """So many PUTs are carried out and never answered."""
    renewals: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """As an API server does."""
        self.requests += 1
        if self.silent.is_set():
            await asyncio.sleep(3600)
        if self.status:
            return web.json_response({"message": "no", "code": self.status}, status=self.status)
        if self.body is not None:
            return web.Response(body=self.body)
        if request.method == "GET":
            return web.json_response(self.lease or {"message": "no"}, status=200 if self.lease else 404)
        sent: Json = await request.json()
        if request.method == "POST":
            if self.lease is not None:
                return web.json_response({"message": "exists"}, status=409)
        elif self.lease is None:
            return web.json_response({"message": "gone"}, status=404)
        elif self.conflicts:
            self.conflicts -= 1
            self.put(self.spec, labels={"touched": str(self.conflicts)})
            return web.json_response({"message": "stale"}, status=409)
        elif meta(sent).get("resourceVersion") != meta(self.lease)["resourceVersion"]:
            return web.json_response({"message": "stale"}, status=409)
        spec = sent["spec"]
        assert isinstance(spec, dict)
        self.put(spec, labels=meta(sent).get("labels"))
        self.renewals += 1
        if self.lost_answers:
            self.lost_answers -= 1
            await asyncio.sleep(3600)
        return web.json_response(self.lease, status=201 if request.method == "POST" else 200)

    @property
    def spec(self) -> Json:
        """The spec that is kept."""
        assert self.lease is not None
        spec = self.lease["spec"]
        assert isinstance(spec, dict)
        return spec

    def put(self, spec: Json, labels: object = None) -> None:
        """Write as anybody."""
        self.version += 1
        metadata = {"name": "wattbalance", "resourceVersion": str(self.version), "labels": labels}
        self.lease = {"kind": "Lease", "metadata": metadata, "spec": spec}

    @contextlib.asynccontextmanager
    async def electors(self, *identities: str, limits: Limits = PATIENT) -> AsyncIterator[list[Elector]]:
        """Electors with a transport each."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app, host="127.0.0.1") as server, contextlib.AsyncExitStack() as stack:
            found = []
            for identity in identities:
                credentials = from_server(str(server.make_url("")), clock=self.clock)
                transport = Transport(credentials, self.clock, limits=limits)
                await transport.open()
                stack.push_async_callback(transport.close)
                found.append(Elector(transport, namespace="x", identity=identity, times=TIMES))
            yield found

    async def more_requests(self, count: int) -> None:
        """Wait until so many more have come."""
        want = self.requests + count
        await eventually(lambda: self.requests >= want)

    def leads(self, elector: Elector) -> bool:
        """Whether it may act now."""
        return elector.is_leading(self.clock.mono_s())


def meta(item: Json) -> Json:
    """Its metadata."""
    found = item["metadata"]
    assert isinstance(found, dict)
    return found


def holder(store: Store) -> object:
    """Who holds the Lease."""
    return store.spec["holderIdentity"]


async def forever(_: int) -> None:
    """Lead until cancelled."""
    await asyncio.Event().wait()


async def test_a_missing_lease_is_made_and_its_times_have_six_digits() -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        assert store.spec["holderIdentity"] == "a"
        assert store.spec["leaseTransitions"] == a.term == 1
        for name in ("acquireTime", "renewTime"):
            assert len(str(store.spec[name])) == len("2026-01-01T00:00:00.000000Z")


def test_a_full_second_still_has_six_digits_and_is_utc() -> None:
    assert micro_time(1_700_000_000.0) == "2023-11-14T22:13:20.000000Z"


async def test_renewing_keeps_the_term_and_the_time_of_acquisition() -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        term, acquired = a.term, store.spec["acquireTime"]
        first = store.renewals
        await eventually(lambda: store.renewals >= first + 4)
        assert (a.term, store.spec["acquireTime"]) == (term, acquired)
        assert store.leads(a)


async def test_a_lease_of_a_living_holder_is_left_alone_however_old_its_wall_clock_is() -> None:
    store = Store()
    store.put(
        {
            "holderIdentity": "b",
            "leaseDurationSeconds": 1,
            "renewTime": micro_time(0.0),
            "leaseTransitions": 7,
        }
    )
    async with store.electors("a") as [a], beside(a.run(forever)):
        for number in range(12):
            # Renewed, with a clock that stands in 1970.
            store.put({**store.spec, "renewTime": micro_time(float(number))})
            # The first may have been answered before the renewal; with the third, the answer to the second is taken in.
            await store.more_requests(3)
            store.clock.advance(14.0)
            await store.more_requests(2)
            assert not store.leads(a)
        assert a.leader == "b"
        # Now it stops.
        store.clock.advance(1.0)
        await eventually(lambda: store.leads(a))
        assert a.term == 8


async def test_a_lease_renewed_in_the_future_is_taken_all_the_same_when_nobody_renews_it() -> None:
    store = Store()
    store.put(
        {
            "holderIdentity": "b",
            "leaseDurationSeconds": 1,
            "renewTime": micro_time(4e9),
            "leaseTransitions": 1,
        }
    )
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: a.leader == "b")
        store.clock.advance(14.0)
        await store.more_requests(2)
        assert not store.leads(a)
        store.clock.advance(1.0)
        await eventually(lambda: store.leads(a))
        assert a.term == 2


async def test_a_released_lease_is_taken_at_once() -> None:
    store = Store()
    store.put({"holderIdentity": "", "leaseDurationSeconds": 600, "leaseTransitions": 3})
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        assert a.term == 4


async def test_a_silent_server_ends_leading_and_the_work_is_awaited() -> None:
    store = Store()
    order: list[str] = []

    async def lead(term: int) -> None:
        order.append(f"begin {term}")
        try:
            await asyncio.Event().wait()
        finally:
            # Clean-up takes a while; leading anew has to wait for it.
            order.append(f"cancelled {term} {store.leads(a)}")
            await asyncio.sleep(0.2)
            order.append(f"end {term}")

    async with store.electors("a", limits=IMPATIENT) as [a], beside(a.run(lead)):
        await eventually(lambda: store.leads(a))
        store.silent.set()
        store.clock.advance(9.0)
        await store.more_requests(2)
        assert store.leads(a)
        store.clock.advance(1.0)
        assert not store.leads(a)
        await eventually(lambda: "end 1" in order)
        store.silent.clear()
        await eventually(lambda: "begin 2" in order)
        assert order == ["begin 1", "cancelled 1 False", "end 1", "begin 2"]
        assert a.losses == 1


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_server_that_refuses_ends_leading_at_the_deadline(status: int) -> None:
    store = Store()
    async with store.electors("a", limits=IMPATIENT) as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        store.status = status
        # A few refusals are not the end.
        await store.more_requests(2)
        assert a.losses == 0
        store.clock.advance(10.0)
        await eventually(lambda: a.losses == 1)
        assert not store.leads(a)
        store.status = 0
        await eventually(lambda: store.leads(a))


async def test_who_stands_by_forgets_a_failure_with_the_next_answer() -> None:
    store = Store(status=500)
    async with store.electors("a", "b") as (a, b), beside(a.run(forever)):
        await eventually(lambda: a.fails)
        store.status = 0
        await eventually(lambda: store.leads(a))
        assert not a.fails
        store.status = 500
        async with beside(b.run(forever)):
            await eventually(lambda: b.fails)
            store.status = 0
            await eventually(lambda: not b.fails)
            assert not store.leads(b)


@pytest.mark.parametrize("body", [b"", b"not json", b'{"spec": 3}', b"[]"])
async def test_an_answer_that_is_no_lease_counts_as_not_renewed(body: bytes) -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        store.body = body
        await store.more_requests(2)
        assert a.losses == 0
        store.clock.advance(10.0)
        await eventually(lambda: a.losses == 1)
        store.body = None
        await eventually(lambda: store.leads(a))


async def test_a_conflict_over_labels_is_read_again_and_renewed_with_the_labels_kept() -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        store.conflicts = 1
        first = store.renewals
        await eventually(lambda: store.renewals >= first + 2)
        assert a.losses == 0
        assert store.lease is not None
        assert meta(store.lease)["labels"] == {"touched": "0"}


async def test_a_renewal_whose_answer_is_lost_does_not_end_leading() -> None:
    store = Store()
    async with store.electors("a", limits=IMPATIENT) as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        first = store.renewals
        store.lost_answers = 1
        # The lost one was carried out, so the next meets a conflict with itself.
        await eventually(lambda: store.renewals >= first + 3)
        assert a.losses == 0


async def test_a_lease_taken_by_force_ends_leading_at_once() -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        store.put({**store.spec, "holderIdentity": "b", "leaseTransitions": 9})
        await eventually(lambda: a.losses == 1)
        assert not store.leads(a)
        assert a.leader == "b"


async def test_a_deleted_lease_is_made_again_with_a_higher_term() -> None:
    store = Store()
    async with store.electors("a") as [a], beside(a.run(forever)):
        await eventually(lambda: store.leads(a))
        store.lease = None
        await eventually(lambda: a.takeovers == 2)
        assert a.term == 2


async def test_stopping_ends_the_work_first_and_then_hands_back() -> None:
    store = Store()
    holder_at_end: list[object] = []

    async def lead(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            holder_at_end.append(store.spec["holderIdentity"])

    async with store.electors("a") as [a]:
        async with beside(a.run(lead)):
            await eventually(lambda: store.leads(a))
        assert holder_at_end == ["a"]
        assert store.spec["holderIdentity"] == ""
        assert not store.leads(a)


async def test_a_lease_is_handed_back_although_stopping_cut_off_a_renewal() -> None:
    store = Store()
    async with store.electors("a") as [a]:
        async with beside(a.run(forever)):
            await eventually(lambda: store.leads(a))
            first = store.renewals
            # Carried out and not answered yet when we stop.
            store.lost_answers = 1
            await eventually(lambda: store.renewals > first and not store.lost_answers)
        assert store.spec["holderIdentity"] == ""


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_lease_is_handed_back_although_stopping_cut_off_taking_it(*, is_there: bool) -> None:
    store = Store(lost_answers=1)
    if is_there:
        store.put({"holderIdentity": "", "leaseTransitions": 4})
    async with store.electors("a") as [a]:
        async with beside(a.run(forever)):
            await eventually(lambda: store.renewals == 1)
            assert holder(store) == "a"
            assert not store.leads(a)
        assert holder(store) == ""


async def test_a_lease_that_another_took_is_not_handed_back() -> None:
    store = Store(lost_answers=1)
    async with store.electors("a") as [a]:
        async with beside(a.run(forever)):
            await eventually(lambda: store.renewals == 1)
            store.put({"holderIdentity": "b", "leaseTransitions": 9})
        assert store.spec["holderIdentity"] == "b"


async def test_what_the_work_raises_comes_out_and_the_lease_is_handed_back() -> None:
    store = Store()

    async def lead(_: int) -> None:
        raise ZeroDivisionError

    async with store.electors("a") as [a]:
        with pytest.raises(ZeroDivisionError):
            await a.run(lead)
    assert store.spec["holderIdentity"] == ""


async def test_two_never_lead_at_once_through_silence_and_recovery() -> None:
    store = Store()
    both = 0
    terms: list[int] = []

    async def lead(term: int) -> None:
        terms.append(term)
        await asyncio.Event().wait()

    async with (
        store.electors("a", "b", limits=IMPATIENT) as [a, b],
        beside(a.run(lead), b.run(lead)),
    ):
        for _ in range(3):
            await eventually(lambda: store.leads(a) or store.leads(b))
            store.silent.set()
            # Past the deadline and past the lease.
            for _ in range(20):
                both += store.leads(a) and store.leads(b)
                store.clock.advance(1.0)
                await asyncio.sleep(0.01)
            assert not store.leads(a)
            assert not store.leads(b)
            store.silent.clear()
        await eventually(lambda: store.leads(a) or store.leads(b))
        both += store.leads(a) and store.leads(b)
        assert not both
    # Each leading had a term of its own, ever higher.
    assert terms == sorted(set(terms))
    assert len(terms) == 4


@pytest.mark.parametrize(
    ("lease_s", "deadline_s", "retry_s"), [(10.0, 15.0, 2.0), (15.0, 2.0, 2.0), (1.0, 0.5, 0.0)]
)
def test_times_under_which_two_could_lead_are_refused(
    lease_s: float, deadline_s: float, retry_s: float
) -> None:
    with pytest.raises(ValueError, match="lease > deadline"):
        LeaseTimes(lease_s=lease_s, deadline_s=deadline_s, retry_s=retry_s)


async def test_who_is_not_fit_takes_no_lease_but_knows_who_leads() -> None:
    store = Store()
    async with store.electors("a") as [a]:
        a.is_fit = lambda: False
        async with beside(a.run(forever)):
            await store.more_requests(2)
            assert store.lease is None
            store.put({"holderIdentity": "b", "leaseDurationSeconds": 15, "leaseTransitions": 3})
            await eventually(lambda: a.leader == "b")
            store.clock.advance(100.0)
            await store.more_requests(2)
            assert store.spec["holderIdentity"] == "b"
            a.is_fit = lambda: True
            await eventually(lambda: store.leads(a))


async def test_a_leader_that_is_not_fit_any_more_hands_over_without_being_waited_for() -> None:
    store = Store()
    order: list[str] = []

    async def lead(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(f"over, holder {store.spec['holderIdentity']}")

    async with store.electors("a", "b") as [a, b], beside(a.run(lead)):
        await eventually(lambda: store.leads(a))
        async with beside(b.run(forever)):
            a.is_fit = lambda: False
            # Nobody moves the clock: b does not wait for the Lease's end.
            await eventually(lambda: store.leads(b))
            assert not store.leads(a)
            assert order == ["over, holder a"]
            assert b.term == 2
            await store.more_requests(3)
            assert store.leads(b)
