"""The journal. Processes of 0004 and before run on beside it, and write nothing into it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Moment = sa.DateTime(timezone=True)
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "actions",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("filter", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("total", sa.Integer(), nullable=True),
        sa.Column("done", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=8), server_default=sa.text("'done'"), nullable=False),
        sa.Column("rate", sa.Float(), nullable=True),
        sa.Column("next_at", Moment, nullable=True),
        sa.Column("ended_at", Moment, nullable=True),
        sa.CheckConstraint("state IN ('running', 'done', 'stopped')", name="ck_actions_state"),
        sa.CheckConstraint("state <> 'running' OR next_at IS NOT NULL", name="ck_actions_running_is_due"),
        sa.PrimaryKeyConstraint("id"),
    )
    running = sa.text("state = 'running'")
    op.create_index("ix_actions_running", "actions", ["id"], postgresql_where=running, sqlite_where=running)
    op.add_column("dead_letters", sa.Column("action", BigId, nullable=True))
    to_move = sa.text("action IS NOT NULL AND resolved_at IS NULL")
    op.create_index(
        "ix_dead_letters_to_move", "dead_letters", ["action", "id"], postgresql_where=to_move, sqlite_where=to_move
    )
