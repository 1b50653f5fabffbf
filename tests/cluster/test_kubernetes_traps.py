"""What API servers do at their worst, played by a raw fake: each test is one trap that was seen in the wild."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from scheduler.cluster.api_request import Limits
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.port import Changed, EventNote, Gone, Kind
from scheduler.cluster.reflector import Pace
from scheduler.core.clock import SystemClock
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiRejected, ApiUnavailable, ClusterError
from scheduler.simulate.ports import free_port
from tests.contracts.cluster_contract import Json, beside, changed, eventually, following, gone
from tests.fakes.server_credentials import from_server

CLOCK = SystemClock()
PACE = Pace(first_s=0.01, most_s=0.05, refused_s=0.05, refused_required_s=0.05, watch_s=(240.0, 480.0))

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Script:
    """A fake API server: each collection has a list of answers for `list` and one for `watch`; the last repeats."""

    lists: list[Answer] = field(default_factory=list)
    watches: list[Answer] = field(default_factory=list)
    others: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    """`list`, `watch` or the method, with the query and the headers."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Take the next answer of the script."""
        query = dict(request.query)
        if request.method == "GET" and request.path.endswith(("pods", "nodes", "cronjobs", "resourceslices")):
            what = "watch" if "watch" in query else "list"
        else:
            what = request.method
        self.asked.append((what, query, dict(request.headers)))
        answers = {"list": self.lists, "watch": self.watches}.get(what, self.others)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return await answer(request)

    def queries(self, what: str) -> list[dict[str, str]]:
        """The queries of one sort, in order."""
        return [query for asked, query, _ in self.asked if asked == what]

    @contextlib.asynccontextmanager
    async def cluster(self, limits: Limits | None = None) -> AsyncIterator[KubernetesCluster]:
        """Run the fake and an adapter on it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app, host="127.0.0.1") as server:
            credentials = from_server(str(server.make_url("")), token="t", clock=CLOCK)
            async with KubernetesCluster(
                credentials, CLOCK, limits=limits, pace=PACE, probe_every_s=0.1
            ) as cluster:
                yield cluster


def pod(name: str, version: str = "5", **meta: object) -> Json:
    """A pod as a server writes it; the uid is `u-` and its name."""
    return {"metadata": {"name": name, "uid": f"u-{name}", "resourceVersion": version, **meta}}


def answers(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """One JSON answer."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers=headers)

    return answer


def a_list(*items: Json, version: str = "10", token: str = "") -> Answer:
    """A page of pods."""
    return answers(
        {"kind": "PodList", "metadata": {"resourceVersion": version, "continue": token}, "items": items}
    )


def a_watch(*lines: Json | bytes, then: str = "stay") -> Answer:
    """Lines of a watch; `stay` stays connected and silent, `end` ends in order, `break` cuts the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        if then == "break" and request.transport is not None:
            request.transport.abort()
        elif then == "stay":
            with contextlib.suppress(asyncio.CancelledError):
                while request.transport is not None and not request.transport.is_closing():
                    await asyncio.sleep(0.01)
        return response

    return answer


def event(kind: str, item: Json) -> Json:
    """One watch event."""
    return {"type": kind, "object": item}


def failure(code: int, message: str = "too old") -> Json:
    """A metav1.Status, whose `status` is a string unlike a pod's."""
    return {"kind": "Status", "metadata": {}, "status": "Failure", "message": message, "code": code}


