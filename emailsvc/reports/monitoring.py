"""What monitoring asks for: from the database alone, and flat in what is stored and waits."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, literal_column, select

from emailsvc.db.counts import counts_of, read_marks, read_tally
from emailsvc.db.details import GIVEN_UP, RESOLVED, TRIED, read_breakdowns, read_open_letters
from emailsvc.db.models import PRIORITIES, Email, Switch, Worker, has_status
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.reports.answers import Stats
from emailsvc.reports.ready import WORKER_SILENT_SECONDS
from emailsvc.reports.totals import read_stats, seconds_due_by_priority
from emailsvc.vocabulary import Priority, Status

MAX_COUNTED = 5_000
"""So many rows are looked at for each priority."""


@dataclass(frozen=True, slots=True)
class Metrics:
    stats: Stats
    tally: Tally[str]  # of all that is counted, by kind; durations as far as they are rolled up
    given_up: Mapping[str, int]  # by reason
    open_letters: Mapping[str, int]  # by reason
    attempts: Mapping[str, int]  # that did not end in sent, by outcome
    pending: Mapping[Priority, int]
    seconds_due: Mapping[Priority, float]  # of the oldest; 0 when none is due
    retries: int  # that are not due yet
    workers: int  # alive
    swept_at: datetime | None


def metrics(engine: Engine) -> Metrics:
    """Raises the database's errors."""
    with snapshot(engine) as connection:
        marks = read_marks(connection)
        tally = read_tally(connection, marks)
        due = seconds_due_by_priority(connection)
        stats = read_stats(connection, counts_of(connection, marks, tally), max(due.values(), default=None))
        tally += read_breakdowns(connection, marks)
        given_up, resolved = GIVEN_UP.of(tally), RESOLVED.of(tally)
        unresolved = {reason: max(0, given_up[reason] - resolved[reason]) for reason in given_up}
        counted, retries, workers, swept_at = _read_gauges(connection)
        return Metrics(
            stats=stats,
            tally=tally,
            given_up=given_up,
            open_letters=unresolved if marks.letters else read_open_letters(connection),
            attempts=TRIED.of(tally),
            pending=_shares(stats.pending, counted),
            seconds_due=dict.fromkeys(Priority, 0.0) | due,
            retries=retries,
            workers=workers,
            swept_at=swept_at,
        )


def _read_gauges(connection: Connection) -> tuple[dict[Priority, int], int, int, datetime | None]:
    pending = [_count(_waiting(number)) for number in PRIORITIES.values()]
    retries = [_count(_later(number), literal_column("attempts") > 0) for number in PRIORITIES.values()]
    alive = select(func.count()).where(Worker.seen_at > db_in(-WORKER_SILENT_SECONDS)).scalar_subquery()
    found = connection.execute(select(alive, Switch.swept_at, *pending, *retries)).one()
    workers, swept_at, *counts = found
    return dict(zip(PRIORITIES, counts, strict=False)), sum(counts[len(PRIORITIES) :]), workers, swept_at


def _waiting(number: int) -> Select[int]:
    return select(Email.attempts).where(has_status(Status.PENDING), Email.priority == literal_column(str(number)))


def _later(number: int) -> Select[int]:
    """Retries come first among them, unless many e-mails have a ``send_at`` within the next delays."""
    return _waiting(number).where(Email.next_attempt_at > db_now()).order_by(Email.next_attempt_at)


def _count(rows: Select[int], *conditions: ColumnElement[bool]) -> ColumnElement[int]:
    some = rows.limit(MAX_COUNTED + 1).subquery()
    return select(func.count()).select_from(some).where(*conditions).scalar_subquery()


def _shares(pending: int, counted: Mapping[Priority, int]) -> dict[Priority, int]:
    """One priority with more than ``MAX_COUNTED`` has the rest of ``pending``. Where several have, the last of them has
    it, and the others ``MAX_COUNTED``.
    """
    shares = {priority: min(count, MAX_COUNTED) for priority, count in counted.items()}
    cut = [priority for priority, count in counted.items() if count > MAX_COUNTED]
    if cut:
        shares[cut[-1]] += max(0, pending - sum(shares.values()))
    return shares
