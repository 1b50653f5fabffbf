"""All benchmarks, one after the other: `python -m benchmarks`. A broken one does not keep the others from running."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "extender_latency",
    "start",
    "telemetry",
    "agent",
    "throughput",
    "nudge",
    "balance",
    "preferences",
    "explain",
)


def main() -> int:
    """Run them; returns how many could not be run. A missed target is not a failure: it stands in the output."""
    broken = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            broken.append(name)
    if broken:
        print(f"\nbroken: {', '.join(broken)}", file=sys.stderr)
    return len(broken)


if __name__ == "__main__":
    sys.exit(main())
