"""The journal: who did what, written in the transaction of what it tells of, or in the first of several."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, func, insert, update

from emailsvc.db.models import Action
from emailsvc.db.sqltime import db_now
from emailsvc.vocabulary import ActionKind

MAX_WHO = 64
"""Characters of a name."""


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
