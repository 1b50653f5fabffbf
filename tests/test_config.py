"""The configuration: what is read, and that every problem is said at once, where it is and with what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from scheduler import config
from scheduler.cluster.intents import Intents
from scheduler.cluster.lease_record import LeaseTimes
from scheduler.cluster.objects import Meta
from scheduler.config import ConfigError
from scheduler.config_profiles import Profile
from scheduler.config_schema import structs_below
from scheduler.config_settings import MOST_POOLS, Face, Mode, PoolKind, Settings
from scheduler.config_types import Address, BrokerUrl, PolicyUse
from scheduler.core.nouns import PREFIX, Placement, PoolSpec, Workload
from scheduler.core.preferences import KINDS
from scheduler.parts import intent_settings
from scheduler.policy import registry
from scheduler.policy.base import POOL_CODES

EXAMPLE_FILE = Path(__file__).parent.parent / "deploy" / "config.example.yaml"
LEAST = "cluster: {name: c}\ntelemetry: {broker: mqtt://h}\n"


def problems_of(text: str) -> dict[str, str]:
    """Path -> message. Every problem has to name what was expected."""
    with pytest.raises(ConfigError) as caught:
        config.load(text)
    for problem in caught.value.problems:
        assert "expected" in problem.message
    return {problem.path: problem.message for problem in caught.value.problems}


def test_the_example_is_the_file_in_deploy() -> None:
    assert EXAMPLE_FILE.read_text() == config.example()


def test_the_example_loads_with_one_pool_on_prem_and_one_in_a_cloud() -> None:
    settings = config.load_file(str(EXAMPLE_FILE))
    assert [pool.kind for pool in settings.pools] == [PoolKind.ON_PREM, PoolKind.CLOUD]
    want_spec = PoolSpec(name="dc-1", kind="on-prem", selector={"site": "dc-1"}, spill_after_s=300.0)
    assert settings.pools[0].spec() == want_spec


def test_the_example_shows_every_setting_there_is() -> None:
    shown = config.example()
    for section in msgspec.structs.fields(Settings):
        assert f"\n{section.encode_name}:" in shown
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct):
            for field in msgspec.structs.fields(section.type):
                assert f" {field.encode_name}:" in shown, f"{section.name}.{field.name}"


def test_the_least_file_gets_the_documented_defaults() -> None:
    settings = config.load(LEAST)
    assert settings.mode is Mode.ACT
    assert settings.pools == ()
    want_listeners = [
        ("127.0.0.1:9443", (Face.EXTENDER,)),
        ("0.0.0.0:9440", (Face.METRICS, Face.PROBES)),
        ("127.0.0.1:9441", (Face.API,)),
    ]
    assert [(listener.address, listener.serves) for listener in settings.listeners] == want_listeners
    durations = (settings.cluster.stale_s, settings.telemetry.stale_s, settings.telemetry.half_life_s)
    assert list(map(float, durations)) == [60, 10, 5]
    durations = (settings.lease.duration_s, settings.lease.renew_deadline_s, settings.lease.retry_s)
    assert list(map(float, durations)) == [15, 10, 2]
    assert settings.managed_resources == ()
    assert float(settings.extender.reservation_s) == 30


@pytest.mark.parametrize(
    ("workload", "want_load", "want_policies"),
    [
        (Workload.TRAINING, 0.9, {"pack": 3.0, "least-loaded": 1.0, "image": 0.25}),
        (Workload.BATCH, 0.9, {"pack": 3.0, "least-loaded": 1.0, "image": 0.25}),
        (Workload.INFERENCE, 0.4, {"least-loaded": 3.0, "freshness": 1.0, "spread": 1.0, "image": 0.25}),
    ],
)
def test_each_workload_has_a_built_in_profile(
    workload: Workload, want_load: float, want_policies: dict[str, float]
) -> None:
    profile = config.load(LEAST).profiles.of(workload)
    assert profile.placement is Placement.DECISIVE
    assert profile.expected_load == want_load
    assert {name: use.weight for name, use in profile.policies.items()} == want_policies


def test_built_in_profiles_name_only_installed_policies() -> None:
    """Their names are text in the defaults, which the loader does not check."""
    for workload in Workload:
        for name, use in config.load(LEAST).profiles.of(workload).policies.items():
            registry.build(name, use.options)


def test_a_profile_that_is_given_in_part_keeps_the_rest_of_its_own_default() -> None:
    profiles = config.load(LEAST + "profiles: {inference: {placement: advisory}}").profiles
    assert profiles.inference.placement is Placement.ADVISORY
    assert profiles.inference.expected_load == 0.4
    assert profiles.training == Profile()


def test_policies_replace_the_default_as_a_whole() -> None:
    text = LEAST + "profiles: {training: {policies: {least-loaded: {weight: 2}}}}"
    assert config.load(text).profiles.training.policies == {"least-loaded": PolicyUse(weight=2.0)}


def test_on_and_off_are_booleans() -> None:
    assert config.load(LEAST + "filters: {quarantine: off, devices: on}").filters == {
        "quarantine": False,
        "devices": True,
    }


def test_all_problems_are_reported_at_once_each_with_its_line() -> None:
    text = """\
