"""Claimed, given back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select, Update, bindparam

from emailsvc.db.sqltime import db_in
from emailsvc.outbox.moves.turning import MOVED, Held, Moved, turn, turn_chosen
from emailsvc.outbox.moves.withdrawing import erase_as_asked
from emailsvc.vocabulary import Status


def claiming(chosen: Select[int] | CompoundSelect[Any], *conditions: ColumnElement[bool]) -> Update:
    """``pending → sending`` as a statement, made once; it takes ``token`` and ``lease``, in seconds.

    No row: nothing is due, others have the locks of all that is, or delivery is not running.
    """
    statement = turn_chosen(Status.PENDING, Status.SENDING, chosen).where(*conditions)
    return statement.values(claim=bindparam("token"), lease_expires_at=db_in(bindparam("lease")))


def release(connection: Connection, held: Held) -> list[int]:
    """``sending → pending``, untouched: the due time stays. What does not match is no longer ours."""
    statement = turn(Status.SENDING, Status.PENDING, *held.guard).values(lease_expires_at=None)
    rows = connection.execute(statement.returning(*MOVED)).all()
    erase_as_asked(connection, [Moved._make(row) for row in rows])
    return [row.id for row in rows]
