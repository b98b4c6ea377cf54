"""A link with a round trip: whatever comes through is handed on later. In a process of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import cast

from tests.servers import free_port, wait_for
from tests.stack import ROOT


class DelayedLink:
    """``with DelayedLink(25, 0.05) as link``: connections to ``link.port`` reach port 25, each way in half of 50 ms."""

    def __init__(self, to: int, round_trip: float) -> None:
        self.port = free_port()
        arguments = [str(self.port), str(to), str(round_trip / 2)]
        self._process = subprocess.Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT)
        wait_for(self._up, 20, "the delayed link")

    def _up(self) -> bool:
        assert self._process.poll() is None, "the delayed link ended at once"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _End(asyncio.Protocol):
    """One end of a connection; what it hears, the other end says ``delay`` seconds later."""

    def __init__(self, delay: float) -> None:
        self.delay, self.loop = delay, asyncio.get_running_loop()
        self.other: _End | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.loop.call_later(self.delay, self.other.transport.write, data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.other is not None:
            self.loop.call_later(self.delay, self.other.transport.close)

    def join(self, other: _End) -> None:
        self.other, other.other = other, self
        for end in (self, other):
            for data in end.early:
                end.data_received(data)


class _Client(_End):
    def __init__(self, delay: float, to: int) -> None:
        super().__init__(delay)
        self.to = to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.loop.call_later(2 * self.delay, lambda: self.loop.create_task(self._connect()))  # the handshake

    async def _connect(self) -> None:
        _, server = await self.loop.create_connection(lambda: _End(self.delay), "127.0.0.1", self.to)
        self.join(server)


async def _serve(port: int, to: int, delay: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Client(delay, to), "127.0.0.1", port, backlog=200)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
