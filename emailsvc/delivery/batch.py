"""The rows of one claim, one conversation at a time, in id order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from emailsvc import outbox
from emailsvc.clock import monotonic
from emailsvc.delivery.lines import log_recorded
from emailsvc.delivery.messages import message_of
from emailsvc.delivery.persisting import persist
from emailsvc.mail import Attachment, Message, Outcome, Result
from emailsvc.outbox import Claim, Claimed, Recorded

if TYPE_CHECKING:
    from emailsvc.delivery.drain import Drain

log = logging.getLogger("emailsvc.delivery")

SLOW_SECONDS = 5.0
"""After a conversation that took longer, the untouched rest of the batch is released for others."""

BYTES_PER_SECOND = 64 * 1024
"""What a mail server is expected to take at least; a large e-mail gets that much more time."""

READ_SECONDS = 2.0
"""What the lease must cover beside the conversation when content is read first. Were it nothing, an e-mail that only
just fits would be read and given back again and again.
"""


class Batch:
    def __init__(self, drain: Drain, claim: Claim, asked: float) -> None:
        self.drain, self.claim = drain, claim
        self.engine, self.config = drain.engine, drain.config
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
        if not persist(lambda: outbox.may_start(self.engine, probe=self.claim.probe), "look at the switch"):
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
        if not persist(lambda: outbox.renew(self.engine, self.claim.token, row.id, seconds), "renew"):
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
            persist(lambda: outbox.release(self.engine, self.claim.token, self.config, ids), "release")

    def _one(self, row: Claimed) -> bool:
        """One conversation and its record; True when the next may start."""
        began = monotonic()
        if self._has_expired(row):
            expire = lambda: outbox.expire(self.engine, row, self.claim.token, self.config)  # noqa: E731
            return self._after(row, None, persist(expire, "expire"), began)
        if row.doubted and (settled := self._settled(row)) is not None:
            return self._after(row, None, settled, began)
        result = self._converse(row)
        return self._after(row, result, self._record(row, result, monotonic() - began), began)

    def _settled(self, row: Claimed) -> Recorded | None:
        look = lambda: outbox.settle_in_hand(self.engine, row, self.claim.token, self.config)  # noqa: E731
        return persist(look, "look for reports")

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
        content = row.content or persist(lambda: outbox.content(self.engine, row.id), "read content")
        if row.attachment_count:
            attachments = persist(lambda: outbox.attachments(self.engine, row.id), "read attachments")
            if len(attachments) != row.attachment_count:  # scrubbed since: the row is no longer ours
                raise LookupError("its attachments are gone")
        return message_of(row, content, attachments, self.config)

    def _record(self, row: Claimed, result: Result, seconds: float) -> Recorded:
        def write(result: Result) -> Recorded:
            if result.outcome is Outcome.SENT and not self.claim.probe:
                shared = self.drain.sent_together.record(row, self.claim.token, result.reply, seconds)
                if shared is not None:
                    recorded, self.gate_seen = shared
                    return recorded
            self.gate_seen = monotonic()  # what it tells of the switch is at least as new
            return outbox.record(
                self.engine, row, self.claim.token, result, self.config, probe=self.claim.probe, seconds=seconds
            )

        try:
            return persist(lambda: write(result), "record")
        except Exception as exc:  # noqa: BLE001 - whatever it is, the row must not stay in hand
            # Not away, but refusing these values; the outcome matters more than the server's reply. Of the error only
            # its kind is logged: PostgreSQL's own words quote the whole row.
            fields = {"email_id": row.email_id, "outcome": result.outcome, "error": type(exc).__name__}
            log.error("record_refused", extra={"fields": fields})
            bland = replace(result, reply="(the server's reply could not be stored)")
            return persist(lambda: write(bland), "record", (Exception,))

    def _after(self, row: Claimed, result: Result | None, recorded: Recorded, began: float) -> bool:
        seconds = monotonic() - began
        log_recorded(row, result, recorded, seconds)
        if not recorded.won:
            return False  # somebody else has decided about this row
        return recorded.go_on and seconds <= SLOW_SECONDS and not self.drain.stopping.is_set()
