"""The journal: who did what, written in the transaction of what it tells of, or in the first of several."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, func, insert, select, update

from emailsvc.db.models import Action
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.vocabulary import ActionKind, ActionState

MAX_WHO = 64
"""Characters of a name."""

MIN_KEPT_DAYS = 365
"""However soon e-mails go: an entry is small, and who did what is asked late."""

CHUNK = 500
"""Entries forgotten in one sweep."""


def note(
    connection: Connection,
    kind: ActionKind,
    who: str | None,
    *,
    why: str | None = None,
    asked: Mapping[str, object] | None = None,
    count: int | None = None,
) -> int:
    """An entry about what is done by the end of this transaction. ``who``: None for the service itself.

    ``asked``: the filter, or the ids, that chose what it was done to; ``count``: how many that were. No address and no
    content may be in it: the journal outlives both. Returns the entry's id.
    """
    values = {"kind": kind.value, "who": who and who[:MAX_WHO], "why": why, "filter": asked}
    written = insert(Action).values(**values, total=count, done=count, at=db_now()).returning(Action.id)
    return connection.execute(written).scalar_one()


def count_more(connection: Connection, action: int, more: int) -> None:
    """For what is done in several transactions: so many more in this one."""
    connection.execute(update(Action).where(Action.id == action).values(done=func.coalesce(Action.done, 0) + more))


def forget(connection: Connection, days: float) -> int:
    """Of the oldest entries those that are older, and have come to their end; how many those were."""
    oldest = select(Action.id, Action.at, Action.state).order_by(Action.id).limit(CHUNK).subquery()
    limit = db_in(-max(days, MIN_KEPT_DAYS) * 86400)
    over = select(oldest.c.id).where(oldest.c.at <= limit, oldest.c.state != ActionState.RUNNING)
    return connection.execute(delete(Action).where(Action.id.in_(over))).rowcount
