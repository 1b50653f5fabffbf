"""The annotations that people write, in one table: what each may say, how it is read, what acts on it. Pure.

docs/annotations.md is generated from this table. A value is read to a plain one (bytes, watts, seconds, a share of one)
and can be written back in one spelling, so that `1.5Gi` and `1536Mi` are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from scheduler.cluster.annotation_values import (
    CARBON,
    CHECKPOINT,
    JOB,
    LATENCY,
    NAME,
    PRICE,
    BadValue,
    above_zero,
    count,
    duration,
    flex,
    globs,
    list_of,
    lower,
    matching,
    memory,
    number_of,
    one_of,
    plain,
    power,
    truth,
    workload,
)
from scheduler.core.nouns import PREFIX
from scheduler.core.units import (
    QuantityError,
    format_bytes,
    format_duration,
    format_instant,
    format_percent,
    format_watts,
    parse_instant,
    parse_percent,
    quoted,
)

# A list of the longest names fits; whoever writes more has pasted something else. Kubernetes allows 256 KiB.
MOST_CHARACTERS = 4096
# Keys that nobody knows are named up to here, of one object. Some are slips of the pen; 256 KiB hold 13,000 of them,
# and each pod below the object would bear them all.
MOST_UNKNOWN = 16
# What the daemon writes itself: nobody's mistake.
WRITTEN = frozenset({"decision", "retry", "energy", "cost", "co2e"})
# Under our prefix too, but not as annotations.
ELSEWHERE = {"role": "label of a pod", "quarantine": "label of a node", "scheduler": "taint of a node"}

# What a value is depends on its key; the table pairs each reader with its writer.
Value = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One key: how it is read, and what is said of it to people."""

    key: str
    read: Callable[[str], Value]
    """Raises BadValue or QuantityError."""
    write: Callable[[Value], str]
    """A value's one spelling; `read` gives the value back."""
    values: str
    examples: tuple[str, ...]
    meaning: str
    default: str
    """What holds where nobody says anything."""
    later: str = ""
    """The feature that will act on it; empty if it is acted on."""


