"""What kube-scheduler would ask: bodies whose names are in a new order each time, and the connection they go over."""

from __future__ import annotations

import json
import socket
import time

import numpy as np

UID = "00000000-0000-4000-8000-%012d"
POD_BYTES = 4096


def node_name(index: int) -> str:
    return f"gpu-node-{index:05d}.dc-1.example"


class Questions:
    """Bodies, each for a pod of its own with its names in a new order; the same orders for each side."""

    pods = 0

    def __init__(self, nodes: int) -> None:
        self._rng = np.random.default_rng(2)
        # Quoted, with their comma, all as wide: numpy turns 5,000 of them round in 0.1 ms.
        self._names = np.array([f'"{node_name(index)}",' for index in range(nodes)], "S")
        assert len({len(name) for name in self._names}) == 1, "node names differ in width"
        body = json.dumps(
            {"Pod": pod(), "Nodes": None, "NodeNames": ["THE-NAMES"]}, separators=(",", ":")
        ).encode()
        self._head, rest = body.split(b"THE-UID")
        self._middle, self._tail = rest.split(b'"THE-NAMES"')

    def next(self) -> bytes:
        """Another body."""
        Questions.pods += 1
        names = self._rng.permutation(self._names).tobytes()[:-1]
        return b"".join((self._head, (UID % Questions.pods).encode(), self._middle, names, self._tail))


def pod() -> dict[str, object]:
    """A pod of a usual size, 4 KB."""
    amounts = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}
    made: dict[str, object] = {
        "metadata": {
            "name": "train-0",
            "namespace": "bench",
            "uid": "THE-UID",
            "creationTimestamp": "2026-11-21T12:00:00Z",
            "labels": {"app": "train", "team": "vision"},
            "annotations": {"wattbalance.io/workload": "batch"},
        },
        "spec": {
            "schedulerName": "wattbalance",
            "containers": [
                {"name": "main", "image": "train", "resources": {"requests": amounts, "limits": amounts}}
            ],
        },
        "status": {"phase": "Pending"},
    }
    env = [{"name": f"SETTING_{n:03d}", "value": "x" * 24} for n in range(200)]
    while len(json.dumps(made, separators=(",", ":"))) < POD_BYTES:
        spec = made["spec"]
        assert isinstance(spec, dict)
        spec["containers"][0].setdefault("env", []).append(env.pop())
    return made


class Connection:
    """Keep-alive HTTP, as little of it as measuring needs: the client's own time counts into every figure."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(2**20)

    def post(self, path: str, body: bytes) -> float:
        """Ask; returns the seconds from the first byte sent to the last one received."""
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        question = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        view = memoryview(self.buffer)
        start_s = time.perf_counter()
        self.socket.sendall(question)
        got, want = 0, 0
        while not want or got < want:
            count = self.socket.recv_into(view[got:])
            if not count:
                message = f"{path}: the server closed the connection"
                raise ConnectionError(message)
            got += count
            if not want and (end := self.buffer.find(b"\r\n\r\n", 0, got)) >= 0:
                header = bytes(self.buffer[:end])
                if not header.startswith(b"HTTP/1.1 200"):
                    message = bytes(self.buffer[:got]).decode()
                    raise RuntimeError(message)
                at = header.lower().index(b"content-length:") + len(b"content-length:")
                want = end + 4 + int(header[at:].split(b"\r\n", 1)[0])
        return time.perf_counter() - start_s
