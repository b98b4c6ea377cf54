"""Recording what became of a row in hand: in one transaction, fenced on status and token."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine, func, select

from emailsvc.db.models import Attempt, DeadLetter, Email
from emailsvc.db.sqltime import db_now
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import moves
from emailsvc.outbox.claims import ANY_PRIORITY, PENDING, Claimed, InHand
from emailsvc.outbox.moves import Held, Tried
from emailsvc.outbox.refusals import LONG_AGO, is_refusing_everybody
from emailsvc.outbox.retry import backoff
from emailsvc.outbox.settling import give_back, is_proven, settle
from emailsvc.outbox.switch import RUNNING, close_outage, open_outage
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Reason, Status

MAX_WAITING = 5_000
"""Counted no further when an outage begins."""


class Released(enum.StrEnum):
    """Why the whole batch went back, without an attempt burned."""

    OUTAGE = "outage"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Recorded:
    """``won`` False: the row was no longer ours, somebody else has decided; stop. ``go_on``: delivery is running.

    ``state``: what the row became; ``reason``, when that is failed. ``released``, when it only went back. ``delay``:
    in how many seconds it is due again.
    ``settled``: what turned out to have been taken before, because it was reported, by email_id.
    ``waiting``, when this began an outage: how many are due. ``outage_seconds``, when it ended one: how long that was.
    """

    won: bool
    go_on: bool
    state: Status | None = None
    reason: Reason | None = None
    released: Released | None = None
    delay: float | None = None
    waiting: int | None = None
    outage_seconds: float | None = None
    settled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hand:
    """One row in hand and everything that its next state depends on."""

    connection: Connection
    row: InHand
    token: str
    config: Config
    probe: bool = False
    seconds: float = 0  # how long the conversation took

    @property
    def domain(self) -> str:
        return self.row.recipient.rpartition("@")[2].lower()

    def tried(self, result: Result, *, worker_lost: bool = False) -> Tried:
        return Tried(result, self.row.attempts + 1, self.domain, self.seconds, worker_lost)


def record(
    engine: Engine, row: Claimed, token: str, result: Result, config: Config, *, probe: bool = False, seconds: float = 0
) -> Recorded:
    """Write the outcome of one conversation. Safe to repeat when the reply to a commit was lost: the token tells.

    Raises the database's error when nothing is known to be written; the caller then starts nothing more until it is.
    """

    def work(connection: Connection) -> Recorded:
        hand = Hand(connection, row, token, config, probe, seconds)
        recorded = _RECORD[result.outcome](hand, result)
        if recorded is None:
            return _lost(hand)
        recorded = look_for_reports(hand, recorded)
        if probe and recorded.released is None:
            ended = close_outage(connection)
            return replace(recorded, go_on=_running(connection), outage_seconds=ended)
        return recorded

    return in_transaction(engine, work)


def expire(engine: Engine, row: Claimed, token: str, config: Config) -> Recorded:
    """Its expiry passed while the row was in hand: no conversation starts."""

    def work(connection: Connection) -> Recorded:
        hand = Hand(connection, row, token, config)
        expired = _give_up(hand, Reason.EXPIRED, "expires_at passed before it could be sent")
        return look_for_reports(hand, expired) if expired is not None else _lost(hand)

    return in_transaction(engine, work)


def settle_in_hand(engine: Engine, row: Claimed, token: str, config: Config) -> Recorded | None:
    """The last look before a conversation about what may have been taken already. None: nobody has reported it."""

    def work(connection: Connection) -> Recorded | None:
        hand = Hand(connection, row, token, config)
        if connection.execute(select(Email.id).where(Email.id == row.id, is_proven())).first() is None:
            return None
        given = give_back(connection, Held(token, [row.id]), config)
        if not given.rows:
            return _lost(hand)
        state = Status.SENT if given.settled else Status.CANCELLED  # its erasure was asked for
        return Recorded(True, _running(connection), state, settled=tuple(given.settled))

    return in_transaction(engine, work)


def look_for_reports(hand: Hand, recorded: Recorded) -> Recorded:
    """After every outcome but ``sent``: with the row's lock, so that no report comes between."""
    if not hand.config.hears_reports or recorded.state not in (Status.PENDING, Status.FAILED) or recorded.released:
        return recorded
    settled = settle(hand.connection, [hand.row.id])
    if not settled:
        return recorded
    return replace(recorded, state=Status.SENT, reason=None, delay=None, settled=tuple(settled))


def _sent(hand: Hand, result: Result) -> Recorded | None:
    moved = moves.send(hand.connection, hand.row.id, hand.token, result.reply, hand.seconds)
    return moved and Recorded(True, moved.running, Status.SENT)


