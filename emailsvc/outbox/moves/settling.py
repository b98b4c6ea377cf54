"""Settled by a report: somebody has the message, so it was sent."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from emailsvc.db.models import DeadLetter, Email
from emailsvc.db.sqltime import db_now
from emailsvc.outbox.moves.resolving import Letter, deliver
from emailsvc.outbox.moves.turning import turn
from emailsvc.vocabulary import Status


def settle(connection: Connection, ids: Sequence[int]) -> set[int]:
    """``pending → sent``, and ``failed → sent`` with a dead letter that nobody has resolved. Returns those moved.

    What does not match is in hand, and its outcome will look for reports; or it has been sent, cancelled or discarded,
    and stays so.
    """
    waiting = turn(Status.PENDING, Status.SENT, Email.id.in_(ids)).values(
        sent_at=db_now(), final_at=db_now(), next_attempt_at=None, last_error=None
    )
    moved = set(connection.execute(waiting.returning(Email.id)).scalars())
    unresolved = select(DeadLetter.id, DeadLetter.email).where(
        DeadLetter.email.in_(ids), DeadLetter.resolved_at.is_(None)
    )
    letters = [Letter._make(row) for row in connection.execute(unresolved.order_by(DeadLetter.email))]
    if letters:
        deliver(connection, letters)
    return moved | {letter.email for letter in letters}
