"""What became of an e-mail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict
from sqlalchemy import Connection, Engine, Row, func, select

from emailsvc.clock import isoformat
from emailsvc.db.models import PRIORITIES, Attempt, DeadLetter, Email, StoredReport
from emailsvc.db.snapshots import snapshot
from emailsvc.errors import NotFound
from emailsvc.reports.answers import EmailAnswer, EmailSummary, Event, LookupAnswer
from emailsvc.vocabulary import EventName, Reason, State, Status

_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}

SUMMARY = select(
    Email.id, Email.email_id, Email.recipient, Email.subject, Email.status, Email.attempts, Email.duplicates,
    Email.mismatches, Email.priority, Email.message_id, Email.received_at, Email.sent_at, Email.final_at,
    Email.next_attempt_at, Email.send_at, Email.expires_at, Email.last_error, Email.scrubbed_at, Email.duplicate_of,
)  # fmt: skip


def email(engine: Engine, email_id: str) -> EmailAnswer:
    """One e-mail and its timeline. Raises NotFound."""
    with snapshot(engine) as connection:
        row = connection.execute(SUMMARY.where(Email.email_id == email_id)).first()
        if row is None:
            raise NotFound(f"There is no e-mail with the id {email_id!r}.")
        absorbed = select(func.count()).where(Email.duplicate_of == email_id)
        return EmailAnswer(
            **asdict(summary(row)),
            absorbed=connection.execute(absorbed).scalar_one(),
            first_state=_state_of(connection, row.duplicate_of),
            timeline=_timeline(connection, row),
        )


def _state_of(connection: Connection, email_id: str | None) -> State | None:
    if email_id is None:
        return None
    found = connection.execute(select(Email.status, Email.duplicate_of).where(Email.email_id == email_id)).first()
    return found and State.of(*found)


def lookup(engine: Engine, email_ids: Sequence[str]) -> LookupAnswer:
    """Those that exist, in the order asked for, and the ids that do not."""
    with snapshot(engine) as connection:
        rows = connection.execute(SUMMARY.where(Email.email_id.in_(set(email_ids))))
        found = {row.email_id: summary(row) for row in rows}
    wanted = dict.fromkeys(email_ids)
    return LookupAnswer([found[i] for i in wanted if i in found], [i for i in wanted if i not in found])


def summary(row: Row[*tuple[Any, ...]]) -> EmailSummary:
    state = State.of(row.status, row.duplicate_of)
    return EmailSummary(
        email_id=row.email_id,
        user=row.recipient,
        subject=row.subject,
        state=state,
        attempts=row.attempts,
        duplicates=row.duplicates,
        mismatches=row.mismatches,
        priority=_PRIORITY_NAMES[row.priority],
        message_id=row.message_id,
        received_at=isoformat(row.received_at),
        sent_at=isoformat(row.sent_at),
        cancelled_at=isoformat(row.final_at) if state is State.CANCELLED else None,
        next_attempt_at=isoformat(row.next_attempt_at) if row.status == Status.PENDING else None,
        send_at=isoformat(row.send_at),
        expires_at=isoformat(row.expires_at),
        scrubbed_at=isoformat(row.scrubbed_at),
        last_error=row.last_error,
        duplicate_of=row.duplicate_of,
    )


def _timeline(connection: Connection, row: Row[*tuple[Any, ...]]) -> list[Event]:
    events = [(row.received_at, Event(isoformat(row.received_at), EventName.RECEIVED))]
    events += _attempts(connection, row.id)
    events += _letters(connection, row.id)
    if row.sent_at is not None and not any(event.event is EventName.DELIVERED for _, event in events):
        events.append((row.sent_at, _sent(connection, row)))
    events += _reported(connection, row.id)
    if row.status == Status.CANCELLED:
        name = EventName.CANCELLED if row.duplicate_of is None else EventName.ABSORBED
        events.append((row.final_at, Event(isoformat(row.final_at), name)))
    return [event for _, event in sorted(events, key=itemgetter(0))]


def _sent(connection: Connection, row: Row[*tuple[Any, ...]]) -> Event:
    told = connection.execute(select(Email.reply, Email.conversation_seconds).where(Email.id == row.id)).one()
    event = Event(isoformat(row.sent_at), EventName.SENT)
    if told.reply is not None:
        event.text, event.seconds = told.reply, round(told.conversation_seconds, 3)
    return event


def _attempts(connection: Connection, key: int) -> Iterator[tuple[datetime, Event]]:
    for attempt in connection.execute(select(Attempt).where(Attempt.email == key).order_by(Attempt.id)):
        yield (
            attempt.at,
            Event(
                isoformat(attempt.at),
                EventName(attempt.outcome),
                code=attempt.code,
                enhanced=attempt.enhanced,
                text=attempt.text,
                started_at=isoformat(attempt.started_at),
            ),
        )


def _reported(connection: Connection, key: int) -> Iterator[tuple[datetime, Event]]:
    """What came back, at the time that it tells."""
    for told in connection.execute(select(StoredReport).where(StoredReport.email == key).order_by(StoredReport.id)):
        event = Event(isoformat(told.at), EventName.REPORTED, report=told.event)
        event.code, event.enhanced = _codes(told.code)
        if told.kind is not None:
            event.kind = told.kind
        if told.text is not None:
            event.text = told.text
        if told.settled:
            event.settled = True
        yield told.at, event


def _codes(text: str | None) -> tuple[int | UnsetType, str | UnsetType]:
    """Of a server's reply, the enhanced one of RFC 3463 or both."""
    reply, enhanced = (re.search(shape, text or "") for shape in (r"\b[245]\d\d\b(?!\.)", r"\b[245]\.\d+\.\d+\b"))
    return int(reply[0]) if reply else UNSET, enhanced[0] if enhanced else UNSET


def _letters(connection: Connection, key: int) -> Iterator[tuple[datetime, Event]]:
    """That it was given up, and what was decided then."""
    for letter in connection.execute(select(DeadLetter).where(DeadLetter.email == key).order_by(DeadLetter.id)):
        at = letter.created_at
        given_up = Event(isoformat(at), EventName.DEAD_LETTERED, reason=Reason(letter.reason), error=letter.error)
        given_up.dead_letter = letter.id
        yield at, given_up
        if letter.resolved_at is not None:
            at = letter.resolved_at
            yield at, Event(isoformat(at), EventName(letter.resolution), dead_letter=letter.id)
