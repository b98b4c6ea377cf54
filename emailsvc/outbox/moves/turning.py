"""One guarded UPDATE of the status, and what it is guarded by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, CompoundSelect, Select, Update, update

from emailsvc.db.models import BECOMES, Email, has_status, status_literal
from emailsvc.outbox.switch import RUNNING
from emailsvc.vocabulary import Status


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of one claim, all or those named. Whoever has no such row in hand any more matches nothing."""

    token: str
    ids: Sequence[int] | None = None

    @property
    def guard(self) -> tuple[ColumnElement[bool], ...]:
        mine = Email.claim == self.token
        return (mine,) if self.ids is None else (mine, Email.id.in_(self.ids))


class Moved(NamedTuple):
    """``running``: neither a pause nor an outage holds delivery up."""

    id: int
    erase_requested: bool
    running: bool


MOVED = (Email.id, Email.erase_requested, RUNNING.label("running"))


def _write(before: Status, after: Status) -> Update:
    if after not in BECOMES[before]:
        raise ValueError(f"{before} does not become {after}")
    return update(Email).values(status=status_literal(after))


def turn(before: Status, after: Status, *guard: ColumnElement[bool]) -> Update:
    return _write(before, after).where(has_status(before), *guard)


def turn_chosen(before: Status, after: Status, chosen: Select[int] | CompoundSelect[Any]) -> Update:
    """For rows that the statement itself has chosen by their status and locked. A second look at the status would
    invite PostgreSQL to walk through all rows that have it.
    """
    return _write(before, after).where(Email.id.in_(chosen))
