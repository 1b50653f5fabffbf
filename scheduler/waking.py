"""Composition: what explain tells of waking a pod that waits: whether we do, else why not, until when, and who does.

Nothing is promised that this replica does not do itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scheduler.cluster.annotation_size import MOST_BYTES
from scheduler.cluster.kubernetes import KubernetesCluster
from scheduler.cluster.pods import PodFacts
from scheduler.cluster.port import Kind
from scheduler.cluster.store import Store
from scheduler.config_settings import Settings
from scheduler.core.units import format_instant
from scheduler.decision.evaluation import Waking
from scheduler.decision.explain import SOON
from scheduler.knowledge import Knowledge
from scheduler.last_woken import RETRY_ANNOTATION
from scheduler.leadership import Leadership
from scheduler.nudges import ELSEWHERE, Nudges, Turn
from scheduler.pause import Pause
from scheduler.pod_writes import FORBIDDEN, REJECTED, WRITTEN

# A Kubernetes name has 253 characters at most.
MOST_NAME_CHARS = 253

# What kube-scheduler does with a pod that nobody wakes.
BY_ITSELF = (
    "kube-scheduler tries it again at the next event of the cluster, at the latest after five minutes (one minute on "
    "1.20)."
)
OBSERVED = f"We only observe here, and wake nobody: {BY_ITSELF}"
PAUSE_UNKNOWN = (
    "Whether somebody has paused us is not known yet, since ConfigMaps have not been listed. Nobody is woken before: "
    f"{BY_ITSELF}"
)
OFF = f"Nobody wakes it, since `nudge.enabled` is off in the configuration: {BY_ITSELF}"
LEADERLESS = f"Nobody wakes it until somebody leads: {BY_ITSELF}"
FORBIDDEN_TO_ALL = (
    "Nobody can be woken: we may not patch pods. The role needs the verb `patch` on `pods` (deploy/rbac.yaml); the log "
    f"says `pods cannot be woken`, and what the API server said. Else {BY_ITSELF}"
)
UNANSWERED = (
    "The API server could annotate none of the last pods that were to be woken (it failed, or did not answer in time); "
    "it is tried again at once."
)
FORBIDDEN_HERE = (
    "It could not be woken: we may not patch this pod (the log says `pods cannot be woken`, and what the API server "
    "said). It is tried again, less often each time."
)
FAILED_HERE = (
    "It could not be woken: the API server failed, or did not answer in time, when it was to be annotated. It is tried "
    "again, less often each time."
)
REJECTED_HERE = (
    "It could not be woken: the API server takes no annotation on it (an admission plugin, or what stands on the pod "
    "already); the log says `takes no annotation`, and why. It is tried again."
)
NO_ROOM = (
    f"It cannot be woken: its annotations hold {{:,}} of at most {MOST_BYTES:,} bytes, which leaves no room for "
    f"{RETRY_ANNOTATION}. Take some off; until then {BY_ITSELF}"
)
NOT_REFUSED = (
    "Nothing of ours is known to hold it: we have not refused it since it was tried last, as far as this replica "
    f"knows. {BY_ITSELF[0].upper()}{BY_ITSELF[1:]}"
)
PROMISED = "Its GPUs are promised: kube-scheduler is about to bind it."
NO_BINDER = (
    "kube-scheduler leaves binding to us, and `extender.bind` is off: another try would end as the last one, so that "
    "nobody wakes it."
)
STRANGER = (
    "Nothing of ours is known to hold it: its scheduler is {}, which is none of our scheduler_names, and we have not "
    "refused it since it was tried last, as far as this replica knows. When that is again, its scheduler alone knows."
)
TOO_MANY = f"More pods wait than are remembered, and it is not among them: {BY_ITSELF}"


class Running(Protocol):
    """What of a daemon it needs."""

    settings: Settings
    store: Store
    cluster: KubernetesCluster
    leadership: Leadership
    knowledge: Knowledge
    pause: Pause
    nudges: Nudges


def waking_by(running: Running) -> Callable[[PodFacts], Waking]:
    """How a daemon tells it of a pod."""
    return lambda pod: _of_replica(running) or _of_pod(running, pod)


def _of_replica(running: Running) -> Waking | None:
    """Why this replica wakes nobody; None if it does."""
    leadership = running.leadership
    if leadership.observing:
        return Waking("observed", OBSERVED)
    if (paused := running.pause.now) is not None:
        return Waking("paused", f"We are {paused}. Nobody is woken before `wattbalance resume`: {BY_ITSELF}")
    if not running.settings.nudge.enabled:
        return Waking("off", OFF)
    if not leadership.leads():
        if not leadership.leader_name:
            return Waking("leaderless", LEADERLESS)
        text = (
            f"This replica stands by and wakes nobody. {leadership.leader_name} leads: it wakes pods, whoever refused "
            "them, and its own explain says whether and when it wakes this one."
        )
        return Waking("standby", text)
    if not running.knowledge.knows(Kind.CONFIGMAP):
        return Waking("not_ready", PAUSE_UNKNOWN)
    if (why_not := running.knowledge.not_ready()) is not None:
        return Waking(
            "not_ready", f"Nobody is woken while this replica is not ready ({why_not}): {BY_ITSELF}"
        )
    return None


def _of_pod(running: Running, pod: PodFacts) -> Waking:
    turn, clock = running.nudges.turn(pod), running.cluster.server_clock
    until_unix_s = None
    if turn.until_mono_s is not None:
        until_unix_s = clock.unix_s() + max(turn.until_mono_s - clock.mono_s(), 0.0)
    if turn.of_all:
        if turn.why == FORBIDDEN:
            return Waking("forbidden", FORBIDDEN_TO_ALL, until_unix_s)
        return Waking("unanswered", UNANSWERED, until_unix_s)
    if not turn.has_room:
        return Waking("no_room", NO_ROOM.format(pod.annotations_bytes or 0), until_unix_s)
    if turn.why:
        return Waking(*_rest(running, pod, turn), until_unix_s)
    if not turn.known:
        return _unknown(running, pod)
    return _next(turn, float(running.settings.nudge.most_per_s), clock.unix_s())


def _rest(running: Running, pod: PodFacts, turn: Turn) -> tuple[str, str]:
    """State and text of a pod that has just been tried."""
    if turn.why == REJECTED:
        return "rejected", REJECTED_HERE
    if turn.why == FORBIDDEN:
        return "forbidden", FORBIDDEN_HERE
    again = f"It is not woken again so soon (`nudge.again` {float(running.settings.nudge.again_s):g} s)."
    if turn.why == WRITTEN:
        return (
            "resting",
            f"It has just been woken, or is about to be: kube-scheduler asks about it then. {again}",
        )
    if turn.why == ELSEWHERE:
        return "resting", f"{_woken_elsewhere(running, pod)} {again}"
    return "failed", FAILED_HERE


def _woken_elsewhere(running: Running, pod: PodFacts) -> str:
    """What stands on the pod, and by whose clock it is read."""
    clock = running.cluster.server_clock
    said = (pod.meta.annotations or {}).get(RETRY_ANNOTATION, "")
    at_unix_s = int(said)
    text = f"By its {RETRY_ANNOTATION} another replica woke it, at {format_instant(at_unix_s)}."
    if at_unix_s > clock.unix_s():
        text += " That is yet to come: it counts as the instant at which it was first seen here."
    if clock.offset_s is None:
        text += " By our own clock: the API server's is not known yet."
    elif clock.is_off():
        text += f" By the API server's clock, from which ours differs by {abs(clock.offset_s):.0f} s."
    return text


def _unknown(running: Running, pod: PodFacts) -> Waking:
    """Of a pod that does not wait for us."""
    if running.store.reservations.get(pod.uid) is not None:
        return Waking("promised", PROMISED)
    if pod.lacks_binder and not running.nudges.binds:
        return Waking("no_binder", NO_BINDER)
    if pod.refused and pod.scheduler_name in running.settings.scheduler_names:
        return Waking("too_many", TOO_MANY)
    if pod.scheduler_name not in running.settings.scheduler_names:
        return Waking("stranger", STRANGER.format(pod.scheduler_name[:MOST_NAME_CHARS] or "not named"))
    return Waking("not_refused", NOT_REFUSED)


def _next(turn: Turn, most_per_s: float, unix_s: float) -> Waking:
    if turn.before is None:
        return SOON
    if not turn.before:
        return Waking("soon", "It is the next to be woken, within a second or two.", before=0)
    text = (
        f"{turn.before:,} that fit, too, {'is' if turn.before == 1 else 'are'} before it in the queue (by priority, "
        f"then by age), and {most_per_s:g} a second are woken: its turn comes after them, if it still fits then."
    )
    return Waking("queued", text, unix_s + turn.before / most_per_s, turn.before)
