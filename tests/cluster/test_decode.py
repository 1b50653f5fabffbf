"""Pages of lists, object by object: whatever the bytes look like, the same objects as by decoding all at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.api_request import Counters
from scheduler.cluster.decode import MOST_FALSE_ENDS, Decoder
from scheduler.cluster.port import Kind
from scheduler.core.errors import ApiUnavailable

Json = dict[str, Any]


def pod(name: str, **spec: object) -> Json:
    return {"metadata": {"name": name, "uid": f"u-{name}"}, "spec": spec}


def a_list(items: object, **metadata: object) -> Json:
    return {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", **metadata},
        "items": items,
    }


def compact(value: object) -> bytes:
    """As Go writes it."""
    return msgspec.json.encode(value) + b"\n"


def names(body: bytes, counters: Counters | None = None) -> list[str]:
    """Names of the objects of a page."""
    return [item.metadata.name for item in Decoder(Kind.POD, counters or Counters()).page(body).items]


def nested(count: int) -> Json:
    """A pod with an array of objects that begin as pods do."""
    return pod("nested", volumes=[{"metadata": {"name": f"inner-{n}"}, "spec": {}} for n in range(count)])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("write", [compact, lambda value: json.dumps(value, indent=1).encode()])
def test_a_page_gives_each_object_once_and_in_order(count: int, write: Any) -> None:
    page = Decoder(Kind.POD, Counters()).page(
        write(a_list([pod(str(n)) for n in range(count)], **{"continue": "t"}))
    )
    assert (page.resource_version, page.next_token) == ("7", "t")
    assert [item.metadata.name for item in page.items] == [str(n) for n in range(count)]


def test_items_before_metadata_are_read_too() -> None:
    body = compact({"items": [pod("a"), pod("b")], "metadata": {"resourceVersion": "9", "continue": "t"}})
    page = Decoder(Kind.POD, Counters()).page(body)
    assert (page.resource_version, page.next_token) == ("9", "t")
    assert [item.metadata.name for item in page.items] == ["a", "b"]


@pytest.mark.parametrize("count", [1, 2, MOST_FALSE_ENDS, MOST_FALSE_ENDS + 5, 500])
def test_what_looks_like_the_end_of_an_object_within_one_is_not_taken_for_it(count: int) -> None:
    body = compact(a_list([pod("a"), nested(count), pod("b"), nested(count), pod("c")]))
    assert names(body) == ["a", "nested", "b", "nested", "c"]


def test_marks_in_strings_are_text() -> None:
    evil = '},{"metadata":{"name":"x","uid":"x"}},{"metadata":{'
    body = compact(a_list([{"metadata": {"name": "a", "uid": "u", "annotations": {"k": evil}}}, pod("b")]))
    assert names(body) == ["a", "b"]


def test_odd_objects_are_repaired_or_skipped_and_the_others_are_read() -> None:
    odd: Json = {"metadata": {"name": "odd", "uid": "u", "labels": ["no", "map"]}}
    nulls: Json = {"metadata": {"name": "nulls", "uid": "u", "labels": None, "namespace": None}, "spec": None}
    counters = Counters()
    for items in (
        [odd, pod("a"), nulls, nested(3)],
        [pod("a"), nulls, nested(20), odd],
        [nulls, odd, pod("a")],
    ):
        want = [item["metadata"]["name"] for item in items if item is not odd]
        assert names(compact(a_list(items)), counters) == want
    assert counters.undecodable[Kind.POD] == 3


def test_objects_without_a_key_are_left_out() -> None:
    assert names(compact(a_list([{"metadata": {"name": "no-uid"}}, pod("a"), {}]))) == ["a"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"items":[', b'{"items":3}', b'"items":[]}', b"\xff\xfe"]
)
def test_what_is_no_list_is_an_error_that_can_be_retried(body: bytes) -> None:
    with pytest.raises(ApiUnavailable):
        list(Decoder(Kind.POD, Counters()).page(body).items)


def test_a_list_that_breaks_in_its_middle_is_an_error_when_it_is_reached() -> None:
    body = compact(a_list([pod("a"), pod("b")])).replace(b'"uid":"u-b"', b'"uid":"u-b')
    items = Decoder(Kind.POD, Counters()).page(body).items
    assert next(items).metadata.name == "a"
    with pytest.raises(ApiUnavailable):
        list(items)


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6) | st.just('},{"metadata":{')
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metadata", "name", "uid", "x", "spec"]), inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"metadata": inner}), max_size=4)
    ),
    max_leaves=12,
)
objects = st.fixed_dictionaries(
    {"metadata": st.fixed_dictionaries({"name": st.sampled_from("abc"), "uid": st.text("uv", max_size=2)})},
    optional={"spec": values, "status": values, "kind": values},
)


@given(st.lists(objects | values, max_size=5))
def test_any_list_reads_the_same_object_by_object(items: list[object]) -> None:
    one_by_one, at_once = Counters(), Counters()
    decoder = Decoder(Kind.POD, at_once)
    want = [found for item in items if (found := decoder.one(msgspec.json.encode(item))) is not None]
    # The order of keys within objects is kept, so the objects of a list need not begin alike.
    got = list(Decoder(Kind.POD, one_by_one).page(compact(a_list(items))).items)
    assert [msgspec.json.encode(item) for item in got] == [msgspec.json.encode(item) for item in want]
    assert one_by_one.undecodable == at_once.undecodable


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_bytes_raise_anything_but_a_cluster_error(junk: bytes, at: int) -> None:
    good = compact(a_list([pod("a"), nested(2), pod("b")]))
    for body in (junk, good[:at] + junk + good[at:], good[:at]):
        try:
            list(Decoder(Kind.POD, Counters()).page(body).items)
        except ApiUnavailable:
            continue
