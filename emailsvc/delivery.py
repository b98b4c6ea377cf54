"""Claim → send → record: the loop of one worker thread. No Flask, no Huey, and no transaction open while SMTP runs."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc import outbox
from emailsvc.clock import monotonic, utcnow
from emailsvc.config import Config
from emailsvc.log import mask, without_addresses
from emailsvc.mail import Attachment, Mail, Transport
from emailsvc.outbox import Claim, Claimed, Idle, Recorded
from emailsvc.outcome import Outcome, Result

log = logging.getLogger("emailsvc.delivery")

T = TypeVar("T")

WORK_SECONDS = 10.0
"""A drain works for so long, then asks for a successor: sweeps and heartbeats must not starve behind a backlog."""

SLOW_SECONDS = 5.0
"""After a conversation that took longer, the untouched rest of the batch is released for others."""

BYTES_PER_SECOND = 64 * 1024
"""What a mail server is expected to take at least; a large mail gets that much more time."""

FRESH_SECONDS = 0.05
"""How old the last look at the switch may be when a conversation starts; a pause that is older is seen."""

LOW_FIRST_EVERY = 10
LONGEST_RETRY_SECONDS = 5.0
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)


@dataclass(frozen=True)
class Drain:
    """One thread's way through what is due. ``wake`` and ``schedule`` ask for further drains, now or at a time."""

    engine: Engine
    config: Config
    transport: Transport
    stopping: threading.Event
    wake: Callable[[], None]
    schedule: Callable[[datetime], None]

    def run(self) -> None:
        """Work until nothing is due, the time is up, or the process stops. Raises the database's errors."""
        until = monotonic() + WORK_SECONDS
        turn = secrets.randbelow(LOW_FIRST_EVERY)
        while not self.stopping.is_set():
            if monotonic() > until:
                self.wake()
                return
            turn += 1
            asked = monotonic()
            claim = self._claim(low_first=turn % LOW_FIRST_EVERY == 0)
            if isinstance(claim, Claim):
                if claim.full:
                    self.wake()
                _Batch(self, claim, asked).work()
            elif not self._worth_waiting(claim):
                return

    def _worth_waiting(self, idle: Idle) -> bool:
        if idle.reason == "rate" and idle.wait is not None:
            self.stopping.wait(idle.wait)
            return True
        if idle.wait is not None:
            self.schedule(utcnow() + timedelta(seconds=idle.wait))
        return False

    def _claim(self, *, low_first: bool) -> Claim | Idle:
        token = secrets.token_hex(16)
        try:
            return outbox.claim(self.engine, token, self.config, low_first=low_first)
        except SQLAlchemyError:
            # The reply may be lost and the claim made: rows that nobody works on would become false alarms.
            self.persist(lambda: outbox.release(self.engine, token), "release")
            raise

    def persist(self, write: Callable[[], T], what: str) -> T:
        """Repeat until the database takes it. Whoever cannot record an outcome starts nothing more."""
        delay = 0.1
        while True:
            try:
                return write()
            except DATABASE_AWAY as exc:
                log.warning("database_away", extra={"fields": {"doing": what, "retry_in": delay, "error": _brief(exc)}})
            time.sleep(delay)
            delay = min(delay * 2, LONGEST_RETRY_SECONDS)


