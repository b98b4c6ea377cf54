"""Database connections that neither break unseen nor hang for ever."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError

from emailsvc.clock import monotonic
from emailsvc.watchdog import WATCHDOG

log = logging.getLogger("emailsvc.database")

FRESH_SECONDS = 1.0
HELD_SECONDS = 12.0
"""No transaction of ours lives that long (the server itself ends a statement after 10 s): its server hangs."""

SQLITE_BUSY_SECONDS = 10.0


def ping_what_rested(engine: Engine) -> None:
    """Replace a connection that broke while it was idle. SQLAlchemy's own pre-ping asks at every checkout, which is
    a round trip for each webhook and each mail; one that was in use a second ago needs no asking."""

    @event.listens_for(engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        record.info["rested_since"] = monotonic()

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if monotonic() - record.info.get("rested_since", math.inf) <= FRESH_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except engine.dialect.dbapi.Error as exc:  # type: ignore[union-attr]
            raise DisconnectionError(str(exc)) from exc
        if not alive:
            raise DisconnectionError("the connection did not answer")


class HeldConnections:
    """Ends what is held for longer than ``HELD_SECONDS``: whoever waits for a server that hangs gets an error."""

    def __init__(self, engine: Engine) -> None:
        self._guard = threading.Lock()
        self._held: dict[int, tuple[float, Any]] = {}
        event.listen(engine, "checkout", self._checkout, insert=True)  # before the ping, which may hang, too
        event.listen(engine, "checkin", self._checkin)
        event.listen(engine, "invalidate", self._invalidate)
        WATCHDOG.watch(self)

    def tick(self, now: float) -> float:
        with self._guard:
            late = [connection for deadline, connection in self._held.values() if deadline <= now]
            self._held = {key: held for key, held in self._held.items() if held[0] > now}
            earliest = min((deadline for deadline, _ in self._held.values()), default=math.inf)
            for connection in late:
                _shut(connection)
        return earliest

    def _checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        deadline = monotonic() + HELD_SECONDS
        with self._guard:
            self._held[id(record)] = (deadline, connection)
        WATCHDOG.due(deadline)

    def _checkin(self, _connection: Any, record: Any) -> None:
        with self._guard:
            self._held.pop(id(record), None)

    def _invalidate(self, connection: Any, record: Any, _exception: Any) -> None:
        self._checkin(connection, record)


def _shut(connection: Any) -> None:
    """The thread that waits sees the end of the stream; closing is left to it."""
    log.error("database_hangs", extra={"fields": {"held_seconds": HELD_SECONDS}})
    with (
        contextlib.suppress(connection.Error, OSError),  # closed meanwhile, by its owner
        socket.socket(fileno=os.dup(connection.fileno())) as handle,
    ):
        handle.shutdown(socket.SHUT_RDWR)


def prepare_sqlite(engine: Engine) -> None:
    """WAL, full sync, and BEGIN IMMEDIATE: a deferred BEGIN that writes later fails whatever the busy timeout says."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        _enter_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _enter_wal(connection: Any) -> None:
    # The switch of a new file to WAL is not covered by the busy timeout.
    deadline = monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except connection.OperationalError as exc:
            if "locked" not in str(exc) or monotonic() > deadline:
                raise
        time.sleep(0.02)
