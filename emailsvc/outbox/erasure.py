"""Erasing a person."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine, Select, func, select, update
from sqlalchemy.engine import Connection

from emailsvc.db.filters import is_for
from emailsvc.db.models import Email, has_status
from emailsvc.outbox import actions, moves
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind, Status

CHUNK = 500
"""E-mails per transaction of an erasure."""

PAGE = 20_000
"""Ids read at a time: a statement may not take long, nor a busy mailbox be read anew for every chunk."""


def erase(
    engine: Engine, address: str, progress: Callable[[int], None] = lambda _total: None, *, who: str | None = None
) -> int:
    """Forget a person: cancel what waits, scrub what was sent, mark what is in hand; ids stay. Returns how many.

    What is being sent cannot be called back: it is marked, and ends with its next outcome. What is accepted after the
    call began stays. Each chunk is committed, so a call that was cut short is simply made again; ``progress`` is told
    the total after each.
    """
    noted = in_transaction(engine, lambda connection: actions.note(connection, ActionKind.ERASED, who))
    (newest,) = _read(engine, select(func.coalesce(func.max(Email.id), 0)))
    total = 0
    # An erased row has no recipient and one in hand is marked, so that none is found again.
    found = select(Email.id).where(is_for(address), ~Email.erase_requested, Email.id <= newest).limit(PAGE)
    while ids := _read(engine, found):
        for some in _chunks(ids):
            total += in_transaction(engine, partial(_erase_some, some=some, noted=noted))
            progress(total)
    return total


def _read(engine: Engine, statement: Select[int]) -> list[int]:
    with engine.connect().execution_options(read_only=True) as connection:
        return sorted(connection.execute(statement).scalars())


def _erase_some(connection: Connection, some: list[int], noted: int) -> int:
    # By id alone: with the address beside it, PostgreSQL would look through the whole mailbox for each chunk.
    left = (Email.id.in_(some), Email.recipient.is_not(None))
    rows = connection.execute(select(Email.id, Email.status).where(*left).order_by(Email.id).with_for_update()).all()
    in_hand = [row.id for row in rows if row.status == Status.SENDING]
    if in_hand:
        held = (has_status(Status.SENDING), Email.id.in_(in_hand))
        connection.execute(update(Email).where(*held).values(erase_requested=True))
    moves.erase(connection, [row.id for row in rows if row.status != Status.SENDING])
    actions.count_more(connection, noted, len(rows))
    return len(rows)


def _chunks(ids: list[int]) -> list[list[int]]:
    return [ids[n : n + CHUNK] for n in range(0, len(ids), CHUNK)]
