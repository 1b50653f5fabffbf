"""Nothing that comes in can stop the daemon: any question, any message, any object."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.cluster.objects import Node, Partial, Pod, quantity
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.errors import BadMessage
from scheduler.core.nouns import GPU_RESOURCE, Placement, PoolSpec
from scheduler.extender.verbs import Fence, Verbs
from scheduler.extender.wire import BadRequest, read_bind, read_filter, read_preempt
from scheduler.telemetry.intake import Intake
from scheduler.telemetry.sample import decode_inventory, decode_sample, encode
from tests.builders import make_decider, make_inventory, make_sample, make_store, see_node

POOLS = (PoolSpec(name="first", selector={"pool": "first"}, spill_after_s=60.0),)
MAY_BE_UNBOUNDED = {"healthy_gpus", "reading_age_s"}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**400), 2**53 + 1, 1e308, -1e308, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TIMES = st.sampled_from(
    [None, "", "soon", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31",
     "9999-12-31T23:59:59", "9999-12-31T23:59:59.999999-14:00", "2026-W01-1", "\u0661", "2026-01-01T24:00:00Z"]
)  # fmt: skip
QUANTITIES = (
    st.integers(-(10**20), 10**20)
    | st.integers(0, 8)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [
            "8",
            "0",
            "-3",
            "500m",
            "1e3",
            "1E400",
            "1e-400",
            "nan",
            "inf",
            "-inf",
            "Ki",
            "",
            "9" * 500,
            "0x10",
            "999999P",
            "1e17Pi",
            "1_0",
            "\u0661",
            " 2 ",
            "+4",
            "8Gi",
            "1n",
            10**400,
            1e308,
            -1e308,
            0.1,
        ]
    )
    | st.text(max_size=6)
)
NAMES = st.sampled_from(["n1", "n2", "", "who", 'odd"\\\n', "ü\u0000", "n" * 300])
LABELS = st.none() | st.dictionaries(
    st.sampled_from(["pool", "wattbalance.io/quarantine", "nvidia.com/gpu.product", "wattbalance.io/x"])
    | st.text(max_size=6),
    st.sampled_from(["first", "", "H100"]) | st.text(max_size=6),
    max_size=4,
)
UIDS = st.sampled_from(["", "u1", "u2", "u3"])
AMOUNTS: st.SearchStrategy[object] = (
    st.none() | st.fixed_dictionaries({GPU_RESOURCE: QUANTITIES}) | st.just({})
)
CONTAINERS = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "resources": st.none() | st.fixed_dictionaries({"limits": AMOUNTS, "requests": AMOUNTS}),
            "restartPolicy": st.sampled_from([None, "Always", "x"]),
        }
    ),
    max_size=3,
)
OWNERS = st.none() | st.lists(
    st.fixed_dictionaries({"kind": st.sampled_from(["Job", "", "ReplicaSet"]), "uid": UIDS}), max_size=2
)
METAS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "namespace": NAMES,
        "uid": UIDS,
        "creationTimestamp": TIMES,
        "deletionTimestamp": TIMES,
        "labels": LABELS,
        "annotations": st.none()
        | st.dictionaries(
            st.sampled_from(["wattbalance.io/workload", "wattbalance.io/pools", "x"]),
            st.sampled_from(["training", "TRAINING ", ""]) | st.text(max_size=8),
            max_size=3,
        ),
        "ownerReferences": OWNERS,
    }
)
PODS = st.fixed_dictionaries(
    {
        "metadata": METAS,
        "spec": st.fixed_dictionaries(
            {
                "nodeName": NAMES,
                "priority": st.none() | st.integers(-(2**31), 2**31),
                "containers": CONTAINERS,
                "initContainers": CONTAINERS,
                "overhead": AMOUNTS,
                "volumes": st.none() | st.just([{"persistentVolumeClaim": None}, {"persistentVolumeClaim": {}}]),
            }
        ),
        "status": st.fixed_dictionaries(
            {"phase": st.sampled_from(["", "Succeeded", "Running", "x"]), "nominatedNodeName": NAMES}
        ),
    }
)  # fmt: skip
NODES = st.fixed_dictionaries(
    {
        "metadata": METAS,
        "spec": st.fixed_dictionaries({"unschedulable": st.sampled_from([None, True, False])}),
        "status": st.fixed_dictionaries({"allocatable": AMOUNTS}),
    }
)


def mutated(question: dict[str, object], data: st.DataObject) -> object:
    """The question with one or two places in it exchanged for anything at all, or left out."""
    changed = json.loads(json.dumps(question))
    for _ in range(data.draw(st.integers(0, 2))):
        place = changed
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and data.draw(st.booleans()):
                place = place[key]
                continue
            if data.draw(st.booleans()):
                place[key] = data.draw(JSON)
            else:
                del place[key]
            break
    return changed


def asked(pod: object, names: list[str], nodes: list[object]) -> list[dict[str, object]]:
    victims = {name: {"Pods": [{"UID": "u"}, None], "NumPDBViolations": 1} for name in names}
    return [
        {"Pod": pod, "Nodes": None, "NodeNames": names},
        {"Pod": pod, "Nodes": {"metadata": {}, "items": nodes}, "NodeNames": None},
        {"Pod": pod, "NodeNameToMetaVictims": victims, "NodeNameToVictims": None},
        {"Pod": pod, "NodeNameToVictims": {name: {"Pods": [pod]} for name in names}},
        {"PodName": "p", "PodNamespace": "n", "PodUID": "u", "Node": "n1"},
    ]


def make_verbs(placement: Placement, *, observe: bool) -> Verbs:
    store = make_store(POOLS)
    see_node(store, "n1")
    see_node(store, "n2", labels={"wattbalance.io/quarantine": ""})
    return Verbs(make_decider(store, placement), None, ManualClock(), Fence(), observe=observe)


def ask_all(verbs: Verbs, body: bytes) -> None:
    """Put one body to every verb: an answer is JSON, and a refusal a BadRequest."""
    questions: list[Callable[[], bytes | bytearray]] = [
        lambda: verbs.filter(read_filter(body)),
        lambda: verbs.prioritize(read_filter(body)),
        lambda: verbs.preempt(read_preempt(body)),
    ]
    for question in questions:
        with suppress(BadRequest):
            json.loads(question())
    with suppress(BadRequest):
        read_bind(body)
    assert_columns_sound(verbs.store)


def assert_columns_sound(store: Store) -> None:
    snapshot = store.snapshot
    for field in fields(snapshot):
        column = getattr(snapshot, field.name)
        if isinstance(column, np.ndarray):
            assert not np.isnan(column).any(), field.name
            if field.name not in MAY_BE_UNBOUNDED:
                assert np.isfinite(column).all(), field.name
    assert (snapshot.free_gpus >= 0).all()
    assert (snapshot.gpu_count >= 0).all()


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
    intake.inventory("n1", known)
    with suppress(BadMessage):
        sample = intake.sample("n1", payload, 1000.0, 0.0)
        store.see_samples([("n1", sample, 1000.0)])
    with suppress(BadMessage):
        store.see_inventory("n1", intake.inventory("n1", payload)[1])
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
    known, _ = intake.inventory("n1", encode(make_inventory()))
    record = make_inventory() if whole_inventory else msgspec.structs.replace(make_sample(), inventory=known)
    receive(json.dumps(mutated(json.loads(encode(record)), data)).encode())


# --- the cluster -----------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just(Kind.POD), PODS),
        st.tuples(st.just(Kind.NODE), NODES),
        st.tuples(st.sampled_from([Kind.NAMESPACE, Kind.JOB]), st.fixed_dictionaries({"metadata": METAS})),
    ),
    max_size=12,
)
TYPES: dict[Kind, type[Pod | Node | Partial]] = {Kind.POD: Pod, Kind.NODE: Node}


def dropped_nulls(value: object) -> object:
    """As the reader of the watch gives it: a null means a field's default."""
    if isinstance(value, dict):
        return {key: dropped_nulls(inner) for key, inner in value.items() if inner is not None}
    return [dropped_nulls(inner) for inner in value] if isinstance(value, list) else value


