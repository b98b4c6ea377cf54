"""How many e-mails there are of each kind."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, Engine, select

from emailsvc.db.counts import read_counts
from emailsvc.db.due import FIRST_DUE
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_now
from emailsvc.reports.answers import Stats
from emailsvc.reports.delivery import read_delivery


def stats(engine: Engine) -> Stats:
    with snapshot(engine) as connection:
        counts = read_counts(connection)
        age = seconds_due(connection)
        return Stats(
            **asdict(counts),
            oldest_pending_seconds=None if age is None else round(age, 3),
            delivery=read_delivery(connection),
        )


def seconds_due(connection: Connection) -> float | None:
    """For how long the oldest due e-mail has been due; None when none is."""
    now, *first_due = connection.execute(select(db_now(), *FIRST_DUE)).one()
    oldest = min((moment for moment in first_due if moment is not None), default=None)
    if oldest is None or oldest > now:
        return None
    return float((now - oldest).total_seconds())
