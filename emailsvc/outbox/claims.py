"""Claiming due rows: one batch of one priority under one token with one lease."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from sqlalchemy import CTE, Connection, Engine, Row, bindparam, case, exists, literal_column, select, union_all, update
from sqlalchemy import func as sql
from sqlalchemy.sql.dml import ReturningUpdate

from emailsvc.db.models import DeadLetter, Email, Switch, has_status
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.outbox import moves
from emailsvc.outbox.contents import CARRIED, CARRIED_BYTES, Content, content_of
from emailsvc.outbox.moves import Held
from emailsvc.outbox.settling import GivenBack, give_back, log_settled
from emailsvc.outbox.switch import take_probe
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Status

PENDING, SENDING = has_status(Status.PENDING), has_status(Status.SENDING)
ANY_PRIORITY = Email.priority.in_([literal_column(str(n)) for n in (0, 1, 2)])
"""Says nothing, and lets the index on (priority, next_attempt_at) bound the time."""

PROBE_CHOICE = 1_000
"""A probe is chosen from so many of the oldest and of the newest due rows of each priority, so that a list of bad
addresses in front, old ones or a bulk replay, cannot keep an outage open for all."""

_REPLAYED_AT = case(
    (
        Email.last_error.is_not(None),  # or it was never given up, and nobody need look for letters
        select(sql.max(DeadLetter.resolved_at))
        .where(DeadLetter.email == Email.id, DeadLetter.resolution == "replayed", DeadLetter.reason != "uncertain")
        .correlate(Email)
        .scalar_subquery(),
    )
)
"""The last replay of what nobody can have got: once an attempt was uncertain, every dead letter is ``uncertain``."""

_COLUMNS = (
    Email.id, Email.email_id, Email.recipient, Email.size, Email.attachment_count, Email.message_id,
    Email.on_uncertain, Email.attempts, Email.expires_at, Email.received_at, Email.send_at,
    _REPLAYED_AT.label("replayed_at"),
    *CARRIED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InHand:
    """What the outcome of an attempt depends on."""

    id: int
    email_id: str
    recipient: str
    attempts: int
    on_uncertain: str


@dataclass(frozen=True, slots=True)
class Claimed(InHand):
    """A row in hand."""

    message_id: str
    size: int  # bytes
    attachment_count: int
    received_at: datetime
    send_at: datetime | None
    replayed_at: datetime | None
    expires_at: datetime | None
    content: Content | None  # None: too large to be carried
    doubted: bool = False  # an attempt was uncertain; told only while reports are taken in


def _claimed(row: Row[Any]) -> Claimed:
    return Claimed(
        row.id, row.email_id, row.recipient, row.attempts, row.on_uncertain, row.message_id, row.size,
        row.attachment_count, row.received_at, row.send_at, row.replayed_at, row.expires_at,
        content_of(row) if row.size <= CARRIED_BYTES else None, row._mapping.get("maybe_sent", False),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    token: str
    rows: Sequence[Claimed]  # in id order
    now: datetime  # the database's clock when it claimed
    full: bool
    probe: bool = False
    start_at: Sequence[float] = ()  # seconds after ``now`` at which each row may start, when there is a rate limit


class IdleReason(enum.StrEnum):
    EMPTY = "empty"
    PAUSED = "paused"
    OUTAGE = "outage"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing was claimed. ``wait``: under a rate limit, the seconds until the next slot is given out."""

    reason: IdleReason
    wait: float | None = None


def _due(priority: int, after: Sequence[CTE], name: str) -> CTE:
    statement = select(Email.id).where(
        PENDING, Email.priority == literal_column(str(priority)), Email.next_attempt_at <= db_now()
    )
    for earlier in after:
        statement = statement.where(~exists(select(earlier.c.id)))
    statement = statement.order_by(Email.next_attempt_at, Email.id).limit(bindparam("size_limit"))
    return statement.with_for_update(skip_locked=True).cte(name)


def _claim_statement(order: Sequence[int], columns: Sequence[Any]) -> ReturningUpdate[Any]:
    choices: list[CTE] = []
    for priority in order:
        choices.append(_due(priority, choices, f"due_{priority}"))
    running = select(Switch.id).where(Switch.paused_at.is_(None), Switch.outage_since.is_(None))
    chosen = union_all(*(select(choice.c.id) for choice in choices))
    return moves.claiming(chosen, exists(running)).returning(*columns)


_OLDEST_AND_NEWEST = ((Email.next_attempt_at, Email.id), (Email.next_attempt_at.desc(), Email.id.desc()))


def _probe_statement(columns: Sequence[Any]) -> ReturningUpdate[Any]:
    """Mail that never had an error comes first, then what was deferred, then what was replayed; among equals by lot."""
    due = select(Email.id).where(PENDING, Email.next_attempt_at <= db_now())
    ends = []
    for priority, order in product((0, 1, 2), _OLDEST_AND_NEWEST):
        some = due.where(Email.priority == literal_column(str(priority))).order_by(*order)
        ends.append(select(some.limit(bindparam("probe_choice")).subquery().c.id))
    standing = case((Email.last_error.is_(None), 0), (Email.attempts > 0, 1), else_=2)
    chosen = select(Email.id).where(PENDING, Email.id.in_(union_all(*ends))).order_by(standing, sql.random())
    chosen = chosen.limit(bindparam("size_limit"))
    locked = chosen.with_for_update(skip_locked=True).cte("chosen")
    return moves.claiming(select(locked.c.id)).returning(*columns)


