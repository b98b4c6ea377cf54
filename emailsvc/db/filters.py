"""A filter as conditions of a statement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, func, literal_column

from emailsvc.db.models import PRIORITIES, Email, status_literal
from emailsvc.intake import addresses
from emailsvc.intake.filters import EmailFilter
from emailsvc.intake.payload import in_utc
from emailsvc.vocabulary import Priority, State, Status


def is_for(address: str, of: Any = Email) -> ColumnElement[bool]:
    """In whatever spelling the recipient was given; the index on the recipient is used."""
    return func.lower(of.recipient).in_([func.lower(one) for one in addresses.spellings(address)])


def has_priority(priority: Priority) -> ColumnElement[bool]:
    return Email.priority == literal_column(str(PRIORITIES[priority]))


def is_in(state: State, of: Any = Email) -> Iterator[ColumnElement[bool]]:
    if state in (State.CANCELLED, State.ABSORBED):
        yield of.status == status_literal(Status.CANCELLED)
        yield of.duplicate_of.is_(None) if state is State.CANCELLED else of.duplicate_of.is_not(None)
    else:
        yield of.status == status_literal(Status(state))


def in_time(wanted: EmailFilter, of: Any = Email) -> Iterator[ColumnElement[bool]]:
    """``of``: the table, or columns of it by their names."""
    at = of.sent_at if wanted.state is State.SENT else of.received_at
    if wanted.since is not None:
        yield at >= in_utc(wanted.since)
    if wanted.until is not None:
        yield at < in_utc(wanted.until)


def matches(wanted: EmailFilter, of: Any = Email) -> Iterator[ColumnElement[bool]]:
    yield from in_time(wanted, of)
    if wanted.user is not None:
        yield is_for(wanted.user, of)
    if wanted.state is not None:
        yield from is_in(wanted.state, of)
    if wanted.duplicate_of is not None:
        yield of.duplicate_of == wanted.duplicate_of
    if wanted.error is not None:
        yield of.last_error.icontains(wanted.error, autoescape=True)
    if wanted.priority is not None:
        yield of.priority == PRIORITIES[wanted.priority]