async def test_410_inside_a_watch_of_status_200_leads_to_a_new_list() -> None:
    script = Script(
        lists=[a_list(pod("a"), version="10"), a_list(pod("b"), version="20")],
        watches=[a_watch(event("ERROR", failure(410)), then="end"), a_watch()],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        second = await pods.listed(2)
        assert second.keys == {"u-b"}
        await eventually(lambda: len(script.queries("watch")) == 2)
        assert [query["resourceVersion"] for query in script.queries("watch")] == ["10", "20"]
        assert cluster.counters.relists[Kind.POD] == 1


async def test_410_as_a_status_leads_to_a_new_list_too() -> None:
    script = Script(
        lists=[a_list(pod("a"))],
        watches=[answers(failure(410), 410), a_watch()],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed(2)
        await eventually(lambda: len(script.queries("watch")) == 2)


async def test_a_server_that_says_410_for_ever_is_asked_ever_more_slowly() -> None:
    script = Script(lists=[a_list()], watches=[a_watch(event("ERROR", failure(410)), then="end")])
    pace = Pace(first_s=1.0, most_s=30.0)
    # Full pauses, without waiting for them: after n failures at least half of 2^(n-1).
    want_least_s = [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [pace.pause_s(n) >= want_s for n, want_s in enumerate(want_least_s, 1)] == [True] * 7
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed(3)


async def test_another_error_in_a_watch_resumes_from_the_last_version() -> None:
    script = Script(
        lists=[a_list(version="10")],
        watches=[
            a_watch(event("ADDED", pod("a", "11")), event("ERROR", failure(500)), then="end"),
            a_watch(event("ADDED", pod("b", "12"))),
        ],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("b"))
        assert [query["resourceVersion"] for query in script.queries("watch")] == ["10", "11"]
        assert len(script.queries("list")) == 1


async def test_a_broken_connection_resumes_and_drops_half_a_line() -> None:
    half = json.dumps(event("ADDED", pod("b", "12"))).encode()[:40]
    script = Script(
        lists=[a_list(version="10")],
        watches=[
            a_watch(event("ADDED", pod("a", "11")), half, then="break"),
            a_watch(event("ADDED", pod("b", "12"))),
        ],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("b"))
        assert script.queries("watch")[-1]["resourceVersion"] == "11"
        assert len(script.queries("list")) == 1


async def test_bookmarks_move_the_version_and_are_nearly_empty() -> None:
    bookmark = event(
        "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "99", "creationTimestamp": None}}
    )
    script = Script(
        lists=[a_list(version="10")],
        watches=[a_watch(bookmark, then="end"), a_watch(event("ADDED", pod("a", "100")))],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("a"))
        assert [query["resourceVersion"] for query in script.queries("watch")] == ["10", "99"]
        assert script.queries("watch")[0]["allowWatchBookmarks"] == "true"
        assert 240 <= int(script.queries("watch")[0]["timeoutSeconds"]) <= 480
        assert cluster.counters.watch_events[Kind.POD] == 1


async def test_lists_are_paged_and_never_ask_for_version_zero() -> None:
    script = Script(
        lists=[a_list(pod("a"), token="t1"), a_list(pod("b"), token="t2"), a_list(pod("c"), version="30")],
        watches=[a_watch()],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        assert (await pods.listed()).keys == {"u-a", "u-b", "u-c"}
        want = [{"limit": "500"}, {"limit": "500", "continue": "t1"}, {"limit": "500", "continue": "t2"}]
        assert script.queries("list") == want
        await eventually(lambda: bool(script.queries("watch")))
        assert script.queries("watch")[0]["resourceVersion"] == "30"


async def test_an_expired_continue_token_starts_again_in_pages_and_then_once_whole() -> None:
    gone_half_way = answers({**failure(410), "metadata": {"continue": "inconsistent"}}, 410)
    script = Script(
        lists=[
            a_list(pod("a"), token="t1"),
            gone_half_way,
            a_list(pod("b"), token="t2"),
            gone_half_way,
            a_list(pod("b"), pod("c")),
        ],
        watches=[a_watch()],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        # What only the dropped list had is not in the keys.
        assert (await pods.listed()).keys == {"u-b", "u-c"}
        paged = {"limit": "500"}
        want = [paged, {**paged, "continue": "t1"}, paged, {**paged, "continue": "t2"}, {}]
        assert script.queries("list") == want


async def test_a_silent_peer_is_left_and_the_watch_resumed() -> None:
    script = Script(
        lists=[a_list(version="10")],
        watches=[a_watch(), a_watch(event("ADDED", pod("a", "11")))],
    )
    async with script.cluster(Limits(silence_s=0.2)) as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("a"))
        assert [query["resourceVersion"] for query in script.queries("watch")][:2] == ["10", "10"]
        # One list for the start, one of a single object that compares the versions.
        assert script.queries("list")[:2] == [{"limit": "500"}, {"limit": "1"}]
        assert not cluster.counters.relists[Kind.POD]


async def test_a_silent_watch_on_a_store_restored_from_a_backup_is_listed_again() -> None:
    script = Script(
        lists=[a_list(pod("a"), version="1000"), a_list(version="400"), a_list(pod("old"), version="400")],
        watches=[a_watch()],
    )
    async with script.cluster(Limits(silence_s=0.2)) as cluster, following(cluster, Kind.POD) as pods:
        assert (await pods.listed(2)).keys == {"u-old"}
        await eventually(lambda: script.queries("watch")[-1]["resourceVersion"] == "400")


async def test_lines_over_512_kib_are_read() -> None:
    big = pod("big", "11", annotations={"x.io/a": "x" * 1_400_000})
    script = Script(
        lists=[a_list()], watches=[a_watch(event("ADDED", big), event("ADDED", pod("next", "12")))]
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("big"))
        await pods.until(changed("next"))
        assert not cluster.counters.watch_restarts[Kind.POD]


async def test_an_endless_line_is_cut_off_instead_of_eating_the_memory() -> None:
    script = Script(
        lists=[a_list(version="10")],
        watches=[a_watch(*[b"x" * 2**20] * 18), a_watch(event("ADDED", pod("a", "11")))],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("a"))
        assert cluster.counters.watch_restarts[Kind.POD] == 1


@pytest.mark.parametrize("garbage", [b"{}\n", b"not json\n", b'{"type":"ADDED"}\n', b"\xff\xfe\n", b"[]\n"])
async def test_garbage_in_a_watch_resumes_it(garbage: bytes) -> None:
    script = Script(
        lists=[a_list(version="10")],
        watches=[a_watch(garbage, then="end"), a_watch(event("ADDED", pod("a", "11")))],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.until(changed("a"))


async def test_watches_that_end_at_once_are_not_asked_for_in_a_busy_loop() -> None:
    script = Script(lists=[a_list()], watches=[a_watch(then="end")])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        await eventually(lambda: len(script.queries("watch")) >= 3)
        count = len(script.queries("watch"))
        await asyncio.sleep(0.1)
        # Pauses are 25 to 50 ms here by then; a busy loop makes hundreds.
        assert len(script.queries("watch")) - count <= 10


async def test_nulls_everywhere_are_read_as_absent() -> None:
    bare: Json = {
        "metadata": {
            "name": "a",
            "uid": "u-a",
            "namespace": None,
            "resourceVersion": "11",
            "labels": None,
            "annotations": {"x.io/a": None, "x.io/b": "2"},
            "ownerReferences": None,
        },
        "spec": {
            "nodeName": None,
            "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": None}}}],
        },
        "status": None,
    }
    script = Script(lists=[a_list(bare, pod("b"))], watches=[a_watch(event("MODIFIED", bare))])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        assert (await pods.listed()).keys == {"u-a", "u-b"}
        seen = await pods.until(changed("a"))
        assert isinstance(seen, Changed)
        assert seen.object.metadata.annotations == {"x.io/b": "2"}
        await eventually(lambda: cluster.counters.watch_events[Kind.POD] == 1)
        assert not cluster.counters.undecodable


async def test_a_list_whose_items_are_null_is_empty() -> None:
    script = Script(
        lists=[answers({"metadata": {"resourceVersion": "1"}, "items": None})], watches=[a_watch()]
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        assert not (await pods.listed()).keys


async def test_one_object_that_makes_no_sense_does_not_stop_the_others() -> None:
    odd: Json = {"metadata": {"name": "odd", "uid": "u-odd", "labels": ["not", "a", "map"]}}
    script = Script(
        lists=[a_list(odd, pod("a"))],
        watches=[
            a_watch(event("ADDED", odd), event("ADDED", pod("b", "11")), event("DELETED", pod("b", "12")))
        ],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        assert (await pods.listed()).keys == {"u-a"}
        assert isinstance(await pods.until(gone("b")), Gone)
        assert cluster.counters.undecodable[Kind.POD] == 2


async def test_429_is_waited_for_as_long_as_the_server_says() -> None:
    busy = answers(failure(429, "slow down"), 429, {"Retry-After": "1"})
    script = Script(others=[busy, answers(pod("a"))])
    async with script.cluster() as cluster:
        began_mono_s = CLOCK.mono_s()
        assert (await cluster.get_pod("x", "a")).metadata.name == "a"
        assert CLOCK.mono_s() - began_mono_s >= 1.0
        assert cluster.counters.throttled == 1


async def test_429_for_longer_than_the_call_may_take_is_told_to_the_caller() -> None:
    script = Script(others=[answers(failure(429), 429, {"Retry-After": "600"})])
    async with script.cluster() as cluster:
        with pytest.raises(ApiUnavailable) as caught:
            await cluster.get_pod("x", "a")
        assert caught.value.retry_after_s == 600.0
        assert len(script.asked) == 1


async def test_429_on_a_list_holds_the_reflector_back() -> None:
    script = Script(lists=[answers(failure(429), 429, {"Retry-After": "1"}), a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()
        assert cluster.counters.throttled == 1


@pytest.mark.parametrize("value", ["86400", "9" * 400])
async def test_a_retry_after_without_end_does_not_hold_the_reflector_for_ever(value: str) -> None:
    busy = answers(failure(503, "go away"), 503, {"Retry-After": value})
    script = Script(lists=[busy, a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await pods.listed()


@pytest.mark.parametrize("body", [{}, {"items": []}, {"metadata": {}, "items": [pod("b")]}])
async def test_a_list_without_a_version_is_none_and_takes_nothing_away(body: Json) -> None:
    script = Script(
        lists=[a_list(pod("a")), answers(body), a_list(pod("a"))],
        watches=[answers(failure(410), 410), a_watch()],
    )
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        assert [(await pods.listed(n)).keys for n in (1, 2)] == [{"u-a"}, {"u-a"}]
        assert len(script.queries("list")) == 3


async def test_what_fails_is_said_until_it_works_again() -> None:
    page = answers("<html>Log in</html>")
    gate = asyncio.Event()

    async def later(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return await a_list()(request)

    script = Script(lists=[page, later], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.POD) as pods:
        await eventually(lambda: "not a list" in cluster.failing.get(Kind.POD, ""))
        gate.set()
        await pods.listed()
        assert not cluster.failing


async def test_a_redirect_is_not_followed_and_named() -> None:
    script = Script(others=[answers("", 302, {"Location": "https://login.example/"})])
    async with script.cluster() as cluster:
        with pytest.raises(ApiUnavailable, match=r"HTTP 302: a redirect to https://login\.example/"):
            await cluster.get_pod("x", "a")
        assert len(script.asked) == 1


async def test_a_token_of_two_lines_is_an_error_that_may_pass() -> None:
    credentials = from_server("http://127.0.0.1:1", token="one\ntwo", clock=CLOCK)
    async with KubernetesCluster(credentials, CLOCK) as cluster:
        with pytest.raises(ApiUnavailable, match="a token of one line"):
            await cluster.get_pod("x", "a")


async def test_a_server_that_is_not_there_is_named_without_our_own_objects() -> None:
    credentials = from_server(f"http://127.0.0.1:{free_port()}", clock=CLOCK)
    async with KubernetesCluster(credentials, CLOCK) as cluster:
        with pytest.raises(ApiUnavailable, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection refused$"):
            await cluster.get_pod("x", "a")


async def test_a_bind_without_an_answer_is_unknown_and_not_sent_twice() -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    script = Script(others=[answers({"major": "1", "minor": "32+"}), answers({}, 201), never])
    async with script.cluster() as cluster:
        # The version is learnt here, with time to spare.
        await cluster.bind("x", "first", "u-first", "n", {})
        cluster.transport.limits = Limits(call_timeout_s=0.5)
        # On a machine that stalls the time may be over before the request came.
        while len(script.asked) < 3:
            with pytest.raises(ApiUnavailable):
                await cluster.bind("x", "a", "u-a", "n", {})
        assert [what for what, _, _ in script.asked] == ["GET", "POST", "POST"]


async def test_a_new_server_is_sent_the_uid_and_not_asked_for_it_first() -> None:
    bodies: list[Json] = []

    async def bound(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"status": "Success"}, status=201)

    script = Script(others=[answers({"major": "1", "minor": "32+"}), bound])
    async with script.cluster() as cluster:
        await cluster.bind("x", "a", "u-a", "n", {"k": "v"})
        await cluster.bind("x", "b", "u-b", "n", {"k": "v"})
    want = {"name": "a", "namespace": "x", "uid": "u-a", "annotations": {"k": "v"}}
    assert bodies[0]["metadata"] == want
    # The version once, then the Bindings alone.
    assert [what for what, _, _ in script.asked] == ["GET", "POST", "POST"]


@pytest.mark.parametrize(
    ("status", "want"), [(409, ApiConflict), (400, ApiRejected), (500, ApiUnavailable), (504, ApiUnavailable)]
)
async def test_refusals_are_told_apart(status: int, want: type[ClusterError]) -> None:
    script = Script(others=[answers({"major": "1", "minor": "32"}), answers(failure(status, "no"), status)])
    async with script.cluster() as cluster:
        with pytest.raises(want, match="no") as caught:
            await cluster.bind("x", "a", "u", "n", {})
        assert caught.value.status == status


async def test_a_missing_api_version_falls_back_to_an_older_one() -> None:
    script = Script(lists=[answers(failure(404), 404), a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.CRONJOB) as jobs:
        await jobs.listed()
        assert not cluster.refused


async def test_a_missing_api_is_said_once_and_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(lists=[answers(failure(404), 404)] * 8 + [a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.CRONJOB) as jobs:
        await eventually(lambda: Kind.CRONJOB in cluster.refused)
        await jobs.listed()
        await eventually(lambda: Kind.CRONJOB not in cluster.refused)
    assert sum("cannot be followed" in record.getMessage() for record in caplog.records) == 1


async def test_owners_are_asked_for_as_partial_objects() -> None:
    script = Script(lists=[a_list()], watches=[a_watch()])
    async with script.cluster() as cluster, following(cluster, Kind.CRONJOB) as jobs:
        await jobs.listed()
        await eventually(lambda: bool(script.queries("watch")))
    accepts = [headers["Accept"] for _, _, headers in script.asked]
    assert "as=PartialObjectMetadataList;" in accepts[0]
    assert "as=PartialObjectMetadata;" in accepts[1]


async def test_a_frozen_server_leaves_no_contact_and_a_thawed_one_does() -> None:
    frozen = asyncio.Event()

    async def maybe(_: web.Request) -> web.Response:
        if frozen.is_set():
            await asyncio.sleep(3600)
        return web.Response(text="ok")

    script = Script(others=[maybe])
    async with script.cluster() as cluster, beside(cluster.run()):
        await eventually(lambda: cluster.last_contact_mono_s is not None)
        frozen.set()
        await eventually(lambda: CLOCK.mono_s() - (cluster.last_contact_mono_s or 0.0) > 0.5)
        frozen.clear()
        await eventually(lambda: CLOCK.mono_s() - (cluster.last_contact_mono_s or 0.0) < 0.3)


async def test_a_server_that_only_fails_counts_as_no_contact() -> None:
    script = Script(others=[answers(failure(500, "etcd is away"), 500)])
    async with script.cluster() as cluster, beside(cluster.run()):
        await eventually(lambda: len(script.asked) >= 3)
        assert cluster.last_contact_mono_s is None


async def test_an_event_whose_series_is_gone_is_posted_anew() -> None:
    posted: list[Json] = []

    async def created(request: web.Request) -> web.Response:
        if request.method == "PATCH":
            return web.json_response(failure(404), status=404)
        posted.append(await request.json())
        return web.json_response({}, status=201)

    script = Script(others=[created])
    note = EventNote(kind="Node", namespace="", name="n", uid="u", reason="Quarantined", note="é" * 2000)
    async with script.cluster() as cluster, beside(cluster.run()):
        cluster.note(note)
        await eventually(lambda: len(posted) == 1)
        cluster.note(note)
        await eventually(lambda: len(posted) == 2)
    assert len(str(posted[0]["eventTime"])) == len("2026-01-01T00:00:00.000000Z")
    assert len(str(posted[0]["note"]).encode()) <= 1024
    metadata = posted[0]["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["namespace"] == "kube-system"


async def test_after_close_a_call_is_a_cluster_error() -> None:
    script = Script(others=[answers({})])
    async with script.cluster() as cluster:
        await cluster.transport.close()
        with pytest.raises(ClusterError):
            await cluster.get_pod("x", "a")


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ('pods "a" is forbidden: User "w" cannot patch resource "pods" in API group ""', ApiForbidden),
        # What a proxy says, or nobody.
        ("access denied", ApiForbidden),
        ("", ApiForbidden),
        ('admission webhook "policy.example.com" denied the request: pods stay as they are', ApiRejected),
        (
            "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            ApiRejected,
        ),
        ('pods "a" is forbidden: exceeded quota: q, requested: pods=1', ApiRejected),
        ('events "e" is forbidden: unable to create new content in namespace x', ApiRejected),
    ],
)
async def test_what_admission_refuses_of_one_object_is_no_right_that_is_missing(
    said: str, want: type[ClusterError]
) -> None:
    script = Script(others=[answers(failure(403, said), 403)])
    async with script.cluster() as cluster:
        with pytest.raises(ClusterError) as raised:
            await cluster.annotate_pod("x", "a", "u-a", {"k": "v"})
        assert type(raised.value) is want
        assert raised.value.status == 403
        assert bool(cluster.forbidden) == (want is ApiForbidden)


async def test_a_webhook_that_is_away_is_no_server_that_is_away() -> None:
    said = 'Internal error occurred: failed calling webhook "w.example.com": connection refused'
    script = Script(others=[answers(failure(500, said), 500)])
    async with script.cluster() as cluster:
        with pytest.raises(ApiRejected, match="failed calling webhook"):
            await cluster.annotate_pod("x", "a", "u-a", {"k": "v"})
