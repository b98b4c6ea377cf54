"""How many e-mails there are of each kind: from the counters and the rows since, flat in what is stored and waits."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select

from emailsvc.db.models import Attempt, Counter, DeadLetter, Email, Switch, has_status
from emailsvc.db.sqltime import db_hour
from emailsvc.vocabulary import Resolution, Status

Kind = Literal[
    "received", "sent", "failed_attempts", "given_up", "replayed", "delivered", "discarded",
    "duplicates", "mismatches", "cancelled", "purged_cancelled", "purged_failed",
    "absorbed", "absorbed_other", "would_absorb", "purged_absorbed",
    "told:delivered", "told:bounced", "told:complained", "told:unmatched", "told:settled",
]  # fmt: skip
"""What was absorbed is ``cancelled``, too: a release before 0006 counts it so."""

HOUR = timedelta(hours=1)

TOTALS = datetime(1970, 1, 1, tzinfo=UTC)
"""The hour that stands for all before ``Marks.totals``, under names that a release before 0003 does not add up."""

UNDATED = TOTALS + HOUR
"""The hour of what a count of the rows found lacking: nobody knows of which."""

TOTAL_OF = "total_"

REFUSED = "no:"
"""Before the code with which webhooks were refused: the longest fits into ``Counter.kind``, also as a total."""


class Marks(NamedTuple):
    """Up to when each is counted; None: not begun, because no sweep has come since the upgrade."""

    mail: datetime
    letters: datetime | None
    totals: datetime | None


MARKS = select(Switch.rolled_up_to, Switch.letters_rolled_up_to, Switch.totals_up_to)


class Countable(NamedTuple):
    """Rows that show when something happened, and go on to show it until they are purged."""

    at: Any
    condition: tuple[ColumnElement[bool], ...] = ()

    def since(self, start: datetime, end: datetime | None = None) -> Select[int]:
        # count(*): with a column in the brackets, PostgreSQL would look at every row beside its index.
        statement = select(func.count()).where(self.at >= start, *self.condition)
        return statement if end is None else statement.where(self.at < end)

    def by_hour(self, start: datetime) -> Select[datetime, int]:
        hour = db_hour(self.at)
        return select(hour, func.count()).where(self.at >= start, *self.condition).group_by(hour)


MAIL: dict[Kind, Countable] = {
    "received": Countable(Email.received_at),
    "sent": Countable(Email.sent_at, (has_status(Status.SENT),)),
    "failed_attempts": Countable(Attempt.at),
}
LETTERS: dict[Kind, Countable] = {
    "given_up": Countable(DeadLetter.created_at),
    "replayed": Countable(DeadLetter.resolved_at, (DeadLetter.resolution == Resolution.REPLAYED,)),
    "delivered": Countable(DeadLetter.resolved_at, (DeadLetter.resolution == Resolution.DELIVERED,)),
    "discarded": Countable(DeadLetter.resolved_at, (DeadLetter.resolution == Resolution.DISCARDED,)),
}


@dataclass(frozen=True, slots=True)
class Counts:
    received: int
    duplicates: int
    mismatches: int
    pending: int
    sending: int
    sent: int
    failed: int
    cancelled: int
    absorbed: int
    absorbed_other: int  # with other content than the first one's
    would_absorb: int
    failed_attempts: int
    dead_letters: int
    delivered: int  # e-mails of which so much was reported, like the next two
    bounced: int
    complained: int
    settled: int  # e-mails that became sent by a report
    unmatched_reports: int
    refused: dict[str, int]  # by code


@dataclass(frozen=True, slots=True)
class Rows:
    """Counted one by one, which takes the longer the more there are. Purged ones are counted in."""

    pending: int
    failed: int
    cancelled: int  # absorbed ones included
    dead_letters: int
    absorbed: int


def read_marks(connection: Connection) -> Marks:
    return Marks._make(connection.execute(MARKS).one())


def read_counts(connection: Connection) -> Counts:
    """Exact in a snapshot: what does not wait, is not sent, failed or cancelled, nor being sent, waits.

    After the database's clock was set back it is wrong until the next roll-up notices, but never negative.
    """
    marks = read_marks(connection)
    return counts_of(connection, marks, read_tally(connection, marks))


def counts_of(connection: Connection, marks: Marks, tally: Tally[str]) -> Counts:
    if marks.letters is None:
        rows = read_rows(connection, tally)
        failed, cancelled, letters = rows.failed, rows.cancelled, rows.dead_letters
    else:
        failed, cancelled = _failed(tally), tally["cancelled"]
        letters = failed - tally["discarded"]
    received, sending, sent = tally["received"], tally["sending"], tally["sent"]
    pending = received - sending - sent - failed - cancelled
    refused = {kind.removeprefix(REFUSED): tally[kind] for kind in sorted(tally) if kind.startswith(REFUSED)}
    return Counts(
        received, tally["duplicates"], tally["mismatches"], max(pending, 0), sending, sent, failed,
        cancelled - tally["absorbed"], tally["absorbed"], tally["absorbed_other"], tally["would_absorb"],
        tally["failed_attempts"], letters, tally["told:delivered"], tally["told:bounced"], tally["told:complained"],
        tally["told:settled"], tally["told:unmatched"], refused,
    )  # fmt: skip


def read_hours(connection: Connection, first: datetime) -> dict[datetime, Tally[str]]:
    """What happened in each hour from ``first`` on; those are left out in which nothing did."""
    marks = read_marks(connection)
    hours: defaultdict[datetime, Tally[str]] = defaultdict(Tally)
    counted = select(Counter.hour, Counter.kind, func.sum(Counter.value)).where(Counter.hour >= first)
    for hour, kind, value in connection.execute(counted.group_by(Counter.hour, Counter.kind)):
        hours[hour][kind] += int(value)
    for kinds, mark in ((MAIL, marks.mail), (LETTERS, marks.letters)):
        for name, what in kinds.items():
            for hour, value in connection.execute(what.by_hour(max(first, mark or first))):
                hours[hour][name] += value
    return hours


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def read_rows(connection: Connection, tally: Tally[str]) -> Rows:
    unresolved = select(func.count()).where(DeadLetter.resolved_at.is_(None))
    absorbed = select(func.count()).where(Email.duplicate_of.is_not(None))
    states = (Status.PENDING, Status.FAILED, Status.CANCELLED)
    counted = [select(func.count()).where(has_status(state)) for state in states] + [unresolved, absorbed]
    row = connection.execute(select(*(statement.scalar_subquery() for statement in counted))).one()
    return Rows(
        row[0], row[1] + tally["purged_failed"], row[2] + tally["purged_cancelled"], row[3],
        row[4] + tally["purged_absorbed"],
    )  # fmt: skip


def differences(connection: Connection, marks: Marks) -> dict[Kind, int]:
    """What must be added to the counters so that they agree with the rows; empty when they do.

    Something that was never counted is likelier than something that was counted twice.
    """
    tally = read_tally(connection, marks)
    rows = read_rows(connection, tally)
    lacking: dict[Kind, int] = {"absorbed": rows.absorbed - tally["absorbed"]}
    if marks.letters is not None:
        lacking["given_up"] = rows.failed - _failed(tally)
        lacking["discarded"] = rows.failed - rows.dead_letters - tally["discarded"]
        lacking["cancelled"] = rows.cancelled - tally["cancelled"]
    parts = rows.pending + tally["sending"] + tally["sent"] + rows.failed + rows.cancelled
    lacking["received" if parts > tally["received"] else "sent"] = abs(parts - tally["received"])
    return {kind: value for kind, value in lacking.items() if value}


def _failed(tally: Tally[str]) -> int:
    return tally["given_up"] - tally["replayed"] - tally["delivered"]


def read_tally(connection: Connection, marks: Marks) -> Tally[str]:
    """By kind, and how many are being sent, of which there are never more than workers can hold."""
    since = {kind: what.since(marks.mail) for kind, what in MAIL.items()}
    if marks.letters is not None:
        since |= {kind: what.since(marks.letters) for kind, what in LETTERS.items()}
    columns = [statement.scalar_subquery().label(kind) for kind, statement in since.items()]
    sending = select(func.count()).where(has_status(Status.SENDING)).scalar_subquery().label("sending")
    rows = connection.execute(select(*columns, sending))
    tally: Tally[str] = Tally(rows.one()._asdict())
    for kind, value in connection.execute(_counters(marks)):
        tally[kind.removeprefix(TOTAL_OF)] += int(value)
    return tally


def _counters(marks: Marks) -> Select[str, int]:
    statement = select(Counter.kind, func.sum(Counter.value)).group_by(Counter.kind)
    if marks.totals is None:
        return statement
    return statement.where(or_(Counter.hour == TOTALS, Counter.hour >= marks.totals))
