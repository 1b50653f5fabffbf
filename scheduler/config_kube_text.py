"""The text of a KubeSchedulerConfiguration and its RBAC: each field with the reason for it, for whoever runs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import yaml

# From which minor on each version of the API is served; the newest that a minor serves is printed. v1beta1 was gone
# with 1.23, v1beta2 with 1.28, v1beta3 with 1.29 (Kubernetes enhancement 785).
API_SINCE = ((25, "v1"), (23, "v1beta3"), (22, "v1beta2"), (20, "v1beta1"))
# From here on kube-scheduler reuses what it found for one pod for the next ones alike, unless it has an extender.
BATCHES_SINCE = 35
# From here on every patch asks extenders about preemption (kubernetes#103019).
PREEMPTS_SINCE = 22
# Before it kube-scheduler also serves plain HTTP, on one fixed port of all interfaces (kubernetes#96345); v1beta1 has
# the fields for that.
HTTPS_ONLY_SINCE = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """One kube-scheduler, all decided. Paths are those that it sees; what is empty is not written."""

    minor: int
    shared: bool
    break_glass: bool
    namespace: str
    name: str
    kubeconfig: str
    scheduler_names: tuple[str, ...]
    url: str
    loopback: bool
    ca_file: str
    server_name: str
    cert_file: str
    key_file: str
    bind: bool
    ignorable: bool
    resources: tuple[str, ...]


def scalar(text: str) -> str:
    """Write text so that YAML reads it as the same text."""
    plain = re.fullmatch(r"[A-Za-z/][-A-Za-z0-9_./:]*[A-Za-z0-9]", text) is not None
    return text if plain and yaml.safe_load(text) == text else json.dumps(text)


def configuration(scheduler: Scheduler) -> str:
    """Write what `kube-scheduler --config` reads."""
    extender = "" if scheduler.break_glass else _extender(scheduler)
    parts = [_head(scheduler), _plain(scheduler), _client(scheduler), _election(scheduler), _queue(scheduler)]
    return "".join([*parts, extender])


def _head(scheduler: Scheduler) -> str:
    version = f"1.{scheduler.minor}"
    api = next(name for since, name in API_SINCE if scheduler.minor >= since)
    what = f"A second kube-scheduler {version}, beside the cluster's own"
    run = f"""\
# Run the stock image of the API server's own minor version as service account {scheduler.name},
# with this as --config FILE.
"""
    if scheduler.shared:
        what, run = f"The cluster's own kube-scheduler {version}", "# Give it this as --config FILE.\n"
    how = "It asks Wattbalance."
    if scheduler.break_glass:
        how = "BREAK GLASS: it places pods without Wattbalance.\n# The same as the usual one, without `extenders`."
    return f"""\
# {what}. {how}
{run}apiVersion: kubescheduler.config.k8s.io/{api}
kind: KubeSchedulerConfiguration
"""


def _plain(scheduler: Scheduler) -> str:
    if scheduler.shared or scheduler.minor >= HTTPS_ONLY_SINCE:
        return ""
    return """\
# Health and metrics over plain HTTP, which these versions cannot do without: for loopback alone, and not on port 10251,
# where the cluster's own scheduler may be. They are served by HTTPS too, on --secure-port (10259).
healthzBindAddress: 127.0.0.1:10261
metricsBindAddress: 127.0.0.1:10261
"""


def _client(scheduler: Scheduler) -> str:
    if not scheduler.kubeconfig:
        return ""
    return f"""\
# With --config, kube-scheduler takes its kubeconfig from here and not from --kubeconfig.
clientConnection:
  kubeconfig: {scalar(scheduler.kubeconfig)}
"""


def _election(scheduler: Scheduler) -> str:
    name, namespace = scheduler.name, scheduler.namespace
    why = """\
# One replica schedules at a time. The Lease is its own: with the usual one, kube-system/kube-scheduler, it would
# wait for the cluster's scheduler to end.
"""
    if scheduler.shared:
        name, namespace = "kube-scheduler", "kube-system"
        why = "# One replica schedules at a time. The Lease is the one that it has always had.\n"
    return f"""\
{why}leaderElection:
  leaderElect: true
  resourceLock: leases
  resourceNamespace: {scalar(namespace)}
  resourceName: {scalar(name)}
"""


def _queue(scheduler: Scheduler) -> str:
    profiles = "".join(f"  - schedulerName: {scalar(name)}\n" for name in scheduler.scheduler_names)
    return f"""\
# All nodes that fit are offered. By default the search ends early in clusters of more than 100 nodes, and the best
# node may be none of those found.
percentageOfNodesToScore: 100
# A refused pod is tried again after 1 to 3 s, not 1 to 10: it may wait for what Kubernetes does not see, such as its
# pool's turn.
podInitialBackoffSeconds: 1
podMaxBackoffSeconds: 3
# Pods choose by spec.schedulerName.
profiles:
{profiles}"""


def _extender(scheduler: Scheduler) -> str:
    batches = bind = ""
    if scheduler.shared and scheduler.minor >= BATCHES_SINCE:
        batches = "# Any extender switches off opportunistic batching, for all profiles.\n"
    timeout, why = "1s", "Answers come from memory, in milliseconds. The default, 5s, would hold up all pods."
    if scheduler.bind:
        timeout, why = (
            "5s",
            "A Binding waits for the API server. Other answers come from memory, in milliseconds.",
        )
        bind = """\
    # extender.bind is true: Wattbalance writes the Binding. Only one extender of a scheduler may.
    bindVerb: bind
