"""Questions in every shape that kube-scheduler, or anybody else, may send."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.extender.wire import (
    BadRequest,
    BindArgs,
    read_bind,
    read_filter,
    read_preempt,
    rows_of,
)

# A pod as Go marshals it: nil pointers and slices without omitempty come as null.
POD = {
    "metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "creationTimestamp": None},
    "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]},
    "status": {},
}
READERS = (read_filter, read_preempt, read_bind)


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def node(name: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "creationTimestamp": None},
        "spec": {},
        "status": {"nodeInfo": {"x": 1}},
    }


@pytest.mark.parametrize(
    ("pod_key", "nodes_key", "names_key"),
    [
        ("Pod", "Nodes", "NodeNames"),
        ("pod", "nodes", "nodenames"),
        ("POD", "NODES", "NODENAMES"),
        ("Pod", "nodes", "nodeNames"),
        ("pod", "Nodes", "NodeNames"),
    ],
)
def test_filter_by_names_is_read_in_any_casing(pod_key: str, nodes_key: str, names_key: str) -> None:
    args = read_filter(encoded({pod_key: POD, nodes_key: None, names_key: ["a", "b"]}))
    assert args.names == ["a", "b"]
    assert args.nodes is None
    assert args.pod.metadata.uid == "u-1"


@pytest.mark.parametrize(
    "keys", [("Pod", "Nodes", "items"), ("pod", "nodes", "items"), ("Pod", "Nodes", "Items")]
)
def test_filter_by_nodes_keeps_every_field_of_them(keys: tuple[str, str, str]) -> None:
    pod_key, nodes_key, items_key = keys
    offered = [node("a"), node("b")]
    body = encoded({pod_key: POD, nodes_key: {"metadata": {}, items_key: offered}, "NodeNames": None})
    args = read_filter(body)
    assert args.names == ["a", "b"]
    assert args.nodes is not None
    assert [json.loads(bytes(raw)) for raw in args.nodes.raw] == offered
    assert [given.metadata.name for given in args.nodes.nodes] == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        {"Pod": POD},
        {"Pod": POD, "Nodes": None, "NodeNames": None},
        {"Pod": POD, "Nodes": None, "NodeNames": []},
    ],
)
def test_a_question_about_no_nodes_is_still_a_question(body: dict[str, object]) -> None:
    args = read_filter(encoded(body))
    assert args.names == []
    assert args.nodes is None


def test_an_empty_node_list_asks_for_the_answer_with_nodes() -> None:
    args = read_filter(encoded({"Pod": POD, "Nodes": {"items": None}}))
    assert args.nodes is not None
    assert args.names == []


def test_nulls_deep_in_the_pod_mean_what_is_absent() -> None:
    pod = {
        "metadata": {"name": "p", "uid": None, "labels": None},
        "spec": {"nodeName": None, "containers": None},
    }
    args = read_filter(encoded({"Pod": pod | {"status": None}, "NodeNames": ["a"]}))
    assert args.pod.metadata.uid == ""
    assert args.pod.spec.node_name == ""


def test_twenty_thousand_names_are_read() -> None:
    want_names = [f"node-{number}" for number in range(20_000)]
    assert read_filter(encoded({"Pod": POD, "NodeNames": want_names})).names == want_names


def test_preempt_by_uid_is_read() -> None:
    body = {
        "Pod": POD,
        "NodeNameToVictims": None,
        "NodeNameToMetaVictims": {
            "a": {"Pods": [{"UID": "v1"}, {"UID": "v2"}], "NumPDBViolations": 1},
            "b": {"Pods": [], "NumPDBViolations": 0},
            "c": {"Pods": None},
            "d": None,
        },
    }
    victims = read_preempt(encoded(body)).victims
    assert {name: (of.uids, of.pdb_violations) for name, of in victims.items()} == {
        "a": (["v1", "v2"], 1),
        "b": ([], 0),
        "c": ([], 0),
        "d": ([], 0),
    }


def test_preempt_by_pods_is_read() -> None:
    body = {"Pod": POD, "NodeNameToVictims": {"a": {"Pods": [POD, None], "NumPDBViolations": 2}, "b": None}}
    victims = read_preempt(encoded(body)).victims
    assert victims["a"].uids == ["u-1"]
    assert victims["a"].pdb_violations == 2
    assert victims["a"].pods is not None
    assert victims["a"].pods[0].spec.containers is not None
    assert victims["b"].uids == []


@pytest.mark.parametrize(
    "form",
    [
        {"nodenametometavictims": {"A-node": {"pods": [{"uid": "v"}], "numpdbviolations": 3}, "b": None}},
        {
            "nodenametovictims": {
                "A-node": {"pods": [{"metadata": {"uid": "v"}}], "numpdbviolations": 3},
                "b": None,
            }
        },
    ],
)
def test_preempt_is_read_in_lower_case_and_node_names_keep_theirs(form: dict[str, object]) -> None:
    victims = read_preempt(encoded({"pod": POD, **form})).victims
    assert (victims["A-node"].uids, victims["A-node"].pdb_violations) == (["v"], 3)
    assert victims["b"].uids == []


@pytest.mark.parametrize("change", [str, str.lower, str.upper])
def test_bind_is_read_in_any_casing(change: type[str]) -> None:
    body = {"PodName": "p", "PodNamespace": "ns", "PodUID": "u", "Node": "n"}
    args = read_bind(encoded({change(key): value for key, value in body.items()}))
    assert args == BindArgs(namespace="ns", name="p", uid="u", node="n")


def test_bind_without_uid_is_left_to_the_verb() -> None:
    assert read_bind(encoded({"PodName": "p", "PodNamespace": "ns", "PodUID": None, "Node": "n"})).uid == ""


@pytest.mark.parametrize("missing", ["PodName", "PodNamespace", "Node"])
def test_bind_without_a_name_is_refused(missing: str) -> None:
    body = {"PodName": "p", "PodNamespace": "ns", "PodUID": "u", "Node": "n"} | {missing: ""}
    with pytest.raises(BadRequest, match=missing) as caught:
        read_bind(encoded(body))
    assert caught.value.reason == BadRequest.MISSING_FIELD


@pytest.mark.parametrize(
    ("body", "want_reason"),
    [
        (b"", BadRequest.NOT_JSON),
        (b"{", BadRequest.NOT_JSON),
        (b"hello", BadRequest.NOT_JSON),
        (b"\xef\xbb\xbf{}", BadRequest.NOT_JSON),
        (b'{"Pod":{},"NodeNames":["\\ud800"]}', BadRequest.NOT_JSON),
        (b'{"Pod":{},"NodeNames":[]} x', BadRequest.NOT_JSON),
        (b'{"Pod":NaN}', BadRequest.NOT_JSON),
        (b"[]", BadRequest.WRONG_TYPE),
        (b"null", BadRequest.WRONG_TYPE),
        (b"7", BadRequest.WRONG_TYPE),
        (b'{"Pod":[],"NodeNames":["a"]}', BadRequest.WRONG_TYPE),
        (b'{"Pod":{},"NodeNames":"a"}', BadRequest.WRONG_TYPE),
        (b'{"Pod":{},"NodeNames":[null]}', BadRequest.WRONG_TYPE),
        (b'{"Pod":{},"NodeNames":[1]}', BadRequest.WRONG_TYPE),
        (b'{"Pod":{},"Nodes":[]}', BadRequest.WRONG_TYPE),
        (b'{"Pod":{},"Nodes":{"items":[7]}}', BadRequest.WRONG_TYPE),
        (b'{"pod":{},"nodes":{"items":{}}}', BadRequest.WRONG_TYPE),
        (b"{}", BadRequest.NO_POD),
        (b'{"Pod":null,"NodeNames":["a"]}', BadRequest.NO_POD),
        (b'{"NodeNames":["a"]}', BadRequest.NO_POD),
        (b'{"Pod":{},"NodeNames":["\xff"]}', BadRequest.BAD_UTF8),
        (b'{"Pod":{},"Unread":"\xff","NodeNames":[]}', BadRequest.BAD_UTF8),
        (b"[" * 200_000, BadRequest.TOO_DEEP),
        (b'{"Unread":' + b"[" * 200_000, BadRequest.TOO_DEEP),
        (b'{"Pod":{},"pod":' + b"[" * 900 + b"]" * 900 + b"}", BadRequest.TOO_DEEP),
    ],
)
def test_a_broken_filter_question_is_refused_with_its_reason(body: bytes, want_reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_filter(body)
    assert caught.value.reason == want_reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"Pod":{},"NodeNameToMetaVictims":[]}',
        b'{"Pod":{},"NodeNameToMetaVictims":{"a":7}}',
        b'{"Pod":{},"NodeNameToMetaVictims":{"a":{"Pods":[7]}}}',
        b'{"Pod":{},"nodenametovictims":{"a":{"Pods":[7]}}}',
        b'{"Pod":{},"NodeNameToMetaVictims":{"a":{"NumPDBViolations":1e400}}}',
    ],
)
def test_a_broken_preempt_question_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read_preempt(body)
    assert caught.value.reason == BadRequest.WRONG_TYPE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Pod",
                    "pod",
                    "Nodes",
                    "NodeNames",
                    "items",
                    "metadata",
                    "spec",
                    "Pods",
                    "UID",
                    "NodeNameToVictims",
                    "NodeNameToMetaVictims",
                    "PodName",
                    "PodNamespace",
                    "Node",
                    "name",
                    "containers",
                    "status",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_anything_but_a_bad_request(body: bytes) -> None:
    for read in READERS:
        with suppress(BadRequest):
            read(body)


def test_rows_are_looked_up_and_unknown_names_marked() -> None:
    rows = rows_of(["b", "x", "a", "b"], {"a": 0, "b": 7})
    assert rows.dtype == np.intp
    assert rows.tolist() == [7, -1, 0, 7]
    assert rows_of([], {}).tolist() == []
