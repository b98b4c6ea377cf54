"""Many dead letters resolved at once: at once, or bit by bit by the workers.

Starting marks its letters with the action's id, in one statement. From then on the mark is the bound (what fails again
has a new letter, without it), the count, and the point at which anybody can go on after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Update,
    and_,
    case,
    delete,
    false,
    func,
    literal_column,
    select,
    update,
)

from emailsvc.clock import isoformat
from emailsvc.db.choosing import UNRESOLVED, LetterFilter
from emailsvc.db.models import Action, DeadLetter, Email
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.errors import Conflict, NotFound, ServiceError
from emailsvc.log import without_addresses
from emailsvc.outbox import actions, moves
from emailsvc.outbox.moves import Letter
from emailsvc.outbox.switch import RUNNING
from emailsvc.outbox.transaction import in_transaction
from emailsvc.vocabulary import ActionKind, ActionState, Priority, Reason, Resolution

CHUNK = 200
"""Letters per transaction: none may be open for long."""

PER_SECOND = 100.0
"""Without a rate, what is replayed becomes due one after the other, so that fresh e-mail does not stand behind it."""

AHEAD_SECONDS = 2.0
"""So far before its due time a letter is moved, at most: what is stopped then ends soon, and a tick may be late."""

ORPHANED_SECONDS = 60.0
"""Whoever works an action off by itself and moves nothing for so long is gone, and the workers go on."""

_LETTERS = select(DeadLetter.id).join(Email, Email.id == DeadLetter.email)
_IS_RUNNING = Action.state == literal_column(f"'{ActionState.RUNNING.value}'")
_FREE = (UNRESOLVED, DeadLetter.action.is_(None))
_IS_UNCERTAIN = DeadLetter.reason == Reason.UNCERTAIN.value
_IS_GONE = Email.scrubbed_at.is_not(None)


@dataclass(frozen=True, slots=True)
class Preview:
    """``matching`` has in it the three others and what is beyond the limit, and nothing that another action moves."""

    matching: int
    would_move: int
    uncertain_left_out: int
    content_gone: int


def preview(engine: Engine, resolution: Resolution, chosen: LetterFilter, limit: int) -> Preview:
    """What ``start`` would do."""
    left_out = false() if chosen.names_uncertain else _IS_UNCERTAIN
    gone = and_(~left_out, _IS_GONE) if resolution is Resolution.REPLAYED else false()
    counted = (func.count(), func.count(case((left_out, 1))), func.count(case((gone, 1))))
    statement = _LETTERS.with_only_columns(*counted).where(*_FREE, *chosen.conditions())
    with engine.connect().execution_options(read_only=True) as connection:
        matching, uncertain, content_gone = connection.execute(statement).one()
    return Preview(matching, min(limit, matching - uncertain - content_gone), uncertain, content_gone)


def start(
    engine: Engine,
    resolution: Resolution,
    chosen: LetterFilter,
    *,
    limit: int,
    rate: float | None = None,
    who: str | None = None,
) -> int:
    """Begin an action on the oldest ``limit`` unresolved letters that match; its id.

    Left out are those with an uncertain attempt unless ``chosen`` names them, for a replay those whose content is gone,
    and those that a running action has to move. At a ``rate``, in letters a second, the workers move them; without one,
    an action that finds nothing to move leaves no entry in the journal.
    """

    def begin(connection: Connection) -> int:
        asked = _told(chosen) | {"limit": limit}
        action = actions.note(connection, ActionKind(resolution), who, asked=asked, count=0)
        connection.execute(_mark(action, resolution, chosen, limit))
        marked = select(func.count()).where(DeadLetter.action == action, UNRESOLVED)  # SQLite's driver counts no WITH
        total = connection.execute(marked).scalar_one()
        if not total and not rate:
            connection.execute(delete(Action).where(Action.id == action))
            return action
        first = db_now() if rate else db_in(ORPHANED_SECONDS)
        begun = {"state": ActionState.RUNNING.value, "next_at": first} if total else {}
        connection.execute(update(Action).where(Action.id == action).values(total=total, rate=rate, **begun))
        return action

    return in_transaction(engine, begin)


def resolve_many(
    engine: Engine,
    resolution: Resolution,
    chosen: LetterFilter,
    *,
    limit: int,
    who: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> int:
    """``start``, and move all of it now; how many those were. Should this break off, the workers go on."""
    action = start(engine, resolution, chosen, limit=limit, who=who)
    mine = partial(_move, which=Action.id == action, patient=True)
    while (moved := in_transaction(engine, mine)) is not None:
        progress(*moved)
    with engine.connect().execution_options(read_only=True) as connection:
        return connection.execute(select(Action.done).where(Action.id == action)).scalar() or 0


def _told(chosen: LetterFilter) -> dict[str, Any]:
    """For the journal, in which no address may stand."""
    given = {name: value for name, value in asdict(chosen).items() if value}
    moments = {name: isoformat(given[name]) for name in ("since", "until") if name in given}
    return given | moments | ({"error": without_addresses(given["error"])} if "error" in given else {})


def _mark(action: int, resolution: Resolution, chosen: LetterFilter, limit: int) -> Update:
    some = _LETTERS.where(*_FREE, *chosen.conditions()).order_by(DeadLetter.created_at, DeadLetter.id).limit(limit)
    if not chosen.names_uncertain:
        some = some.where(~_IS_UNCERTAIN)
    if resolution is Resolution.REPLAYED:
        some = some.where(~_IS_GONE)
    locked = some.with_for_update(skip_locked=True, of=DeadLetter).cte("some")
    return update(DeadLetter).where(DeadLetter.id.in_(select(locked.c.id))).values(action=action)


def advance(engine: Engine) -> bool:
    """For workers, about once a second: move what is due soon of the actions that run. False when none does.

    One worker at a time has an action in hand, and none while delivery is paused or in an outage.
    """
    running = select(Action.id).where(_IS_RUNNING).limit(1)
    with engine.connect().execution_options(read_only=True) as connection:
        if connection.execute(running).first() is None:
            return False
    due = partial(_move, which=and_(Action.next_at <= db_in(AHEAD_SECONDS), RUNNING), patient=False)
    while in_transaction(engine, due) is not None:
        pass
    return True


def stop(engine: Engine, action: int, *, who: str | None = None) -> int:
    """Move no more of it; how many that leaves. Raises NotFound, or Conflict when it is over."""

    def end(connection: Connection) -> int:
        running = update(Action).where(Action.id == action, _IS_RUNNING)
        if not connection.execute(running.values(_ended(ActionState.STOPPED))).rowcount:
            raise _why_not(connection, action)
        rest = update(DeadLetter).where(DeadLetter.action == action, UNRESOLVED)
        left = connection.execute(rest.values(action=None)).rowcount
        actions.note(connection, ActionKind.STOPPED, who, asked={"action": action}, count=left)
        return left

    return in_transaction(engine, end)


def _why_not(connection: Connection, action: int) -> ServiceError:
    state = connection.execute(select(Action.state).where(Action.id == action)).scalar()
    if state is None:
        return NotFound(f"There is no action {action}.")
    return Conflict("already_over", f"Action {action} is over already: {state}.")


def _ended(state: ActionState) -> dict[str, Any]:
    return {"state": state.value, "next_at": None, "ended_at": db_now()}


def _move(connection: Connection, which: ColumnElement[bool], *, patient: bool) -> tuple[int, int] | None:
    """A chunk of one action, which nobody else has in hand meanwhile; how many are moved so far, and of how many. None:
    there is no such action, it has ended, or what is left of it is locked, for which only the ``patient`` wait.
    """
    action = _take(connection, which, patient=patient)
    if action is None:
        return None
    size, first, each = _pace(action)
    mine = (DeadLetter.action == action.id, UNRESOLVED)
    some = select(DeadLetter.id, DeadLetter.email).where(*mine).order_by(DeadLetter.id).limit(size)
    rows = connection.execute(some.with_for_update(skip_locked=not patient)).all()
    if not rows:
        if connection.execute(select(DeadLetter.id).where(*mine).limit(1)).first() is None:
            connection.execute(update(Action).where(Action.id == action.id).values(_ended(ActionState.DONE)))
        return None
    _resolve(connection, action, {Letter(*row): first + n * each for n, row in enumerate(rows)})
    again = first + len(rows) * each if action.rate else ORPHANED_SECONDS * patient
    moved = update(Action).where(Action.id == action.id).values(done=Action.done + len(rows), next_at=db_in(again))
    done, total = connection.execute(moved.returning(Action.done, Action.total)).one()
    return done or 0, total or 0


def _take(connection: Connection, which: ColumnElement[bool], *, patient: bool) -> Row[*tuple[Any, ...]] | None:
    running = select(Action, db_now().label("now")).where(_IS_RUNNING, which).order_by(Action.id).limit(1)
    return connection.execute(running.with_for_update(skip_locked=not patient)).first()


def _pace(action: Row[*tuple[Any, ...]]) -> tuple[int, float, float]:
    """How many to move now, in how many seconds the first is due, and how long after it the next."""
    if not action.rate:
        return CHUNK, action.done / PER_SECOND, 1 / PER_SECOND
    first = max(0.0, (action.next_at - action.now).total_seconds())
    return min(CHUNK, max(1, int((AHEAD_SECONDS - first) * action.rate))), first, 1 / action.rate


def _resolve(connection: Connection, action: Row[*tuple[Any, ...]], letters: Mapping[Letter, float]) -> None:
    if action.rate and action.kind == Resolution.REPLAYED:
        moves.replay(connection, letters, Priority.LOW)
    else:
        moves.RESOLVE[Resolution(action.kind)](connection, letters)
