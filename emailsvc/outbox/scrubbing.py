"""Forgetting: the content of an e-mail, or also the person it went to. Its id, fingerprint and times stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, update

from emailsvc.db.models import Attempt, DeadLetter, Email, StoredAttachment, StoredReport
from emailsvc.db.sqltime import db_now

ERASED = "(erased)"

NO_CONTENT: dict[str, Any] = {"subject": None, "body": None, "html": None, "other": None, "scrubbed_at": db_now()}
_NOBODY = {
    **NO_CONTENT, "recipient": None, "last_error": None, "reply": None, "conversation_seconds": None,
    "final_at": func.coalesce(Email.final_at, db_now()),
}  # fmt: skip


def scrub(connection: Connection, ids: Sequence[int]) -> None:
    """Forget the content."""
    _forget(connection, ids, NO_CONTENT)


def scrub_person(connection: Connection, ids: Sequence[int]) -> None:
    """Forget the content and whatever names the recipient; a server's reply may quote the address."""
    connection.execute(update(Attempt).where(Attempt.email.in_(ids)).values(reply=ERASED, domain=""))
    connection.execute(update(DeadLetter).where(DeadLetter.email.in_(ids)).values(error=ERASED))
    connection.execute(update(StoredReport).where(StoredReport.email.in_(ids)).values(reply=ERASED))
    _forget(connection, ids, _NOBODY)


def _forget(connection: Connection, ids: Sequence[int], values: dict[str, Any]) -> None:
    connection.execute(delete(StoredAttachment).where(StoredAttachment.email.in_(ids)))
    connection.execute(update(Email).where(Email.id.in_(ids)).values(**values))
