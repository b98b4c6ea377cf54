"""Accept, claim, dot, record, fail, crash, pause, sweep and the rest, in any order, against a mail server that counts.

In the suite some 130 examples run, and a few more until they have seen what they must; always the same. The long
version draws new ones::

    STATE_MACHINE_EXAMPLES=2000 pytest -s tests/integration/test_state_machine.py -k "in_any_order and sqlite"
    STATE_MACHINE_EXAMPLES=500 pytest -s tests/integration/test_state_machine.py -k "in_any_order and postgresql"
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from sqlalchemy import Engine, bindparam, func, select, update
from sqlalchemy.exc import OperationalError

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.models import Action, Attempt, DeadLetter, Email, Switch
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.delivery.batch import Batch
from emailsvc.errors import Conflict, NotFound
from emailsvc.intake.filters import EmailFilter
from emailsvc.intake.payload import Attachment, NewEmail
from emailsvc.intake.windows import Window
from emailsvc.mail import Message, Outcome, Result
from emailsvc.outbox import Recorded, moves, sweeping
from emailsvc.outbox.moves import ending
from emailsvc.outbox.switch import RUNNING
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Reason, Resolution, State, Status
from tests.factories import new_email
from tests.machine import (
    AFTER_DOT,
    BEFORE_DOT,
    DATABASE,
    EMAILS,
    FAULTS,
    GO,
    Actor,
    Memo,
    ScriptedEngine,
    World,
)
from tests.reporters import Reporters

LONG = int(os.environ.get("STATE_MACHINE_EXAMPLES", "0"))
IDS = [f"m-{n}" for n in range(6)]
WINDOW = Window("k" * 64, 3 * 3600)
LARGE = 4 * 1024 * 1024
"""Bytes that no lease of this configuration covers."""

SENT = Result(Outcome.SENT, "250 taken", 250)
LOST = Result(Outcome.UNCERTAIN, "dropped after the final dot")
EARLY = {
    "451": Result(Outcome.DEFERRED, "451 later", 451),
    "550": Result(Outcome.REJECTED, "550 no", 550),
    "dropped": Result(Outcome.DEFERRED, "dropped before the dot"),
    "not to be built": Result(Outcome.REJECTED, "cannot be built"),
    "away": Result(Outcome.OUTAGE, "refused"),
}
REFUSALS = {"451": Result(Outcome.DEFERRED, "451 dot", 451), "550": Result(Outcome.REJECTED, "550 dot", 550)}

numbers = st.integers(0, 11)
faults = st.sampled_from(["ok"] * 3 + ["lost", "rolled back"])


EMAIL = new_email()


def make_email(number: int, kind: str = "plain", on_uncertain: str = "hold", priority: str = "normal") -> NewEmail:
    later, soon = utcnow() + timedelta(hours=1), utcnow() + timedelta(minutes=30)
    return replace(
        EMAIL, email_id=IDS[number % len(IDS)], user=f"user{number % len(IDS)}@domain{number % 3}.example",
        body="another" if kind == "mismatch" else "text",
        attachments=(Attachment("a.txt", "text/plain", b"a"),) if kind == "attachment" else (),
        send_at=later if kind == "later" else None, expires_at=soon if kind == "expiring" else None,
        priority=priority, on_uncertain=on_uncertain, fingerprint=("b" if kind == "mismatch" else "a") * 64,
        size=LARGE if kind == "large" else 1000, window=WINDOW if kind == "windowed" else None,
    )  # fmt: skip


class Machine(Reporters):
    """Rules draw numbers, and take them modulo what there is to choose from, so an example does not hang on row ids."""

    def __init__(self, world: World) -> None:
        super().__init__()
        world.reset()
        world.begins = self.begins
        self.world, self.server = world, world.server
        self.emails: dict[str, Any] = {}  # the rows after the last step, by email_id
        self.fingerprints: dict[str, str] = {}
        self.tally: Counter[str] = Counter()  # what /stats must say
        self.replays: Counter[str] = Counter()  # of uncertain dead letters: the client's choice; by Message-ID
        self.declared: set[str] = set()
        self.cancelled: set[str] = set()
        self.erased: set[str] = set()
        self.overdue: set[str] = set()
        self.marked: set[int] = set()  # dead letters that an action has to move, after the last step
        self.paused = False
        self.wrong: list[str] = []
        self.checked = world.commits
        self.steps, self.next_travel = 0, 10

    # What there is to choose from.

    def workers(self, at: str | None) -> list[Actor]:
        return [worker for worker in self.world.workers if worker.at == at]

    def at_the_database(self) -> list[Actor]:
        return [actor for actor in self.world.actors if actor.at == DATABASE]

    def with_status(self, *statuses: str) -> list[Any]:
        return [row for row in self.emails.values() if row.status in statuses]

    def now_and_then(self) -> bool:
        """For rules that end much or do little: so that the others get on in between."""
        return self.steps % 4 == 0

    def lease_is_over(self) -> bool:
        return any(row.lease_expires_at < utcnow() for row in self.with_status("sending"))

    def begun(self) -> list[Actor]:
        return self.workers(BEFORE_DOT) + self.workers(AFTER_DOT)

    def due(self) -> bool:
        return any(row.next_attempt_at <= utcnow() for row in self.with_status("pending"))

    def saw(self, what: str, condition: object = True) -> None:
        self.world.seen[what] += bool(condition)

    # Senders.

    @initialize(count=st.integers(2, 6))
    def mail_waits(self, count: int) -> None:
        self.accept_these(list(range(count)))

    @precondition(lambda self: len(self.emails) < len(IDS) or self.now_and_then())
    @rule(
        number=numbers,
        kind=st.sampled_from(["plain"] * 4 + ["large", "large", "attachment", "later", "expiring", "mismatch"]),
        on_uncertain=st.sampled_from(["hold", "hold", "hold", "retry"]),
        priority=st.sampled_from(["normal", "normal", "high", "low"]),
        fault=faults,
    )
    def accept(self, number: int, kind: str, on_uncertain: str, priority: str, fault: str) -> None:
        new = [n for n, email_id in enumerate(IDS) if email_id not in self.fingerprints]
        email = make_email(pick(new * 3 + [*range(len(IDS))], number), kind, on_uncertain, priority)
        if fault != "ok":
            with pytest.raises(OperationalError):
                outbox.accept(ScriptedEngine(self.world.engine, lambda: fault), email, self.world.config)
        if fault == "lost":
            self.expect_accepted(email)
        answer = outbox.accept(self.world.engine, email, self.world.config)  # whoever heard no 2xx posts again
        assert answer.status == self.expect_accepted(email)

    def expect_accepted(self, email: NewEmail) -> str:
        known = self.fingerprints.setdefault(email.email_id, "")
        if not known:
            self.fingerprints[email.email_id] = email.fingerprint
            self.tally["received"] += 1
            return "accepted"
        status = "duplicate" if known == email.fingerprint else "mismatch"
        self.tally["duplicates" if status == "duplicate" else "mismatches"] += 1
        self.saw(status)
        return status

    @precondition(lambda self: len(self.emails) < len(IDS) and self.now_and_then())
    @rule(chosen=st.lists(numbers, min_size=2, max_size=4))
    def accept_many(self, chosen: list[int]) -> None:
        self.accept_these(chosen)

    def accept_these(self, chosen: list[int], kind: str = "plain") -> None:
        emails = [make_email(number, kind) for number in chosen]
        answers = outbox.accept_many(self.world.engine, emails, self.world.config)
        assert [answer.status for answer in answers] == [self.expect_accepted(email) for email in emails]

    @precondition(lambda self: self.emails and (self.now_and_then() or self.waiting()))
    @rule(number=numbers, how=st.sampled_from(["cancel", "erase", "send now", "send many now"]), fault=faults)
    def meddle(self, number: int, how: str, fault: str) -> None:
        if how == "cancel":
            self.cancel(number)
        elif how == "erase":
            self.erase(number)
        else:
            self.send_now(number, "many" in how, fault)

    def cancel(self, number: int) -> None:
        before = self.emails.get(IDS[number % len(IDS)])
        try:
            outbox.cancel(self.world.engine, IDS[number % len(IDS)])
        except NotFound:
            assert before is None
        except Conflict as conflict:
            self.refused(conflict, {"sent": "already_sent", "pending": "maybe_sent"}.get(before.status, before.status))
        else:
            self.saw("cancelled")
            if before.status == Status.PENDING:
                assert not self.server.taken[before.message_id]
                self.cancelled.add(before.message_id)
            assert before.status in (Status.PENDING, Status.CANCELLED)

    def refused(self, conflict: Conflict, code: str) -> None:
        assert conflict.code == code
        self.saw(f"refused as {code}")

    def erase(self, number: int) -> None:
        email = make_email(number)
        row = self.emails.get(email.email_id)
        found = outbox.erase(self.world.engine, email.user)
        assert found == (row is not None and row.recipient is not None and not row.erase_requested)
        if found:
            self.erased.add(row.message_id)
            self.saw(f"erased {row.status}")

    # Those who hurry what waits.

    def send_now(self, number: int, many: bool, fault: str) -> None:
        before = self.world.rows(EMAILS)
        hurried = self.send_many_now(1 + number, fault) if many else self.send_one_now(IDS[number % len(IDS)], fault)
        for was, row in zip(before, self.world.rows(EMAILS), strict=True):
            changed = {name for name, value in row._asdict().items() if value != was._asdict()[name]}
            assert changed == ({"next_attempt_at"} if row.email_id in hurried else set())
            assert not changed or row.next_attempt_at <= utcnow()
        self.saw("sent now", hurried)

    def send_one_now(self, email_id: str, fault: str) -> set[str]:
        standing = self.standing(self.emails.get(email_id))
        try:
            outbox.send_now(self.line(fault), email_id)
        except OperationalError:
            return {email_id} if standing == "waiting" and fault == "lost" else set()
        except NotFound:
            assert standing is None
        except Conflict as conflict:
            self.refused(conflict, {"sent": "already_sent", "uncertain": "maybe_sent"}.get(standing, standing))
        else:
            assert standing in ("due", "waiting")
        return {email_id} if standing == "waiting" else set()

    def waiting(self) -> list[Any]:
        """In the order in which they will be due."""
        pending = sorted(self.with_status("pending"), key=lambda row: (row.priority, row.next_attempt_at))
        return [row for row in pending if self.standing(row) == "waiting"]

    def send_many_now(self, limit: int, fault: str) -> set[str]:
        pending = self.with_status("pending")
        waiting = [row.email_id for row in self.waiting()[:limit]]
        with suppress(OperationalError):
            done = outbox.send_many_now(self.line("ok", "ok", fault), EmailFilter(state=Status.PENDING), limit=limit)
            assert (done.matching, done.made_due) == (len(pending), len(waiting))
        return set() if fault == "rolled back" else set(waiting)

    @staticmethod
    def standing(row: Any) -> Any:
        """Never before its send_at, and never one with an uncertain attempt."""
        if row is None or row.status != Status.PENDING:
            return row and row.status
        if row.maybe_sent:
            return "uncertain"
        if row.next_attempt_at <= utcnow():
            return "due"
        return "scheduled" if row.send_at is not None and row.send_at > utcnow() else "waiting"

    # Those who resolve dead letters.

    def letters(self) -> list[Any]:
        columns = (DeadLetter.id, DeadLetter.reason, DeadLetter.resolution, DeadLetter.action)
        statement = select(*columns, Email.message_id, Email.scrubbed_at, Email.on_uncertain).join(Email)
        return self.world.rows(statement.order_by(DeadLetter.id))

    @precondition(lambda self: self.with_status("failed"))
    @rule(which=numbers, how=st.sampled_from(["replayed", "replayed", "delivered", "discarded"]))
    def resolve(self, which: int, how: str) -> None:
        letters = self.letters()
        letter = letters[-1 - which % len(letters)]
        move = {"replayed": outbox.replay, "delivered": outbox.delivered, "discarded": outbox.discard}[how]
        try:
            resolved = move(self.world.engine, letter.id)
        except Conflict as conflict:
            gone = letter.resolution is None and how == "replayed" and letter.scrubbed_at is not None
            self.refused(conflict, "content_gone" if gone else "already_resolved")
            assert gone or letter.resolution not in (None, how)
            return
        assert resolved.resolution == how
        assert letter.resolution in (None, how)
        if letter.resolution is None:
            self.note_resolved(letter, how)

    def note_resolved(self, letter: Any, how: str) -> None:
        self.saw(f"{letter.reason} {how}")
        if how == "replayed":
            self.overdue.discard(letter.message_id)
            self.replays[letter.message_id] += letter.reason == "uncertain"
        if how == "delivered":
            self.declared.add(letter.message_id)

    @precondition(lambda self: self.marked or self.with_status("failed"))
    @rule(
        move=st.sampled_from([Resolution.REPLAYED, Resolution.REPLAYED, Resolution.DISCARDED]),
        reason=st.sampled_from([None, Reason.UNCERTAIN, Reason.EXHAUSTED]),
        how=st.sampled_from(["counted", "at once", "at a rate", "and on", "and on", "and stop", "and stop"]),
        limit=st.integers(1, 6),
        fault=faults,
    )
    def resolve_many(self, move: Resolution, reason: Reason | None, how: str, limit: int, fault: str) -> None:
        chosen = LetterFilter(reason=reason)
        expected = [letter for letter in self.letters() if self.is_free(letter, move, reason)][:limit]
        if how == "counted":
            would = outbox.preview(self.world.engine, move, chosen, limit)
            assert would.would_move == len(expected)
        elif how == "at once":
            assert outbox.resolve_many(self.world.engine, move, chosen, limit=limit) == len(expected)
            for letter in expected:
                self.note_resolved(letter, move)
        else:
            with suppress(OperationalError):
                outbox.start(self.line(fault), move, chosen, limit=limit, rate=1)
            begun = [] if fault == "rolled back" else [letter.id for letter in expected]
            marked = self.read_marked()
            assert marked == self.marked | set(begun), "what fails again later is not among them"
            if marked and how == "and on":
                self.advance(self.line("ok", fault))
            if marked and how == "and stop":
                self.stop_an_action(marked, fault)

    def is_free(self, letter: Any, move: Resolution, reason: Reason | None) -> bool:
        gone = move is Resolution.REPLAYED and letter.scrubbed_at is not None
        unresolved = letter.resolution is None and letter.action is None and not gone
        return unresolved and (letter.reason == reason if reason else letter.reason != Reason.UNCERTAIN)

    def read_marked(self) -> set[int]:
        """Dead letters that an action has to move."""
        marked = select(DeadLetter.id).where(DeadLetter.action.is_not(None), DeadLetter.resolved_at.is_(None))
        return {row.id for row in self.world.rows(marked)}

    def line(self, *faults: str) -> Engine:
        """Whose first transactions fare as told, and all others well."""
        asked = iter(faults)
        return cast(Engine, ScriptedEngine(self.world.engine, lambda: next(asked, "ok")))

    def advance(self, engine: Engine) -> None:
        before = self.read_marked()
        with suppress(OperationalError):
            outbox.advance(engine)
        for letter in self.letters():
            if letter.id in before and letter.resolution is not None:
                self.saw("moved by an action")
                self.note_resolved(letter, letter.resolution)
        self.world.change(update(Action).where(Action.state == "running").values(next_at=db_in(-1)))

    def stop_an_action(self, marked: set[int], fault: str) -> None:
        (running, *_) = self.world.rows(select(Action.id).where(Action.state == "running"))
        of_it = {row.id for row in self.world.rows(select(DeadLetter.id).where(DeadLetter.action == running.id))}
        with suppress(OperationalError):
            assert outbox.stop(self.line(fault), running.id) == len(of_it & marked)
        assert self.read_marked() == (marked if fault == "rolled back" else marked - of_it)
        self.saw("action stopped", fault != "rolled back")

    # Workers.

    @precondition(lambda self: self.workers(None) and (self.due() or self.now_and_then()))
    @rule(which=numbers, low_first=st.booleans(), through=st.sampled_from([True, True, False]))
    def drain(self, which: int, low_first: bool, through: bool) -> None:
        worker = pick(self.workers(None), which)
        self.world.drain(worker, low_first=low_first)
        if through:
            worker.settle()

    @precondition(lambda self: self.at_the_database())
    @rule(which=numbers)
    def the_database_answers(self, which: int) -> None:
        actor = pick(self.at_the_database(), which)
        actor.clock += 1.2 * outbox.FRESH_SECONDS  # so that the switch is looked at again
        actor.resume("ok")

    @precondition(lambda self: self.at_the_database())
    @rule(which=numbers)
    def the_database_answers_to_the_end(self, which: int) -> None:
        pick(self.at_the_database(), which).settle()

    @precondition(lambda self: self.at_the_database())
    @rule(which=numbers, how=st.sampled_from(FAULTS))
    def the_database_fails(self, which: int, how: str) -> None:
        self.saw(how)
        pick(self.at_the_database(), which).resume(how)

    @precondition(lambda self: self.workers(BEFORE_DOT))
    @rule(which=numbers, how=st.sampled_from([*EARLY, "451", "away"]))
    def it_ends_before_the_dot(self, which: int, how: str) -> None:
        pick(self.workers(BEFORE_DOT), which).resume(EARLY[how])

    @precondition(lambda self: self.workers(BEFORE_DOT))
    @rule(which=numbers)
    def dot(self, which: int) -> None:
        pick(self.workers(BEFORE_DOT), which).resume(GO)

    @precondition(lambda self: self.workers(BEFORE_DOT))
    @rule(which=numbers, through=st.booleans())
    def deliver(self, which: int, through: bool) -> None:
        """The common case in one step, up to its record or through it."""
        worker = pick(self.workers(BEFORE_DOT), which)
        worker.resume(GO)
        if worker.at == AFTER_DOT:
            self.server.take(worker.dot)
            worker.resume(SENT)
        if through:
            worker.settle()

    @precondition(lambda self: self.server.on_the_way)
    @rule(which=numbers)
    def the_server_takes(self, which: int) -> None:
        self.saw("taken late", not any(worker.dot for worker in self.workers(AFTER_DOT)))
        self.server.take(pick(self.server.on_the_way, which))

    @precondition(lambda self: self.workers(AFTER_DOT))
    @rule(which=numbers, refusal=st.sampled_from(sorted(REFUSALS)))
    def the_server_replies(self, which: int, refusal: str) -> None:
        worker = pick(self.workers(AFTER_DOT), which)
        if worker.dot.taken:
            worker.resume(SENT)
        else:
            self.server.on_the_way.remove(worker.dot)
            worker.resume(REFUSALS[refusal])

    @precondition(lambda self: self.workers(AFTER_DOT))
    @rule(which=numbers, raises=st.booleans())
    def the_reply_is_lost(self, which: int, raises: bool) -> None:
        self.saw("reply lost")
        pick(self.workers(AFTER_DOT), which).resume(RuntimeError("in the transport") if raises else LOST)

    @precondition(lambda self: any(actor.at for actor in self.world.actors) and (self.begun() or self.now_and_then()))
    @rule(which=numbers)
    def crash(self, which: int) -> None:
        actor = pick([actor for actor in self.world.actors if actor.at], which)
        self.saw(f"crash {actor.at}")
        actor.crash()

    @precondition(lambda self: self.world.left_behind and self.with_status("sending"))
    @rule(which=numbers)
    def a_note_is_found(self, which: int) -> None:
        noted = self.world.left_behind[which % len(self.world.left_behind)]
        given_back = outbox.recover(
            self.world.engine, noted.token, noted.row_id, self.world.config, dot_may_be_sent=noted.dot_may_be_sent
        )
        self.saw("recovered", given_back)

    @precondition(lambda self: any(worker.at for worker in self.world.workers) and self.now_and_then())
    @rule(which=numbers)
    def shut_down(self, which: int) -> None:
        worker = pick([worker for worker in self.world.workers if worker.at], which)
        self.saw(f"shut down {worker.at}")
        worker.shut_down()

    @precondition(lambda self: any(worker.at for worker in self.world.workers) and self.now_and_then())
    @rule(which=numbers, seconds=st.sampled_from([0.1, 6.0, 40.0, 130.0]))
    def a_clock_goes_on(self, which: int, seconds: float) -> None:
        pick(self.world.workers, which).clock += seconds

    # Repairs, and the switch.

    @precondition(lambda self: self.with_status("sending"))
    @rule(which=numbers, swept=st.booleans())
    def a_lease_runs_out(self, which: int, swept: bool) -> None:
        """Its worker was stopped for so long, or is dead: nobody can know."""
        row = pick(self.with_status("sending"), which)
        self.world.change(update(Email).where(Email.claim == row.claim).values(lease_expires_at=db_in(-1)))
        if swept:
            self.sweep()

    @rule()
    def sweep(self) -> None:
        swept = outbox.sweep(self.world.engine, self.world.config)
        self.saw("swept uncertain", swept.uncertain)
        self.saw("swept untouched", swept.released)
        self.saw("swept expired", [e for e, reason in swept.buried if reason == "expired"])
        self.saw("swept unreachable", [e for e, reason in swept.buried if reason == "unreachable"])

    @precondition(lambda self: self.world.sweeper.at is None and (self.lease_is_over() or self.now_and_then()))
    @rule()
    def a_sweep_begins(self) -> None:
        self.world.begin_sweep()

    @precondition(lambda self: not self.paused and self.now_and_then())
    @rule()
    def pause(self) -> None:
        outbox.pause(self.world.engine, "by hand")
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        outbox.resume(self.world.engine)
        self.paused = False

    # Time.

    @precondition(lambda self: self.with_status("pending") and (not self.due() or self.now_and_then()))
    @rule()
    def all_become_due(self) -> None:
        self.make_due()

    def make_due(self) -> None:
        self.world.change(update(Email).where(Email.status == "pending").values(next_attempt_at=db_in(-1)))
        self.make_probe_due()

    @precondition(lambda self: self.world.rows(select(Switch.outage_since))[0][0] is not None)
    @rule(which=numbers)
    def a_probe_is_due(self, which: int) -> None:
        self.make_probe_due()
        if idle := self.workers(None):
            worker = pick(idle, which)
            self.world.drain(worker)
            worker.settle()

    def make_probe_due(self) -> None:
        self.world.change(update(Switch).where(Switch.outage_since.is_not(None)).values(next_probe_at=db_in(-1)))

    @precondition(lambda self: self.with_status("pending", "sending") and self.now_and_then())
    @rule(which=numbers)
    def a_deadline_passes(self, which: int) -> None:
        row = pick(self.with_status("pending", "sending"), which)
        self.world.change(update(Email).where(Email.id == row.id).values(expires_at=db_in(-1)))
        if row.status == Status.PENDING:
            self.overdue.add(row.message_id)

    @precondition(lambda self: self.steps > self.next_travel or not self.with_status("pending", "sending"))
    @rule(hours=st.sampled_from([2.2, 2.2, 2.2, 25.0]))
    def time_passes(self, hours: float) -> None:
        self.world.travel(hours * 3600)
        self.make_probe_due()  # meanwhile the workers went on probing
        swept = outbox.sweep(self.world.engine, self.world.config)
        self.saw("swept unreachable", [e for e, reason in swept.buried if reason == "unreachable"])
        final = {row.email_id: row for row in self.with_status("sent", "failed", "cancelled")}
        outbox.retain(self.world.engine, self.world.config, swept)
        left = {row.email_id for row in self.world.rows(EMAILS)}
        for email_id in final.keys() - left:
            del self.fingerprints[email_id]  # its id is new again
            self.saw("purged")
        self.saw("scrubbed", swept.scrubbed)
        self.next_travel = self.steps + 20  # it ends most of what is under way

    # What must hold.

    def begins(self, mail: Message) -> None:
        """Called in a worker's thread as a conversation begins."""
        row = self.world.rows(EMAILS.where(Email.message_id == mail.message_id))[0]
        if row.status != Status.SENDING or row.claim not in self.world.awake.tokens:
            self.saw("late worker began")
            return  # the sweep has decided about this row; its worker cannot know, and its record will match nothing
        self.saw("began large", row.size >= LARGE)
        self.saw("began with attachments", row.attachment_count)
        self.saw("began on a second attempt", row.attempts)
        self.saw("began in an outage", self.world.rows(select(Switch.outage_since))[0][0])
        forbidden = {
            "cancelled": row.message_id in self.cancelled,
            "past its deadline": row.message_id in self.overdue,
            "during a pause": self.paused,
            "erased": row.recipient is None,
        }
        self.wrong += [f"{row.email_id} was begun: {why}" for why, is_so in forbidden.items() if is_so]
        if row.email_id != mail.email_id:
            self.wrong.append(f"{row.email_id} goes out as {mail.email_id}")

    @invariant()
    def it_holds(self) -> None:
        self.steps += 1
        assert not self.wrong, self.wrong
        if self.world.commits != self.checked:
            self.look()
        for row in self.emails.values():
            self.check(row, self.server.taken[row.message_id])
        self.nobody_idle_holds_a_row()

    def look(self) -> None:
        self.checked = self.world.commits
        self.emails = {row.email_id: row for row in self.world.rows(EMAILS)}
        self.marked = self.read_marked()
        assert self.emails.keys() == self.fingerprints.keys()
        assert reports.violations(self.world.engine, self.world.config) == []
        self.none_is_overlooked()

    def check(self, row: Any, taken: int) -> None:
        may = 1 + self.replays[row.message_id]
        if taken > may and row.on_uncertain == "retry":
            may = 1 + self.world.uncertain_attempts(row.id)
            self.saw("doubled under retry")
        assert taken <= may, f"{row.email_id} was taken {taken} times, and {may} are allowed"
        if row.status == Status.SENT:
            assert taken or row.message_id in self.declared, f"{row.email_id} is sent, and the server has not got it"
        elif row.status != Status.SENDING and taken:
            assert row.maybe_sent, f"{row.email_id} is {row.status} as if untouched, and the server has got it"
        if row.status == Status.CANCELLED:
            assert row.message_id in self.cancelled | self.erased, f"{row.email_id} was cancelled by nobody"
        if row.erase_requested and row.status != Status.SENDING:
            assert row.recipient is row.body is None, f"{row.email_id} is {row.status} and was not erased"

    def nobody_idle_holds_a_row(self) -> None:
        for worker in self.workers(None):
            tokens = worker.tokens - worker.in_doubt.tokens  # its next look gives those back
            held = [row.email_id for row in self.with_status("sending") if row.claim in tokens]
            assert not held, f"{worker.name} has gone and left {held} in hand"

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.all_comes_to_an_end()
        finally:
            for actor in self.world.actors:
                actor.crash()

    def all_comes_to_an_end(self) -> None:
        """One worker dies, the other finishes; then everything is well, and nothing may be left."""
        self.world.workers[0].crash()
        self.world.sweeper.settle()
        self.resume()
        while self.read_marked():
            outbox.end_outage(self.world.engine)
            self.advance(self.world.engine)
        last = self.world.workers[1]
        self.work_to_the_end(last)
        for _ in range(20):
            self.world.change(update(Email).where(Email.status == "sending").values(lease_expires_at=db_in(-1)))
            self.make_due()
            outbox.sweep(self.world.engine, self.world.config)
            self.world.drain(last)
            self.work_to_the_end(last)
            self.it_holds()
            if not self.with_status("pending", "sending"):
                break
        for dot in list(self.server.on_the_way):
            self.server.take(dot)
        self.it_holds()
        assert not self.with_status("pending", "sending"), "something is stuck"
        self.saw("finished")
        self.the_statistics_are_exact()

    def work_to_the_end(self, worker: Actor) -> None:
        while worker.at is not None:
            worker.settle()
            if worker.at == BEFORE_DOT:
                worker.resume(GO)
            if worker.at == AFTER_DOT:
                if not worker.dot.taken:
                    self.server.take(worker.dot)
                worker.resume(SENT)

    def the_statistics_are_exact(self) -> None:
        stats = reports.stats(self.world.engine)
        assert {name: getattr(stats, name) for name in ("received", "duplicates", "mismatches")} == {
            name: self.tally[name] for name in ("received", "duplicates", "mismatches")
        }
        if self.tally["received"] > len(self.emails):
            return  # some were purged, and the invariant has counted those
        counts = Counter(State.of(row.status, row.duplicate_of) for row in self.emails.values())
        assert {name: getattr(stats, name) for name in State} == {name: counts[name] for name in State}
        attempts = self.world.rows(select(func.count(Attempt.id)))[0][0]
        unresolved = self.world.rows(select(func.count(DeadLetter.id)).where(DeadLetter.resolved_at.is_(None)))[0][0]
        assert (stats.failed_attempts, stats.dead_letters) == (attempts, unresolved)
        self.reports_are_counted()


