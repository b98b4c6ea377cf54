"""Rolling up: what rows tell is added to the counter of its hour, and the hours before last to a total.

A moment is passed only when whatever was written before it is visible. On PostgreSQL a transaction that hangs in its
commit is not, however long it takes: none is passed that began earlier and writes. One that has not written yet may
still do so with the time of its statement, which ends within ten seconds. SQLite has one writer, and that is the
roll-up itself. What is not passed is counted row by row, so the less of it the better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, delete, select, text, update
from sqlalchemy import func as sql
from sqlalchemy.orm import InstrumentedAttribute

from emailsvc.db.counts import HOUR, TOTALS, UNDATED, Marks, differences, hour_of, read_marks
from emailsvc.db.details import LETTER_KINDS, MAIL_KINDS, count_letters, count_mail, reasons_lacking
from emailsvc.db.models import Counter, Switch
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import UtcDateTime, db_in
from emailsvc.outbox.counters import add_rolled_up, add_to_totals
from emailsvc.outbox.transaction import in_transaction

log = logging.getLogger("emailsvc.outbox")

MARGIN_SECONDS = 5.0
"""A session that just began may not show it yet."""

SETTLED_SECONDS = 15.0
"""Settled whoever has begun and not written, and whoever does not show whether it has begun."""

HIDDEN_SECONDS = 300.0
"""Settled by time alone, where a session that writes does not show since when: one of another role, for example."""

MIN_STEP_SECONDS = 5.0
"""All worker processes roll up; one of them is enough."""

_SETTLED = text("""
SELECT least(
    min(xact_start) FILTER (WHERE backend_xid IS NOT NULL),
    min(statement_timestamp() - make_interval(secs => CAST(:hidden AS float)))
        FILTER (WHERE backend_xid IS NOT NULL AND xact_start IS NULL),
    greatest(
        min(CASE WHEN coalesce(state, 'disabled') = 'disabled' THEN '-infinity' ELSE xact_start END),
        statement_timestamp() - make_interval(secs => CAST(:settled AS float))
    ),
    statement_timestamp() - make_interval(secs => CAST(:margin AS float))
) AS settled
FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NOT NULL
""").columns(settled=UtcDateTime)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is counted up to a mark."""

    mark: InstrumentedAttribute[Any]
    kinds: list[str]
    count: Callable[[Connection, datetime, datetime], Mapping[str, int]]


_MAIL = _Part(Switch.rolled_up_to, MAIL_KINDS, count_mail)
_LETTERS = _Part(Switch.letters_rolled_up_to, LETTER_KINDS, count_letters)


def roll_up(engine: Engine) -> None:
    """Move both marks to where everything is settled. Safe to run at once, also beside the steps of an hour that a
    release before 0003 takes from wherever ``rolled_up_to`` is. Raises the database's errors."""
    for part in (_MAIL, _LETTERS):
        while in_transaction(engine, partial(_step, part=part)):
            pass


def settled_until(connection: Connection) -> datetime:
    """To be asked before what is counted is read, and once in a transaction: PostgreSQL remembers the answer."""
    if connection.dialect.name == "sqlite":
        return connection.execute(select(db_in(-MARGIN_SECONDS))).scalar_one()
    seconds = {"margin": MARGIN_SECONDS, "settled": SETTLED_SECONDS, "hidden": HIDDEN_SECONDS}
    until: datetime = connection.execute(_SETTLED, seconds).scalar_one()
    return until


def _step(connection: Connection, part: _Part) -> bool:
    """Count up to the end of one hour at most; True when there is more to count."""
    mark = part.mark
    settled, start = settled_until(connection), connection.execute(select(mark)).scalar_one()
    if start is None:
        return False
    if start > settled and start > connection.execute(select(db_in(-MARGIN_SECONDS))).scalar_one():
        return _count_anew(connection, part, start, hour_of(settled) - HOUR)
    if (settled - start).total_seconds() < MIN_STEP_SECONDS:
        return False
    hour = hour_of(start)
    end = min(settled, hour + HOUR)
    counts = part.count(connection, start, end)
    moved = connection.execute(update(Switch).where(mark == start).values({mark: end}))
    if moved.rowcount == 0:  # another worker counted it
        return False
    add_rolled_up(connection, hour, counts)
    return end < settled


def _count_anew(connection: Connection, part: _Part, start: datetime, back: datetime) -> bool:
    """The database's clock was set back: no mark is ever set so late. What was counted and what was stamped since
    cannot be told apart by time, so the hours from ``back`` on are counted again, and all hours summed up again.
    """
    turned = {part.mark: back, Switch.totals_up_to: None}
    if connection.execute(update(Switch).where(part.mark == start).values(turned)).rowcount == 0:
        return False
    recounted = (Counter.hour >= back) & Counter.kind.in_(part.kinds)
    connection.execute(delete(Counter).where((Counter.hour == TOTALS) | recounted))
    return True


def close_hours(engine: Engine) -> None:
    """Once an hour: sum up the hours before last, of which no transaction is left, and compare the counters with the
    rows. Where they differ they are corrected, and that is an error; after an upgrade it is how they begin.
    """
    with engine.begin() as connection:
        settled = settled_until(connection)
    with snapshot(engine) as connection:
        marks = read_marks(connection)
        closed = hour_of(marks.mail) - HOUR
        if marks.totals is not None and closed <= marks.totals:
            return
        after = Marks(marks.mail, marks.letters or settled, closed)
        counted = after._replace(totals=marks.totals)
        lacking = differences(connection, counted) | reasons_lacking(connection, counted)
    closing = partial(_close, before=marks, after=after, lacking=lacking)
    if in_transaction(engine, closing) and lacking and marks.letters is not None:
        log.error("counters_corrected", extra={"fields": dict(lacking)})


def _close(connection: Connection, before: Marks, after: Marks, lacking: Mapping[str, int]) -> bool:
    values = {"letters_rolled_up_to": after.letters, "totals_up_to": after.totals}
    guard = Switch.totals_up_to.is_not_distinct_from(before.totals)
    guard &= Switch.rolled_up_to >= before.mail  # or the clock was set back meanwhile
    if before.letters is not None:
        values.pop("letters_rolled_up_to")
    if connection.execute(update(Switch).where(guard).values(values)).rowcount == 0:
        return False
    kinds = select(Counter.kind, sql.sum(Counter.value)).group_by(Counter.kind)
    start = Counter.hour > TOTALS if before.totals is None else Counter.hour >= before.totals
    closed = kinds.where(start, Counter.hour < after.totals).order_by(Counter.kind)
    sums = {kind: int(value) for kind, value in connection.execute(closed)}
    add_rolled_up(connection, UNDATED, lacking)
    add_to_totals(connection, {kind: sums.get(kind, 0) + lacking.get(kind, 0) for kind in {*sums, *lacking}})
    return True
