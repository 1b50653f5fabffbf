"""The daemon of the demo reads what the demo writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler import config
from scheduler.config_settings import Face
from scheduler.core.nouns import Workload
from scheduler.simulate.demo_config import Policies, write_config


def written(folder: Path, policies: Policies, *, interval_s: float = 1.0) -> config.Settings:
    path = write_config(
        folder,
        api_url="http://127.0.0.1:1",
        broker_url="mqtt://127.0.0.1:2",
        address="127.0.0.1:3",
        policies=policies,
        speed_per_s=60.0,
        interval_s=interval_s,
    )
    return config.load_file(str(path))


def test_by_default_every_class_goes_by_load_alone_and_there_are_no_pools(tmp_path: Path) -> None:
    settings = written(tmp_path, Policies.LEAST_LOADED)
    for workload in Workload:
        assert list(settings.profiles.of(workload).policies) == ["least-loaded"]
    assert settings.pools == ()


def test_the_shipped_policies_are_the_examples_and_only_waiting_is_hurried(tmp_path: Path) -> None:
    settings = written(tmp_path, Policies.SHIPPED)
    path = tmp_path / "example.yaml"
    path.write_text(config.example())
    example = config.load_file(str(path))
    assert settings.profiles == example.profiles
    assert [pool.name for pool in settings.pools] == [pool.name for pool in example.pools]
    for mine, shipped in zip(settings.pools, example.pools, strict=True):
        want_after_s = max(float(shipped.spill.after_s) / 60.0, 1.0) if shipped.spill.after_s else 0.0
        assert float(mine.spill.after_s) == pytest.approx(want_after_s)


def test_one_listener_on_loopback_serves_everything(tmp_path: Path) -> None:
    [listener] = written(tmp_path, Policies.LEAST_LOADED).listeners
    assert listener.address.loopback
    assert set(listener.serves) == set(Face)


def test_readings_may_be_ten_intervals_old(tmp_path: Path) -> None:
    assert written(tmp_path, Policies.LEAST_LOADED, interval_s=3.0).telemetry.stale_s == pytest.approx(30.0)
