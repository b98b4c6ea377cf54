"""``sending → sent`` for several e-mails in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    Double,
    Text,
    Update,
    bindparam,
    func,
    literal_column,
    select,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.types import TypeEngine

from emailsvc.db import direct
from emailsvc.db.groupcommit import LOCK_MILLISECONDS
from emailsvc.db.models import Email
from emailsvc.outbox.moves.ending import one_to_sent, to_sent
from emailsvc.outbox.switch import RUNNING


class Taken(NamedTuple):
    """An e-mail that the server took."""

    email_id: str  # in whose order rows are locked, as groups of webhooks lock them
    row_id: int
    token: str
    reply: str
    seconds: float


_PATIENCE: ColumnElement[str] = literal_column(f"set_config('lock_timeout', '{LOCK_MILLISECONDS}ms', true)")
"""For the statement that has it among its conditions: it is asked before the row is locked."""

_COLUMNS: dict[str, TypeEngine[Any]] = {
    "row_id": BigInteger(), "token": Text(), "reply": Text(), "seconds": Double(),
}  # fmt: skip
_GIVEN = func.unnest(*(bindparam(f"each_{name}", type_=ARRAY(kind)) for name, kind in _COLUMNS.items()))
_THEY = select(_GIVEN.table_valued(*_COLUMNS).render_derived(name="given")).cte("they")


def _compiled(statement: Update, dialect: Dialect) -> str:
    return str(statement.returning(Email.id, RUNNING.label("running")).compile(dialect=dialect))


_UNLESS_ERASED = ~Email.erase_requested
_POSTGRESQL: Dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
_THEM = (Email.id == _THEY.c.row_id, Email.claim == _THEY.c.token, _UNLESS_ERASED, _PATIENCE.is_not(None))
_ONE = {
    "sqlite": _compiled(one_to_sent(_UNLESS_ERASED), pysqlite.dialect(paramstyle="named")),
    "postgresql": _compiled(one_to_sent(_UNLESS_ERASED, _PATIENCE.is_not(None)), _POSTGRESQL),
}
_SEVERAL = _compiled(to_sent(_THEY.c.reply, _THEY.c.seconds, *_THEM), _POSTGRESQL)


def send_together(connection: Connection, taken: Sequence[Taken]) -> dict[int, bool]:
    """Is delivery running, by the id of each row that matched. The others are not in hand as ``send`` has it, or are to
    be erased. On PostgreSQL it is one statement, and waits for no lock for long.
    """
    database = connection.dialect.name
    if database == "sqlite" or len(taken) == 1:
        rows = [row for one in taken for row in direct.run(connection, _ONE[database], _values(one))]
    else:
        ordered = sorted(taken)  # by email_id: in that order others lock several rows, too
        values = {f"each_{name}": [getattr(one, name) for one in ordered] for name in _COLUMNS}
        rows = direct.run(connection, _SEVERAL, values)
    return {row_id: bool(running) for row_id, running in rows}


def _values(one: Taken) -> dict[str, object]:
    return {name: getattr(one, name) for name in _COLUMNS}
