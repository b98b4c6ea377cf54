"""What always holds, whatever was killed when."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, Engine, case, func, select

from emailsvc.clock import utcnow
from emailsvc.db.absorbed import FIRST, IS_ABSORBED, IS_ITS_FIRST
from emailsvc.db.counts import differences, read_marks
from emailsvc.db.models import DeadLetter, Email, Window, has_status
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Resolution, Status

SLICE = 5_000
"""So many ids, and no more of the letters and of what failed, are looked at by one sweep."""

_OF_IT = select(DeadLetter.id).where(DeadLetter.email == Email.id)
_UNRESOLVED = _OF_IT.where(DeadLetter.resolved_at.is_(None)).exists()
_DISCARDED = _OF_IT.where(DeadLetter.resolution == Resolution.DISCARDED).exists()


def violations(engine: Engine, config: Config) -> list[str]:
    """The invariant, as sentences about what breaks it; empty when it holds. It looks at all that waits or failed."""
    pending = (has_status(Status.PENDING), Email.next_attempt_at.is_(None))
    with snapshot(engine) as connection:
        wrong = [*_broken(connection, "pending without a due time", *pending), *_stuck(connection, config)]
        wrong += [*_letters(connection), *_duplicates(connection)]
        for kind, lack in differences(connection, read_marks(connection)).items():
            wrong.append(f"the counter of {kind} lacks {lack}, as the rows tell")
    return wrong


def glance(engine: Engine, config: Config, number: int | None = None) -> list[str]:
    """The part of it that costs the same however much is stored: one of the slices by id, each minute the next."""
    minute = int(utcnow().timestamp()) // 60 if number is None else number
    with snapshot(engine) as connection:
        newest = connection.execute(select(func.max(Email.id))).scalar_one() or 0
        start = minute % (newest // SLICE + 1) * SLICE
        return [*_stuck(connection, config), *_letters(connection, range(start, start + SLICE))]


def _stuck(connection: Connection, config: Config) -> Iterator[str]:
    stuck = (
        Email.lease_expires_at.is_(None)
        | Email.claim.is_(None)
        | (Email.lease_expires_at < db_in(-2 * config.sweep_seconds))
    )
    text = "sending without a token, or with a lease older than two sweeps"
    return _broken(connection, text, has_status(Status.SENDING), stuck)


def _letters(connection: Connection, ids: range | None = None) -> Iterator[str]:
    failed = [has_status(Status.FAILED), ~_UNRESOLVED, ~_DISCARDED]
    alive = [Email.id == DeadLetter.email, DeadLetter.resolved_at.is_(None), Email.status != Status.FAILED]
    if ids is not None:
        failed += [Email.id >= ids.start, Email.id < ids.stop]
        alive += [DeadLetter.email >= ids.start, DeadLetter.email < ids.stop]
    yield from _broken(connection, "failed without an unresolved or discarded dead letter", *failed)
    yield from _broken(connection, "with an unresolved dead letter are not failed", *alive)


_HOLDS_A_WINDOW = select(Window.key).where(Window.email == Email.id).exists()
_IS_ALONE = Email.scrubbed_at.is_(None) & ~select(FIRST.id).where(IS_ITS_FIRST).exists()
_WRONG_DUPLICATES = {
    "duplicates of others are not cancelled": Email.status != Status.CANCELLED,
    "kept as duplicates of one that is gone": _IS_ALONE,
    "duplicates of others hold a window": _HOLDS_A_WINDOW,
}
_COUNT_DUPLICATES = select(*(func.count(case((wrong, 1))) for wrong in _WRONG_DUPLICATES.values())).where(IS_ABSORBED)


def _duplicates(connection: Connection) -> Iterator[str]:
    counts = connection.execute(_COUNT_DUPLICATES).one()
    yield from (f"{count} e-mails {what}" for what, count in zip(_WRONG_DUPLICATES, counts, strict=True) if count)


def _broken(connection: Connection, what: str, *condition: ColumnElement[bool]) -> Iterator[str]:
    count = connection.execute(select(func.count()).select_from(Email).where(*condition)).scalar_one()
    if count:
        yield f"{count} e-mails {what}"
