"""A client that costs little: requests made beforehand, one thread, one loop over plain sockets."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.side_by_side import percentile
from tests.stack import TOKEN


@dataclass
class Load:
    """What a run showed. ``cpu``: seconds that the client itself took."""

    seconds: float = 0.0
    cpu: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.waits) / self.seconds

    @property
    def p99_ms(self) -> float:
        return percentile(self.waits, 0.99) * 1000


def request(path: str, payload: Any) -> bytes:
    body = json.dumps(payload).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post(port: int, requests: Iterable[bytes], connections: int, *, statuses: set[int]) -> Load:
    """Each request once over kept connections, each with one request on its way. Other statuses are an error."""
    load, waiting = Load(), deque(requests)
    with selectors.DefaultSelector() as selector:
        for _ in range(min(connections, len(waiting))):
            selector.register(socket.create_connection(("127.0.0.1", port), 30), selectors.EVENT_READ)
        began, cpu = time.perf_counter(), time.thread_time()
        open_ones = {key.fd: _Conversation(key.fileobj) for key in selector.get_map().values()}
        for one in open_ones.values():
            one.ask(waiting.popleft())
        while open_ones:
            ready = selector.select(30)
            assert ready, f"no answer in 30 s, after {len(load.waits)}"
            for key, _ in ready:
                one = open_ones[key.fd]
                if not (status := one.read()):
                    continue
                load.statuses[status] += 1
                load.waits.append(time.perf_counter() - one.asked)
                if waiting:
                    one.ask(waiting.popleft())
                else:
                    selector.unregister(key.fileobj)
                    open_ones.pop(key.fd).socket.close()
        load.seconds, load.cpu = time.perf_counter() - began, time.thread_time() - cpu
    assert set(load.statuses) <= statuses, load.statuses
    return load


class _Conversation:
    def __init__(self, connection: Any) -> None:
        self.socket: socket.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked = 0.0
        self._got = b""

    def ask(self, data: bytes) -> None:
        self._got, self.asked = b"", time.perf_counter()
        self.socket.sendall(data)

    def read(self) -> int:
        """The status once the whole answer is here, else 0."""
        data = self.socket.recv(262_144)
        assert data, f"the server hung up after {self._got[:200]!r}"
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return int(head[9:12]) if end and len(body) >= int(length) else 0
