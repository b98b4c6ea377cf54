"""gunicorn's threads, for complete requests alone.

gthread lends a thread to a connection while its request comes in and its answer goes out, so sixteen clients that drip
a byte a second, or never read, hold the process. Here the loop collects requests and hands out answers without waiting
for anybody, and a thread sees nothing but memory. Every wait for a client has a deadline for the whole of it.
"""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from gunicorn.workers.gthread import TConn, ThreadWorker

from emailsvc.clock import monotonic
from emailsvc.serving.client import Client
from emailsvc.serving.request import Limits

SLOW_SECONDS = 10.0
SLOW_BYTES = 64 * 1024
"""A request or an answer may take 10 s, and a second more for each 64 KiB of it that has come or is to go."""

LINGER_SECONDS = 5.0
"""After the last answer: a client that is still sending would see a reset instead of it, and would try for ever."""

LOOK_SECONDS = 0.25
STOPPING_SECONDS = 5.0
STOPPING_IDLE_SECONDS = 2.0
MIN_HELD_BYTES = 64 * 1024 * 1024
HELD_REQUESTS = 4

_GONE = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED)
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection(TConn):  # type: ignore[misc]
    def __init__(self, cfg: object, client: Client, address: object, server: object) -> None:
        super().__init__(cfg, client, address, server)
        self.data_ready = True  # a thread waits for none
        self.keep = False
        self.is_idle = True
        self.weight = 0  # bytes held for it


