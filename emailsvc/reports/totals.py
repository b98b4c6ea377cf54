"""How many e-mails there are of each kind."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, Engine, select

from emailsvc.db.counts import Counts, read_counts
from emailsvc.db.due import FIRST_DUE
from emailsvc.db.models import PRIORITIES
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_now
from emailsvc.reports.answers import Stats
from emailsvc.reports.delivery import read_delivery
from emailsvc.vocabulary import Priority


def stats(engine: Engine) -> Stats:
    with snapshot(engine) as connection:
        return read_stats(connection, read_counts(connection), seconds_due(connection))


def read_stats(connection: Connection, counts: Counts, age: float | None) -> Stats:
    return Stats(
        **asdict(counts),
        oldest_pending_seconds=None if age is None else round(age, 3),
        delivery=read_delivery(connection),
    )


def seconds_due(connection: Connection) -> float | None:
    """For how long the oldest due e-mail has been due; None when none is."""
    return max(seconds_due_by_priority(connection).values(), default=None)


def seconds_due_by_priority(connection: Connection) -> dict[Priority, float]:
    """The same for each priority; those of which none is due are left out."""
    now, *first_due = connection.execute(select(db_now(), *FIRST_DUE)).one()
    due = {priority: moment for priority, moment in zip(PRIORITIES, first_due, strict=True) if moment is not None}
    return {priority: (now - moment).total_seconds() for priority, moment in due.items() if moment <= now}
