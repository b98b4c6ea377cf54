"""Finds due mail without being told: the table is the queue, and ringing only saves latency."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from emailsvc.clock import monotonic
from emailsvc.errors import brief

log = logging.getLogger("emailsvc.lookout")

LOOK_SECONDS = 1.0
"""How often an idle process looks, beside the moments at which it knows that something falls due."""

GLANCE_SECONDS = 0.02
"""How often it asks a SQLite file whether anything was written at all, which reads one page of shared memory."""


class Lookout:
    """``look`` tells in how many seconds a claim may find something, None for never as things stand; it may raise the
    database's errors. ``written`` tells whether anything changed since it was asked last.
    """

    def __init__(self, look: Callable[[], float | None], written: Callable[[], bool] | None = None) -> None:
        self._look, self._written = look, written
        self._turn = threading.Lock()
        self._nudged = threading.Event()
        self._next_look = 0.0

    def nudge(self) -> None:
        """There may be something to claim."""
        self._nudged.set()

    def wait(self, seconds: float) -> bool:
        """True when a claim is worth trying, by this thread alone; False after so many seconds.

        One thread looks and the others wait for their turn, so that a process looks no oftener for having many.
        """
        until = monotonic() + seconds
        if not self._turn.acquire(timeout=seconds):
            return False
        try:
            while not (found := self._is_worth_it()) and (left := until - monotonic()) > 0:
                ahead = GLANCE_SECONDS if self._written else max(0.0, self._next_look - monotonic())
                self._nudged.wait(min(left, ahead))
            return found
        finally:
            self._turn.release()

    def _is_worth_it(self) -> bool:
        if self._nudged.is_set():
            self._nudged.clear()
            return True
        if monotonic() < self._next_look and not (self._written and self._written()):
            return False
        self._next_look = monotonic() + LOOK_SECONDS
        try:
            ahead = self._look()
        except SQLAlchemyError as exc:
            log.warning("database_away", extra={"fields": {"doing": "look", "error": brief(exc)}})
            return False
        if ahead is not None and 0 < ahead < LOOK_SECONDS:
            self._next_look = monotonic() + ahead
        return ahead is not None and ahead <= 0


class WrittenTo:
    """Has anybody committed to a SQLite file since this was asked last? By a connection of its own that writes nothing:
    ``PRAGMA data_version`` tells of all the others. Used by one thread at a time.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._version = 0

    def __call__(self) -> bool:
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._path, check_same_thread=False)
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:  # the look that follows says what is wrong
            self.close()
            return True
        changed, self._version = version != self._version, version
        return bool(changed)

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
