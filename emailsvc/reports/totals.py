"""How many e-mails there are of each kind."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, select

from emailsvc.db.models import Attempt, Counter, DeadLetter, Email, Switch, has_status
from emailsvc.db.sqltime import db_now
from emailsvc.reports.answers import Stats, Totals
from emailsvc.reports.delivery import read_delivery
from emailsvc.reports.snapshots import snapshot
from emailsvc.vocabulary import Status


def stats(engine: Engine) -> Stats:
    with snapshot(engine) as connection:
        totals = read_totals(connection)
        age = seconds_due(connection)
        unresolved = select(func.count(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None))
        letters = connection.execute(unresolved).scalar_one()
        return Stats(
            **{name: getattr(totals, name) for name in Totals.__struct_fields__},
            dead_letters=letters,
            oldest_pending_seconds=None if age is None else round(age, 3),
            delivery=read_delivery(connection),
        )


def read_totals(connection: Connection) -> Totals:
    """Counters for closed hours, rows for the hours since: exact at any moment, and flat in the size of the table."""
    rolled_up = connection.execute(select(Switch.rolled_up_to)).scalar_one()
    kinds = connection.execute(select(Counter.kind, func.sum(Counter.value)).group_by(Counter.kind))
    counted = {kind: int(value) for kind, value in kinds}

    def count(statement: Select[int], kind: str = "") -> int:
        return int(connection.execute(statement).scalar_one()) + counted.get(kind, 0)

    def rows(*condition: ColumnElement[bool]) -> Select[int]:
        return select(func.count(Email.id)).where(*condition)

    return Totals(
        received=count(rows(Email.received_at >= rolled_up), "received"),
        duplicates=counted.get("duplicates", 0),
        mismatches=counted.get("mismatches", 0),
        pending=count(rows(has_status(Status.PENDING))),
        sending=count(rows(has_status(Status.SENDING))),
        sent=count(rows(has_status(Status.SENT), Email.sent_at >= rolled_up), "sent"),
        failed=count(rows(has_status(Status.FAILED)), "purged_failed"),
        cancelled=count(rows(has_status(Status.CANCELLED)), "purged_cancelled"),
        failed_attempts=count(select(func.count(Attempt.id)).where(Attempt.at >= rolled_up), "failed_attempts"),
    )


def seconds_due(connection: Connection) -> float | None:
    """For how long the oldest due e-mail has been due; None when none is."""
    oldest: datetime | None = connection.execute(
        select(func.min(Email.next_attempt_at)).where(has_status(Status.PENDING), Email.next_attempt_at <= db_now())
    ).scalar_one()
    if oldest is None:
        return None
    now = connection.execute(select(db_now())).scalar_one()
    return max(0.0, (now - oldest).total_seconds())
