"""Makes docs/annotations.md from the table: `python -m scheduler.report.annotations_page > docs/annotations.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from scheduler.cluster.annotations import ELSEWHERE, TABLE, Annotation
from scheduler.cluster.intents import WORKLOAD_BY_OWNER
from scheduler.core.nouns import PREFIX

HEAD = f"""# Annotations

Made by `python -m scheduler.report.annotations_page` from scheduler/cluster/annotations.py; a test compares the two.

What a pod wants is written on it, on its owner (Job, Deployment, StatefulSet, …, and on what owns those), on its
namespace, or in the configuration, under `{PREFIX}`. For each key the nearest word counts:

    kubectl annotate job train-7 {PREFIX}workload=training
    kubectl annotate namespace team-a {PREFIX}expected-duration=2h

A Deployment speaks for its ReplicaSets: Kubernetes copies its annotations to them and never takes one away there, so
what stands on a ReplicaSet counts only where its Deployment is gone or cannot be read.

**A bad value never keeps a pod from being placed.** The default holds for that key, and for that key alone: the one of
`annotations` in the configuration if there is one, else the key's own. A farther word of an owner or the namespace does
not take its place. The pod gets one Warning event, `BadAnnotation`, that names each key, what was expected and what
stands there, and `wattbalance_annotation_errors_total` counts it by key. Where many pods of one Deployment or Job say
the same, the first three get it, and their owner, where it counts them; what a namespace says is told on the namespace.
A pod that waits is told within seconds, also where kube-scheduler never asks us about it, as in a full cluster; only
where a pool is observed, not before it is asked about. However often it is looked at, that is one event and one count.

The same goes for what the pod's namespace may not ask for (below), for pools none of which is in the configuration, and
for a key that nobody knows (`unknown`). Of several pools those count that there are, and the others are told. Of the
unknown keys of one object sixteen are named, and that there are more; all known ones are listed once, behind what is
wrong with known keys.

Words may contradict each other: `min-power` above `max-power`, `flex` beside `power: firm`, `checkpoint-interval`
beside `preemptible: false`. The nearer one counts, and the farther gives way; if one object says both, neither counts.
A default of the configuration gives way without an event. For inference `flex` counts only beside `power: elastic`,
since it is firm by default; `gang` and `gang-size` count only together, `max-latency` only with `client-region`. Where
the other one is bad, its event says so.

**`namespaces` of the configuration limits what pods may ask for**, and holds those that ask for nothing, or for nothing
that counts: where `pools` or `gpu-model` is limited, such a pod gets what is allowed (pools in the configuration's
order of preference), and where `workload` is, a pod whose inferred workload is not allowed gets the first one that is.
`kubectl wattbalance explain` then names `namespace limit` as who said it. Limits on other keys bound only what is said.
An empty list lets nobody ask, and holds nobody.

Amounts carry their unit (`250W`, `40Gi`, `4h30m`, `5%`); units are case-sensitive.

## Acted on
"""
LATER = """
## Read and checked, not acted on yet

These are validated like the others; what will act on them comes later.
"""
TAIL = f"""
A pod that says no `workload` is, by its priority class if `workload.priority_classes` of the configuration names that;
else by the kind of its topmost owner (and where its namespace may not be that, the first that it may be):

| owner | workload |
|---|---|
{{kinds}}
## Written by Wattbalance

`{PREFIX}decision` is on a pod that was bound by a decision of Wattbalance: node, profile, score and the cycle's
id. Where kube-scheduler binds it is written a moment after (`extender.annotate`), never on a pod that waits.
`{PREFIX}retry` is on a pod that was woken: when, in unix seconds.
`{PREFIX}energy`, `{PREFIX}cost` and `{PREFIX}co2e` are kept for it.

## Not annotations

{{elsewhere}}"""


def document() -> str:
    """Return the whole page."""
    now = [each for each in TABLE.values() if not each.later]
    later = [each for each in TABLE.values() if each.later]
    kinds = "".join(f"| {kind} | `{workload}` |\n" for kind, workload in WORKLOAD_BY_OWNER.items())
    elsewhere = "".join(f"* `{PREFIX}{key}` is a {what}.\n" for key, what in ELSEWHERE.items())
    tail = TAIL.format(kinds=kinds, elsewhere=elsewhere)
    return "".join([HEAD, *_table(now), LATER, *_table(later, later=True), tail])


def _table(annotations: Iterable[Annotation], *, later: bool = False) -> Iterable[str]:
    yield f"\n| key | values | such as | meaning | default |{' waits for |' * later}\n"
    yield f"|---|---|---|---|---|{'---|' * later}\n"
    for each in annotations:
        examples = ", ".join(f"`{example}`" for example in each.examples)
        row = f"| `{each.key}` | {each.values} | {examples} | {each.meaning} | {each.default} |"
        yield f"{row} {each.later} |\n" if later else f"{row}\n"


if __name__ == "__main__":
    sys.stdout.write(document())
