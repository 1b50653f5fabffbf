"""The command line: what it costs, what it says, how it ends."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest

from scheduler import __version__, cli, config
from scheduler.cli_types import Duration
from scheduler.core import log
from scheduler.core.errors import ApiForbidden, ConfigError, DriverUnavailable, Problem
from scheduler.telemetry.agent import AgentOptions

COSTLY = {
    "numpy",
    "aiohttp",
    "msgspec",
    "asyncio",
    "yaml",
    "rich",
    "kubernetes",
    "aiomqtt",
    "prometheus_client",
}


def call(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    command = [sys.executable, "-m", "scheduler.cli", *arguments]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """Put another module in a room's place; the command line is told apart from what it starts."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, last = name.rpartition(".")
    monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)


def end_of(*arguments: str) -> int:
    """Run in this process, up to the exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["version"],
        ["demo", "--help"],
        ["config", "example"],
        ["explain", "--help"],
        ["nodes", "--help"],
    ],
)
def test_help_imports_no_room(arguments: list[str]) -> None:
    """Modules are judged, milliseconds only printed: the machine may be busy."""
    script = (
        "import sys\nfrom scheduler.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    print('\\nMODULES', *sys.modules)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = {name.partition(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}
    assert "click" in loaded
    assert loaded & COSTLY == set()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(f"wattbalance {' '.join(arguments)}: {cpu_s * 1000:.0f} ms of CPU\n")


def commands_below(group: click.Group, name: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for part, command in group.commands.items():
        found.append((f"{name} {part}", command))
        if isinstance(command, click.Group):
            found += commands_below(command, f"{name} {part}")
    return found


def test_every_command_shows_an_example_of_itself_and_explains_its_options() -> None:
    commands = commands_below(cli.cli, "wattbalance")
    assert {"wattbalance version", "wattbalance config kube-scheduler"} <= {name for name, _ in commands}
    for name, command in commands:
        assert command.help is not None, name
        _, _, examples = command.help.partition("Example")
        assert name in examples, name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{name} {parameter.name}"


def test_version_is_printed() -> None:
    assert call("version").stdout == f"wattbalance {__version__}\n"


def test_a_slip_in_an_option_gets_a_hint_and_exit_code_2() -> None:
    done = call("demo", "--spead", "3")
    assert done.returncode == 2
    assert "--speed" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("called_as", "want_name"),
    [
        ("/usr/bin/wattbalance", "wattbalance"),
        ("/usr/bin/kubectl-wattbalance", "kubectl wattbalance"),
        ("cli.py", "cli.py"),
        ("", "wattbalance"),
    ],
)
def test_it_names_itself_as_it_was_called(called_as: str, want_name: str) -> None:
    assert cli.program_name(called_as) == want_name


def test_usage_shows_the_name_it_was_called_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-wattbalance", "version", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.startswith("Usage: kubectl wattbalance version")


def test_check_config_accepts_the_example(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(call("config", "example").stdout)
    done = call("check-config", "--no-files", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: ok (cluster prod, mode act, pools: dc-1, aws-a)\n"


def test_check_config_reads_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("cluster: {name: c}\ntelemetry: {broker: 'mqtt://b'}\n")
    command = [sys.executable, "-m", "scheduler.cli", "check-config", "-"]
    with path.open() as given:
        done = subprocess.run(command, stdin=given, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "-: ok (cluster c, mode act, pools: none but default)\n")


def test_check_config_prints_every_problem_on_a_line_and_exits_2(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("cluster: {name: c, stale: 5}\ntelemetry: {broker: 3}\n")
    done = call("check-config", str(path))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(": expected")[0] for line in lines] == [
        "line 1: cluster.stale",
        "line 2: telemetry.broker",
    ]


def test_check_config_warns_of_what_it_cannot_check(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    least = "cluster: {name: c}\ntelemetry: {broker: 'mqtt://b'}\n"
    path.write_text(f"{least}extender: {{bind: true, ignorable: true}}\n")
    done = call("check-config", str(path))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{path}: ok (")
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: extender.kubernetes_version: expected the version of kube-scheduler")
    path.write_text(f'{least}extender: {{bind: true, ignorable: true, kubernetes_version: "1.30"}}\n')
    assert call("check-config", str(path)).stderr == ""


def test_a_file_that_is_not_there_is_a_configuration_problem() -> None:
    done = call("check-config", "/nonexistent/config.yaml")
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_is_json() -> None:
    assert json.loads(call("config", "schema").stdout) == json.loads(json.dumps(config.schema()))


def raiser(error: BaseException) -> Callable[..., int]:
    def serve(*_arguments: object) -> int:
        raise error

    return serve


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(config.example())
    return str(path)


def test_serve_gets_the_settings_and_its_code_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, config_path: str
) -> None:
    calls: list[tuple[object, ...]] = []

    def serve(*arguments: object) -> int:
        calls.append(arguments)
        return 7

    stand_in(monkeypatch, "scheduler.app", serve=serve)
    assert end_of("serve", "--config", config_path) == 7
    assert calls == [(config.load(config.example()), config_path)]


@pytest.mark.parametrize(
    ("error", "want_code", "want_text"),
    [
        (
            ConfigError([Problem(path="a", message="m"), Problem(path="b", message="n", line=3)]),
            2,
            "a: m\nline 3: b: n\n",
        ),
        (ApiForbidden("may not list nodes"), 1, "wattbalance: may not list nodes\n"),
        (
            ExceptionGroup("x", [ExceptionGroup("y", [DriverUnavailable("no driver")])]),
            1,
            "wattbalance: no driver\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_ends_in_lines_and_a_code_and_never_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config_path: str,
    error: BaseException,
    want_code: int,
    want_text: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["wattbalance"])
    stand_in(monkeypatch, "scheduler.app", serve=raiser(error))
    assert end_of("serve", "--config", config_path) == want_code
    assert capsys.readouterr().err.strip("\n") == want_text.strip("\n")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ExceptionGroup("x", [ZeroDivisionError(), ApiForbidden("no")])]
)
def test_a_mistake_of_ours_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, config_path: str, error: Exception
) -> None:
    stand_in(monkeypatch, "scheduler.app", serve=raiser(error))
    with pytest.raises(type(error)):
        cli.main(["serve", "--config", config_path])


def test_demo_hands_its_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[SimpleNamespace] = []

    def run(options: SimpleNamespace) -> int:
        taken.append(options)
        return 0

    stand_in(monkeypatch, "scheduler.simulate.demo", DemoOptions=SimpleNamespace, run=run)
    assert end_of("demo") == 0
    assert end_of("demo", "--duration", "90", "--nodes", "5", "--trace-dir", "d", "--port", "0") == 0
    want_defaults: dict[str, object] = {
        "nodes": 200,
        "speed": 60.0,
        "load": 0.85,
        "duration_s": None,
        "port": 8080,
        "seed": 1,
    }
    want_defaults |= {"policies": "least-loaded", "trace_dir": None, "trace": None, "mosquitto": None}
    assert vars(taken[0]) == want_defaults
    assert vars(taken[1]) == want_defaults | {"duration_s": 90.0, "nodes": 5, "trace_dir": "d", "port": 0}


def durations() -> list[click.Option]:
    options = [each for _, command in commands_below(cli.cli, "") for each in command.params]
    return [each for each in options if isinstance(each, click.Option) and isinstance(each.type, Duration)]


def test_each_option_that_takes_a_duration_takes_seconds_without_a_unit_and_says_so() -> None:
    assert {each.name for each in durations()} == {"duration_s", "interval_s"}
    for option in durations():
        assert option.type.convert("5", option, None) == option.type.convert("5s", option, None) == 5.0
        assert "a bare number" in str(option.help)
        assert "seconds" in str(option.help)


@pytest.mark.parametrize("text", ["0s", "-5", "5 minutes", "nan", ""])
def test_a_duration_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("demo", f"--duration={text}") == 2
    assert "expected a duration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--trace-dir", ""], ["demo", "--trace", ""], ["demo", "--mosquitto", ""], ["check-config", ""]],
)
def test_an_empty_path_is_not_taken_for_none(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(*arguments) == 2
    assert "expected a path, got nothing" in capsys.readouterr().err


def test_json_without_once_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("agent", "--json") == 2
    assert "--json goes with --once" in capsys.readouterr().err


@pytest.fixture
def logging_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the agent from taking this process's root logger over."""
    monkeypatch.setattr(log, "setup", lambda *_: SimpleNamespace(stop=lambda: None))