class Worker(ThreadWorker):  # type: ignore[misc]
    """All methods run in the loop's thread, but ``handle`` of gunicorn, which is given to the others."""

    wsgi: Any

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: dict[Connection, None] = {}  # for their client, the longest first
        self.held = 0
        self.look_again_at = 0.0

    def load_wsgi(self) -> None:
        super().load_wsgi()
        serve = self.wsgi
        self.limits = Limits(
            head=self.cfg.limit_request_line + self.cfg.limit_request_fields * (self.cfg.limit_request_field_size + 2),
            body=serve.config["MAX_CONTENT_LENGTH"],
        )
        self.most_held = max(MIN_HELD_BYTES, HELD_REQUESTS * self.limits.body)

        def serve_in_time(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            environ["emailsvc.arrived"] = environ["gunicorn.socket"].arrived
            answer: Iterable[bytes] = serve(environ, start_response)
            return answer

        self.wsgi = serve_in_time

    # A request comes in

    def accept(self, listener: socket.socket) -> None:
        try:
            raw, address = listener.accept()
        except OSError as exc:
            if exc.errno in _FULL:
                self._make_room()
            elif exc.errno not in _GONE:
                raise
            return
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        self._await_request(Connection(self.cfg, Client(raw, self.limits), address, listener.getsockname()))

    def _await_request(self, conn: Connection) -> None:
        self._wait(conn, selectors.EVENT_READ, self._collect, self.cfg.keepalive, idle=True)
        if len(conn.sock.request):
            self._begin(conn)

    def _collect(self, conn: Connection, _client: Client) -> None:
        request = conn.sock.request
        before = len(request)
        conn.sock.receive()
        conn.timeout += (len(request) - before) / SLOW_BYTES
        if not len(request):
            if request.ended:
                self._close(conn)
        elif conn.is_idle:
            self._begin(conn)
        else:
            self._go_on(conn)

    def _begin(self, conn: Connection) -> None:
        """Its first bytes are here: the clock runs, and it is no longer among the first to be turned out."""
        self._wait(conn, selectors.EVENT_READ, self._collect, SLOW_SECONDS)
        self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        if not self._hold(conn):
            return
        if conn.sock.request.is_complete():
            self._leave(conn)
            conn.sock.arrived = monotonic()
            self.enqueue_req(conn)
        else:
            conn.sock.encourage()

    # The answer goes out

    def handle(self, conn: Connection) -> bool:
        """In a thread, which has the connection to itself until it is done: what the client takes at once is sent
        before the loop has its turn. What is left, or an error, the loop meets again.
        """
        keep = bool(super().handle(conn))
        with suppress(OSError):
            conn.sock.transmit()
        return keep

    def finish_request(self, conn: Connection, fs: Future[object]) -> None:
        conn.keep = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        conn.sock.begin_next(conn.parser.unreader.take_buffered() if conn.parser else b"")
        self._transmit(conn, conn.sock)

    def _transmit(self, conn: Connection, client: Client) -> None:
        try:
            client.transmit()
        except OSError:
            self._close(conn)
            return
        if client.answer:
            if conn not in self.waiting:
                seconds = SLOW_SECONDS + len(client.answer) / SLOW_BYTES
                self._wait(conn, selectors.EVENT_WRITE, self._transmit, seconds)
            self._hold(conn)
        elif conn.keep and not client.request.ended:
            self._await_request(conn)
        else:
            self._part(conn)

    def _part(self, conn: Connection) -> None:
        conn.sock.hang_up()
        if conn.sock.request.ended:
            self._close(conn)
        else:
            self._wait(conn, selectors.EVENT_READ, self._discard, LINGER_SECONDS, idle=True)

    def _discard(self, conn: Connection, client: Client) -> None:
        if not client.discard():
            self._close(conn)

    # Waiting

    def _wait(
        self,
        conn: Connection,
        event: int,
        act: Callable[[Connection, Client], None],
        seconds: float,
        *,
        idle: bool = False,
    ) -> None:
        """Until the client's socket is ready, and then ``act``; for so long at most."""
        self._leave(conn)
        if not self.alive:
            seconds = min(seconds, STOPPING_IDLE_SECONDS if idle else STOPPING_SECONDS)
        conn.timeout = monotonic() + seconds
        conn.is_idle = idle
        self.waiting[conn] = None
        self.poller.register(conn.sock, event, partial(self._ready, conn, act))
        self._weigh(conn)

    def _ready(self, conn: Connection, act: Callable[[Connection, Client], None], client: Client) -> None:
        if conn in self.waiting:  # another of the same round may have turned it out
            act(conn, client)

    def _leave(self, conn: Connection) -> None:
        if conn in self.waiting:
            del self.waiting[conn]
            self.poller.unregister(conn.sock)

    def _close(self, conn: Connection) -> None:
        self._leave(conn)
        self.nr_conns -= 1
        self.held -= conn.weight
        conn.sock.close()

    def _weigh(self, conn: Connection) -> None:
        weight = len(conn.sock.request) + len(conn.sock.answer)
        self.held += weight - conn.weight
        conn.weight = weight

    def _hold(self, conn: Connection) -> bool:
        """Whether there is memory for it: who has most of it is turned out, which may be this one."""
        self._weigh(conn)
        while self.held > self.most_held and (heavy := [one for one in self.waiting if one.weight]):
            self._close(max(heavy, key=lambda one: one.weight))
        return conn in self.waiting

    def _make_room(self) -> None:
        """For a new connection: of those that do nothing the one that did so for longest, or else of all."""
        idle = next((one for one in self.waiting if one.is_idle), None)
        if oldest := idle or next(iter(self.waiting), None):
            self._close(oldest)

    # What gunicorn's loop calls between the events

    def murder_pending(self) -> None:
        now = monotonic()
        if now < self.look_again_at:
            return
        self.look_again_at = now + LOOK_SECONDS
        for conn in [one for one in self.waiting if one.timeout <= now]:
            self._close(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        for conn in list(self.waiting) if force else ():
            self._close(conn)

    def _cap_keepalive(self, _deadline: float) -> None:
        """The process is to stop."""
        now = monotonic()
        for conn in self.waiting:
            conn.timeout = min(conn.timeout, now + (STOPPING_IDLE_SECONDS if conn.is_idle else STOPPING_SECONDS))