mode: acting
cluster: {name: a/b, stale: 60}
telemetry:
  broker: mqtts://h
  half_lfe: 3s
  neutral_load: .nan
pools:
  - {name: p, selector: {site: no}}
  - {name: q, kind: clowd, selector: {site: x}}
profiles:
  training: {policies: {pack: {weight: -1}, lest-loaded: {weight: 1}, freshness: {weight: 1, q: 1}}}
log: {level: warn}
"""
    with pytest.raises(ConfigError) as caught:
        config.load(text)
    found = {(problem.path, problem.line) for problem in caught.value.problems}
    want_found = {
        ("mode", 1),
        ("cluster.name", 2),
        ("cluster.stale", 2),
        ("telemetry.half_lfe", 5),
        ("telemetry.neutral_load", 6),
        ("pools[0].selector.site", 8),
        ("pools[1].kind", 9),
        ("profiles.training.policies.pack.weight", 11),
        ("profiles.training.policies.lest-loaded", 11),
        ("profiles.training.policies.freshness.q", 11),
        ("log.level", 12),
    }
    assert found == want_found
    messages = problems_of(text)
    assert messages["mode"] == "expected one of act, observe, got 'acting'"
    assert messages["cluster.stale"].endswith("got 60 without a unit; did you mean 60s?")
    assert messages["telemetry.half_lfe"].endswith("did you mean half_life?")
    assert messages["telemetry.neutral_load"].endswith("got .nan")
    assert messages["pools[0].selector.site"].endswith('got no, which YAML reads as false: write "no"')
    assert messages["profiles.training.policies.lest-loaded"] == (
        "expected one of freshness, image, least-loaded, node-affinity, pack, pod-affinity, spread, taint-toleration, "
        "topology-spread, got an unknown name; did you mean least-loaded?"
    )


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("-1", "got -1 without a unit"),
        (".nan", "got nan without a unit"),
        ("null", "got nothing (null)"),
        ("[5s]", "got a list"),
        ("1.5", "got 1.5 without a unit; did you mean 1.5s?"),
    ],
)
def test_a_duration_is_advised_only_where_it_would_be_one(value: str, want: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(LEAST + f"lease: {{retry: {value}}}")
    [problem] = caught.value.problems
    assert problem.message.endswith(want)


def test_a_missing_key_is_named_and_has_its_parents_line() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load("telemetry: {broker: mqtt://h}\ncluster:\n  stale: 5s\n")
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == ("cluster.name", 2)
    assert problem.message.endswith("got nothing: this key is missing")


def test_an_empty_file_lacks_what_has_no_default() -> None:
    assert set(problems_of("")) == {"cluster", "telemetry"}
    assert set(problems_of("# nothing\n")) == {"cluster", "telemetry"}


@pytest.mark.parametrize(
    ("text", "want_path", "want_words"),
    [
        # pools
        ("pools: [{name: default, selector: {a: b}}]", "pools[0].name", "default is the pool"),
        ("pools: [{name: a, selector: {a: b}, mode: look}]", "pools[0].mode", "observe"),
        (
            "mode: observe\npools: [{name: a, selector: {a: b}, mode: act}]",
            "pools[0].mode",
            "expected observe or nothing beside `mode: observe`, got 'act'",
        ),
        (
            "pools: [{name: a, selector: {a: b}}, {name: a, selector: {a: c}}]",
            "pools[1].name",
            "each name once",
        ),
        ("pools: [{name: a, selector: {}}]", "pools[0].selector", "at least one entry"),
        (
            "pools: [{name: a, selector: {a: b}}, {name: b, selector: {a: b, c: d}}]",
            "pools[1].selector",
            "share no node",
        ),
        (
            "pools: [{name: a, selector: {a: b, c: d}}, {name: b, selector: {a: b}}]",
            "pools[1].selector",
            "share no node",
        ),
        ("pools: [{name: a, selector: {a: 7}}]", "pools[0].selector.a", 'write "7"'),
        (
            "pools: [{name: a, selector: {a: b}, spill: {after: 5 minutes}}]",
            "pools[0].spill.after",
            "did you mean 5m?",
        ),
        ('pools: [{name: "a\\n", selector: {a: b}}]', "pools[0].name", "a name"),
        # profiles and filters
        ("profiles: {games: {}}", "profiles.games", "one of batch, inference, training"),
        ("profiles: {batch: {policies: {}}}", "profiles.batch.policies", "at least one entry"),
        (
            "profiles: {batch: {policies: {pack: {weight: .inf}}}}",
            "profiles.batch.policies.pack.weight",
            "at most 1000",
        ),
        ("profiles: {batch: {policies: {pack: {}}}}", "profiles.batch.policies.pack.weight", "missing"),
        ("profiles: {batch: {policies: {pack: }}}", "profiles.batch.policies.pack", "a mapping with weight"),
        (
            "profiles: {batch: {policies: {quarantine: {weight: 1}}}}",
            "profiles.batch.policies.quarantine",
            "pack",
        ),
        ("profiles: {batch: {expected_load: 1.5}}", "profiles.batch.expected_load", "at most 1"),
        ("filters: {quarantin: off}", "filters.quarantin", "did you mean quarantine?"),
        ("filters: {pack: off}", "filters.pack", "unknown name"),
        ("filters: {quarantine: 1}", "filters.quarantine", "true or false, got 1"),
        # listeners
        ("listeners: [{address: '0.0.0.0:1', serves: [extender]}]", "listeners[0].tls", "client_ca_file"),
        (
            "listeners: [{address: '[::]:1', serves: [extender], tls: {cert_file: a, key_file: b}}]",
            "listeners[0].tls",
            "client_ca_file",
        ),
        (
            (
                "listeners: [{address: '0.0.0.0:1', serves: [api],"
                " tls: {cert_file: a, key_file: b, client_ca_file: c}}]"
            ),
            "listeners[0].address",
            "loopback",
        ),
        ("listeners: [{address: 'h:1', serves: [probes, probes]}]", "listeners[0].serves", "probes twice"),
        ("listeners: [{address: 'h:1', serves: []}]", "listeners[0].serves", "at least one entry"),
        ("listeners: []", "listeners", "at least one entry"),
        ("listeners: [{address: 'h:70000', serves: [probes]}]", "listeners[0].address", "an address such as"),
        ("listeners: [{address: ':80', serves: [probes]}]", "listeners[0].address", "an address such as"),
        (
            "listeners: [{address: 'h:1', serves: [probes]}, {address: 'h:1', serves: [metrics]}]",
            "listeners[1].address",
            "each address once",
        ),
        (
            "listeners: [{address: '127.0.0.1:1', serves: [probes]}, {address: '0.0.0.0:1', serves: [metrics]}]",
            "listeners[1].address",
            "127.0.0.1:1 and 0.0.0.0:1 cannot both be bound (listeners[0])",
        ),
        (
            "listeners: [{address: '[::]:1', serves: [probes]}, {address: '[::1]:1', serves: [metrics]}]",
            "listeners[1].address",
            "another port",
        ),
        # extender
        (
            'extender: {bind: true, ignorable: true, kubernetes_version: "1.29"}',
            "extender.bind",
            "before Kubernetes 1.30",
        ),
        ("extender: {kubernetes_version: 1.30}", "extender.kubernetes_version", 'write "1.30"'),
        ("extender: {prefix: /scheduler/}", "extender.prefix", "without a slash at its end"),
        # lease
        ("lease: {renew_deadline: 15s}", "lease.renew_deadline", "less than duration (15s)"),
        ("lease: {retry: 10s}", "lease.retry", "less than renew_deadline (10s)"),
        ("lease: {retry: 99ms}", "lease.retry", "at least 100ms; got 99ms"),
        (
            "lease: {duration: 999ms, renew_deadline: 500ms, retry: 100ms}",
            "lease.duration",
            "at least 1s; got 999ms",
        ),
        # quantities and the traps of YAML
        ("shutdown: {grace: 0s}", "shutdown.grace", "longer than zero"),
        ("shutdown: {grace: 4:30}", "shutdown.grace", "got '4:30'"),
        ("models: {x: {capability: 017}}", "models.x.capability", "got '017'"),
        ("models: {x: {capability: true}}", "models.x.capability", "a number"),
        ("lease: {renew_deadline: 10s, retry: 9s}", "lease.retry", "less than renew_deadline (10s) over 1.2"),
        (
            "lease: {duration: 15h}",
            "lease.duration",
            "at most 1h, for which a dead leader's place stays empty",
        ),
        ("lease: {name: Bad_Name}", "lease.name", "a Kubernetes name of small letters"),
        ("lease: {namespace: a.b}", "lease.namespace", "a namespace of small letters"),
        ("lease: {enabled: 'true'}", "lease.enabled", "true or false, got 'true'"),
        ("lease:", "lease", "got nothing (null)"),
        (
            "workload: {priority_classes: {a: fast}}",
            "workload.priority_classes.a",
            "training, inference, batch",
        ),
        ("scheduler_names: []", "scheduler_names", "at least one entry"),
        (
            'managed_resources: ["nvidia.com/mig-*"]',
            "managed_resources[0]",
            "a glob like nvidia.com/* is not",
        ),
        ("gpu_resources: [example.com/gpu, cpu]", "gpu_resources[1]", "such as example.com/gpu, got 'cpu'"),
        ("gpu_resources: [requests.a.b/gpu]", "gpu_resources[0]", "an extended resource"),
        ("gpu_resources: [kubernetes.io/gpu]", "gpu_resources[0]", "an extended resource"),
        ("gpu_resources: [nvidia.com/gpu.shared]", "gpu_resources[0]", "that does not count by itself"),
        ("gpu_resources: [nvidia.com/mig-1g.5gb]", "gpu_resources[0]", "that does not count by itself"),
        ("gpu_resources: [a.b/gpu.shared]", "gpu_resources[0]", "without .shared, which goes with it"),
        ("gpu_resources: ['a.b/*']", "gpu_resources[0]", "a glob like nvidia.com/* is not"),
        ('managed_resources: [nvidia.com/gpu, "föö bar"]', "managed_resources[1]", "such as nvidia.com/gpu"),
        *(
            (
                f"extender: {{prefix: {prefix}}}\nlisteners: [{{address: '127.0.0.1:1', serves: [extender, {face}]}}]",
                "extender.prefix",
                f"apart from {taken}, which listeners[0] serves too ({face}); got '{prefix}'",
            )
            for prefix, face, taken in (
                ("/api/v1", "api", "/api/v1"),
                ("/api", "api", "/api/v1"),
                ("/api/v1/nodes", "api", "/api/v1"),
                ("/metrics", "metrics", "/metrics"),
                ("/livez", "probes", "/livez"),
                ("/readyz/x", "probes", "/readyz"),
            )
        ),
    ],
)
def test_a_setting_that_cannot_hold_is_refused(text: str, want_path: str, want_words: str) -> None:
    found = problems_of(LEAST + text)
    assert list(found) == [want_path]
    assert want_words in found[want_path]


@pytest.mark.parametrize(
    ("telemetry", "want_path"),
    [
        ("broker: mqtts://h, password_file: p", "telemetry.username_file"),
        ("broker: mqtts://h, key_file: p", "telemetry.cert_file"),
        ("broker: mqtt://h, ca_file: p", "telemetry.broker"),
        ("broker: http://h", "telemetry.broker"),
        ("broker: mqtt://h:0", "telemetry.broker"),
        ("broker: mqtt://h/topic", "telemetry.broker"),
    ],
)
def test_a_broker_that_cannot_be_reached_so_is_refused(telemetry: str, want_path: str) -> None:
    assert list(problems_of(f"cluster: {{name: c}}\ntelemetry: {{{telemetry}}}")) == [want_path]


def test_a_password_is_never_repeated() -> None:
    text = "cluster: {name: c}\ntelemetry: {broker: 'mqtts://u:hunter2@h', password: hunter2}\n"
    with pytest.raises(ConfigError) as caught:
        config.load(text)
    assert len(caught.value.problems) == 2
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'extender: {bind: true, ignorable: true, kubernetes_version: "1.30"}',
        'extender: {bind: true, ignorable: false, kubernetes_version: "v1.29.3+k3s1"}',
        "extender: {bind: true, ignorable: true}",
        "listeners: [{address: '[::1]:0', serves: [extender, api]}, {address: '[::1]:0', serves: [probes]}]",
        (
            "listeners: [{address: '0.0.0.0:1', serves: [extender],"
            " tls: {cert_file: a, key_file: b, client_ca_file: c}}]"
        ),
        "listeners: [{address: '0.0.0.0:0', serves: [probes]}, {address: '127.0.0.1:0', serves: [metrics]}]",
        "listeners: [{address: '0.0.0.0:1', serves: [probes]}, {address: '127.0.0.1:2', serves: [metrics]}]",
        "listeners: [{address: '[::]:1', serves: [probes]}, {address: '127.0.0.1:1', serves: [metrics]}]",
        "listeners: [{address: '0.0.0.0:1', serves: [probes]}, {address: 'localhost:1', serves: [metrics]}]",
        "lease: {duration: 1h}",
        "lease: {renew_deadline: 10s, retry: 8s, name: a.b-c, namespace: kube-system}",
        "pools: [{name: a, selector: {a: b}}, {name: b, selector: {a: c}}]",
    ],
)
def test_what_only_looks_wrong_is_taken(text: str) -> None:
    config.load(LEAST + text)


@pytest.mark.parametrize(
    ("extender", "want_paths"),
    [
        ("{bind: true, ignorable: true}", ["extender.kubernetes_version"]),
        ("{bind: true, ignorable: true, kubernetes_version: null}", ["extender.kubernetes_version"]),
        ('{bind: true, ignorable: true, kubernetes_version: "1.30"}', []),
        ("{bind: true, ignorable: false}", []),
        ("{bind: true}", []),
        ("{ignorable: true}", []),
    ],
)
def test_bind_with_ignorable_is_warned_of_where_the_version_is_not_known(
    extender: str, want_paths: list[str]
) -> None:
    settings = config.load(f"{LEAST}extender: {extender}\n")
    assert [problem.path for problem in config.warnings(settings)] == want_paths


def test_managed_resources_that_are_no_gpus_are_warned_of_one_by_one() -> None:
    named = "managed_resources: [nvidia.com/gpu.shared, rdma/hca, example.com/a100, amd.com/gpu]\n"
    settings = config.load(f"{LEAST}{named}gpu_resources: [example.com/a100]\n")
    told = [str(problem) for problem in config.warnings(settings)]
    assert [each.partition(", got ")[2] for each in told] == ["'rdma/hca'", "'amd.com/gpu'"]
    assert all("gpu_resources" in each for each in told)


def test_every_lease_that_is_taken_can_be_elected_for() -> None:
    # The very boundary: what check-config lets through must not fail in `serve`.
    for tenths in range(70, 100):
        try:
            lease = config.load(f"{LEAST}lease: {{renew_deadline: 10s, retry: {tenths * 100}ms}}").lease
        except ConfigError:
            continue
        LeaseTimes(
            lease_s=float(lease.duration_s),
            deadline_s=float(lease.renew_deadline_s),
            retry_s=float(lease.retry_s),
        )


def test_no_quotes_are_advised_where_they_would_not_help() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(f"{LEAST}mode: on")
    assert str(caught.value).endswith("mode: expected one of act, observe, got on")


def test_json_is_taken_too() -> None:
    text = json.dumps(
        {"cluster": {"name": "c"}, "telemetry": {"broker": "mqtt://h"}, "log": {"level": "debug"}}
    )
    assert config.load(text).log.level == "debug"


def test_one_fault_does_not_hide_another_rule() -> None:
    text = (
        "pools: [{name: a, selector: {a: b}}, {name: 3}, {name: a, selector: {a: c}}]\nlease: {retry: 30s}\n"
    )
    want_paths = {"pools[1].name", "pools[1].selector", "pools[2].name", "lease.retry"}
    assert set(problems_of(LEAST + text)) == want_paths


@pytest.mark.parametrize(
    ("text", "want_paths"),
    [
        (
            "lease: {duration: 1s, renew_deadline: 10s, retry: x}",
            {"lease.renew_deadline", "lease.retry"},
        ),
        ("lease: {duration: 2h, renew_deadline: x, retry: 1s}", {"lease.duration", "lease.renew_deadline"}),
        ("lease: {retry: 30s, unheard: 1}", {"lease.retry", "lease.unheard"}),
        (
            "listeners: [{address: 'h:1', serves: [probes]}, {address: 'h:1', serves: [tea]}]",
            {"listeners[1].serves[0]", "listeners[1].address"},
        ),
        (
            "listeners: [{address: 'h:x', serves: [probes, probes]}]",
            {"listeners[0].address", "listeners[0].serves"},
        ),
        (
            "pools: [{name: a, selector: {a: b}}, {name: a, kind: x, selector: {a: b}}]",
            {"pools[1].name", "pools[1].kind", "pools[1].selector"},
        ),
        # A wrong key is not taken for an absent one.
        ("listeners: [{address: '0.0.0.0:1', serves: [extender], tls: x}]", {"listeners[0].tls"}),
        (
            'extender: {bind: true, ignorable: true, kubernetes_version: "1.29", reservation: x}',
            {"extender.bind", "extender.reservation"},
        ),
    ],
)
def test_a_rule_is_judged_whatever_is_wrong_beside_its_keys(text: str, want_paths: set[str]) -> None:
    assert set(problems_of(LEAST + text)) == want_paths


def test_a_rule_of_telemetry_is_judged_beside_a_wrong_key() -> None:
    text = "cluster: {name: c}\ntelemetry: {broker: mqtt://h, ca_file: p, stale: x}"
    assert set(problems_of(text)) == {"telemetry.broker", "telemetry.stale"}


def test_a_prefix_may_be_what_another_listener_serves() -> None:
    listeners = "[{address: '127.0.0.1:1', serves: [extender]}, {address: '127.0.0.1:2', serves: [api]}]"
    text = f"{LEAST}extender: {{prefix: /api/v1}}\nlisteners: {listeners}"
    assert config.load(text).extender.prefix == "/api/v1"


def test_a_thousand_problems_are_cut_and_counted() -> None:
    text = LEAST + "\n".join(f"k{number}: 1" for number in range(1000))
    with pytest.raises(ConfigError) as caught:
        config.load(text)
    assert len(caught.value.problems) == config.MOST_PROBLEMS + 1
    assert "800 more problems" in caught.value.problems[-1].message


def test_addresses_know_their_parts() -> None:
    assert (Address("[::1]:9443").host, Address("[::1]:9443").port) == ("::1", 9443)
    want_loopback = {
        "127.0.0.1:1": True,
        "[::1]:1": True,
        "localhost:1": True,
        "0.0.0.0:1": False,
        "h:1": False,
    }
    assert {address: Address(address).loopback for address in want_loopback} == want_loopback


@pytest.mark.parametrize(
    ("url", "want_host", "want_port", "want_tls"),
    [
        ("mqtt://h", "h", 1883, False),
        ("mqtts://h/", "h", 8883, True),
        ("mqtt://[::1]:7", "::1", 7, False),
        ("mqtts://a.b:9", "a.b", 9, True),
    ],
)
def test_brokers_know_their_parts(url: str, want_host: str, want_port: int, want_tls: bool) -> None:
    broker = BrokerUrl.parse(url)
    assert (broker.host, broker.port, broker.tls) == (want_host, want_port, want_tls)


@pytest.mark.parametrize(
    ("content", "want_words"),
    [(None, "a readable file"), (b"mode: \xff", "UTF-8"), (b"#" * (1 << 21), "at most")],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(
    tmp_path: Path, content: bytes | None, want_words: str
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=want_words):
        config.load_file(str(path))


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    assert config.load_file(str(path)).cluster.name == "c"


def test_the_schema_describes_every_setting_and_its_default() -> None:
    schema = json.loads(json.dumps(config.schema()))
    parts = schema["$defs"]
    for name, part in parts.items():
        for key, field in part.get("properties", {}).items():
            if key != "policies" and "Settings" in name:
                assert field["description"], f"{name}.{key}"
    assert parts["ClusterSettings"]["properties"]["stale"]["default"] == "1m"
    assert parts["Profile"]["properties"]["policies"]["default"] == {
        "pack": {"weight": 3.0},
        "least-loaded": {"weight": 1.0},
        "image": {"weight": 0.25},
    }
    policies = parts["Profile"]["properties"]["policies"]
    assert set(policies["properties"]) == {"pack", "least-loaded", "freshness", "spread", "image", *KINDS}
    assert all(reference["$ref"].rpartition("/")[2] in parts for reference in policies["properties"].values())


def test_settings_cannot_be_changed() -> None:
    settings = config.load(LEAST)
    with pytest.raises(AttributeError):
        settings.mode = Mode.OBSERVE  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        settings.cluster.name = "d"  # type: ignore[misc]  # that is the point


def test_every_struct_refuses_unknown_keys_and_positional_values() -> None:
    """`kw_only` is not inherited: each class has to say it."""
    structs = structs_below(Settings).values()
    assert len(structs) > 12
    for struct in structs:
        assert struct.__struct_config__.forbid_unknown_fields, struct
        assert struct.__struct_config__.frozen, struct
        with pytest.raises(TypeError, match="positional"):
            struct(None)


def test_there_are_no_more_pools_than_there_are_codes_to_wait_for_one() -> None:
    text = 'cluster: {name: c}\ntelemetry: {broker: "mqtt://b:1"}\npools:\n'
    pools = [f"  - {{name: p{n}, selector: {{site: s{n}}}}}\n" for n in range(MOST_POOLS + 1)]
    assert len(config.load(text + "".join(pools[:-1])).pools) == MOST_POOLS
    with pytest.raises(
        ConfigError, match=f"pools: expected a list of at most {MOST_POOLS} entries, got a list"
    ):
        config.load(text + "".join(pools))
    # The pool `default` has one, too.
    assert MOST_POOLS + 1 <= 256 - POOL_CODES


def test_what_is_wrong_with_one_annotation_hides_nothing_of_the_others() -> None:
    given = "{pools: mars, workload: x, min-power: 500W, max-power: 300W, gang: g, zzz: 1}"
    with pytest.raises(ConfigError) as error:
        config.load(WANTS + f"annotations: {given}")
    found = str(error.value)
    for want in (
        "pools: expected names",
        "workload: expected",
        "min-power: expected",
        "gang: expected it together",
    ):
        assert f"annotations.{want}" in found
    assert "annotations.zzz: expected text" in found
    assert "annotations.zzz: expected a key" in found


# --- what pods want --------------------------------------------------------------------------------------------------

WANTS = """
cluster: {name: c}
telemetry: {broker: "mqtt://b:1"}
pools: [{name: dc-1, selector: {site: a}}, {name: edge, selector: {site: b}}]
"""


def test_a_default_that_is_bad_is_told_once() -> None:
    with pytest.raises(ConfigError) as error:
        config.load(WANTS + "annotations: {gang: g, gang-size: many}")
    [problem] = error.value.problems
    assert problem.path == "annotations.gang-size"


def test_where_nobody_may_ask_for_a_key_its_default_holds() -> None:
    limits = 'namespaces: [{match: "*", allow: {pools: [], workload: []}}]'
    settings = config.load(WANTS + f"annotations: {{pools: edge, workload: training}}\n{limits}")
    found = Intents(intent_settings(settings)).resolve(Meta(namespace="a", uid="u"), "")
    assert (found.value("pools"), found.workload) == (("edge",), Workload.TRAINING)


def test_a_limit_holds_pods_in_the_order_of_the_pools() -> None:
    limits = 'namespaces: [{match: "*", allow: {pools: [default, edge, dc-1]}}]'
    settings = config.load(WANTS + limits)
    found = Intents(intent_settings(settings)).resolve(Meta(namespace="a", uid="u"), "")
    assert found.value("pools") == ("dc-1", "edge", "default")


def test_default_annotations_and_what_namespaces_may_ask_for_are_taken() -> None:
    settings = config.load(
        WANTS
        + """
