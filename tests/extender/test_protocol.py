"""Golden questions and answers of every shape in kube-scheduler's extender protocol, through a real listener.

Questions are written as Go's encoder writes the types of kube-scheduler/extender/v1: keys by the Go names, nil as
null, no omitempty; what stands inside a pod or node is Kubernetes JSON. Answers are compared with their order of
keys, so that neither a missing nor a doubled nor a misspelt key goes unseen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from scheduler.core.nouns import Placement, Reason
from tests.builders import make_pod, make_sample
from tests.extender.world import World, served

if TYPE_CHECKING:
    from collections.abc import Iterable

POD = (
    '{"metadata":{"name":"p1","namespace":"team-a","uid":"uid-p1","resourceVersion":"7",'
    '"creationTimestamp":"2026-01-01T00:00:00Z","managedFields":[{"manager":"kubectl","fieldsV1":{"f:spec":{}}}]},'
    '"spec":{"volumes":null,"containers":[{"name":"c","image":"i","resources":{"limits":{"nvidia.com/gpu":"1"},'
    '"requests":{"nvidia.com/gpu":"1"}},"terminationMessagePath":"/dev/termination-log"}],"restartPolicy":"Never",'
    '"affinity":{},"schedulerName":"wattbalance","tolerations":null,"priority":0},'
    '"status":{"phase":"Pending","conditions":null%s}}'
)
# Fields that we do not read come back too: kube-scheduler rebuilds its nodes from them.
NODE = (
    '{"metadata":{"name":"%s","creationTimestamp":null,"labels":{"x":"y"},"unread":[1]},"spec":{"podCIDR":"10.0.0.0/8"},'
    '"status":{"allocatable":{"nvidia.com/gpu":"8"},"nodeInfo":{"kernelVersion":"6"}}}'
)
VICTIM = (
    '{"metadata":{"name":"v","namespace":"x","uid":"%s","creationTimestamp":null},'
    '"spec":{"containers":null},"status":{}}'
)
QUARANTINED, UNKNOWN = json.dumps(Reason.QUARANTINED.text), json.dumps(Reason.UNKNOWN_NODE.text)


def pod(nominated: str = "") -> str:
    return POD % (f',"nominatedNodeName":"{nominated}"' if nominated else "")


def names(*given: str) -> str:
    return json.dumps(given, separators=(",", ":"))


def items(*given: str) -> str:
    return '{"metadata":{},"items":[' + ",".join(NODE % name for name in given) + "]}"


def found(kept: str, failed: str = "{}", never: str = "{}", nodes: str = "null") -> str:
    return (
        f'{{"Nodes":{nodes},"NodeNames":{kept},"FailedNodes":{failed},'
        f'"FailedAndUnresolvableNodes":{never},"Error":""}}'
    )


def asked(nodes: str, node_names: str, nominated: str = "") -> str:
    return f'{{"Pod":{pod(nominated)},"Nodes":{nodes},"NodeNames":{node_names}}}'


def preempting(victims: str, meta: str) -> str:
    return f'{{"Pod":{pod()},"NodeNameToVictims":{victims},"NodeNameToMetaVictims":{meta}}}'


@dataclass(frozen=True)
class Case:
    name: str
    verb: str
    question: str
    want_answer: str
    placement: Placement = Placement.DECISIVE


BOTH = f'{{"bad":{QUARANTINED},"who":{UNKNOWN}}}'
BIND = '{"PodName":"p1","PodNamespace":"team-a","PodUID":"uid-p1","Node":"a"}'
META = (
    '{"b":{"Pods":[{"UID":"v1"},{"UID":"v2"}],"NumPDBViolations":1},'
    '"a":{"Pods":[{"UID":"v3"}],"NumPDBViolations":0}}'
)
FULL = (
    '{"b":{"Pods":[' + VICTIM % "v1" + "," + VICTIM % "v2" + '],"NumPDBViolations":1},'
    '"a":{"Pods":[' + VICTIM % "v3" + '],"NumPDBViolations":0}}'
)
ADVISORY = Placement.ADVISORY

CASES = (
    # filter by names: nodeCacheCapable true
    Case("filter one name", "filter", asked("null", names("a")), found(names("a"))),
    Case("filter leaves one", "filter", asked("null", names("bad", "a", "who")), found(names("a"))),
    Case("filter refuses all", "filter", asked("null", names("bad", "who")), found("[]", BOTH, BOTH)),
    Case(
        "filter keeps the nominated node preemptible",
        "filter",
        asked("null", names("bad", "who"), nominated="bad"),
        found("[]", BOTH, f'{{"who":{UNKNOWN}}}'),
    ),
    Case(
        "filter keeps an unknown nominated node preemptible",
        "filter",
        asked("null", names("bad", "who"), nominated="who"),
        found("[]", BOTH, f'{{"bad":{QUARANTINED}}}'),
    ),
    Case(
        "filter advises",
        "filter",
        asked("null", names("a", "bad", "b", "who")),
        found(names("a", "b"), BOTH, BOTH),
        ADVISORY,
    ),
    Case("filter without candidates", "filter", asked("null", "[]"), found("[]")),
    Case("filter with two nulls", "filter", asked("null", "null"), found("[]")),
    Case("filter with names beside an empty list", "filter", asked(items(), names("a")), found(names("a"))),
    # filter by nodes: nodeCacheCapable false
    Case(
        "filter whole nodes",
        "filter",
        asked(items("bad", "a"), "null"),
        found(names("a"), nodes=items("a")),
    ),
    Case(
        "filter a whole node that we do not know",
        "filter",
        asked(items("template"), "null"),
        found(names("template"), nodes=items("template")),
    ),
    Case(
        "filter advises by whole nodes",
        "filter",
        asked(items("b", "bad", "a"), "null"),
        found(names("b", "a"), f'{{"bad":{QUARANTINED}}}', f'{{"bad":{QUARANTINED}}}', items("b", "a")),
        ADVISORY,
    ),
    Case(
        "filter refuses all whole nodes",
        "filter",
        asked(items("bad"), "null"),
        found("[]", f'{{"bad":{QUARANTINED}}}', f'{{"bad":{QUARANTINED}}}', items()),
    ),
    Case(
        "filter an empty node list",
        "filter",
        asked('{"metadata":{},"items":null}', "null"),
        found("[]", nodes=items()),
    ),
    # prioritize: a bare list
    Case(
        "prioritize names",
        "prioritize",
        asked("null", names("b", "a", "bad", "who")),
        '[{"Host":"b","Score":0},{"Host":"a","Score":9},{"Host":"bad","Score":0},{"Host":"who","Score":0}]',
    ),
    Case(
        "prioritize whole nodes",
        "prioritize",
        asked(items("a", "new"), "null"),
        '[{"Host":"a","Score":9},{"Host":"new","Score":0}]',
    ),
    Case("prioritize nothing", "prioritize", asked("null", "null"), "[]"),
    # preempt: both forms are answered by uid
    Case("preempt by uid", "preempt", preempting("null", META), f'{{"NodeNameToMetaVictims":{META}}}'),
    Case("preempt by pods", "preempt", preempting(FULL, "null"), f'{{"NodeNameToMetaVictims":{META}}}'),
    Case(
        "preempt drops what we would refuse",
        "preempt",
        preempting(
            "null",
            '{"bad":{"Pods":[{"UID":"v1"}],"NumPDBViolations":0},"who":{"Pods":null,"NumPDBViolations":0},'
            '"a":{"Pods":[],"NumPDBViolations":0},"b":null}',
        ),
        '{"NodeNameToMetaVictims":{"a":{"Pods":[],"NumPDBViolations":0},"b":{"Pods":[],"NumPDBViolations":0}}}',
    ),
    Case("preempt nothing", "preempt", preempting("null", "null"), '{"NodeNameToMetaVictims":{}}'),
    Case("preempt an empty map", "preempt", preempting("{}", "null"), '{"NodeNameToMetaVictims":{}}'),
    # bind
    Case("bind", "bind", BIND, '{"Error":""}'),
    Case(
        "bind a pod of another uid",
        "bind",
        BIND.replace("uid-p1", "uid-p0"),
        '{"Error":"pod team-a/p1 has uid uid-p1 now, not uid-p0"}',
    ),
    Case("bind to an unknown node", "bind", BIND.replace('"a"', '"who"'), '{"Error":"node who is gone"}'),
)

KEYS = (
    *(
        "Pod",
        "Nodes",
        "NodeNames",
        "NodeNameToVictims",
        "NodeNameToMetaVictims",
        "Pods",
        "NumPDBViolations",
        "UID",
    ),
    *("PodName", "PodNamespace", "PodUID", "Node"),
)


def recased(question: str, change: str) -> str:
    """The same question with the Go types' keys in other letters; those of Kubernetes objects stay."""
    for key in KEYS:
        question = question.replace(f'"{key}":', f'"{getattr(key, change)()}":')
    return question


