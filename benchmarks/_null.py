"""The null extender: our own server and decoding, and no decision. What no policy could be faster than."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from scheduler.extender.answers import filter_all_answer
from scheduler.extender.wire import BindArgs, FilterArgs, PreemptArgs, rows_of


class NullVerbs:
    """Decodes the question, maps its names to rows, and gives an answer that is ready."""

    def __init__(self, rows: Mapping[str, int], answers: Mapping[str, bytes | bytearray]) -> None:
        self._rows = rows
        self._answers = answers

    def filter(self, args: FilterArgs) -> bytes | bytearray:
        rows_of(args.names, self._rows)
        return self._answers["filter"]

    def prioritize(self, args: FilterArgs) -> bytes | bytearray:
        rows_of(args.names, self._rows)
        return self._answers["prioritize"]

    def preempt(self, _: PreemptArgs) -> bytes | bytearray:
        raise NotImplementedError

    async def bind(self, _: BindArgs) -> bytes | bytearray:
        raise NotImplementedError

    def may_answer(self, loopback: bool) -> str | None:
        return None


class ThoughtlessVerbs(NullVerbs):
    """For a real kube-scheduler: takes the names in turn (decisive), or leaves it all of them (advisory)."""

    def __init__(self, names: list[str], *, decisive: bool) -> None:
        super().__init__({name: row for row, name in enumerate(names)}, {})
        self._decisive = decisive
        self._turn = 0

    def filter(self, args: FilterArgs) -> bytes | bytearray:
        rows_of(args.names, self._rows)
        if not self._decisive:
            return filter_all_answer(args)
        self._turn += 1
        name = args.names[self._turn % len(args.names)]
        return msgspec.json.encode({"NodeNames": [name]})

    def prioritize(self, args: FilterArgs) -> bytes | bytearray:
        rows_of(args.names, self._rows)
        return msgspec.json.encode([{"Host": name, "Score": 0} for name in args.names])
