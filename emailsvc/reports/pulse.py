"""What an operator looks at first, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from emailsvc.clock import utcnow
from emailsvc.db.models import DeadLetter, Email, StoredReport, Worker, has_status
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.reports.ready import WORKER_SILENT_SECONDS
from emailsvc.reports.totals import seconds_due
from emailsvc.vocabulary import Status

DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Vitals:
    workers: int  # alive
    seconds_due: float | None  # of what has been due for longest; None when nothing is
    letters: dict[str, int]  # unresolved dead letters by reason, most first
    clock_ahead: float  # seconds by which this machine's clock is ahead of the database's
    sent_lately: bool  # within a day
    seconds_reported: float | None  # since the last report about an e-mail; None when there was none


def vitals(engine: Engine) -> Vitals:
    """Raises the database's errors."""
    alive = select(func.count()).where(Worker.seen_at > db_in(-WORKER_SILENT_SECONDS))
    count = func.count()
    letters = (
        select(DeadLetter.reason, count)
        .where(DeadLetter.resolved_at.is_(None))
        .group_by(DeadLetter.reason)
        .order_by(count.desc(), DeadLetter.reason)
    )
    sent = select(Email.id).where(has_status(Status.SENT), Email.sent_at > db_in(-DAY_SECONDS)).exists()
    reported = select(func.max(StoredReport.received_at))
    with snapshot(engine) as connection:
        sent_lately = bool(connection.execute(select(sent)).scalar_one())
        reported_at = connection.execute(reported).scalar_one()
        workers, age = connection.execute(alive).scalar_one(), seconds_due(connection)
        reasons = {str(reason): int(number) for reason, number in connection.execute(letters)}
        before = utcnow()
        theirs = connection.execute(select(db_now())).scalar_one()
        ours = before + (utcnow() - before) / 2
    silence = None if reported_at is None else (theirs - reported_at).total_seconds()
    return Vitals(workers, age, reasons, (ours - theirs).total_seconds(), sent_lately, silence)
