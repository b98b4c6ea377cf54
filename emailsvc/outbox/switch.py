"""The switch row: pause and outage, two independent states that every claim reads."""

from __future__ import annotations

import logging
import time

from sqlalchemy import Connection, Engine, case, false, select, true, update

from emailsvc.db.models import Switch
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.log import without_addresses
from emailsvc.outbox import actions
from emailsvc.vocabulary import ActionKind

log = logging.getLogger("emailsvc.outbox")

FRESH_SECONDS = 0.05
"""How old the last look at the switch may be when a conversation starts."""

FIRST_PROBE_SECONDS = 5.0
MAX_PROBE_SECONDS = 30.0


def pause(engine: Engine, reason: str, *, who: str | None = None) -> None:
    """Start no further conversation anywhere. Those already begun may finish. A second pause changes nothing."""
    reason = without_addresses(reason)
    with engine.begin() as connection:
        paused = connection.execute(
            update(Switch).where(Switch.paused_at.is_(None)).values(paused_at=db_now(), pause_reason=reason)
        )
        if paused.rowcount:
            actions.note(connection, ActionKind.PAUSED, who, why=reason)
    time.sleep(FRESH_SECONDS)  # so that whoever looked just before has begun when this is answered


def resume(engine: Engine, *, who: str | None = None) -> None:
    """End a pause. An outage, if there is one, goes on."""
    with engine.begin() as connection:
        paused = update(Switch).where(Switch.paused_at.is_not(None))
        if connection.execute(paused.values(paused_at=None, pause_reason=None)).rowcount:
            actions.note(connection, ActionKind.RESUMED, who)


def may_start(engine: Engine, *, probe: bool = False) -> bool:
    """The last gate, asked before a conversation when the previous answer is not fresh; an outage holds no probe."""
    with engine.connect().execution_options(read_only=True) as connection:
        return bool(connection.execute(select(NOT_PAUSED if probe else RUNNING)).scalar_one())


NOT_PAUSED = select(case((Switch.paused_at.is_(None), true()), else_=false())).correlate(None).scalar_subquery()
RUNNING = (
    select(case((Switch.paused_at.is_(None) & Switch.outage_since.is_(None), true()), else_=false()))
    .correlate(None)
    .scalar_subquery()
)
"""As a column of another statement: one round trip less."""


def take_probe(connection: Connection, delay: float) -> bool:
    """The right to send one real e-mail during an outage. The condition lets one worker of the cluster have it."""
    won = connection.execute(
        update(Switch)
        .where(Switch.outage_since.is_not(None), Switch.paused_at.is_(None), Switch.next_probe_at <= db_now())
        .values(next_probe_at=db_in(delay))
    )
    return won.rowcount == 1


def open_outage(connection: Connection, reason: str, *, probe: bool) -> bool:
    """Begin an outage (True), or note that its probe failed too: the cool-down doubles, up to 30 s."""
    begun = connection.execute(
        update(Switch)
        .where(Switch.outage_since.is_(None))
        .values(
            outage_since=db_now(),
            outage_reason=reason,
            next_probe_at=db_in(FIRST_PROBE_SECONDS),
            probe_delay=FIRST_PROBE_SECONDS,
        )
    )
    if begun.rowcount:
        actions.note(connection, ActionKind.OUTAGE_BEGAN, None, why=without_addresses(reason))
    elif probe:
        current = connection.execute(select(Switch.probe_delay)).scalar_one()
        longer = min(current * 2, MAX_PROBE_SECONDS)
        connection.execute(update(Switch).values(outage_reason=reason, probe_delay=longer, next_probe_at=db_in(longer)))
    return begun.rowcount == 1


def close_outage(connection: Connection, *, who: str | None = None) -> float | None:
    """How many seconds it lasted; None when there was none."""
    switch = connection.execute(select(Switch.outage_since, db_now().label("now")).with_for_update()).one()
    if switch.outage_since is None:
        return None
    connection.execute(update(Switch).values(outage_since=None, outage_reason=None, next_probe_at=None))
    seconds = max(0.0, float((switch.now - switch.outage_since).total_seconds()))
    actions.note(connection, ActionKind.OUTAGE_ENDED, who, why=f"it lasted {seconds:.0f} s")
    return seconds


def end_outage(engine: Engine, *, who: str | None = None) -> float | None:
    """End an outage by hand: how many seconds it lasted; None when there was none. A pause, if there is one, goes on.

    Refusals so far count no more, or the next one would open it again.
    """
    with engine.begin() as connection:
        seconds = close_outage(connection, who=who)
        connection.execute(update(Switch).values(refusals_from=db_now()))
    if seconds is not None:
        log.warning("outage_ended", extra={"fields": {"by": "operator", "seconds": round(seconds, 1)}})
    return seconds
