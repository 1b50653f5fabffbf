"""What kube-scheduler wrote on a pod that it could not place: whether the reason is one that it cannot see. Pure.

Whichever of our replicas was asked, the refusal stands in the pod's own status, in our words: kube-scheduler counts
and prints the reasons that it was given. What it refuses by itself (CPU, taints, volumes), it tries again by itself.
"""

from __future__ import annotations

from scheduler.cluster.objects import Pod
from scheduler.core.nouns import REASON_TEXTS

OUR_REASONS = tuple(text for text in REASON_TEXTS.values() if text)
# Its try ended early, as where nobody answered it.
ERROR = "SchedulerError"
# Versions that write `Unschedulable` all the same: nothing listens, no answer in time; another status than 200.
# Source: Go's url.Error; kube-scheduler's extender.go, 1.20 to 1.36.
UNANSWERED = ('/filter": ', " with extender at URL ")


# What we tell who asks us to bind where we do not (extender/no_binder.py).
BIND_IS_OFF = "bind is off: "


def is_refused(pod: Pod) -> bool:
    """Whether the pod waits since one of us refused it, or since kube-scheduler got no answer."""
    if pod.spec.node_name or pod.metadata.deletion_timestamp:
        return False
    for each in pod.status.conditions or ():
        if each.type == "PodScheduled" and each.status == "False":
            message = each.message or ""
            return each.reason == ERROR or any(text in message for text in (*OUR_REASONS, *UNANSWERED))
    return False


def lacks_binder(pod: Pod) -> bool:
    """Whether it waits since one of us was asked to bind it, and binds nothing: to try again helps only once we do."""
    return any(
        each.type == "PodScheduled" and each.status == "False" and BIND_IS_OFF in (each.message or "")
        for each in pod.status.conditions or ()
    )
