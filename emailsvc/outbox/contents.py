"""The content of an e-mail in hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, case, literal_column, select

from emailsvc.db.models import Email, StoredAttachment
from emailsvc.mail import Attachment

CARRIED_BYTES = 64 * 1024
"""A claim carries the content of e-mails up to this size. What is larger is read by ``content`` just before its
conversation, so that a thread holds one large e-mail and not a batch of them.
"""


@dataclass(frozen=True, slots=True)
class Content:
    subject: str
    body: str
    html: str | None
    other: Mapping[str, Any] = field(default_factory=dict)  # from, reply_to, headers; what was given


COLUMNS = (Email.subject, Email.body, Email.html, Email.other)
_IS_CARRIED = Email.size <= literal_column(str(CARRIED_BYTES))
CARRIED = tuple(case((_IS_CARRIED, column)).label(column.key) for column in COLUMNS)


def content_of(row: Any) -> Content:
    return Content(row.subject, row.body, row.html, row.other or {})


def content(engine: Engine, row_id: int) -> Content:
    """Of one e-mail in hand that is too large for its claim to carry."""
    with engine.connect().execution_options(read_only=True) as connection:
        return content_of(connection.execute(select(*COLUMNS).where(Email.id == row_id)).one())


def attachments(engine: Engine, row_id: int) -> list[Attachment]:
    """Of one e-mail in hand, in their order."""
    columns = (StoredAttachment.filename, StoredAttachment.content_type, StoredAttachment.content)
    statement = select(*columns).where(StoredAttachment.email == row_id).order_by(StoredAttachment.position)
    with engine.connect().execution_options(read_only=True) as connection:
        return [Attachment(*row) for row in connection.execute(statement)]
