"""When the next e-mail of each priority is due: the head of the index on what waits, however much waits."""

from __future__ import annotations

from sqlalchemy import func, literal_column, select

from emailsvc.db.models import PRIORITIES, Email, has_status
from emailsvc.vocabulary import Status

FIRST_DUE = [
    select(func.min(Email.next_attempt_at))
    .where(has_status(Status.PENDING), Email.priority == literal_column(str(number)))
    .scalar_subquery()
    for number in PRIORITIES.values()
]
