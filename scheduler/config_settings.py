"""The settings: typed, frozen, one class per room. `scheduler.config` loads and checks them.

The file's words carry no unit (`stale: 60s`), since their values do; the attributes do (`stale_s`).
Secrets are never in the file, only the names of files that hold them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, field

from scheduler.config_intent import AnnotationText, NamespaceSettings, WorkloadSettings
from scheduler.config_nudge import NudgeSettings
from scheduler.config_profiles import ProfileSettings
from scheduler.config_types import (
    END,
    Address,
    BrokerUrl,
    FilePath,
    LabelKey,
    LabelValue,
    Name,
    NamespaceName,
    ObjectName,
    PositiveSeconds,
    ResourceName,
    Seconds,
    Strict,
    Text,
)
from scheduler.core.nouns import PoolSpec

# Each has a reason code of its own, of which a byte holds 256 (policy/base.py).
MOST_POOLS = 200


class Mode(StrEnum):
    """Whether anything is done, or only decided and recorded."""

    ACT = "act"
    OBSERVE = "observe"


class PoolKind(StrEnum):
    """What sort of place a pool is."""

    ON_PREM = "on-prem"
    CLOUD = "cloud"
    EDGE = "edge"
    PARTNER = "partner"


class Face(StrEnum):
    """What a listener can serve."""

    EXTENDER = "extender"
    API = "api"
    METRICS = "metrics"
    PROBES = "probes"


class LogLevel(StrEnum):
    """From which severity on a line is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For machines, or for people."""

    JSON = "json"
    TEXT = "text"


class ClusterSettings(Strict, frozen=True, kw_only=True):
    """The Kubernetes cluster."""

    name: Annotated[Name, Meta(description="Name of this cluster; part of every MQTT topic.")]
    kubeconfig: Annotated[
        FilePath | None,
        Meta(
            description="Kubeconfig file; null: the pod's service account, else KUBECONFIG or ~/.kube/config."
        ),
    ] = None
    stale_s: Annotated[
        PositiveSeconds,
        Meta(
            description="Not ready once the API server was silent for this long; a minute outlasts its restart."
        ),
    ] = field(name="stale", default_factory=lambda: PositiveSeconds(60))
    api_timeout_s: Annotated[
        PositiveSeconds,
        Meta(description="Time limit of one call; kube-scheduler's own patience with us is as long."),
    ] = field(name="api_timeout", default_factory=lambda: PositiveSeconds(5))


class TelemetrySettings(Strict, frozen=True, kw_only=True):
    """Samples from the agents."""

    broker: Annotated[
        BrokerUrl, Meta(description="MQTT broker; mqtts:// for TLS. No user or password in it.")
    ]
    ca_file: Annotated[FilePath | None, Meta(description="CA of the broker; null: the system's.")] = None
    cert_file: Annotated[FilePath | None, Meta(description="Our client certificate; null: none.")] = None
    key_file: Annotated[FilePath | None, Meta(description="Its key; null: it is in cert_file.")] = None
    username_file: Annotated[
        FilePath | None, Meta(description="File that holds the user name; null: none.")
    ] = None
    password_file: Annotated[
        FilePath | None, Meta(description="File that holds the password; null: none.")
    ] = None
    stale_s: Annotated[
        PositiveSeconds,
        Meta(description="A reading older than this is unknown; ten lost messages at one a second."),
    ] = field(name="stale", default_factory=lambda: PositiveSeconds(10))
    half_life_s: Annotated[
        PositiveSeconds,
        Meta(description="How fast measured load forgets; pending load fades at the same rate."),
    ] = field(name="half_life", default_factory=lambda: PositiveSeconds(5))
    neutral_load: Annotated[
        float, Meta(ge=0, le=1, description="Load assumed of a free GPU whose reading is unknown, 0 to 1.")
    ] = 0.5
    wait_at_start_s: Annotated[
        Seconds, Meta(description="How long to wait for the broker at start before serving without readings.")
    ] = field(name="wait_at_start", default_factory=lambda: Seconds(10))


class SpillSettings(Strict, frozen=True, kw_only=True):
    """When work flows over into later pools."""

    after_s: Annotated[
        Seconds,
        Meta(description="How long a pod waits for this pool before the later ones open to it; 0s: at once."),
    ] = field(name="after", default_factory=Seconds)


class PoolSettings(Strict, frozen=True, kw_only=True):
    """A group of nodes; its position in the list is its rank."""

    name: Annotated[Name, Meta(description="Name of the pool, as annotations and metrics show it; unique.")]
    kind: Annotated[
        PoolKind, Meta(description="What sort of place it is; for people, it decides nothing.")
    ] = PoolKind.ON_PREM
    selector: Annotated[
        dict[LabelKey, LabelValue],
        Meta(min_length=1, description="Labels that a node must carry, all of them, to be in this pool."),
    ]
    spill: Annotated[SpillSettings, Meta(description="When work flows over into later pools.")] = field(
        default_factory=SpillSettings
    )
    mode: Annotated[
        Mode | None,
        Meta(
            description="observe: its nodes are only observed, others are acted on; null: as the file's `mode` says."
        ),
    ] = None

    def spec(self) -> PoolSpec:
        """Give the pool as the other rooms know it."""
        return PoolSpec(
            name=self.name,
            kind=self.kind.value,
            selector=dict(self.selector),
            spill_after_s=float(self.spill.after_s),
            observe=self.mode is Mode.OBSERVE,
        )


class TlsSettings(Strict, frozen=True, kw_only=True):
    """A listener's certificate; reloaded when the files change."""

    cert_file: Annotated[FilePath, Meta(description="Certificate chain, PEM.")]
    key_file: Annotated[FilePath, Meta(description="Key of cert_file, PEM.")]
    client_ca_file: Annotated[
        FilePath | None,
        Meta(description="Who may connect: clients with a certificate of this CA; null: anyone."),
    ] = None


