"""The pod that this process runs in, as Kubernetes and the manifest tell it; most often of the command line: none.

Everything that has to find the daemon's namespace finds it here, so that a `pause` typed with nothing but its reason
reaches a daemon that was configured with nothing but what it must be told. A kubeconfig's context does not count: the
daemon's and a person's are two, and name the namespace of that person's work.
"""

from __future__ import annotations

import os
from pathlib import Path

from scheduler.core.errors import ConfigError, Problem
from scheduler.core.names import LABEL, SUBDOMAIN, is_label, is_subdomain

NAMESPACE = "wattbalance"
"""That of deploy/rbac.yaml."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_name() -> str:
    """The name of the pod that this process runs in: POD_NAME; empty outside of one."""
    return os.environ.get("POD_NAME", "")


def runs_in_pod() -> bool:
    """Whether this process runs in a pod of some cluster: the kubelet tells each where its API server is."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def own_namespace() -> str:
    """The namespace this process runs in: POD_NAMESPACE, else its service account's; outside a pod `wattbalance`."""
    named = os.environ.get("POD_NAMESPACE")
    if named:
        return named
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip() or NAMESPACE
    except OSError:
        return NAMESPACE


def check_own_names() -> None:
    """Refuse what Kubernetes never gives: it becomes part of URLs and of what others read.

    Raises:
        ConfigError: the environment names our pod or namespace so; it would be refused at each try, for ever.
    """
    wrong = [
        Problem(path=variable, message=f"expected {what} ({words}), got {named[:300]!r}")
        for variable, what, words, is_good in (
            ("POD_NAME", "the pod's name", SUBDOMAIN, is_subdomain),
            ("POD_NAMESPACE", "a namespace", LABEL, is_label),
        )
        if (named := os.environ.get(variable)) and not is_good(named)
    ]
    if wrong:
        raise ConfigError(wrong)