annotations: {queue: research, pools: edge}
namespaces:
  - {match: "team-*", allow: {pools: ["dc-1,edge"], workload: [batch], gang: []}}
  - {match: "*", allow: {max-power: [400W]}}
"""
    )
    intents = Intents(intent_settings(settings))
    meta = Meta(
        namespace="team-a", uid="u", annotations={PREFIX + "workload": "training", PREFIX + "pools": "dc-1"}
    )
    found = intents.resolve(meta, "")
    assert {key: word.text for key, word in found.words.items()} == {"queue": "research", "pools": "dc-1"}
    assert [fault.key for fault in found.faults] == ["workload"]
    other = intents.resolve(
        Meta(namespace="ops", uid="v", annotations={PREFIX + "max-power": "0.4kW", PREFIX + "gang": "g"}), ""
    )
    assert other.words.keys() == {"max-power", "queue", "pools"}
    assert [fault.key for fault in other.faults] == ["gang"], "alone, and nobody forbids it there"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("annotations: {queu: a}", "annotations.queu: expected a key that wattbalance knows"),
        (
            "annotations: {wattbalance.io/queue: a}",
            "annotations['wattbalance.io/queue']: expected it without wattbalance.io/: 'queue', got",
        ),
        ("annotations: {decision: a}", "annotations.decision: expected an annotation that people write"),
        ("annotations: {gpu-memory: lots}", "annotations.gpu-memory: expected an amount of memory"),
        (
            "annotations: {pools: mars}",
            "annotations.pools: expected names of pools (dc-1, default, edge), got 'mars'",
        ),
        ("annotations: {gang: g}", "annotations.gang: expected it together with gang-size"),
        ("annotations: {gpu-model: '*H100*,[!'}", "annotations.gpu-model: expected globs on GPU models"),
        (
            "annotations: {pools: dc-1}\nnamespaces: [{match: '*', allow: {pools: [edge, default]}}]",
            "line 5: annotations.pools: expected a default that namespaces[0].allow.pools takes (edge or default), got",
        ),
        (
            "annotations: {\n  flex: 25%}\nnamespaces: [{match: a, allow: {}}, {match: b, allow: {flex: [10%]}}]",
            "line 6: annotations.flex: expected a default that namespaces[1].allow.flex takes (10%), got '25%'",
        ),
        (
            "annotations: {flex: 25%, power: firm}",
            "annotations.power: expected elastic beside flex: 25%, got firm",
        ),
        ("annotations: {gang-size: 3}", "annotations.gang-size: expected text"),
        (
            "namespaces: [{match: '*', allow: {flex: ['30%']}}]",
            "namespaces[0].allow.flex: expected 0, 10%, 25% or 50%",
        ),
        (
            "namespaces: [{match: '*', allow: {role: []}}]",
            "namespaces[0].allow.role: expected it as a label of a pod",
        ),
        (
            "namespaces: [{match: a, allow: {pools: [dc-1]}}, {match: b, allow: {pools: ['dc-1,mars', default]}}]",
            "namespaces[1].allow.pools: expected names of pools (dc-1, default, edge), got 'mars'",
        ),
        (
            "namespaces: [{match: '*', allow: {}}, {match: 'team-*', allow: {gang: []}}]",
            "namespaces[1].match: expected namespaces that no entry before takes, got 'team-*' after namespaces[0]",
        ),
        (
            "namespaces: [{match: a, allow: {}}, {match: b, allow: {}}, {match: a, allow: {gang: []}}]",
            "namespaces[2].match: expected namespaces that no entry before takes, got 'a' after namespaces[0]",
        ),
        ("namespaces: [{match: '*', allow: 7}]", "namespaces[0].allow: expected a mapping, got 7"),
        ("namespaces: [{match: '', allow: {}}]", "namespaces[0].match: expected text"),
    ],
)
def test_what_pods_want_is_checked_in_the_configuration_too(text: str, want: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(WANTS + text)
    assert want in str(error.value)
