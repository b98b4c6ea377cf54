"""One transaction, and once more when PostgreSQL chose it to break a deadlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

T = TypeVar("T")

DEADLOCK = "40P01"
TRIES = 4


def in_transaction(engine: Engine, work: Callable[[Connection], T], *, one_statement: bool = False) -> T:
    """Run ``work`` and commit. A deadlock rolled everything back, so running it again is safe; other errors pass."""
    for last in [False] * (TRIES - 1) + [True]:
        try:
            with one_statement_on(engine) if one_statement else engine.begin() as connection:
                return work(connection)
        except OperationalError as exc:
            if last or getattr(exc.orig, "sqlstate", None) != DEADLOCK:
                raise
    raise AssertionError("unreachable")


@contextmanager
def one_statement_on(engine: Engine) -> Iterator[Connection]:
    """For what is a single statement on PostgreSQL: it commits by itself there, in one round trip instead of three.

    Behind a connection pooler there is a transaction all the same, because it carries the limits of time.
    """
    with engine.connect() as connection:
        if connection.info.get("pooled") is False:
            yield from _by_itself(connection)
        else:
            with connection.begin():
                yield connection


def _by_itself(connection: Connection) -> Iterator[Connection]:
    driver: Any = connection.connection.driver_connection
    driver.autocommit = True  # SQLAlchemy's isolation level takes longer, and asks the driver more
    try:
        with connection.begin():  # which is nothing to the server now
            yield connection
    finally:
        if not driver.closed:
            driver.autocommit = False
