"""Webhooks that were refused: a line in the log, and counters, which are not written for each of a stranger's."""

from __future__ import annotations

import atexit
import logging
import re
import threading
from collections import Counter as Tally
from collections.abc import Callable, Mapping

from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.clock import monotonic
from emailsvc.db.promptness import promptly
from emailsvc.errors import brief
from emailsvc.web.codes import PROBLEM_CODES

log = logging.getLogger("emailsvc.web")

FLUSH_SECONDS = 10.0
EXTENSION = "refused_webhooks"

_LOGGED_ELSEWHERE = (401, 403)  # as access_denied
_is_plain = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}").fullmatch


class RefusedWebhooks:
    """Added up in memory, and added to the database 10 s after the first of them and at the process's end.

    What a process that is killed had not written is lost; what one wrote whose commit is in doubt may count twice.
    """

    def __init__(self, write: Callable[[Mapping[str, int]], None]) -> None:
        self._write = write
        self._tally: Tally[str] = Tally()
        self._guard = threading.Lock()
        self._timer: threading.Timer | None = None
        self._is_registered = False

    def add(self, counts: Mapping[str, int]) -> None:
        with self._guard:
            self._tally.update(counts)
            if self._timer is None:
                self._timer = self._start_timer()
            if not self._is_registered:
                atexit.register(self.flush, last=True)
                self._is_registered = True

    def _start_timer(self) -> threading.Timer | None:
        timer = threading.Timer(FLUSH_SECONDS, self.flush)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no thread can be started: the next to be refused tries again, and this one has its 4xx
            return None
        return timer

    def flush(self, *, last: bool = False) -> None:
        """What cannot be written now is with the next, if there will be one."""
        with self._guard:
            if self._timer is not None:
                self._timer.cancel()
            taken, self._tally, self._timer = self._tally, Tally(), None
        if not taken:
            return
        try:
            with promptly(monotonic()):
                self._write(taken)
        except SQLAlchemyError as exc:
            log.warning("database_away", extra={"fields": {"doing": "count refused webhooks", "error": brief(exc)}})
            if not last:
                self.add(taken)


def note(status: int, code: str, field: str | None = None, email_id: str | None = None) -> None:
    """``payload_mismatch`` has a counter and a line of its own, and what the service failed at is no refusal."""
    if status >= 500 or code == "payload_mismatch":
        return
    if status not in _LOGGED_ELSEWHERE:
        # A name that the client made up may be an address, or anything.
        shown = field if field is None or _is_plain(field) else "…"
        log.warning("webhook_refused", extra={"fields": {"code": code, "field": shown, "email_id": email_id}})
    refused: RefusedWebhooks = current_app.extensions[EXTENSION]
    refused.add({code if code in PROBLEM_CODES else "bad_request": 1})
