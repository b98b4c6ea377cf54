"""Cancelling what waits, and erasing a person."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine, Select, case, func, select, update
from sqlalchemy.engine import Connection

from emailsvc.db.models import DeadLetter, Email, Status
from emailsvc.db.sqltime import db_now
from emailsvc.errors import Conflict, NotFound
from emailsvc.intake import addresses
from emailsvc.outbox.claim import PENDING, SENDING, scrub
from emailsvc.outbox.transaction import in_transaction

CHUNK = 500
"""E-mails per transaction of an erasure."""

PAGE = 20_000
"""Ids read at a time: a statement may not take long, nor a busy mailbox be read anew for every chunk."""

_WHY_NOT = {
    Status.SENT: ("already_sent", "The mail server took this e-mail already."),
    Status.SENDING: ("sending", "This e-mail is being sent right now."),
    Status.FAILED: ("failed", "This e-mail failed already; see its dead letter."),
    Status.PENDING: ("maybe_sent", "An earlier attempt may have reached the mail server, so it cannot be cancelled."),
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


def erase(engine: Engine, address: str, progress: Callable[[int], None] = lambda _total: None) -> int:
    """Forget a person: cancel what waits, scrub what was sent, mark what is in hand; ids stay. Returns how many.

    What is being sent cannot be called back: it is marked, and ends with its next outcome. What is accepted after the
    call began stays. Each chunk is committed, so a call that was cut short is simply made again; ``progress`` is told
    the total after each.
    """
    (newest,) = _read(engine, select(func.coalesce(func.max(Email.id), 0)))
    theirs = func.lower(Email.recipient).in_([func.lower(one) for one in addresses.spellings(address)])
    total = 0
    # An erased row has no recipient and one in hand is marked, so that none is found again.
    found = select(Email.id).where(theirs, ~Email.erase_requested, Email.id <= newest).limit(PAGE)
    while ids := _read(engine, found):
        for some in _chunks(ids):
            total += in_transaction(engine, partial(_erase_some, some=some))
            progress(total)
    return total


def _read(engine: Engine, statement: Select[int]) -> list[int]:
    with engine.connect().execution_options(read_only=True) as connection:
        return sorted(connection.execute(statement).scalars())


def _erase_some(connection: Connection, some: list[int]) -> int:
    # By id alone: with the address beside it, PostgreSQL would look through the whole mailbox for each chunk.
    left = (Email.id.in_(some), Email.recipient.is_not(None))
    rows = connection.execute(select(Email.id, Email.status).where(*left).order_by(Email.id).with_for_update()).all()
    in_hand = [row.id for row in rows if row.status == Status.SENDING]
    if in_hand:
        connection.execute(update(Email).where(SENDING, Email.id.in_(in_hand)).values(erase_requested=True))
    _erase_rows(connection, [row.id for row in rows if row.status != Status.SENDING])
    return len(rows)


def _erase_rows(connection: Connection, ids: list[int]) -> None:
    connection.execute(
        update(DeadLetter)
        .where(DeadLetter.email.in_(ids), DeadLetter.resolved_at.is_(None))
        .values(resolved_at=db_now(), resolution="discarded")
    )
    ended = {
        "status": case((PENDING, "cancelled"), else_=Email.status),
        "next_attempt_at": None,
        "final_at": func.coalesce(Email.final_at, db_now()),
    }
    scrub(connection, Email.id.in_(ids), recipient=True, also=ended)


def _chunks(ids: list[int]) -> list[list[int]]:
    return [ids[n : n + CHUNK] for n in range(0, len(ids), CHUNK)]
