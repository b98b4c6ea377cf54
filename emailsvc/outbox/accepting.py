"""Accepting: one statement on the unique constraint, never look-then-insert."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert

from emailsvc.db.groupcommit import LOCK_MILLISECONDS, GroupCommit
from emailsvc.db.models import PRIORITIES, StoredAttachment
from emailsvc.db.promptness import seconds_left
from emailsvc.intake import addresses
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox import moves
from emailsvc.outbox.moves import Kept
from emailsvc.outbox.transaction import in_transaction
from emailsvc.outbox.windows import First
from emailsvc.settings.config import Config
from emailsvc.vocabulary import State, Status

MAX_SHARED_BYTES = 256 * 1024
"""A larger e-mail shares its commit with no other: it would hold the others up."""

_Round = dict[str, list[int]]
"""For one statement, in which an id stands once: the numbers of the e-mails that have it, all with the same content."""


class Verdict(enum.StrEnum):
    """What one webhook was."""

    ACCEPTED = "accepted"
    ABSORBED = "absorbed"  # a duplicate of another id
    DUPLICATE = "duplicate"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to one webhook. ``due``: the row waits and its time has come, so a drain should be woken.

    ``first``: whose duplicate it is or, while windows are only observed, would be.
    """

    status: Verdict
    email_id: str
    state: State
    first_received_at: datetime
    duplicates: int
    due: bool
    first: First | None = None
    same_content: bool | None = None  # as the first one's; None when that is purged


def _row(email: NewEmail, more: int, config: Config) -> dict[str, Any]:
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
        "expires_at": email.expires_at,
        "duplicates": more,
    }


def accept(engine: Engine, email: NewEmail, config: Config) -> Accepted:
    """Store one e-mail, or count it as the duplicate or mismatch of a stored one. Committed when it returns."""
    return accept_many(engine, [email], config)[0]


def accept_many(
    engine: Engine, emails: Sequence[NewEmail], config: Config, lock_milliseconds: int | None = None
) -> list[Accepted]:
    """The same for many, in the order given, in one transaction.

    A circle of waits with a worker that holds several of the rows is broken by PostgreSQL and tried again. There a row
    is waited for no longer than ``lock_milliseconds``, if given.
    """
    rounds = _rounds(emails)

    def work(connection: Connection) -> list[Accepted]:
        answers: dict[int, Accepted] = {}
        for given in rounds:
            answers.update(_accept_round(connection, emails, given, config, lock_milliseconds))
        return [answers[number] for number in range(len(emails))]

    simple = len(rounds) == 1 and not any(email.attachments or email.window for email in emails)
    return in_transaction(engine, work, one_statement=simple) if emails else []


def _rounds(emails: Sequence[NewEmail]) -> list[_Round]:
    rounds: list[_Round] = []
    for number, email in enumerate(emails):
        known = (one[email.email_id] for one in rounds if email.email_id in one)
        alike = next((numbers for numbers in known if emails[numbers[0]].fingerprint == email.fingerprint), None)
        if alike is not None:
            alike.append(number)
            continue
        free = next((one for one in rounds if email.email_id not in one), None)
        if free is None:
            rounds.append(free := {})
        free[email.email_id] = [number]
    return rounds


def _accept_round(
    connection: Connection, emails: Sequence[NewEmail], given: _Round, config: Config, lock_milliseconds: int | None
) -> Iterator[tuple[int, Accepted]]:
    firsts = {email_id: emails[numbers[0]] for email_id, numbers in given.items()}
    rows = [_row(email, len(given[email_id]) - 1, config) for email_id, email in firsts.items()]
    windows = {email_id: email.window for email_id, email in firsts.items() if email.window is not None}
    observe = config.dedupe_mode == "observe"
    kept = moves.accept(connection, rows, lock_milliseconds, windows or None, observe=observe)
    _store_attachments(connection, [(row.id, firsts[row.email_id]) for row in kept if row.is_new and row.has_content])
    for row in kept:
        for place, number in enumerate(given[row.email_id]):
            yield number, _answer(row, emails[number], place)


def _answer(row: Kept, email: NewEmail, place: int) -> Accepted:
    """``place``: how many like it were given before."""
    absorbed = row.first is not None and row.status == Status.CANCELLED
    due = row.status == Status.PENDING and bool(row.due)
    if row.is_new and place == 0:
        verdict, duplicates = Verdict.ABSORBED if absorbed else Verdict.ACCEPTED, 0
    elif row.fingerprint == email.fingerprint:
        verdict, duplicates = Verdict.DUPLICATE, row.duplicates - row.more + place
    else:
        verdict, duplicates = Verdict.MISMATCH, row.duplicates
    state = State.ABSORBED if absorbed else State(row.status)
    accepted = Accepted(verdict, row.email_id, state, row.received_at, duplicates, due)
    return accepted if row.first is None else _as_duplicate_of(row.first, accepted, row.fingerprint)


def _as_duplicate_of(first: First, accepted: Accepted, fingerprint: str) -> Accepted:
    same = None if first.fingerprint is None else first.fingerprint == fingerprint
    received_at = first.received_at or accepted.first_received_at
    return replace(accepted, first=first, first_received_at=received_at, same_content=same)


def _store_attachments(connection: Connection, owners: list[tuple[int, NewEmail]]) -> None:
    rows = [
        {"email": row_id, "position": n, "filename": a.filename, "content_type": a.content_type, "content": a.content}
        for row_id, email in owners
        for n, a in enumerate(email.attachments)
    ]
    if rows:
        connection.execute(insert(StoredAttachment), rows)


class Reception:
    """Accepts the e-mails of many threads: those that come together share a commit, and ask for one drain.

    Large ones go alone, and so do those with attachments, which take several statements. ``wake`` must not block.
    """

    def __init__(self, engine: Engine, config: Config, wake: Callable[[], None]) -> None:
        self._engine, self._config, self._wake = engine, config, wake
        self._grouped = GroupCommit(self._accept_together, self._accept_alone)

    def accept(self, email: NewEmail) -> Accepted:
        """Committed when it returns. Raises the database's errors, also when the time of the request is up."""
        if email.attachments or email.size > MAX_SHARED_BYTES:
            return self._accept_alone(email)
        return self._grouped(email, seconds_left())

    def accept_many(self, emails: Sequence[NewEmail], lock_milliseconds: int | None = None) -> list[Accepted]:
        """One client's e-mails, in a transaction of their own."""
        answers = accept_many(self._engine, emails, self._config, lock_milliseconds)
        # After the commit, and for duplicates too: the first one's wake-up may have been lost.
        if any(accepted.due for accepted in answers):
            self._wake()
        return answers

    def _accept_together(self, emails: Sequence[NewEmail]) -> list[Accepted]:
        return self.accept_many(emails, LOCK_MILLISECONDS)

    def _accept_alone(self, email: NewEmail) -> Accepted:
        return self.accept_many([email])[0]
