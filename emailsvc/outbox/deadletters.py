"""A dead letter, resolved by a person or a client: sent again, marked as delivered, or discarded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Engine, select

from emailsvc.db.models import DeadLetter, Email
from emailsvc.errors import Conflict, NotFound
from emailsvc.outbox import actions, moves
from emailsvc.outbox.moves import Letter
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind, Resolution


@dataclass(frozen=True, slots=True)
class Resolved:
    id: int
    email_id: str
    resolution: Resolution


def replay(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Send it again: a fresh retry budget, no past expiry, the same Message-ID. Raises NotFound or Conflict."""
    return _resolved(engine, dead_letter_id, Resolution.REPLAYED, who)


def delivered(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Mark as delivered: the e-mail becomes ``sent``. Raises NotFound or Conflict."""
    return _resolved(engine, dead_letter_id, Resolution.DELIVERED, who)


def discard(engine: Engine, dead_letter_id: int, *, who: str | None = None) -> Resolved:
    """Never send it; it stays ``failed`` and its content is forgotten in time. Raises NotFound or Conflict."""
    return _resolved(engine, dead_letter_id, Resolution.DISCARDED, who)


def _resolved(engine: Engine, dead_letter_id: int, resolution: Resolution, who: str | None) -> Resolved:
    return in_transaction(engine, partial(_resolve, dead_letter_id=dead_letter_id, resolution=resolution, who=who))


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
    moves.RESOLVE[resolution](connection, {Letter(dead_letter_id, letter.email): 0.0})
    actions.note(connection, ActionKind(resolution), who, asked={"ids": [dead_letter_id]}, count=1)
    return Resolved(dead_letter_id, letter.email_id, resolution)
