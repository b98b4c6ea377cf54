"""What a person makes of a dead letter: replayed, delivered or discarded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, case, update

from emailsvc.db.models import PRIORITIES, DeadLetter, Email, has_status
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.outbox.moves.turning import turn
from emailsvc.vocabulary import Priority, Resolution, Status


class Letter(NamedTuple):
    """A dead letter that is locked and unresolved, so its e-mail is ``failed``: nothing else moves it from there, and
    a move that it does not match would be a defect, which the invariant shows.
    """

    id: int
    email: int


def replay(connection: Connection, letters: Mapping[Letter, float], priority: Priority | None = None) -> None:
    """``failed → pending``, due in so many seconds, with a fresh budget (or it would die again at once).

    ``priority``: None leaves each its own.
    """
    seconds = {letter.email: due_in for letter, due_in in letters.items()}
    connection.execute(
        turn(Status.FAILED, Status.PENDING, Email.id.in_(seconds)).values(
            attempts=0, next_attempt_at=db_in(case(seconds, value=Email.id)), final_at=None,
            expires_at=case((Email.expires_at <= db_now(), None), else_=Email.expires_at),
            priority=Email.priority if priority is None else PRIORITIES[priority],
        )
    )  # fmt: skip
    resolve(connection, Resolution.REPLAYED, _among(letters))


def deliver(connection: Connection, letters: Collection[Letter]) -> None:
    """``failed → sent``: somebody knows that it arrived."""
    statement = turn(Status.FAILED, Status.SENT, Email.id.in_([letter.email for letter in letters]))
    connection.execute(statement.values(sent_at=db_now(), final_at=db_now()))
    resolve(connection, Resolution.DELIVERED, _among(letters))


def discard(connection: Connection, letters: Collection[Letter]) -> None:
    """It stays ``failed``, and is final."""
    statement = update(Email).where(has_status(Status.FAILED), Email.id.in_([letter.email for letter in letters]))
    connection.execute(statement.values(final_at=db_now()))
    resolve(connection, Resolution.DISCARDED, _among(letters))


RESOLVE: Mapping[Resolution, Callable[[Connection, Mapping[Letter, float]], None]] = {
    Resolution.REPLAYED: replay,
    Resolution.DELIVERED: deliver,
    Resolution.DISCARDED: discard,
}


def _among(letters: Collection[Letter]) -> ColumnElement[bool]:
    return DeadLetter.id.in_([letter.id for letter in letters])


def resolve(connection: Connection, resolution: Resolution, *which: ColumnElement[bool]) -> None:
    values = {"resolved_at": db_now(), "resolution": resolution.value}
    connection.execute(update(DeadLetter).where(*which).values(**values))
