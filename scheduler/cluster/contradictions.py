"""Words that cannot count beside each other, or not without another. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scheduler.cluster.intent import Word
from scheduler.core.nouns import Workload
from scheduler.core.units import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """One word that cannot count, or one of two."""

    key: str
    message: str
    """What to say where `key` does not count."""
    other: str
    """The key of the word against it, or of the one that is not there."""
    message_of_other: str = ""
    """What to say where `other` does not count; empty where there is no such word."""


def contradictions(words: Mapping[str, Word], workload: Workload | None) -> Iterator[Contradiction]:
    """All there are among these words.

    Args:
        words: By key.
        workload: Of the pod, which tells what holds where nothing is said; None: not known.
    """
    yield from _against_each_other(words)
    for key, other in (("gang", "gang-size"), ("gang-size", "gang"), ("max-latency", "client-region")):
        if key in words and other not in words:
            message = f"expected it together with {other}, got {quoted(words[key].text)} alone"
            yield Contradiction(key=key, message=message, other=other)
    yield from _firm_and_flexible(words, workload)


def _firm_and_flexible(words: Mapping[str, Word], workload: Workload | None) -> Iterator[Contradiction]:
    flex, power = words.get("flex"), words.get("power")
    if flex is None or not flex.value:
        return
    if workload is Workload.INFERENCE and (power is None or power.value == "firm"):
        # Whoever said it, and if nobody did: without the word the same holds by default.
        by = "the default for inference" if power is None else "which gives nothing away"
        message = f"expected 0 beside power: firm, {by}; got {flex.text}"
        yield Contradiction(key="flex", message=message, other="power")
    elif power is not None and power.value == "firm":
        yield Contradiction(
            key="flex",
            message=f"expected 0 beside power: firm, which gives nothing away; got {flex.text}",
            other="power",
            message_of_other=f"expected elastic beside flex: {flex.text}, got firm",
        )


def _against_each_other(words: Mapping[str, Word]) -> Iterator[Contradiction]:
    least, most = words.get("min-power"), words.get("max-power")
    if least is not None and most is not None and least.value > most.value:
        message = f"expected min-power below max-power, got {least.text} and {most.text}"
        yield Contradiction(key="min-power", message=message, other="max-power", message_of_other=message)
    interval, preemptible = words.get("checkpoint-interval"), words.get("preemptible")
    if interval is not None and preemptible is not None and preemptible.value is False:
        yield Contradiction(
            key="checkpoint-interval",
            message=f"expected preemptible: true beside it, got {interval.text} beside false",
            other="preemptible",
            message_of_other=f"expected true beside checkpoint-interval: {interval.text}, got false",
        )


def unknown_pools(asked: Sequence[str], pools: Collection[str] | None) -> str:
    """What to say of a list of pools some of which there are not; empty if there are all.

    Args:
        asked: Their names.
        pools: All there are; None: any will do.
    """
    if pools is None:
        return ""
    strange = [pool for pool in asked if pool not in pools]
    if not strange:
        return ""
    return f"expected names of pools ({', '.join(sorted(pools))}), got {quoted(','.join(strange))}"