class ListenerSettings(Strict, frozen=True, kw_only=True):
    """One open port."""

    address: Annotated[Address, Meta(description="Host and port.")]
    serves: Annotated[tuple[Face, ...], Meta(min_length=1, description="What is answered here.")]
    tls: Annotated[TlsSettings | None, Meta(description="Certificate; null: plain HTTP.")] = None


def _default_listeners() -> tuple[ListenerSettings, ...]:
    return (
        ListenerSettings(address=Address("127.0.0.1:9443"), serves=(Face.EXTENDER,)),
        ListenerSettings(address=Address("0.0.0.0:9440"), serves=(Face.METRICS, Face.PROBES)),
        ListenerSettings(address=Address("127.0.0.1:9441"), serves=(Face.API,)),
    )


class ExtenderSettings(Strict, frozen=True, kw_only=True):
    """The door that kube-scheduler knocks at."""

    prefix: Annotated[
        str,
        Meta(
            pattern=rf"^(/[-A-Za-z0-9_.]+)+{END}",
            max_length=253,
            extra={"expected": "a path such as /scheduler, without a slash at its end"},
            description="Path before /filter, as in the urlPrefix of kube-scheduler's configuration.",
        ),
    ] = "/scheduler"
    bind: Annotated[bool, Meta(description="Whether we bind (bindVerb); off: kube-scheduler does.")] = False
    annotate: Annotated[
        bool,
        Meta(
            description="Whether the decision is written on pods that kube-scheduler bound by it; needs patch on pods."
        ),
    ] = True
    annotations_per_s: Annotated[
        float,
        Meta(
            gt=0, le=100_000, description="Decisions written a second at most, newest first; each is a write."
        ),
    ] = field(name="annotations_per_second", default=20.0)
    reservation_s: Annotated[
        PositiveSeconds, Meta(description="How long a choice holds its GPUs until the binding is seen.")
    ] = field(name="reservation", default_factory=lambda: PositiveSeconds(30))
    kubernetes_version: Annotated[
        Annotated[
            str,
            Meta(
                pattern=rf"^v?1\.[0-9]{{1,3}}([.+-][-+.0-9A-Za-z]{{0,40}})?{END}",
                extra={"expected": 'a version in quotes such as "1.32"'},
            ),
        ]
        | None,
        Meta(
            description="Version of kube-scheduler, with which bind and ignorable are checked; null: a warning."
        ),
    ] = None
    ignorable: Annotated[
        bool | None, Meta(description="What kube-scheduler's configuration says of us; null: not known.")
    ] = None


class LeaseSettings(Strict, frozen=True, kw_only=True):
    """Who of several replicas writes."""

    enabled: Annotated[bool, Meta(description="Off: this is the only replica, and it always leads.")] = True
    name: Annotated[ObjectName, Meta(description="Name of the Lease.")] = "wattbalance"
    namespace: Annotated[
        NamespaceName | None,
        Meta(description="Its namespace; null: the pod's own, outside a pod `wattbalance`."),
    ] = None
    duration_s: Annotated[
        PositiveSeconds,
        Meta(description="A leader that is silent for this long is replaced; as Kubernetes has it."),
    ] = field(name="duration", default_factory=lambda: PositiveSeconds(15))
    renew_deadline_s: Annotated[
        PositiveSeconds, Meta(description="A leader that could not renew for this long stops acting.")
    ] = field(name="renew_deadline", default_factory=lambda: PositiveSeconds(10))
    retry_s: Annotated[PositiveSeconds, Meta(description="How often it is renewed or asked for.")] = field(
        name="retry", default_factory=lambda: PositiveSeconds(2)
    )
    identity: Annotated[
        Text | None, Meta(description="Name of this replica; null: the pod's (host's) name.")
    ] = None


