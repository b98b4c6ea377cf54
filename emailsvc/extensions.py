"""The Flask extensions, the engine behind them, and the one object in which the rest of the service finds its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from flask import current_app
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase

from emailsvc.config import Config

if TYPE_CHECKING:
    from emailsvc.locks import Locks

POOL_SIZE = 3
"""Connections per process, none beyond. Two web processes and one worker make 9; twice that during a deploy overlap,
and the release phase, stay below the 20 of a small hosted PostgreSQL."""

FRESH_SECONDS = 1.0
SQLITE_BUSY_SECONDS = 10.0
STATEMENT_TIMEOUT_MS = 10_000


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base, disable_autonaming=True)
migrate = Migrate(directory="emailsvc/migrations")


@dataclass(frozen=True)
class Service:
    """``wake`` and ``schedule`` ask for a drain now or at a time; they never raise, and never block for 2 s."""

    config: Config
    engine: Engine
    locks: Locks
    wake: Callable[[], None]
    schedule: Callable[[datetime], None]


def service() -> Service:
    return cast(Service, current_app.extensions["emailsvc"])


def engine_options(config: Config) -> dict[str, Any]:
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": 5}
    if config.is_sqlite:
        return {**options, "connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
    return {
        **options,
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            "connect_timeout": 5,
            # A peer that vanished must not hold a thread for the kernel's default of two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout=30000",
            "application_name": "emailsvc",
        },
    }


def ping_what_rested(engine: Engine) -> None:
    """Replace a connection that broke while it was idle. SQLAlchemy's own pre-ping asks at every checkout, which is
    a round trip for each webhook and each mail; one that was in use a second ago needs no asking."""

    @event.listens_for(engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        record.info["rested_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("rested_since", math.inf) <= FRESH_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except engine.dialect.dbapi.Error as exc:  # type: ignore[union-attr]
            raise DisconnectionError(str(exc)) from exc
        if not alive:
            raise DisconnectionError("the connection did not answer")


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
    deadline = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except Exception as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
