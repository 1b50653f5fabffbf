"""Of all that is said of one pod, what counts: of each key the nearest word, else the configuration's default. Pure.

A word that is bad, refused, or gives way to a nearer one makes room for the configuration's default, never for a
farther word, which was not meant for this pod. Of what only the configuration says nothing is told: its file was
checked, and a default that does not fit beside a pod's own words is nobody's mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.cluster.annotation_values import BadValue
from scheduler.cluster.annotations import KNOWN, MOST_UNKNOWN, TABLE, WRITTEN, read, unknown_key
from scheduler.cluster.contradictions import Contradiction, contradictions, unknown_pools
from scheduler.cluster.intent import CONFIGURATION, Fault, IntentSettings, Word
from scheduler.cluster.limits import Limits
from scheduler.core.nouns import Workload
from scheduler.core.units import quoted

MORE_UNKNOWN = (
    f"expected keys that wattbalance knows, got more than {MOST_UNKNOWN} others; the rest is not named"
)
Speaker = tuple[str, Mapping[str, str]]
"""Who, in words for a person, and what it says by key."""


@dataclass(slots=True)
class Hearing:
    """What was heard of one pod so far.

    Args:
        settings: The configuration's.
        limits: Of the pod's namespace.
    """

    settings: IntentSettings
    limits: Limits
    words: dict[str, Word] = field(default_factory=dict)
    _faults: dict[str, Fault] = field(default_factory=dict)
    """Of keys that are known; the first of each."""
    _unknown: list[Fault] = field(default_factory=list)
    _listed: bool = False
    """Whether a message has listed all keys; one is enough."""
    _order: list[str] = field(default_factory=list)
    """Who spoke, the nearest first."""

    @property
    def faults(self) -> list[Fault]:
        """All there are; those of unknown keys behind the others, since an event has no room for what is at its end."""
        return [*self._faults.values(), *self._unknown]

    def hear(self, speakers: Sequence[Speaker]) -> None:
        """Take what is said, by the nearest first; then the configuration's defaults."""
        heard: set[str] = set()
        for where, said in speakers:
            self._order.append(where)
            new = {key: text for key, text in said.items() if key not in heard}
            heard |= new.keys()
            for key, text in new.items():
                if key in TABLE:
                    self._take(key, text, where)
            self._name_unknown(where, new)
        for key in self.settings.defaults:
            if key not in self.words:
                self._default(key)

    def settle(self, workload: Workload) -> None:
        """Let words give way that contradict each other, or what holds for this workload; then hold what is left."""
        while self.words and (found := next(contradictions(self.words, workload), None)):
            self._give_way(found)
        for key, word in self.limits.held.items():
            self.words.setdefault(key, word)

    def _take(self, key: str, text: str, where: str) -> None:
        try:
            value, strange = read(key, text), ""
            if key == "pools":
                strange = unknown_pools(value, self.settings.pools)
                left = tuple(pool for pool in value if pool in (self.settings.pools or value))
                if not left:
                    raise BadValue(strange)
                value = left
            # Where nobody may ask, the default holds.
            if where != CONFIGURATION or self.limits.allow.get(key):
                self.limits.check(key, value)
        except BadValue as error:
            self._fault(key, text, where, str(error))
            return
        self.words[key] = Word(value=value, text=TABLE[key].write(value), where=where)
        if strange:
            self._fault(key, text, where, f"{strange}; the others count")

    def _default(self, key: str) -> None:
        if key in self.settings.defaults and key in TABLE:
            self._take(key, self.settings.defaults[key], CONFIGURATION)

    def _fault(self, key: str, text: str, where: str, message: str) -> None:
        if where != CONFIGURATION:
            self._faults.setdefault(key, Fault(key=key, text=quoted(text), where=where, message=message))

    def _give_way(self, found: Contradiction) -> None:
        """The farther of two; both, if one speaker says both."""
        key, other = found.key, found.other
        if not found.message_of_other:
            self._drop_lonely(found)
            return
        by_key, by_other = self._distance(key), self._distance(other)
        nearer = key if by_key < by_other else other
        hint = ""
        if by_key != by_other:
            hint = f"; {nearer}: {self.words[nearer].text} ({self.words[nearer].where}) is nearer"
        if by_key >= by_other:
            self._drop(key, found.message + hint)
        if by_other >= by_key:
            self._drop(other, found.message_of_other + hint)

    def _drop_lonely(self, found: Contradiction) -> None:
        """What it needs is not there; where that was said, but badly, this is told there and once."""
        cause = self._faults.get(found.other)
        if cause is None or self.words[found.key].where == CONFIGURATION:
            self._drop(found.key, found.message)
            return
        note = f"{cause.message}; so {found.key} does not count either"
        self._faults[found.other] = replace(cause, message=note)
        del self.words[found.key]
        self._default(found.key)

    def _drop(self, key: str, message: str) -> None:
        word = self.words.pop(key)
        if word.where != CONFIGURATION:
            self._fault(key, word.text, word.where, message)
            self._default(key)

    def _distance(self, key: str) -> int:
        where = self.words[key].where
        return self._order.index(where) if where in self._order else len(self._order)

    def _name_unknown(self, where: str, said: Mapping[str, str]) -> None:
        """Keys that nobody knows of one object: the first ones by name, and that there are more."""
        named = 0
        for key, text in said.items():
            if key in TABLE or key in WRITTEN:
                continue
            if named == MOST_UNKNOWN:
                self._unknown.append(Fault(key="…", text="'…'", where=where, message=MORE_UNKNOWN))
                return
            message = unknown_key(key, listing=not self._listed)
            self._listed |= message.endswith(KNOWN)
            shown = quoted(key)[1:-1]
            self._unknown.append(Fault(key=shown, text=quoted(text), where=where, message=message))
            named += 1
