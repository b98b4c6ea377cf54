"""Totals by hour and kind, exact after any crash."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, FromClause, SmallInteger, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.counts import REFUSED, TOTAL_OF, TOTALS, Kind
from emailsvc.db.models import Counter
from emailsvc.db.sqltime import db_hour, db_now
from emailsvc.outbox.transaction import in_transaction

COUNTER_SHARDS = 16


def _summing(statement: Any) -> Any:
    return statement.on_conflict_do_update(
        index_elements=[Counter.hour, Counter.kind, Counter.shard],
        set_={"value": Counter.value + statement.excluded.value},
    )


_THIS_HOUR = db_hour(db_now())
_ADD = {"postgresql": _summing(postgresql.insert(Counter)), "sqlite": _summing(sqlite.insert(Counter))}


def add_to_counter(
    connection: Connection, kind: Kind, value: int, hour: datetime | ColumnElement[Any] | None = None
) -> None:
    """Last in its transaction: a counter row is shared by many, so it is locked for as short as can be.

    Without ``hour`` it is the current one. With it, the caller alone counts that kind: one row is enough.
    """
    _add(connection, kind, value, _THIS_HOUR if hour is None else hour, any_shard() if hour is None else 0)


def add_to_counters(connection: Connection, values: Mapping[Kind, int]) -> None:
    """The same for several kinds, always in one order."""
    for kind in sorted(values):
        if values[kind]:
            add_to_counter(connection, kind, values[kind])


def count_refused(engine: Engine, counts: Mapping[str, int]) -> None:
    """Add to this hour how many webhooks were refused with each code. Raises the database's errors."""

    def add(connection: Connection) -> None:
        for code in sorted(counts):
            _add(connection, f"{REFUSED}{code}", counts[code], _THIS_HOUR, any_shard())

    in_transaction(engine, add)


def _add(connection: Connection, kind: str, value: int, hour: datetime | ColumnElement[Any], shard: int) -> None:
    values = {"hour": hour, "kind": kind, "shard": shard, "value": value}
    connection.execute(_ADD[connection.dialect.name].values(**values))


def add_to_total(connection: Connection, kind: str, value: int) -> None:
    """To what the hours before last add up to."""
    _add(connection, f"{TOTAL_OF}{kind}", value, TOTALS, 0)


def adding(seen: FromClause) -> Any:
    """The same on PostgreSQL, as part of another statement: adds the kinds and values of ``seen``. Takes ``shard``."""
    shard = bindparam("shard", type_=SmallInteger())
    source = select(_THIS_HOUR, seen.c.kind, shard, seen.c.value).order_by(seen.c.kind)
    return _summing(postgresql.insert(Counter).from_select(["hour", "kind", "shard", "value"], source))


def any_shard() -> int:
    return secrets.randbelow(COUNTER_SHARDS)
