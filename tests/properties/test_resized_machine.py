"""GPUs that are divided anew, and called otherwise, while pods hold them: never more is promised than is there.

A device plugin is played that leaves running pods what it gave them, as NVIDIA's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from scheduler.cluster.port import Changed, Gone, Kind
from scheduler.cluster.store import Store
from tests.builders import make_inventory, make_node, make_pod, make_request, make_store, see_pod

GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"


@dataclass(frozen=True)
class Way:
    """How the plugin divides all GPUs of the node."""

    replicas: int
    renamed: bool = False

    @property
    def resource(self) -> str:
        return SHARED if self.renamed else GPU

    def units(self, gpus: int) -> dict[str, int]:
        # A kubelet goes on to list what there was, as 0.
        return {GPU: 0, self.resource: gpus * self.replicas}

    def labels(self, gpus: int, *, counted: bool) -> dict[str, str]:
        count = {"nvidia.com/gpu.count": str(gpus)} if counted else {}
        return {"nvidia.com/gpu.replicas": str(self.replicas)} | count


@dataclass(frozen=True)
class Has:
    """What the plugin gave a pod."""

    resource: str
    units: int
    each_gpus: Fraction


WAYS = st.builds(Way, st.sampled_from([1, 2, 3, 4, 7])) | st.builds(
    Way, st.sampled_from([2, 3, 4]), renamed=st.just(True)
)
ON_THE_WAY = st.sampled_from(["at once", "restart", "labels first", "allocatable first", "no labels"])


class Node:
    """One node, and the store that hears of it."""

    def __init__(self, gpus: int, way: Way, *, agent: bool, counted: bool) -> None:
        self.gpus, self.way, self.agent, self.counted = gpus, way, agent, counted
        self.store: Store = make_store()
        self.pods: dict[str, Has] = {}
        self.promised: dict[str, int] = {}
        self.serial = 0
        self._tell(way.units(gpus), way)

    def _tell(self, units: dict[str, int], by: Way | None) -> None:
        labels = by.labels(self.gpus, counted=self.counted) if by is not None else {}
        self.store.apply(Changed(Kind.NODE, make_node("n1", labels=labels, shares=units)), 1.0)
        if self.agent:
            self.store.see_inventory("n1", make_inventory("n1", self.gpus))

    def divide(self, way: Way, how: str) -> None:
        before, now = self.way.units(self.gpus), way.units(self.gpus)
        if how == "restart":
            self._tell(dict.fromkeys(before, 0), self.way)
        elif how == "labels first":
            self._tell(before, way)
        elif how == "allocatable first":
            self._tell(now, self.way)
        elif how == "no labels":
            self._tell(before, None)
            self._tell(now, None)
        self._tell(now, way)
        self.way = way

    def _name(self) -> str:
        self.serial += 1
        return f"p{self.serial}"

    def promise(self, units: int) -> None:
        """Whatever is promised, there is."""
        name = self._name()
        request = make_request(name, 0, shares=((self.way.resource, units),))
        room = self.gpus * self.way.replicas - self.held() - sum(self.promised.values())
        made = self.store.reserve(request, "n1", 1.0)
        assert made == (units <= room), "all that there is, and no more"
        if made:
            self.promised[name] = units
            given = sum((has.units * has.each_gpus for has in self.pods.values()), Fraction(0))
            given += Fraction(sum(self.promised.values()), self.way.replicas)
            assert given <= self.gpus, "more than there is"

    def held(self) -> int:
        """In units of what is offered now: kube-scheduler's count at least, and all of what was given."""
        each = (
            max(has.units, ceil(has.units * has.each_gpus * self.way.replicas)) for has in self.pods.values()
        )
        return sum(each)

    def bind_all(self) -> None:
        for name, units in self.promised.items():
            self.pods[name] = Has(self.way.resource, units, Fraction(1, self.way.replicas))
            see_pod(self.store, make_pod(name, node="n1", shares={self.way.resource: units}), 1.0)
        self.promised.clear()

    def release(self) -> None:
        for name in self.promised:
            self.store.release(f"uid-{name}", 1.0)
        self.promised.clear()

    def end(self, which: int) -> None:
        name = sorted(self.pods)[which % len(self.pods)]
        has = self.pods.pop(name)
        self.store.apply(Gone(Kind.POD, make_pod(name, node="n1", shares={has.resource: has.units})), 1.0)

    def check(self) -> None:
        snapshot, row = self.store.snapshot, self.store.rows["n1"]
        record = self.store.nodes["n1"]
        bound = snapshot.units_of(self.way.resource, snapshot.bound_units)[row]
        assert bound == self.held()
        assert set(record.came_to) <= {f"uid-{name}" for name in self.pods}
        counted = sum(has.units for has in self.pods.values() if has.resource == self.way.resource)
        assert bool(record.outgrown) >= (bound > counted), "told"
        if all((has.resource, has.each_gpus) == self._now() for has in self.pods.values()):
            assert (bound, record.contradictions) == (counted, ())

    def _now(self) -> tuple[str, Fraction]:
        return self.way.resource, Fraction(1, self.way.replicas)


def _steps() -> st.SearchStrategy[list[tuple[str, object]]]:
    return st.lists(
        st.tuples(st.just("divide"), st.tuples(WAYS, ON_THE_WAY))
        | st.tuples(st.just("promise"), st.lists(st.integers(1, 5), min_size=1, max_size=8))
        | st.tuples(st.just("end"), st.integers(0, 99)),
        max_size=20,
    )


@given(
    gpus=st.integers(1, 8), first=WAYS, told=st.sampled_from([(True, False), (False, True)]), steps=_steps()
)
def test_however_gpus_are_divided_no_more_is_promised_than_is_there(
    gpus: int, first: Way, told: tuple[bool, bool], steps: list[tuple[str, object]]
) -> None:
    """An agent or a label counts the GPUs."""
    node = Node(gpus, first, agent=told[0], counted=told[1])
    for step, what in steps:
        if step == "divide":
            assert isinstance(what, tuple)
            node.release()
            node.divide(*what)
        elif step == "promise":
            assert isinstance(what, list)
            for units in _ints(what):
                node.promise(units)
            node.bind_all()
        elif node.pods:
            assert isinstance(what, int)
            node.end(what)
        node.check()


def _ints(values: list[object]) -> Iterator[int]:
    for value in values:
        assert isinstance(value, int)
        yield value
