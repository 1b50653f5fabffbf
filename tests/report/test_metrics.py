"""The metrics page: read back by the library's own parser, and by promtool where it is."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from scheduler.extender.server import Latency
from scheduler.facts import sources
from scheduler.report import document, families
from scheduler.report.families import Sources
from scheduler.report.metrics import MetricsPage
from scheduler.report.views import GpuView, NodeView

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


class Nodes:
    """Nodes in a dict, as the store has them."""

    def __init__(self, *nodes: NodeView) -> None:
        self.views = {node.name: node for node in nodes}

    def node_names(self) -> Sequence[str]:
        return list(self.views)

    def node_pool(self, name: str) -> str | None:
        return self.views[name].pool if name in self.views else None

    def node(self, name: str) -> NodeView | None:
        return self.views.get(name)


def node(name: str, pool: str = "dc", **more: object) -> NodeView:
    facts: dict[str, object] = {"gpus": 8, "free_gpus": 3.0, "bound_gpus": 4.0, "reserved_gpus": 1.0}
    facts |= {"load_frac": 0.5, "power_w": 1200.0, "reading_age_s": 1.0, "fresh": True}
    return NodeView(name=name, pool=pool, **(facts | more))  # type: ignore[arg-type]  # facts by name


async def rendered(page: MetricsPage) -> bytes:
    return b"".join(await page.parts())


def series_of(page: bytes) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def full_sources() -> Sources:
    """Every figure another one, so that two sources that are mixed up show."""
    latency = Latency()
    for seconds_s in (0.0001, 0.0012, 0.0013, 99.0):
        latency.observe(seconds_s)
    return Sources(
        build_info=lambda: {("1.2.3", "3.11.7"): 1},
        decisions=lambda: {("filter", "training", "placed"): 1},
        policy_failures=lambda: {"pack": 2},
        count_disagreements=lambda: 3,
        waiting_pods=lambda: 4,
        contradicting_nodes=lambda: 2,
        unmanaged_nodes=lambda: 5,
        incomplete_device_pools=lambda: 3,
        reservations=lambda: 5,
        reservations_lost=lambda: {"expired": 6},
        bypassed_pods=lambda: {"no_decision": 7},
        annotation_errors=lambda: {"pools": 8},
        extender_requests=lambda: {("filter", "ok"): 9},
        extender_bad_requests=lambda: {"not-json": 10},
        extender_full_node_requests=lambda: 11,
        extender_request_seconds=lambda: {"filter": latency},
        binds=lambda: {"bound": 24},
        connections_refused=lambda: {"crowded": 25},
        certificate_reloads=lambda: {"failed": 26},
        samples=lambda: 12,
        samples_dropped=lambda: {"garbage": 13},
        nodes_clock_skewed=lambda: 14,
        broker_connected=lambda: True,
        api_requests=lambda: {"GET": 15},
        api_errors=lambda: {("GET", "pods", "500"): 16},
        api_throttled=lambda: 17,
        watch_restarts=lambda: {"Pod": 18},
        watch_relists=lambda: {"Pod": 19},
        watch_events=lambda: {"Pod": 20},
        undecodable_objects=lambda: {"Pod": 21},
        events_written=lambda: 22,
        events_dropped=lambda: {"full": 23},
        leader=lambda: True,
        lease_takeovers=lambda: 27,
        lease_losses=lambda: 28,
        observing=lambda: True,
        degraded=lambda: {"broker": True, "leases": False},
    )


async def test_every_counter_is_shown_under_its_own_name() -> None:
    series = series_of(await rendered(MetricsPage(full_sources(), Nodes())))
    want_by_name = {
        "decisions_total": 1,
        "policy_failures_total": 2,
        "count_disagreements_total": 3,
        "waiting_pods": 4,
        "contradicting_nodes": 2,
        "unmanaged_nodes": 5,
        "incomplete_device_pools": 3,
        "reservations": 5,
        "reservations_lost_total": 6,
        "bypassed_pods_total": 7,
        "annotation_errors_total": 8,
        "extender_requests_total": 9,
        "extender_bad_requests_total": 10,
        "extender_full_node_requests_total": 11,
        "binds_total": 24,
        "connections_refused_total": 25,
        "certificate_reloads_total": 26,
        "samples_total": 12,
        "samples_dropped_total": 13,
        "nodes_clock_skewed": 14,
        "broker_connected": 1,
        "api_requests_total": 15,
        "api_errors_total": 16,
        "api_throttled_total": 17,
        "watch_restarts_total": 18,
        "watch_relists_total": 19,
        "watch_events_total": 20,
        "undecodable_objects_total": 21,
        "events_written_total": 22,
        "events_dropped_total": 23,
        "leader": 1,
        "lease_takeovers_total": 27,
        "lease_losses_total": 28,
        "observing": 1,
        "build_info": 1,
    }
    seen = {name.removeprefix("wattbalance_"): value for (name, _), value in series.items()}
    assert {name: seen.get(name) for name in want_by_name} == want_by_name
    want_labels = (("profile", "training"), ("result", "placed"), ("verb", "filter"))
    assert series["wattbalance_decisions_total", want_labels] == 1
    assert series["wattbalance_degraded", (("reason", "broker"),)] == 1
    assert series["wattbalance_degraded", (("reason", "leases"),)] == 0


async def test_latencies_become_a_cumulated_histogram() -> None:
    series = series_of(await rendered(MetricsPage(full_sources(), Nodes())))
    name = "wattbalance_extender_request_seconds"

    def bucket(bound: str) -> float:
        return series[f"{name}_bucket", (("le", bound), ("verb", "filter"))]

    assert [bucket(b) for b in ("0.00025", "0.001", "0.0015", "0.1", "+Inf")] == [1, 1, 3, 3, 4]
    assert series[f"{name}_count", (("verb", "filter"),)] == 4
    assert series[f"{name}_sum", (("verb", "filter"),)] == pytest.approx(99.0026)


async def test_no_created_series() -> None:
    page = await rendered(MetricsPage(full_sources(), Nodes()))
    assert b"_created" not in page


async def test_nodes_are_told_with_their_pool_and_pools_are_summed() -> None:
    # One of a's GPUs is broken: what its mean is over counts.
    nodes = Nodes(
        node("a", broken_gpus=1.0, known_gpus=7.0),
        node("b", load_frac=0.25, gpus=4, known_gpus=4.0),
        node("half", load_frac=None, known_gpus=3.0, unknown_gpus=5.0),
        node("c", pool="aws", power_w=None),
        node("bare", pool="aws", gpus=8, bound_gpus=0, reserved_gpus=0, free_gpus=0, counted_by="inventory"),
    )
    series = series_of(await rendered(MetricsPage(Sources(), nodes)))
    unoffered = {key: value for key, value in series.items() if ("state", "unoffered") in key[1]}
    assert unoffered == {
        ("wattbalance_node_gpus", (("node", "bare"), ("pool", "aws"), ("state", "unoffered"))): 8,
        ("wattbalance_pool_gpus", (("pool", "aws"), ("state", "unoffered"))): 8,
        ("wattbalance_pool_gpus", (("pool", "dc"), ("state", "unoffered"))): 0,
    }
    assert series["wattbalance_node_load_ratio", (("node", "b"), ("pool", "dc"))] == 0.25
    assert series["wattbalance_node_gpus", (("node", "a"), ("pool", "dc"), ("state", "free"))] == 3
    assert series["wattbalance_pool_nodes", (("pool", "dc"),)] == 3
    assert series["wattbalance_pool_gpus", (("pool", "dc"), ("state", "bound"))] == 12
    assert series["wattbalance_node_unknown_gpus", (("node", "half"), ("pool", "dc"))] == 5
    assert series["wattbalance_node_unknown_gpus", (("node", "a"), ("pool", "dc"))] == 0
    assert series["wattbalance_pool_unknown_gpus", (("pool", "dc"),)] == 5
    assert ("wattbalance_node_load_ratio", (("node", "half"), ("pool", "dc"))) not in series
    want_load = (0.5 * 7 + 0.25 * 4) / 11
    assert series["wattbalance_pool_load_ratio", (("pool", "dc"),)] == pytest.approx(want_load)
    assert series["wattbalance_pool_power_watts", (("pool", "dc"),)] == 3600
    assert ("wattbalance_node_power_watts", (("node", "c"), ("pool", "aws"))) not in series


async def test_a_part_of_a_pools_power_is_told_with_what_is_missing_and_none_is_no_series() -> None:
    devices = [GpuView(uuid=f"GPU-{index}") for index in range(9)]
    nodes = Nodes(
        node("known"),
        node("unknown", power_w=None),
        node("stale", fresh=False, gpus=8, devices=devices),
        node("no GPUs", gpus=0, free_gpus=0.0, power_w=None, fresh=False, reading_age_s=None),
        node("silent", pool="aws", power_w=None, fresh=False),
        node("idle", pool="off", power_w=0.0),
    )
    series = series_of(await rendered(MetricsPage(Sources(), nodes)))
    power = {
        labels: value for (name, labels), value in series.items() if name == "wattbalance_pool_power_watts"
    }
    assert power == {(("pool", "dc"),): 1200, (("pool", "off"),): 0}
    for pool, want_unknown in (("dc", 8 + 9), ("aws", 8), ("off", 0)):
        assert series["wattbalance_pool_power_unknown_gpus", (("pool", pool),)] == want_unknown


async def test_nodes_that_get_no_pods_are_counted_by_pool_and_none_is_a_zero() -> None:
    nodes = Nodes(
        node("a", quarantine=""),
        node("b", quarantine="xid-79", cordoned=True),
        node("c"),
        node("d", pool="aws"),
    )
    series = series_of(await rendered(MetricsPage(Sources(), nodes)))
    for name, want_dc in (("quarantined", 2), ("cordoned", 1)):
        assert series[f"wattbalance_pool_{name}_nodes", (("pool", "dc"),)] == want_dc
        assert series[f"wattbalance_pool_{name}_nodes", (("pool", "aws"),)] == 0


async def test_what_is_stale_or_unknown_has_no_series_and_is_never_a_zero() -> None:
    nodes = Nodes(
        node("stale", fresh=False, reading_age_s=60.0),
        node("mute", fresh=False, reading_age_s=None),
        node("no GPUs", gpus=0, fresh=False, reading_age_s=None),
        node("heard", pool="other"),
    )
    series = series_of(await rendered(MetricsPage(Sources(), nodes)))
    assert not [
        name
        for name, labels in series
        if name in {"wattbalance_node_load_ratio", "wattbalance_pool_load_ratio"} and ("pool", "dc") in labels
    ]
    assert series["wattbalance_node_sample_age_seconds", (("node", "stale"), ("pool", "dc"))] == 60
    assert ("wattbalance_node_sample_age_seconds", (("node", "mute"), ("pool", "dc"))) not in series
    assert series["wattbalance_nodes_silent", ()] == 2
    assert series["wattbalance_nodes_never_heard", ()] == 1


async def test_ages_are_quantiles_over_nodes() -> None:
    nodes = Nodes(*(node(f"n{i}", reading_age_s=float(i)) for i in range(101)))
    series = series_of(await rendered(MetricsPage(Sources(), nodes)))
    seen = [series["wattbalance_sample_age_seconds", (("percentile", p),)] for p in ("50", "90", "99", "100")]
    assert seen == [50, 90, 99, 100]


async def test_a_node_that_goes_takes_its_series_with_it() -> None:
    nodes = Nodes(node("a"), node("b"))
    page = MetricsPage(Sources(), nodes)
    assert b'node="b"' in await rendered(page)
    del nodes.views["b"]
    after = await rendered(page)
    assert b'node="b"' not in after
    assert b'node="a"' in after


async def test_a_node_that_goes_while_the_page_is_built_is_left_out() -> None:
    nodes = Nodes(*(node(f"n{i:03}") for i in range(200)))
    rendering = asyncio.create_task(rendered(MetricsPage(Sources(), nodes)))
    await asyncio.sleep(0)
    del nodes.views["n199"]
    assert b'node="n199"' not in await rendering


async def test_others_get_their_turn_while_a_large_page_is_built() -> None:
    nodes = Nodes(*(node(f"n{i}") for i in range(1000)))
    rendering = asyncio.create_task(rendered(MetricsPage(Sources(), nodes)))
    turns = 0
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0)
    assert b'node="n999"' in rendering.result()
    assert turns > 1000 / 40


@given(name=st.text(max_size=20), pool=st.text(max_size=20))
def test_any_label_is_read_back_as_it_was(name: str, pool: str) -> None:
    # The parser splits lines as Python does, Prometheus at \n only: such characters are its limit, not ours.
    if len(f"{name}{pool}x".splitlines()) > 1 and "\n" not in name + pool:
        return
    page = asyncio.run(rendered(MetricsPage(Sources(), Nodes(node(name, pool=pool)))))
    block = page[page.index(b"# HELP wattbalance_node_power_watts") :]
    block = block[: block.index(b"# HELP", 10)]
    assert list(series_of(block)) == [("wattbalance_node_power_watts", (("node", name), ("pool", pool)))]


def test_the_page_in_docs_is_what_the_declarations_say() -> None:
    assert document.document() == DOCUMENT.read_text(), (
        "run: python -m scheduler.report.document > docs/metrics.md"
    )


async def test_a_live_page_has_exactly_the_documented_families() -> None:
    page = (await rendered(MetricsPage(full_sources(), Nodes(node("a"))))).decode()
    types = {
        line.split()[2]: line.split()[3]
        for line in page.splitlines()
        if line.startswith("# TYPE wattbalance_")
    }
    daemon, _ = DOCUMENT.read_text().split("## The agent")
    rows = [line.split("|") for line in daemon.splitlines() if line.startswith("| `wattbalance_")]
    want_types = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert types == want_types


@pytest.mark.parametrize("family", families.ALL, ids=lambda family: family.name)
def test_names_carry_base_units_and_labels_come_from_the_allowed_set(family: families.Described) -> None:
    assert family.name.startswith("wattbalance_")
    assert (family.kind is families.Kind.COUNTER) == family.name.endswith("_total")
    assert not any(bad in family.name for bad in ("_ms", "milli", "_kwh", "_wh", "percent", "_mw"))
    assert set(family.labels) <= {
        *("node", "pool", "state", "reason", "verb", "profile", "result", "policy", "key", "kind", "code"),
        *("resource", "percentile", "version", "python"),
    }
    assert not set("\\\n|") & set(family.text)


async def test_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (Debian package prometheus): the page is not linted")
    page = await rendered(MetricsPage(full_sources(), Nodes(node("a"), node("b"))))
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_every_family_is_tied_to_a_counter_of_the_daemon() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Anything:
            return self

    tied = sources(Anything())  # type: ignore[arg-type]  # nothing is asked of it: only the ties are looked at
    left_out = [each.name for each in fields(Sources) if getattr(tied, each.name) is each.default]
    assert left_out == []


async def test_a_figure_with_other_labels_than_declared_is_an_error() -> None:
    page = MetricsPage(Sources(extender_requests=lambda: {("filter",): 1}), Nodes())  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="extender_requests_total has the labels"):
        await rendered(page)
