"""Totals by hour and kind, exact after any crash."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, func
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.models import Counter
from emailsvc.db.sqltime import db_now

COUNTER_SHARDS = 16

Kind = Literal[
    "received", "sent", "failed_attempts", "duplicates", "mismatches", "purged_cancelled", "purged_failed"
]  # fmt: skip


def _add(dialect: Any) -> Any:
    statement = dialect.insert(Counter)
    return statement.on_conflict_do_update(
        index_elements=[Counter.hour, Counter.kind, Counter.shard],
        set_={"value": Counter.value + statement.excluded.value},
    )


_ADD = {"postgresql": _add(postgresql), "sqlite": _add(sqlite)}


def add_to_counter(
    connection: Connection, kind: Kind, value: int, hour: datetime | ColumnElement[Any] | None = None
) -> None:
    """Last in its transaction: a counter row is shared by many, so it is locked for as short as can be.

    Without ``hour`` it is the current one.
    """
    values = {"hour": _this_hour(connection) if hour is None else hour, "kind": kind, "value": value}
    connection.execute(_ADD[connection.dialect.name].values(**values, shard=secrets.randbelow(COUNTER_SHARDS)))


def _this_hour(connection: Connection) -> ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return func.date_trunc("hour", db_now(), "UTC")
    return func.strftime("%Y-%m-%d %H:00:00.000000", "now")