@given(EVENTS, st.data())
def test_any_object_is_taken_and_the_columns_stay_finite(
    events: list[tuple[Kind, object]], data: st.DataObject
) -> None:
    store = make_store(POOLS)
    decider = make_decider(store)
    now = 0.0
    for kind, value in events:
        try:
            thing = msgspec.json.decode(
                json.dumps(dropped_nulls(value)).encode(), type=TYPES.get(kind, Partial)
            )
        except msgspec.DecodeError:
            # The reader of the watch drops such an object and counts it.
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
    for kind in (Kind.POD, Kind.NODE, Kind.NAMESPACE, Kind.JOB):
        store.apply(Listed(kind, frozenset()), now)
    assert_columns_sound(store)
    assert not store.pods
    assert not store.rows
    assert not store.snapshot.bound_gpus.any()


def assert_books_balance(store: Store) -> None:
    for name, row in store.rows.items():
        # A node without a name is nobody's: a pod without a node waits.
        want_bound = sum(facts.gpus for facts in store.pods.values() if name and facts.node == name)
        assert float(store.snapshot.bound_gpus[row]) == pytest.approx(want_bound, rel=1e-6), name


@given(QUANTITIES)
def test_any_quantity_is_a_bounded_number(value: str | float) -> None:
    assert abs(quantity(value)) < 1e18
