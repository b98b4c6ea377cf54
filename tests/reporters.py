"""Reporters as actors of the explored state machine: what they tell comes early, late, repeated and contradictory."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from sqlalchemy import or_, select
from sqlalchemy.exc import OperationalError

from emailsvc import outbox, reports
from emailsvc.db.models import DeadLetter, Email, StoredReport
from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.reference import reference_of
from emailsvc.mail import Outcome, Result
from emailsvc.outbox.settling import is_proven
from emailsvc.vocabulary import Report
from tests.machine import AFTER_DOT

_UNRESOLVED = select(DeadLetter.id).where(DeadLetter.email == Email.id, DeadLetter.resolved_at.is_(None)).exists()
OVERLOOKED = select(Email.email_id).where(
    or_(Email.status == "pending", (Email.status == "failed") & _UNRESOLVED), is_proven()
)
"""That somebody has them is known, and they are not ``sent``."""

LOST = Result(Outcome.UNCERTAIN, "dropped after the final dot")
numbers = st.integers(0, 11)
words = st.sampled_from([*Report, "opened"])
faults = st.sampled_from(["ok"] * 3 + ["lost", "rolled back"])


class Reporters(RuleBasedStateMachine):
    """Of the machine it uses ``world``, ``server``, ``emails``, ``declared``, ``saw``, ``line`` and ``workers``."""

    world: Any
    server: Any
    emails: dict[str, Any]
    declared: set[str]
    saw: Any
    line: Any
    workers: Any
    unmatched = 0

    def are_heard(self) -> bool:
        return bool(self.world.config.hears_reports)

    def taken(self) -> list[Any]:
        return [row for row in self.emails.values() if self.server.taken[row.message_id]]

    def untaken(self) -> list[Any]:
        return [row for row in self.emails.values() if not self.server.taken[row.message_id]]

    @precondition(lambda self: self.are_heard() and self.taken())
    @rule(which=numbers, word=words, fault=faults, times=st.integers(1, 2))
    def it_is_reported(self, which: int, word: str, fault: str, times: int) -> None:
        """Of what the server took, whatever the service knows of it by now."""
        row = self.taken()[which % len(self.taken())]
        told = heard(word, reference=reference_of(row.id, row.message_id))
        self.saw(f"reported while {row.status}")
        self.tell([told] * times, fault)

    @precondition(lambda self: self.are_heard() and self.workers(AFTER_DOT))
    @rule(which=numbers, word=words, lost=st.booleans())
    def it_is_reported_before_the_reply(self, which: int, word: str, lost: bool) -> None:
        worker = self.workers(AFTER_DOT)[which % len(self.workers(AFTER_DOT))]
        if not worker.dot.taken:
            self.server.take(worker.dot)
        (row,) = (row for row in self.emails.values() if row.message_id == worker.dot.message_id)
        self.tell([heard(word, reference=reference_of(row.id, row.message_id))], "ok")
        if lost:
            worker.resume(LOST)

    @precondition(lambda self: self.are_heard() and self.emails and self.steps % 4 == 0)
    @rule(which=numbers, word=words, fault=faults)
    def somebody_says_that_it_arrived(self, which: int, word: str, fault: str) -> None:
        row = list(self.emails.values())[which % len(self.emails)]
        self.declared.add(row.message_id)  # believed as soon as nobody else can know
        self.tell([heard(word, email_id=row.email_id)], fault)

    @precondition(lambda self: self.are_heard() and self.untaken() and self.steps % 4 == 0)
    @rule(which=numbers, word=words)
    def a_report_is_of_another_installation(self, which: int, word: str) -> None:
        row = self.untaken()[which % len(self.untaken())]
        wrong = reference_of(row.id, row.message_id)[:-1] + ("0" if row.message_id[16] != "0" else "1")
        noted = self.tell([heard(word, reference=wrong)], "ok").noted
        assert not noted

    def tell(self, events: list[Event], fault: str) -> outbox.Heard:
        """Until the answer is heard, as every provider does."""
        with suppress(OperationalError):
            if fault != "ok":
                outbox.hear(self.line(fault), events)
        told = outbox.hear(self.world.engine, events)
        self.unmatched += told.unmatched
        self.saw("settled", told.settled)
        return told

    def none_is_overlooked(self) -> None:
        overlooked = [row.email_id for row in self.world.rows(OVERLOOKED)]
        assert not overlooked, f"{overlooked} are known to be with their recipients, and not sent"

    def reports_are_counted(self) -> None:
        stats = reports.stats(self.world.engine)
        told = Counter(row.event for row in self.world.rows(select(StoredReport.email, StoredReport.event).distinct()))
        shown = {word: getattr(stats, word) for word in ("delivered", "bounced", "complained")}
        assert shown == {word: told[word] for word in shown}
        settled = len(self.world.rows(select(StoredReport.id).where(StoredReport.settled)))
        assert (stats.settled, stats.unmatched_reports) == (settled, self.unmatched)
