"""What waits, by priority and age, counted no further than an operator needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, func, literal_column, select

from emailsvc.clock import isoformat
from emailsvc.db.models import PRIORITIES, Email, has_status
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.vocabulary import Priority, Status

MAX_COUNTED = 1_000
"""In each field: one more means "more than that"."""

AGES = (60, 600, 3_600)
"""Seconds since it was due, where one field ends and the next begins."""


@dataclass(frozen=True, slots=True)
class Waiting:
    priority: Priority
    later: int  # not due yet
    due: tuple[int, ...]  # by age, the youngest first
    oldest_due_at: str | None


def what_waits(engine: Engine) -> list[Waiting]:
    with snapshot(engine) as connection:
        row = list(connection.execute(_counting(MAX_COUNTED + 1)).one())
    now, size = row[0], 2 + len(_due())
    parts = [row[start : start + size] for start in range(1, len(row), size)]
    return [_answer(priority, now, *part) for priority, part in zip(PRIORITIES, parts, strict=True)]


def _answer(priority: Priority, now: datetime, first: datetime | None, later: int, *due: int) -> Waiting:
    return Waiting(priority, later, due, isoformat(first) if first is not None and first <= now else None)


@cache
def _counting(limit: int) -> Select[*tuple[Any, ...]]:
    """Made once: to make it takes longer than what it asks."""
    columns = [column for number in PRIORITIES.values() for column in _columns(number, limit)]
    return select(db_now(), *columns)


def _columns(number: int, limit: int) -> list[ColumnElement[Any]]:
    here = (has_status(Status.PENDING), Email.priority == literal_column(str(number)))
    later = Email.next_attempt_at > db_now()
    return [
        select(func.min(Email.next_attempt_at)).where(*here).scalar_subquery(),
        *(_count(limit, *here, *when) for when in ((later,), *_due())),
    ]


def _due() -> list[tuple[ColumnElement[bool], ...]]:
    edges = [db_now(), *(db_in(-seconds) for seconds in AGES)]
    return [
        *((Email.next_attempt_at <= late, Email.next_attempt_at > early) for late, early in pairwise(edges)),
        (Email.next_attempt_at <= edges[-1],),
    ]


def _count(limit: int, *conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    some = select(literal_column("1")).select_from(Email).where(*conditions).limit(limit).subquery()
    return select(func.count()).select_from(some).scalar_subquery()
