"""What Kubernetes puts between kube-scheduler and our leader: a Service of TCP that selects the leader's label."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from tests.controlplane import ControlPlane
from tests.e2e.system import NAMESPACE

SELECTOR = "wattbalance.io/role=leader"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={urllib.parse.quote(SELECTOR)}"
LOOK_EVERY_S = 0.1


class LeaderService:
    """Forwards each new connection to a pod that carries the label; who is connected stays where it is.

    Args:
        plane: whose pods are looked at.
        ports: by pod, where its replica listens.
    """

    def __init__(self, plane: ControlPlane, ports: Mapping[str, int]) -> None:
        self._plane = plane
        self._ports = ports
        self._endpoints: list[int] = []
        self._ended = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.port = int(self._listening.getsockname()[1])

    def __enter__(self) -> Self:
        """Start."""
        self._start(self._follow)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections and threads."""
        self._ended.set()
        # `close` alone would leave the other thread in its accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            with contextlib.suppress(OSError):
                listed = self._plane.request("GET", PODS)
                assert isinstance(listed, dict)
                names = [item["metadata"]["name"] for item in listed["items"]]
                self._endpoints = [self._ports[name] for name in names if name in self._ports]

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                # While the label moves there may be two, as in any Service.
                server = socket.create_connection(("127.0.0.1", random.choice(self._endpoints)), 5.0)
            except (OSError, IndexError):
                client.close()
                continue
            server.settimeout(None)
            ends = threading.Barrier(2, action=lambda pair=(client, server): self._forget(*pair))  # type: ignore[misc]
            self._open |= {client, server}
            self._start(self._pump, client, server, ends)
            self._start(self._pump, server, client, ends)

    def _forget(self, *pair: socket.socket) -> None:
        self._open -= set(pair)
        for each in pair:
            each.close()

    def _pump(self, one: socket.socket, other: socket.socket, ends: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        ends.wait()


class BoundPods:
    """Follows the pods of namespace `default` by a watch: on which nodes has each been seen?"""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        listed = plane.request("GET", "/api/v1/namespaces/default/pods")
        assert isinstance(listed, dict)
        self._version = str(listed["metadata"]["resourceVersion"])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self.error: Exception | None = None
        self.nodes: dict[str, list[str]] = {}
        """By pod, each node it was seen on; more than one means that it was bound twice."""

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take what is still to come, and end."""
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _follow(self) -> None:
        try:
            last = False
            while not last:
                # Once more after the end: what came until then.
                last = self._ended.is_set()
                for event in self._next():
                    self._see(event)
        except Exception as error:
            self.error = error

    def _next(self) -> Iterator[dict[str, object]]:
        path = "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1&resourceVersion="
        lines = self._plane.request("GET", path + self._version, raw=True)
        assert isinstance(lines, bytes)
        return (json.loads(line) for line in lines.splitlines())

    def _see(self, event: dict[str, object]) -> None:
        pod = event["object"]
        assert isinstance(pod, dict)
        assert event["type"] != "ERROR", pod
        self._version = pod["metadata"]["resourceVersion"]
        seen = self.nodes.setdefault(pod["metadata"]["name"], [])
        node = pod["spec"].get("nodeName")
        if node and node not in seen:
            seen.append(node)
