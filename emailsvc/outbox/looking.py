"""One cheap look at the table: would a claim find something, and if not, when?"""

from __future__ import annotations

from sqlalchemy import Engine, select

from emailsvc.db.due import FIRST_DUE
from emailsvc.db.models import Switch
from emailsvc.db.sqltime import db_now

_LOOK = select(Switch.paused_at, Switch.outage_since, Switch.next_probe_at, db_now(), *FIRST_DUE)


def look(engine: Engine) -> float | None:
    """Seconds until a claim may find something, 0 or less for now; None while nothing waits, or during a pause.

    One read-only statement, without a transaction where it can do without.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        if connection.info.get("pooled") is False:  # PostgreSQL, and no pooler that sets UTC and limits by transaction
            connection.execution_options(isolation_level="AUTOCOMMIT")
        paused_at, outage_since, next_probe_at, now, *first_due = connection.execute(_LOOK).one()
    due = min((moment for moment in first_due if moment is not None), default=None)
    if due is None or paused_at is not None:
        return None
    if outage_since is not None and next_probe_at is not None:
        due = max(due, next_probe_at)
    return float((due - now).total_seconds())
