"""That the control plane which other tests rest on really schedules."""

from __future__ import annotations

import time
from typing import cast

import pytest

from tests.controlplane import WHY_NOT, ControlPlane, assets, node_manifest, pod_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(assets() is None, reason=WHY_NOT)]


def test_a_real_scheduler_and_controllers_place_a_pod_on_the_node_that_has_gpus() -> None:
    with ControlPlane() as plane:
        plane.start_scheduler({"percentageOfNodesToScore": 100})
        plane.start_controller_manager()
        plane.apply(node_manifest("bare", gpus=0), node_manifest("full", gpus=8))
        plane.apply(pod_manifest("p", gpus=8, scheduler="default-scheduler"))
        want_node = "full"
        ends_mono_s = time.monotonic() + 60.0
        node = None
        while node is None and time.monotonic() < ends_mono_s:
            pod = cast(
                "dict[str, dict[str, object]]", plane.request("GET", "/api/v1/namespaces/default/pods/p")
            )
            node = pod["spec"].get("nodeName")
            time.sleep(0.1)
        assert node == want_node
        pids = [daemon.process.pid for daemon in plane._daemons]
        daemons = list(plane._daemons)
    assert len(pids) == 4
    assert all(daemon.process.poll() is not None for daemon in daemons)
