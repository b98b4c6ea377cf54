"""Totals by hour and kind, exact after any crash."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, SmallInteger, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.counts import TOTAL_OF, TOTALS, Kind
from emailsvc.db.models import Counter
from emailsvc.db.sqltime import db_now

COUNTER_SHARDS = 16


def _summing(statement: Any) -> Any:
    return statement.on_conflict_do_update(
        index_elements=[Counter.hour, Counter.kind, Counter.shard],
        set_={"value": Counter.value + statement.excluded.value},
    )


_ADD = {"postgresql": _summing(postgresql.insert(Counter)), "sqlite": _summing(sqlite.insert(Counter))}


def add_to_counter(
    connection: Connection, kind: Kind, value: int, hour: datetime | ColumnElement[Any] | None = None
) -> None:
    """Last in its transaction: a counter row is shared by many, so it is locked for as short as can be.

    Without ``hour`` it is the current one.
    """
    values = {"hour": _this_hour(connection.dialect.name) if hour is None else hour, "kind": kind, "value": value}
    connection.execute(_ADD[connection.dialect.name].values(**values, shard=any_shard()))


def add_to_total(connection: Connection, kind: str, value: int) -> None:
    """To what the hours before last add up to."""
    total = {"hour": TOTALS, "kind": f"{TOTAL_OF}{kind}", "shard": 0, "value": value}
    connection.execute(_ADD[connection.dialect.name].values(**total))


def adding(seen: FromClause) -> Any:
    """The same on PostgreSQL, as part of another statement: adds the kinds and values of ``seen``. Takes ``shard``."""
    shard = bindparam("shard", type_=SmallInteger())
    source = select(_this_hour("postgresql"), seen.c.kind, shard, seen.c.value).order_by(seen.c.kind)
    return _summing(postgresql.insert(Counter).from_select(["hour", "kind", "shard", "value"], source))


def any_shard() -> int:
    return secrets.randbelow(COUNTER_SHARDS)


def _this_hour(dialect: str) -> ColumnElement[Any]:
    if dialect == "postgresql":
        return func.date_trunc("hour", db_now(), "UTC")
    return func.strftime("%Y-%m-%d %H:00:00.000000", "now")
