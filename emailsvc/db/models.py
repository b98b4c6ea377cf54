"""The tables.

Everything is written through ``outbox``; nothing else issues an UPDATE.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Float

from emailsvc.db.columns import BigId, ExactString, one_of, where
from emailsvc.db.extensions import Base
from emailsvc.db.sqltime import UtcDateTime
from emailsvc.vocabulary import ATTEMPT_OUTCOMES, ActionState, OnUncertain, Priority, Reason, Resolution, Status

BECOMES: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.SENDING, Status.FAILED, Status.CANCELLED, Status.SENT}),  # sent: reported
    Status.SENDING: frozenset({Status.SENT, Status.PENDING, Status.FAILED}),  # pending: deferred, or given back
    Status.SENT: frozenset(),
    Status.FAILED: frozenset({Status.PENDING, Status.SENT}),  # replayed; it was delivered, or reported
    Status.CANCELLED: frozenset({Status.PENDING}),  # what was absorbed, and its first one was not sent
}
"""Which status may become which. An accepted e-mail begins as ``pending``; ``outbox.moves`` makes the moves."""


def status_literal(status: Status) -> ColumnElement[str]:
    return literal_column(f"'{status.value}'")


def has_status(status: Status) -> ColumnElement[bool]:
    """With the status as a literal: only then is the partial index of that status used."""
    return Email.status == status_literal(status)


PRIORITIES = {priority: number for number, priority in enumerate(Priority)}


class Email(Base):
    """One row per id: the queue, the de-duplication key and the record of what became of it."""

    __tablename__ = "emails"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    email_id: Mapped[str] = mapped_column(ExactString)
    fingerprint: Mapped[str] = mapped_column(String(64))
    recipient: Mapped[str | None] = mapped_column(Text)  # NULL once erased
    subject: Mapped[str | None] = mapped_column(Text)  # NULL once scrubbed, like body, html and other
    body: Mapped[str | None] = mapped_column(Text)
    html: Mapped[str | None] = mapped_column(Text)
    other: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # from, reply_to, headers
    size: Mapped[int] = mapped_column(Integer)
    attachment_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    message_id: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), server_default=text("'pending'"))
    priority: Mapped[int] = mapped_column(SmallInteger)
    on_uncertain: Mapped[str] = mapped_column(String(8))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    next_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    send_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    claim: Mapped[str | None] = mapped_column(String(32))  # stays after the outcome: it tells a lost commit reply
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duplicates: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    mismatches: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    maybe_sent: Mapped[bool] = mapped_column(server_default=text("false"))  # an attempt was uncertain once
    erase_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    final_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime
    )  # sent, cancelled, discarded: retention counts from it
    scrubbed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error: Mapped[str | None] = mapped_column(Text)
    reply: Mapped[str | None] = mapped_column(Text)  # to the final dot of what was sent; NULL before 0004
    conversation_seconds: Mapped[float | None] = mapped_column(Float)  # of the one it was sent in
    duplicate_of: Mapped[str | None] = mapped_column(ExactString)  # the id of the first one that absorbed it

    __table_args__ = (
        UniqueConstraint("email_id", name="uq_emails_email_id"),
        CheckConstraint(one_of("status", Status), name="ck_emails_status"),
        CheckConstraint("status <> 'pending' OR next_attempt_at IS NOT NULL", name="ck_emails_pending_is_due"),
        CheckConstraint(
            "status <> 'sending' OR (claim IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="ck_emails_sending_is_claimed",
        ),
        CheckConstraint("status <> 'sent' OR sent_at IS NOT NULL", name="ck_emails_sent_has_time"),
        CheckConstraint(one_of("priority", PRIORITIES.values()), name="ck_emails_priority"),
        CheckConstraint(one_of("on_uncertain", OnUncertain), name="ck_emails_on_uncertain"),
        CheckConstraint("attempts >= 0 AND duplicates >= 0 AND mismatches >= 0", name="ck_emails_counts"),
        CheckConstraint(
            "status NOT IN ('pending', 'sending') OR (recipient IS NOT NULL AND body IS NOT NULL) OR erase_requested",
            name="ck_emails_unsent_has_content",
        ),
        # Partial indexes are used only where the SQL has the status as a literal.
        Index("ix_emails_due", "priority", "next_attempt_at", "id", **where("status = 'pending'")),
        Index("ix_emails_lease", "lease_expires_at", **where("status = 'sending'")),
        Index("ix_emails_deadline", "expires_at", **where("status = 'pending' AND expires_at IS NOT NULL")),
        Index("ix_emails_sent", "sent_at", **where("status = 'sent'")),
        Index("ix_emails_failed", "id", **where("status = 'failed'")),
        Index("ix_emails_cancelled", "id", **where("status = 'cancelled'")),
        Index("ix_emails_to_scrub", "final_at", **where("final_at IS NOT NULL AND scrubbed_at IS NULL")),
        Index("ix_emails_received", "received_at"),
        Index("ix_emails_recipient", text("lower(recipient)")),
        Index("ix_emails_absorbed", "duplicate_of", "id", **where("duplicate_of IS NOT NULL")),
        Index("ix_emails_held", "duplicate_of", "id", **where("duplicate_of IS NOT NULL AND scrubbed_at IS NULL")),
    )  # fmt: skip


class StoredAttachment(Base):
    """The large parts, read one e-mail at a time: a claim never carries them."""

    __tablename__ = "attachments"

    email: Mapped[int] = mapped_column(BigId, ForeignKey("emails.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    filename: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Window(Base):
    """Which e-mail came first with a key, and until when others with it are its duplicates.

    It is free before that when its e-mail ended unsent: the row of the e-mail tells, whoever wrote it.
    """

    __tablename__ = "windows"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[int] = mapped_column(BigId, ForeignKey("emails.id", ondelete="CASCADE"))
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_windows_email", "email"), Index("ix_windows_ends", "ends_at"))


class Attempt(Base):
    """Append-only: one row per attempt that did not end in ``sent``."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    email: Mapped[int] = mapped_column(BigId, ForeignKey("emails.id", ondelete="CASCADE"))
    outcome: Mapped[str] = mapped_column(String(16))
    code: Mapped[int | None] = mapped_column(Integer)
    enhanced: Mapped[str | None] = mapped_column(String(16))
    command: Mapped[str | None] = mapped_column(String(8))  # that was answered so; NULL when none was, and before 0002
    reply: Mapped[str] = mapped_column("text", Text)  # the server's, or ours
    domain: Mapped[str] = mapped_column(Text)  # the recipient's: a run of refusals over several domains is an outage
    worker_lost: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (
        CheckConstraint(one_of("outcome", ATTEMPT_OUTCOMES), name="ck_attempts_outcome"),
        Index("ix_attempts_email", "email", "id"),
        Index("ix_attempts_at", "at"),
    )


