"""Accepted, claimed, given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select, Update, bindparam, case
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.models import Email, status_literal
from emailsvc.db.sqltime import UtcDateTime, db_in, db_now
from emailsvc.outbox.moves.turning import MOVED, Held, Moved, turn, turn_chosen
from emailsvc.outbox.moves.withdrawing import erase_as_asked
from emailsvc.vocabulary import Status


class Kept(NamedTuple):
    """A row as accepting found or made it."""

    id: int
    email_id: str
    fingerprint: str
    status: str
    duplicates: int
    mismatches: int
    received_at: datetime
    due: bool

    @property
    def is_new(self) -> bool:
        # A conflict raises one of the two, so both at zero means that this statement inserted the row.
        return self.duplicates == 0 and self.mismatches == 0


def _accepting(dialect: Any) -> Any:
    not_before = bindparam("not_before", type_=UtcDateTime())
    statement = dialect.insert(Email).values(
        status=status_literal(Status.PENDING),
        next_attempt_at=case((db_now() < not_before, not_before), else_=db_now()),
        received_at=db_now(),
    )
    same = case((Email.fingerprint == statement.excluded.fingerprint, 1), else_=0)
    return statement.on_conflict_do_update(
        index_elements=[Email.email_id],
        set_={"duplicates": Email.duplicates + same, "mismatches": Email.mismatches + 1 - same},
    ).returning(
        Email.id, Email.email_id, Email.fingerprint, Email.status, Email.duplicates, Email.mismatches,
        Email.received_at, (Email.next_attempt_at <= db_now()).label("due"),
    )  # fmt: skip


_ACCEPT = {"postgresql": _accepting(postgresql), "sqlite": _accepting(sqlite)}


def accept(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[Kept]:
    """``→ pending``, or one duplicate or mismatch more of a known id; every row comes back."""
    return [Kept._make(row) for row in connection.execute(_ACCEPT[connection.dialect.name], rows)]


def claiming(chosen: Select[int] | CompoundSelect[Any], *conditions: ColumnElement[bool]) -> Update:
    """``pending → sending`` as a statement, made once; it takes ``token`` and ``lease``, in seconds.

    No row: nothing is due, others have the locks of all that is, or delivery is not running.
    """
    statement = turn_chosen(Status.PENDING, Status.SENDING, chosen).where(*conditions)
    return statement.values(claim=bindparam("token"), lease_expires_at=db_in(bindparam("lease")))


def release(connection: Connection, held: Held) -> int:
    """``sending → pending``, untouched: the due time stays. What does not match is no longer ours."""
    statement = turn(Status.SENDING, Status.PENDING, *held.guard).values(lease_expires_at=None)
    rows = connection.execute(statement.returning(*MOVED)).all()
    erase_as_asked(connection, [Moved._make(row) for row in rows])
    return len(rows)
