"""What is wanted of one pod: words that count, faults that do not, and which words contradict each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from scheduler.cluster.annotations import TABLE, Value
from scheduler.cluster.objects import OwnerRef
from scheduler.core.nouns import PREFIX, Workload
from scheduler.core.units import quoted

# Where a word was found; owners and namespaces go by kind and name.
POD, CONFIGURATION = "pod", "configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One annotation as it was found: what it says, in its one spelling, and who says it."""

    value: Value
    text: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One annotation that does not count, and why."""

    key: str
    text: str
    """What stands there; cut."""
    where: str
    message: str

    def __str__(self) -> str:
        """For an event: key, what was expected, what stands there, and where."""
        return f"{PREFIX}{self.key} ({self.where}): {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What is wanted of one pod, after inheritance and inference."""

    workload: Workload
    workload_by: str
    """What told the workload: an object, a priority class, the owner's kind, or the configuration."""
    words: Mapping[str, Word] = field(default_factory=dict)
    """By key; only those that are good."""
    faults: tuple[Fault, ...] = ()
    siblings_of: tuple[str, ...] = ()
    """Uids of the controllers whose pods are this one's siblings, its own first."""
    controller: OwnerRef | None = None
    """The pod's own."""

    def value(self, key: str) -> Value:
        """What was said of a key; None if nothing, or nothing good."""
        word = self.words.get(key)
        return word.value if word is not None else None

    @property
    def not_acted_on(self) -> dict[str, str]:
        """Keys that were said and that nothing acts on yet, with the feature that will."""
        return {key: TABLE[key].later for key in self.words if TABLE[key].later}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRule:
    """What pods in some namespaces may ask for. The first rule that matches a namespace counts."""

    match: Callable[[str], bool]
    allow: Mapping[str, Sequence[Value]]
    """Key -> values; of a list, each entry must be among the entries of one of them. A key not named is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentSettings:
    """What intents need of the configuration."""

    default_workload: Workload = Workload.BATCH
    priority_classes: Mapping[str, Workload] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Annotations, without the prefix, of whatever says nothing itself."""
    rules: Sequence[NamespaceRule] = ()
    pools: AbstractSet[str] | None = None
    """Names of pools that there are; None: any will do."""


def contradictions(words: Mapping[str, Word], pools: AbstractSet[str] | None) -> list[tuple[str, str]]:
    """Keys that cannot count beside the others, or beside the cluster's pools, each with the reason."""
    found: list[tuple[str, str]] = []
    say = {key: word.value for key, word in words.items()}
    texts = {key: word.text for key, word in words.items()}
    if pools is not None and (strange := [pool for pool in say.get("pools", ()) if pool not in pools]):
        known = ", ".join(sorted(pools))
        found.append(("pools", f"expected names of pools ({known}), got {quoted(','.join(strange))}"))
    if say.get("min-power", 0) > say.get("max-power", float("inf")):
        text = f"expected min-power below max-power, got {texts['min-power']} and {texts['max-power']}"
        found += [("min-power", text), ("max-power", text)]
    for one, other in (("gang", "gang-size"), ("gang-size", "gang"), ("max-latency", "client-region")):
        if one in say and other not in say:
            found.append((one, f"expected it together with {other}, got {quoted(texts[one])} alone"))
    if say.get("flex") and say.get("power") == "firm":
        message = f"expected 0 beside power: firm, which gives nothing away; got {texts['flex']}"
        found.append(("flex", message))
    if "checkpoint-interval" in say and say.get("preemptible") is False:
        message = f"expected preemptible: true beside it, got {texts['checkpoint-interval']} beside false"
        found.append(("checkpoint-interval", message))
    return found
