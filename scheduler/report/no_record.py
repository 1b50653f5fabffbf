"""What explain says in place of a decision that is not kept here."""

from __future__ import annotations

from collections.abc import Callable, Collection

from scheduler.cluster.pods import PodFacts
from scheduler.core.units import format_instant
from scheduler.decision.decider import Decider
from scheduler.decision.record import RECORDS_KEPT
from scheduler.report.written import believed, misfit


class NoRecord:
    """Says what is known of a decision without its record: since when records are kept, and what stands on the pod.

    Args:
        decider: Whose log.
        role: Says which role this replica has: a standby's log lacks what the leader decided.
        scheduler_names: Whose pods should come to us; none: nothing is known of that.
        began_unix_s: When this replica began.
    """

    def __init__(
        self,
        decider: Decider,
        role: Callable[[], str],
        scheduler_names: Callable[[], Collection[str]],
        began_unix_s: float,
    ) -> None:
        self._decider = decider
        self._role = role
        self._scheduler_names = scheduler_names
        self._began_unix_s = began_unix_s

    def of(self, facts: PodFacts) -> str:
        """What is said of a pod."""
        ours = self._scheduler_names()
        if known := believed(facts, self._decider, ours):
            return f"No record of the decision is kept here. {known}"
        wrong = misfit(facts, self._decider, ours)
        told = f"{wrong} {self.since()}" if wrong else self.since()
        since = f"{told} Its decision, if there was one, is older, {self._elsewhere()}"
        if facts.node:
            return f"{since} or it was bound without us: by another scheduler, or by hand."
        return f"{since} or kube-scheduler has not asked us about it yet (kubectl describe pod tells what holds it)."

    def since(self) -> str:
        """Which decisions are kept."""
        log = self._decider.log
        if len(log) >= RECORDS_KEPT:
            return f"The last {RECORDS_KEPT:,} decisions are kept."
        return f"Decisions are kept since this replica began, at {format_instant(round(self._began_unix_s))}."

    def _elsewhere(self) -> str:
        role = self._role()
        return (
            "or was made by the leader (this replica stands by),"
            if role == "standby"
            else "or was made elsewhere,"
        )