class DeadLetter(Base):
    """One row per e-mail given up, written in the transaction that made it ``failed``."""

    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    email: Mapped[int] = mapped_column(BigId, ForeignKey("emails.id", ondelete="CASCADE"))
    reason: Mapped[str] = mapped_column(String(16))
    error: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    resolved_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    resolution: Mapped[str | None] = mapped_column(String(16))
    action: Mapped[int | None] = mapped_column(BigId)  # of ``actions``: the bulk action that has or had it to move

    __table_args__ = (
        CheckConstraint(one_of("reason", Reason), name="ck_dead_letters_reason"),
        CheckConstraint(one_of("resolution", Resolution), name="ck_dead_letters_resolution"),
        CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="ck_dead_letters_resolved"),
        Index("uq_dead_letters_unresolved", "email", unique=True, **where("resolved_at IS NULL")),
        Index("ix_dead_letters_email", "email"),
        Index("ix_dead_letters_open", "created_at", "id", **where("resolved_at IS NULL")),
        Index("ix_dead_letters_created", "created_at", "id"),
        Index("ix_dead_letters_resolved", "resolved_at", **where("resolved_at IS NOT NULL")),
        Index("ix_dead_letters_to_move", "action", "id", **where("action IS NOT NULL AND resolved_at IS NULL")),
    )  # fmt: skip


