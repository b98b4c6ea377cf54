"""The server's reply to the final dot, and how long the conversation took. Older processes leave both NULL."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("emails", sa.Column("reply", sa.Text(), nullable=True))
    op.add_column("emails", sa.Column("conversation_seconds", sa.Float(), nullable=True))
