"""One thread per process that notices when the time for a conversation, with a mail server or a database, is up.

smtplib's timeout is per read, so a server that drips a byte a second never exceeds it, and libpq has none at all for an
answer. So the total is kept by somebody else, who shuts the socket. Setting a deadline costs a lock and a comparison;
no thread or timer is made per mail.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from typing import Protocol

from emailsvc.clock import monotonic

logger = logging.getLogger(__name__)


class Watched(Protocol):
    def tick(self, now: float) -> float:
        """Act on what is overdue; the monotonic time of what is due next (``inf`` for nothing)."""


class Watchdog:
    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        self.revive()

    def revive(self) -> None:
        """In a forked child: the thread did not come along, and its lock may be held for ever."""
        self._changed = threading.Condition()
        self._wake_at = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, watched: Watched) -> None:
        with self._changed:
            self._watched.add(watched)

    def due(self, at: float) -> None:
        """Look at everybody again at ``at``, or earlier."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            if at < self._wake_at:
                self._wake_at = at
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._wake_at = math.inf  # whatever becomes due while we look lowers it again
                watched = list(self._watched)
            earliest = min((self._tick(each) for each in watched), default=math.inf)
            del watched  # keeps nobody alive while waiting
            with self._changed:
                self._wake_at = min(self._wake_at, earliest)
                pause = self._wake_at - monotonic()
                if pause > 0:
                    self._changed.wait(min(pause, threading.TIMEOUT_MAX))

    @staticmethod
    def _tick(watched: Watched) -> float:
        try:
            return watched.tick(monotonic())
        except Exception:  # this thread serves every transport: it must outlive any single one
            logger.exception("A deadline could not be enforced")
            return math.inf


WATCHDOG = Watchdog()
os.register_at_fork(after_in_child=WATCHDOG.revive)
