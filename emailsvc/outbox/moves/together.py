"""``sending → sent`` for several e-mails in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    Text,
    bindparam,
    func,
    literal_column,
    select,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.dialects.sqlite import pysqlite

from emailsvc.db import direct
from emailsvc.db.groupcommit import LOCK_MILLISECONDS
from emailsvc.db.models import Email
from emailsvc.outbox.moves.ending import to_sent
from emailsvc.outbox.switch import RUNNING


class Taken(NamedTuple):
    """An e-mail that the server took."""

    email_id: str
    row_id: int
    token: str


_PATIENCE: ColumnElement[str] = literal_column(f"set_config('lock_timeout', '{LOCK_MILLISECONDS}ms', true)")
"""For the statement that has it among its conditions: it is asked before the row is locked."""

_PAIR = func.unnest(bindparam("row_ids", type_=ARRAY(BigInteger)), bindparam("tokens", type_=ARRAY(Text)))
_THEY = select(_PAIR.table_valued("row_id", "token").render_derived(name="pair")).cte("they")


def _unless_erased(dialect: Dialect, *mine: ColumnElement[bool]) -> str:
    statement = to_sent(*mine, ~Email.erase_requested).returning(Email.id, RUNNING.label("running"))
    return str(statement.compile(dialect=dialect))


_POSTGRESQL: Dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
_IT = (Email.id == bindparam("row_id"), Email.claim == bindparam("token"))
_THEM = (Email.id == _THEY.c.row_id, Email.claim == _THEY.c.token)
_ONE = {
    "sqlite": _unless_erased(pysqlite.dialect(paramstyle="named"), *_IT),
    "postgresql": _unless_erased(_POSTGRESQL, *_IT, _PATIENCE.is_not(None)),
}
_SEVERAL = _unless_erased(_POSTGRESQL, *_THEM, _PATIENCE.is_not(None))


def send_together(connection: Connection, taken: Sequence[Taken]) -> dict[int, bool]:
    """Is delivery running, by the id of each row that matched. The others are not in hand as ``send`` has it, or are to
    be erased. On PostgreSQL it is one statement, and waits for no lock for long.
    """
    database = connection.dialect.name
    if database == "sqlite" or len(taken) == 1:
        values = ({"row_id": one.row_id, "token": one.token} for one in taken)
        rows = [row for one in values for row in direct.run(connection, _ONE[database], one)]
    else:
        ordered = sorted(taken)  # by email_id: in that order others lock several rows, too
        ids, tokens = [one.row_id for one in ordered], [one.token for one in ordered]
        rows = direct.run(connection, _SEVERAL, {"row_ids": ids, "tokens": tokens})
    return {row_id: bool(running) for row_id, running in rows}
