"""Dead letters, resolved by a person or a client: sent again, marked as delivered, or discarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from emailsvc.clock import isoformat
from emailsvc.db.models import DeadLetter, Email
from emailsvc.errors import Conflict, NotFound
from emailsvc.outbox import actions, moves
from emailsvc.outbox.moves import Letter
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind, Resolution

CHUNK = 200
"""Letters per transaction of a bulk replay: none may be open for long."""

PER_SECOND = 100.0


@dataclass(frozen=True, slots=True)
class Resolved:
    id: int
    email_id: str
    resolution: Resolution


def replay(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Send it again: a fresh retry budget, no past expiry, the same Message-ID. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.REPLAYED, who))


def delivered(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Mark as delivered: the e-mail becomes ``sent``. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.DELIVERED, who))


def discard(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Never send it; it stays ``failed`` and its content is forgotten in time. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.DISCARDED, who))


def replay_many(
    engine: Engine,
    *,
    reason: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 1000,
    dry_run: bool = False,
    who: str | None = None,
) -> int:
    """Replay the oldest ``limit`` unresolved ones that match; the number replayed (or that would be, with ``dry_run``).

    Those whose content is gone are passed over, and so are those written after the call began. They become due one
    after the other, ``PER_SECOND`` of them a second, so that fresh e-mail does not stand behind all of them.
    """
    conditions: list[Any] = [DeadLetter.resolved_at.is_(None), Email.scrubbed_at.is_(None)]
    if reason is not None:
        conditions.append(DeadLetter.reason == reason)
    if since is not None:
        conditions.append(DeadLetter.created_at >= since)
    if until is not None:
        conditions.append(DeadLetter.created_at < until)
    found = select(DeadLetter.id, DeadLetter.email).join(Email, Email.id == DeadLetter.email).where(*conditions)
    found = found.order_by(DeadLetter.created_at, DeadLetter.id)
    if dry_run:
        with engine.connect().execution_options(read_only=True) as connection:
            return len(connection.execute(found.limit(limit)).all())
    # What fails again meanwhile has a new letter, with a higher id: no e-mail is replayed twice, and this ends.
    found = found.where(DeadLetter.id <= _newest_unresolved(engine))
    total = 0
    while total < limit:
        some = found.limit(min(CHUNK, limit - total))
        count = in_transaction(engine, partial(_replay_some, some=some, before=total))
        total += count
        if count == 0:
            break
    with engine.begin() as connection:
        asked = {"reason": reason, "since": isoformat(since), "until": isoformat(until), "limit": limit}
        actions.note(connection, ActionKind.REPLAYED, who, asked=asked, count=total)
    return total


def _newest_unresolved(engine: Engine) -> int:
    newest = select(func.max(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None))
    with engine.connect().execution_options(read_only=True) as connection:
        return connection.execute(newest).scalar() or 0


def _replay_some(connection: Connection, some: Any, before: int) -> int:
    letters = connection.execute(some.with_for_update(skip_locked=True, of=DeadLetter)).all()
    if letters:
        moves.replay(connection, {Letter(*row): (before + n) / PER_SECOND for n, row in enumerate(letters)})
    return len(letters)


def _resolve(connection: Connection, dead_letter_id: int, resolution: Resolution, who: str | None) -> Resolved:
    letter = connection.execute(
        select(DeadLetter.resolution, DeadLetter.email, Email.email_id, Email.scrubbed_at)
        .join(Email, Email.id == DeadLetter.email)
        .where(DeadLetter.id == dead_letter_id)
        .with_for_update(of=DeadLetter)
    ).first()
    if letter is None:
        raise NotFound(f"There is no dead letter {dead_letter_id}.")
    if letter.resolution is not None:
        if letter.resolution != resolution:
            raise Conflict("already_resolved", f"This dead letter was already resolved as {letter.resolution}.")
        return Resolved(dead_letter_id, letter.email_id, resolution)
    if resolution is Resolution.REPLAYED and letter.scrubbed_at is not None:
        raise Conflict("content_gone", "The content of this e-mail was erased or scrubbed; there is nothing to send.")
    _MOVES[resolution](connection, Letter(dead_letter_id, letter.email))
    actions.note(connection, ActionKind(resolution), who, asked={"ids": [dead_letter_id]}, count=1)
    return Resolved(dead_letter_id, letter.email_id, resolution)


_MOVES: dict[Resolution, Callable[[Connection, Letter], None]] = {
    Resolution.REPLAYED: lambda connection, letter: moves.replay(connection, {letter: 0.0}),
    Resolution.DELIVERED: moves.deliver,
    Resolution.DISCARDED: moves.discard,
}
