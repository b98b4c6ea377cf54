"""Windows: within one, e-mails of the same key but different ids are duplicates of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.absorbed import FIRST, IS_ABSORBED, IS_ITS_FIRST, ended_unsent
from emailsvc.db.models import Email
from emailsvc.db.models import Window as StoredWindow
from emailsvc.db.sqltime import db_now
from emailsvc.intake.windows import Window
from emailsvc.vocabulary import State


class First(NamedTuple):
    """The e-mail of which others are duplicates. All but its id are None once it is purged."""

    email_id: str
    state: State | None
    fingerprint: str | None
    received_at: datetime | None


def firsts_in(connection: Connection, windows: Mapping[str, Window]) -> dict[str, First]:
    """Of those that come into a window that is open already. The others may open one, which ``enter`` decides."""
    keys = sorted({window.key for window in windows.values()})
    is_open = (StoredWindow.ends_at > db_now(), ~ended_unsent(Email))
    firsts = {row.key: _first(row) for row in connection.execute(_HELD.where(StoredWindow.key.in_(keys), *is_open))}
    return {email_id: firsts[window.key] for email_id, window in windows.items() if window.key in firsts}


def _first(held: Row[*tuple[Any, ...]]) -> First:
    return First(held.email_id, State(held.status), held.fingerprint, held.received_at)


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
    name: dialect.insert(StoredWindow)
    .on_conflict_do_nothing(index_elements=[StoredWindow.key])
    .returning(StoredWindow.key)
    for name, dialect in (("postgresql", postgresql), ("sqlite", sqlite))
}
_HELD = select(
    StoredWindow.key, StoredWindow.email, StoredWindow.ends_at, Email.email_id, Email.status, Email.fingerprint,
    Email.received_at, ended_unsent(Email).label("ended_unsent"),
).join(Email, Email.id == StoredWindow.email).order_by(StoredWindow.key)  # fmt: skip


def enter(connection: Connection, entrants: Sequence[Entrant]) -> dict[int, First]:
    """Whose duplicate each is, by row; those that open a window are left out. Of one key, the earliest given is first.

    Keys are locked in their order, after the ids. A live one is only read: to lock it would make a storm wait in line.
    """
    firsts: dict[str, First] = {}
    earliest = {entrant.key: entrant for entrant in reversed(entrants)}
    left = {key: earliest[key] for key in sorted(earliest)}
    while left:
        taken = _open(connection, left)
        held = {row.key: row for row in connection.execute(_HELD.where(StoredWindow.key.in_(taken)))} if taken else {}
        left = {key: left[key] for key in taken}
        for key, window in held.items():
            if window.ends_at > left[key].received_at and not window.ended_unsent:
                firsts[key] = _first(window)
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
    as_read = (StoredWindow.key == held.key, StoredWindow.email == held.email, StoredWindow.ends_at == held.ends_at)
    return connection.execute(update(StoredWindow).where(*as_read).values(entrant.window)).rowcount == 1


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
