"""Dead letters, one or a page of them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Row, select, tuple_

from emailsvc.clock import EPOCH, MICROSECOND, isoformat
from emailsvc.db.choosing import EVERY, UNRESOLVED, LetterFilter
from emailsvc.db.models import DeadLetter, Email
from emailsvc.db.snapshots import snapshot
from emailsvc.errors import InvalidPayload, NotFound
from emailsvc.reports import answers
from emailsvc.vocabulary import Reason, Resolution

_LETTERS = select(DeadLetter, Email.email_id, Email.recipient, Email.subject).join(Email, Email.id == DeadLetter.email)


def dead_letters(
    engine: Engine,
    chosen: LetterFilter = EVERY,
    *,
    resolved: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> answers.DeadLetterPage:
    """One page, newest first, and the cursor of the next (None at the end). Raises InvalidPayload for a bad cursor."""
    place = (DeadLetter.created_at, DeadLetter.id)
    statement = _LETTERS.where(~UNRESOLVED if resolved else UNRESOLVED, *chosen.conditions())
    statement = statement.order_by(place[0].desc(), place[1].desc())
    if cursor is not None:
        statement = statement.where(tuple_(*place) < _parse_cursor(cursor))
    with snapshot(engine) as connection:
        rows = connection.execute(statement.limit(limit + 1)).all()
    page = rows[:limit]
    more = f"{(page[-1].created_at - EPOCH) // MICROSECOND}~{page[-1].id}" if len(rows) > limit else None
    return answers.DeadLetterPage([_letter(row) for row in page], more)


def _parse_cursor(cursor: str) -> tuple[datetime, int]:
    found = re.fullmatch(answers.CURSOR, cursor)
    if not found:
        raise InvalidPayload("invalid_field", "cursor must be the `next_cursor` of a page.", "cursor")
    return EPOCH + int(found[1]) * MICROSECOND, int(found[2])


def dead_letter(engine: Engine, dead_letter_id: int) -> answers.DeadLetter:
    """Raises NotFound."""
    with snapshot(engine) as connection:
        row = connection.execute(_LETTERS.where(DeadLetter.id == dead_letter_id)).first()
    if row is None:
        raise NotFound(f"There is no dead letter {dead_letter_id}.")
    return _letter(row)


def _letter(row: Row[*tuple[Any, ...]]) -> answers.DeadLetter:
    return answers.DeadLetter(
        id=row.id,
        email_id=row.email_id,
        user=row.recipient,
        subject=row.subject,
        reason=Reason(row.reason),
        error=row.error,
        attempts=row.attempts,
        created_at=isoformat(row.created_at),
        resolved_at=isoformat(row.resolved_at),
        resolution=None if row.resolution is None else Resolution(row.resolution),
    )
