"""Windows of de-duplication. Processes of 0005 and before run on beside it: they open none, and obey none."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ExactString = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "windows",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("email", BigId, nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["email"], ["emails.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_windows_email", "windows", ["email"])
    op.create_index("ix_windows_ends", "windows", ["ends_at"])
    op.add_column("emails", sa.Column("duplicate_of", ExactString, nullable=True))
    absorbed = "duplicate_of IS NOT NULL"
    for name, condition in (("absorbed", absorbed), ("held", f"{absorbed} AND scrubbed_at IS NULL")):
        where = sa.text(condition)
        columns = ["duplicate_of", "id"]
        op.create_index(f"ix_emails_{name}", "emails", columns, postgresql_where=where, sqlite_where=where)