class _Batch:
    """The rows of one claim, one conversation at a time, in id order."""

    def __init__(self, drain: Drain, claim: Claim, asked: float) -> None:
        self.drain, self.claim, self.config = drain, claim, drain.config
        self.asked, self.answered = asked, monotonic()
        self.lease_until = asked + self.config.lease_seconds
        self.rows = deque(claim.rows)
        self.gate_seen = asked
        self.earliest: float | None = None

    def work(self) -> None:
        while self.rows:
            if not self._wait_for_slot() or not self._may_start() or not self._has_time(self.rows[0]):
                self._release()
                break
            if not self._one(self.rows.popleft()):
                break
        if self.earliest is not None:
            self.drain.schedule(utcnow() + timedelta(seconds=self.earliest - monotonic()))

    def _wait_for_slot(self) -> bool:
        if self.claim.start_at:
            number = len(self.claim.rows) - len(self.rows)
            self.drain.stopping.wait(max(0.0, self.answered + self.claim.start_at[number] - monotonic()))
        return not self.drain.stopping.is_set()

    def _may_start(self) -> bool:
        if self.claim.probe or monotonic() - self.gate_seen < FRESH_SECONDS:
            return True
        seen = monotonic()
        if not self.drain.persist(lambda: outbox.may_start(self.drain.engine), "look at the switch"):
            return False
        self.gate_seen = seen
        return True

    def _has_time(self, row: Claimed) -> bool:
        """Does the lease cover this conversation? A mail too large for any lease gets its own; the rest goes back."""
        needed = self._timeout(row) + self.config.smtp_reply_timeout_seconds
        if monotonic() + needed <= self.lease_until:
            return True
        if needed <= self.config.lease_seconds:
            return False
        self._release([other.id for other in self.rows if other.id != row.id])
        self.rows = deque([row])
        asked, seconds = monotonic(), needed + self.config.lease_seconds
        renew = lambda: outbox.renew(self.drain.engine, self.claim.token, row.id, seconds)  # noqa: E731
        if not self.drain.persist(renew, "renew"):
            return False
        self.lease_until = asked + seconds
        return True

    def _timeout(self, row: Claimed) -> float:
        return self.config.smtp_timeout_seconds + float(row.size) / BYTES_PER_SECOND

    def _release(self, ids: Sequence[int] | None = None) -> None:
        release = lambda: outbox.release(self.drain.engine, self.claim.token, ids)  # noqa: E731
        if self.rows and ids != []:
            self.drain.persist(release, "release")

    def _one(self, row: Claimed) -> bool:
        """One conversation and its record; True when the next may start."""
        began = monotonic()
        # The database's clock, never behind: it was read after we asked.
        if row.expires_at is not None and self.claim.now + timedelta(seconds=began - self.asked) >= row.expires_at:
            expire = lambda: outbox.expire(self.drain.engine, row, self.claim.token)  # noqa: E731
            return self._after(row, Result(Outcome.CUT, "expired"), self.drain.persist(expire, "expire"), began)
        result = self._converse(row, began)
        return self._after(row, result, self._record(row, result, monotonic() - began), began)

    def _converse(self, row: Claimed, began: float) -> Result:
        timeout = self._timeout(row)
        try:
            mail = self._mail(row)
        except (KeyError, TypeError, ValueError) as exc:
            return Result(Outcome.REJECTED, f"cannot be built: {type(exc).__name__}: {exc}")
        try:
            return self.drain.transport.send(
                mail,
                timeout=timeout,
                reply_timeout=self.config.smtp_reply_timeout_seconds,
                before_dot=lambda: monotonic() < began + timeout,
            )
        except Exception as exc:
            log.exception("transport_raised", extra={"fields": {"email_id": row.email_id}})
            return Result(Outcome.UNCERTAIN, f"the transport failed: {type(exc).__name__}: {exc}")

    def _mail(self, row: Claimed) -> Mail:
        stored: Sequence[Any] = ()
        if row.attachment_count:
            load = lambda: outbox.attachments(self.drain.engine, row.id)  # noqa: E731
            stored = self.drain.persist(load, "read attachments")
        other = row.other or {}
        return Mail(
            email_id=row.email_id,
            message_id=row.message_id,
            sender=other.get("from") or self.config.mail_from,
            recipient=row.recipient,
            subject=row.subject,
            body=row.body,
            html=row.html,
            reply_to=other.get("reply_to"),
            headers=other.get("headers") or {},
            attachments=[Attachment(a.filename, a.content_type, a.content) for a in stored],
        )

    def _record(self, row: Claimed, result: Result, seconds: float) -> Recorded:
        def write(words: Result) -> Recorded:
            return outbox.record(
                self.drain.engine, row, self.claim.token, words, self.config, probe=self.claim.probe, seconds=seconds
            )

        try:
            return self.drain.persist(lambda: write(result), "record")
        except SQLAlchemyError:
            # Not away, but refusing these values; the outcome matters more than the server's words.
            log.exception("record_refused", extra={"fields": {"email_id": row.email_id, "outcome": result.outcome}})
            bland = Result(result.outcome, "(the server's words could not be stored)", result.code)
            return self.drain.persist(lambda: write(bland), "record")

    def _after(self, row: Claimed, result: Result, recorded: Recorded, began: float) -> bool:
        seconds = monotonic() - began
        self.gate_seen = monotonic()
        _log_outcome(row, result, recorded, seconds)
        if not recorded.won:
            return False  # the sweep took the whole claim; nothing of it is ours any more
        if recorded.delay is not None:
            due = monotonic() + recorded.delay
            self.earliest = due if self.earliest is None else min(self.earliest, due)
        if not recorded.go_on or seconds > SLOW_SECONDS or self.drain.stopping.is_set():
            self._release()
            return False
        return True


def _log_outcome(row: Claimed, result: Result, recorded: Recorded, seconds: float) -> None:
    event = {"sent": "sent", "failed": "dead_lettered", "cancelled": "cancelled"}.get(recorded.state, "deferred")
    fields: dict[str, Any] = {
        "email_id": row.email_id,
        "to": mask(row.recipient),
        "attempt": row.attempts + 1,
        "reason": recorded.reason,
        "code": result.code,
        "seconds": round(seconds, 3),
        "retry_in": None if recorded.delay is None else round(recorded.delay, 1),
    }
    if recorded.state != "sent":
        fields["text"] = without_addresses(result.text)
    if not recorded.won:
        event = "outcome_not_ours"
        fields["outcome"] = result.outcome.value
    if recorded.reason in ("outage", "cut"):
        event = "released"
    level = logging.INFO if event in ("sent", "released") else logging.WARNING
    log.log(level, event, extra={"fields": fields})


def _brief(exc: BaseException) -> str:
    return str(getattr(exc, "orig", None) or exc).strip().splitlines()[0][:200]