class StoredReport(Base):
    """What was heard of an e-mail, each thing once. It goes with its e-mail."""

    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    email: Mapped[int] = mapped_column(BigId, ForeignKey("emails.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(String(16))  # without a CHECK: another release may know more
    kind: Mapped[str | None] = mapped_column(String(8))
    code: Mapped[str | None] = mapped_column(String(32))
    reply: Mapped[str | None] = mapped_column("text", Text)  # the recipient's server's, or the provider's words
    by_reference: Mapped[bool]  # which only a message that was taken can have told
    settled: Mapped[bool] = mapped_column(server_default=text("false"))  # by it the e-mail became ``sent``
    digest: Mapped[str] = mapped_column(String(32))  # of all that was told
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (
        UniqueConstraint("email", "digest", name="uq_reports_told"),
        Index("ix_reports_received", "received_at"),
        Index("ix_reports_bounced", "id", **where("event = 'bounced'")),
        Index("ix_reports_settled", "id", **where("settled")),
    )


class Action(Base):
    """The journal: a row for each thing that somebody did, or that the service did by itself."""

    __tablename__ = "actions"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(24))  # without a CHECK: another release may know more kinds
    who: Mapped[str | None] = mapped_column(String(64))  # NULL: the service itself
    why: Mapped[str | None] = mapped_column(Text)
    filter: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # what it was asked to be done to
    total: Mapped[int | None] = mapped_column(Integer)  # how many that was when it began
    done: Mapped[int | None] = mapped_column(Integer)  # of these, so far
    state: Mapped[str] = mapped_column(String(8), server_default=text("'done'"))
    rate: Mapped[float | None] = mapped_column(Float)  # a second
    next_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # when the next one is due
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # of what was ``running`` for a time

    __table_args__ = (
        CheckConstraint(one_of("state", ActionState), name="ck_actions_state"),
        CheckConstraint("state <> 'running' OR next_at IS NOT NULL", name="ck_actions_running_is_due"),
        Index("ix_actions_running", "id", **where("state = 'running'")),
    )  # fmt: skip


class Counter(Base):
    """Totals by hour and kind. ``shard`` spreads the rows that concurrent transactions add to."""

    __tablename__ = "counters"

    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    kind: Mapped[str] = mapped_column(String(24), primary_key=True)
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class Switch(Base):
    """One row: what every claim reads first. Pause and outage are independent."""

    __tablename__ = "switch"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pause_reason: Mapped[str | None] = mapped_column(Text)
    outage_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outage_reason: Mapped[str | None] = mapped_column(Text)
    next_probe_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    probe_delay: Mapped[float] = mapped_column(Float, server_default=text("5"))  # seconds
    refusals_from: Mapped[datetime | None] = mapped_column(UtcDateTime)  # those before it count no more: ended by hand
    next_slot_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # GCRA: when the next mail may start
    rolled_up_to: Mapped[datetime] = mapped_column(UtcDateTime)  # what was before it is in the counters
    letters_rolled_up_to: Mapped[datetime | None] = mapped_column(UtcDateTime)  # the same for dead letters
    totals_up_to: Mapped[datetime | None] = mapped_column(UtcDateTime)  # counters of hours before it are summed up
    swept_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # when a sweep last came to its end

    __table_args__ = (
        CheckConstraint("id = 1", name="ck_switch_single"),
        CheckConstraint("outage_since IS NULL OR next_probe_at IS NOT NULL", name="ck_switch_outage_probes"),
    )


class Worker(Base):
    """Heartbeat per worker process."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
