"""Pause and resume while somebody else does the same, and what a person is told then."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler.cluster.access import Credentials
from scheduler.cluster.api_request import Target
from scheduler.cluster.transport import Transport
from scheduler.core.errors import ApiConflict, ApiForbidden, ApiNotFound, ApiUnavailable, ClusterError
from scheduler.pause import MOST_BY_CHARS
from scheduler.pause_orders import Orders

Answer = ClusterError | dict[str, object]


def standing(uid: str = "u", **data: str) -> dict[str, object]:
    return {"metadata": {"name": "wattbalance-pause", "uid": uid}, "data": data}


class Script:
    """A transport that answers as told: by verb and resource, in turn, the last answer for ever."""

    def __init__(self, **answers: list[Answer]) -> None:
        self.answers = answers
        self.sent: list[tuple[str, dict[str, Any]]] = []

    async def call(
        self,
        verb: str,
        target: Target,
        *,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
    ) -> bytes:
        assert params is None or (target.path, params["fieldSelector"]) == (
            "/api/v1/configmaps",
            "metadata.name=wattbalance-pause",
        )
        self.sent.append((f"{verb}_{target.resource}", body or {}))
        waiting = self.answers[f"{verb}_{target.resource}"]
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, ClusterError):
            raise answer
        return json.dumps(answer).encode()

    def orders(self, user: str = "kim") -> Orders:
        async def access() -> SimpleNamespace:
            return SimpleNamespace(user=user)

        credentials = cast("Credentials", SimpleNamespace(access=access))
        return Orders(cast("Transport", self), credentials, "wb")


UNKNOWN_WHO: list[Answer] = [ApiNotFound("no such kind", status=404)]
LED: list[Answer] = [{}]
NEVER_LED: list[Answer] = [ApiNotFound("no lease", status=404)]
GONE: Answer = ApiNotFound("gone", status=404)
TAKEN: Answer = ApiConflict("already exists", status=409)


async def test_whoever_is_claimed_by_a_kubeconfig_is_written_as_claimed_in_one_short_line() -> None:
    script = Script(
        create_selfsubjectreviews=UNKNOWN_WHO, create_configmaps=[standing(by="kim")], get_leases=LED
    )
    await script.orders("a\n\x1b" + "x" * 1000).pause("a drill")
    [(_, body)] = [(what, body) for what, body in script.sent if what == "create_configmaps"]
    assert body["data"]["by-is"] == "claimed"
    assert body["data"]["by"].startswith("a x")
    assert len(body["data"]["by"]) == MOST_BY_CHARS


async def test_a_pause_that_ends_as_another_is_asked_for_is_nobodys_and_to_be_asked_for_again() -> None:
    script = Script(create_selfsubjectreviews=UNKNOWN_WHO, create_configmaps=[TAKEN], get_configmaps=[GONE])
    with pytest.raises(ApiConflict, match="look again, and pause anew"):
        await script.orders().pause("a drill")


async def test_resume_ends_the_pause_that_it_has_read_and_no_later_one() -> None:
    script = Script(get_configmaps=[standing("first")], delete_configmaps=[TAKEN])
    with pytest.raises(ApiConflict, match="paused anew at the same moment"):
        await script.orders().resume()
    [(_, body)] = [(what, body) for what, body in script.sent if what == "delete_configmaps"]
    assert body["preconditions"] == {"uid": "first"}


async def test_a_pause_that_somebody_else_has_just_ended_is_nothing_that_resume_did() -> None:
    script = Script(get_configmaps=[standing()], delete_configmaps=[GONE])
    outcome = await script.orders().resume()
    assert (outcome.paused, outcome.done) == (None, False)


@pytest.mark.parametrize(("led", "want"), [(NEVER_LED, "no replica has led in namespace wb"), (LED, "")])
async def test_resume_without_a_pause_says_where_it_looked(led: list[Answer], want: str) -> None:
    script = Script(get_configmaps=[GONE], get_leases=led, list_configmaps=[{"items": []}])
    outcome = await script.orders().resume()
    assert (outcome.done, outcome.elsewhere) == (False, ())
    assert outcome.lonely.startswith(want)
    assert bool(outcome.lonely) is bool(want)


def in_namespace(name: str, **meta: str) -> dict[str, object]:
    return {"metadata": {"name": "wattbalance-pause", "namespace": name, **meta}}


@pytest.mark.parametrize(
    ("listed", "want"),
    [
        ({"items": [in_namespace("b"), in_namespace("a")]}, ("a", "b")),
        ({"items": [in_namespace("ends", deletionTimestamp="2026-01-01T00:00:00Z")]}, ()),
        ({"items": 3}, None),
        (ApiForbidden("not in the whole cluster", status=403), None),
    ],
)
async def test_resume_without_a_pause_looks_for_one_elsewhere(
    listed: Answer, want: tuple[str, ...] | None
) -> None:
    outcome = await Script(get_configmaps=[GONE], get_leases=LED, list_configmaps=[listed]).orders().resume()
    assert outcome.elsewhere == want


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (ApiForbidden("Unauthorized", status=401), "^Unauthorized$"),
        (ApiForbidden("no (the server said: not you)", status=403), r"pause-role.*\(the server said: not you\)$"),
        (ApiUnavailable("away"), "^away$"),
    ],
)  # fmt: skip
async def test_only_a_missing_right_is_answered_with_the_role(error: ClusterError, want: str) -> None:
    with pytest.raises(type(error), match=want):
        await Script(get_configmaps=[error]).orders().resume()


async def test_an_answer_that_is_no_config_map_is_said_to_be_none() -> None:
    script = Script(get_configmaps=[cast("Answer", [1])])
    ask: Callable[[], Any] = script.orders().standing
    with pytest.raises(ApiUnavailable, match="not a ConfigMap"):
        await ask()
