"""What was heard of e-mails after they were sent. Older processes run on beside it, and hear nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

Moment = sa.DateTime(timezone=True)
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "reports",
        sa.Column("id", BigId, nullable=False),
        sa.Column("email", BigId, nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=True),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("by_reference", sa.Boolean(), nullable=False),
        sa.Column("settled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("received_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(["email"], ["emails.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email", "digest", name="uq_reports_told"),
    )
    op.create_index("ix_reports_received", "reports", ["received_at"])
    bounced, settled = sa.text("event = 'bounced'"), sa.text("settled")
    op.create_index("ix_reports_bounced", "reports", ["id"], postgresql_where=bounced, sqlite_where=bounced)
    op.create_index("ix_reports_settled", "reports", ["id"], postgresql_where=settled, sqlite_where=settled)
