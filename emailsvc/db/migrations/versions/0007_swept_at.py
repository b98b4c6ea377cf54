"""When a sweep last came to its end. Sweeps of 0006 and before do not write it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("switch", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
