"""`wattbalance report observe`: both worlds side by side, in plain words, and what they rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler.report.observation import ObservedPod, ObservedWorld, ObserveReport
from tests.client.test_client import StandIn, call, daemon

__all__ = ["daemon"]


def world(**fields: Any) -> ObservedWorld:
    values: dict[str, Any] = {
        "load_spread_frac": 0.3125,
        "stranded_gpus": 14.0,
        "used_nodes": 12,
        "power_in_use_w": 21_400.0,
        "held_gpus": 64.0,
        "waiting_pods": 0,
        "gpu_nodes": 20,
        "load_nodes": 19,
        "power_nodes": 11,
    }
    return ObservedWorld(**values | fields)


def report(**fields: Any) -> ObserveReport:
    values: dict[str, Any] = {
        "status": "ok",
        "observing": "pool aws-a",
        "unix_s": 1_800_003_600.0,
        "since_unix_s": 1_800_000_000.0,
        "real": world(),
        "ours": world(
            load_spread_frac=0.125,
            used_nodes=9,
            power_in_use_w=None,
            power_nodes=0,
            held_gpus=60.5,
            waiting_pods=2,
        ),
        "pods_so_far": 40,
        "pods_same": 12,
        "pods_elsewhere": 20,
        "pods_waiting": 1,
        "pods_waited_so_far": 3,
        "waited_longer_s": 75.0,
        "notes": ["An estimate: by a second accounting."],
        "legend": ["REALLY is so.", "WITH US lacks the work of some."],
        "pods": [
            ObservedPod(
                namespace="ml",
                name="train-0",
                uid="u",
                gpus=4.0,
                real="n1",
                ours="n2",
                place="elsewhere",
                load=3.2,
                mean_load=3.5,
                mean_power_w=812.4,
                counts_where_it_runs="watts",
            ),
            ObservedPod(
                namespace="ml",
                name="odd\x1b",
                uid="v",
                gpus=8.0,
                real="n3",
                ours="",
                place="waiting",
                reason="why",
                counts_where_it_runs="load and watts",
            ),
        ],
    }
    return ObserveReport(**values | fields)


def told(stand_in: StandIn, answer: ObserveReport, *arguments: str) -> str:
    stand_in.says = (200, msgspec.json.encode(answer))
    done = call("report", "observe", "--server", stand_in.url, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_both_worlds_stand_side_by_side_with_the_pods_and_what_it_rests_on(daemon: StandIn) -> None:
    lines = told(daemon, report()).splitlines()
    assert daemon.asked == ["/api/v1/observe?limit=20"]
    assert lines[0] == "Observing pool aws-a; since 2027-01-15T08:00:00Z, for 60m."
    cells = [line.split("  ") for line in lines]
    figures = {
        "  ".join(row).strip().partition("  ")[0]: [each.strip() for each in row[1:] if each.strip()]
        for row in cells
        if any(row)
    }
    assert figures["AN ESTIMATE"] == ["NOW: REALLY", "WITH US"]
    assert figures["Spread of load over GPUs (0 is even)"] == ["0.312", "0.125"]
    assert figures["Watts of nodes in use"] == ["21,400", "-"]
    assert figures["measured, of nodes with GPUs"][-2:] == ["19 of 20", "19 of 20"]
    assert figures["measured, of nodes in use"][-2:] == ["11 of 12", "0 of 9"]
    assert figures["Pods that wait"] == ["0", "2"]
    assert figures["GPUs at work (held by pods)"] == ["64", "60.5"]
    # How the columns are to be read stands right under them.
    under = lines.index("  REALLY is so.")
    assert lines[under - 1].startswith("Pods that wait")
    assert lines[under + 1] == "  WITH US lacks the work of some."
    text = "\n".join(lines)
    for want in (
        "33 still run: 12 where we would have placed them, 20 would be elsewhere, 1 would wait.",
        "3 would have waited longer than they did, 75s in all, and 1 wait still.",
        "An estimate: by a second accounting.",
    ):
        assert want in text
    assert [line.split() for line in lines if line.startswith("  ml/")] == [
        [
            "ml/train-0",
            "4",
            "n1",
            "n2",
            "elsewhere",
            "3.20",
            "-",
            "3.50",
            "812",
            "W",
            "watts",
            "counted",
            "where",
            "it",
            "runs",
        ],
        ["ml/odd?", "8", "n3", "-", "would", "wait", "-", "-", "-", "-", "why"],
    ]


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        (ObserveReport(status="acting", observing="", unix_s=0.0, notes=["Act."]), "Observing nothing."),
        (
            ObserveReport(status="starting", observing="pool a", unix_s=0.0, notes=["Soon."]),
            "Observing pool a.",
        ),
    ],
    ids=["acting", "starting"],
)
def test_without_figures_it_says_why(daemon: StandIn, answer: ObserveReport, want: str) -> None:
    said = told(daemon, answer)
    assert said.startswith(want)
    assert answer.notes[0] in said
    assert "REALLY" not in said


def test_what_was_known_over_time_stands_beside_what_is_now(daemon: StandIn) -> None:
    mean = world(used_nodes=1234.56, waiting_pods=0.25)
    lines = told(daemon, report(real_mean=world(), ours_mean=mean)).splitlines()
    [head] = [line for line in lines if line.startswith("AN ESTIMATE")]
    assert [each.strip() for each in head.split("  ") if each] == [
        "AN ESTIMATE",
        *("NOW: REALLY", "WITH US", "MEAN: REALLY", "WITH US"),
    ]
    assert [line.split()[3:] for line in lines if line.startswith(("Nodes in ", "Pods that"))] == [
        ["12", "9", "12", "1,234.6"],
        ["0", "2", "0", "0.2"],
    ]


def test_what_has_ended_says_when_and_is_not_called_now(daemon: StandIn) -> None:
    answer = report(
        status="ended",
        observing="",
        observed="everything, paused by kim",
        ended_unix_s=1_800_000_090.0,
        real_mean=world(),
        ours_mean=world(),
    )
    lines = told(daemon, answer).splitlines()
    assert lines[0] == (
        "Observing nothing now. What the last observation showed, of everything, paused by kim; from "
        "2027-01-15T08:00:00Z until 2027-01-15T08:01:30Z, for 90s."
    )
    [head] = [line for line in lines if line.startswith("AN ESTIMATE")]
    assert "AT ITS END: REALLY" in head
    assert "NOW" not in head
    text = told(daemon, report(pods_waiting=0, waited_longer_s=0.0))
    assert "3 would have waited longer than they did.\n" in text


def test_a_saved_report_is_read_without_a_daemon_and_called_saved(daemon: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "monday.json"
    path.write_text(told(daemon, report(pods=report().pods * 15), "-o", "json"))
    asked = len(daemon.asked)
    for arguments, want in (((), 20), (("-o", "wide"), 30)):
        done = call("report", "observe", "--from", str(path), *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == "A saved report; `now` is 2027-01-15T09:00:00Z."
        assert lines[1].startswith("Observing pool aws-a; since 2027-01-15T08:00:00Z")
        assert sum(line.startswith("  ml/") for line in lines) == want
    done = call("report", "observe", "--from", str(path), "-o", "json")
    assert json.loads(done.stdout) == json.loads(path.read_text())
    for option in ("--server", "--context", "--daemon-namespace"):
        done = call("report", "observe", "--from", str(path), option, "x")
        assert (done.returncode, f"--from asks no daemon, and {option} names one" in done.stderr) == (2, True)
    assert len(daemon.asked) == asked


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"status": 1}'])
def test_a_file_that_is_no_report_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    done = call("report", "observe", "--from", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a report, as `report observe -o json` prints it" in done.stderr
    assert "Traceback" not in done.stderr
    done = call("report", "observe", "--from", str(tmp_path / "none"))
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)


def test_json_is_as_it_came_and_wide_asks_for_more(daemon: StandIn) -> None:
    said = json.loads(told(daemon, report(), "-o", "json"))
    assert said == json.loads(msgspec.json.encode(report()))
    told(daemon, report(), "-o", "wide")
    assert [path.partition("=")[2] for path in daemon.asked] == ["1000", "100"]
