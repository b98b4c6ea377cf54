"""An operator reads what an e-mail says, and the journal tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from emailsvc.db.models import Email, StoredAttachment
from emailsvc.errors import Conflict, NotFound
from emailsvc.outbox import actions
from emailsvc.outbox.contents import COLUMNS, Content, content_of
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind


@dataclass(frozen=True, slots=True)
class Viewed:
    content: Content
    attachments: list[Mapping[str, Any]]  # filename, content_type and size in bytes, without what is in them


def view(engine: Engine, email_id: str, *, who: str | None = None) -> Viewed:
    """Raises NotFound, or Conflict once the content is gone."""
    return in_transaction(engine, partial(_view, email_id=email_id, who=who))


def _view(connection: Connection, email_id: str, who: str | None) -> Viewed:
    columns = (Email.id, Email.scrubbed_at, Email.erase_requested, *COLUMNS)
    row = connection.execute(select(*columns).where(Email.email_id == email_id)).first()
    if row is None:
        raise NotFound(f"There is no e-mail with the id {email_id!r}.")
    if row.scrubbed_at is not None or row.erase_requested:
        raise Conflict("content_gone", "The content of this e-mail was erased or scrubbed.")
    attached = select(
        StoredAttachment.filename, StoredAttachment.content_type, func.length(StoredAttachment.content).label("size")
    )
    found = connection.execute(attached.where(StoredAttachment.email == row.id).order_by(StoredAttachment.position))
    actions.note(connection, ActionKind.VIEWED, who, asked={"email_id": email_id}, count=1)
    return Viewed(content_of(row), [one._asdict() for one in found])
