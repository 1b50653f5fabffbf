"""One namespace for whoever was told nothing: the daemon, those who pause it, and the scheduler beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler import cli, own_pod, pause_orders
from scheduler.config_settings import LeaseSettings
from scheduler.own_pod import own_namespace
from scheduler.pause_orders import Outcome


@pytest.fixture(autouse=True)
def outside_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    monkeypatch.setattr(own_pod, "NAMESPACE_FILE", tmp_path / "namespace")


def in_a_pod_of(namespace: str) -> None:
    own_pod.NAMESPACE_FILE.write_text(f"{namespace}\n")


def end_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []

    async def order(**given: Any) -> Outcome:
        taken.append(given)
        return Outcome(paused=None, done=False)

    monkeypatch.setattr(pause_orders, "order", order)
    return taken


def test_outside_a_pod_it_is_the_one_that_our_manifests_make() -> None:
    manifest = Path(__file__).parents[1] / "deploy" / "rbac.yaml"
    made = [
        each["metadata"]["name"]
        for each in yaml.safe_load_all(manifest.read_text())
        if each["kind"] == "Namespace"
    ]
    assert made == [own_namespace()]


def test_in_a_pod_it_is_the_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_pod_of("gpu-system")
    assert own_namespace() == "gpu-system"
    monkeypatch.setenv("POD_NAMESPACE", "told")
    assert own_namespace() == "told"


@pytest.mark.parametrize("namespace", ["", "gpu-system"])
def test_who_pauses_and_who_is_paused_mean_the_same_namespace(
    namespace: str, ordered: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    if namespace:
        in_a_pod_of(namespace)
    assert end_of("pause", "--reason", "a drill") == 0
    assert end_of("resume") == 0
    assert LeaseSettings().namespace is None
    assert [each["namespace"] for each in ordered] == [own_namespace()] * 2
    assert end_of("resume", "-n", "other") == 0
    assert ordered[-1]["namespace"] == "other"
    assert "in namespace other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "want_code", "want_said"),
    [
        (Outcome(paused=None, done=False), 0, ""),
        (Outcome(paused=None, done=False, elsewhere=None), 0, ""),
        (Outcome(paused=None, done=False, lonely="nobody led"), 0, "nobody led"),
        (Outcome(paused=None, done=False, lonely="nobody led", elsewhere=None), 1, "nobody led"),
        (
            Outcome(paused=None, done=False, elsewhere=("gpu",)),
            1,
            "a pause stands in namespace gpu: `wattbalance resume -n gpu --context c` ends it",
        ),
    ],
)
def test_resume_where_nothing_is_paused_is_a_failure_only_in_the_wrong_place(
    outcome: Outcome,
    want_code: int,
    want_said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def order(**_: object) -> Outcome:
        return outcome

    monkeypatch.setattr(pause_orders, "order", order)
    assert end_of("resume", "--context", "c") == want_code
    said = capsys.readouterr()
    assert said.out.startswith("nothing to resume")
    assert want_said in said.err


def namespaces_printed(*arguments: str) -> set[str]:
    with pytest.MonkeyPatch.context() as patched:
        lines: list[str] = []
        patched.setattr("click.echo", lambda text="", **_: lines.append(str(text)))
        assert end_of("config", "kube-scheduler", "--kubernetes-version", "1.32", *arguments) == 0
    documents = [each for each in yaml.safe_load_all("".join(lines)) if each]
    accounts = {each["metadata"]["namespace"] for each in documents if each["kind"] == "ServiceAccount"}
    [scheduler] = [each for each in documents if each["kind"] == "KubeSchedulerConfiguration"]
    return accounts | {scheduler["leaderElection"]["resourceNamespace"]}


def test_the_scheduler_beside_it_is_in_the_daemons_namespace(tmp_path: Path) -> None:
    assert namespaces_printed() == {"wattbalance"}
    in_a_pod_of("gpu-system")
    assert namespaces_printed() == {"gpu-system"}
    path = tmp_path / "config.yaml"
    path.write_text(
        'cluster: {name: a}\ntelemetry: {broker: "mqtt://b"}\nlease: {namespace: configured, name: other}\n'
    )
    assert namespaces_printed("--config", str(path)) == {"configured"}
    assert namespaces_printed("--config", str(path), "--namespace", "said") == {"said"}
