"""What an operator sees first: each part bounded, so that it is there at once however much is stored and waits."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Boolean, ColumnElement, Engine, literal_column, select

from emailsvc.clock import isoformat
from emailsvc.db.models import Email, StoredReport, Worker
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import db_in
from emailsvc.intake.filters import EmailFilter
from emailsvc.reports.answers import Action, EmailSummary, Hour, LetterGroup, Stats
from emailsvc.reports.groups import letter_groups
from emailsvc.reports.hourly import hours
from emailsvc.reports.journal import actions
from emailsvc.reports.ready import WORKER_SILENT_SECONDS
from emailsvc.reports.searching import search
from emailsvc.reports.totals import stats
from emailsvc.reports.waiting import Waiting, what_waits
from emailsvc.vocabulary import ActionState, Order

MAX_GROUPED = 500
"""So many dead letters, the newest, are put into groups."""

MAX_WORKERS, MAX_GROUPS, MAX_RUNNING, MAX_OVERDUE, MAX_HAPPENED, MAX_REPORTED = 50, 20, 20, 8, 12, 8


@dataclass(frozen=True, slots=True)
class SeenWorker:
    name: str
    started_at: str
    seen_at: str
    is_alive: bool


@dataclass(frozen=True, slots=True)
class SeenReport:
    email_id: str
    event: str
    kind: str | None
    text: str | None
    received_at: str


@dataclass(frozen=True, slots=True)
class Overview:
    stats: Stats
    hours: list[Hour]  # the last day
    workers: list[SeenWorker]  # also those that fell silent in the last minutes
    waiting: list[Waiting]
    overdue: list[EmailSummary]  # the longest overdue first
    groups: list[LetterGroup]  # of the newest dead letters
    running: list[Action]
    happened: list[Action]
    bounced: list[SeenReport]  # the newest
    settled: list[SeenReport]  # by which an e-mail became sent, the newest

    @property
    def workers_alive(self) -> int:
        return sum(worker.is_alive for worker in self.workers)


def read_desk(engine: Engine) -> Overview:
    waits = what_waits(engine)
    overdue = any(one.oldest_due_at for one in waits)
    return Overview(
        stats=stats(engine),
        hours=hours(engine).hours,
        workers=_workers(engine),
        waiting=waits,
        overdue=search(engine, EmailFilter(), order=Order.DUE, limit=MAX_OVERDUE).emails if overdue else [],
        groups=letter_groups(engine, limit=MAX_GROUPS, among=MAX_GROUPED).groups,
        running=actions(engine, state=ActionState.RUNNING, limit=MAX_RUNNING).actions,
        happened=actions(engine, limit=MAX_HAPPENED).actions,
        bounced=_reported(engine, literal_column("reports.event") == literal_column("'bounced'")),
        settled=_reported(engine, literal_column("reports.settled", Boolean())),
    )


def _reported(engine: Engine, which: ColumnElement[bool]) -> list[SeenReport]:
    """``which``: literally the condition of a partial index, so that it is read from its end."""
    columns = (StoredReport.event, StoredReport.kind, StoredReport.reply, StoredReport.received_at)
    newest = select(Email.email_id, *columns).join(Email, Email.id == StoredReport.email).where(which)
    with snapshot(engine) as connection:
        rows = connection.execute(newest.order_by(StoredReport.id.desc()).limit(MAX_REPORTED)).all()
    return [SeenReport(row.email_id, row.event, row.kind, row.text, isoformat(row.received_at)) for row in rows]


def _workers(engine: Engine) -> list[SeenWorker]:
    alive = Worker.seen_at > db_in(-WORKER_SILENT_SECONDS)
    columns = (Worker.id, Worker.started_at, Worker.seen_at, alive.label("alive"))
    newest = select(*columns).order_by(Worker.seen_at.desc()).limit(MAX_WORKERS)
    with snapshot(engine) as connection:
        rows = connection.execute(newest).all()
    return sorted(
        (SeenWorker(row.id, isoformat(row.started_at), isoformat(row.seen_at), bool(row.alive)) for row in rows),
        key=lambda one: one.name,
    )
