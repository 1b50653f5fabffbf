"""Broken questions over real HTTP: each gets one clear answer, is counted where Prometheus sees it, and costs the next
question nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass

import pytest

from scheduler.core.nouns import Placement, Reason
from tests.builders import see_node
from tests.extender.world import Doors, Talk, World, by_names, by_nodes, served, whole

BAD, REQUESTS = "wattbalance_extender_bad_requests_total", "wattbalance_extender_requests_total"
GOOD = json.dumps(by_names("a", uid="uid-good")).encode()
POD = json.dumps(by_names()["Pod"])


@dataclass(frozen=True)
class Broken:
    body: bytes
    want_reason: str
    want_text: str
    """What the answer must say, so that its reader knows what to mend."""
    verb: str = "filter"
    headers: str = ""
    want_status: int = 400
    want_result: str = "bad-request"


def text(body: str, want_reason: str, want_text: str, verb: str = "filter") -> Broken:
    return Broken(body.encode(), want_reason, want_text, verb)


BROKEN = [
    text("", "not-json", "truncated"),
    text("hello", "not-json", "malformed"),
    text('{"Pod":', "not-json", "truncated"),
    text('{"Pod":{}} {}', "not-json", "trailing"),
    text("[]", "wrong-type", "expected an object"),
    text("null", "wrong-type", "expected an object"),
    text('{"Pod":7,"NodeNames":["a"]}', "wrong-type", "$.Pod"),
    text('{"Pod":{"spec":[]},"NodeNames":["a"]}', "wrong-type", "$.Pod.spec"),
    text(f'{{"Pod":{POD},"NodeNames":"a"}}', "wrong-type", "$.NodeNames"),
    text(f'{{"Pod":{POD},"NodeNames":[1]}}', "wrong-type", "$.NodeNames"),
    text(f'{{"Pod":{POD},"Nodes":{{"items":[7]}}}}', "wrong-type", "object"),
    text(f'{{"Pod":{POD},"NodeNameToMetaVictims":{{"a":7}}}}', "wrong-type", "object", "preempt"),
    text('{"NodeNames":["a"]}', "no-pod", "no-pod"),
    text('{"Pod":null,"NodeNames":["a"]}', "no-pod", "no-pod", "prioritize"),
    text('{"NodeNameToMetaVictims":{}}', "no-pod", "no-pod", "preempt"),
    text('{"PodName":"p","PodNamespace":"n"}', "missing-field", "Node", "bind"),
    text("[" * 200_000, "too-deep", "too-deep"),
    *(
        text(
            json.dumps({"PodName": "p", "PodNamespace": "n", "PodUID": "u", "Node": "a", key: value}),
            "wrong-type",
            key,
            "bind",
        )
        for key, value in (
            ("PodName", "../../nodes/a"),
            ("PodName", ".."),
            ("PodName", "p?dryRun=All"),
            ("PodName", "p%2f.."),
            ("PodName", "p\n"),
            ("PodName", "x" * 254),
            ("PodNamespace", "n/../other"),
            ("Node", "a/b"),
            ("PodUID", "x" * 254),
        )
    ),
    *(
        text(
            json.dumps({"Pod": {"metadata": {"uid": "u", key: value}}}), "wrong-type", f"metadata.{key}", verb
        )
        for key, value in (
            ("uid", "x" * 254),
            ("name", "x" * 254),
            ("name", "a/b"),
            ("namespace", "../../nodes"),
        )
        for verb in ("filter", "preempt")
    ),
    Broken(b'{"Pod":{},"NodeNames":["\xff"]}', "bad-utf8", "bad-utf8"),
    # Not unfolded: 100 KB would become 100 MB.
    *(
        Broken(
            body,
            "content-encoding",
            f"Content-Encoding '{named}' is not supported",
            headers=f"Content-Encoding: {named}\r\n",
            want_status=415,
        )
        for body, named in (
            (gzip.compress(b" " * 100_000_000, mtime=0), "gzip"),
            (gzip.compress(GOOD, mtime=0), "GZIP"),
            (GOOD, "deflate"),
            (GOOD, "identity, br"),
        )
    ),
    Broken(GOOD, "unknown-verb", "filter, prioritize, preempt and bind", "score", "", 404, "unknown-verb"),
    Broken(json.dumps(by_names("a", uid="")).encode(), "no-uid", "metadata.uid"),
]


async def assert_served(doors: Doors, talk: Talk | None = None) -> None:
    """The next question is answered as if nothing had been, on this connection or a new one."""
    if talk is not None:
        status, _, answer = await talk.ask("filter", GOOD)
    else:
        async with doors.connect() as fresh:
            status, _, answer = await fresh.ask("filter", GOOD)
    assert status == 200
    assert json.loads(answer)["NodeNames"] == ["a"]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.want_reason} {broken.body[:30]!r}")
async def test_a_broken_question_gets_a_reason_and_one_count(broken: Broken) -> None:
    async with served(World()) as doors, doors.connect() as talk:
        status, headers, answer = await talk.ask(broken.verb, broken.body, broken.headers)
        assert (status, headers["content-type"]) == (broken.want_status, "application/json")
        assert broken.want_text in json.loads(answer)["Error"]
        assert await doors.counted(BAD) == {(broken.want_reason,): 1}
        verb = "other" if broken.want_status == 404 else broken.verb
        assert await doors.counted(REQUESTS) == {(broken.want_result, verb): 1}
        await assert_served(doors, None if headers.get("connection") == "close" else talk)
        assert (await doors.counted(REQUESTS))["ok", "filter"] == 1


@pytest.mark.parametrize("named", ["identity", "Identity", ""])
async def test_a_question_that_says_it_is_as_it_is_is_answered(named: str) -> None:
    async with served(World()) as doors, doors.connect() as talk:
        status, _, _ = await talk.ask("filter", GOOD, f"Content-Encoding: {named}\r\n")
        assert status == 200


async def test_one_broken_question_after_the_other_on_one_connection() -> None:
    on_kept = [broken for broken in BROKEN if broken.want_status == 400 and not broken.headers]
    async with served(World()) as doors, doors.connect() as talk:
        for broken in on_kept:
            assert (await talk.ask(broken.verb, broken.body))[0] == 400
            await assert_served(doors, talk)
        assert sum((await doors.counted(BAD)).values()) == len(on_kept)
        assert (await doors.counted(REQUESTS))["ok", "filter"] == len(on_kept)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_hundred_megabytes_are_refused_while_they_come(announced: bool) -> None:
    part = b" " * 1_000_000
    async with served(World()) as doors, doors.connect() as talk:
        length = "Content-Length: 100000000" if announced else "Transfer-Encoding: chunked"
        talk.writer.write(f"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())

        async def send() -> None:
            for _ in range(100):
                talk.writer.write(part if announced else b"%x\r\n%s\r\n" % (len(part), part))
                await talk.writer.drain()

        sending = asyncio.ensure_future(send())
        status, headers, answer = await talk.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert "larger than 67108864 bytes" in json.loads(answer)["Error"]
        await assert_served(doors)
        assert await doors.counted(BAD) == {("too-large",): 1}
        assert (await doors.counted(REQUESTS))["too-large", "filter"] == 1
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_client_that_hangs_up_within_its_question_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(World()) as doors:
        async with doors.connect() as talk:
            talk.writer.write(b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await talk.writer.drain()
            while not doors.asking():
                await asyncio.sleep(0.01)
        while not await doors.counted(REQUESTS):
            await asyncio.sleep(0.01)
        assert await doors.counted(REQUESTS) == {("disconnected", "filter"): 1}
        await assert_served(doors)
    assert not caplog.records


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600,
        b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["no http", "tls hello", "100 KB of header", "negative length", "http/2"],
)
async def test_what_is_not_http_is_refused_and_harms_nobody(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(World()) as doors, doors.connect() as talk:
        talk.writer.write(request_bytes)
        status, _, _ = await talk.answer()
        assert status == 400
        assert await talk.is_closed()
        await assert_served(doors)
    assert not caplog.records


async def test_a_broken_chunk_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with served(World()) as doors, doors.connect() as talk:
        head = b"POST /scheduler/filter HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        status, _, _ = await talk.ask_raw(head + b"zz\r\nhello\r\n")
        assert status == 400
        await assert_served(doors)
    assert not caplog.records


async def test_another_method_is_refused() -> None:
    async with served(World()) as doors, doors.connect() as talk:
        status, headers, _ = await talk.ask_raw(b"GET /scheduler/filter HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, headers["allow"]) == (405, "POST")
        await assert_served(doors, talk)


@pytest.mark.parametrize(
    ("question", "want_unknown"),
    [
        ({**by_names(), "NodeNames": None}, []),
        ({**by_names(), "NodeNames": []}, []),
        ({**by_nodes(), "Nodes": {"items": None}}, []),
        (by_names("x", "y"), ["x", "y"]),
        (by_names("", " ", "é\n", "a" * 100_000), ["", " ", "a" * 100_000, "é\n"]),
    ],
    ids=["null names", "no names", "null items", "unknown names", "odd names"],
)
async def test_nothing_to_choose_from_is_answered_and_is_no_error(
    question: dict[str, object], want_unknown: list[str]
) -> None:
    async with served(World()) as doors, doors.connect() as talk:
        status, _, raw = await talk.ask("filter", question)
        answer = json.loads(raw)
        assert (status, answer["NodeNames"], answer["Error"]) == (200, [], "")
        assert sorted(answer["FailedNodes"]) == sorted(answer["FailedAndUnresolvableNodes"]) == want_unknown
        assert set(answer["FailedNodes"].values()) <= {Reason.UNKNOWN_NODE.text}
        status, _, raw = await talk.ask("prioritize", question)
        assert (status, {each["Score"] for each in json.loads(raw)} <= {0}) == (200, True)
        assert await doors.counted(BAD) == {}


@pytest.mark.parametrize("placement", list(Placement))
async def test_twenty_thousand_names_are_answered(placement: Placement) -> None:
    world = World(placement)
    names = [f"gpu-node-{number:05}" for number in range(20_000)]
    want_known = names[::100]
    for name in want_known:
        see_node(world.store, name)
    async with served(world) as doors, doors.connect() as talk:
        status, _, raw = await talk.ask("filter", by_names(*names))
        answer = json.loads(raw)
        assert status == 200
        if placement is Placement.DECISIVE:
            assert len(answer["NodeNames"]) == 1
            assert answer["NodeNames"][0] in want_known
        else:
            assert sorted(answer["NodeNames"]) == want_known
            assert len(answer["FailedNodes"]) == len(names) - len(want_known)
        status, _, raw = await talk.ask("prioritize", by_names(*names))
        assert sorted(each["Host"] for each in json.loads(raw)) == names
        await assert_served(doors, talk)


async def test_a_pod_without_a_uid_is_answered_in_advisory_placement() -> None:
    async with served(World(Placement.ADVISORY)) as doors, doors.connect() as talk:
        status, _, raw = await talk.ask("filter", by_names("a", uid=""))
        assert (status, json.loads(raw)["NodeNames"]) == (200, ["a"])
        status, _, raw = await talk.ask("filter", by_nodes(whole("a"), uid=""))
        assert (status, json.loads(raw)["NodeNames"]) == (200, ["a"])
        assert await doors.counted(BAD) == {}
