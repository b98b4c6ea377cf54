"""Sending what an e-mail had absorbed that was not sent itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast

from sqlalchemy import Connection, select

from emailsvc.db.models import Email
from emailsvc.errors import Conflict
from emailsvc.outbox import actions, moves
from emailsvc.outbox.windows import firsts_of
from emailsvc.vocabulary import ActionKind, State


def revive(connection: Connection, row_id: int, email_id: str, who: str | None) -> datetime:
    """Due since when. The caller has its lock, and it was absorbed. Raises Conflict."""
    if not moves.revive(connection, Email.id == row_id):
        raise _why_not(connection, row_id)
    actions.note(connection, ActionKind.MADE_DUE, who, asked={"email_id": email_id}, count=1)
    return cast(datetime, connection.execute(select(Email.next_attempt_at).where(Email.id == row_id)).scalar_one())


def revive_some(connection: Connection, ids: Sequence[int]) -> int:
    """Those that do not match were sent or cancelled by now, or their first one was replayed."""
    return moves.revive(connection, Email.id.in_(ids))


def _why_not(connection: Connection, row_id: int) -> Conflict:
    first = firsts_of(connection, [row_id])[row_id]
    is_gone = connection.execute(select(Email.scrubbed_at).where(Email.id == row_id)).scalar_one() is not None
    if is_gone and first.state is not State.SENT:
        return Conflict("content_gone", "The content of this e-mail was erased or scrubbed; there is nothing to send.")
    why = "was sent" if first.state is State.SENT else f"may still be sent: it is {first.state}"
    return Conflict("absorbed", f"This e-mail is a duplicate of {first.email_id!r}, which {why}.")
