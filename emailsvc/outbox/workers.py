"""Heartbeats, written directly: a worker whose queue is stuck is still seen alive."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import Engine, delete, insert, update

from emailsvc.db.models import Worker
from emailsvc.db.sqltime import db_in, db_now

FORGOTTEN_AFTER_SECONDS = 600.0


def heartbeat(engine: Engine, worker: str) -> None:
    with engine.begin() as connection:
        seen = connection.execute(update(Worker).where(Worker.id == worker).values(seen_at=db_now()))
        if seen.rowcount == 0:
            connection.execute(insert(Worker).values(id=worker, started_at=db_now(), seen_at=db_now()))
            connection.execute(delete(Worker).where(Worker.seen_at < db_in(-FORGOTTEN_AFTER_SECONDS)))


def forget_worker(engine: Engine, worker: str) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Worker).where(Worker.id == worker))


def try_commit(engine: Engine) -> None:
    """Commit a row and take it away again; on a full disk all but the COMMIT succeeds. Raises the database's errors."""
    name = f"check:{secrets.token_hex(8)}"
    long_ago = datetime(1970, 1, 1, tzinfo=UTC)  # nobody takes it for a live worker
    with engine.begin() as connection:
        connection.execute(insert(Worker).values(id=name, started_at=long_ago, seen_at=long_ago))
    forget_worker(engine, name)