@pytest.mark.usefixtures("logging_untouched")
def test_agent_hands_its_flags_on_and_ends_well_at_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[SimpleNamespace] = []

    async def run_agent(options: SimpleNamespace, _devices: object, _clock: object) -> None:
        taken.append(options)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    stand_in(monkeypatch, "scheduler.telemetry.agent", AgentOptions=SimpleNamespace, run_agent=run_agent)
    monkeypatch.setenv("NODE_NAME", "node-7")
    flags = ["--cluster", "prod", "--interval", "500ms", "--listen", "[::1]:0", "--broker", "mqtts://b"]
    assert end_of("agent", *flags, "--ca-file", "ca.crt") == 0
    (options,) = taken
    assert (options.metrics_host, options.metrics_port) == ("::1", 0)
    assert (options.broker.url, options.broker.ca_file) == ("mqtts://b", "ca.crt")
    assert (options.node, options.cluster, options.interval_s, options.sample_hz) == (
        "node-7",
        "prod",
        0.5,
        5.0,
    )


@pytest.mark.usefixtures("logging_untouched")
def test_an_agent_without_a_driver_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run_agent(*_arguments: object) -> None:
        raise DriverUnavailable("libnvidia-ml.so.1 is not there")

    monkeypatch.setattr(sys, "argv", ["wattbalance"])
    stand_in(monkeypatch, "scheduler.telemetry.agent", AgentOptions=SimpleNamespace, run_agent=run_agent)
    assert end_of("agent") == 1
    assert capsys.readouterr().err == "wattbalance: libnvidia-ml.so.1 is not there\n"


