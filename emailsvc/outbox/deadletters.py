"""Dead letters, resolved by a person or the sender: sent again, declared delivered, or discarded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, case, literal_column, select, update

from emailsvc.errors import Conflict, NotFound
from emailsvc.models import DeadLetter, Email, Resolution
from emailsvc.outbox.transaction import in_transaction
from emailsvc.sqltime import db_now

FAILED = Email.status == literal_column("'failed'")


@dataclass(frozen=True, slots=True)
class Resolved:
    id: int
    email_id: str
    resolution: str


def replay(engine: Engine, dead_letter_id: int) -> Resolved:
    """Send it again: a fresh retry budget, no past deadline, the same Message-ID. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.REPLAYED))


def delivered(engine: Engine, dead_letter_id: int) -> Resolved:
    """It did arrive: the e-mail becomes ``sent``. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.DELIVERED))


def discard(engine: Engine, dead_letter_id: int) -> Resolved:
    """Never send it; it stays ``failed`` and its content is forgotten in time. Raises NotFound or Conflict."""
    return in_transaction(engine, lambda connection: _resolve(connection, dead_letter_id, Resolution.DISCARDED))


def replay_many(
    engine: Engine,
    *,
    reason: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 1000,
    dry_run: bool = False,
) -> int:
    """Replay the oldest ``limit`` unresolved ones that match; the number replayed (or that would be, with ``dry_run``).

    Those whose content is gone are passed over.
    """

    def work(connection: Connection) -> int:
        statement = (
            select(DeadLetter.id)
            .join(Email, Email.id == DeadLetter.email)
            .where(DeadLetter.resolved_at.is_(None), Email.scrubbed_at.is_(None))
            .order_by(DeadLetter.created_at, DeadLetter.id)
            .limit(limit)
        )
        if reason is not None:
            statement = statement.where(DeadLetter.reason == reason)
        if since is not None:
            statement = statement.where(DeadLetter.created_at >= since)
        if until is not None:
            statement = statement.where(DeadLetter.created_at < until)
        if dry_run:
            return len(connection.execute(statement).all())
        found = connection.execute(statement.with_for_update(skip_locked=True, of=DeadLetter)).scalars().all()
        for dead_letter_id in found:
            _resolve(connection, dead_letter_id, Resolution.REPLAYED)
        return len(found)

    return in_transaction(engine, work)


def _resolve(connection: Connection, dead_letter_id: int, resolution: Resolution) -> Resolved:
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
            raise Conflict("already_resolved", f"This dead letter was resolved as {letter.resolution} already.")
        return Resolved(dead_letter_id, letter.email_id, letter.resolution)
    _move(connection, letter, resolution)
    connection.execute(
        update(DeadLetter)
        .where(DeadLetter.id == dead_letter_id)
        .values(resolved_at=db_now(), resolution=resolution.value)
    )
    return Resolved(dead_letter_id, letter.email_id, resolution.value)


def _move(connection: Connection, letter: Any, resolution: Resolution) -> None:
    if resolution is Resolution.REPLAYED and letter.scrubbed_at is not None:
        raise Conflict("content_gone", "The content of this e-mail was erased or scrubbed; there is nothing to send.")
    values: dict[Resolution, dict[str, Any]] = {
        Resolution.REPLAYED: {
            # Without a fresh budget it would die again at once; without a fresh token the late record of its last
            # worker could be taken for this attempt's.
            "status": "pending", "attempts": 0, "next_attempt_at": db_now(), "claim": None, "final_at": None,
            "expires_at": case((Email.expires_at <= db_now(), None), else_=Email.expires_at),
        },
        Resolution.DELIVERED: {"status": "sent", "sent_at": db_now(), "final_at": db_now()},
        Resolution.DISCARDED: {"final_at": db_now()},
    }  # fmt: skip
    # The dead letter is locked and unresolved, so its e-mail is `failed`; nothing else moves it from there.
    connection.execute(update(Email).where(Email.id == letter.email, FAILED).values(**values[resolution]))