def pick(choices: list[Any], number: int) -> Any:
    return choices[number % len(choices)]


@pytest.fixture
def world(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    config = make_config(
        batch_size=3, max_retry_attempts=1, retry_delay_seconds=1000, outage_limit_seconds=7200,
        body_retention_seconds=3600, email_retention_days=1, report_secrets="mine:0123456789abcdef",
    )  # fmt: skip
    made = World(config)
    made.take_the_clocks(monkeypatch)
    yield made
    made.close()


class Bare(Machine):
    """Without what no broken rule needs: with fewer rules, what is wrong is found soon."""

    accept_many = meddle = resolve_many = pause = a_probe_is_due = a_deadline_passes = time_passes = None  # type: ignore[assignment]


def explore(world: World, *, examples: int, steps: int, machine: type[Machine] = Machine, **options: Any) -> None:
    run_state_machine_as_test(
        lambda: machine(world),
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
            report_multiple_bugs=False, suppress_health_check=list(HealthCheck), **options,
        ),
    )  # fmt: skip


SEEN_SOON = {"swept uncertain", "swept untouched", "began large", "duplicate"}
EXPLORED = SEEN_SOON | {
    "lost", "rolled back", "reply lost", "crash after the dot", "logged stale_outcome", "uncertain replayed",
    "began in an outage", "cancelled", "recovered", "moved by an action", "action stopped", "sent now", "settled",
    "reported while sending", "logged settled",
}  # fmt: skip
"""What every run must come to, and a long one."""


