"""Which command was refused, and from when refusals count. Processes of 0001 run on beside it and leave both NULL."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("command", sa.String(length=8), nullable=True))
    op.add_column("switch", sa.Column("refusals_from", sa.DateTime(timezone=True), nullable=True))
