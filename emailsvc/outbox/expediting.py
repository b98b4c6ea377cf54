"""Making what waits due at once: after a repair nobody need wait for a backoff to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import cast

import msgspec
from sqlalchemy import Connection, Engine, case, func, select, update

from emailsvc.db.absorbed import IS_ABSORBED, IS_FIRST_UNSENT
from emailsvc.db.filters import matches
from emailsvc.db.models import Email, has_status
from emailsvc.db.sqltime import db_now
from emailsvc.errors import Conflict, InvalidPayload, NotFound
from emailsvc.intake.filters import EmailFilter
from emailsvc.log import mask
from emailsvc.outbox import actions
from emailsvc.outbox.cancelling import TOO_LATE
from emailsvc.outbox.reviving import revive, revive_some
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind, State, Status

CHUNK = 500
"""E-mails per transaction."""

MAX_COUNTED = 100_000
"""Of those that match: in the large backlog in which somebody hurries a few, the answer must not wait for a count."""

_MakeDue = Callable[[Connection, Sequence[int]], int]

_PENDING = has_status(Status.PENDING)
_STANDING = case(
    (IS_ABSORBED, "absorbed"),
    (Email.maybe_sent, "uncertain"),
    (Email.next_attempt_at <= db_now(), "due"),
    (Email.send_at > db_now(), "scheduled"),
    else_="waiting",
).label("standing")

_WHY_NOT: dict[str, tuple[str, str]] = {
    **TOO_LATE,
    Status.CANCELLED: ("cancelled", "This e-mail was cancelled."),
    "uncertain": ("maybe_sent", "An earlier attempt may have reached the mail server, so the next waits for its time."),
    "scheduled": ("scheduled", "Its send_at lies ahead, and it is not sent before."),
}


@dataclass(frozen=True, slots=True)
class Expedited:
    """``made_due``: of those ``matching``; the others were due already, have a ``send_at`` ahead, or an uncertain
    attempt. No more than ``MAX_COUNTED`` of them are counted.
    """

    matching: int
    made_due: int
    already_due: int
    scheduled: int
    uncertain_left_out: int


def send_now(engine: Engine, email_id: str, *, who: str | None = None) -> datetime:
    """Make it due at once, also what an e-mail that was not sent had absorbed; since when it is. Raises NotFound, or
    Conflict saying what forbids it.
    """
    return in_transaction(engine, lambda connection: _send_now(connection, email_id, who))


def _send_now(connection: Connection, email_id: str, who: str | None) -> datetime:
    it = Email.email_id == email_id
    found = connection.execute(
        select(Email.id, Email.status, Email.duplicate_of, _STANDING).where(it).with_for_update()
    ).first()
    if found is None:
        raise NotFound(f"There is no e-mail with the id {email_id!r}.")
    if found.duplicate_of is not None:
        return revive(connection, found.id, email_id, who)
    why_not = _WHY_NOT.get(found.standing if found.status == Status.PENDING else found.status)
    if why_not is not None:
        raise Conflict(*why_not)
    if _make_due(connection, [found.id]):
        actions.note(connection, ActionKind.MADE_DUE, who, asked={"email_id": email_id}, count=1)
    return cast(datetime, connection.execute(select(Email.next_attempt_at).where(it)).scalar_one())


def send_many_now(
    engine: Engine,
    wanted: EmailFilter,
    *,
    limit: int = 1000,
    dry_run: bool = False,
    who: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Expedited:
    """Make up to ``limit`` of those that match due at once, in the order in which they would be. With ``dry_run`` they
    are only counted. Raises InvalidPayload. ``progress`` is told after each chunk how many of how many were looked at.
    """
    _check(wanted, dry_run)
    which = [IS_FIRST_UNSENT if wanted.first_unsent else _PENDING, *matches(wanted)]
    # Which they are is decided once, here: what is deferred anew meanwhile is not hurried again.
    chosen = select(Email.id).where(*which, _STANDING.in_(["waiting", "absorbed"]))
    chosen = chosen.order_by(Email.priority, Email.next_attempt_at, Email.id)
    with engine.connect().execution_options(read_only=True) as connection:
        some = select(_STANDING).where(*which).limit(MAX_COUNTED).subquery()
        counted = connection.execute(select(some.c.standing, func.count()).group_by(some.c.standing))
        counts: dict[str, int] = dict(iter(counted))
        ids = connection.execute(chosen.limit(limit)).scalars().all()
    made_due = len(ids)
    if ids and not dry_run:
        asked = _asked(wanted) | {"limit": limit}
        action = in_transaction(engine, lambda one: actions.note(one, ActionKind.MADE_DUE, who, asked=asked))
        move = revive_some if wanted.first_unsent else _make_due
        made_due = sum(_in_chunks(engine, ids, action, move, progress))
    left_out = (counts.get(standing, 0) for standing in ("due", "scheduled", "uncertain"))
    return Expedited(sum(counts.values()), made_due, *left_out)


def _check(wanted: EmailFilter, dry_run: bool) -> None:
    wanted.check()
    if wanted.is_about_absorbed and not wanted.first_unsent:
        words = "What was absorbed is sent only with first_unsent: true."
        raise InvalidPayload("missing_field", words, "first_unsent")
    if wanted.state not in (None, State.PENDING, State.ABSORBED):
        raise InvalidPayload("invalid_field", "state must be pending: nothing else can be sent now.", "state")
    if not dry_run and not any((wanted.state, wanted.user, wanted.since, wanted.until, wanted.first_unsent)):
        words = "Name them by user, state, since or until; the state pending is all that waits."
        raise InvalidPayload("missing_field", words, "state")


def _asked(wanted: EmailFilter) -> dict[str, object]:
    """For the journal, which outlives a person: without the address."""
    given = {name: getattr(wanted, name) for name in EmailFilter.__struct_fields__}
    named = {name: msgspec.to_builtins(value) for name, value in given.items() if value is not None}
    return named | ({"user": mask(wanted.user)} if wanted.user is not None else {})


def _in_chunks(
    engine: Engine, ids: Sequence[int], action: int, make_due: _MakeDue, progress: Callable[[int, int], None]
) -> Iterator[int]:
    for n in range(0, len(ids), CHUNK):
        yield in_transaction(engine, partial(_make_some_due, ids=ids[n : n + CHUNK], action=action, make_due=make_due))
        progress(min(n + CHUNK, len(ids)), len(ids))


def _make_some_due(connection: Connection, ids: Sequence[int], action: int, make_due: _MakeDue) -> int:
    count = make_due(connection, ids)
    actions.count_more(connection, action, count)
    return count


def _make_due(connection: Connection, ids: Sequence[int]) -> int:
    """What does not match is due, in hand or withdrawn by now."""
    waiting = (_PENDING, Email.id.in_(ids), _STANDING == "waiting")
    return connection.execute(update(Email).where(*waiting).values(next_attempt_at=db_now())).rowcount
