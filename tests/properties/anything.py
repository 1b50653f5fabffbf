"""Anything that may come in: questions, messages and objects, whole and bent; and what must be sound afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields

import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st

from scheduler.cluster.dra_objects import ResourceClaim, ResourceSlice
from scheduler.cluster.objects import Node, Partial, Pod
from scheduler.cluster.port import Kind
from scheduler.cluster.store import Store
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import GPU_RESOURCE, Placement, PoolSpec
from scheduler.extender.verbs import Fence, Verbs
from scheduler.extender.wire import BadRequest, read_bind, read_filter, read_preempt
from tests.builders import make_decider, make_store, see_node

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
            "image": st.sampled_from([None, "", "a", "a:1", "h:5/a@sha256:b"]) | st.text(max_size=6),
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
IMAGES = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "names": st.none() | st.lists(st.sampled_from([None, "a:latest", "a:1", ""]), max_size=3),
            "sizeBytes": st.sampled_from([None, 0, -1, 5, 2**63 - 1]),
        }
    ),
    max_size=3,
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
                "resourceClaims": st.none() | st.just([]) | st.just([{"name": "gpu"}]),
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
        "status": st.fixed_dictionaries({"allocatable": AMOUNTS, "images": IMAGES}),
    }
)


DEVICES = st.sampled_from(["gpu-0", "gpu-1", "gpu-0-mig", "", None])
TEXTS = st.sampled_from([None, {}, {"string": None}, {"string": "gpu"}, {"string": "n1-0"}, {"int": 10**30}])
GPU_DEVICE = {"type": {"string": "gpu"}, "gpu.nvidia.com/uuid": {"string": "n1-0"}}
PART_DEVICES = [
    {"type": {"string": "mig"}, "parentUUID": {"string": "n1-0"}, "profile": {"string": profile}}
    for profile in ("1g.10gb", "0g.0gb", "99g.9999gb+me", "x")
]
DEVICE = st.fixed_dictionaries(
    {
        "name": DEVICES,
        "attributes": st.sampled_from([GPU_DEVICE, GPU_DEVICE, *PART_DEVICES, None])
        | st.fixed_dictionaries(
            dict.fromkeys(("type", "uuid", "parentUUID", "productName", "profile"), TEXTS)
        ),
        "capacity": st.none() | st.builds(lambda value: {"memory": {"value": value}}, QUANTITIES),
        "consumesCounters": st.sampled_from([None, [], [{"counterSet": "a"}], [{"counterSet": None}]]),
        "taints": st.sampled_from([None, [], [{"effect": "NoSchedule"}], [{"effect": "None"}]]),
        "nodeName": NAMES,
    }
)
DEVICE_POOLS = st.just({"name": "n1", "generation": 1, "resourceSliceCount": 1}) | st.fixed_dictionaries(
    {
        "name": st.sampled_from([None, "", "n1"]),
        "generation": st.sampled_from([None, -1, 1, 2, 10**30]),
        "resourceSliceCount": st.sampled_from([None, 0, 1, 2, 10**30]),
    }
)
SLICES = st.fixed_dictionaries(
    {
        # Of two that claim to be the whole pool neither counts.
        "metadata": st.just({"name": "s", "uid": "u1"}) | st.just({"name": "s", "uid": "u1"}) | METAS,
        "spec": st.fixed_dictionaries(
            {
                "driver": st.sampled_from(["gpu.nvidia.com"] * 5 + ["other", None]),
                "nodeName": st.just("n1") | NAMES,
                "pool": DEVICE_POOLS | st.none(),
                "devices": st.lists(DEVICE, min_size=2, max_size=4) | st.none(),
            }
        ),
    }
)
HELD = st.fixed_dictionaries(
    {
        "driver": st.sampled_from(["gpu.nvidia.com"] * 5 + ["other", None]),
        "pool": st.sampled_from(["n1", "n1", "", None]),
        "device": DEVICES,
        "adminAccess": st.sampled_from([None, False, True]),
    }
)
CLAIMS = st.fixed_dictionaries(
    {
        "metadata": METAS,
        "status": st.none()
        | st.fixed_dictionaries(
            {
                "allocation": st.builds(
                    lambda held: {"devices": {"results": held}}, st.lists(HELD, max_size=3)
                )
                | st.sampled_from([None, {}, {"devices": None}]),
                "reservedFor": st.none()
                | st.lists(st.fixed_dictionaries({"resource": st.just("pods"), "uid": UIDS}), max_size=3),
            }
        ),
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


def make_verbs(placement: Placement, *, observe: bool, clock: ManualClock | None = None) -> Verbs:
    store = make_store(POOLS)
    see_node(store, "n1")
    see_node(store, "n2", labels={"wattbalance.io/quarantine": ""})
    return Verbs(make_decider(store, placement), None, clock or ManualClock(), Fence(), observe=observe)


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


DRA_THINGS = st.one_of(
    st.tuples(st.just(Kind.RESOURCESLICE), SLICES),
    st.tuples(st.just(Kind.RESOURCECLAIM), CLAIMS),
    st.tuples(st.just(Kind.POD), PODS),
)
THINGS = st.one_of(
    DRA_THINGS,
    st.tuples(st.just(Kind.POD), PODS),
    st.tuples(st.just(Kind.NODE), NODES),
    st.tuples(st.sampled_from([Kind.NAMESPACE, Kind.JOB]), st.fixed_dictionaries({"metadata": METAS})),
)
EVENTS = st.lists(THINGS, max_size=12)
TYPES: dict[Kind, type[Pod | Node | Partial]] = {
    Kind.POD: Pod,
    Kind.NODE: Node,
    Kind.RESOURCESLICE: ResourceSlice,
    Kind.RESOURCECLAIM: ResourceClaim,
}


def decoded(kind: Kind, value: object) -> Pod | Node | Partial | None:
    """As the reader of the watch gives it: a null means a field's default; what cannot be read is dropped."""
    try:
        return msgspec.json.decode(json.dumps(dropped_nulls(value)).encode(), type=TYPES.get(kind, Partial))
    except msgspec.DecodeError:
        return None


def dropped_nulls(value: object) -> object:
    """The same without nulls in objects."""
    if isinstance(value, dict):
        return {key: dropped_nulls(inner) for key, inner in value.items() if inner is not None}
    return [dropped_nulls(inner) for inner in value] if isinstance(value, list) else value


def assert_books_balance(store: Store) -> None:
    for name, row in store.rows.items():
        # A node without a name is nobody's: a pod without a node waits.
        want_bound = sum(facts.gpus for facts in store.pods.values() if name and facts.node == name)
        bound = float(store.snapshot.bound_gpus[row])
        if store.nodes[name].by_claims:
            # What claims hold beside is held against a model in test_claims_once.py.
            want_bound = min(max(bound, want_bound), want_bound + sum(store.devices.held(name).values()))
        assert bound == pytest.approx(want_bound, rel=1e-6), name
