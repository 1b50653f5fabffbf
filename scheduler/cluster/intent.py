"""What is wanted of one pod: words that count, and faults, which do not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.cluster.annotations import TABLE, Value
from scheduler.cluster.objects import OwnerRef
from scheduler.core.nouns import PREFIX, Workload

# Where a word was found; owners and namespaces go by kind and name.
POD, CONFIGURATION = "pod", "configuration"
# Nobody said it: what the configuration lets the pod's namespace ask for leaves nothing else.
LIMIT = "namespace limit"


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
    """What told it: an object, a priority class, the owner's kind, a namespace's limit, or the configuration."""
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
    """What pods in some namespaces may ask for, and are held to. The first rule that matches a namespace counts."""

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
    pools: Collection[str] | None = None
    """Names of pools that there are, in order of preference; None: any will do."""
