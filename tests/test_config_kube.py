"""The kube-scheduler configuration that we print: whole for each family of versions, and each value by its reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler import config
from scheduler.cluster.shares import is_gpu_resource
from scheduler.config_kube import GPU_RESOURCES, NEWEST, OLDEST, Wanted, render
from scheduler.config_kube_text import scalar
from scheduler.config_settings import Settings
from scheduler.core.errors import ConfigError
from tests.kube_scheduler.golden import CASES, path_of

MINIMAL = "cluster: {name: c}\ntelemetry: {broker: mqtt://b}\n"


def settings_of(text: str = "") -> Settings:
    return config.load(MINIMAL + text)


def documents(wanted: Wanted, settings: Settings | None = None) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(wanted, settings).text))


def extender(wanted: Wanted, settings: Settings | None = None) -> dict[str, Any]:
    [found] = documents(wanted, settings)[0]["extenders"]
    return dict(found)


def refusal(wanted: Wanted, settings: Settings | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        render(wanted, settings)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed_is_what_was_looked_at(name: str) -> None:
    want = path_of(name).read_text()
    assert render(CASES[name]).text == want, (
        "meant so? python -m tests.kube_scheduler.golden, and read the diff"
    )


@pytest.mark.parametrize(
    ("version", "want_api"),
    [
        *(("1.20", "v1beta1"), ("1.21.14", "v1beta1"), ("1.22", "v1beta2"), ("1.23", "v1beta3")),
        *(("v1.24.17", "v1beta3"), ("1.25", "v1"), ("1.31.4-gke.100", "v1"), ("1.32+", "v1"), ("1.37", "v1")),
    ],
)
def test_the_newest_version_that_a_minor_serves_is_printed(version: str, want_api: str) -> None:
    [found] = documents(Wanted(version=version, part="config"))
    assert found["apiVersion"] == f"kubescheduler.config.k8s.io/{want_api}"


@pytest.mark.parametrize("version", ["1.19", "1.38", "2.0", "1", "", "1.32x", "1.32 ", "latest", "1.3²"])
def test_an_unknown_version_is_refused_with_those_that_are_known(version: str) -> None:
    said = refusal(Wanted(version=version))
    assert said.startswith(
        f"--kubernetes-version: expected a minor version of Kubernetes from 1.{OLDEST} to 1.{NEWEST}"
    )
    assert repr(version) in said
    assert ("newer" in said) == (version == "1.38")


def test_the_defaults_are_what_keeps_a_second_scheduler_right() -> None:
    scheduler, *rest = documents(Wanted(version="1.32"))
    assert scheduler["percentageOfNodesToScore"] == 100
    assert (scheduler["podInitialBackoffSeconds"], scheduler["podMaxBackoffSeconds"]) == (1, 3)
    assert scheduler["leaderElection"] == {
        "leaderElect": True,
        "resourceLock": "leases",
        "resourceNamespace": "wattbalance",
        "resourceName": "wattbalance-scheduler",
    }
    assert scheduler["profiles"] == [{"schedulerName": "wattbalance"}]
    assert scheduler["extenders"] == [
        {
            "urlPrefix": "https://wattbalance.wattbalance.svc:9443/scheduler",
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "preemptVerb": "preempt",
            "weight": 1,
            "enableHTTPS": True,
            "tlsConfig": {
                "caFile": "/etc/wattbalance/ca.crt",
                "certFile": "/etc/wattbalance/scheduler.crt",
                "keyFile": "/etc/wattbalance/scheduler.key",
            },
            "httpTimeout": "1s",
            "nodeCacheCapable": True,
            "ignorable": False,
            "managedResources": [],
        }
    ]
    kinds = [each["kind"] for each in rest]
    assert kinds == ["ServiceAccount", *["ClusterRoleBinding"] * 2, "RoleBinding", "Role", "RoleBinding"]


def test_the_readme_shows_what_is_printed() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", readme, re.MULTILINE | re.DOTALL)
    [shown] = [yaml.safe_load(block) for block in blocks if "KubeSchedulerConfiguration" in block]
    assert [shown] == documents(Wanted(version="1.32", part="config"))


def test_a_shared_scheduler_keeps_its_lease_its_name_and_its_rights() -> None:
    [scheduler] = documents(Wanted(version="1.32", shared=True))
    assert scheduler["leaderElection"]["resourceName"] == "kube-scheduler"
    assert scheduler["leaderElection"]["resourceNamespace"] == "kube-system"
    assert scheduler["profiles"] == [{"schedulerName": "default-scheduler"}]
    assert scheduler["clientConnection"]["kubeconfig"]
    [ours] = scheduler["extenders"]
    assert ours["ignorable"] is True
    assert [each["name"] for each in ours["managedResources"]] == list(GPU_RESOURCES)
    # What `renameByDefault` makes of a slice that is shared, too.
    assert {"nvidia.com/gpu.shared", "nvidia.com/mig-1g.5gb", "nvidia.com/mig-1g.5gb.shared"} <= set(
        GPU_RESOURCES
    )
    assert all(map(is_gpu_resource, GPU_RESOURCES))
    assert len(set(GPU_RESOURCES)) == len(GPU_RESOURCES), "kube-scheduler refuses a name twice"


def test_the_scheduler_that_all_share_asks_about_gpus_by_names_of_ones_own() -> None:
    wanted = Wanted(version="1.32", shared=True)
    settings = settings_of("gpu_resources: [example.com/a100]\n")
    asked = [each["name"] for each in extender(wanted, settings)["managedResources"]]
    assert asked == [*GPU_RESOURCES, "example.com/a100", "example.com/a100.shared"]
    assert not [each for each in render(wanted, settings).warnings if each.path == "managed_resources"]
    named = "managed_resources: [nvidia.com/gpu, nvidia.com/gpu.shared]\ngpu_resources: [example.com/a100]\n"
    [warned] = [
        each for each in render(wanted, settings_of(named)).warnings if each.path == "managed_resources"
    ]
    assert "expected example.com/a100 of gpu_resources too" in warned.message
    own = render(Wanted(version="1.32"), settings_of(named))
    assert not [each for each in own.warnings if each.path == "managed_resources"]


@pytest.mark.parametrize("shared", [False, True])
def test_break_glass_is_the_same_scheduler_without_us(shared: bool) -> None:
    usual, *rights = documents(Wanted(version="1.32", shared=shared))
    del usual["extenders"]
    assert documents(Wanted(version="1.32", shared=shared, break_glass=True)) == [usual, *rights]


def test_values_come_from_the_daemons_file() -> None:
    settings = settings_of(
        "scheduler_names: [gpu, 'team: a']\n"
        "managed_resources: [nvidia.com/gpu, example.com/npu]\n"
        "extender: {prefix: /our/door, ignorable: true, bind: true}\n"
        "listeners:\n"
        "- {address: '127.0.0.1:1111', serves: [extender]}\n"
        "- {address: '[::]:7443', serves: [extender], tls: {cert_file: c, key_file: k, client_ca_file: a}}\n"
        "lease: {namespace: power}\n"
    )
    found = extender(Wanted(version="1.32"), settings)
    assert found["urlPrefix"] == "https://wattbalance.power.svc:7443/our/door"
    assert found["ignorable"] is True
    assert (found["bindVerb"], found["httpTimeout"]) == ("bind", "5s")
    assert found["managedResources"] == [], "a second scheduler asks about all of its pods"
    assert documents(Wanted(version="1.32"), settings)[0]["profiles"] == [
        {"schedulerName": "gpu"},
        {"schedulerName": "team: a"},
    ]
    shared = extender(Wanted(version="1.32", shared=True), settings)
    assert shared["managedResources"] == [{"name": "nvidia.com/gpu"}, {"name": "example.com/npu"}]


@pytest.mark.parametrize(
    ("listener", "want_url"),
    [
        ("{address: '127.0.0.1:9000', serves: [extender]}", "http://127.0.0.1:9000/scheduler"),
        ("{address: '[::1]:9000', serves: [extender]}", "http://[::1]:9000/scheduler"),
        (
            "{address: '127.0.0.1:9000', serves: [extender], tls: {cert_file: c, key_file: k}}",
            "https://127.0.0.1:9000/scheduler",
        ),
        (
            "{address: '10.0.0.7:9000', serves: [extender], tls: {cert_file: c, key_file: k, client_ca_file: a}}",
            "https://10.0.0.7:9000/scheduler",
        ),
    ],
)
def test_the_address_is_that_of_the_listener(listener: str, want_url: str) -> None:
    found = extender(Wanted(version="1.32"), settings_of(f"listeners: [{listener}]\n"))
    assert found["urlPrefix"] == want_url
    assert ("enableHTTPS" in found) == want_url.startswith("https") == ("tlsConfig" in found)
    # Only who asks for a client's certificate is shown one.
    assert ("certFile" in found.get("tlsConfig", {})) == ("client_ca_file" in listener)


@pytest.mark.parametrize(
    ("url", "want_url"),
    [
        ("https://10.96.0.9:9443", "https://10.96.0.9:9443/scheduler"),
        ("https://10.96.0.9:9443/", "https://10.96.0.9:9443/scheduler"),
        ("https://[fd00::9]:9443", "https://[fd00::9]:9443/scheduler"),
        ("https://gate.example.com/watt/scheduler/", "https://gate.example.com/watt/scheduler"),
    ],
)
def test_a_given_address_gets_the_prefix_unless_it_has_a_path(url: str, want_url: str) -> None:
    found = extender(Wanted(version="1.32", url=url, server_name="wattbalance.svc"))
    assert found["urlPrefix"] == want_url
    assert found["tlsConfig"]["serverName"] == "wattbalance.svc"


@pytest.mark.parametrize(
    "url",
    [
        "10.96.0.9:9443",
        "ftp://a",
        "https://",
        "https://a b",
        "https://a\nweight: 9",
        "https://a:65536",
        "https://a:0/x",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert refusal(Wanted(version="1.32", url=url)).startswith("--url: expected an address")


def test_names_and_files_are_those_that_were_given() -> None:
    wanted = Wanted(
        version="1.32",
        name="gpu-scheduler",
        namespace="gpus",
        kubeconfig="/k",
        ca_file="/x/ca: 1.crt",
        cert_file="/x/c",
        key_file="/x/k",
        scheduler_names=("a", "b", "a"),
    )
    scheduler, account, *rest = documents(wanted)
    assert scheduler["clientConnection"] == {"kubeconfig": "/k"}
    assert [each["schedulerName"] for each in scheduler["profiles"]] == ["a", "b"]
    assert scheduler["extenders"][0]["tlsConfig"] == {
        "caFile": "/x/ca: 1.crt",
        "certFile": "/x/c",
        "keyFile": "/x/k",
    }
    assert scheduler["extenders"][0]["urlPrefix"] == "https://wattbalance.gpus.svc:9443/scheduler"
    assert account["metadata"] == {"name": "gpu-scheduler", "namespace": "gpus"}
    lease = scheduler["leaderElection"]
    assert (lease["resourceNamespace"], lease["resourceName"]) == ("gpus", "gpu-scheduler")
    [role] = [each for each in rest if each["kind"] == "Role"]
    assert role["metadata"] == account["metadata"]
    assert role["rules"][0]["resourceNames"] == ["gpu-scheduler"]
    for binding in (each for each in rest if each["kind"].endswith("Binding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", **account["metadata"]}]


@pytest.mark.parametrize(
    ("text", "wanted", "want_said"),
    [
        (
            "listeners: [{address: '127.0.0.1:1', serves: [api]}]\n",
            Wanted(version="1.32"),
            "listeners: expected one that serves extender (or --url), got none",
        ),
        (
            "listeners: [{address: '127.0.0.1:0', serves: [extender]}]\n",
            Wanted(version="1.32"),
            "listeners: expected a port that kube-scheduler can know (or --url), got '127.0.0.1:0'",
        ),
        (
            "extender: {bind: true}\n",
            Wanted(version="1.29", shared=True),
            "extender.bind: expected false together",
        ),
        (
            "lease: {name: wattbalance-scheduler}\n",
            Wanted(version="1.32"),
            "--name: expected another name than",
        ),
        (
            "managed_resources: [cpu]\n",
            Wanted(version="1.32", shared=True),
            "managed_resources: expected extended",
        ),
        (
            "managed_resources: [node.kubernetes.io/a]\n",
            Wanted(version="1.32", shared=True),
            "got 'node.kubernetes.io/a'",
        ),
        (
            "managed_resources: [requests.example.com/gpu]\n",
            Wanted(version="1.32", shared=True),
            "got 'requests.example.com/gpu'",
        ),
        ("", Wanted(version="1.32", name="Watt"), "--name: expected a Kubernetes name"),
        (
            "",
            Wanted(version="1.32", scheduler_names=("a", "default-scheduler")),
            "--scheduler-name: expected a name of its own",
        ),
        (
            "scheduler_names: [default-scheduler]\n",
            Wanted(version="1.32"),
            "scheduler_names: expected a name of its own",
        ),
        ("", Wanted(version="1.32", namespace="a.b"), "--namespace: expected a Kubernetes namespace"),
    ],
)
def test_what_would_not_work_together_is_refused(text: str, wanted: Wanted, want_said: str) -> None:
    assert want_said in refusal(wanted, settings_of(text))


def test_the_scheduler_that_all_share_holds_no_election_that_ours_could_meet() -> None:
    settings = settings_of("lease: {name: wattbalance-scheduler}\n")
    assert render(Wanted(version="1.32", shared=True), settings).text


def test_a_second_scheduler_leaves_the_clusters_own_pods_alone() -> None:
    settings = settings_of("scheduler_names: [default-scheduler, wattbalance]\n")
    [second, *_] = documents(Wanted(version="1.32"), settings)
    assert second["profiles"] == [{"schedulerName": "wattbalance"}]
    [shared] = documents(Wanted(version="1.32", shared=True), settings)
    assert shared["profiles"] == [{"schedulerName": "default-scheduler"}]


def test_certificates_are_asked_for_where_an_address_is_given_whatever_listens_here() -> None:
    listens = (
        "listeners: [{address: '127.0.0.1:9443', serves: [extender], tls: {cert_file: a, key_file: b}}]\n"
    )
    own = extender(Wanted(version="1.32"), settings_of(listens))
    given = extender(Wanted(version="1.32", url="https://10.0.0.1:1"), settings_of(listens))
    assert "certFile" not in own["tlsConfig"]
    assert given["tlsConfig"]["certFile"] == "/etc/wattbalance/scheduler.crt"


def test_all_problems_are_told_at_once() -> None:
    said = refusal(Wanted(version="1.32", name="Watt", namespace="a.b", url="nowhere"))
    assert [line.partition(":")[0] for line in said.splitlines()] == ["--url", "--namespace", "--name"]


def test_a_file_that_says_otherwise_is_told_of() -> None:
    settings = settings_of('extender: {kubernetes_version: "1.3"}\nmanaged_resources: [nvidia.com/gpu]\n')
    want_names = (
        "expected default-scheduler too, or its pods are not counted when they come past us; got wattbalance"
    )
    want_resources = (
        "expected nvidia.com/gpu.shared and each nvidia.com/mig-* that nodes offer too, or kube-scheduler does not ask "
        "about pods with them; got neither"
    )
    warned = [str(each) for each in render(Wanted(version="1.32", shared=True), settings).warnings]
    assert warned == [
        "extender.kubernetes_version: expected 1.32, for which this is printed; got '1.3'",
        f"scheduler_names: {want_names}",
        f"managed_resources: {want_resources}",
    ]
    longer = settings_of('extender: {kubernetes_version: "1.320"}\n')
    assert len(render(Wanted(version="1.32"), longer).warnings) == 1
    agreed = settings_of('extender: {kubernetes_version: "v1.32.4"}\n')
    assert render(Wanted(version="1.32"), agreed).warnings == []


@pytest.mark.parametrize(
    "text", ["no", "null", "1.20", "a: b", "a:", "- a", "a #b", "é", 'a"b', "/plain/path", "~", ""]
)
def test_any_text_is_read_back_as_it_is(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}\n") == {"key": text}


@pytest.mark.parametrize(("minor", "want_warned"), [(20, True), (21, True), (22, False), (NEWEST, False)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_kube_scheduler_that_may_never_call_preempt_is_warned_of(
    minor: int, *, want_warned: bool, shared: bool
) -> None:
    text = render(Wanted(version=f"1.{minor}", shared=shared)).text
    assert ("WARNING" in text, "preemptionPolicy: Never" in text) == (want_warned, want_warned)
    without = render(Wanted(version=f"1.{minor}", shared=shared, break_glass=True)).text
    assert "WARNING" not in without, "it asks us nothing"
