"""Small tools for the tests of the outbox: its rows, and time moved instead of waited for."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, delete, select, update

from emailsvc import outbox
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.counts import TOTALS
from emailsvc.db.models import Attempt, Counter, DeadLetter, Email, Switch, Window
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import Claim
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Resolution
from tests.factories import new_email

SENT = Result(Outcome.SENT, "250 ok", 250)
DEFERRED = Result(Outcome.DEFERRED, "451 4.7.1 try later", 451, "4.7.1")
REJECTED = Result(Outcome.REJECTED, "550 5.1.1 no such user", 550, "5.1.1")
SUSPENDED = Result(Outcome.REJECTED, "550 5.7.1 account suspended", 550, "5.7.1", ".")
UNCERTAIN = Result(Outcome.UNCERTAIN, "the connection was lost after the final dot")
OUTAGE = Result(Outcome.OUTAGE, "connection refused")


def accept(engine: Engine, config: Config, *ids: str, **fields: Any) -> None:
    for email_id in ids or ("m-1",):
        outbox.accept(engine, new_email(email_id, **fields), config)


def token() -> str:
    return secrets.token_hex(16)


def claim(engine: Engine, config: Config, **options: Any) -> Claim:
    made = outbox.claim(engine, token(), config, **options)
    assert isinstance(made, Claim), made
    return made


def record(engine: Engine, config: Config, made: Claim, result: Result, number: int = 0) -> outbox.Recorded:
    return outbox.record(engine, made.rows[number], made.token, result, config, probe=made.probe)


def replay_many(engine: Engine, *, limit: int = 1000, **chosen: Any) -> int:
    return outbox.resolve_many(engine, Resolution.REPLAYED, LetterFilter(**chosen), limit=limit)


def row(engine: Engine, email_id: str = "m-1") -> Any:
    with engine.connect().execution_options(read_only=True) as connection:
        return connection.execute(select(Email).where(Email.email_id == email_id)).one()


def rows(engine: Engine, model: Any) -> list[Any]:
    with engine.connect().execution_options(read_only=True) as connection:
        return list(connection.execute(select(model).order_by(*model.__table__.primary_key)))


def switch(engine: Engine) -> Any:
    return rows(engine, Switch)[0]


def move(engine: Engine, seconds: float, *columns: str, email_id: str | None = None) -> None:
    """Shift times of e-mails, as if so many seconds had passed (or, negative, lay ahead)."""
    with engine.begin() as connection:
        found = select(Email.id, *(getattr(Email, name) for name in columns))
        for found_row in connection.execute(
            found if email_id is None else found.where(Email.email_id == email_id)
        ).all():
            values = {
                name: getattr(found_row, name) - timedelta(seconds=seconds)
                for name in columns
                if getattr(found_row, name) is not None
            }
            if values:
                connection.execute(update(Email).where(Email.id == found_row.id).values(**values))


def move_switch(engine: Engine, seconds: float, *columns: str) -> None:
    current = switch(engine)
    values = {name: getattr(current, name) - timedelta(seconds=seconds) for name in columns}
    with engine.begin() as connection:
        connection.execute(update(Switch).values(**values))


def go_back(engine: Engine, seconds: float) -> None:
    """As if everything had happened so much earlier. The hours of the counters stay, and are summed up anew."""
    move(engine, seconds, "received_at", "sent_at", "final_at", "next_attempt_at")
    marks = [name for name in ("rolled_up_to", "letters_rolled_up_to") if getattr(switch(engine), name)]
    move_switch(engine, seconds, *marks)
    for column in (Attempt.at, DeadLetter.created_at, DeadLetter.resolved_at, Window.ends_at):
        (key,) = column.class_.__table__.primary_key
        for found in rows(engine, column.class_):
            moment = getattr(found, column.key)
            if moment is not None:
                earlier = {column: moment - timedelta(seconds=seconds)}
                with engine.begin() as connection:
                    connection.execute(update(column.class_).where(key == getattr(found, key.name)).values(earlier))
    with engine.begin() as connection:
        connection.execute(delete(Counter).where(Counter.hour == TOTALS))
        connection.execute(update(Switch).values(totals_up_to=None))


def make_due(engine: Engine) -> None:
    move(engine, 100_000, "next_attempt_at")


def end_leases(engine: Engine) -> None:
    move(engine, 100_000, "lease_expires_at")
