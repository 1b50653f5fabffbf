"""What `wattbalance config kube-scheduler` prints, run by a real kube-scheduler as the account printed with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.simulate.ports import free_port
from tests.certs import Authority
from tests.controlplane import Daemon, pod_manifest, scheduler_version
from tests.e2e.system import NAMESPACE, System, until_seen, wait_for

pytestmark = pytest.mark.e2e

NAME = "wattbalance-scheduler"
PRINTED = "127.0.0.1:10261"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


class Printer:
    """Prints by the real program; rights are applied, and schedulers started, as they come out of it."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.port = free_port()
        authority = Authority()
        self.ca_file = authority.write(folder / "ca.crt")
        for name in ("server", "scheduler"):
            authority.issue(name, folder / f"{name}.crt", folder / f"{name}.key")
        tls = {
            "cert_file": str(folder / "server.crt"),
            "key_file": str(folder / "server.key"),
            "client_ca_file": str(self.ca_file),
        }
        self.listener = {"address": f"127.0.0.1:{self.port}", "serves": ["extender"], "tls": tls}
        # The daemon's own file, so that prefix, port and names come from there.
        self.config_file = folder / "wattbalance.yaml"
        self.extender = {"prefix": "/our/door"}
        config = system.config(free_port(), extender=self.extender)
        self.config_file.write_text(yaml.safe_dump({**config, "listeners": [self.listener]}))

    def print(self, *options: str) -> str:
        """What stands on stdout; warnings stand beside it."""
        version = ".".join(str(number) for number in scheduler_version()[:2])
        given = {
            "--kubernetes-version": version,
            "--ca-file": self.ca_file,
            "--cert-file": self.folder / "scheduler.crt",
            "--key-file": self.folder / "scheduler.key",
            "--kubeconfig": self.folder / "kubeconfig",
        }
        command = [sys.executable, "-m", "scheduler.cli", "config", "kube-scheduler", *options]
        command += [str(part) for pair in given.items() for part in pair]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def grant(self) -> None:
        """Apply the rights, and make a kubeconfig with a token of the service account, as a pod would have it."""
        plane = self.system.plane
        plane.apply(*yaml.safe_load_all(self.print("--only", "rbac", "--config", str(self.config_file))))
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}/token"
        answer = plane.request(
            "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"} | {"spec": {}}
        )
        assert isinstance(answer, dict)
        kubeconfig = yaml.safe_load(plane.kubeconfig().read_text())
        kubeconfig["users"][0]["user"] = {"token": answer["status"]["token"]}
        (self.folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))

    def start(self, *options: str) -> Daemon:
        """Start a kube-scheduler by the whole output, all documents in one file."""
        return self.run(self.print("--config", str(self.config_file), *options))

    def run(self, text: str) -> Daemon:
        if scheduler_version() < (1, 23):
            # The port that is printed, and the default where none is, are fixed ones, which another may have.
            address = f"127.0.0.1:{free_port()}"
            kind = "kind: KubeSchedulerConfiguration\n"
            if "healthzBindAddress" not in text:
                text = text.replace(
                    kind, f"{kind}healthzBindAddress: {PRINTED}\nmetricsBindAddress: {PRINTED}\n", 1
                )
            text = text.replace(PRINTED, address)
        path = self.folder / f"scheduler-{free_port()}.yaml"
        path.write_text(text)
        return self.system.plane.start_scheduler_by(path)


@pytest.fixture
def printer(system: System, tmp_path: Path) -> Iterator[Printer]:
    yield Printer(system, tmp_path)
    for path in (f"{LEASES}/{NAME}", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}"):
        if any(item["metadata"]["name"] == NAME for item in listed(system, path.rpartition("/")[0])):
            system.plane.request("DELETE", path)


def listed(system: System, path: str) -> list[dict[str, Any]]:
    found = system.plane.request("GET", path)
    assert isinstance(found, dict)
    return list(found["items"])


def events_of(system: System, pod: str) -> list[str]:
    found = listed(system, "/api/v1/namespaces/default/events")
    return [str(each.get("message")) for each in found if each["involvedObject"].get("name") == pod]


def may_read(system: System, resource: str, namespace: str, name: str) -> bool:
    """Whether its account may; the secure port, which needs it, is closed here."""
    answer = system.plane.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{NAMESPACE}:{NAME}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}"],
                "resourceAttributes": {
                    "verb": "get",
                    "resource": resource,
                    "namespace": namespace,
                    "name": name,
                },
            },
        },
    )
    assert isinstance(answer, dict)
    return bool(answer["status"]["allowed"])