class ModelSettings(Strict, frozen=True, kw_only=True):
    """What is known of GPUs of one model."""

    capability: Annotated[float, Meta(gt=0, le=1000, description="Speed relative to other models.")] = 1.0


class LogSettings(Strict, frozen=True, kw_only=True):
    """The daemon's own lines on stderr."""

    level: Annotated[LogLevel, Meta(description="From which severity on.")] = LogLevel.INFO
    format: Annotated[
        LogFormat,
        Meta(description="json for machines, with all of a decision; text for people, who get it in a line."),
    ] = LogFormat.JSON


class ShutdownSettings(Strict, frozen=True, kw_only=True):
    """What happens at SIGTERM."""

    grace_s: Annotated[
        PositiveSeconds, Meta(description="All tasks together; keep it below terminationGracePeriodSeconds.")
    ] = field(name="grace", default_factory=lambda: PositiveSeconds(10))


class Settings(Strict, frozen=True, kw_only=True):
    """The whole file."""

    mode: Annotated[Mode, Meta(description="act, or observe: decide and record everything, do nothing.")] = (
        Mode.ACT
    )
    cluster: Annotated[ClusterSettings, Meta(description="The Kubernetes cluster.")]
    telemetry: Annotated[TelemetrySettings, Meta(description="Samples from the agents.")]
    pools: Annotated[
        tuple[PoolSettings, ...],
        Meta(
            max_length=MOST_POOLS,
            description="In order of preference; a node of two gets no GPU pod, one of none is in `default`, last.",
        ),
    ] = ()
    profiles: Annotated[ProfileSettings, Meta(description="How each workload is placed.")] = field(
        default_factory=ProfileSettings
    )
    filters: Annotated[
        dict[str, bool], Meta(description="Filters by policy name; all are on unless off here.")
    ] = field(default_factory=dict)
    workload: Annotated[WorkloadSettings, Meta(description="What a pod is if it does not say.")] = field(
        default_factory=WorkloadSettings
    )
    annotations: Annotated[
        dict[Text, AnnotationText],
        Meta(
            description="Annotations, without wattbalance.io/, of pods for which nothing that counts is said by them, "
            "their owners or their namespace."
        ),
    ] = field(default_factory=dict)
    namespaces: Annotated[
        tuple[NamespaceSettings, ...],
        Meta(description="What pods may ask for; the first entry that matches a namespace counts."),
    ] = ()
    listeners: Annotated[
        tuple[ListenerSettings, ...], Meta(min_length=1, description="Open ports; replaces the defaults.")
    ] = field(default_factory=_default_listeners)
    extender: Annotated[ExtenderSettings, Meta(description="The door for kube-scheduler.")] = field(
        default_factory=ExtenderSettings
    )
    nudge: Annotated[NudgeSettings, Meta(description="How pods that we refused are woken once they fit.")] = (
        field(default_factory=NudgeSettings)
    )
    lease: Annotated[LeaseSettings, Meta(description="Who of several replicas writes.")] = field(
        default_factory=LeaseSettings
    )
    models: Annotated[
        dict[Text, ModelSettings],
        Meta(
            description="By a glob on the GPU's model name, compared as `gpu-model` is; the first match counts."
        ),
    ] = field(default_factory=dict)
    scheduler_names: Annotated[
        tuple[Text, ...], Meta(min_length=1, description="Pods of these schedulers should come past us.")
    ] = ("wattbalance",)
    managed_resources: Annotated[
        tuple[ResourceName, ...],
        Meta(
            description="GPU pods with one of these are counted if they come past us. None named: all that are GPUs, "
            "shared ones or slices. For a scheduler that others share, as its `managedResources` name them. What of "
            "them is no GPU (`gpu_resources` says which further names are) is passed through, and not counted.",
        ),
    ] = ()
    gpu_resources: Annotated[
        tuple[ResourceName, ...],
        Meta(
            description="Further names by which nodes offer GPUs, as a device plugin's `rename` gives them; counted as "
            "whole GPUs, or as replicas where the node's label nvidia.com/gpu.replicas says so. NAME.shared goes with "
            "NAME.",
        ),
    ] = ()
    log: Annotated[LogSettings, Meta(description="The daemon's own lines.")] = field(
        default_factory=LogSettings
    )
    shutdown: Annotated[ShutdownSettings, Meta(description="What happens at SIGTERM.")] = field(
        default_factory=ShutdownSettings
    )
