"""Nothing that comes in can stop the daemon: any question, any message, any object."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.cluster.objects import MOST_ASKED, Meta, Node, Pod, asked_quantity, quantity
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.core.errors import BadMessage
from scheduler.core.nouns import Placement
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.sample import decode_inventory, decode_sample, encode
from tests.builders import make_decider, make_inventory, make_sample, make_store, see_node
from tests.properties.anything import (
    DRA_THINGS,
    EVENTS,
    JSON,
    NAMES,
    NODES,
    PODS,
    POOLS,
    QUANTITIES,
    ask_all,
    asked,
    assert_books_balance,
    assert_columns_sound,
    decoded,
    make_verbs,
    mutated,
)


@given(st.binary(max_size=60), st.booleans())
@example(b"[" * 100_000, False)
@example(b'{"Pod":' * 50_000, False)
@example(b'{"Pod":{"metadata":{"name":"\\ud800"}},"NodeNames":["\\ud800"]}', False)
def test_any_bytes_are_answered_or_refused(body: bytes, observe: bool) -> None:
    ask_all(make_verbs(Placement.ADVISORY, observe=observe), body)


@given(JSON)
def test_any_json_is_answered_or_refused(value: object) -> None:
    ask_all(make_verbs(Placement.DECISIVE, observe=False), json.dumps(value).encode())


@given(
    PODS,
    st.lists(NAMES, max_size=4),
    st.lists(NODES, max_size=3),
    st.sampled_from(Placement),
    st.booleans(),
    st.data(),
)
def test_any_bent_question_is_answered_or_refused(
    pod: object,
    names: list[str],
    nodes: list[object],
    placement: Placement,
    observe: bool,
    data: st.DataObject,
) -> None:
    verbs = make_verbs(placement, observe=observe)
    question = data.draw(st.sampled_from(asked(pod, names, nodes)))
    ask_all(verbs, json.dumps(mutated(question, data)).encode())


# --- MQTT ------------------------------------------------------------------------------------------------------------


def receive(payload: bytes) -> None:
    intake = Intake()
    store = make_store()
    see_node(store)
    for decode in (decode_sample, decode_inventory):
        with suppress(BadMessage):
            decode(payload, "n1")
    known = encode(make_inventory())
    intake.inventory("n1", known, 1000.0)
    with suppress(BadMessage):
        sample = intake.sample("n1", payload, 1000.0, 0.0)
        store.see_samples([("n1", sample, 1000.0)])
    with suppress(BadMessage):
        store.see_inventory("n1", intake.inventory("n1", payload, 1000.0)[1])
    store.tick(1001.0)
    store.tick(1100.0)
    assert_columns_sound(store)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"\xff")
def test_any_payload_is_believed_or_refused(payload: bytes) -> None:
    receive(payload)


@given(st.booleans(), st.data())
def test_any_bent_message_is_believed_or_refused(whole_inventory: bool, data: st.DataObject) -> None:
    intake = Intake()
    known, _ = intake.inventory("n1", encode(make_inventory()), 1000.0)
    record = make_inventory() if whole_inventory else msgspec.structs.replace(make_sample(), inventory=known)
    receive(json.dumps(mutated(json.loads(encode(record)), data)).encode())


# --- the cluster -----------------------------------------------------------------------------------------------------


@given(EVENTS, st.data())
def test_any_object_is_taken_and_the_columns_stay_finite(
    events: list[tuple[Kind, object]], data: st.DataObject
) -> None:
    store = make_store(POOLS)
    decider = make_decider(store)
    now = 0.0
    for kind, value in events:
        thing = decoded(kind, value)
        if thing is None:
            continue
        gone = data.draw(st.integers(0, 4)) == 0
        store.apply(Gone(kind, thing) if gone else Changed(kind, thing), now)
        if isinstance(thing, Pod):
            request = store.request(thing, 0.0, decider.profile_facts)
            rows = np.array(sorted(store.rows.values()), np.intp)
            decider.place(request, rows, now, 0.0)
        now += data.draw(st.sampled_from([0.0, 1.0, 40.0]))
        store.tick(now)
        assert_columns_sound(store)
    assert_books_balance(store)
    for kind in Kind:
        store.apply(Listed(kind, frozenset()), now)
    assert_columns_sound(store)
    assert not store.pods
    assert not store.rows
    assert not store.snapshot.bound_gpus.any()


@given(st.lists(DRA_THINGS, min_size=3, max_size=12))
def test_any_slice_and_claim_is_taken_by_a_node_without_allocatable(
    things: list[tuple[Kind, object]],
) -> None:
    store = make_store(POOLS)
    store.apply(Changed(Kind.NODE, Node(metadata=Meta(name="n1"))), 0.0)
    for kind, value in things:
        thing = decoded(kind, value)
        if thing is not None:
            store.apply(Changed(kind, thing), 0.0)
        assert_columns_sound(store)
        assert_books_balance(store)
    for kind in (Kind.POD, Kind.RESOURCECLAIM, Kind.RESOURCESLICE):
        store.apply(Listed(kind, frozenset()), 0.0)
    assert not store.snapshot.bound_gpus.any()
    assert not store.snapshot.gpu_count.any()
    assert not store.devices.by_node


@given(QUANTITIES)
def test_any_quantity_is_a_bounded_number(value: str | float) -> None:
    assert abs(quantity(value)) < 1e18
    assert 0 <= asked_quantity(value) <= MOST_ASKED
