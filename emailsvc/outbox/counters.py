"""Totals by hour and kind, exact after any crash."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, FromClause, SmallInteger, bindparam, select
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


def add_to_counter(connection: Connection, kind: Kind, value: int) -> None:
    """To this hour. Last in its transaction: a counter row is shared, so it is locked for as short as can be."""
    _add(connection, kind, value)


def add_to_counters(connection: Connection, values: Mapping[Kind, int]) -> None:
    """The same for several kinds, always in one order."""
    for kind in sorted(values):
        if values[kind]:
            add_to_counter(connection, kind, values[kind])


def count_refused(engine: Engine, counts: Mapping[str, int]) -> None:
    """Add to this hour how many webhooks were refused with each code. Raises the database's errors."""

    def add(connection: Connection) -> None:
        for code in sorted(counts):
            _add(connection, f"{REFUSED}{code}", counts[code])

    in_transaction(engine, add)


def _add(connection: Connection, kind: str, value: int) -> None:
    values = {"hour": _THIS_HOUR, "kind": kind, "shard": any_shard(), "value": value}
    connection.execute(_ADD[connection.dialect.name].values(**values))


def add_rolled_up(connection: Connection, hour: datetime, counts: Mapping[str, int]) -> None:
    """For a caller who alone counts these kinds: one row of each is enough."""
    rows = [{"hour": hour, "kind": kind, "shard": 0, "value": counts[kind]} for kind in sorted(counts) if counts[kind]]
    if rows:
        connection.execute(_ADD[connection.dialect.name], rows)


def add_to_totals(connection: Connection, counts: Mapping[str, int]) -> None:
    """To what the hours before last add up to."""
    add_rolled_up(connection, TOTALS, {f"{TOTAL_OF}{kind}": value for kind, value in counts.items()})


def adding(seen: FromClause) -> Any:
    """The same on PostgreSQL, as part of another statement: adds the kinds and values of ``seen``. Takes ``shard``."""
    shard = bindparam("shard", type_=SmallInteger())
    source = select(_THIS_HOUR, seen.c.kind, shard, seen.c.value).order_by(seen.c.kind)
    return _summing(postgresql.insert(Counter).from_select(["hour", "kind", "shard", "value"], source))


def any_shard() -> int:
    return secrets.randbelow(COUNTER_SHARDS)
