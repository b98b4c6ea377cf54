"""What the roll-ups tell apart beyond the totals: outcomes, reasons, and how long it took."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import accumulate, chain
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Select,
    Text,
    case,
    func,
    literal_column,
    null,
    select,
    union_all,
)  # fmt: skip

from emailsvc.db.counts import LETTERS, MAIL, Marks, read_tally
from emailsvc.db.models import Attempt, DeadLetter, Email, has_status
from emailsvc.db.sqltime import seconds_between
from emailsvc.vocabulary import ATTEMPT_OUTCOMES, Reason, Status

SLICE = timedelta(minutes=5)


class Breakdown(NamedTuple):
    """Rows counted by what a column says, under names that begin with ``prefix``."""

    prefix: str
    column: Any
    at: Any
    values: tuple[str, ...]

    @property
    def kinds(self) -> list[str]:
        return [f"{self.prefix}{value}" for value in self.values]

    def since(self, start: datetime, end: datetime | None = None) -> Select[str, int]:
        kind = literal_column(f"'{self.prefix}'", Text()).concat(self.column)
        statement = select(kind, func.count()).where(self.at >= start).group_by(self.column)
        return statement if end is None else statement.where(self.at < end)

    def of(self, tally: Tally[str]) -> dict[str, int]:
        return {value: tally[f"{self.prefix}{value}"] for value in self.values}


TRIED = Breakdown("tried:", Attempt.outcome, Attempt.at, tuple(ATTEMPT_OUTCOMES))
GIVEN_UP = Breakdown("dead:", DeadLetter.reason, DeadLetter.created_at, tuple(Reason))
RESOLVED = Breakdown("done:", DeadLetter.reason, DeadLetter.resolved_at, tuple(Reason))


class Histogram(NamedTuple):
    """Counts of durations up to each bound (seconds), and their sum in whole milliseconds, as counters have it."""

    prefix: str
    bounds: tuple[float, ...]

    @property
    def kinds(self) -> list[str]:
        return [f"{self.prefix}{bound:g}" for bound in (*self.bounds, float("inf"))]

    @property
    def sum_kind(self) -> str:
        return f"{self.prefix}ms"

    def place(self, seconds: Any) -> ColumnElement[Any]:
        """Which of ``kinds`` a duration belongs to, by its number; NULL for NULL."""
        numbers = [literal_column(str(number), Integer()) for number in range(len(self.kinds))]
        bounds = [literal_column(repr(bound), Float()) for bound in self.bounds]
        within = zip((seconds <= bound for bound in bounds), numbers, strict=False)
        return case((seconds.is_(None), null()), *within, else_=numbers[-1])

    def cumulated(self, tally: Tally[str]) -> list[int]:
        return list(accumulate(tally[kind] for kind in self.kinds))

    def seconds(self, tally: Tally[str]) -> float:
        return tally[self.sum_kind] / 1000


DELIVERY = Histogram("wait:", (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400))
"""From when an e-mail was accepted, or from its ``send_at`` where that is later, until it was sent."""

CONVERSATION = Histogram("smtp:", (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120))
"""With the mail server, of those that ended in ``sent``."""

MAIL_KINDS = [*MAIL, *TRIED.kinds, *chain(*((*one.kinds, one.sum_kind) for one in (DELIVERY, CONVERSATION)))]
LETTER_KINDS = [*LETTERS, *GIVEN_UP.kinds, *RESOLVED.kinds]


def count_mail(connection: Connection, start: datetime, end: datetime) -> Tally[str]:
    """How many of each of ``MAIL_KINDS`` rows tell of between two moments."""
    tally = _broken_down(connection, TRIED, start, end)
    tally["failed_attempts"] = tally.total()
    tally["received"] = connection.execute(MAIL["received"].since(start, end)).scalar_one()
    sent = (row for slice_ in _slices(start, end) for row in connection.execute(_sent(*slice_)))
    for waited, talked, count, waited_seconds, talked_seconds in sent:
        tally["sent"] += count
        if talked is not None:  # else an operator marked it as delivered, or a release before 0004 sent it
            tally[DELIVERY.kinds[waited]] += count
            tally[CONVERSATION.kinds[talked]] += count
            tally[DELIVERY.sum_kind] += _milliseconds(waited_seconds)
            tally[CONVERSATION.sum_kind] += _milliseconds(talked_seconds)
    return tally


def _slices(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Each is looked at row by row, in less than the time that a statement may take."""
    while start < end:
        middle = min(start + SLICE, end)
        yield start, middle
        start = middle


def _sent(start: datetime, end: datetime) -> Select[*tuple[Any, ...]]:
    begun = case((Email.send_at > Email.received_at, Email.send_at), else_=Email.received_at)
    waited, talked = seconds_between(begun, Email.sent_at), Email.conversation_seconds
    each = select(
        waited.label("waited"), talked.label("talked"),
        DELIVERY.place(waited).label("waited_in"), CONVERSATION.place(talked).label("talked_in"),
    )  # fmt: skip
    rows = each.where(has_status(Status.SENT), Email.sent_at >= start, Email.sent_at < end).subquery().c
    places = (rows.waited_in, rows.talked_in)
    return select(*places, func.count(), func.sum(rows.waited), func.sum(rows.talked)).group_by(*places)


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))  # below 0 where the database's clock was set back meanwhile


def count_letters(connection: Connection, start: datetime, end: datetime) -> Tally[str]:
    """The same for ``LETTER_KINDS``."""
    tally = _broken_down(connection, GIVEN_UP, start, end)
    tally["given_up"] = tally.total()
    for kind, what in LETTERS.items():
        if kind != "given_up":
            tally[kind] = connection.execute(what.since(start, end)).scalar_one()
    return tally + _broken_down(connection, RESOLVED, start, end)


def _broken_down(connection: Connection, what: Breakdown, start: datetime, end: datetime) -> Tally[str]:
    return Tally(dict(connection.execute(what.since(start, end)).all()))


def reasons_lacking(connection: Connection, marks: Marks) -> dict[str, int]:
    """What must be added to ``RESOLVED`` so that the unresolved of each reason are as many as the rows; see
    ``counts.differences``."""
    tally = read_tally(connection, marks) + read_breakdowns(connection, marks)
    given_up, resolved, rows = GIVEN_UP.of(tally), RESOLVED.of(tally), read_open_letters(connection)
    lacking = {reason: given_up[reason] - resolved[reason] - rows[reason] for reason in GIVEN_UP.values}
    return {f"{RESOLVED.prefix}{reason}": lack for reason, lack in lacking.items() if lack}


def read_open_letters(connection: Connection) -> Tally[str]:
    """Unresolved dead letters by reason, row by row."""
    rows = select(DeadLetter.reason, func.count()).where(DeadLetter.resolved_at.is_(None)).group_by(DeadLetter.reason)
    return Tally(dict.fromkeys(Reason, 0) | dict(connection.execute(rows).all()))


def read_breakdowns(connection: Connection, marks: Marks) -> Tally[str]:
    """Of what is not rolled up yet."""
    parts = [TRIED.since(marks.mail)]
    if marks.letters is not None:
        parts += [GIVEN_UP.since(marks.letters), RESOLVED.since(marks.letters)]
    return Tally(dict(connection.execute(union_all(*parts)).all()))
