"""Replays a decision log: its steps through the daemon's own store and decider, on a clock of its own.

A log is one text file. A step is a line `SECONDS WORD NAME KEY=VALUE …`; the indented lines below it are what it came
to. Comments and empty lines are kept. Playing a log ignores what is indented and writes it anew, so a log that was
just played is what it was, unless decisions have changed. To write all of them anew, and look at what changed:

    python -m tests.replay.player && git diff tests/replay

Words:

    node NAME site= gpus= model= quarantined=1    the watch tells of a node; of one that is known, what changed
    lost-node NAME                                it is gone
    read NAME U U U U                             a sample, one utilisation a GPU: `?` unknown, `x` lost
    offline NAME                                  the agent's last will
    pod NAME gpus= class= priority_class= nominated= priority= soft=1 volume=1    a pod was created, by default of class
                                                  training; `class=` leaves that unsaid
    ask NAME [NODE …]                             filter, for all nodes or those named
    score NAME [NODE …]                           prioritize
    preempt NAME [NODE …]                         preempt
    bind NAME NODE                                the watch tells of a binding
    end NAME                                      the watch tells that the pod is gone
    relist NAME …                                 a new listing names these pods only
    restart                                       a new process, which lists nodes and pods anew
    look                                          every node's columns
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from scheduler.cluster.objects import Pod, Present, Volume
from scheduler.cluster.port import Changed, Gone, Kind, Listed
from scheduler.cluster.preference_objects import SpreadConstraint
from scheduler.config import load
from scheduler.core.clock import ManualClock
from scheduler.core.nouns import PodRequest
from scheduler.decision.record import DecisionRecord
from scheduler.parts import make_decider, make_store
from tests.builders import make_inventory, make_node, make_pod, make_sample

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"
LOGS = sorted(HERE.glob("*.txt"))
START_S = 1000.0
Steps = dict[str, Callable[..., list[str] | None]]


class Player:
    """One life of a daemon, told step by step."""

    def __init__(self) -> None:
        self.clock = ManualClock(START_S)
        self.nodes: dict[str, dict[str, str]] = {}
        self.pods: dict[str, Pod] = {}
        self.created_s: dict[str, float] = {}
        self.steps: Steps = {
            "node": self.node,
            "lost-node": self.lost_node,
            "read": self.read,
            "offline": lambda name: self.store.see_status(name, online=False),
            "pod": self.pod,
            "ask": self.ask,
            "score": self.score,
            "preempt": self.preempt,
            "bind": self.bind,
            "end": self.end,
            "relist": self.relist,
            "restart": self.restart,
            "look": self.look,
        }
        self.restart()

    def play(self, text: str) -> str:
        """The log with what its steps came to written anew."""
        lines = []
        for line in text.splitlines():
            if line.startswith(" "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [f"    {each}" for each in self._step(line)]
        return "\n".join(lines) + "\n"

    def _step(self, line: str) -> list[str]:
        at, word, *words = line.split()
        by_s = START_S + float(at) - self.clock.mono_s()
        if by_s < 0:
            raise ValueError(f"time runs backwards: {line}")
        self.clock.advance(by_s)
        names = [each for each in words if "=" not in each]
        given = dict(each.split("=", 1) for each in words if "=" in each)
        before = self.store.counters.copy()
        told = self.steps[word](*names, **given) or []
        # What nobody asked for, and happens all the same: evictions, expiries, samples that were dropped.
        passing = self.store.counters - before if word != "restart" else before - before
        return told + [f"{name.replace('_', ' ')}: {count}" for name, count in sorted(passing.items())]

    # --- what the watch and the agents tell --------------------------------------------------------------------------

    def node(self, name: str, **given: str) -> None:
        facts = self.nodes.setdefault(name, {"site": "dc-1", "gpus": "8", "model": "H100"})
        facts.update(given)
        self._tell_node(name)

    def _tell_node(self, name: str) -> None:
        facts = self.nodes[name]
        quarantine = {"wattbalance.io/quarantine": "x"} if facts.get("quarantined") == "1" else {}
        made = make_node(name, int(facts["gpus"]), {"site": facts["site"]} | quarantine)
        self.store.apply(Changed(Kind.NODE, made), self.clock.mono_s())
        self.store.see_inventory(name, make_inventory(name, int(facts["gpus"]), facts["model"]))

    def lost_node(self, name: str) -> None:
        gone = make_node(name, int(self.nodes.pop(name)["gpus"]))
        self.store.apply(Gone(Kind.NODE, gone), self.clock.mono_s())

    def read(self, name: str, *busy: str) -> None:
        util = [None if each in {"?", "x"} else float(each) for each in busy]
        states = ["lost" if each == "x" else "unknown" if each == "?" else "ok" for each in busy]
        self.store.see_samples([(name, make_sample(name, util, states), self.clock.mono_s())])

    def pod(self, name: str, **given: str) -> None:
        workload = given.get("class", "training")
        pod = make_pod(
            name,
            int(given.get("gpus", "1")),
            nominated=given.get("nominated", ""),
            priority=int(given.get("priority", "0")),
            annotations={"wattbalance.io/workload": workload} if workload else None,
            priority_class=given.get("priority_class", ""),
        )
        # Without a label to spread by: nothing that we could weigh.
        soft = [SpreadConstraint(when_unsatisfiable="ScheduleAnyway")] if "soft" in given else None
        claims = [Volume(persistent_volume_claim=Present())] if "volume" in given else None
        spec = msgspec.structs.replace(pod.spec, topology_spread_constraints=soft, volumes=claims)
        self.created_s[name] = self.clock.mono_s()
        self._tell_pod(msgspec.structs.replace(pod, spec=spec))

    def _tell_pod(self, pod: Pod) -> None:
        self.pods[pod.metadata.name] = pod
        self.store.apply(Changed(Kind.POD, pod), self.clock.mono_s())

    def bind(self, name: str, node: str) -> None:
        pod = self.pods[name]
        spec = msgspec.structs.replace(pod.spec, node_name=node)
        self._tell_pod(msgspec.structs.replace(pod, spec=spec))

    def end(self, name: str) -> None:
        self.store.apply(Gone(Kind.POD, self.pods.pop(name)), self.clock.mono_s())

    def relist(self, *names: str) -> None:
        self.pods = {name: pod for name, pod in self.pods.items() if name in names}
        uids = frozenset(pod.metadata.uid for pod in self.pods.values())
        self.store.apply(Listed(Kind.POD, uids), self.clock.mono_s())

    def restart(self) -> None:
        settings = load(CONFIG.read_text())
        self.store = make_store(settings)
        self.decider = make_decider(settings, self.store, instance="replay")
        for name in self.nodes:
            self._tell_node(name)
        for pod in self.pods.values():
            self._tell_pod(pod)
        self.relist(*self.pods)

    # --- what kube-scheduler asks ------------------------------------------------------------------------------------

    def _question(
        self, name: str, nodes: tuple[str, ...]
    ) -> tuple[PodRequest, np.ndarray[tuple[int], np.dtype[np.intp]]]:
        waited_s = self.clock.mono_s() - self.created_s[name]
        request = self.store.request(self.pods[name], waited_s, self.decider.profile_facts)
        return request, np.array([self.store.rows[each] for each in nodes or self.nodes], np.intp)

    def ask(self, name: str, *nodes: str) -> list[str]:
        request, rows = self._question(name, nodes)
        outcome = self.decider.place(request, rows, self.clock.mono_s(), self.clock.unix_s())
        return [f"-> {self._names(outcome.kept)}", *told(outcome.record)]

    def score(self, name: str, *nodes: str) -> list[str]:
        request, rows = self._question(name, nodes)
        scores = self.decider.scores(request, rows, self.clock.mono_s(), self.clock.unix_s())
        return [
            f"-> {self.store.names[row]} {score:.3f}"
            for row, score in zip(rows.tolist(), scores, strict=True)
        ]

    def preempt(self, name: str, *nodes: str) -> list[str]:
        request, rows = self._question(name, nodes)
        accepted, _ = self.decider.acceptable(request, rows, self.clock.mono_s(), self.clock.unix_s())
        return [f"-> {self._names(rows[accepted])}"]

    def _names(self, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> str:
        return " ".join(sorted(self.store.names[row] or "" for row in rows.tolist())) or "none"

    def look(self) -> list[str]:
        self.store.tick(self.clock.mono_s())
        snapshot = self.store.snapshot
        return [
            f"{name}: free {snapshot.free_gpus[row]:g}, bound {snapshot.bound_gpus[row]:g}, "
            f"reserved {snapshot.reserved_gpus[row]:g}, load {snapshot.load_sum[row]:.3f}, "
            f"pending {snapshot.pending_load[row]:.3f}, {'fresh' if snapshot.fresh[row] else 'unknown'}"
            for name, row in sorted(self.store.rows.items())
        ]


def told(record: DecisionRecord) -> list[str]:
    """A decision's record, for people: three digits, so that no processor's rounding shows."""
    promised = ", promised" if record.reserved else ""
    lines = [f"{record.result}{promised}; asked {record.asked}, fitting {record.fitting}"]
    lines += [f"{count} x {reason}" for reason, count in sorted(record.reasons.items())]
    for ranked in record.best:
        terms = " + ".join(
            f"{each.weight:.2f} x {each.policy} {score:.3f}"
            for each, score in zip(record.policies, ranked.scores, strict=True)
        )
        lines.append(f"{ranked.score:.3f} {ranked.node} ({ranked.pool}, {ranked.free_gpus:g} free) = {terms}")
    return lines


if __name__ == "__main__":
    for log in LOGS:
        log.write_text(Player().play(log.read_text()))
