"""What is heard of e-mails after the mail server took them."""

from __future__ import annotations

import hashlib
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, select
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.counts import Kind
from emailsvc.db.models import Email, StoredReport
from emailsvc.db.sqltime import db_now
from emailsvc.feedback.events import Event
from emailsvc.feedback.reference import Reference, fits, read_reference
from emailsvc.outbox.counters import add_to_counter
from emailsvc.outbox.scrubbing import ERASED
from emailsvc.outbox.settling import settle
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import Report

CHUNK = 200
"""Reports in a transaction: their e-mails are locked until its end, and workers wait."""

CLOCKS = timedelta(days=1)
"""By which others' clocks may be wrong. What happened before the e-mail was accepted, or is yet to, is not about it."""

Found = Row[*tuple[Any, ...]]
_KEPT = frozenset(Report)
_COUNTED: dict[str, Kind] = {
    Report.DELIVERED: "told:delivered", Report.BOUNCED: "told:bounced", Report.COMPLAINED: "told:complained",
}  # fmt: skip


@dataclass(slots=True)
class Heard:
    """What became of events. ``noted``: with the ``email_id`` of each; ``settled``: e-mails that became ``sent``."""

    noted: list[tuple[str, Event]] = field(default_factory=list)
    repeated: int = 0
    unmatched: int = 0
    ignored: int = 0
    settled: list[str] = field(default_factory=list)


def hear(engine: Engine, events: Iterable[Event]) -> Heard:
    """Store reports, each once, and make ``sent`` what they prove to have been taken. In any order, early or late.

    Committed bit by bit: after an error the same events may be told again. Raises the database's errors.
    """
    heard = Heard()
    known = []
    for event in events:
        if event.event in _KEPT:
            known.append(event)
        else:
            heard.ignored += 1
    for start in range(0, len(known), CHUNK):
        done = in_transaction(engine, partial(_hear, events=known[start : start + CHUNK]))
        heard.noted += done.noted
        heard.repeated += done.repeated
        heard.unmatched += done.unmatched
        heard.settled += done.settled
    return heard


def _hear(connection: Connection, events: Sequence[Event]) -> Heard:
    addressed = _addressed(connection, events)
    rows = _lock(connection, {row_id for _, _, row_id in addressed})
    matched = [
        (event, rows[row_id], reference is not None)
        for event, reference, row_id in addressed
        if row_id in rows and _is_of(event, reference, rows[row_id])
    ]
    heard = Heard(unmatched=len(events) - len(matched))
    before = _told_before(connection, rows)
    told = {(row.id, _digest(event, by_reference)): (row, event) for event, row, by_reference in matched}
    new = _store(connection, matched)
    heard.noted = [(row.email_id, event) for key, (row, event) in told.items() if key in new]
    heard.repeated = len(matched) - len(heard.noted)
    heard.settled = settle(connection, sorted({row.id for _, row, _ in matched}))
    firsts = {(row.id, event.event) for key, (row, event) in told.items() if key in new} - before
    _count(connection, firsts, heard.unmatched)
    return heard


def _addressed(connection: Connection, events: Sequence[Event]) -> list[tuple[Event, Reference | None, int]]:
    """Events with the id of the row that they say they are about. A reference counts more than an ``email_id``."""
    names = {event.email_id for event in events if event.reference is None and event.email_id is not None}
    by_name: dict[str | None, int] = {}
    if names:
        found = connection.execute(select(Email.email_id, Email.id).where(Email.email_id.in_(names)))
        by_name = {row.email_id: row.id for row in found}
    return list(_with_row_ids(events, by_name))


def _with_row_ids(
    events: Sequence[Event], by_name: dict[str | None, int]
) -> Iterator[tuple[Event, Reference | None, int]]:
    for event in events:
        if event.reference is None:
            if event.email_id in by_name:
                yield event, None, by_name[event.email_id]
        elif (reference := read_reference(event.reference)) is not None:
            yield event, reference, reference.row_id


def _lock(connection: Connection, ids: set[int]) -> dict[int, Found]:
    """In the order in which others lock several rows. ``FOR NO KEY UPDATE``: an attempt may be noted beside it."""
    columns = (Email.id, Email.email_id, Email.message_id, Email.received_at, Email.recipient.is_(None).label("erased"))
    locked = select(*columns, db_now().label("now")).where(Email.id.in_(ids)).order_by(Email.email_id)
    return {row.id: row for row in connection.execute(locked.with_for_update(key_share=True))} if ids else {}


def _is_of(event: Event, reference: Reference | None, row: Found) -> bool:
    if reference is not None and not fits(reference, row.id, row.message_id):
        return False
    return event.at is None or row.received_at - CLOCKS <= event.at <= row.now + CLOCKS


def _told_before(connection: Connection, ids: Iterable[int]) -> set[tuple[int, str]]:
    told = select(StoredReport.email, StoredReport.event).where(StoredReport.email.in_(list(ids))).distinct()
    return {(row.email, row.event) for row in connection.execute(told)}


_INSERT = {
    name: insert(StoredReport)
    .on_conflict_do_nothing(index_elements=[StoredReport.email, StoredReport.digest])
    .returning(StoredReport.email, StoredReport.digest)
    for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}


def _store(connection: Connection, matched: Sequence[tuple[Event, Found, bool]]) -> set[tuple[int, str]]:
    values = [_values(event, row, by_reference) for event, row, by_reference in matched]
    if not values:
        return set()
    return {(row.email, row.digest) for row in connection.execute(_INSERT[connection.dialect.name], values)}


def _values(event: Event, row: Found, by_reference: bool) -> dict[str, object]:
    now: datetime = row.now
    return {
        "email": row.id, "event": event.event, "kind": event.kind and event.kind.value, "code": event.code,
        "text": ERASED if row.erased else event.text, "by_reference": by_reference,
        "digest": _digest(event, by_reference), "at": event.at or now, "received_at": now,
    }  # fmt: skip


def _digest(event: Event, by_reference: bool) -> str:
    told = (event.event, event.at, event.kind, event.code, event.text, by_reference)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]


def _count(connection: Connection, firsts: set[tuple[int, str]], unmatched: int) -> None:
    """E-mails, not reports: one that is delivered and later complained of counts once in each."""
    counts = Tally(_COUNTED[event] for _, event in firsts if event in _COUNTED)
    if unmatched:
        counts["told:unmatched"] = unmatched
    for kind, value in sorted(counts.items()):
        add_to_counter(connection, kind, value)
