"""GPUs promised to pods that kube-scheduler has not bound yet. Pure; the store owns the only instance.

Promise (docs/architecture.md, 5.4): a reservation never exceeds what is free at the instant it is made; a binding is
a fact, which takes the pod's own reservation, else evicts the youngest reservations of that node until the sum fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from scheduler.core.nouns import Units

# kube-scheduler binds within seconds of its filter call; 30 s covers a slow API server and the pod's back-off.
RESERVATION_S = 30.0
# VolumeBinding waits 600 s for a claim (its bindTimeoutSeconds); ten more so that it always gives up first.
VOLUME_RESERVATION_S = 610.0
RENEWALS = 2
# A node that fails after filter every time (volumes, admission) must not be chosen for ever.
CHOICES_WITHOUT_BINDING = 3
LAST_CHOICE_S = 300.0
# Stands for a node's name where several were answered: which of them kube-scheduler took is not ours to know.
SEVERAL = ""
# The queue of ends keeps those of promises that are over until they come up; it is tidied when it is mostly those.
ENDS_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """GPUs of one node promised to one pod."""

    uid: str
    node: str
    units: Units
    """What was asked for, by resource."""
    load: float
    """Expected load that was added for it, in GPUs."""
    load_mono_s: float
    """Instant from which that load fades."""
    made_mono_s: float
    until_mono_s: float
    memory_bytes: float = 0.0
    """What each unit is to have of memory."""
    renewals: int = 0


@dataclass(slots=True)
class _Choices:
    """How often a node was chosen for a pod that was not bound since."""

    counts: dict[str, int] = field(default_factory=dict)
    last_choice_until_mono_s: dict[str, float] = field(default_factory=dict)
    touched_mono_s: float = 0.0


class Reservations:
    """By pod uid; at most one each."""

    def __init__(self, reservation_s: float = RESERVATION_S) -> None:
        self.reservation_s = reservation_s
        self._by_uid: dict[str, Reservation] = {}
        self._by_node: dict[str, dict[str, Reservation]] = {}
        self._ends: list[tuple[float, str]] = []
        """A heap of (instant, pod uid); an entry that is not its pod's present end means nothing."""
        self._choices: dict[str, _Choices] = {}
        """The one that was touched last is last."""

    def __len__(self) -> int:
        return len(self._by_uid)

    def get(self, uid: str) -> Reservation | None:
        """The pod's reservation, if it has one."""
        return self._by_uid.get(uid)

    def any_on(self, node: str) -> bool:
        """Whether anything is promised on a node."""
        return node in self._by_node

    def on_node(self, node: str) -> list[Reservation]:
        """All of one node, oldest first."""
        return sorted(self._by_node.get(node, {}).values(), key=lambda r: r.made_mono_s)

    def make(
        self,
        uid: str,
        node: str,
        units: Units,
        load: float,
        now_mono_s: float,
        *,
        memory_bytes: float = 0.0,
        waits_for_volume: bool = False,
    ) -> Reservation:
        """Promise GPUs. The caller has released the pod's previous reservation and checked what is free."""
        length_s = VOLUME_RESERVATION_S if waits_for_volume else self.reservation_s
        made = Reservation(
            uid=uid,
            node=node,
            units=units,
            load=load,
            load_mono_s=now_mono_s,
            made_mono_s=now_mono_s,
            until_mono_s=now_mono_s + length_s,
            memory_bytes=memory_bytes,
        )
        self._keep(made)
        return made

    def renew(self, uid: str, now_mono_s: float) -> bool:
        """Prolong once more, at most twice. Returns False if it may not be renewed again."""
        held = self._by_uid[uid]
        if held.renewals >= RENEWALS:
            return False
        length_s = held.until_mono_s - held.made_mono_s if held.renewals == 0 else self.reservation_s
        self._keep(replace(held, until_mono_s=now_mono_s + length_s, renewals=held.renewals + 1))
        return True

    def hold(self, uid: str, until_mono_s: float) -> None:
        """Keep a promise at least until then: whether its pod was bound is not known yet. Not a renewal."""
        held = self._by_uid.get(uid)
        if held is not None and held.until_mono_s < until_mono_s:
            self._keep(replace(held, until_mono_s=until_mono_s))

    def set_load(self, uid: str, load: float, now_mono_s: float) -> None:
        """Note what is left of its load now; from here on it fades at another rate."""
        held = replace(self._by_uid[uid], load=load, load_mono_s=now_mono_s)
        self._by_uid[uid] = self._by_node[held.node][uid] = held

    def release(self, uid: str) -> Reservation | None:
        """Take the promise back."""
        held = self._by_uid.pop(uid, None)
        if held is not None:
            beside = self._by_node[held.node]
            del beside[uid]
            if not beside:
                del self._by_node[held.node]
        return held

    def take_expired(self, now_mono_s: float) -> list[Reservation]:
        """Take those back whose time is over."""
        over = []
        while self._ends and self._ends[0][0] <= now_mono_s:
            until_mono_s, uid = heappop(self._ends)
            held = self._by_uid.get(uid)
            if held is not None and held.until_mono_s == until_mono_s:
                self.release(uid)
                over.append(held)
        return over

    def _keep(self, held: Reservation) -> None:
        self._by_uid[held.uid] = held
        self._by_node.setdefault(held.node, {})[held.uid] = held
        heappush(self._ends, (held.until_mono_s, held.uid))
        if len(self._ends) > 2 * len(self._by_uid) + ENDS_KEPT:
            self._ends = [(each.until_mono_s, uid) for uid, each in self._by_uid.items()]
            heapify(self._ends)

    def made_before(self, mono_s: float) -> list[Reservation]:
        """Those that are older than an instant."""
        return [r for r in self._by_uid.values() if r.made_mono_s < mono_s]

    def note_choice(self, uid: str, node: str, now_mono_s: float) -> None:
        """Count that this node, or SEVERAL, was answered for this pod."""
        choices = self._choices.pop(uid, None) or _Choices()
        self._choices[uid] = choices
        choices.touched_mono_s = now_mono_s
        count = choices.counts.get(node, 0) + 1
        choices.counts[node] = count
        if count >= CHOICES_WITHOUT_BINDING:
            choices.last_choice_until_mono_s[node] = now_mono_s + LAST_CHOICE_S
            choices.counts[node] = 0

    def last_choices(self, uid: str, now_mono_s: float) -> list[str]:
        """Nodes that are this pod's last choice now; SEVERAL among them if that came to nothing too often."""
        choices = self._choices.get(uid)
        if choices is None:
            return []
        return [
            n for n, until_mono_s in choices.last_choice_until_mono_s.items() if until_mono_s > now_mono_s
        ]

    def forget_pod(self, uid: str) -> None:
        """The pod was bound or is gone: its history is over."""
        self._choices.pop(uid, None)

    def forget_old_choices(self, now_mono_s: float) -> None:
        """Drop histories nobody has touched for longer than they can matter."""
        old = []
        for uid, choices in self._choices.items():
            if now_mono_s - choices.touched_mono_s <= 2 * LAST_CHOICE_S:
                break
            old.append(uid)
        for uid in old:
            del self._choices[uid]
