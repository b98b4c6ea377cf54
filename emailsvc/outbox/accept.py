"""Accepting: one statement on the unique constraint, never look-then-insert."""

from __future__ import annotations

import secrets
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, case, func, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from emailsvc.db.models import PRIORITIES, Counter, Email, Status, StoredAttachment
from emailsvc.db.sqltime import UtcDateTime, db_now
from emailsvc.intake import addresses
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config

COUNTER_SHARDS = 16
_NOT_BEFORE = bindparam("not_before", type_=UtcDateTime())


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to one webhook. ``due``: the row waits and its time has come, so a drain should be woken."""

    status: str  # "accepted", "duplicate" or "mismatch"
    email_id: str
    state: str
    first_received_at: datetime
    duplicates: int
    due: bool


def _upsert(dialect: Any) -> Any:
    statement = dialect.insert(Email).values(
        next_attempt_at=case((db_now() < _NOT_BEFORE, _NOT_BEFORE), else_=db_now()), received_at=db_now()
    )
    same = case((Email.fingerprint == statement.excluded.fingerprint, 1), else_=0)
    return statement.on_conflict_do_update(
        index_elements=[Email.email_id],
        set_={"duplicates": Email.duplicates + same, "mismatches": Email.mismatches + 1 - same},
    ).returning(
        Email.id, Email.email_id, Email.fingerprint, Email.status, Email.duplicates, Email.mismatches,
        Email.received_at, (Email.next_attempt_at <= db_now()).label("due"),
    )  # fmt: skip


_UPSERT = {"postgresql": _upsert(postgresql), "sqlite": _upsert(sqlite)}


def _row(email: NewEmail, config: Config) -> dict[str, Any]:
    other = {"from": email.sender, "reply_to": email.reply_to, "headers": dict(email.headers)}
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


def _is_new(row: Any) -> bool:
    # A conflict raises one of the two, so both at zero means that this statement inserted the row.
    return bool(row.duplicates == 0 and row.mismatches == 0)


def _answer(row: Any, status: str, duplicates: int) -> Accepted:
    due = row.status == Status.PENDING and bool(row.due)
    return Accepted(status, row.email_id, row.status, row.received_at, duplicates, due)


def accept(engine: Engine, email: NewEmail, config: Config) -> Accepted:
    """Store one e-mail, or count it as the duplicate or mismatch of a stored one. Committed when it returns."""
    with engine.begin() as connection:
        row = connection.execute(_UPSERT[engine.dialect.name], _row(email, config)).one()
        if _is_new(row):
            if email.attachments:
                _store_attachments(connection, [(row.id, email)])
            return _answer(row, "accepted", 0)
        status = "duplicate" if row.fingerprint == email.fingerprint else "mismatch"
        _count(connection, {status: 1})
        return _answer(row, status, row.duplicates)


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
    rows = {row.email_id: row for row in connection.execute(_UPSERT[connection.dialect.name], ordered)}
    _store_attachments(
        connection, [(rows[e.email_id].id, e) for e in first.values() if e.attachments and _is_new(rows[e.email_id])]
    )
    answers: list[Accepted] = []
    counts: dict[str, int] = {}
    repeats: dict[str, dict[str, int]] = defaultdict(lambda: {"duplicate": 0, "mismatch": 0})
    for email in emails:
        row = rows[email.email_id]
        if email is first[email.email_id] and _is_new(row):
            answers.append(_answer(row, "accepted", 0))
            continue
        status = "duplicate" if row.fingerprint == email.fingerprint else "mismatch"
        counts[status] = counts.get(status, 0) + 1
        if email is not first[email.email_id]:
            repeats[email.email_id][status] += 1
        answers.append(_answer(row, status, row.duplicates + repeats[email.email_id]["duplicate"]))
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


def _add_repeats(connection: Connection, repeats: dict[str, dict[str, int]]) -> None:
    changed = [{"key": key, **counts} for key, counts in sorted(repeats.items()) if any(counts.values())]
    if changed:
        connection.execute(
            update(Email)
            .where(Email.email_id == bindparam("key"))
            .values(
                duplicates=Email.duplicates + bindparam("duplicate"),
                mismatches=Email.mismatches + bindparam("mismatch"),
            ),
            changed,
        )


def _add(dialect: Any) -> Any:
    statement = dialect.insert(Counter)
    return statement.on_conflict_do_update(
        index_elements=[Counter.hour, Counter.kind, Counter.shard],
        set_={"value": Counter.value + statement.excluded.value},
    )


_ADD = {"postgresql": _add(postgresql), "sqlite": _add(sqlite)}


def add_to_counter(connection: Connection, kind: str, value: int, hour: Any) -> None:
    """Last in its transaction: a counter row is shared by many, so it is locked for as short as can be."""
    connection.execute(
        _ADD[connection.dialect.name].values(hour=hour, kind=kind, shard=secrets.randbelow(COUNTER_SHARDS), value=value)
    )


def this_hour(connection: Connection) -> Any:
    if connection.dialect.name == "postgresql":
        return func.date_trunc("hour", db_now(), "UTC")
    return func.strftime("%Y-%m-%d %H:00:00.000000", "now")


def _count(connection: Connection, counts: dict[str, int]) -> None:
    plural = {"duplicate": "duplicates", "mismatch": "mismatches"}
    for status, value in sorted(counts.items()):
        add_to_counter(connection, plural[status], value, this_hour(connection))
