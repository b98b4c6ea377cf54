"""Repairs: expired claims, passed expiries, outages past their limit; and roll-ups and retention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from threading import Event
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, delete, func, select, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc.db.models import Attempt, Email, Switch, has_status
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.errors import brief
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import moves
from emailsvc.outbox.claims import ANY_PRIORITY, PENDING, SENDING, InHand
from emailsvc.outbox.counters import Kind, add_to_counter
from emailsvc.outbox.moves import Held
from emailsvc.outbox.recording import Hand, record_uncertain
from emailsvc.outbox.scrubbing import scrub
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Reason, Status

log = logging.getLogger("emailsvc.outbox")

T = TypeVar("T")

CHUNK = 500
SETTLED_SECONDS = 300.0
"""An hour is rolled up only when so much of the next has passed: no transaction of ours lives that long."""

PROBED_WITHIN_SECONDS = 60.0

HOUR = timedelta(hours=1)
LOCK_SECONDS = 1


@dataclass(slots=True)
class Swept:
    """What a sweep did. ``uncertain``: (email_id, state) of rows whose worker was lost; ``buried``: (email_id, reason)
    of rows given up for another reason. ``away``: the database went away, and the rest was left to the next sweep.
    """

    uncertain: list[tuple[str, Status]] = field(default_factory=list)
    buried: list[tuple[str, Reason]] = field(default_factory=list)
    released: int = 0
    scrubbed: int = 0
    purged: int = 0
    away: bool = False


def sweep(engine: Engine, config: Config, stopping: Event | None = None) -> Swept:
    """Every repair, each in transactions of its own and failing alone; safe to run twice at once."""
    swept = Swept()
    repair = Repairs(engine, swept, stopping or Event())
    for token in repair.listed("expired claims", _expired_claims):
        repair.once("expired claim", partial(_take_claim, token=token, config=config, swept=swept))
    expired = partial(_bury_pending, swept, Reason.EXPIRED, "expires_at passed before it could be sent", _OVERDUE)
    repair.in_chunks("expiry", expired)
    unreachable = partial(
        _bury_pending, swept, Reason.UNREACHABLE, "the mail server was away for too long", _held_up(config)
    )
    repair.in_chunks("outage limit", unreachable)
    repair.in_chunks("roll-up", _roll_up_hour, size=1)
    return swept


def retain(engine: Engine, config: Config, swept: Swept, stopping: Event | None = None) -> None:
    """Scrub content and purge rows whose time has come."""
    repair = Repairs(engine, swept, stopping or Event())
    swept.scrubbed = repair.in_chunks("scrubbing", partial(_scrub_old, config=config))
    swept.purged = repair.in_chunks("purge", partial(_purge, config=config))


@dataclass(frozen=True, slots=True)
class Repairs:
    """Runs steps so that each fails alone: one row that somebody keeps locked must not stop the repair of all others.

    A row's lock is waited for as long as a commit may take, and no longer. What failed is tried in the next sweep.
    """

    engine: Engine
    swept: Swept
    stopping: Event

    def once(self, step: str, work: Callable[[Connection], int]) -> int:
        return self._alone(step, lambda: in_transaction(self.engine, lambda c: self._impatient(c, work)), 0)

    def in_chunks(self, step: str, work: Callable[[Connection], int], size: int = CHUNK) -> int:
        total = 0
        while (count := self.once(step, work)) >= size:
            total += count
        return total + count

    def listed(self, step: str, find: Callable[[Engine], list[T]]) -> list[T]:
        return self._alone(step, lambda: find(self.engine), [])

    def _alone(self, step: str, act: Callable[[], T], otherwise: T) -> T:
        if self.swept.away or self.stopping.is_set():
            return otherwise
        try:
            return act()
        except SQLAlchemyError as exc:
            self.swept.away = not _is_about_this_step(exc)
            log.error("repair_failed", extra={"fields": {"step": step, "error": brief(exc)}})
            return otherwise

    @staticmethod
    def _impatient(connection: Connection, work: Callable[[Connection], int]) -> int:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        return work(connection)


def _is_about_this_step(exc: SQLAlchemyError) -> bool:
    """The database answered, and the connection is still there: the other steps may fare better."""
    if not isinstance(exc, (OperationalError, InterfaceError, PoolTimeout)):
        return True
    return bool(getattr(getattr(exc, "orig", None), "sqlstate", None)) and not getattr(exc, "connection_invalidated", 1)


def _expired_claims(engine: Engine) -> list[str]:
    with engine.connect().execution_options(read_only=True) as connection:
        tokens = select(Email.claim).where(SENDING, Email.lease_expires_at < db_now()).distinct()
        return [token for token in connection.execute(tokens).scalars() if token]


def _take_claim(connection: Connection, token: str, config: Config, swept: Swept) -> int:
    """A worker works in id order and commits each outcome before the next conversation, so of the rows that are still
    ``sending`` only the lowest can have been touched. The locks are waited for: a record that is on its way commits
    first, and its row is then no longer among those decided here. A worker that comes later matches nothing, and stops.
    """
    mine = (SENDING, Email.claim == token, Email.lease_expires_at < db_now())
    rows = connection.execute(
        select(Email.id, Email.email_id, Email.recipient, Email.attempts, Email.on_uncertain)
        .where(*mine)
        .order_by(Email.id)
        .with_for_update()
    ).all()
    if not rows:
        return 0
    lowest, rest = rows[0], [row.id for row in rows[1:]]
    first = InHand(lowest.id, lowest.email_id, lowest.recipient or "", lowest.attempts, lowest.on_uncertain)
    hand = Hand(connection, first, token, config)
    lost = Result(Outcome.UNCERTAIN, "the worker was lost with this mail in hand; the server may have taken it")
    recorded = record_uncertain(hand, lost, worker_lost=True)
    moves.release(connection, Held(token, rest))
    # Without the token the late worker cannot take this decision for its own commit.
    connection.execute(update(Email).where(Email.id.in_([first.id, *rest])).values(claim=None))
    swept.released += len(rest)
    if recorded is not None and recorded.state is not None:
        swept.uncertain.append((first.email_id, recorded.state))
    return len(rows)


_OVERDUE = (Email.expires_at <= db_now(),)


def _held_up(config: Config) -> tuple[Any, ...]:
    limit = db_in(-config.outage_limit_seconds)
    # While nothing may or can try (a pause, no worker), the server's absence is not known; a probe comes first.
    tried_lately = Switch.next_probe_at > db_in(-PROBED_WITHIN_SECONDS - config.sweep_seconds)
    since = select(Switch.outage_since).where(Switch.paused_at.is_(None), tried_lately).scalar_subquery()
    return (ANY_PRIORITY, Email.next_attempt_at <= limit, since <= limit)


def _bury_pending(swept: Swept, reason: Reason, error: str, condition: tuple[Any, ...], connection: Connection) -> int:
    some = select(Email.id).where(PENDING, *condition).order_by(Email.id).limit(CHUNK).with_for_update(skip_locked=True)
    failed = moves.fail_waiting(connection, select(some.cte("some").c.id), reason, error)
    swept.buried += [(one.email_id, one.reason) for one in failed]
    return len(failed)


def _roll_up_hour(connection: Connection) -> bool:
    """Count one closed hour into the counters; False when none is closed, or another sweep did it first."""
    switch = connection.execute(select(Switch.rolled_up_to, db_in(-SETTLED_SECONDS).label("settled"))).one()
    start, end = switch.rolled_up_to, switch.rolled_up_to + HOUR
    if end > switch.settled:
        return False
    taken = connection.execute(update(Switch).where(Switch.rolled_up_to == start).values(rolled_up_to=end))
    if taken.rowcount == 0:
        return False
    for kind, statement in _countable(start, end).items():
        value = connection.execute(statement).scalar_one()
        if value:
            add_to_counter(connection, kind, value, start)
    return True


def _countable(start: datetime, end: datetime) -> dict[Kind, Select[int]]:
    is_sent = has_status(Status.SENT)
    return {
        "received": select(func.count(Email.id)).where(Email.received_at >= start, Email.received_at < end),
        "sent": select(func.count(Email.id)).where(is_sent, Email.sent_at >= start, Email.sent_at < end),
        "failed_attempts": select(func.count(Attempt.id)).where(Attempt.at >= start, Attempt.at < end),
    }


def _scrub_old(connection: Connection, config: Config) -> int:
    old = (Email.final_at <= db_in(-config.body_retention_seconds), Email.scrubbed_at.is_(None))
    some = select(Email.id).where(*old).limit(CHUNK).with_for_update(skip_locked=True)
    ids = connection.execute(some).scalars().all()
    scrub(connection, ids)
    return len(ids)


_PURGED: dict[Status, Kind] = {Status.CANCELLED: "purged_cancelled", Status.FAILED: "purged_failed"}


def _purge(connection: Connection, config: Config) -> int:
    """Delete final rows; what only they could tell (roll-ups are done for their hours) goes into the counters."""
    limit = db_in(-config.email_retention_days * 86400)
    rolled_up = select(Switch.rolled_up_to).scalar_subquery()
    old = (
        Email.received_at <= limit, Email.final_at <= limit, Email.received_at < rolled_up, Email.final_at < rolled_up,
    )  # fmt: skip
    some = select(Email.id, Email.status).where(*old).order_by(Email.received_at).limit(CHUNK)
    rows = connection.execute(some.with_for_update(skip_locked=True)).all()
    connection.execute(delete(Email).where(Email.id.in_([row.id for row in rows])))
    start = connection.execute(select(Switch.rolled_up_to)).scalar_one()
    for status, kind in _PURGED.items():
        count = sum(row.status == status for row in rows)
        if count:
            add_to_counter(connection, kind, count, start)
    return len(rows)
