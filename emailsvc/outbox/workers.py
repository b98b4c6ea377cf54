"""Heartbeats, written directly: a worker whose queue is stuck is still seen alive."""

from __future__ import annotations

from sqlalchemy import Engine, delete, insert, update

from emailsvc.models import Worker
from emailsvc.sqltime import db_in, db_now

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
