"""The end of an attempt: sent, deferred or failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    Text,
    Update,
    bindparam,
    insert,
    literal_column,
    null,
    or_,
)  # fmt: skip

from emailsvc.db.choosing import DOUBTED
from emailsvc.db.models import Attempt, DeadLetter, Email
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.mail import Outcome, Result
from emailsvc.outbox.moves.turning import MOVED, Moved, turn, turn_chosen
from emailsvc.outbox.moves.withdrawing import erase_as_asked
from emailsvc.vocabulary import Reason, Status


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt that did not end in ``sent``; ``attempts`` counts it."""

    result: Result
    attempts: int
    domain: str
    seconds: float
    worker_lost: bool = False


class Failed(NamedTuple):
    email_id: str
    reason: Reason
    running: bool


def to_sent(reply: ColumnElement[str], seconds: ColumnElement[float], *mine: ColumnElement[bool]) -> Update:
    return turn(Status.SENDING, Status.SENT, *mine).values(
        attempts=Email.attempts + literal_column("1"), sent_at=db_now(), final_at=db_now(), next_attempt_at=null(),
        lease_expires_at=null(), last_error=null(), reply=reply, conversation_seconds=seconds,
    )  # fmt: skip


def one_to_sent(*mine: ColumnElement[bool]) -> Update:
    """It takes ``row_id``, ``token``, ``reply`` and ``seconds``."""
    it = (Email.id == bindparam("row_id"), Email.claim == bindparam("token"))
    return to_sent(bindparam("reply", type_=Text()), bindparam("seconds", type_=Float()), *it, *mine)


_SENT = one_to_sent().returning(*MOVED)


def send(connection: Connection, row_id: int, token: str, reply: str, seconds: float) -> Moved | None:
    """``sending → sent``, for what is not sent together.

    None: our own commit went through before, or a sweep has made the e-mail uncertain.
    """
    values = {"row_id": row_id, "token": token, "reply": reply, "seconds": seconds}
    return _ended(connection, connection.execute(_SENT, values).first())


def defer(connection: Connection, row_id: int, token: str, tried: Tried, delay: float) -> Moved | None:
    """``sending → pending`` for another attempt in ``delay`` seconds.

    None: as for ``send``, or that would be past its expiry; then it can only ``fail``.
    """
    in_time = or_(Email.expires_at.is_(None), db_in(delay) < Email.expires_at)
    moved = connection.execute(
        turn(Status.SENDING, Status.PENDING, Email.id == row_id, Email.claim == token, in_time)
        .values(
            attempts=tried.attempts, next_attempt_at=db_in(delay), lease_expires_at=None,
            last_error=tried.result.reply, **_maybe_sent(tried.result.outcome is Outcome.UNCERTAIN),
        )
        .returning(*MOVED)
    ).first()  # fmt: skip
    if moved is not None:
        _note_attempt(connection, row_id, tried)
    return _ended(connection, moved)


def fail(
    connection: Connection, row_id: int, token: str, reason: Reason, error: str, tried: Tried | None = None
) -> Failed | None:
    """``sending → failed`` with its dead letter, after the last attempt or without one. None: as for ``send``."""
    statement = turn(Status.SENDING, Status.FAILED, Email.id == row_id, Email.claim == token)
    if tried is not None:
        statement = statement.values(attempts=tried.attempts)
    failed = _fail(connection, statement, reason, error, tried)
    return failed[0] if failed else None


def fail_waiting(connection: Connection, chosen: Select[int], reason: Reason, error: str) -> list[Failed]:
    """``pending → failed`` with their dead letters. What does not match was claimed or withdrawn meanwhile."""
    return _fail(connection, turn_chosen(Status.PENDING, Status.FAILED, chosen), reason, error, None)


def _fail(connection: Connection, statement: Update, reason: Reason, error: str, tried: Tried | None) -> list[Failed]:
    ended = {"next_attempt_at": None, "lease_expires_at": None, "last_error": error}
    rows = connection.execute(
        statement.values(**ended, **_maybe_sent(reason is Reason.UNCERTAIN)).returning(
            *MOVED, Email.email_id, Email.attempts, Email.maybe_sent
        )
    ).all()
    if not rows:
        return []
    letters, failed = [], []
    for row in rows:
        if tried is not None:
            _note_attempt(connection, row.id, tried)
        why, what = _told(row.maybe_sent, reason, error)
        letters.append({"email": row.id, "reason": why.value, "error": what, "attempts": row.attempts})
        failed.append(Failed(row.email_id, why, row.running))
    connection.execute(insert(DeadLetter).values(created_at=db_now()), letters)
    erase_as_asked(connection, [Moved(row.id, row.erase_requested, row.running) for row in rows])
    return failed


def _told(maybe_sent: bool, reason: Reason, error: str) -> tuple[Reason, str]:
    """Whatever ended it: of a mail that an earlier attempt may have delivered, nobody may say that it was not."""
    if maybe_sent and reason is not Reason.UNCERTAIN:
        return Reason.UNCERTAIN, f"{DOUBTED}{error}"
    return reason, error


def _maybe_sent(uncertain: bool) -> dict[str, bool]:
    return {"maybe_sent": True} if uncertain else {}


def _note_attempt(connection: Connection, row_id: int, tried: Tried) -> None:
    result = tried.result
    connection.execute(
        insert(Attempt).values(
            email=row_id, outcome=result.outcome.value, code=result.code, enhanced=result.enhanced,
            command=result.command, reply=result.reply, domain=tried.domain, worker_lost=tried.worker_lost,
            started_at=db_in(-tried.seconds), at=db_now(),
        )
    )  # fmt: skip


def _ended(connection: Connection, row: Row[Any] | None) -> Moved | None:
    if row is None:
        return None
    moved = Moved._make(row)
    erase_as_asked(connection, [moved])
    return moved
