"""The hottest statements, by the driver itself: the way through SQLAlchemy costs more than the driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def run(connection: Connection, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    """Execute in the connection's transaction; all rows. Raises SQLAlchemy's errors, as the connection itself would."""
    driver: Any = connection.connection.driver_connection
    try:
        rows: list[tuple[Any, ...]] = driver.execute(statement, values).fetchall()
    except _errors(connection) as exc:
        raise _translated(connection, driver, statement, exc) from exc
    return rows


def _translated(connection: Connection, driver: Any, statement: str, exc: Any) -> Exception:
    is_gone = connection.dialect.is_disconnect(exc, driver, None)
    if is_gone:  # as SQLAlchemy does it: the others in the pool broke with this one, most likely
        connection.engine.pool._invalidate(connection.connection, exc)
        connection.invalidate(exc)
    error: Any = DBAPIError.instance(
        statement, None, exc, _errors(connection), hide_parameters=True, connection_invalidated=is_gone
    )
    return error  # type: ignore[no-any-return]


def _errors(connection: Connection) -> type[Exception]:
    return connection.dialect.loaded_dbapi.Error