@pytest.mark.parametrize("option", ["--load", "--speed"])
def test_no_number_is_no_number_of_the_demo(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    """NaN is neither below nor above a bound."""
    assert end_of("demo", option, "nan") == 2
    assert f"Invalid value for '{option}': expected a number" in capfd.readouterr().err


def test_a_demo_of_more_nodes_than_the_slice_has_says_where_more_are() -> None:
    done = call("demo", "--nodes", "301")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "it has 300 with a GPU; take fewer --nodes, or the whole published lists with --trace-dir DIR"
    )


@pytest.mark.parametrize("given", ["1ms", "100d", "0"])
def test_an_interval_that_tells_nothing_is_refused(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert end_of("agent", "--interval", given) == 2
    assert f"got {given}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "want_text"),
    [
        (["--broker", "foo"], "--broker: expected mqtt://"),
        (["--node", "a/b"], "got 'a/b'"),
        (["--cluster", ""], "'--cluster': expected a name of letters, digits"),
        (["--cluster", "föö bar"], "'--cluster': expected a name of letters, digits"),
        (["--cluster", "a/b"], "got 'a/b'"),
        (["--node", ""], "--node: expected a Kubernetes node name"),
        (["--ca-file", ""], "'--ca-file': expected a path, got nothing"),
        (["--sample-hz", "nan"], "'--sample-hz': expected a number"),
        (["--password-file", "x"], "--password-file: needs --username-file"),
        (["--broker", "mqtts://b", "--key-file", "x"], "--key-file: needs --cert-file"),
    ],
)
def test_the_agent_names_the_option_that_is_wrong(
    arguments: list[str], want_text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert end_of("agent", *arguments) == 2
    assert want_text in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "variable", "host", "want"),
    [
        (["--node", "ä"], "", "h", "--node: expected a Kubernetes node name"),
        ([], "Node_1", "h", "NODE_NAME: expected a Kubernetes node name"),
        ([], "", "my_host", "--node: expected to be given, since the host name is no Kubernetes node name"),
    ],
)
def test_a_node_name_that_is_none_of_kubernetes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    variable: str,
    host: str,
    want: str,
) -> None:
    monkeypatch.setenv("NODE_NAME", variable)
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert end_of("agent", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(want)
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("logging_untouched")
def test_a_host_name_is_taken_as_the_kubelet_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    async def run_agent(options: AgentOptions, *_: object) -> None:
        taken.append(options.node)

    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "GPU-Box-1")
    monkeypatch.setattr("scheduler.telemetry.agent.run_agent", run_agent)
    end_of("agent")
    assert taken == ["gpu-box-1"]


