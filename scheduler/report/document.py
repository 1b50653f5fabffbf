"""Makes docs/metrics.md from the declarations: `python -m scheduler.report.document > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from scheduler.report.families import ALL
from scheduler.telemetry import agent_metrics as agent

HEAD = """# Metrics

Made by `python -m scheduler.report.document` from scheduler/report/families.py and, for the agent,
scheduler/telemetry/agent_metrics.py; tests compare this page, those declarations and a live page of each.

## The daemon

The daemon shows these under `/metrics`. Series of each GPU come from the agents, which are scraped on their nodes.
Units are in the names; label values come from closed sets, apart from `node` and `pool`, whose series go when the
node goes. The `process_*` families of the Prometheus client library come with them.

| name | type | labels | meaning |
|---|---|---|---|
"""

AGENT = """
## The agent

The agent of each node shows these. `wattbalance_gpu_*` carry `node`, `gpu`, `uuid` and `model`, all but
`wattbalance_build_info` of the others `node`; what a family has beyond that stands here. What a GPU does not tell
has no series: `wattbalance_gpu_read_faults_total` says why.

| name | type | further labels | meaning |
|---|---|---|---|
"""
FURTHER = {
    agent.STATE.name: ("state",),
    agent.THROTTLE.name: ("reason",),
    agent.FAULTS.name: ("reason",),
    agent.BUILD.name: ("version",),
}


def document() -> str:
    """Return the whole page."""
    rows = [
        _row(family.name, family.kind, family.labels, family.text)
        for family in sorted(ALL, key=lambda family: family.name)
    ]
    agents = [
        _row(family.name, family.kind, FURTHER.get(family.name, ()), family.help)
        for family in sorted(agent.FAMILIES, key=lambda family: family.name)
    ]
    return "".join([HEAD, *rows, AGENT, *agents])


def _row(name: str, kind: str, labels: Iterable[str], text: str) -> str:
    return f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |\n"


if __name__ == "__main__":
    sys.stdout.write(document())
