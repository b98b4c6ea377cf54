"""Clients that hold a server up: they drip, never read, or sit on a connection; and the good one beside them."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from tests.factories import payload
from tests.stack import TOKEN

DRIP_SECONDS = 0.5
KINDS = ("headers", "body", "large body", "unread", "idle")

_HEAD = b"POST /%b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
_IDS = json.dumps({"email_ids": [f"{number:0200}" for number in range(1000)]}).encode()


def _post(path: str, length: int) -> bytes:
    return _HEAD % (path.encode(), TOKEN.encode()) + b"Content-Length: %d\r\n\r\n" % length


_AT_ONCE = {
    "headers": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": _post("webhook/email", 4000) + b'{"email_id": "',
    "large body": _post("webhook/email", 1_000_000) + b'{"email_id": "' + b"x" * 100_000,
    "unread": _post("emails/lookup", len(_IDS)) + _IDS,  # the answer has 200 KB
    "idle": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@dataclass
class _Client:
    kind: str
    port: int
    unsent: bytes = b""
    socket: socket.socket = field(default_factory=socket.socket)

    def connect(self) -> None:
        self.socket.close()
        self.socket = socket.socket()
        if (
            self.kind == "unread"
        ):  # small segments and a small window, as over a real network, so that little is buffered
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", self.port))
        self.unsent = _AT_ONCE[self.kind]

    def go_on(self, drip: bool) -> None:
        if drip and not self.unsent and self.kind in ("headers", "body", "large body"):
            self.unsent = b"x"
        with suppress(OSError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :] if self.unsent else b""


class SlowClients:
    """``with SlowClients(port, 200)``: so many, of each kind as many, each back at once when it was turned out."""

    def __init__(self, port: int, count: int, kinds: tuple[str, ...] = KINDS) -> None:
        self._clients = [_Client(kinds[number % len(kinds)], port) for number in range(count)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.turned_out: Counter[str] = Counter()

    def __enter__(self) -> SlowClients:
        for client in self._clients:
            client.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.socket.close()

    def _run(self) -> None:
        drip_at = 0.0
        while not self._stop.wait(0.05):
            drip = time.monotonic() >= drip_at
            if drip:
                drip_at = time.monotonic() + DRIP_SECONDS
            ended = self._ended()
            for client in self._clients:
                if client.socket.fileno() in ended:
                    self.turned_out[client.kind] += 1
                    client.connect()
                client.go_on(drip)

    def _ended(self) -> set[int]:
        poll = select.poll()
        for client in self._clients:
            poll.register(client.socket.fileno(), select.POLLRDHUP)
        return {fileno for fileno, _ in poll.poll(0)}


def good_client(port: int, seconds: float, a_second: float = 20, timeout: float = 30) -> list[float]:
    """Posts webhooks, on a new connection and on a kept one in turn; how long each took, sorted, in seconds.

    One that got no answer counts with the whole time it waited."""
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    times: list[float] = []
    stop_at = time.monotonic() + seconds
    while (began := time.monotonic()) < stop_at:
        connection = kept if len(times) % 2 else http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/webhook/email", json.dumps(payload(f"good-{len(times)}")), headers)
            response = connection.getresponse()
            response.read()
            assert response.status in (200, 202), response.status
        except (OSError, http.client.HTTPException):
            connection.close()
        times.append(time.monotonic() - began)
        if connection is not kept:
            connection.close()
        time.sleep(max(0.0, began + 1 / a_second - time.monotonic()))
    kept.close()
    return sorted(times)


def percentile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]
