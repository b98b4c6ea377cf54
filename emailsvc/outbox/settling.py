"""E-mails that a report proves to have been taken, while nobody was sure of it.

A report locks its e-mail, is stored, and moves it. An outcome moves the e-mail, and then looks for reports. Whichever
comes second waits for the other's lock and then sees what it did, so that none is missed. All of this is only done
while reports are taken in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, update

from emailsvc.db.models import DeadLetter, Email, StoredReport, has_status
from emailsvc.db.sqltime import db_in
from emailsvc.outbox import moves
from emailsvc.outbox.counters import add_to_counter
from emailsvc.outbox.moves import Held
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Status

log = logging.getLogger("emailsvc.outbox")

PROOF: ColumnElement[bool] = or_(StoredReport.by_reference, Email.maybe_sent)
"""Our reference comes from a message that somebody took. Who knows the id alone is believed where nobody was sure."""


class GivenBack(NamedTuple):
    rows: int
    settled: list[str]  # of these, by email_id


def give_back(connection: Connection, held: Held, config: Config) -> GivenBack:
    """Release untouched rows; those that were reported meanwhile are not sent again."""
    released = moves.release(connection, held)
    return GivenBack(len(released), settle(connection, released) if config.hears_reports else [])


def settle(connection: Connection, ids: Sequence[int]) -> list[str]:
    """Make ``sent`` what a report proves, and return it by email_id.

    Whoever calls it has locked these rows before: only then is every report of them seen here, or comes after.
    """
    proven = select(Email.id, Email.email_id).where(Email.id.in_(ids), is_proven())
    names = {row.id: row.email_id for row in connection.execute(proven)} if ids else {}
    moved = moves.settle(connection, sorted(names)) if names else set()
    if moved:
        first = select(func.min(StoredReport.id)).where(StoredReport.email.in_(moved)).group_by(StoredReport.email)
        connection.execute(update(StoredReport).where(StoredReport.id.in_(first)).values(settled=True))
        add_to_counter(connection, "told:settled", len(moved))
    return [names[row_id] for row_id in sorted(moved)]


def is_proven() -> ColumnElement[bool]:
    """Of an e-mail."""
    return select(StoredReport.id).where(StoredReport.email == Email.id, PROOF).correlate(Email).exists()


def missed(config: Config) -> Select[Any]:
    """What could have been settled lately and was not: by a process of the release before, which does not look."""
    seconds = config.lease_seconds + 2 * config.sweep_seconds
    unresolved = select(DeadLetter.id).where(DeadLetter.email == Email.id, DeadLetter.resolved_at.is_(None)).exists()
    open_ones = or_(has_status(Status.PENDING), has_status(Status.FAILED) & unresolved)
    lately = select(StoredReport.email).join(Email, Email.id == StoredReport.email)
    return lately.where(StoredReport.received_at > db_in(-seconds), PROOF, open_ones).distinct()


def log_settled(email_ids: Iterable[str]) -> None:
    for email_id in email_ids:
        log.info("settled", extra={"fields": {"email_id": email_id}})
