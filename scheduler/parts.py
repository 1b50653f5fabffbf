"""From settings to the parts that the daemon, the benchmarks and the replays are made of. Nothing here runs."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from scheduler.cluster.annotations import read
from scheduler.cluster.intent import IntentSettings, NamespaceRule
from scheduler.cluster.intents import Intents
from scheduler.cluster.kubernetes import PROBE_EVERY_S
from scheduler.cluster.nodes import DEFAULT_POOL
from scheduler.cluster.store import Store, StoreSettings
from scheduler.config_profiles import Profile
from scheduler.config_settings import Face, ListenerSettings, Settings
from scheduler.config_types import PolicyUse
from scheduler.core.errors import ConfigError, Problem
from scheduler.core.nouns import Workload
from scheduler.core.preferences import NODE_AFFINITY, POD_AFFINITY, TAINT_TOLERATION, TOPOLOGY_SPREAD
from scheduler.decision.decider import Decider
from scheduler.listeners import ListenerSpec, TlsFiles
from scheduler.policy import profiles, registry
from scheduler.policy.base import Filter, Score
from scheduler.telemetry.broker import BrokerSettings

PREFERENCE_SHARES = {NODE_AFFINITY: 1.0, POD_AFFINITY: 1.0, TAINT_TOLERATION: 1.5, TOPOLOGY_SPREAD: 1.0}
"""Weight of each, against all other policies of a profile together.

As in kube-scheduler's default profile: 2, 2, 3 and 2 beside its resource scores, which weigh 1 and 1.
Source: pkg/scheduler/apis/config/v1/default_plugins.go, Kubernetes 1.25 to 1.36; in 1.20 all but the spread were 1.
"""


def make_store(settings: Settings) -> Store:
    """A store for these settings."""
    return Store(store_settings(settings), Intents(intent_settings(settings)))


def store_settings(settings: Settings) -> StoreSettings:
    """What the store needs of the settings."""
    return StoreSettings(
        pools=tuple(pool.spec() for pool in settings.pools),
        half_life_s=float(settings.telemetry.half_life_s),
        stale_s=float(settings.telemetry.stale_s),
        neutral_load=settings.telemetry.neutral_load,
        reservation_s=float(settings.extender.reservation_s),
        capabilities={glob: model.capability for glob, model in settings.models.items()},
        expected_loads={w: settings.profiles.of(w).expected_load for w in Workload},
        gpu_resources=frozenset(settings.gpu_resources),
    )


def intent_settings(settings: Settings) -> IntentSettings:
    """What intents need of the settings."""
    return IntentSettings(
        default_workload=settings.workload.default,
        priority_classes=dict(settings.workload.priority_classes),
        defaults=dict(settings.annotations),
        rules=[
            NamespaceRule(
                match=partial(fnmatchcase, pat=each.match),
                allow={key: [read(key, text) for text in texts] for key, texts in each.allow.items()},
            )
            for each in settings.namespaces
        ],
        pools=(*(pool.name for pool in settings.pools), DEFAULT_POOL),
    )


def make_decider(settings: Settings, store: Store, *, instance: str) -> Decider:
    """A decider with the settings' profiles and filters."""
    return Decider(store, make_profiles(settings), make_filters(settings), instance=instance)


def make_filters(settings: Settings) -> tuple[profiles.NamedFilter, ...]:
    """The filters: every one is on unless switched off."""
    filters = []
    for name in registry.known():
        args: dict[str, object] = {}
        if name == "pools":
            args["spill_after_s"] = [float(pool.spill.after_s) for pool in settings.pools]
        policy = registry.build(name, args)
        if isinstance(policy, Filter) and settings.filters.get(name, True):
            filters.append(profiles.NamedFilter(name, policy))
    return tuple(filters)


def make_profiles(settings: Settings) -> dict[Workload, profiles.Profile]:
    """The profile of each workload. Raises ConfigError."""
    return {w: _profile(w, settings.profiles.of(w)) for w in Workload}


def _profile(workload: Workload, given: Profile) -> profiles.Profile:
    scores = []
    policies = given.policies | {
        name: PolicyUse(weight=weight)
        for name, weight in preference_weights(given.policies).items()
        if name not in given.policies
    }
    for name, use in policies.items():
        policy = registry.build(name, dict(use.options))
        if not isinstance(policy, Score):
            message = f"{name} is a filter, not a score"
            raise ConfigError([Problem(path=f"profiles.{workload}.policies", message=message)])
        scores.append(profiles.Weighted(name, use.weight, policy))
    return profiles.Profile(
        name=workload.value,
        workload=workload,
        placement=given.placement,
        expected_load=given.expected_load,
        scores=tuple(scores),
    )


def preference_weights(policies: Mapping[str, PolicyUse]) -> dict[str, float]:
    """What each policy that weighs pods' own preferences weighs in a profile that does not say."""
    stated = sum(use.weight for name, use in policies.items() if name not in PREFERENCE_SHARES)
    return {name: share * (stated or 1.0) for name, share in PREFERENCE_SHARES.items()}


def probe_every_s(settings: Settings) -> float:
    """How often a quiet API server is asked for a sign of life.

    Who observes renews no Lease: without such a sign in time, a quiet server would count as silent.
    """
    return min(PROBE_EVERY_S, float(settings.cluster.stale_s) / 2)


def broker_settings(settings: Settings) -> BrokerSettings:
    """The bus's view of the telemetry settings."""
    telemetry = settings.telemetry
    return BrokerSettings(
        url=str(telemetry.broker),
        ca_file=telemetry.ca_file,
        cert_file=telemetry.cert_file,
        key_file=telemetry.key_file,
        username_file=telemetry.username_file,
        password_file=telemetry.password_file,
    )


def listener_spec(given: ListenerSettings) -> ListenerSpec:
    """A listener as listeners.py wants it."""
    tls = None
    if given.tls is not None:
        ca = Path(given.tls.client_ca_file) if given.tls.client_ca_file else None
        tls = TlsFiles(
            cert_file=Path(given.tls.cert_file), key_file=Path(given.tls.key_file), client_ca_file=ca
        )
    return ListenerSpec(
        address=str(given.address), serves=frozenset(Face(face).value for face in given.serves), tls=tls
    )
