"""What stands on a pod about its decision, as far as it can be believed: whoever may write the pod may write there."""

from __future__ import annotations

from collections.abc import Collection

from scheduler.cluster.pods import PodFacts
from scheduler.core.nouns import DECISION_ANNOTATION
from scheduler.decision.decider import Decider
from scheduler.decision.record import RECORDS_KEPT, Said, said_in

# A Kubernetes name has 253 characters at most; what is longer is not worth printing whole.
MOST_SHOWN = 253


def believed(facts: PodFacts, decider: Decider, ours: Collection[str]) -> str:
    """What its annotation says of a decision that is not kept here; empty if it has none that fits it."""
    said = _said(facts)
    if said is None or _misfit(said, facts, decider, ours):
        return ""
    profile = f", profile {said.profile[:MOST_SHOWN]}" if said.profile else ""
    score = "" if said.score is None else f", score {said.score:.3f}"
    cycle = f"; the log's line with cycle {said.cycle[:MOST_SHOWN]} has the rest" if said.cycle else ""
    return f"By its annotation {DECISION_ANNOTATION} it was placed on {said.node}{profile}{score}{cycle}."


def misfit(facts: PodFacts, decider: Decider, ours: Collection[str]) -> str:
    """Why its annotation is not believed; empty if it has none that can be read, or one that fits it."""
    said = _said(facts)
    why = _misfit(said, facts, decider, ours) if said is not None else ""
    if not why:
        return ""
    return f"Its annotation {DECISION_ANNOTATION} does not fit the pod: {why}. It was copied, or written by others."


def _said(facts: PodFacts) -> Said | None:
    return said_in((facts.meta.annotations or {}).get(DECISION_ANNOTATION, ""))


def _misfit(said: Said, facts: PodFacts, decider: Decider, ours: Collection[str]) -> str:
    named = f"it names {said.node[:MOST_SHOWN] or 'no node'}"
    if not facts.node:
        return f"{named}, and the pod waits"
    if said.node != facts.node:
        return f"{named}, and the pod is on {facts.node}"
    if ours and facts.scheduler_name not in ours:
        return f"its scheduler {facts.scheduler_name[:MOST_SHOWN]} does not ask us"
    # A log that is not full has every decision of this process.
    if said.cycle.startswith(f"{decider.instance}-") and len(decider.log) < RECORDS_KEPT:
        return f"this replica made no decision {said.cycle[:MOST_SHOWN]} about it"
    return ""
