"""Recording what became of a row in hand: one commit per outcome, fenced on status and token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update

from emailsvc.db.models import Attempt, DeadLetter, Email, Reason, Status
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.mail.outcome import Outcome, Result
from emailsvc.outbox.claim import ANY_PRIORITY, PENDING, SENDING, Claimed, release_rows, scrub, withdraw_erased
from emailsvc.outbox.refusals import LONG_AGO, is_refusing_everybody
from emailsvc.outbox.retry import backoff
from emailsvc.outbox.switch import RUNNING, close_outage, open_outage
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config

MAX_WAITING = 100_000
"""Counted no further when an outage begins."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """``won`` False: the row was no longer ours, somebody else has decided; stop. ``go_on``: delivery is running.

    ``state`` and ``reason`` say what the row became; ``delay`` in how many seconds it is due again.
    ``waiting``, when this began an outage: how many are due. ``outage_seconds``, when it ended one: how long that was.
    """

    won: bool
    go_on: bool
    state: str = ""
    reason: str | None = None
    delay: float | None = None
    waiting: int | None = None
    outage_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Hand:
    """One row in hand and everything that its next state depends on."""

    connection: Connection
    row: Claimed
    token: str
    config: Config
    probe: bool
    seconds: float  # how long the conversation took

    @property
    def domain(self) -> str:
        return str(self.row.recipient).rpartition("@")[2].lower()


def record(
    engine: Engine, row: Claimed, token: str, result: Result, config: Config, *, probe: bool = False, seconds: float = 0
) -> Recorded:
    """Write the outcome of one conversation. Safe to repeat when the reply to a commit was lost: the token tells.

    Raises the database's error when nothing is known to be written; the caller then starts nothing more until it is.
    """

    def work(connection: Connection) -> Recorded:
        hand = Hand(connection, row, token, config, probe, seconds)
        moved: Recorded | None = _MOVES[result.outcome](hand, result)
        if moved is None:
            return _lost(hand)
        if probe and moved.reason not in ("outage", "cut"):
            ended = close_outage(connection)
            return replace(moved, go_on=_running(connection), outage_seconds=ended)
        return moved

    return in_transaction(engine, work)


def expire(engine: Engine, row: Claimed, token: str, config: Config) -> Recorded:
    """`expires_at` passed while the row was in hand: no conversation starts."""

    def work(connection: Connection) -> Recorded:
        hand = Hand(connection, row, token, config, probe=False, seconds=0)
        return _give_up(hand, Reason.EXPIRED, "expires_at passed before it could be sent", row.attempts) or _lost(hand)

    return in_transaction(engine, work)


_SENT = (
    update(Email)
    .where(SENDING, Email.id == bindparam("row_id"), Email.claim == bindparam("token"))
    .values(
        status="sent", attempts=Email.attempts + 1, sent_at=db_now(), final_at=db_now(), next_attempt_at=None,
        lease_expires_at=None, last_error=None,
    )
    .returning(Email.erase_requested, RUNNING.label("running"))
)  # fmt: skip


def _sent(hand: Hand, result: Result) -> Recorded | None:
    row = hand.connection.execute(_SENT, {"row_id": hand.row.id, "token": hand.token}).first()
    if row is None:
        return None
    if row.erase_requested:
        scrub(hand.connection, Email.id == hand.row.id, recipient=True)
    return Recorded(True, row.running, "sent")


def _deferred(hand: Hand, result: Result) -> Recorded | None:
    attempts = hand.row.attempts + 1
    if attempts > hand.config.max_retry_attempts:
        return _give_up(hand, Reason.EXHAUSTED, result.text, attempts, result)
    return _back_off(hand, result, attempts, Reason.EXPIRED)


def _rejected(hand: Hand, result: Result) -> Recorded | None:
    if is_refusing_everybody(hand.connection, hand.row.id, hand.domain, result):
        return _outage(hand, result)
    return _give_up(hand, Reason.REJECTED, result.text, hand.row.attempts + 1, result)


def _outage(hand: Hand, result: Result) -> Recorded:
    if not release_rows(hand.connection, hand.token):
        return _lost(hand)  # an outage seen by a worker that was frozen since is no news
    begun = open_outage(hand.connection, result.text, probe=hand.probe)
    return Recorded(True, False, "pending", "outage", waiting=_waiting(hand.connection) if begun else None)


def _waiting(connection: Connection) -> int:
    due = select(Email.id).where(PENDING, ANY_PRIORITY, Email.next_attempt_at <= db_now()).limit(MAX_WAITING)
    return connection.execute(select(func.count()).select_from(due.subquery())).scalar_one()


def _cut(hand: Hand, result: Result) -> Recorded:
    release_rows(hand.connection, hand.token)
    return Recorded(True, False, "pending", "cut")


def _uncertain(hand: Hand, result: Result) -> Recorded | None:
    return uncertain(hand, result, worker_lost=False)


def uncertain(hand: Hand, result: Result, *, worker_lost: bool) -> Recorded | None:
    attempts = hand.row.attempts + 1
    held = hand.row.on_uncertain == "hold" or attempts > hand.config.max_retry_attempts
    if held or (worker_lost and _lost_a_worker_before(hand)):
        return _give_up(hand, Reason.UNCERTAIN, result.text, attempts, result, worker_lost=worker_lost)
    return _back_off(hand, result, attempts, Reason.UNCERTAIN, worker_lost=worker_lost)


def _lost_a_worker_before(hand: Hand) -> bool:
    since = select(func.max(DeadLetter.resolved_at)).where(DeadLetter.email == hand.row.id).scalar_subquery()
    lost = select(Attempt.id).where(
        Attempt.email == hand.row.id, Attempt.worker_lost, Attempt.at > func.coalesce(since, LONG_AGO)
    )
    return hand.connection.execute(lost.limit(1)).first() is not None


def _back_off(
    hand: Hand, result: Result, attempts: int, too_late: Reason, *, worker_lost: bool = False
) -> Recorded | None:
    delay = backoff(attempts, hand.config.retry_delay_seconds, hand.config.retry_max_delay_seconds)
    moved = hand.connection.execute(
        update(Email)
        .where(SENDING, Email.id == hand.row.id, Email.claim == hand.token)
        .values(
            status="pending", attempts=attempts, next_attempt_at=db_in(delay), lease_expires_at=None,
            last_error=result.text, **_maybe_sent(result.outcome is Outcome.UNCERTAIN),
        )
        .returning(
            Email.erase_requested, RUNNING.label("running"),
            (Email.next_attempt_at >= Email.expires_at).label("too_late"),
        )
    ).first()  # fmt: skip
    if moved is None:
        return None
    if moved.too_late:
        return _give_up(hand, too_late, result.text, attempts, result, worker_lost=worker_lost, held_as=PENDING)
    _note_attempt(hand, result, worker_lost)
    if moved.erase_requested:
        withdraw_erased(hand.connection, [hand.row.id])
        return Recorded(True, moved.running, "cancelled", "erased")
    return Recorded(True, moved.running, "pending", result.outcome.value, delay)


def _give_up(
    hand: Hand,
    reason: Reason,
    error: str,
    attempts: int,
    result: Result | None = None,
    *,
    worker_lost: bool = False,
    held_as: Any = SENDING,
) -> Recorded | None:
    moved = hand.connection.execute(
        update(Email)
        .where(held_as, Email.id == hand.row.id, Email.claim == hand.token)
        .values(
            status="failed", attempts=attempts, next_attempt_at=None, lease_expires_at=None, last_error=error,
            **_maybe_sent(reason is Reason.UNCERTAIN),
        )
        .returning(Email.erase_requested, Email.maybe_sent, RUNNING.label("running"))
    ).first()  # fmt: skip
    if moved is None:
        return None
    if result is not None:
        _note_attempt(hand, result, worker_lost)
    reason, error = verdict(moved.maybe_sent, reason, error)
    bury(hand.connection, hand.row.id, reason, error, attempts, discard=moved.erase_requested)
    return Recorded(True, moved.running, "failed", reason.value)


def verdict(maybe_sent: bool, reason: Reason, error: str) -> tuple[Reason, str]:
    """Whatever ended it: of a mail that an earlier attempt may have delivered, nobody may say that it was not."""
    if maybe_sent and reason is not Reason.UNCERTAIN:
        return Reason.UNCERTAIN, f"an earlier attempt may have reached the server; then: {error}"
    return reason, error


def _maybe_sent(uncertain: bool) -> dict[str, bool]:
    return {"maybe_sent": True} if uncertain else {}


def bury(
    connection: Connection, row_id: int, reason: Reason, error: str, attempts: int, *, discard: bool = False
) -> None:
    """The dead letter of a row that has just become ``failed`` in this transaction; discarded at once when erased."""
    connection.execute(
        insert(DeadLetter).values(
            email=row_id, reason=reason.value, error="(erased)" if discard else error, attempts=attempts,
            created_at=db_now(), resolved_at=db_now() if discard else None, resolution="discarded" if discard else None,
        )
    )  # fmt: skip
    if discard:
        scrub(connection, Email.id == row_id, recipient=True)
        connection.execute(update(Email).where(Email.id == row_id).values(final_at=db_now()))


def _note_attempt(hand: Hand, result: Result, worker_lost: bool) -> None:
    hand.connection.execute(
        insert(Attempt).values(
            email=hand.row.id, outcome=result.outcome.value, code=result.code, enhanced=result.enhanced,
            command=result.command, words=result.text, domain=hand.domain, worker_lost=worker_lost,
            started_at=db_in(-hand.seconds), at=db_now(),
        )
    )  # fmt: skip


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
        return Recorded(True, _running(hand.connection), found.status)
    return Recorded(False, False)


_MOVES: dict[Outcome, Any] = {
    Outcome.SENT: _sent,
    Outcome.DEFERRED: _deferred,
    Outcome.REJECTED: _rejected,
    Outcome.OUTAGE: _outage,
    Outcome.UNCERTAIN: _uncertain,
    Outcome.CUT: _cut,
}
