"""Whether this service can deliver."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import Engine, select

from emailsvc.db import schema
from emailsvc.db.models import Worker
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in
from emailsvc.reports.totals import seconds_due
from emailsvc.settings.config import Config

WORKER_SILENT_SECONDS = 60.0
MIN_FREE_BYTES = 2**20
"""A commit may still fit where there is less, because SQLite writes its log over and over; soon none will."""


def readiness(engine: Engine, config: Config) -> list[str]:
    """What stands in the way of mail going out, as sentences; empty when ready. Raises the database's errors."""
    if schema.is_older(engine):
        return ["the database schema is older than this code: run `flask db upgrade`"]
    with snapshot(engine) as connection:
        alive = connection.execute(
            select(Worker.id).where(Worker.seen_at > db_in(-WORKER_SILENT_SECONDS)).limit(1)
        ).first()
        age = seconds_due(connection)
    wrong = [] if alive else ["no worker has been alive in the last minute"]
    if disk_is_full(engine):
        wrong.append("the disk of the database is full")
    if age is not None and age > config.ready_max_age_seconds:
        wrong.append(f"mail has been due for longer than READY_MAX_AGE_SECONDS ({config.ready_max_age_seconds:g})")
    return wrong


def disk_is_full(engine: Engine) -> bool:
    """Only SQLite's disk can be seen from here."""
    if engine.dialect.name != "sqlite":
        return False
    return shutil.disk_usage(Path(str(engine.url.database)).resolve()).free < MIN_FREE_BYTES
