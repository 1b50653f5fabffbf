"""The commands that print configurations and completions, as a shell and kubectl call them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from scheduler import cli, config
from scheduler.cli_config import completions_for_kubectl

PROGRAMS = Path(sys.executable).parent


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scheduler.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_scheduler_of_a_file_is_printed_and_warnings_stand_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.example().replace("prefix: /scheduler", "prefix: /door"))
    done = call("config", "kube-scheduler", "--kubernetes-version", "1.32", "--shared", "--config", str(path))
    assert done.returncode == 0
    assert done.stderr.startswith("warning: scheduler_names: expected default-scheduler too")
    [printed] = yaml.safe_load_all(done.stdout)
    assert printed["extenders"][0]["urlPrefix"].endswith(":9443/door")


def test_the_version_may_be_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.example().replace("kubernetes_version: null", 'kubernetes_version: "1.24"'))
    done = call("config", "kube-scheduler", "--config", str(path), "--only", "config")
    assert [each["apiVersion"] for each in yaml.safe_load_all(done.stdout)] == [
        "kubescheduler.config.k8s.io/v1beta3"
    ]


def test_only_what_kubectl_applies() -> None:
    done = call("config", "kube-scheduler", "--kubernetes-version", "1.32", "--only", "rbac")
    assert "KubeSchedulerConfiguration" not in {each["kind"] for each in yaml.safe_load_all(done.stdout)}


@pytest.mark.parametrize(
    ("arguments", "want_said"),
    [
        (
            ["--kubernetes-version", "1.19"],
            "--kubernetes-version: expected a minor version of Kubernetes from 1.20",
        ),
        ([], "--kubernetes-version"),
        (["--kubernetes-version", "1.32", "--url", ""], "--url: expected a value, got nothing"),
        (["--kubernetes-version", "1.32", "--scheduler-name", ""], "--scheduler-name: expected a value"),
        (["--kubernetes-version", "1.32", "--shared", "--only", "rbac"], "--only rbac goes without --shared"),
        (["--kubernetes-version", "1.32", "--config", "/nonexistent"], "No such file"),
    ],
)
def test_what_cannot_be_printed_is_said_in_words_and_exits_2(arguments: list[str], want_said: str) -> None:
    done = call("config", "kube-scheduler", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert want_said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["wattbalance", "kubectl-wattbalance"])
def test_bash_completes_by_the_script_that_either_program_prints(program: str) -> None:
    bash = shutil.which("bash")
    if bash is None or not (PROGRAMS / program).exists():
        pytest.skip("no bash, or the programs are not installed")
    script = (
        f"source <({program} completion bash)\n"
        # What bash does when somebody types `PROGRAM config kube<tab>`.
        f"complete -p {program} >/dev/null || exit 9\n"
        f"COMP_WORDS=({program} config kube) COMP_CWORD=2\n"
        f'"_${{1}}_completion" {program}\n'
        'echo "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    command = [bash, "--norc", "-c", script, "bash", program.replace("-", "_")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "kube-scheduler\n"), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shells_script_names_the_program_that_printed_it(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in ("wattbalance", "kubectl-wattbalance"):
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{program}"])
        with pytest.raises(SystemExit) as ended:
            cli.main(["completion", shell])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert f"_WATTBALANCE_COMPLETE={shell}_complete" in printed
        names = [line.split()[-1].rstrip(";") for line in printed.splitlines() if "complete -o" in line]
        assert names == ([program] if shell == "bash" else [])
        assert f" {program}" in printed
        assert (" kubectl-wattbalance" in printed) == (program != "wattbalance")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_a_zsh_that_has_loaded_nothing_completes_after_the_script(tmp_path: Path) -> None:
    script = CliRunner().invoke(cli.cli, ["completion", "zsh"], prog_name="wattbalance").output
    (tmp_path / "script").write_text(script)
    command = ["zsh", "-f", "-c", 'source ./script && print -r -- "$_comps[wattbalance]"']
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert (done.stdout, done.stderr) == ("_wattbalance_completion\n", "")


def test_an_unknown_shell_is_refused() -> None:
    done = call("completion", "tcsh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr


@pytest.mark.parametrize(
    ("words", "want_lines"),
    [
        (["config", "kube"], ["kube-scheduler\tPrint a kube-scheduler's configuration and RBAC.", ":4"]),
        (["completion", ""], ["bash", "zsh", "fish", ":4"]),
        (["check-config", "x"], [":0"]),
        (["demo", "--trace-dir", ""], [":16"]),
    ],
)
def test_kubectl_gets_words_and_what_else_to_offer(words: list[str], want_lines: list[str]) -> None:
    assert completions_for_kubectl(cli.cli, words) == want_lines


def test_kubectl_itself_completes_the_plugin(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    # As the installer would make them; the environment of these tests may be older than the entry.
    for name, module in (
        ("kubectl-wattbalance", "scheduler.start import main"),
        ("kubectl_complete-wattbalance", "scheduler.start import complete_for_kubectl as main"),
    ):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nimport sys\nfrom {module}\nsys.exit(main())\n")
        program.chmod(0o755)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": root}
    done = subprocess.run(
        [kubectl, "__complete", "wattbalance", "config", "sch"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    lines = done.stdout.splitlines()
    if not lines:
        pytest.skip(f"this kubectl completes no plugins: {done.stderr[:200]}")
    assert lines[0].startswith("schema\t")
    assert ":4" in lines