def test_it_keeps_the_promise_in_any_order(world: World) -> None:
    if LONG:
        explore(world, examples=LONG, steps=50)
        print(f"\n{LONG} examples on {world.engine.dialect.name}; how often what was seen:")
        print("\n".join(f"{count:8} {what}" for what, count in sorted(world.seen.items())))
        assert EXPLORED - (+world.seen).keys() == set()
    else:
        explore(world, examples=40 if world.config.is_sqlite else 15, steps=40, derandomize=True)
        assert not world.config.is_sqlite or SEEN_SOON - (+world.seen).keys() == set()
    assert world.seen["finished"] >= 15, "most examples must come to their end"


def test_a_worker_that_lost_a_row_to_another_after_a_lost_commit_gives_the_rest_back(world: World) -> None:
    first, second = world.workers
    outbox.accept_many(world.engine, [make_email(number) for number in range(3)], world.config)
    world.drain(first)
    first.settle()
    first.resume(EARLY["451"])
    first.resume("lost")  # it is deferred, and the worker does not know
    world.change(update(Email).where(Email.status == "pending").values(next_attempt_at=db_in(-1)))
    world.drain(second)
    second.settle()
    assert second.mail is not None
    assert second.mail.email_id == IDS[0]
    first.stopping.set()
    first.settle()
    assert first.at is None
    states = {row.email_id: row.status for row in world.rows(EMAILS)}
    assert states == {IDS[0]: "sending", IDS[1]: "pending", IDS[2]: "pending"}


