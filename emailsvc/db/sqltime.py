"""Time as the database tells it: one clock for all hosts, so that one whose own clock is wrong breaks nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Dialect, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import DateTime, Float


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC. SQLite's DateTime would drop an offset without converting."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no place in the database")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):
    """The database's clock when the statement began: one value in all its rows, and one that can bound an index.

    SQLite's has milliseconds.
    """

    type = UtcDateTime()
    inherit_cache = True


class db_in(FunctionElement[datetime]):
    """The database's clock plus so many seconds (negative: ago)."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: Any) -> None:
        super().__init__(seconds)


class db_hour(FunctionElement[datetime]):
    """The beginning of the hour (UTC) that a time lies in."""

    type = UtcDateTime()
    inherit_cache = True


class seconds_between(FunctionElement[float]):
    """From the first time to the second."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(db_now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(db_in, "postgresql")
def _in_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(statement_timestamp() + make_interval(secs => CAST({seconds} AS double precision)))"


@compiles(db_in, "sqlite")
def _in_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds})) || '000')"


@compiles(db_hour, "postgresql")
def _hour_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"date_trunc('hour', {compiler.process(element.clauses, **kw)}, 'UTC')"


@compiles(db_hour, "sqlite")
def _hour_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"strftime('%Y-%m-%d %H:00:00.000000', {compiler.process(element.clauses, **kw)})"


@compiles(seconds_between, "postgresql")
def _between_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    start, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"CAST(extract(epoch FROM {end} - {start}) AS double precision)"


@compiles(seconds_between, "sqlite")
def _between_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    start, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((julianday({end}) - julianday({start})) * 86400.0)"