def plain(answer: bytes | str) -> object:
    def pairs(given: Iterable[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
        return tuple(given)

    return json.loads(answer, object_pairs_hook=pairs)


def world(placement: Placement) -> World:
    made = World(placement)
    made.store.see_samples(
        [("b", make_sample("b", [1.0] * 8), 1000.0), ("a", make_sample("a", [0.0] * 8), 1000.0)]
    )
    made.cluster.add(make_pod("p1", uid="uid-p1"))
    return made


@pytest.mark.parametrize("casing", ["as Go writes it", "lower", "upper"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_shape_is_answered_in_gos_letters(case: Case, casing: str) -> None:
    question = case.question if casing == "as Go writes it" else recased(case.question, casing)
    async with served(world(case.placement)) as doors, doors.connect() as talk:
        status, headers, answer = await talk.ask(case.verb, question.encode())
        assert (status, headers["content-type"]) == (200, "application/json")
        assert plain(answer) == plain(case.want_answer)


@pytest.mark.parametrize("verb", ["filter", "prioritize", "preempt", "bind"])
async def test_a_refused_question_carries_its_error_where_a_result_has_it(verb: str) -> None:
    async with served(world(Placement.DECISIVE)) as doors, doors.connect() as talk:
        status, headers, answer = await talk.ask(verb, b"{}")
        assert (status, headers["content-type"]) == (400, "application/json")
        assert list(json.loads(answer)) == ["Error"]
        assert json.loads(answer)["Error"]


@pytest.mark.parametrize(("address", "want_status"), [("127.0.0.1:0", 200), ("0.0.0.0:0", 503)])
async def test_a_standby_answers_its_own_kube_scheduler_and_sends_others_away(
    address: str, want_status: int
) -> None:
    standby = world(Placement.DECISIVE)
    standby.fence.leads = lambda: False
    async with served(standby, address) as doors, doors.connect() as talk:
        status, headers, answer = await talk.ask("filter", asked("null", names("a")).encode())
        assert status == want_status
        if want_status == 503:
            # Go would keep its connection to a living standby for ever.
            assert headers["connection"] == "close"
            assert "standby" in json.loads(answer)["Error"]
            assert await talk.is_closed()
            assert await doors.counted("wattbalance_extender_bad_requests_total") == {("unavailable",): 1}
