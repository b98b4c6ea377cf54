"""Who did what: a page of the journal."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, select

from emailsvc.clock import isoformat
from emailsvc.db.models import Action
from emailsvc.db.snapshots import snapshot
from emailsvc.errors import InvalidPayload, NotFound
from emailsvc.reports import answers
from emailsvc.vocabulary import ActionKind, ActionState


def actions(
    engine: Engine,
    *,
    kind: ActionKind | None = None,
    who: str | None = None,
    state: ActionState | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> answers.ActionPage:
    """One page, newest first, and the cursor of the next (None at the end).

    Raises InvalidPayload for a cursor that is made up, or was given for another query.
    """
    query = zlib.crc32(repr((kind, who, state, since, until)).encode())
    statement = select(Action).where(*_conditions(kind, who, state, since, until)).order_by(Action.id.desc())
    if cursor is not None:
        statement = statement.where(Action.id < _parse_cursor(cursor, query))
    with snapshot(engine) as connection:
        rows = connection.execute(statement.limit(limit + 1)).all()
    page = rows[:limit]
    return answers.ActionPage([_action(row) for row in page], f"{query}~{page[-1].id}" if len(rows) > limit else None)


def action(engine: Engine, number: int) -> answers.Action:
    """Raises NotFound."""
    with snapshot(engine) as connection:
        row = connection.execute(select(Action).where(Action.id == number)).first()
    if row is None:
        raise NotFound(f"There is no action {number}.")
    return _action(row)


def _conditions(
    kind: ActionKind | None,
    who: str | None,
    state: ActionState | None,
    since: datetime | None,
    until: datetime | None,
) -> Iterator[ColumnElement[bool]]:
    if kind is not None:
        yield Action.kind == kind
    if who is not None:
        yield Action.who == who
    if state is not None:
        yield Action.state == state
    if since is not None:
        yield Action.at >= since
    if until is not None:
        yield Action.at < until


def _parse_cursor(cursor: str, query: int) -> int:
    found = re.fullmatch(answers.CURSOR, cursor)
    if not found or int(found[1]) != query:
        raise InvalidPayload("invalid_field", "cursor must be the `next_cursor` of a page of this query.", "cursor")
    return int(found[2])


def _action(row: Row[*tuple[Any, ...]]) -> answers.Action:
    return answers.Action(
        id=row.id,
        at=isoformat(row.at),
        kind=row.kind,
        who=row.who,
        why=row.why,
        filter=row.filter,
        total=row.total,
        done=row.done,
        state=ActionState(row.state),
        rate=row.rate,
        ended_at=isoformat(row.ended_at),
    )