def _deferred(hand: Hand, result: Result) -> Recorded | None:
    tried = hand.tried(result)
    if tried.attempts > hand.config.max_retry_attempts:
        return _give_up(hand, Reason.EXHAUSTED, result.reply, tried)
    return _back_off(hand, tried, Reason.EXPIRED)


def _rejected(hand: Hand, result: Result) -> Recorded | None:
    if is_refusing_everybody(hand.connection, hand.row.id, hand.domain, result):
        return _outage(hand, result)
    return _give_up(hand, Reason.REJECTED, result.reply, hand.tried(result))


def _outage(hand: Hand, result: Result) -> Recorded:
    given = give_back(hand.connection, Held(hand.token), hand.config)
    if not given.rows:
        return _lost(hand)  # an outage seen by a worker that was frozen since is no news
    begun = open_outage(hand.connection, result.reply, probe=hand.probe)
    waiting = _waiting(hand.connection) if begun else None
    return Recorded(
        True, False, Status.PENDING, released=Released.OUTAGE, waiting=waiting, settled=tuple(given.settled)
    )


def _waiting(connection: Connection) -> int:
    due = select(Email.id).where(PENDING, ANY_PRIORITY, Email.next_attempt_at <= db_now()).limit(MAX_WAITING)
    return connection.execute(select(func.count()).select_from(due.subquery())).scalar_one()


def _cut(hand: Hand, _result: Result) -> Recorded:
    given = give_back(hand.connection, Held(hand.token), hand.config)
    return Recorded(True, False, Status.PENDING, released=Released.CUT, settled=tuple(given.settled))


def record_uncertain(hand: Hand, result: Result, *, worker_lost: bool = False) -> Recorded | None:
    """The server may have taken it. None: the row is not in this hand any more."""
    tried = hand.tried(result, worker_lost=worker_lost)
    for_a_person = hand.row.on_uncertain == "hold" or tried.attempts > hand.config.max_retry_attempts
    if for_a_person or (worker_lost and _lost_a_worker_before(hand)):
        return _give_up(hand, Reason.UNCERTAIN, result.reply, tried)
    return _back_off(hand, tried, Reason.UNCERTAIN)


def _lost_a_worker_before(hand: Hand) -> bool:
    since = select(func.max(DeadLetter.resolved_at)).where(DeadLetter.email == hand.row.id).scalar_subquery()
    lost = select(Attempt.id).where(
        Attempt.email == hand.row.id, Attempt.worker_lost, Attempt.at > func.coalesce(since, LONG_AGO)
    )
    return hand.connection.execute(lost.limit(1)).first() is not None


def _back_off(hand: Hand, tried: Tried, too_late: Reason) -> Recorded | None:
    delay = backoff(tried.attempts, hand.config.retry_delay_seconds, hand.config.retry_max_delay_seconds)
    if hand.config.hears_reports and tried.result.outcome is Outcome.UNCERTAIN:
        delay = max(delay, hand.config.report_wait_seconds)
    moved = moves.defer(hand.connection, hand.row.id, hand.token, tried, delay)
    if moved is None:  # it would be due past its expiry, or is not ours, and then nor does it fail
        return _give_up(hand, too_late, tried.result.reply, tried)
    if moved.erase_requested:
        return Recorded(True, moved.running, Status.CANCELLED)
    return Recorded(True, moved.running, Status.PENDING, delay=delay)


def _give_up(hand: Hand, reason: Reason, error: str, tried: Tried | None = None) -> Recorded | None:
    failed = moves.fail(hand.connection, hand.row.id, hand.token, reason, error, tried)
    return failed and Recorded(True, failed.running, Status.FAILED, failed.reason)


def _running(connection: Connection) -> bool:
    return bool(connection.execute(select(RUNNING)).scalar_one())


def _lost(hand: Hand) -> Recorded:
    """No row matched. Either our own commit went through and its reply was lost, or somebody else has decided."""
    statement = select(Email.status, Email.claim, Email.attempts).where(Email.id == hand.row.id)
    found = hand.connection.execute(statement).first()
    # The sweep takes the token off the row, another claim replaces it, a replay begins the attempts anew: only our own
    # outcome leaves it so.
    if (
        found is not None
        and found.claim == hand.token
        and (found.attempts > hand.row.attempts or found.status == Status.FAILED)
    ):
        return Recorded(True, _running(hand.connection), Status(found.status))
    return Recorded(False, False)


_RECORD: dict[Outcome, Callable[[Hand, Result], Recorded | None]] = {
    Outcome.SENT: _sent,
    Outcome.DEFERRED: _deferred,
    Outcome.REJECTED: _rejected,
    Outcome.OUTAGE: _outage,
    Outcome.UNCERTAIN: record_uncertain,
    Outcome.CUT: _cut,
}
