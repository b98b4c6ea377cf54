"""Time as this process sees it. Leases and due times are decided by the database's clock (see models.py)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import overload

monotonic = time.monotonic

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


def utcnow() -> datetime:
    return datetime.now(UTC)


@overload
def isoformat(moment: datetime) -> str: ...
@overload
def isoformat(moment: None) -> None: ...
def isoformat(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with a ``Z``, as every answer and log line carries it."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
