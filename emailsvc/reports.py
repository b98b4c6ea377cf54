"""Read-only queries: what operators and clients see, and the invariant. Each is one consistent snapshot."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select, tuple_

from emailsvc.clock import isoformat
from emailsvc.db import schema
from emailsvc.db.models import PRIORITIES, Attempt, Counter, DeadLetter, Email, Status, Switch, Worker, has_status
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.errors import InvalidPayload, NotFound
from emailsvc.settings.config import Config

WORKER_SILENT_SECONDS = 60.0
MIN_FREE_BYTES = 2**20
"""A commit may still fit where there is less, because SQLite writes its log over and over; soon none will."""

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A read-only transaction in which all statements see the same state."""
    options: dict[str, Any] = {"read_only": True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        yield connection


def stats(engine: Engine) -> dict[str, Any]:
    with snapshot(engine) as connection:
        return _stats(connection)


def _stats(connection: Connection) -> dict[str, Any]:
    totals = _totals(connection)
    now = connection.execute(select(db_now())).scalar_one()
    oldest = connection.execute(_oldest_due()).scalar_one()
    unresolved = select(func.count(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None))
    return {
        **totals,
        "dead_letters": connection.execute(unresolved).scalar_one(),
        "oldest_pending_seconds": round(max(0.0, (now - oldest).total_seconds()), 3) if oldest else None,
        "delivery": _delivery(connection),
    }


def _totals(connection: Connection) -> dict[str, int]:
    """Counters for closed hours, rows for the hours since: exact at any moment, and flat in the size of the table."""
    rolled_up = connection.execute(select(Switch.rolled_up_to)).scalar_one()
    kinds = connection.execute(select(Counter.kind, func.sum(Counter.value)).group_by(Counter.kind))
    counted = {kind: int(value) for kind, value in kinds}

    def count(statement: Select[int], kind: str) -> int:
        return int(connection.execute(statement).scalar_one()) + counted.get(kind, 0)

    def rows(*condition: Any) -> Select[int]:
        return select(func.count(Email.id)).where(*condition)

    return {
        "received": count(rows(Email.received_at >= rolled_up), "received"),
        "duplicates": counted.get("duplicates", 0),
        "mismatches": counted.get("mismatches", 0),
        "pending": count(rows(has_status(Status.PENDING)), "-"),
        "sending": count(rows(has_status(Status.SENDING)), "-"),
        "sent": count(rows(has_status(Status.SENT), Email.sent_at >= rolled_up), "sent"),
        "failed": count(rows(has_status(Status.FAILED)), "purged_failed"),
        "cancelled": count(rows(has_status(Status.CANCELLED)), "purged_cancelled"),
        "failed_attempts": count(select(func.count(Attempt.id)).where(Attempt.at >= rolled_up), "failed_attempts"),
    }


def _oldest_due() -> Select[datetime | None]:
    return select(func.min(Email.next_attempt_at)).where(has_status(Status.PENDING), Email.next_attempt_at <= db_now())


def _delivery(connection: Connection) -> dict[str, Any]:
    switch = connection.execute(select(Switch)).one()
    if switch.paused_at is not None:
        return {"state": "paused", "since": isoformat(switch.paused_at), "reason": switch.pause_reason}
    if switch.outage_since is not None:
        return {"state": "outage", "since": isoformat(switch.outage_since), "reason": switch.outage_reason}
    return {"state": "running", "since": None, "reason": None}


def delivery_state(engine: Engine) -> dict[str, Any]:
    with snapshot(engine) as connection:
        return _delivery(connection)


def _letter(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "email_id": row.email_id,
        "reason": row.reason,
        "error": row.error,
        "attempts": row.attempts,
        "created_at": isoformat(row.created_at),
        "resolved_at": isoformat(row.resolved_at),
        "resolution": row.resolution,
    }


_LETTERS = select(DeadLetter, Email.email_id).join(Email, Email.id == DeadLetter.email)


def dead_letters(
    engine: Engine,
    *,
    reason: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    resolved: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """One page, newest first, and the cursor of the next (None at the end). Raises InvalidPayload for a bad cursor."""
    place = (DeadLetter.created_at, DeadLetter.id)
    unresolved = DeadLetter.resolved_at.is_(None)
    statement = _LETTERS.where(~unresolved if resolved else unresolved).order_by(place[0].desc(), place[1].desc())
    if reason is not None:
        statement = statement.where(DeadLetter.reason == reason)
    if since is not None:
        statement = statement.where(DeadLetter.created_at >= since)
    if until is not None:
        statement = statement.where(DeadLetter.created_at < until)
    if cursor is not None:
        statement = statement.where(tuple_(*place) < _parse_cursor(cursor))
    with snapshot(engine) as connection:
        rows = connection.execute(statement.limit(limit + 1)).all()
    page = rows[:limit]
    more = f"{(page[-1].created_at - EPOCH) // MICROSECOND}~{page[-1].id}" if len(rows) > limit else None
    return [_letter(row) for row in page], more


def _parse_cursor(cursor: str) -> tuple[datetime, int]:
    """A time in microseconds since 1970 and an id: digits, for in a query a + would come back as a blank."""
    found = re.fullmatch("([0-9]{1,17})~([0-9]{1,18})", cursor)
    if not found:
        raise InvalidPayload("invalid_field", "cursor must be the `next_cursor` of a page.", "cursor")
    return EPOCH + int(found[1]) * MICROSECOND, int(found[2])


def dead_letter(engine: Engine, dead_letter_id: int) -> dict[str, Any]:
    with snapshot(engine) as connection:
        row = connection.execute(_LETTERS.where(DeadLetter.id == dead_letter_id)).first()
    if row is None:
        raise NotFound(f"There is no dead letter {dead_letter_id}.")
    return _letter(row)


_SUMMARY = select(
    Email.id, Email.email_id, Email.status, Email.attempts, Email.duplicates, Email.mismatches, Email.priority,
    Email.message_id, Email.received_at, Email.sent_at, Email.final_at, Email.next_attempt_at, Email.send_at,
    Email.expires_at, Email.last_error, Email.scrubbed_at,
)  # fmt: skip


def _summary(row: Any) -> dict[str, Any]:
    return {
        "email_id": row.email_id,
        "state": row.status,
        "attempts": row.attempts,
        "duplicates": row.duplicates,
        "mismatches": row.mismatches,
        "priority": _PRIORITY_NAMES[row.priority],
        "message_id": row.message_id,
        "received_at": isoformat(row.received_at),
        "sent_at": isoformat(row.sent_at),
        "cancelled_at": isoformat(row.final_at) if row.status == Status.CANCELLED else None,
        "next_attempt_at": isoformat(row.next_attempt_at) if row.status == Status.PENDING else None,
        "send_at": isoformat(row.send_at),
        "expires_at": isoformat(row.expires_at),
        "scrubbed_at": isoformat(row.scrubbed_at),
        "last_error": row.last_error,
    }


def email(engine: Engine, email_id: str) -> dict[str, Any]:
    """One e-mail and its timeline. Raises NotFound."""
    with snapshot(engine) as connection:
        row = connection.execute(_SUMMARY.where(Email.email_id == email_id)).first()
        if row is None:
            raise NotFound(f"There is no e-mail with the id {email_id!r}.")
        return {**_summary(row), "timeline": _timeline(connection, row)}


def _timeline(connection: Connection, row: Any) -> list[dict[str, Any]]:
    events: list[tuple[datetime, dict[str, Any]]] = [(row.received_at, {"event": "received"})]
    for a in connection.execute(select(Attempt).where(Attempt.email == row.id).order_by(Attempt.id)):
        words = {"code": a.code, "enhanced": a.enhanced, "text": a.text, "started_at": isoformat(a.started_at)}
        events.append((a.at, {"event": a.outcome, **words}))
    letters = select(DeadLetter).where(DeadLetter.email == row.id).order_by(DeadLetter.id)
    for letter in connection.execute(letters):
        events.append((letter.created_at, {"event": "dead_lettered", "reason": letter.reason, "error": letter.error}))
        if letter.resolved_at is not None:
            events.append((letter.resolved_at, {"event": letter.resolution, "dead_letter": letter.id}))
    if row.sent_at is not None and not any(event["event"] == "delivered" for _, event in events):
        events.append((row.sent_at, {"event": "sent"}))
    if row.status == Status.CANCELLED:
        events.append((row.final_at, {"event": "cancelled"}))
    return [{"at": isoformat(at), **event} for at, event in sorted(events, key=lambda item: item[0])]


def lookup(engine: Engine, email_ids: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Those that exist, in the order asked for, and the ids that do not."""
    with snapshot(engine) as connection:
        rows = connection.execute(_SUMMARY.where(Email.email_id.in_(set(email_ids))))
        found = {row.email_id: _summary(row) for row in rows}
    wanted = dict.fromkeys(email_ids)
    return [found[i] for i in wanted if i in found], [i for i in wanted if i not in found]


def readiness(engine: Engine, config: Config) -> list[str]:
    """What stands in the way of mail going out, as sentences; empty when ready. Raises the database's errors."""
    if schema.is_older(engine):
        return ["the database schema is older than this code: run `flask db upgrade`"]
    with snapshot(engine) as connection:
        alive = connection.execute(
            select(Worker.id).where(Worker.seen_at > db_in(-WORKER_SILENT_SECONDS)).limit(1)
        ).first()
        oldest = connection.execute(_oldest_due()).scalar_one()
        now = connection.execute(select(db_now())).scalar_one()
    wrong = [] if alive else ["no worker has been alive in the last minute"]
    if disk_is_full(engine):
        wrong.append("the disk of the database is full")
    if oldest is not None and (now - oldest).total_seconds() > config.ready_max_age_seconds:
        wrong.append(f"mail has been due for longer than READY_MAX_AGE_SECONDS ({config.ready_max_age_seconds:g})")
    return wrong


def disk_is_full(engine: Engine) -> bool:
    """Only SQLite's disk can be seen from here."""
    if engine.dialect.name != "sqlite":
        return False
    return shutil.disk_usage(Path(str(engine.url.database)).resolve()).free < MIN_FREE_BYTES


def violations(engine: Engine, config: Config) -> list[str]:
    """The invariant, as sentences about what breaks it; empty when it holds."""
    unresolved = select(DeadLetter.id).where(DeadLetter.email == Email.id, DeadLetter.resolved_at.is_(None)).exists()
    discarded = select(DeadLetter.id).where(DeadLetter.email == Email.id, DeadLetter.resolution == "discarded").exists()
    stuck = (
        Email.lease_expires_at.is_(None),
        Email.claim.is_(None),
        Email.lease_expires_at < db_in(-2 * config.sweep_seconds),
    )
    checks = {
        "pending without a due time": (has_status(Status.PENDING), Email.next_attempt_at.is_(None)),
        "sending without a token, or with a lease older than two sweeps": (
            has_status(Status.SENDING), stuck[0] | stuck[1] | stuck[2],
        ),
        "failed without an unresolved or discarded dead letter": (has_status(Status.FAILED), ~unresolved & ~discarded),
    }  # fmt: skip
    letters = select(func.count(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None))
    alive = letters.join(Email, Email.id == DeadLetter.email).where(Email.status != "failed")
    with snapshot(engine) as connection:
        counts = {
            text: connection.execute(select(func.count(Email.id)).where(*c)).scalar_one() for text, c in checks.items()
        }
        counts["with an unresolved dead letter are not failed"] = connection.execute(alive).scalar_one()
        totals = _totals(connection)
    wrong = [f"{count} e-mails {text}" for text, count in counts.items() if count]
    parts = {name: totals[name] for name in ("pending", "sending", "sent", "failed", "cancelled")}
    if totals["received"] != sum(parts.values()):
        wrong.append(f"received is {totals['received']}, but its parts add up to {sum(parts.values())}: {parts}")
    return wrong
