"""Does the mail server refuse everybody? Then it is our account that it refuses, and not so many recipients."""

from __future__ import annotations

from sqlalchemy import Connection, exists, func, select
from sqlalchemy.orm import aliased

from emailsvc.db.models import Attempt, Email, Switch, has_status
from emailsvc.db.sqltime import db_in
from emailsvc.mail import Result
from emailsvc.vocabulary import Status

REFUSALS_IN_A_ROW = 20
UNEXPLAINED_IN_A_ROW = 60
"""So many when the unexplained ones are needed to make a run."""

REFUSED_DOMAINS = 3
MAX_READ = 500
"""Refusals looked at for each new one, the newest: workers wait meanwhile."""

ABOUT_THE_RECIPIENT = ("1.1", "1.2", "1.3", "1.4", "1.6", "1.10", "2.1", "2.2")
"""RFC 3463 (1.10: RFC 7505) without the class. 1.7 and 1.8 are about the sender; 2.0 says many things."""

LONG_AGO = db_in(-10 * 365 * 86400.0)


def is_refusing_everybody(connection: Connection, row_id: int, domain: str, result: Result) -> bool:
    """Is this refusal the last of a run without one success? Only the first refusal of an e-mail counts: a replay of
    dead letters says nothing new. The answer holds until commit, because others wait for theirs.
    """
    if (
        result.code is None
        or _about_the_recipient(result.enhanced, result.command)
        or _refused_before(connection, row_id)
    ):
        return False
    # Refusals are counted one at a time, so that a suspended account costs no more dead letters than it must.
    connection.execute(select(Switch.id).with_for_update())
    run = [(domain, result.enhanced, result.command), *_run(connection)]
    counted = [refusal for refusal in run if not _about_the_recipient(*refusal[1:])]
    explained = [refusal for refusal in counted if not _unexplained(*refusal[1:])]
    return _is_long(explained, REFUSALS_IN_A_ROW) or _is_long(counted, UNEXPLAINED_IN_A_ROW)


Refusal = tuple[str, str | None, str | None]
"""Domain, enhanced code and command."""


def _is_long(run: list[Refusal], enough: int) -> bool:
    domains = {domain for domain, *_ in run if domain}  # an erased one is empty
    return len(run) >= enough and len(domains) >= REFUSED_DOMAINS


def _about_the_recipient(enhanced: str | None, command: str | None) -> bool:
    """MAIL does not name the recipient yet."""
    return command != "MAIL" and enhanced is not None and enhanced.partition(".")[2] in ABOUT_THE_RECIPIENT


def _unexplained(enhanced: str | None, command: str | None) -> bool:
    """A refusal of RCPT may be about either. Exim gives no code; a release before 0002 did not note the command."""
    return enhanced is None and command in ("RCPT", None)


def _refused_before(connection: Connection, row_id: int) -> bool:
    before = select(Attempt.id).where(Attempt.email == row_id, Attempt.outcome == "rejected")
    return connection.execute(before.limit(1)).first() is not None


def _run(connection: Connection) -> list[Refusal]:
    """The first refusals since the last success, or since an outage was ended by hand."""
    sent_at = select(func.max(Email.sent_at)).where(has_status(Status.SENT)).scalar_subquery()
    latest = (
        select(Attempt.id, Attempt.email, Attempt.domain, Attempt.enhanced, Attempt.command)
        .where(
            Attempt.outcome == "rejected", Attempt.code.is_not(None), Attempt.at > func.coalesce(sent_at, LONG_AGO),
            Attempt.at > func.coalesce(select(Switch.refusals_from).scalar_subquery(), LONG_AGO),
        )
        .order_by(Attempt.at.desc(), Attempt.id.desc())
        .limit(MAX_READ)
        .subquery()
    )  # fmt: skip
    earlier = aliased(Attempt)
    repeated = exists().where(earlier.email == latest.c.email, earlier.id < latest.c.id, earlier.outcome == "rejected")
    found = select(latest.c.domain, latest.c.enhanced, latest.c.command).where(~repeated)
    return [(row.domain, row.enhanced, row.command) for row in connection.execute(found)]
