"""E-mails found by what an operator knows of them, in pages.

Each page is read along an index there is, so that the size of the table makes no difference. Where the index does not
know all that was asked for, the walk ends after ``MAX_WALK`` e-mails: the page may then be short, even empty, and its
cursor leads on. No index has the e-mail of one recipient in order: up to ``MAX_SORTED`` are read for each page, and a
recipient of more is looked for on the walk that would be made without one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, or_, select, union_all

from emailsvc.clock import EPOCH, MICROSECOND
from emailsvc.db.absorbed import IS_FIRST_UNSENT
from emailsvc.db.filters import has_priority, in_time, is_for, matches
from emailsvc.db.models import Email, has_status
from emailsvc.db.snapshots import snapshot
from emailsvc.errors import InvalidPayload
from emailsvc.intake.filters import EmailFilter
from emailsvc.reports.answers import SEARCH_CURSOR, EmailPage
from emailsvc.reports.emails import SUMMARY, summary
from emailsvc.vocabulary import Order, Priority, State, Status

MAX_WALK = 5_000

MAX_SORTED = 10_000
"""So many e-mails of one recipient, or pending ones, are sorted by their age, which no index knows of them."""

_ASKED = select(
    Email.id, Email.recipient, Email.status, Email.priority, Email.received_at, Email.sent_at, Email.next_attempt_at,
    Email.last_error, Email.duplicate_of,
)  # fmt: skip
"""What searches ask of each e-mail; the rest is read of those on the page alone."""

Place = tuple[datetime, int]
Found = Row[*tuple[Any, ...]]


def search(
    engine: Engine, wanted: EmailFilter, *, order: Order = Order.NEWEST, limit: int = 50, cursor: str | None = None
) -> EmailPage:
    """One page, and the cursor of the next (None at the end). Raises InvalidPayload."""
    wanted.check()
    if wanted.is_about_absorbed:
        wanted = msgspec.structs.replace(wanted, state=State.ABSORBED)
    if order is Order.DUE:
        wanted = _pending(wanted)
    key = _fingerprint(wanted, order)
    walk = _walk(wanted, order, None if cursor is None else _parse_cursor(cursor, key), limit)
    with snapshot(engine) as connection:
        rows, end = _page(connection, walk)
    more = None if end is None else f"{(end[0] - EPOCH) // MICROSECOND}~{end[1]}~{key}"
    return EmailPage([summary(row) for row in rows], more)


def _pending(wanted: EmailFilter) -> EmailFilter:
    if wanted.state not in (None, State.PENDING):
        raise InvalidPayload("invalid_field", "order due goes only with the state pending.", "order")
    return msgspec.structs.replace(wanted, state=State.PENDING)


def _fingerprint(wanted: EmailFilter, order: Order) -> str:
    """What a cursor remembers its search by."""
    given = [getattr(wanted, name) for name in EmailFilter.__struct_fields__]
    return hashlib.sha256(msgspec.json.encode((given, order))).hexdigest()[:12]


def _parse_cursor(cursor: str, key: str) -> Place:
    found = re.fullmatch(SEARCH_CURSOR, cursor)
    if not found:
        raise InvalidPayload("invalid_field", "cursor must be the `next_cursor` of a page.", "cursor")
    if found[3] != key:
        raise InvalidPayload("invalid_field", "cursor is of another search.", "cursor")
    try:
        return EPOCH + int(found[1]) * MICROSECOND, int(found[2])
    except OverflowError as exc:
        raise InvalidPayload("invalid_field", "cursor must be the `next_cursor` of a page.", "cursor") from exc


@dataclass(frozen=True, slots=True)
class _Walk:
    """Along a time and the id, or the id alone; it goes on behind ``place``."""

    wanted: EmailFilter
    moment: str | None
    ascending: bool
    place: Place | None
    limit: int

    def order(self, of: Any) -> tuple[ColumnElement[Any], ...]:
        columns = (of.id,) if self.moment is None else (getattr(of, self.moment), of.id)
        return columns if self.ascending else tuple(column.desc() for column in columns)

    def behind(self, of: Any) -> Iterator[ColumnElement[bool]]:
        """The time once more by itself, because an index may have no more."""
        if self.place is None:
            return
        at, number = self.place
        beyond = of.id > number if self.ascending else of.id < number
        if self.moment is not None:
            column = getattr(of, self.moment)
            yield column >= at if self.ascending else column <= at
            beyond = or_(column > at if self.ascending else column < at, beyond)
        yield beyond

    def place_of(self, row: Found) -> Place:
        return EPOCH if self.moment is None else getattr(row, self.moment), row.id

    def along(self, *conditions: ColumnElement[bool], asks_more: bool) -> _Source:
        return _Source(self._first(conditions, self._size(asks_more)), asks_more)

    def along_each_priority(self, *conditions: ColumnElement[bool], asks_more: bool) -> _Source:
        """The index has the priority first."""
        size, wanted = self._size(asks_more), self.wanted.priority
        parts = [
            select(self._first((*conditions, has_priority(one)), size).subquery())
            for one in ([wanted] if wanted else Priority)
        ]
        merged = union_all(*parts).subquery()
        return _Source(select(merged).order_by(*self.order(merged.c)).limit(size), asks_more)

    def _first(self, conditions: tuple[ColumnElement[bool], ...], size: int) -> Select[*tuple[Any, ...]]:
        return _ASKED.where(*conditions, *self.behind(Email)).order_by(*self.order(Email)).limit(size)

    def _size(self, asks_more: bool) -> int:
        return MAX_WALK if asks_more else self.limit + 1


class _Source(NamedTuple):
    """E-mails among which all that are wanted are; ``cut``: or the next ``MAX_WALK`` of a walk, whatever they are."""

    statement: Select[*tuple[Any, ...]]
    cut: bool = False


def _walk(wanted: EmailFilter, order: Order, place: Place | None, limit: int) -> _Walk:
    if order is Order.DUE:
        return _Walk(wanted, "next_attempt_at", True, place, limit)
    by_id = wanted.state in (State.FAILED, State.CANCELLED, State.ABSORBED)
    moment = None if by_id else "sent_at" if wanted.state is State.SENT else "received_at"
    return _Walk(wanted, moment, False, place, limit)


def _page(connection: Connection, walk: _Walk) -> tuple[list[Found], Place | None]:
    """The rows, and behind which place there may be more."""
    source = _source(connection, walk)
    walked = source.statement.subquery()
    found = select(walked.c.id).where(*matches(walk.wanted, walked.c), *walk.behind(walked.c))
    page = found.order_by(*walk.order(walked.c)).limit(walk.limit + 1).subquery()
    rows = list(connection.execute(SUMMARY.join(page, page.c.id == Email.id).order_by(*walk.order(Email))))
    if len(rows) > walk.limit:
        return rows[: walk.limit], walk.place_of(rows[walk.limit - 1])
    if not source.cut:
        return rows, None
    last = connection.execute(select(walked).order_by(*walk.order(walked.c)).offset(MAX_WALK - 1)).first()
    return rows, None if last is None else walk.place_of(last)


def _source(connection: Connection, walk: _Walk) -> _Source:
    wanted = walk.wanted
    if wanted.first_unsent:
        return _all(IS_FIRST_UNSENT, *([is_for(wanted.user)] if wanted.user else []))
    asks_whose = wanted.user is not None
    if wanted.user is not None and _are_few_by_index(connection, theirs := is_for(wanted.user)):
        return _all(theirs)
    if wanted.state is None:
        return walk.along(*in_time(wanted), asks_more=asks_whose)
    asks_more = asks_whose or wanted.since is not None or wanted.until is not None
    if wanted.duplicate_of is not None:
        return walk.along(Email.duplicate_of == wanted.duplicate_of, asks_more=asks_more)
    if wanted.state in (State.CANCELLED, State.ABSORBED):
        return walk.along(has_status(Status.CANCELLED), asks_more=True)
    in_state = has_status(Status(wanted.state))
    if wanted.state is State.SENT:
        return walk.along(in_state, *in_time(wanted), asks_more=asks_whose)
    if wanted.state is State.FAILED:
        return walk.along(in_state, asks_more=asks_more or wanted.error is not None)
    if walk.ascending:
        return walk.along_each_priority(in_state, asks_more=asks_more)
    if wanted.priority is not None:
        in_state &= has_priority(wanted.priority)
    if wanted.state is State.SENDING or _are_few(connection, in_state):
        return _all(in_state)
    return walk.along(*in_time(wanted), asks_more=True)


def _all(*which: ColumnElement[bool]) -> _Source:
    """By the index of just these: the offset keeps a planner from walking along another in the order of the page."""
    return _Source(_ASKED.where(*which).offset(0))


def _are_few_by_index(connection: Connection, theirs: ColumnElement[bool]) -> bool:
    if connection.dialect.name == "postgresql":  # or of a recipient of many it looks for the first in the table itself
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    return _are_few(connection, theirs)


def _are_few(connection: Connection, which: ColumnElement[bool]) -> bool:
    some = select(Email.id).where(which).limit(MAX_SORTED + 1).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one() <= MAX_SORTED
