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
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from emailsvc.clock import monotonic
from emailsvc.db.promptness import seconds_left
from emailsvc.watchdog import WATCHDOG

log = logging.getLogger("emailsvc.database")

FRESH_SECONDS = 1.0
HELD_SECONDS = 12.0
"""No transaction of ours lives that long (the server itself ends a statement after 10 s): its server hangs."""

SHORTEST_CONNECT_SECONDS = 2
"""psycopg takes less for as much."""

SQLITE_BUSY_SECONDS = 10.0

LIMITS = {"timezone": "UTC", "statement_timeout": "10s", "idle_in_transaction_session_timeout": "30s"}
"""In UTC, because psycopg cannot read the calendar's last day in a time zone where it lies in the year 10000."""

_POOLER_REFUSES = {
    "unsupported startup parameter": "the connection pooler refuses a parameter of DATABASE_URL: take `options` away",
    "statement pooling mode": "the connection pooler must keep transactions together: set its pool_mode to transaction",
}


def refused_by_pooler(exc: BaseException) -> str | None:
    """What to do about an error that stays, however long one waits for the database; None for any other."""
    return next((advice for words, advice in _POOLER_REFUSES.items() if words in str(exc)), None)


def limit_postgresql(engine: Engine) -> None:
    """``LIMITS`` for whatever runs: once per connection or, behind a connection pooler, once per transaction.

    A pooler lends each transaction another connection of the server. What is set there for good would reach strangers,
    and a prepared statement may be missing or somebody else's. The process id that it made up for its client gives it
    away; a setting would not, for a role may have the same. The limits cost no round trip: BEGIN is sent anyway.
    """

    @event.listens_for(engine, "connect")
    def _connect(driver: Any, record: Any) -> None:
        limits = ", ".join(f"('{name}', '{value}')" for name, value in LIMITS.items())
        mine = f"pg_backend_pid() = {driver.info.backend_pid}"
        driver.autocommit = True
        set_for_good = f"SELECT set_config(name, value, false) FROM (VALUES {limits}) AS l (name, value) WHERE {mine}"  # noqa: S608
        record.info["pooled"] = driver.execute(set_for_good).rowcount == 0
        if record.info["pooled"]:
            driver.prepare_threshold = None
        driver.autocommit = False

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.info["pooled"] or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        driver: Any = connection.connection.driver_connection
        level = driver.isolation_level.name.replace("_", " ") + (" READ ONLY" if driver.read_only else "")
        limits = "".join(f"; SET LOCAL {name} = '{value}'" for name, value in LIMITS.items())
        driver.autocommit = True  # or psycopg would send a BEGIN of its own first
        connection.exec_driver_sql(f"BEGIN ISOLATION LEVEL {level}{limits}")


class PromptPool(QueuePool):
    """A request waits for a connection as long as for the database altogether; others ``pool_timeout``."""

    @property
    def _timeout(self) -> float:
        return max(0.0, min(self._patience, seconds_left()))

    @_timeout.setter
    def _timeout(self, seconds: float) -> None:
        self._patience = seconds

    def _do_get(self) -> ConnectionPoolEntry:
        if seconds_left() <= 0:
            raise PoolTimeout("no time is left for the database")
        return super()._do_get()


def connect_promptly(engine: Engine) -> None:
    """Within half of what a request has left, as a name may stand for two addresses; not when that is too short."""

    @event.listens_for(engine, "do_connect")
    def _do_connect(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        left = seconds_left()
        if left < SHORTEST_CONNECT_SECONDS:
            raise engine.dialect.dbapi.OperationalError("no time is left to connect")  # type: ignore[union-attr]
        seconds = min(float(parameters["connect_timeout"]), left / 2)
        parameters["connect_timeout"] = max(SHORTEST_CONNECT_SECONDS, int(seconds))


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
    """Ends what is held for longer than ``HELD_SECONDS``, or than a request has left.

    Whoever waits for a server that hangs gets an error."""

    def __init__(self, engine: Engine) -> None:
        self._guard = threading.Lock()
        self._held: dict[int, tuple[float, Any]] = {}
        event.listen(engine, "connect", self._connect, insert=True)  # before the first statements, which may hang, too
        event.listen(engine, "checkout", self._checkout, insert=True)  # before the ping
        event.listen(engine, "checkin", self._checkin)
        event.listen(engine, "invalidate", self._invalidate)
        WATCHDOG.watch(self)

    def tick(self, now: float) -> float:
        with self._guard:
            late = [driver for deadline, driver in self._held.values() if deadline <= now and not driver.closed]
            self._held = {key: held for key, held in self._held.items() if held[0] > now}
            earliest = min((deadline for deadline, _ in self._held.values()), default=math.inf)
            for connection in late:
                _shut(connection)
        return earliest

    def _checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        self._connect(connection, record)

    def _connect(self, connection: Any, record: Any) -> None:
        deadline = monotonic() + min(HELD_SECONDS, seconds_left())
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
    log.error("database_hangs")
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

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        seconds = max(0.0, min(SQLITE_BUSY_SECONDS, seconds_left()))
        connection.execute(f"PRAGMA busy_timeout={seconds * 1000:.0f}")

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
