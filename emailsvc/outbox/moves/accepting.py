"""Accepted: one statement on the unique constraint, for one e-mail or a thousand, never look-then-insert."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Connection,
    CursorResult,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    select,
)  # fmt: skip
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine.interfaces import Compiled

from emailsvc.db import direct
from emailsvc.db.counts import Kind
from emailsvc.db.models import Email, status_literal
from emailsvc.db.sqltime import UtcDateTime, db_now
from emailsvc.intake.windows import Window
from emailsvc.outbox.counters import add_to_counters, adding, any_shard
from emailsvc.outbox.moves.absorbing import absorb
from emailsvc.outbox.windows import Entrant, First, enter, firsts_in, firsts_of
from emailsvc.vocabulary import State, Status

Row = Mapping[str, Any]
"""An e-mail to be accepted. ``duplicates``: how many more of its id and fingerprint it stands for."""

_GIVEN = (
    "email_id", "fingerprint", "recipient", "subject", "body", "html", "other", "size", "attachment_count",
    "message_id", "priority", "on_uncertain", "send_at", "expires_at", "duplicates",
)  # fmt: skip


class Kept(NamedTuple):
    """A row as accepting found or made it. ``first``: whose duplicate it is, was before, or would be."""

    id: int
    email_id: str
    fingerprint: str
    status: str
    duplicates: int
    mismatches: int
    received_at: datetime
    due: bool
    more: int  # than one were given
    first: First | None = None

    @property
    def is_new(self) -> bool:
        # A conflict raises one of the two by one more.
        return self.duplicates == self.more and self.mismatches == 0

    @property
    def has_content(self) -> bool:
        return self.status == Status.PENDING or self.first is None or self.first.state is not State.SENT


def accept(
    connection: Connection,
    rows: Sequence[Row],
    lock_milliseconds: int | None = None,
    windows: Mapping[str, Window] | None = None,
    *,
    observe: bool = False,
) -> list[Kept]:
    """``→ pending``, or so many duplicates or mismatches more of a known id, and counted as such. All rows come back.

    No id is given twice. PostgreSQL locks them in the order of their ids, so that two calls never wait for each other
    in a circle, and waits for none longer than ``lock_milliseconds``. ``windows``, by id, are entered in the order of
    ``rows`` by those that are new; to ``observe`` is to count what would be absorbed.
    """
    more = {row["email_id"]: row["duplicates"] for row in rows}
    firsts: dict[str, First] = {}
    if windows is not None and not observe:
        firsts = firsts_in(connection, windows)
        rows = [_as_duplicate(row, firsts.get(row["email_id"])) for row in rows]
    if connection.dialect.name == "postgresql":
        statement = _STATEMENT if windows is None else _UNCOUNTED
        kept = [Kept._make((*row, more[row[1]], None)) for row in _run(connection, statement, rows, lock_milliseconds)]
    else:
        stored = _stored_by_sqlite(connection, rows, absorbing=bool(firsts))
        kept = [Kept._make((*row, more[row.email_id], None)) for row in stored]
    kept = [row._replace(first=firsts.get(row.email_id)) if row.is_new else row for row in kept] if firsts else kept
    counts: Counter[Kind] = Counter()
    if windows is not None:
        kept, counts = _entered(connection, kept, [row["email_id"] for row in rows], windows, observe=observe)
    if windows is not None or connection.dialect.name != "postgresql":
        add_to_counters(connection, counts + _seen_in(kept, {row["email_id"]: row["fingerprint"] for row in rows}))
    return _with_firsts_of_before(connection, kept)


def _with_firsts_of_before(connection: Connection, kept: list[Kept]) -> list[Kept]:
    known = [row.id for row in kept if row.status == Status.CANCELLED and not row.is_new]
    firsts = firsts_of(connection, known) if known else {}
    return [row._replace(first=firsts.get(row.id, row.first)) for row in kept] if firsts else kept


def _entered(
    connection: Connection, kept: Sequence[Kept], order: Sequence[str], windows: Mapping[str, Window], *, observe: bool
) -> tuple[list[Kept], Counter[Kind]]:
    new = {row.email_id: row for row in kept if row.is_new}
    entrants = [
        Entrant(new[one].id, one, new[one].fingerprint, new[one].received_at, windows[one].key, windows[one].seconds)
        for one in order
        if one in new and one in windows and new[one].first is None
    ]
    firsts = enter(connection, entrants)
    if not observe:
        absorb(connection, firsts)
    status = Status.PENDING if observe else Status.CANCELLED
    kept = [row._replace(status=status, first=firsts[row.id]) if row.id in firsts else row for row in kept]
    duplicates = [row for row in kept if row.first is not None]
    other = sum(row.first is not None and row.first.fingerprint != row.fingerprint for row in duplicates)
    count = len(duplicates)
    counts: dict[Kind, int] = (
        {"would_absorb": count} if observe else {"absorbed": count, "cancelled": count, "absorbed_other": other}
    )
    return kept, Counter(counts)


def _as_duplicate(row: Row, first: First | None) -> Row:
    """Stored as absorbed from the start: to store it and then to change it takes twice as long."""
    if first is None:
        return {**row, "duplicate_of": None}
    forgotten = dict.fromkeys(("subject", "body", "html", "other")) if first.state is State.SENT else {}
    return {**row, **forgotten, "duplicate_of": first.email_id}


def _stored_by_sqlite(connection: Connection, rows: Sequence[Row], *, absorbing: bool) -> CursorResult[Any]:
    if not absorbing:
        return connection.execute(_ACCEPT, [{**row, "not_before": row["send_at"]} for row in rows])
    marked = [
        {**row, "not_before": row["send_at"], "absorbed": bool(row["duplicate_of"]), "forgotten": row["body"] is None}
        for row in rows
    ]
    return connection.execute(_ACCEPT_OR_ABSORB, marked)


def _begun_or_absorbed(
    send_at: ColumnElement[datetime], absorbed: ColumnElement[bool], forgotten: ColumnElement[bool]
) -> dict[str, ColumnElement[Any]]:
    begun = _begun(send_at)
    return {
        "status": case((absorbed, status_literal(Status.CANCELLED)), else_=begun["status"]),
        "next_attempt_at": case((absorbed, null()), else_=begun["next_attempt_at"]),
        "received_at": begun["received_at"],
        "final_at": case((absorbed, db_now())),
        "scrubbed_at": case((forgotten, db_now())),
    }


def _begun(send_at: ColumnElement[datetime]) -> dict[str, ColumnElement[Any]]:
    return {
        "status": status_literal(Status.PENDING),
        "next_attempt_at": case((db_now() < send_at, send_at), else_=db_now()),
        "received_at": db_now(),
    }


def _or_counted(statement: Any) -> Any:
    times = statement.excluded.duplicates + 1
    same = case((Email.fingerprint == statement.excluded.fingerprint, times), else_=0)
    return statement.on_conflict_do_update(
        index_elements=[Email.email_id],
        set_={"duplicates": Email.duplicates + same, "mismatches": Email.mismatches + times - same},
    ).returning(
        Email.id, Email.email_id, Email.fingerprint, Email.status, Email.duplicates, Email.mismatches,
        Email.received_at, (Email.next_attempt_at <= db_now()).label("due"),
    )  # fmt: skip


_NOT_BEFORE = bindparam("not_before", type_=UtcDateTime())
_MARKERS = (bindparam("absorbed", type_=Boolean()), bindparam("forgotten", type_=Boolean()))
_ACCEPT = _or_counted(sqlite.insert(Email).values(_begun(_NOT_BEFORE)))
_ACCEPT_OR_ABSORB = _or_counted(sqlite.insert(Email).values(_begun_or_absorbed(_NOT_BEFORE, *_MARKERS)))


def _seen_in(kept: Sequence[Kept], fingerprints: Mapping[str, str]) -> Counter[Kind]:
    counts: Counter[Kind] = Counter()
    for row in kept:
        same = row.fingerprint == fingerprints[row.email_id]
        counts["duplicates" if same else "mismatches"] += row.more + (not row.is_new)
    return counts


def _accepting(*, counting: bool) -> Any:
    """All of it in one statement, which needs no transaction around it, and whose text is the same for any number of
    rows: they come as one JSON document. PostgreSQL reads and sorts all of them, and so sets the time limit, before it
    locks the first. Counters are locked last, so where windows follow, the counting is left to them.
    """
    names = _GIVEN if counting else (*_GIVEN, "duplicate_of")
    columns = (Email.__table__.c[name] for name in names)
    typed = [column(one.name, Text() if one.name == "other" else one.type) for one in columns]
    document = func.json_to_recordset(cast(bindparam("rows", type_=Text()), JSON))
    given = select(document.table_valued(*typed, name="item").render_derived(with_types=True)).cte("given")
    limit = func.coalesce(bindparam("lock_timeout", type_=Text()), func.current_setting("lock_timeout"))
    limited = select(func.set_config("lock_timeout", limit, True)).cte("limited")
    begun = _begun(given.c.send_at)
    if not counting:
        begun = _begun_or_absorbed(given.c.send_at, given.c.duplicate_of.is_not(None), given.c.body.is_(None))
    values = [cast(one, JSON) if one.name == "other" else one for one in given.c]
    source = select(*values, *begun.values()).select_from(given, limited).order_by(given.c.email_id)
    kept = _or_counted(postgresql.insert(Email).from_select([*names, *begun], source)).cte("kept")
    return select(kept).add_cte(adding(_seen(kept, given)).cte("counted")) if counting else select(kept)


def _seen(kept: Any, given: Any) -> Any:
    same = kept.c.fingerprint == given.c.fingerprint
    kind = case((same, literal_column("'duplicates'")), else_=literal_column("'mismatches'")).label("kind")
    is_new = and_(kept.c.duplicates == given.c.duplicates, kept.c.mismatches == 0)
    value = func.sum(given.c.duplicates + case((is_new, 0), else_=1)).label("value")
    rows = kept.join(given, kept.c.email_id == given.c.email_id)
    return select(kind, value).select_from(rows).group_by(kind).having(value > 0).subquery("seen")


_STATEMENT, _UNCOUNTED = (
    _accepting(counting=counting).compile(dialect=psycopg.dialect())  # type: ignore[no-untyped-call]
    for counting in (True, False)
)


def _run(
    connection: Connection, statement: Compiled, rows: Sequence[Row], lock_milliseconds: int | None
) -> list[tuple[Any, ...]]:
    # In ASCII, whatever the database's encoding.
    items = [{**row, "other": None if row["other"] is None else json.dumps(row["other"])} for row in rows]
    limit = None if lock_milliseconds is None else f"{lock_milliseconds}ms"
    values = {"rows": msgspec.json.encode(items).decode(), "shard": any_shard(), "lock_timeout": limit}
    return direct.run(connection, statement.string, {**statement.params, **values})