"""
    return f"""\
{batches}extenders:
  - # Where Wattbalance listens, and its extender.prefix, without a slash at the end.
{_address_notes(scheduler)}    urlPrefix: {scalar(scheduler.url)}
    # A verb that is not named is not called. Filter chooses or rules out, prioritize scores, preempt spares victims
    # where the pod could not go all the same.
{_unasked(scheduler)}    filterVerb: filter
    prioritizeVerb: prioritize
    preemptVerb: preempt
{bind}    # Must be above 0. At 1 our best node gets 100 points; kube-scheduler's own plugins give 1200 at most.
    weight: 1
{_tls(scheduler)}    # {why}
    httpTimeout: {timeout}
    # Required: names of nodes are sent, not whole nodes.
    nodeCacheCapable: true
{_ignorable(scheduler)}{_resources(scheduler)}"""


def _unasked(scheduler: Scheduler) -> str:
    """What people should know where kube-scheduler does not call a verb that is named."""
    if scheduler.minor >= PREEMPTS_SINCE:
        return ""
    return f"""\
    # WARNING: kube-scheduler 1.{scheduler.minor} calls no preempt before a late patch (kubernetes#103019). Until then
    # a pod of a higher priority may have others evicted on a node that Wattbalance refuses it for a reason of its own
    # (pool, model, memory, quarantine, broken GPUs): they end in vain, and it waits on. Early patches (1.20.2 was seen
    # to) even END WITH A PANIC there, again and again, where the pod fits beside the others (kubernetes#101548). What
    # helps: `preemptionPolicy: Never` in the PriorityClass of GPU pods, or the newest patch, or
    # Kubernetes 1.{PREEMPTS_SINCE}.
"""


def _address_notes(scheduler: Scheduler) -> str:
    if scheduler.loopback:
        return "    # On loopback: both run in one pod, or on one host.\n"
    if not re.match(r"https?://[^/:]+\.svc[:/]", scheduler.url):
        return ""
    note = "    # The Service selects wattbalance.io/role: leader; all replicas while `mode` is observe.\n"
    if scheduler.shared:
        note += """\
    # On the host's network the cluster's names may be unknown: give the Service's IP by --url then, and the name in
    # its certificate by --server-name.
"""
    return note


def _tls(scheduler: Scheduler) -> str:
    if not scheduler.url.startswith("https:"):
        return (
            "    # Plain HTTP: whoever reaches that address can place pods. It must not leave the machine.\n"
        )
    lines = f"""\
    enableHTTPS: true
    tlsConfig:
      # Without a CA kube-scheduler verifies nothing, and does not say so.
      caFile: {scalar(scheduler.ca_file)}
"""
    if scheduler.server_name:
        lines += f"""\
      # The name in the certificate; the address above has another.
      serverName: {scalar(scheduler.server_name)}
"""
    if scheduler.cert_file:
        lines += f"""\
      # Who it is: the listener lets in whom its client_ca_file signed.
      certFile: {scalar(scheduler.cert_file)}
      keyFile: {scalar(scheduler.key_file)}
"""
    return lines


def _ignorable(scheduler: Scheduler) -> str:
    why = "    # While Wattbalance is away its pods wait: they chose it.\n"
    if scheduler.ignorable:
        why = """\
    # While Wattbalance is away pods are placed without it, and counted afterwards: pools and quarantine are then
    # preferences.
"""
    return f"{why}    ignorable: {str(scheduler.ignorable).lower()}\n"


def _resources(scheduler: Scheduler) -> str:
    if not scheduler.resources:
        return (
            "    # Empty: Wattbalance is asked about every pod of this scheduler.\n    managedResources: []\n"
        )
    names = "".join(f"      - name: {scalar(name)}\n" for name in scheduler.resources)
    return f"""\
    # Wattbalance is asked about pods that request one of these, so that others are not slowed down. There are no
    # globs: add what else nodes offer. A pod that has nothing but a ResourceClaim is not asked about.
    managedResources:
{names}"""


def rights(scheduler: Scheduler) -> str:
    """Write the service account and what binds it: for `kubectl apply`."""
    name, namespace = scalar(scheduler.name), scalar(scheduler.namespace)
    subject = f"""\
subjects:
  - kind: ServiceAccount
    name: {name}
    namespace: {namespace}
"""
    rbac = "apiVersion: rbac.authorization.k8s.io/v1"

    def bound(suffix: str, role: str) -> str:
        return f"""\
{rbac}
kind: ClusterRoleBinding
metadata:
  name: {scalar(f"{scheduler.name}:{suffix}")}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {role}
{subject}"""

    return f"""\
# As whom it runs. The namespace is that of the daemon (deploy/rbac.yaml makes it).
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: {namespace}
---
# What every kube-scheduler of this cluster's version may do; Kubernetes keeps the role up to date.
{bound("kube-scheduler", "system:kube-scheduler")}---
# Volumes that are bound when their pod is placed.
{bound("volume-scheduler", "system:volume-scheduler")}---
# Its secure port checks who reads /metrics by a ConfigMap of kube-system.
{rbac}
kind: RoleBinding
metadata:
  name: {scalar(f"{scheduler.name}:authentication-reader")}
  namespace: kube-system
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: extension-apiserver-authentication-reader
{subject}---
# The Lease: system:kube-scheduler lets it create any, but read and renew only the one called kube-scheduler.
{rbac}
kind: Role
metadata:
  name: {name}
  namespace: {namespace}
rules:
  - apiGroups: ["coordination.k8s.io"]
    resources: ["leases"]
    resourceNames: [{name}]
    verbs: ["get", "update"]
  # A name cannot restrict creation.
  - apiGroups: ["coordination.k8s.io"]
    resources: ["leases"]
    verbs: ["create"]
---
{rbac}
kind: RoleBinding
metadata:
  name: {name}
  namespace: {namespace}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {name}
{subject}"""
