"""Trying again until the database takes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc.errors import brief

log = logging.getLogger("emailsvc.delivery")

T = TypeVar("T")

MAX_RETRY_SECONDS = 5.0

Errors = tuple[type[Exception], ...]
DATABASE_AWAY: Errors = (OperationalError, InterfaceError, InternalError, PoolTimeout)


def persist(write: Callable[[], T], what: str, errors: Errors = DATABASE_AWAY) -> T:
    """Repeat until the database takes it. Whoever cannot record an outcome starts nothing more."""
    delay = 0.1
    while True:
        try:
            return write()
        except errors as exc:
            log.warning("database_away", extra={"fields": {"doing": what, "retry_in": delay, "error": brief(exc)}})
        time.sleep(delay)
        delay = min(delay * 2, MAX_RETRY_SECONDS)
