"""What happened in each hour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import Engine, select

from emailsvc.clock import isoformat
from emailsvc.db.counts import HOUR, hour_of, read_hours
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_now
from emailsvc.reports.answers import Hour, Hours

DEFAULT_HOURS = 24

MAX_DAYS = 31


def hours(engine: Engine, since: datetime | None = None) -> Hours:
    """From the hour of ``since``, and ``MAX_DAYS`` ago at the earliest, to the open one, which is counted up to now, by
    the database's clock.
    """
    with snapshot(engine) as connection:
        last = hour_of(connection.execute(select(db_now())).scalar_one())
        first = last - (DEFAULT_HOURS - 1) * HOUR if since is None else hour_of(since)
        first = max(first, last - timedelta(days=MAX_DAYS))
        tallies = read_hours(connection, first)
    each = [first + number * HOUR for number in range((last - first) // HOUR + 1)]
    return Hours([_answer(hour, tallies.get(hour, {})) for hour in each])


def _answer(hour: datetime, tally: Mapping[str, int]) -> Hour:
    return Hour(
        hour=isoformat(hour),
        received=tally.get("received", 0),
        duplicates=tally.get("duplicates", 0),
        mismatches=tally.get("mismatches", 0),
        sent=tally.get("sent", 0),
        failed=tally.get("given_up", 0),
        cancelled=tally.get("cancelled", 0) - tally.get("absorbed", 0),
        absorbed=tally.get("absorbed", 0),
        failed_attempts=tally.get("failed_attempts", 0),
        delivered=tally.get("told:delivered", 0),
        bounced=tally.get("told:bounced", 0),
        complained=tally.get("told:complained", 0),
    )
