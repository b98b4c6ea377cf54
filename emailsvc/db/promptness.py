"""How long the request at hand may still wait for the database. Workers and commands, outside one, have no such end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from emailsvc.clock import monotonic

DATABASE_SECONDS = 6.0
"""From the arrival of a request. Redis may then take 2 s, and clients commonly give up after 10."""

_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)


def seconds_left() -> float:
    """Infinite outside a request, and below zero when its time is up."""
    return _ends_at.get() - monotonic()


@contextmanager
def promptly(arrived: float) -> Iterator[None]:
    """Inside, the database is waited for no longer than ``DATABASE_SECONDS`` after ``arrived`` (monotonic)."""
    token = _ends_at.set(arrived + DATABASE_SECONDS)
    try:
        yield
    finally:
        _ends_at.reset(token)
