"""How far dead letters and totals are rolled up. Processes of 0002 run on beside it: they add up the hours alone."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("letters_rolled_up_to", "totals_up_to"):
        op.add_column("switch", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    resolved = sa.text("resolved_at IS NOT NULL")
    op.create_index(
        "ix_dead_letters_resolved", "dead_letters", ["resolved_at"], postgresql_where=resolved, sqlite_where=resolved
    )
