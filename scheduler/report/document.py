"""Makes docs/metrics.md from the declarations: `python -m scheduler.report.document > docs/metrics.md`."""

from __future__ import annotations

import sys

from scheduler.report.families import ALL

HEAD = """# Metrics

Made by `python -m scheduler.report.document` from scheduler/report/families.py; a test compares this page, those
declarations and a live page.

The daemon shows these under `/metrics`. Series of each GPU come from the agents, which are scraped on their nodes.
Units are in the names; label values come from closed sets, apart from `node` and `pool`, whose series go when the
node goes. The `process_*` families of the Prometheus client library come with them.

| name | type | labels | meaning |
|---|---|---|---|
"""


def document() -> str:
    """Return the whole page."""
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{name}`' for name in family.labels)} | {family.text} |\n"
        for family in sorted(ALL, key=lambda family: family.name)
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(document())