def test_an_agent_whose_port_is_taken_says_so_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = call("agent", "--node", "n1", "--listen", address, "--broker", "mqtt://127.0.0.1:1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    want = f"cli.py: --listen ({address}): cannot be bound: Address already in use; end what listens there"
    assert done.stderr.splitlines()[-1].startswith(want)


def test_ctrl_c_while_the_program_is_imported_is_quiet(tmp_path: Path) -> None:
    stub = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "click.py").write_text(stub, encoding="utf-8")
    # A shell's background job ignores SIGINT, and so would its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from scheduler.start import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_installed_program_starts_there() -> None:
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    assert {module.partition(":")[0] for module in scripts.values()} == {"scheduler.start"}


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_output_that_its_caller_closed_is_no_fault(closed: str) -> None:
    code = (
        "import click; from scheduler import cli; from scheduler.client import tables\n"
        "cli.cli.add_command(click.command('x')(lambda: tables.console().print('x')))\n"
        "cli.main(['x'])"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


ADDED = """
import sys, click
from scheduler import cli
from scheduler.client import tables
for name, act in {
    "printed": lambda: tables.console().print("x" * 4_000_000),
    "buffered": lambda: sys.stdout.write("x") and None,
    "fails": lambda: sys.exit(1),
}.items():
    cli.cli.add_command(click.command(name)(act))
cli.main()
"""


def buffered() -> dict[str, str]:
    """Unbuffered, Python itself loses what a pipe does not take at once, and does not say so."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("command", "redirected", "want_code"),
    [
        (["config", "example"], "", 141),
        (["--help"], "", 141),
        (["printed"], "", 141),
        (["buffered"], "", 141),
        (["version"], ">/dev/null", 0),
        (["no-such-command"], "", 2),
        (["no-such-command"], "2>&1", 141),
        (["fails"], ">/dev/null", 1),
    ],
)
def test_a_command_whose_reader_is_gone_ends_quietly_as_by_sigpipe(
    command: list[str], redirected: str, want_code: int
) -> None:
    """As behind `| true`: the pipe's other end is closed before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f'"$0" -c "$@" {redirected}', sys.executable, ADDED, *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=buffered(),
        )
    finally:
        os.close(writer)
    assert done.returncode == want_code, done.stderr
    assert "No such command" in done.stderr if want_code == 2 else not done.stderr


def test_a_table_whose_reader_has_enough_ends_quietly_as_by_sigpipe() -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", ADDED, "printed"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered(),
    ) as running:
        os.close(writer)
        got = os.read(reader, 1)
        os.close(reader)
        assert (got, running.wait(60)) == (b"x", 141)
        assert running.stderr is not None
        assert not running.stderr.read()


def test_a_terminal_that_knows_ascii_only_gets_a_question_mark() -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = (
        "import click; from scheduler import cli\n"
        "cli.cli.add_command(click.command('x')(lambda: print('ü')))\n"
        "cli.main(['x'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )
    assert (shown.returncode, shown.stdout) == (0, b"?\n")
