"""What always holds, whatever was killed when."""

from __future__ import annotations

from sqlalchemy import Engine, func, select

from emailsvc.db.models import DeadLetter, Email, has_status
from emailsvc.db.sqltime import db_in
from emailsvc.reports.snapshots import snapshot
from emailsvc.reports.totals import read_totals
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Resolution, Status


def violations(engine: Engine, config: Config) -> list[str]:
    """The invariant, as sentences about what breaks it; empty when it holds."""
    of_it = select(DeadLetter.id).where(DeadLetter.email == Email.id)
    unresolved = of_it.where(DeadLetter.resolved_at.is_(None)).exists()
    discarded = of_it.where(DeadLetter.resolution == Resolution.DISCARDED).exists()
    stuck = (
        Email.lease_expires_at.is_(None)
        | Email.claim.is_(None)
        | (Email.lease_expires_at < db_in(-2 * config.sweep_seconds))
    )
    checks = {
        "pending without a due time": (has_status(Status.PENDING), Email.next_attempt_at.is_(None)),
        "sending without a token, or with a lease older than two sweeps": (has_status(Status.SENDING), stuck),
        "failed without an unresolved or discarded dead letter": (has_status(Status.FAILED), ~unresolved & ~discarded),
    }
    letters = select(func.count(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None))
    alive = letters.join(Email, Email.id == DeadLetter.email).where(Email.status != Status.FAILED)
    with snapshot(engine) as connection:
        counts = {
            text: connection.execute(select(func.count(Email.id)).where(*c)).scalar_one() for text, c in checks.items()
        }
        counts["with an unresolved dead letter are not failed"] = connection.execute(alive).scalar_one()
        totals = read_totals(connection)
    wrong = [f"{count} e-mails {text}" for text, count in counts.items() if count]
    parts = {status.value: getattr(totals, status) for status in Status}
    if totals.received != sum(parts.values()):
        wrong.append(f"received is {totals.received}, but its parts add up to {sum(parts.values())}: {parts}")
    return wrong
