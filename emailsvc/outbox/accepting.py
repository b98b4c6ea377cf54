"""Accepting: one statement on the unique constraint, never look-then-insert."""

from __future__ import annotations

import enum
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, insert, update

from emailsvc.db.models import PRIORITIES, Email, StoredAttachment
from emailsvc.intake import addresses
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox import moves
from emailsvc.outbox.counters import Kind, add_to_counter
from emailsvc.outbox.moves import Kept
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Status


class Verdict(enum.StrEnum):
    """What one webhook was."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    MISMATCH = "mismatch"


_COUNTED_AS: dict[Verdict, Kind] = {Verdict.DUPLICATE: "duplicates", Verdict.MISMATCH: "mismatches"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to one webhook. ``due``: the row waits and its time has come, so a drain should be woken."""

    status: Verdict
    email_id: str
    state: Status
    first_received_at: datetime
    duplicates: int
    due: bool


def _row(email: NewEmail, config: Config) -> dict[str, Any]:
    other = {"from": email.from_address, "reply_to": email.reply_to, "headers": dict(email.headers)}
    domain = config.mail_from.rpartition("@")[2]
    domain = addresses.to_ascii(domain) or domain
    return {
        "email_id": email.email_id,
        "fingerprint": email.fingerprint,
        "recipient": email.user,
        "subject": email.subject,
        "body": email.body,
        "html": email.html,
        "other": {key: value for key, value in other.items() if value},
        "size": email.size,
        "attachment_count": len(email.attachments),
        "message_id": f"<{uuid.uuid4().hex}@{domain}>",
        "priority": PRIORITIES[email.priority],
        "on_uncertain": email.on_uncertain or config.on_uncertain,
        "send_at": email.send_at,
        "not_before": email.send_at,
        "expires_at": email.expires_at,
    }


def _answer(row: Kept, verdict: Verdict, duplicates: int) -> Accepted:
    due = row.status == Status.PENDING and bool(row.due)
    return Accepted(verdict, row.email_id, Status(row.status), row.received_at, duplicates, due)


def _verdict(row: Kept, email: NewEmail) -> Verdict:
    return Verdict.DUPLICATE if row.fingerprint == email.fingerprint else Verdict.MISMATCH


def accept(engine: Engine, email: NewEmail, config: Config) -> Accepted:
    """Store one e-mail, or count it as the duplicate or mismatch of a stored one. Committed when it returns."""
    with engine.begin() as connection:
        (row,) = moves.accept(connection, [_row(email, config)])
        if row.is_new:
            _store_attachments(connection, [(row.id, email)])
            return _answer(row, Verdict.ACCEPTED, 0)
        verdict = _verdict(row, email)
        _count(connection, {verdict: 1})
        return _answer(row, verdict, row.duplicates)


def accept_many(engine: Engine, emails: Sequence[NewEmail], config: Config) -> list[Accepted]:
    """The same for many, in the order given, in a few statements and one transaction.

    Rows are locked in the order of their ids, so two batches never wait for each other in a circle; a circle with a
    worker that holds several of the rows is broken by PostgreSQL and tried again.
    """
    return in_transaction(engine, lambda connection: _accept_many(connection, emails, config)) if emails else []


def _accept_many(connection: Connection, emails: Sequence[NewEmail], config: Config) -> list[Accepted]:
    first: dict[str, NewEmail] = {}
    for email in emails:
        first.setdefault(email.email_id, email)
    ordered = [_row(first[email_id], config) for email_id in sorted(first)]
    rows = {row.email_id: row for row in moves.accept(connection, ordered)}
    _store_attachments(
        connection, [(rows[email.email_id].id, email) for email in first.values() if rows[email.email_id].is_new]
    )
    answers: list[Accepted] = []
    counts: Counter[Verdict] = Counter()
    repeats: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for email in emails:
        row = rows[email.email_id]
        if email is first[email.email_id] and row.is_new:
            answers.append(_answer(row, Verdict.ACCEPTED, 0))
            continue
        verdict = _verdict(row, email)
        counts[verdict] += 1
        if email is not first[email.email_id]:
            repeats[email.email_id][verdict] += 1
        answers.append(_answer(row, verdict, row.duplicates + repeats[email.email_id][Verdict.DUPLICATE]))
    _add_repeats(connection, repeats)
    _count(connection, counts)
    return answers


def _store_attachments(connection: Connection, owners: list[tuple[int, NewEmail]]) -> None:
    rows = [
        {"email": row_id, "position": n, "filename": a.filename, "content_type": a.content_type, "content": a.content}
        for row_id, email in owners
        for n, a in enumerate(email.attachments)
    ]
    if rows:
        connection.execute(insert(StoredAttachment), rows)


_REPEATS = (
    update(Email)
    .where(Email.email_id == bindparam("key"))
    .values(duplicates=Email.duplicates + bindparam("more"), mismatches=Email.mismatches + bindparam("others"))
)


def _add_repeats(connection: Connection, repeats: Mapping[str, Mapping[Verdict, int]]) -> None:
    changed = [
        {"key": key, "more": counts[Verdict.DUPLICATE], "others": counts[Verdict.MISMATCH]}
        for key, counts in sorted(repeats.items())
        if any(counts.values())
    ]
    if changed:
        connection.execute(_REPEATS, changed)


def _count(connection: Connection, counts: Mapping[Verdict, int]) -> None:
    for verdict, value in sorted(counts.items()):
        add_to_counter(connection, _COUNTED_AS[verdict], value)
