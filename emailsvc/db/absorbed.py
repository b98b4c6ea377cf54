"""E-mails that were absorbed as duplicates, and what became of the first one of each."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, literal_column, or_, select
from sqlalchemy.orm import aliased

from emailsvc.db.models import DeadLetter, Email, status_literal
from emailsvc.vocabulary import Reason, Status

IS_ABSORBED = Email.duplicate_of.is_not(None)

FIRST: Any = aliased(Email, name="first")
"""The row of the e-mail that absorbed another one. It is not purged while it holds the content of one."""

IS_ITS_FIRST = FIRST.email_id == Email.duplicate_of


def ended_unsent(of: Any) -> ColumnElement[bool]:
    """Cancelled, discarded, expired or erased. A dead letter that is open for another reason may be replayed yet."""
    expired = select(DeadLetter.id).where(
        DeadLetter.email == of.id, DeadLetter.resolved_at.is_(None),
        DeadLetter.reason == literal_column(f"'{Reason.EXPIRED}'"),
    )  # fmt: skip
    given_up = and_(of.status == status_literal(Status.FAILED), or_(of.final_at.is_not(None), expired.exists()))
    return or_(of.status == status_literal(Status.CANCELLED), given_up)


IS_FIRST_UNSENT = and_(
    IS_ABSORBED, Email.scrubbed_at.is_(None), select(FIRST.id).where(IS_ITS_FIRST, ended_unsent(FIRST)).exists()
)
"""Nobody got its content, and it can be sent yet."""
