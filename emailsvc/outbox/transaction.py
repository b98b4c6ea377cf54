"""One transaction, and once more when PostgreSQL chose it to break a deadlock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

T = TypeVar("T")

DEADLOCK = "40P01"
TRIES = 4


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run ``work`` and commit. A deadlock rolled everything back, so running it again is safe; other errors pass."""
    for last in [False] * (TRIES - 1) + [True]:
        try:
            with engine.begin() as connection:
                return work(connection)
        except OperationalError as exc:
            if last or getattr(exc.orig, "sqlstate", None) != DEADLOCK:
                raise
    raise AssertionError("unreachable")
