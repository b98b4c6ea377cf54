"""One transaction, and once more when PostgreSQL chose it to break a deadlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

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
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        if not connection.info["pooled"]:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        with connection.begin():  # which is nothing to the server in autocommit
            yield connection
