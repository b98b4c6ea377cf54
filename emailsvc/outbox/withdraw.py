"""Cancelling what waits, and erasing a person."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select, update
from sqlalchemy.engine import Connection

from emailsvc import addresses
from emailsvc.errors import Conflict, NotFound
from emailsvc.models import DeadLetter, Email, Status
from emailsvc.outbox.claim import PENDING, SENDING, scrub
from emailsvc.outbox.transaction import in_transaction
from emailsvc.sqltime import db_now

_WHY_NOT = {
    Status.SENT: ("already_sent", "The mail server took this e-mail already."),
    Status.SENDING: ("sending", "This e-mail is being sent right now."),
    Status.FAILED: ("failed", "This e-mail failed already; see its dead letter."),
    Status.PENDING: ("maybe_sent", "An earlier attempt may have reached the mail server, so it cannot be taken back."),
}


def cancel(engine: Engine, email_id: str) -> None:
    """``pending → cancelled``; again is fine. Raises NotFound, or Conflict saying which state forbids it."""
    with engine.begin() as connection:
        cancelled = connection.execute(
            update(Email)
            .where(PENDING, Email.email_id == email_id, ~Email.maybe_sent)
            .values(status="cancelled", next_attempt_at=None, final_at=db_now())
        )
        if cancelled.rowcount == 1:
            return
        # A claim or an outcome got there first, or it never was pending: the row says which.
        found = connection.execute(
            select(Email.status, Email.maybe_sent).where(Email.email_id == email_id).with_for_update()
        ).first()
    if found is None:
        raise NotFound(f"There is no e-mail with the id {email_id!r}.")
    if found.status == Status.PENDING and not found.maybe_sent:
        cancel(engine, email_id)  # it came back to pending between the two statements
    elif found.status != Status.CANCELLED:
        raise Conflict(*_WHY_NOT[Status(found.status)])


def erase(engine: Engine, address: str) -> int:
    """Forget a person: cancel what waits, scrub what was sent, mark what is in hand; ids stay. Returns the rows found.

    What is being sent cannot be called back: it is marked, and ends with its next outcome.
    """
    spellings = [func.lower(one) for one in _spellings(engine, address)]
    return in_transaction(engine, lambda connection: _erase(connection, func.lower(Email.recipient).in_(spellings)))


def _spellings(engine: Engine, address: str) -> list[str]:
    """The address as given, and as it stands on rows where databases do not compare well: beyond ASCII, by domain."""
    if address.isascii() and "xn--" not in address.lower():
        return [address]
    key = addresses.canonical(address)
    with engine.connect().execution_options(read_only=True) as connection:
        stored = connection.execute(select(Email.recipient).where(Email.recipient.is_not(None)).distinct()).scalars()
        return [address, *(one for one in stored if one and addresses.canonical(one) == key)]


def _erase(connection: Connection, theirs: ColumnElement[bool]) -> int:
    rows = connection.execute(
        select(Email.id, Email.status).where(theirs).order_by(Email.id).with_for_update()
    ).all()  # fmt: skip
    in_hand = [row.id for row in rows if row.status == Status.SENDING]
    others = [row.id for row in rows if row.status != Status.SENDING]
    for some in _chunks(in_hand):
        connection.execute(update(Email).where(SENDING, Email.id.in_(some)).values(erase_requested=True))
    for some in _chunks(others):
        _erase_rows(connection, some)
    return len(rows)


def _erase_rows(connection: Connection, ids: list[int]) -> None:
    these: Any = Email.id.in_(ids)
    connection.execute(
        update(Email).where(PENDING, these).values(status="cancelled", next_attempt_at=None, final_at=db_now())
    )
    connection.execute(
        update(DeadLetter)
        .where(DeadLetter.email.in_(ids), DeadLetter.resolved_at.is_(None))
        .values(resolved_at=db_now(), resolution="discarded")
    )
    connection.execute(update(Email).where(these, Email.final_at.is_(None)).values(final_at=db_now()))
    scrub(connection, these, recipient=True)


def _chunks(ids: list[int], size: int = 500) -> list[list[int]]:
    return [ids[n : n + size] for n in range(0, len(ids), size)]
