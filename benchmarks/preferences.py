"""What it costs to weigh what pods prefer: memory and time per event for everybody's labels, and time per question.

    python -m benchmarks.preferences [--nodes 5000] [--pods 50000]

The real store and decider, in this process, on objects that are decoded as the watch decodes them. Twice: with pods of
1,000 templates, and with pods of which no two are labelled alike, the worst that there can be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from benchmarks._measure import memory_bytes, verdict
from scheduler import config
from scheduler.cluster.objects import Node, Pod
from scheduler.cluster.port import Changed, Kind, Listed
from scheduler.parts import make_decider, make_store

SETTINGS = "cluster: {name: bench}\ntelemetry: {broker: mqtt://127.0.0.1:1883}\n"
TEMPLATES = 1000
ZONES = 10
EVENTS = 10_000
ROUNDS = 200
MIB = 2.0**20
US = 1e6
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
APP = "app.kubernetes.io/name"
WEB = {"labelSelector": {"matchLabels": {APP: "app-7"}}}


def node(index: int) -> bytes:
    """One node, as the API server sends it."""
    plain = {f"label-{n}.example/key": f"value-{n}" for n in range(10)}
    labels = {HOST: f"node-{index}", ZONE: f"zone-{index % ZONES}", **plain}
    meta = {"name": f"node-{index}", "labels": labels}
    return msgspec.json.encode({"metadata": meta, "status": {"allocatable": {"nvidia.com/gpu": "8"}}})


def pod(index: int, nodes: int, *, unlike: bool, turn: int = 0) -> bytes:
    """One pod that runs; every other one without a GPU."""
    of = index % TEMPLATES
    labels = {
        APP: f"app-{of}",
        "app.kubernetes.io/instance": f"app-{of}-prod",
        "pod-template-hash": f"{of:010d}",
        "turn": str(turn),
    }
    if unlike:
        labels |= dict.fromkeys(
            ("batch.kubernetes.io/job-name", "job-name", "controller-uid"), f"job-{index}"
        )
    tolerations = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute"}
        for key in ("not-ready", "unreachable")
    ]
    limits = {"nvidia.com/gpu": "1"} if index % 2 else {"cpu": "1"}
    spec = {
        "nodeName": f"node-{index % nodes}",
        "tolerations": tolerations,
        "containers": [{"resources": {"limits": limits}}],
    }
    meta = {"name": f"pod-{index}", "uid": uid(index), "namespace": "bench", "labels": labels}
    return msgspec.json.encode({"metadata": meta, "spec": spec, "status": {"phase": "Running"}})


def uid(index: int) -> str:
    """As long as a real one."""
    return f"1d1e0f6a-0000-4000-8000-{index:012d}"


QUESTIONS: dict[str, dict[str, Any]] = {
    "prefers nothing": {},
    "node affinity": {
        "affinity": {
            "nodeAffinity": {
                PREFERRED: [
                    {
                        "weight": 1,
                        "preference": {
                            "matchExpressions": [
                                {"key": ZONE, "operator": "In", "values": ["zone-1", "zone-2"]}
                            ]
                        },
                    }
                ]
            }
        }
    },
    "anti-affinity, by host": {
        "affinity": {
            "podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": {**WEB, "topologyKey": HOST}}]}
        }
    },
    "spread, by zone and host": {
        "topologySpreadConstraints": [
            {"whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1, "topologyKey": key, **WEB}
            for key in (ZONE, HOST)
        ]
    },
}


def least_s(ask: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The quickest of several: what else runs on the machine only adds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        ask()
        took.append(time.process_time() - began)
    return min(took)


def measure(nodes: int, pods: int, *, unlike: bool) -> None:
    """One kind of world."""
    settings = config.load(SETTINGS)
    store = make_store(settings)
    decider = make_decider(settings, store, instance="bench")
    read_node, read_pod = msgspec.json.Decoder(Node), msgspec.json.Decoder(Pod)
    for index in range(nodes):
        store.apply(Changed(Kind.NODE, read_node.decode(node(index))), 0.0)
    before = memory_bytes(os.getpid())
    for index in range(pods):
        store.apply(Changed(Kind.POD, read_pod.decode(pod(index, nodes, unlike=unlike))), 0.0)
    for kind, keys in ((Kind.POD, frozenset(map(uid, range(pods)))), (Kind.NAMESPACE, frozenset[str]())):
        store.apply(Listed(kind, keys), 0.0)
    print(f"  all that is kept of pods: {(memory_bytes(os.getpid()) - before) / MIB:.0f} MiB")
    events = [pod(index % pods, nodes, unlike=unlike, turn=1) for index in range(EVENTS)]

    def take() -> None:
        for event in events:
            store.apply(Changed(Kind.POD, read_pod.decode(event)), 0.0)

    print(f"  an event of a pod: {least_s(take, 3) / EVENTS * US:.1f} µs, decoded and taken")
    rows = np.arange(nodes)
    plain_s = 0.0
    for what, spec in QUESTIONS.items():
        meta = {"name": "new", "uid": "uid-new", "namespace": "bench"}
        containers = [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]
        asked = msgspec.convert({"metadata": meta, "spec": {"containers": containers, **spec}}, Pod)

        def judge(asked: Pod = asked) -> None:
            decider.judge(store.request(asked, 0.0, decider.profile_facts), rows, 1.0)

        first_s, later_s = least_s(judge, 1), least_s(judge)
        plain_s = plain_s or later_s
        print(f"  {what}: {later_s * US:.0f} µs a question, the first {first_s * US:,.0f}")
    verdict("a spread costs more than no preference", (later_s - plain_s) * US, 1000, " µs")


def main() -> None:
    """Each kind of world in a process of its own, so that memory is its own."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nodes", type=int, default=5000)
    arguments.add_argument("--pods", type=int, default=50_000)
    arguments.add_argument("--kind", choices=["templates", "unlike"])
    given = arguments.parse_args()
    if given.kind:
        measure(given.nodes, given.pods, unlike=given.kind == "unlike")
        return
    for kind, what in (("templates", f"of {TEMPLATES:,} templates"), ("unlike", "of which no two are alike")):
        print(f"{given.nodes:,} nodes, {given.pods:,} pods {what}", flush=True)
        call = [sys.executable, "-m", "benchmarks.preferences", "--kind", kind]
        subprocess.run([*call, "--nodes", str(given.nodes), "--pods", str(given.pods)], check=True)


if __name__ == "__main__":
    main()