@pytest.mark.parametrize("kind", ["large", "attachment"])
def test_a_pause_is_seen_although_the_database_was_away_in_between(world: World, kind: str) -> None:
    worker = world.workers[0]
    outbox.accept(world.engine, make_email(0, kind), world.config)
    world.drain(worker)
    worker.resume("ok")  # the claim
    worker.resume("away")  # the renewal, or reading the attachments
    outbox.pause(world.engine, "by hand")
    worker.settle()
    assert worker.at is None
    assert [row.status for row in world.rows(EMAILS)] == ["pending"]


def goes_on_unrecorded(patch: pytest.MonkeyPatch) -> None:
    """Rule 2 without its stop: the database did not take the outcome, and the next conversation begins."""

    def once(batch: Any, row: Any, result: Result, seconds: float) -> Recorded:
        try:
            return outbox.record(batch.engine, row, batch.claim.token, result, batch.config, seconds=seconds)
        except OperationalError:
            return Recorded(True, True)

    patch.setattr(Batch, "_record", once)


def goes_on_when_it_is_not_its_own(patch: pytest.MonkeyPatch) -> None:
    """Rule 2 without its other stop: the record matched nothing, and the next conversation begins."""
    after = Batch._after

    def anyway(batch: Any, row: Any, result: Result | None, recorded: Recorded, began: float) -> bool:
        return after(batch, row, result, recorded, began) or not recorded.won

    patch.setattr(Batch, "_after", anyway)


