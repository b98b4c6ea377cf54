"""Windows: within one, e-mails of the same key but different ids are duplicates of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.absorbed import FIRST, IS_ABSORBED, IS_ITS_FIRST, ended_unsent
from emailsvc.db.models import Email, Window
from emailsvc.vocabulary import State


class First(NamedTuple):
    """The e-mail of which others are duplicates. All but its id are None once it is purged."""

    email_id: str
    state: State | None
    fingerprint: str | None
    received_at: datetime | None


class Entrant(NamedTuple):
    """An e-mail whose row was made in this transaction."""

    id: int
    email_id: str
    fingerprint: str
    received_at: datetime
    key: str
    seconds: int

    @property
    def as_first(self) -> First:
        return First(self.email_id, State.PENDING, self.fingerprint, self.received_at)

    @property
    def window(self) -> dict[str, Any]:
        return {"key": self.key, "email": self.id, "ends_at": self.received_at + timedelta(seconds=self.seconds)}


_OPEN = {
    name: dialect.insert(Window).on_conflict_do_nothing(index_elements=[Window.key]).returning(Window.key)
    for name, dialect in (("postgresql", postgresql), ("sqlite", sqlite))
}
_HELD = select(
    Window.key, Window.email, Window.ends_at, Email.email_id, Email.status, Email.fingerprint, Email.received_at,
    ended_unsent(Email).label("ended_unsent"),
).join(Email, Email.id == Window.email).order_by(Window.key)  # fmt: skip


def enter(connection: Connection, entrants: Sequence[Entrant]) -> dict[int, First]:
    """Whose duplicate each is, by row; those that open a window are left out. Of one key, the earliest given is first.

    Keys are locked in their order, after the ids. A live one is only read: to lock it would make a storm wait in line.
    """
    firsts: dict[str, First] = {}
    earliest = {entrant.key: entrant for entrant in reversed(entrants)}
    left = {key: earliest[key] for key in sorted(earliest)}
    while left:
        taken = _open(connection, left)
        held = {row.key: row for row in connection.execute(_HELD.where(Window.key.in_(taken)))} if taken else {}
        left = {key: left[key] for key in taken}
        for key, window in held.items():
            if window.ends_at > left[key].received_at and not window.ended_unsent:
                firsts[key] = First(window.email_id, State(window.status), window.fingerprint, window.received_at)
                del left[key]
            elif _take_over(connection, left[key], window):
                del left[key]
        # What is left, others took over or purged in between: look again.
    return {
        entrant.id: firsts.get(entrant.key, earliest[entrant.key].as_first)
        for entrant in entrants
        if entrant.key in firsts or entrant is not earliest[entrant.key]
    }


def _open(connection: Connection, wanted: Mapping[str, Entrant]) -> list[str]:
    """The keys that somebody has already, in order."""
    opened = connection.execute(_OPEN[connection.dialect.name], [one.window for one in wanted.values()])
    return sorted(wanted.keys() - set(opened.scalars()))


def _take_over(connection: Connection, entrant: Entrant, held: Row[*tuple[Any, ...]]) -> bool:
    as_read = (Window.key == held.key, Window.email == held.email, Window.ends_at == held.ends_at)
    return connection.execute(update(Window).where(*as_read).values(entrant.window)).rowcount == 1


_KNOWN = (
    select(Email.id, Email.duplicate_of, FIRST.status, FIRST.fingerprint, FIRST.received_at)
    .join(FIRST, IS_ITS_FIRST, isouter=True)
    .where(IS_ABSORBED)
)


def firsts_of(connection: Connection, ids: Sequence[int]) -> dict[int, First]:
    """Of those among the rows that were absorbed before."""
    found = connection.execute(_KNOWN.where(Email.id.in_(ids)))
    return {
        row.id: First(row.duplicate_of, row.status and State(row.status), row.fingerprint, row.received_at)
        for row in found
    }
