"""Search for input that breaks us, longer than the tests do: annotations, and configurations.

    python -m scripts.fuzz [--annotations 100000] [--configurations 10000] [--seed 1]

What is searched, and what must hold of it, is the property tests' own (tests/properties). Counted are those that are
bad; good ones, which must read back as they were written, come beside them. Another seed searches elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, cycle

from hypothesis import HealthCheck, given, seed, settings

from tests.properties.annotations import NAMESPACES, SAID
from tests.properties.annotations import judge as judge_annotations
from tests.properties.configurations import BYTES, CONFIGURATIONS, Wrong, as_flow, bent
from tests.properties.configurations import judge as judge_configuration

# A search goes deeper and gets slower; a new one begins after so many examples.
BATCH = 500
SEARCH = settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))

Counts = Counter[str]


def any_annotations(counts: Counts) -> Iterator[Callable[[], None]]:
    """Endless batches, each to be run once."""

    @SEARCH
    @given(SAID, SAID, SAID, NAMESPACES)
    def batch(pod: dict[str, str], owner: dict[str, str], shared: dict[str, str], namespace: str) -> None:
        good, bad = judge_annotations(pod, owner, shared, namespace)
        counts.update(good=good, bad=bad)

    return cycle([batch])


def any_configurations(counts: Counts) -> Iterator[Callable[[], None]]:
    """Likewise: such as are bent in one place, such as break rules, and any bytes."""

    @SEARCH
    @given(bent())
    def of_bent(wrong: Wrong) -> None:
        counts[judge_configuration(as_flow(wrong.data).encode(), wrong)] += 1

    @SEARCH
    @given(CONFIGURATIONS)
    def of_good(data: object) -> None:
        counts[judge_configuration(as_flow(data).encode())] += 1

    @SEARCH
    @given(BYTES)
    def of_bytes(raw: bytes) -> None:
        counts[judge_configuration(raw)] += 1

    return cycle([of_bent, of_bent, of_good, of_bytes])


def search(
    what: str, make: Callable[[Counts], Iterator[Callable[[], None]]], wanted: int, first_seed: int
) -> None:
    """Run batches until there were as many bad ones as wanted; the first that breaks us is shrunk and raised."""
    counts: Counts = Counter()
    began_mono_s = told_mono_s = time.monotonic()
    for number, batch in zip(count(first_seed), make(counts), strict=False):
        if counts["bad"] >= wanted:
            break
        seed(number)(batch)()
        now_mono_s = time.monotonic()
        if now_mono_s - told_mono_s > 10:
            told_mono_s = now_mono_s
            print(f"  {what}: {counts['bad']:,} of {wanted:,} bad, {counts['good']:,} good", flush=True)
    took_s = time.monotonic() - began_mono_s
    print(
        f"{what}: {counts['bad']:,} bad, each with its message; {counts['good']:,} good, read back; {took_s:.0f} s"
    )


def main() -> int:
    """Search both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--configurations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given_ = parser.parse_args()
    search("annotations", any_annotations, given_.annotations, given_.seed)
    search("configurations", any_configurations, given_.configurations, given_.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