def records_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    mine_or_not = (Email.id == bindparam("row_id"), bindparam("token").is_not(None))
    sent = {"status": "sent", "sent_at": db_now(), "final_at": db_now(), "next_attempt_at": None}
    statement = update(Email).where(*mine_or_not).values(attempts=Email.attempts + 1, lease_expires_at=None, **sent)
    patch.setattr(ending, "_SENT", statement.returning(Email.id, Email.erase_requested, RUNNING.label("running")))


def gives_the_lowest_back(patch: pytest.MonkeyPatch) -> None:
    """Rule 5 without "the lowest is uncertain"."""

    def as_untouched(hand: Any, result: Result, *, worker_lost: bool) -> None:
        moves.release(hand.connection, moves.Held(hand.token, [hand.row.id]))

    patch.setattr(sweeping, "record_uncertain", as_untouched)


def forgets_to_note_the_dot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Memo, "passes_dot", lambda memo: None)


BROKEN = {
    goes_on_unrecorded: 40,
    goes_on_when_it_is_not_its_own: 40,
    records_without_the_fence: 40,
    gives_the_lowest_back: 40,
    forgets_to_note_the_dot: 28,
}
"""With the number of steps of an example, such that what is wrong is found soon."""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("broken", BROKEN)
def test_it_fails_when_a_rule_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    broken(monkeypatch)
    world.config = dataclasses.replace(world.config, report_secrets=())  # the more actors, the longer it takes
    monkeypatch.setattr(Machine, "nobody_idle_holds_a_row", lambda machine: None)  # it does; what comes of it counts
    with pytest.raises(AssertionError, match=r"was taken \d times|the server has|not failed|add up to"):
        explore(world, examples=1000, steps=BROKEN[broken], machine=Bare, phases=[Phase.generate], derandomize=True)
