"""Absorbed as a duplicate of another e-mail; and sent all the same, because that one was not."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, bindparam, case, null, select, update

from emailsvc.db.absorbed import FIRST, IS_ABSORBED, IS_FIRST_UNSENT, IS_ITS_FIRST
from emailsvc.db.models import Email, Window, has_status
from emailsvc.db.sqltime import db_now
from emailsvc.outbox.counters import add_to_counters
from emailsvc.outbox.moves.turning import turn
from emailsvc.outbox.scrubbing import NO_CONTENT
from emailsvc.outbox.windows import First
from emailsvc.vocabulary import State, Status

_ABSORB = turn(Status.PENDING, Status.CANCELLED, Email.id.in_(bindparam("rows", expanding=True))).values(
    next_attempt_at=null(), final_at=db_now(), duplicate_of=bindparam("first")
)
_FORGET = _ABSORB.values(NO_CONTENT)

_INHERITED = (
    select(Window.key, Window.email, Email.id)
    .join(FIRST, FIRST.id == Window.email)
    .join(Email, IS_ITS_FIRST)
    .order_by(Window.key, Email.id)
)


def absorb(connection: Connection, firsts: Mapping[int, First]) -> None:
    """``pending → cancelled``, for rows that this transaction made. Their content is kept, in case the first one is not
    sent; not if it is sent already.
    """
    rows: dict[First, list[int]] = {}
    for row, first in sorted(firsts.items()):
        rows.setdefault(first, []).append(row)
    for first, some in rows.items():
        statement = _FORGET if first.state is State.SENT else _ABSORB
        connection.execute(statement, {"rows": some, "first": first.email_id})


def revive(connection: Connection, *which: ColumnElement[bool]) -> int:
    """``cancelled → pending``, due at once: an e-mail of its own from now on. Those whose first one waits, or was sent,
    or whose content is gone, do not match. The lowest of one window has it from now on, if nobody took it over.
    """
    inherited = connection.execute(_INHERITED.where(*which)).all()
    statement = turn(Status.CANCELLED, Status.PENDING, IS_FIRST_UNSENT, *which).values(
        next_attempt_at=db_now(), final_at=None, duplicate_of=None,
        expires_at=case((Email.expires_at <= db_now(), None), else_=Email.expires_at),
    )  # fmt: skip
    revived = set(connection.execute(statement.returning(Email.id)).scalars())
    for heir in inherited:
        if heir.id in revived:  # what comes second finds that its first one has the window no more
            held = (Window.key == heir.key, Window.email == heir.email)
            connection.execute(update(Window).where(*held).values(email=heir.id))
    add_to_counters(connection, {"absorbed": -len(revived), "cancelled": -len(revived)})
    return len(revived)


def drop(connection: Connection, email_id: str) -> bool:
    """What was absorbed is cancelled for good. False: it was not absorbed, or was sent meanwhile."""
    it = (has_status(Status.CANCELLED), IS_ABSORBED, Email.email_id == email_id)
    dropped = connection.execute(update(Email).where(*it).values(duplicate_of=None)).rowcount
    add_to_counters(connection, {"absorbed": -dropped})
    return dropped == 1