def read(key: str, text: str) -> Value:
    """Read the text of one known annotation.

    Raises:
        BadValue: says what was expected and what stands there, for a person.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadValue(f"expected at most {MOST_CHARACTERS} characters, got {len(text)}")
    try:
        # A block scalar in YAML ends in a newline.
        return TABLE[key].read(text.strip(" \t\r\n"))
    except QuantityError as error:
        raise BadValue(str(error)) from error


def ours(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """Annotations under our prefix, without the prefix; of keys that nobody knows one more than is named."""
    kept: dict[str, str] = {}
    unknown = 0
    for name, text in (annotations or {}).items():
        if not name.startswith(PREFIX):
            continue
        key = name[len(PREFIX) :]
        if key not in TABLE and key not in WRITTEN:
            unknown += 1
            if unknown > MOST_UNKNOWN + 1:
                continue
        kept[key] = text
    return kept


@lru_cache(maxsize=1024)
def unknown_key(key: str, *, listing: bool = True) -> str:
    """What to say of a key under our prefix that is not in the table; empty if it is one of our own.

    Args:
        key: Without the prefix.
        listing: Whether to end in all keys there are, where none looks like it.
    """
    if key in WRITTEN:
        return ""
    if key in ELSEWHERE:
        return f"expected it as a {ELSEWHERE[key]}, got an annotation"
    near = get_close_matches(key.lower(), TABLE, n=1)
    hint = f"; did you mean {PREFIX}{near[0]}?" if near else KNOWN * listing
    return f"expected a key that wattbalance knows, got {quoted(PREFIX + key)}{hint}"


# --- the table -------------------------------------------------------------------------------------------------------

_POWER = "power caps"
_JOBS = "queues and gangs"
_PLACES = "price, carbon and latency of places"
_ENERGY = "energy forecasts"

TABLE: dict[str, Annotation] = {
    each.key: each
    for each in (
        Annotation(
            key="workload",
            read=workload,
            write=str,
            values="`training`, `inference` or `batch`",
            examples=("training",),
            meaning="Which profile of the configuration judges the pod.",
            default="by priority class, else by the owner's kind, else `workload.default` of the configuration",
        ),
        Annotation(
            key="pools",
            read=list_of(NAME, "names of pools such as dc-1,aws-a"),
            write=",".join,
            values="names of pools, comma separated",
            examples=("dc-1", "dc-1,aws-a"),
            meaning="Only these pools, in this order of preference.",
            default="all pools, in the configuration's order",
        ),
        Annotation(
            key="gpu-model",
            read=globs,
            write=",".join,
            values="globs on the model as the driver names it, comma separated; each `[` has its `]`; small and large "
            "letters are the same, and so are blank, `-` and `_`",
            examples=("*H100*", "*A100*80GB*,*H100*"),
            meaning="Only nodes all of whose GPUs are of these models; one whose model nobody tells is none of them. "
            "Where no agent tells, the label nvidia.com/gpu.product does, without its -SHARED or -MIG-1g.10gb.",
            default="any model",
        ),
        Annotation(
            key="gpu-memory",
            read=memory,
            write=format_bytes,
            values="an amount of memory with Kubernetes' units, from `1Mi` on; part of a byte is one more",
            examples=("40Gi",),
            meaning="At least this much memory on each GPU. Of a MIG slice whose memory no label tells, 0.89 of the GB "
            "in its name is sure (`mig-3g.40gb`: 33950Mi).",
            default="any amount",
        ),
        Annotation(
            key="power",
            read=one_of("elastic", "firm"),
            write=str,
            values="`elastic` or `firm`",
            examples=("firm",),
            meaning="An elastic pod may be capped down to `min-power`; a firm one only in an emergency.",
            default="`elastic` for training and batch, `firm` for inference",
            later=_POWER,
        ),
        Annotation(
            key="min-power",
            read=power,
            write=format_watts,
            values="a power",
            examples=("250W",),
            meaning="Floor of each GPU's cap.",
            default="the least that the device accepts",
            later=_POWER,
        ),
        Annotation(
            key="max-power",
            read=power,
            write=format_watts,
            values="a power",
            examples=("400W",),
            meaning="Ceiling of each GPU's cap.",
            default="the most that the device accepts",
            later=_POWER,
        ),
        Annotation(
            key="max-slowdown",
            read=parse_percent,
            write=format_percent,
            values="a share of time",
            examples=("5%",),
            meaning="How much time the job gives up, always, to save energy.",
            default="`0`",
            later=_POWER,
        ),
        Annotation(
            key="flex",
            read=flex,
            write=format_percent,
            values="`0`, `10%`, `25%` or `50%`",
            examples=("25%",),
            meaning="How much throughput, averaged over the whole job, a grid event may take from it; "
            "beyond that it is paused or spared.",
            default="`0`",
            later=_POWER,
        ),
        Annotation(
            key="expected-duration",
            read=duration(JOB),
            write=format_duration,
            values="a duration",
            examples=("4h30m",),
            meaning="How long the job is expected to run, for short jobs first and for forecasts of energy.",
            default="not known",
            later=f"{_JOBS}, {_ENERGY}",
        ),
        Annotation(
            key="deadline",
            read=parse_instant,
            write=format_instant,
            values="an instant with its zone (RFC 3339)",
            examples=("2027-03-01T06:00:00Z",),
            meaning="Work may wait for cheap or clean power until it must start.",
            default="none: it does not wait",
            later=_JOBS,
        ),
        Annotation(
            key="gang",
            read=matching(NAME, "a name such as llama-7"),
            write=str,
            values="a name, together with `gang-size`",
            examples=("llama-7",),
            meaning="Pods with this name in the namespace start all together or not at all.",
            default="none",
            later=_JOBS,
        ),
        Annotation(
            key="gang-size",
            read=count,
            write=str,
            values="a whole number",
            examples=("16",),
            meaning="How many pods the gang has.",
            default="none",
            later=_JOBS,
        ),
        Annotation(
            key="queue",
            read=matching(NAME, "the name of a queue such as research"),
            write=str,
            values="a name",
            examples=("research",),
            meaning="The job is held until this queue admits it.",
            default="none: it is not held",
            later=_JOBS,
        ),
        Annotation(
            key="preemptible",
            read=truth,
            write=lower,
            values="`true` or `false`",
            examples=("true",),
            meaning="Whether the pod may be suspended or evicted for others.",
            default="`false`",
            later=_JOBS,
        ),
        Annotation(
            key="checkpoint-interval",
            read=duration(CHECKPOINT),
            write=format_duration,
            values="a duration",
            examples=("10m",),
            meaning="What being suspended or evicted loses at most.",
            default="not known: all that it has done",
            later=_JOBS,
        ),
        Annotation(
            key="max-price",
            read=above_zero(number_of(PRICE, "a price such as 2.50/gpu-hour")),
            write=lambda price: (
                f"{price:.2f}/gpu-hour" if round(price, 2) == price else f"{plain(price)}/gpu-hour"
            ),
            values="an amount of the configuration's currency for a GPU and hour",
            examples=("2.50/gpu-hour",),
            meaning="Only places that cost no more.",
            default="any price",
            later=_PLACES,
        ),
        Annotation(
            key="max-carbon",
            read=above_zero(number_of(CARBON, "an intensity such as 300g/kWh")),
            write=lambda intensity: f"{plain(intensity)}g/kWh",
            values="grams of CO2e for a kilowatt hour",
            examples=("300g/kWh",),
            meaning="Only places whose power is no dirtier.",
            default="any intensity",
            later=_PLACES,
        ),
        Annotation(
            key="client-region",
            read=matching(NAME, "the name of a region such as eu-west"),
            write=str,
            values="a name",
            examples=("eu-west",),
            meaning="Where the clients are, for the latency to them.",
            default="not known",
            later=_PLACES,
        ),
        Annotation(
            key="max-latency",
            read=duration(LATENCY),
            write=format_duration,
            values="a duration, together with `client-region`",
            examples=("40ms",),
            meaning="Only places that are no further from the clients.",
            default="any latency",
            later=_PLACES,
        ),
    )
}

# How an answer to an unknown key ends, once.
KNOWN = f"; known: {', '.join(TABLE)}"
