"""Claim → send → record: the loop of one worker thread. No Flask, no Huey, and no transaction open while SMTP runs."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc import outbox
from emailsvc.clock import monotonic
from emailsvc.delivery.lines import log_recorded
from emailsvc.delivery.notes import Note, Unnoted
from emailsvc.errors import brief
from emailsvc.mail import Attachment, Message, Outcome, Result
from emailsvc.mail.transport import Transport
from emailsvc.outbox import Claim, Claimed, Idle, InDoubt, Recorded
from emailsvc.settings.config import Config

log = logging.getLogger("emailsvc.delivery")

T = TypeVar("T")

SLOW_SECONDS = 5.0
"""After a conversation that took longer, the untouched rest of the batch is released for others."""

BYTES_PER_SECOND = 64 * 1024
"""What a mail server is expected to take at least; a large e-mail gets that much more time."""

READ_SECONDS = 2.0
"""What the lease must cover beside the conversation when content is read first. Were it nothing, an e-mail that only
just fits would be read and given back again and again.
"""

LOW_FIRST_EVERY = 10
MAX_RETRY_SECONDS = 5.0
MAX_WAIT_SECONDS = 1.0
"""A drain waits so long for its slot under a rate limit; for a later one it comes again."""

Errors = tuple[type[Exception], ...]
DATABASE_AWAY: Errors = (OperationalError, InterfaceError, InternalError, PoolTimeout)


@dataclass(eq=False)
class Drain:
    """One thread's way through what is due. ``wake`` asks for further drains."""

    engine: Engine
    config: Config
    transport: Transport
    stopping: threading.Event
    wake: Callable[[], None]
    note: Note = field(default_factory=Unnoted)
    in_doubt: InDoubt = field(default_factory=InDoubt)
    _batch: _Batch | None = None

    def run(self) -> None:
        """Work until nothing is due or the process stops. Raises the database's errors."""
        turn = secrets.randbelow(LOW_FIRST_EVERY)
        while not self.stopping.is_set():
            turn += 1
            asked = monotonic()
            claim = self._claim(low_first=turn % LOW_FIRST_EVERY == 0)
            if isinstance(claim, Claim):
                if claim.full:
                    self.wake()
                self._batch = _Batch(self, claim, asked)
                self._batch.work()
            elif claim.wait is None or claim.wait > MAX_WAIT_SECONDS:
                return
            else:
                self.stopping.wait(claim.wait)

    def hand_back(self) -> None:
        """Called by another thread once nothing can start any more: release what the batch in hand has not begun.

        Only to be quick about it, while a reply is waited for; the drain's own thread does it, too.
        """
        rows = list(self._batch.rows) if self._batch else []
        if self._batch and rows:
            outbox.release(self.engine, self._batch.claim.token, [row.id for row in rows])

    def _claim(self, *, low_first: bool) -> Claim | Idle:
        token = secrets.token_hex(16)
        self.note.claims(token)
        try:
            return outbox.claim(self.engine, token, self.config, low_first=low_first)
        except Exception:
            self.in_doubt.add(token, self.config.lease_seconds)
            raise

    def persist(self, write: Callable[[], T], what: str, errors: Errors = DATABASE_AWAY) -> T:
        """Repeat until the database takes it. Whoever cannot record an outcome starts nothing more."""
        delay = 0.1
        while True:
            try:
                return write()
            except errors as exc:
                log.warning("database_away", extra={"fields": {"doing": what, "retry_in": delay, "error": brief(exc)}})
            time.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_SECONDS)


