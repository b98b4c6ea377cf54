"""Dead letters by what they have in common: one filter lists them, counts them and chooses what is done to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, func, literal, or_, select
from sqlalchemy.orm import aliased

from emailsvc.db.models import Attempt, DeadLetter, Email
from emailsvc.intake import addresses
from emailsvc.vocabulary import Reason

DOUBTED = "an earlier attempt may have reached the server; then: "
"""Before the error of a dead letter that is ``uncertain`` for an earlier attempt's sake."""

UNRESOLVED = DeadLetter.resolved_at.is_(None)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Whatever is None or empty says nothing. ``error``: contained in the letter's, in capitals or not."""

    reason: Reason | None = None
    code: int | None = None
    domain: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: tuple[int, ...] = ()

    @property
    def names_uncertain(self) -> bool:
        """Whose e-mail may have been delivered, so nobody is to send it again by the way."""
        return bool(self.ids) or self.reason is Reason.UNCERTAIN

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """On ``dead_letters`` joined with ``emails``."""
        if self.reason is not None:
            yield DeadLetter.reason == self.reason
        if self.code is not None:
            yield own_attempt(Attempt.code) == self.code
        if self.domain is not None:
            yield or_(*(Email.recipient.iendswith(f"@{one}", autoescape=True) for one in _spellings(self.domain)))
        if self.error is not None:
            yield DeadLetter.error.icontains(self.error, autoescape=True)
        if self.since is not None:
            yield DeadLetter.created_at >= self.since
        if self.until is not None:
            yield DeadLetter.created_at < self.until
        if self.ids:
            yield DeadLetter.id.in_(self.ids)


EVERY = LetterFilter()


def own_attempt(column: Any) -> ScalarSelect[Any]:
    """A column of the attempt that a dead letter was written with; NULL when it was written without one.

    It is the last one before the letter, and its reply is the letter's error. Both are noted in one transaction.
    """
    tried = aliased(Attempt)
    last = select(func.max(tried.id)).where(tried.email == DeadLetter.email, tried.at <= DeadLetter.created_at)
    replies = (Attempt.reply, literal(DOUBTED) + Attempt.reply)
    chosen = select(column).where(
        Attempt.id == last.correlate(DeadLetter).scalar_subquery(), DeadLetter.error.in_(replies)
    )
    return chosen.correlate(DeadLetter).scalar_subquery()


def _spellings(domain: str) -> set[str]:
    return {domain, addresses.to_ascii(domain) or domain}
