"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Moment = sa.DateTime(timezone=True)
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ExactString = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("hour", Moment, nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "kind", "shard"),
    )
    op.create_table(
        "emails",
        sa.Column("id", BigId, nullable=False),
        sa.Column("email_id", ExactString, nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("html", sa.Text(), nullable=True),
        sa.Column("other", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("attachment_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("on_uncertain", sa.String(length=8), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", Moment, nullable=True),
        sa.Column("send_at", Moment, nullable=True),
        sa.Column("expires_at", Moment, nullable=True),
        sa.Column("claim", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", Moment, nullable=True),
        sa.Column("duplicates", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("mismatches", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("maybe_sent", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("erase_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("received_at", Moment, nullable=False),
        sa.Column("sent_at", Moment, nullable=True),
        sa.Column("final_at", Moment, nullable=True),
        sa.Column("scrubbed_at", Moment, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("on_uncertain IN ('hold', 'retry')", name="ck_emails_on_uncertain"),
        sa.CheckConstraint("status <> 'pending' OR next_attempt_at IS NOT NULL", name="ck_emails_pending_is_due"),
        sa.CheckConstraint(
            "status <> 'sending' OR (claim IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="ck_emails_sending_is_claimed",
        ),
        sa.CheckConstraint("status <> 'sent' OR sent_at IS NOT NULL", name="ck_emails_sent_has_time"),
        sa.CheckConstraint("status IN ('pending', 'sending', 'sent', 'failed', 'cancelled')", name="ck_emails_status"),
        sa.CheckConstraint(
            "status NOT IN ('pending', 'sending') OR (recipient IS NOT NULL AND body IS NOT NULL) OR erase_requested",
            name="ck_emails_unsent_has_content",
        ),
        sa.CheckConstraint("attempts >= 0 AND duplicates >= 0 AND mismatches >= 0", name="ck_emails_counts"),
        sa.CheckConstraint("priority IN (0, 1, 2)", name="ck_emails_priority"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email_id", name="uq_emails_email_id"),
    )
    op.create_index(
        "ix_emails_cancelled",
        "emails",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status = 'cancelled'"),
        sqlite_where=sa.text("status = 'cancelled'"),
    )
    op.create_index(
        "ix_emails_deadline",
        "emails",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending' AND expires_at IS NOT NULL"),
        sqlite_where=sa.text("status = 'pending' AND expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_emails_due",
        "emails",
        ["priority", "next_attempt_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
        sqlite_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_emails_failed",
        "emails",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status = 'failed'"),
        sqlite_where=sa.text("status = 'failed'"),
    )
    op.create_index(
        "ix_emails_lease",
        "emails",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'sending'"),
        sqlite_where=sa.text("status = 'sending'"),
    )
    op.create_index("ix_emails_received", "emails", ["received_at"], unique=False)
    op.create_index("ix_emails_recipient", "emails", [sa.text("lower(recipient)")])
    op.create_index(
        "ix_emails_sent",
        "emails",
        ["sent_at"],
        unique=False,
        postgresql_where=sa.text("status = 'sent'"),
        sqlite_where=sa.text("status = 'sent'"),
    )
    op.create_index(
        "ix_emails_to_scrub",
        "emails",
        ["final_at"],
        unique=False,
        postgresql_where=sa.text("final_at IS NOT NULL AND scrubbed_at IS NULL"),
        sqlite_where=sa.text("final_at IS NOT NULL AND scrubbed_at IS NULL"),
    )
    op.create_table(
        "switch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paused_at", Moment, nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("outage_since", Moment, nullable=True),
        sa.Column("outage_reason", sa.Text(), nullable=True),
        sa.Column("next_probe_at", Moment, nullable=True),
        sa.Column("probe_delay", sa.Float(), server_default=sa.text("5"), nullable=False),
        sa.Column("next_slot_at", Moment, nullable=True),
        sa.Column("rolled_up_to", Moment, nullable=False),
        sa.CheckConstraint("id = 1", name="ck_switch_single"),
        sa.CheckConstraint("outage_since IS NULL OR next_probe_at IS NOT NULL", name="ck_switch_outage_probes"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("started_at", Moment, nullable=False),
        sa.Column("seen_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "attachments",
        sa.Column("email", BigId, nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["email"], ["emails.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("email", "position"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", BigId, nullable=False),
        sa.Column("email", BigId, nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("enhanced", sa.String(length=16), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("worker_lost", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("started_at", Moment, nullable=True),
        sa.Column("at", Moment, nullable=False),
        sa.CheckConstraint("outcome IN ('deferred', 'rejected', 'uncertain')", name="ck_attempts_outcome"),
        sa.ForeignKeyConstraint(["email"], ["emails.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_attempts_at", "attempts", ["at"], unique=False)
    op.create_index("ix_attempts_email", "attempts", ["email", "id"], unique=False)
    op.create_table(
        "dead_letters",
        sa.Column("id", BigId, nullable=False),
        sa.Column("email", BigId, nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("resolved_at", Moment, nullable=True),
        sa.Column("resolution", sa.String(length=16), nullable=True),
        sa.CheckConstraint(
            "reason IN ('rejected', 'exhausted', 'expired', 'uncertain', 'unreachable')", name="ck_dead_letters_reason"
        ),
        sa.CheckConstraint("resolution IN ('replayed', 'delivered', 'discarded')", name="ck_dead_letters_resolution"),
        sa.CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="ck_dead_letters_resolved"),
        sa.ForeignKeyConstraint(["email"], ["emails.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_dead_letters_created", "dead_letters", ["created_at", "id"], unique=False)
    op.create_index("ix_dead_letters_email", "dead_letters", ["email"], unique=False)
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("resolved_at IS NULL"),
        sqlite_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(
        "uq_dead_letters_unresolved",
        "dead_letters",
        ["email"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
        sqlite_where=sa.text("resolved_at IS NULL"),
    )
    _begin_with_one_switch_row()
    _vacuum_the_queue_by_count()


def _begin_with_one_switch_row() -> None:
    hour = {"postgresql": "date_trunc('hour', now(), 'UTC')", "sqlite": "strftime('%Y-%m-%d %H:00:00.000000', 'now')"}
    op.execute(f"INSERT INTO switch (id, rolled_up_to) VALUES (1, {hour[op.get_bind().dialect.name]})")  # noqa: S608


def _vacuum_the_queue_by_count() -> None:
    """Each row is updated two or three times soon after it came and then left alone: the default, a fifth of the
    table, would let the dead rows of the whole backlog pile up."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE emails SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, "
            "autovacuum_analyze_scale_factor = 0.02)"
        )