def test_the_printed_scheduler_places_by_us_and_the_break_glass_one_without_us(
    system: System, printer: Printer
) -> None:
    printer.grant()
    system.add_node("printed-a")
    system.add_node("printed-sick", **{"wattbalance.io/quarantine": "xid-79"})
    port = free_port()
    plain = {"address": f"127.0.0.1:{port}", "serves": ["api", "metrics", "probes"]}
    replica = system.serve(port=port, listeners=[plain, printer.listener], extender=printer.extender)
    until_seen(replica, "printed-a", "printed-sick")
    usual = printer.start()
    try:
        # 1. It answers for the pod, over TLS with both certificates checked; of the two nodes only one may take it.
        system.add_pod("printed-1", gpus=8)
        assert system.bound("printed-1") == "printed-a"
        decided = replica.get("/api/v1/decisions")["items"]
        assert {each["pod"] for each in decided} == {"printed-1"}
        [lease] = [each for each in listed(system, LEASES) if each["metadata"]["name"] == NAME]
        assert lease["spec"]["holderIdentity"]
        # 2. While we are away pods that chose us wait: the scheduler has tried, and said so.
        replica.process.stop()
        system.add_pod("printed-2", gpus=8)
        wait_for("it was tried", lambda: any("our/door" in said for said in events_of(system, "printed-2")))
        assert system.node_of("printed-2") == ""
        # 3. Break glass: the same scheduler without us places what waited, where we would not have let it.
        usual.stop()
        glass = printer.start("--break-glass")
        try:
            assert system.bound("printed-2") == "printed-sick"
        finally:
            glass.stop()
        # 4. The rights sufficed. What its version asks for and its cluster has not is not about rights.
        assert [
            line for said in (usual.said, glass.said) for line in said.splitlines() if "forbidden" in line
        ] == []
    finally:
        usual.stop()


def test_the_printed_shared_scheduler_asks_us_for_gpus_and_goes_on_without_us(
    system: System, printer: Printer
) -> None:
    shutil.copy(system.plane.kubeconfig(), printer.folder / "kubeconfig")
    system.add_node("shared-a")
    system.add_node("shared-sick", **{"wattbalance.io/quarantine": "xid-79"})
    port = free_port()
    plain = {"address": f"127.0.0.1:{port}", "serves": ["api", "metrics", "probes"]}
    replica = system.serve(port=port, listeners=[plain, printer.listener], extender=printer.extender)
    until_seen(replica, "shared-a", "shared-sick")
    # Without our file it names every GPU resource, and the real one says whether it takes them all.
    scheduler = printer.run(printer.print("--shared", "--url", f"https://127.0.0.1:{printer.port}/our/door"))
    try:
        # One that asks for no GPU; a request of none would be one by name.
        idle: dict[str, Any] = pod_manifest("shared-cpu", scheduler="default-scheduler")
        del idle["spec"]["containers"][0]["resources"]
        system.plane.apply(idle)
        assert system.bound("shared-cpu")
        system.plane.apply(pod_manifest("shared-gpus", gpus=8, scheduler="default-scheduler"))
        assert system.bound("shared-gpus") == "shared-a"
        assert {each["pod"] for each in replica.get("/api/v1/decisions")["items"]} == {"shared-gpus"}
        assert 'result="no_gpu"' not in replica.text("/metrics"), "not asked about the other"
        # It is ignorable: what comes while we are away is placed, and where we would not have let it.
        replica.process.stop()
        system.plane.apply(pod_manifest("shared-later", gpus=8, scheduler="default-scheduler"))
        assert system.bound("shared-later") == "shared-sick"
    finally:
        scheduler.stop()


def test_without_its_own_role_it_could_not_hold_its_lease(system: System, printer: Printer) -> None:
    """What the stock role lacks, and why a Role is printed: Leases of another name cannot be read."""
    printer.grant()
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings/{NAME}"
    kept = system.plane.request("GET", role)
    assert isinstance(kept, dict)
    system.plane.request("DELETE", role)
    scheduler = printer.start("--break-glass")
    try:
        wait_for("it says why", lambda: 'cannot get resource "leases"' in scheduler.said)
        assert all(each["metadata"]["name"] != NAME for each in listed(system, LEASES))
    finally:
        scheduler.stop()
        del kept["metadata"]["resourceVersion"], kept["metadata"]["uid"]
        system.plane.apply(kept)