class _Batch:
    """The rows of one claim, one conversation at a time, in id order."""

    def __init__(self, drain: Drain, claim: Claim, asked: float) -> None:
        self.drain, self.claim, self.config = drain, claim, drain.config
        self.asked, self.answered = asked, monotonic()
        self.lease_until = asked + self.config.lease_seconds
        self.rows = deque(claim.rows)
        self.gate_seen = asked

    def work(self) -> None:
        try:
            while self.rows and self._wait_for_slot() and self._has_time(self.rows[0]):
                if not self._one(self.rows.popleft()):
                    break
        finally:
            self._release()

    def _wait_for_slot(self) -> bool:
        if self.claim.start_at:
            number = len(self.claim.rows) - len(self.rows)
            self.drain.stopping.wait(max(0.0, self.answered + self.claim.start_at[number] - monotonic()))
        return not self.drain.stopping.is_set()

    def _may_start(self) -> bool:
        if monotonic() - self.gate_seen < outbox.FRESH_SECONDS:
            return True
        seen = monotonic()
        look = lambda: outbox.may_start(self.drain.engine, probe=self.claim.probe)  # noqa: E731
        if not self.drain.persist(look, "look at the switch"):
            return False
        self.gate_seen = seen
        return True

    def _has_time(self, row: Claimed) -> bool:
        """Does the lease cover this conversation? If not, the first e-mail of a claim gets a lease of its own: it is
        too large for any, or the claim itself took too long. A later one goes back, with those behind it.
        """
        needed = self._timeout(row) + self.config.smtp_reply_timeout_seconds
        if row.attachment_count or row.content is None:
            needed += READ_SECONDS
        if monotonic() + needed <= self.lease_until:
            return True
        if needed <= self.config.lease_seconds and len(self.rows) < len(self.claim.rows):
            return False
        self.rows.popleft()
        self._release()
        self.rows.append(row)
        asked, seconds = monotonic(), needed + self.config.lease_seconds
        renew = lambda: outbox.renew(self.drain.engine, self.claim.token, row.id, seconds)  # noqa: E731
        if not self.drain.persist(renew, "renew"):
            return False
        self.lease_until = asked + seconds
        return True

    def _timeout(self, row: Claimed) -> float:
        return self.config.smtp_timeout_seconds + row.size / BYTES_PER_SECOND

    def _release(self) -> None:
        """Give back what was not begun; what the sweep took meanwhile is no longer ours and stays as it is."""
        ids = [row.id for row in self.rows]
        self.rows.clear()
        if ids:
            self.drain.persist(lambda: outbox.release(self.drain.engine, self.claim.token, ids), "release")

    def _one(self, row: Claimed) -> bool:
        """One conversation and its record; True when the next may start."""
        began = monotonic()
        if self._has_expired(row):
            expire = lambda: outbox.expire(self.drain.engine, row, self.claim.token, self.config)  # noqa: E731
            return self._after(row, None, self.drain.persist(expire, "expire"), began)
        result = self._converse(row)
        return self._after(row, result, self._record(row, result, monotonic() - began), began)

    def _has_expired(self, row: Claimed) -> bool:
        # The database's clock, never behind: it was read after we asked.
        now = self.claim.now + timedelta(seconds=monotonic() - self.asked)
        return row.expires_at is not None and now >= row.expires_at

    def _converse(self, row: Claimed) -> Result:
        try:
            message = self._message(row)
        except Exception as exc:  # noqa: BLE001 - any exception before the dot is this e-mail's own
            return Result(Outcome.REJECTED, f"cannot be built: {type(exc).__name__}: {exc}")
        if not self._may_start():  # asked last: a renewal or the content may have waited for the database
            return Result(Outcome.CUT, "delivery was paused or interrupted; no conversation was begun")
        # A moment, not a duration: between this look at the clock and the dot, this process may sleep for any time.
        deadline = monotonic() + self._timeout(row)
        if deadline + self.config.smtp_reply_timeout_seconds > self.lease_until or self._has_expired(row):
            return Result(Outcome.CUT, "the database was waited for too long; no conversation was begun")
        self.drain.note.begins(row.id)
        try:
            return self.drain.transport.send(
                message,
                deadline=deadline,
                reply_timeout=self.config.smtp_reply_timeout_seconds,
                passing_dot=self.drain.note.passes_dot,
            )
        except Exception as exc:
            log.exception("transport_raised", extra={"fields": {"email_id": row.email_id}})
            return Result(Outcome.UNCERTAIN, f"the transport failed: {type(exc).__name__}: {exc}")

    def _message(self, row: Claimed) -> Message:
        attachments: Sequence[Attachment] = ()
        read = lambda: outbox.content(self.drain.engine, row.id)  # noqa: E731
        content = row.content or self.drain.persist(read, "read content")
        if row.attachment_count:
            load = lambda: outbox.attachments(self.drain.engine, row.id)  # noqa: E731
            attachments = self.drain.persist(load, "read attachments")
            if len(attachments) != row.attachment_count:  # scrubbed since: the row is no longer ours
                raise LookupError("its attachments are gone")
        other = content.other
        return Message(
            email_id=row.email_id,
            message_id=row.message_id,
            from_address=other.get("from") or self.config.mail_from,
            recipient=row.recipient,
            subject=content.subject,
            body=content.body,
            # The same on every attempt: a provider may compare content under one idempotency key.
            date=max(filter(None, (row.received_at, row.send_at, row.replayed_at))),
            html=content.html,
            reply_to=other.get("reply_to"),
            headers=other.get("headers") or {},
            attachments=attachments,
        )

    def _record(self, row: Claimed, result: Result, seconds: float) -> Recorded:
        def write(words: Result) -> Recorded:
            self.gate_seen = monotonic()  # what it tells of the switch is at least as new
            return outbox.record(
                self.drain.engine, row, self.claim.token, words, self.config, probe=self.claim.probe, seconds=seconds
            )

        try:
            return self.drain.persist(lambda: write(result), "record")
        except Exception as exc:  # noqa: BLE001 - whatever it is, the row must not stay in hand
            # Not away, but refusing these values; the outcome matters more than the server's reply. Of the error only
            # its kind is logged: PostgreSQL's own words quote the whole row.
            fields = {"email_id": row.email_id, "outcome": result.outcome, "error": type(exc).__name__}
            log.error("record_refused", extra={"fields": fields})
            bland = replace(result, text="(the server's reply could not be stored)")
            return self.drain.persist(lambda: write(bland), "record", (Exception,))

    def _after(self, row: Claimed, result: Result | None, recorded: Recorded, began: float) -> bool:
        seconds = monotonic() - began
        log_recorded(row, result, recorded, seconds)
        if not recorded.won:
            return False  # somebody else has decided about this row
        return recorded.go_on and seconds <= SLOW_SECONDS and not self.drain.stopping.is_set()
