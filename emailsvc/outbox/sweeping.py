"""Repairs: expired claims, passed expiries, outages past their limit; and roll-ups and retention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, and_, delete, or_, select, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import aliased

from emailsvc.db.absorbed import FIRST, IS_ABSORBED, IS_ITS_FIRST
from emailsvc.db.counts import Kind, read_marks
from emailsvc.db.models import DeadLetter, Email, Switch, Window, status_literal
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.errors import brief
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import actions, moves
from emailsvc.outbox.claims import ANY_PRIORITY, PENDING, SENDING, InHand
from emailsvc.outbox.counters import add_to_counters
from emailsvc.outbox.moves import Held
from emailsvc.outbox.recording import Hand, look_for_reports, record_uncertain
from emailsvc.outbox.rolling import close_hours, roll_up
from emailsvc.outbox.scrubbing import scrub
from emailsvc.outbox.settling import give_back, missed, settle
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Reason, Status

log = logging.getLogger("emailsvc.outbox")

T = TypeVar("T")

CHUNK = 500
PROBED_WITHIN_SECONDS = 60.0
LOCK_SECONDS = 1

WINDOW_MARGIN_SECONDS = 60.0
"""No webhook takes so long that it could come into a window which is over for so long."""

_OTHER: Any = aliased(Email, name="other")
_HOLDS_CONTENT = or_(
    and_(IS_ABSORBED, Email.scrubbed_at.is_(None)),
    select(_OTHER.id).where(_OTHER.duplicate_of == Email.email_id, _OTHER.scrubbed_at.is_(None)).exists(),
)
"""Of a duplicate that may have to be sent yet, or is the first one of such."""


@dataclass(slots=True)
class Swept:
    """What a sweep did. ``uncertain``: (email_id, state) of rows whose worker was lost; ``buried``: (email_id, reason)
    of rows given up for another reason; ``settled``: what turned out to have been taken, by email_id. ``away``: the
    database went away, and the rest was left to the next sweep.
    """

    uncertain: list[tuple[str, Status]] = field(default_factory=list)
    buried: list[tuple[str, Reason]] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    released: int = 0
    scrubbed: int = 0
    purged: int = 0
    forgotten: int = 0  # entries of the journal
    away: bool = False


def sweep(engine: Engine, config: Config, stopping: Event | None = None) -> Swept:
    """Every repair, each in transactions of its own and failing alone; safe to run twice at once."""
    swept = Swept()
    repair = Repairs(engine, swept, stopping or Event())
    for token in repair.listed("expired claims", _expired_claims):
        repair.once("expired claim", partial(_take_claim, token=token, config=config, swept=swept))
    expired = partial(_bury_pending, swept, Reason.EXPIRED, "expires_at passed before it could be sent", _overdue())
    repair.in_chunks("expiry", expired)
    unreachable = partial(
        _bury_pending, swept, Reason.UNREACHABLE, "the mail server was away for too long", _held_up(config)
    )
    repair.in_chunks("outage limit", unreachable)
    if config.hears_reports:
        repair.in_chunks("reports", partial(_settle_missed, config=config, swept=swept))
    repair.apart("roll-up", roll_up)
    repair.apart("counters", close_hours)
    repair.once("time of the sweep", _note_the_time)
    return swept


def _note_the_time(connection: Connection) -> int:
    return connection.execute(update(Switch).values(swept_at=db_now())).rowcount


def retain(engine: Engine, config: Config, swept: Swept, stopping: Event | None = None) -> None:
    """Scrub content, purge rows and forget entries of the journal whose time has come."""
    repair = Repairs(engine, swept, stopping or Event())
    swept.scrubbed = repair.in_chunks("scrubbing", partial(_scrub_old, config=config))
    swept.scrubbed += repair.in_chunks("scrubbing of duplicates", partial(_scrub_absorbed, config=config))
    repair.in_chunks("windows", _purge_windows)
    swept.purged = repair.in_chunks("purge", partial(_purge, config=config))
    swept.forgotten = repair.once("journal", partial(actions.forget, days=config.email_retention_days))


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

    def apart(self, step: str, work: Callable[[Engine], None]) -> None:
        """For work with transactions of its own."""
        self._alone(step, lambda: work(self.engine), None)

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
    if recorded is not None:
        recorded = look_for_reports(hand, recorded)
        swept.settled += recorded.settled
    swept.settled += give_back(connection, Held(token, rest), config).settled
    # Without the token the late worker cannot take this decision for its own commit.
    connection.execute(update(Email).where(Email.id.in_([first.id, *rest])).values(claim=None))
    swept.released += len(rest)
    if recorded is not None and recorded.state is not None:
        swept.uncertain.append((first.email_id, recorded.state))
    return len(rows)


def _settle_missed(connection: Connection, config: Config, swept: Swept) -> int:
    found = connection.execute(missed(config).limit(CHUNK)).scalars().all()
    settled = settle(connection, found)
    swept.settled += settled
    return len(settled)


def _overdue() -> Select[int]:
    # In the order of its index, here as below: or PostgreSQL may find it cheaper to walk through the table.
    return select(Email.id).where(PENDING, Email.expires_at <= db_now()).order_by(Email.expires_at)


def _held_up(config: Config) -> Select[int]:
    limit = db_in(-config.outage_limit_seconds)
    # While nothing may or can try (a pause, no worker), the server's absence is not known; a probe comes first.
    tried_lately = Switch.next_probe_at > db_in(-PROBED_WITHIN_SECONDS - config.sweep_seconds)
    since = select(Switch.outage_since).where(Switch.paused_at.is_(None), tried_lately).scalar_subquery()
    held_up = select(Email.id).where(PENDING, ANY_PRIORITY, Email.next_attempt_at <= limit, since <= limit)
    return held_up.order_by(Email.priority, Email.next_attempt_at, Email.id)


def _bury_pending(swept: Swept, reason: Reason, error: str, found: Select[int], connection: Connection) -> int:
    some = found.limit(CHUNK).with_for_update(skip_locked=True).cte("some")
    failed = moves.fail_waiting(connection, select(some.c.id), reason, error)
    swept.buried += [(one.email_id, one.reason) for one in failed]
    return len(failed)


def _scrub_old(connection: Connection, config: Config) -> int:
    old = (Email.final_at <= db_in(-config.body_retention_seconds), Email.scrubbed_at.is_(None), ~IS_ABSORBED)
    some = select(Email.id).where(*old).order_by(Email.final_at).limit(CHUNK).with_for_update(skip_locked=True)
    ids = connection.execute(some).scalars().all()
    scrub(connection, ids)
    return len(ids)


def _scrub_absorbed(connection: Connection, config: Config) -> int:
    """Nobody needs the content of a duplicate whose first one is sent, or ended unsent so long ago."""
    is_over = (FIRST.status == status_literal(Status.SENT)) | (FIRST.final_at <= db_in(-config.body_retention_seconds))
    over = select(Email.id).join(FIRST, IS_ITS_FIRST).where(IS_ABSORBED, Email.scrubbed_at.is_(None), is_over)
    some = over.order_by(Email.duplicate_of, Email.id).limit(CHUNK)
    ids = connection.execute(some.with_for_update(skip_locked=True, of=Email)).scalars().all()
    scrub(connection, ids)
    return len(ids)


def _purge_windows(connection: Connection) -> int:
    over = select(Window.key).where(Window.ends_at <= db_in(-WINDOW_MARGIN_SECONDS)).order_by(Window.ends_at)
    keys = connection.execute(over.limit(CHUNK).with_for_update(skip_locked=True)).scalars().all()
    connection.execute(delete(Window).where(Window.key.in_(keys)))
    return len(keys)


_PURGED: dict[Status, Kind] = {Status.CANCELLED: "purged_cancelled", Status.FAILED: "purged_failed"}


def _purge(connection: Connection, config: Config) -> int:
    """Delete final rows of which everything is rolled up; whoever counts rows has to know how many are gone."""
    mail, letters, _ = read_marks(connection)
    if letters is None:
        return 0
    limit, counted = db_in(-config.email_retention_days * 86400), min(mail, letters)
    # A letter is resolved a moment after its e-mail became final.
    uncounted = select(DeadLetter.email).where(DeadLetter.resolved_at >= counted)
    old = (
        Email.received_at <= limit, Email.final_at <= limit, Email.received_at < counted, Email.final_at < counted,
        Email.id.not_in(uncounted), ~_HOLDS_CONTENT,
    )  # fmt: skip
    some = select(Email.id, Email.status, Email.duplicate_of).where(*old).order_by(Email.received_at).limit(CHUNK)
    rows = connection.execute(some.with_for_update(skip_locked=True)).all()
    connection.execute(delete(Email).where(Email.id.in_([row.id for row in rows])))
    counts: dict[Kind, int] = {kind: sum(row.status == status for row in rows) for status, kind in _PURGED.items()}
    counts["purged_absorbed"] = sum(row.duplicate_of is not None for row in rows)
    add_to_counters(connection, counts)
    return len(rows)
