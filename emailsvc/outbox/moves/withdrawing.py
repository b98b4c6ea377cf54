"""Cancelled, or erased."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Update

from emailsvc.db.models import DeadLetter, Email
from emailsvc.db.sqltime import db_now
from emailsvc.outbox.counters import add_to_counter
from emailsvc.outbox.moves.resolving import resolve
from emailsvc.outbox.moves.turning import Moved, turn
from emailsvc.outbox.scrubbing import scrub_person
from emailsvc.vocabulary import Resolution, Status


def cancel(connection: Connection, email_id: str) -> bool:
    """``pending → cancelled``. False: a claim or an outcome got there first, or it never was pending, or it may have
    been sent; the row says which.
    """
    statement = turn(Status.PENDING, Status.CANCELLED, Email.email_id == email_id, ~Email.maybe_sent)
    cancelled = _cancel(connection, statement)
    _count(connection, cancelled)
    return cancelled == 1


def erase(connection: Connection, ids: Sequence[int]) -> None:
    """Forget the person: what waits becomes ``cancelled``, what failed is discarded, the rest stays as it is.

    The caller holds the locks of these rows, and none of them is ``sending``.
    """
    open_letters = (DeadLetter.email.in_(ids), DeadLetter.resolved_at.is_(None))
    resolve(connection, Resolution.DISCARDED, *open_letters)
    cancelled = _cancel(connection, turn(Status.PENDING, Status.CANCELLED, Email.id.in_(ids)))
    scrub_person(connection, ids)
    _count(connection, cancelled)


def erase_as_asked(connection: Connection, rows: Sequence[Moved]) -> None:
    asked = [row.id for row in rows if row.erase_requested]
    if asked:
        erase(connection, asked)


def _cancel(connection: Connection, statement: Update) -> int:
    return connection.execute(statement.values(next_attempt_at=None, final_at=db_now())).rowcount


def _count(connection: Connection, cancelled: int) -> None:
    if cancelled:
        add_to_counter(connection, "cancelled", cancelled)