_ANY_DUE = select(Email.id).where(PENDING, ANY_PRIORITY, Email.next_attempt_at <= db_now())


class _Statements(NamedTuple):
    high_first: ReturningUpdate[Any]
    low_first: ReturningUpdate[Any]
    probe: ReturningUpdate[Any]


@cache
def _statements(hears_reports: bool) -> _Statements:
    columns = (*_COLUMNS, db_now().label("now"), *((Email.maybe_sent,) if hears_reports else ()))
    return _Statements(
        _claim_statement((0, 1, 2), columns), _claim_statement((2, 1, 0), columns), _probe_statement(columns)
    )


def claim(engine: Engine, token: str, config: Config, *, low_first: bool = False) -> Claim | Idle:
    """Take up to BATCH_SIZE due rows, or say why there is nothing to do.

    ``token`` is made by the caller before this is sent, so a claim whose reply was lost can be released by it.
    During an outage at most one row per cool-down is given out in the whole cluster, as the probe.
    """
    return in_transaction(engine, lambda connection: _claim(connection, token, config, low_first))


def _claim(connection: Connection, token: str, config: Config, low_first: bool) -> Claim | Idle:
    size, start_at = config.batch_size, []
    rate = config.rate_limit_per_second
    if rate:
        # The switch row is locked until commit, so slots are given out one claim at a time. Its clock is read when the
        # lock is had: a wait for it must not count as time that is booked already.
        connection.execute(select(Switch.id).with_for_update())
        next_slot_at, now = connection.execute(select(Switch.next_slot_at, db_now())).one()
        ahead, longest = _ahead(next_slot_at, now), max(1.0, 1 / rate)
        if ahead > longest:  # no claim books so much: the clock was wrong then, or the rate was another
            ahead = longest
            _book_slots(connection, now, ahead)
        size = min(size, int((1.0 - ahead) * rate) if rate >= 1 else int(ahead <= 0))
        if size < 1:
            return Idle(IdleReason.RATE, max(ahead - 1.0, 0.0) + 1.0 / rate if rate >= 1 else ahead)
        start_at = [ahead + n / rate for n in range(size)]
    statements = _statements(config.hears_reports)
    values = {"size_limit": size, "token": token, "lease": config.lease_seconds}
    rows = sorted(
        connection.execute(statements.low_first if low_first else statements.high_first, values), key=lambda row: row.id
    )
    probe = False
    if not rows:
        switch = connection.execute(select(Switch, exists(_ANY_DUE).label("any_due"))).one()
        if switch.paused_at is not None:
            return Idle(IdleReason.PAUSED)
        if switch.outage_since is None or not switch.any_due:
            return Idle(IdleReason.EMPTY)  # or others have the locks of all that is due
        if not take_probe(connection, switch.probe_delay):
            return Idle(IdleReason.OUTAGE)
        rows = list(connection.execute(statements.probe, {**values, "size_limit": 1, "probe_choice": PROBE_CHOICE}))
        if not rows:  # every candidate is locked
            return Idle(IdleReason.OUTAGE)
        probe = True
    if rate and rows:
        _book_slots(connection, rows[0].now, start_at[len(rows) - 1] + 1 / rate)
    return Claim(token, [_claimed(row) for row in rows], rows[0].now, len(rows) >= size, probe, start_at)


def _ahead(next_slot_at: datetime | None, now: datetime) -> float:
    """Seconds until the next slot that is free."""
    return max(0.0, (next_slot_at - now).total_seconds()) if next_slot_at else 0.0


def _book_slots(connection: Connection, now: datetime, seconds: float) -> None:
    connection.execute(update(Switch).values(next_slot_at=now + timedelta(seconds=seconds)))


def release(engine: Engine, token: str, config: Config, ids: Sequence[int] | None = None) -> int:
    """Give untouched rows of a claim back, all or those named; their due time stays. Safe to repeat."""
    given = in_transaction(engine, lambda connection: give_back(connection, Held(token, ids), config))
    log_settled(given.settled)
    return given.rows


def recover(engine: Engine, token: str, row_id: int, config: Config, *, dot_may_be_sent: bool) -> int:
    """Give back what a dead worker provably never handed over; ``row_id`` is the last that it began (0 for none).

    It worked in id order, so all above are untouched, and this one is too before its dot. One below would contradict
    the note, which is then not believed. What is left, the sweep decides when the lease is over.
    """

    def work(connection: Connection) -> GivenBack:
        mine = select(Email.id).where(SENDING, Email.claim == token).order_by(Email.id).with_for_update()
        ids = list(connection.execute(mine).scalars())
        if not ids or ids[0] < row_id:
            return GivenBack(0, [])
        untouched = [one for one in ids if one > row_id or not dot_may_be_sent]
        return give_back(connection, Held(token, untouched), config)

    given = in_transaction(engine, work)
    log_settled(given.settled)
    return given.rows


def renew(engine: Engine, token: str, row_id: int, seconds: float) -> bool:
    """A longer lease for one large e-mail; False when it is not ours any more, or was over already."""
    statement = (
        update(Email)
        .where(SENDING, Email.id == row_id, Email.claim == token, Email.lease_expires_at > db_now())
        .values(lease_expires_at=db_in(seconds))
    )
    with engine.begin() as connection:
        return connection.execute(statement).rowcount == 1
