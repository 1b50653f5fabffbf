"""How much of a pod's images is on each node, as its own snapshot tells it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster import images
from scheduler.cluster.images import Images, images_of, normalized
from scheduler.cluster.objects import Container, Node, NodeImage, Pod, PodSpec
from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from scheduler.core.nouns import Workload
from tests.builders import make_node, make_pod, make_store

NO_PROFILES = {workload: (workload.value, 0.5) for workload in Workload}
GIB = 2**30


def node_with(name: str, **sizes_bytes: int) -> Node:
    """A node with images; `a` stands for `a:1`."""
    listed = [NodeImage(names=[f"{image}:1"], size_bytes=size) for image, size in sizes_bytes.items()]
    node = make_node(name)
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, images=listed))


def pod_of(*names: str, init: str = "") -> Pod:
    pod = make_pod()
    extra = [Container(image=name) for name in names]
    spec = msgspec.structs.replace(
        pod.spec,
        containers=[*(pod.spec.containers or ()), *extra],
        init_containers=[Container(image=init)] if init else None,
    )
    return msgspec.structs.replace(pod, spec=spec)


def store_of(*nodes: Node) -> Store:
    store = make_store()
    for node in nodes:
        store.apply(Changed(Kind.NODE, node), 0.0)
    return store


def here(store: Store, pod: Pod) -> dict[str, float] | None:
    """Bytes by node; None where the column is left out."""
    column = store.snapshot_for(store.request(pod, 0.0, NO_PROFILES)).image_bytes
    return None if column is None else {name: float(column[row]) for name, row in store.rows.items()}


@pytest.mark.parametrize(
    ("written", "want_name"),
    [
        ("nginx", "nginx:latest"),
        ("nginx:1.27", "nginx:1.27"),
        ("registry:5000/team/model", "registry:5000/team/model:latest"),
        ("registry:5000/team/model:v1", "registry:5000/team/model:v1"),
        ("team/model@sha256:ab", "team/model@sha256:ab"),
    ],
)
def test_a_name_without_a_tag_is_the_latest(written: str, want_name: str) -> None:
    assert normalized(written) == want_name


def test_every_container_counts_and_those_without_an_image_do_not() -> None:
    spec = PodSpec(
        containers=[Container(image="a:1"), Container(), Container(image="a:1")],
        init_containers=[Container(image="b")],
    )
    assert images_of(spec) == ("b:latest", "a:1", "a:1")


def test_what_is_there_is_weighed_by_the_share_of_nodes_that_have_it() -> None:
    store = store_of(
        node_with("n1", a=GIB, b=GIB), node_with("n2", a=2 * GIB), node_with("n3"), make_node("n4")
    )
    assert here(store, pod_of("a:1")) == {"n1": GIB / 2, "n2": GIB, "n3": 0, "n4": 0}
    assert here(store, pod_of("a:1", "b:1")) == {"n1": GIB * 3 / 4, "n2": GIB, "n3": 0, "n4": 0}
    assert here(store, pod_of("b:1", init="b:1")) == {"n1": GIB / 2, "n2": 0, "n3": 0, "n4": 0}


def test_no_column_where_no_node_has_any_of_it() -> None:
    store = store_of(node_with("n1", a=GIB))
    assert here(store, pod_of("c:1")) is None
    assert here(store, pod_of()) is None
    # A size of nothing is none.
    assert here(store_of(node_with("n1", a=0)), pod_of("a:1")) is None


def test_an_image_that_was_asked_for_is_followed_as_nodes_pull_and_drop_it() -> None:
    store = store_of(node_with("n1", a=GIB), node_with("n2"))
    assert here(store, pod_of("a:1")) == {"n1": GIB / 2, "n2": 0}
    store.apply(Changed(Kind.NODE, node_with("n2", b=GIB, a=GIB)), 1.0)
    assert here(store, pod_of("a:1")) == {"n1": GIB, "n2": GIB}
    store.apply(Changed(Kind.NODE, node_with("n1")), 2.0)
    assert here(store, pod_of("a:1")) == {"n1": 0, "n2": GIB / 2}
    store.apply(Gone(Kind.NODE, make_node("n2")), 3.0)
    assert here(store, pod_of("a:1")) is None
    # The row is taken by another node.
    store.apply(Changed(Kind.NODE, make_node("n3")), 4.0)
    assert here(store, pod_of("a:1")) is None


def test_one_image_by_its_tag_and_by_its_digest() -> None:
    node = make_node("n1")
    listed = [NodeImage(names=["a@sha256:ab", "a:1"], size_bytes=GIB)]
    node = msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, images=listed))
    store = store_of(node)
    assert here(store, pod_of("a@sha256:ab")) == here(store, pod_of("a:1")) == {"n1": GIB}


def test_a_node_that_only_stands_in_the_question_is_judged_by_what_it_lists() -> None:
    store = store_of(node_with("n1", a=GIB), node_with("n2"))
    request = store.request(pod_of("a:1"), 0.0, NO_PROFILES)
    more = store.with_strangers(
        store.snapshot_for(request), [node_with("there", a=GIB), make_node("bare")], request
    )
    assert more.image_bytes is not None
    assert more.image_bytes[-2:].tolist() == [GIB / 2, 0]
    assert len(more.image_bytes) == more.rows


def test_a_pod_that_waits_keeps_its_images_for_what_ifs_and_one_that_runs_does_not() -> None:
    store = store_of(node_with("n1", a=GIB))
    pod = pod_of("a")
    store.apply(Changed(Kind.POD, pod), 1.0)
    assert store.pods[pod.metadata.uid].images == ("a:latest",)
    bound = msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_name="n1"))
    store.apply(Changed(Kind.POD, bound), 2.0)
    assert store.pods[pod.metadata.uid].images == ()


def test_the_longest_asked_for_goes_first_and_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_ASKED", 2)
    store = store_of(node_with("n1", a=GIB, b=2 * GIB, c=3 * GIB))
    for name, want_bytes in (("a", GIB), ("b", 2 * GIB), ("c", 3 * GIB), ("a", GIB)):
        assert here(store, pod_of(f"{name}:1")) == {"n1": want_bytes}
    store.apply(Changed(Kind.NODE, node_with("n1", b=GIB)), 1.0)
    assert here(store, pod_of("b:1")) == {"n1": GIB}
    assert here(store, pod_of("a:1")) is None


def test_absurd_lists_cost_no_more_than_long_ones() -> None:
    index = Images()
    index.see(0, [NodeImage(names=[f"i{n}" for n in range(10_000)], size_bytes=GIB)])
    assert index.wanted_bytes(["i0"], 1, 1) is not None
    assert index.wanted_bytes(["i9999"], 1, 1) is None
    index.see(1, [NodeImage(names=None, size_bytes=-5), NodeImage()])
    assert index.wanted_bytes([f"i{n}" for n in range(100)], 2, 2) is not None


listings = st.lists(
    st.tuples(st.integers(0, 5), st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4), max_size=4)),
    max_size=30,
)


@given(listings=listings, asked=st.lists(st.sampled_from("abcd"), max_size=6), before=st.booleans())
def test_columns_are_what_one_would_find_by_looking(
    listings: list[tuple[int, dict[str, int]]], asked: list[str], *, before: bool
) -> None:
    """Whether an image was asked for before its nodes told of it, or after."""
    index, now = Images(), dict[int, dict[str, int]]()
    if before:
        index.wanted_bytes(asked, 6, 6)
    for row, held in listings:
        now[row] = held
        index.see(row, [NodeImage(names=[name], size_bytes=size) for name, size in held.items()])
    want = np.zeros(6)
    for name in asked:
        have = [row for row, held in now.items() if name in held]
        for row in have:
            want[row] += now[row][name] * len(have) / 6
    found = index.wanted_bytes(asked, 6, 6)
    assert np.allclose(np.zeros(6) if found is None else found, want)
    assert (found is None) == (not want.any())
