"""The explored state machine with a window in it: of one key, one e-mail goes out unless it ended unsent.

The long version draws new examples: STATE_MACHINE_EXAMPLES=500, as beside.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy import select

from emailsvc import outbox
from emailsvc.clock import utcnow
from emailsvc.db.models import Window
from emailsvc.errors import Conflict
from emailsvc.intake.payload import NewEmail
from emailsvc.mail import Message
from emailsvc.vocabulary import Reason, Status
from tests.integration.test_state_machine import IDS, LONG, Machine, explore, faults, numbers, pick, world
from tests.machine import EMAILS, World

__all__ = ["world"]


class WindowMachine(Machine):
    """``is_open``: whether what comes now has to be absorbed, as the rows told before it came."""

    is_open = False

    @initialize(count=st.integers(1, 3))
    def duplicates_wait(self, count: int) -> None:
        new = [n for n, email_id in enumerate(IDS) if email_id not in self.fingerprints]
        self.accept_these(new[:count], "windowed")

    @precondition(lambda self: len(self.emails) < len(IDS))
    @rule(number=numbers, withdrawn=st.booleans(), fault=faults)
    def accept_one_more(self, number: int, withdrawn: bool, fault: str) -> None:
        if withdrawn and (waiting := [row for row in self.with_status("pending") if row.id in self.holders()]):
            self.cancel(IDS.index(waiting[0].email_id))
            self.look()
        self.is_open = self.read_is_open()
        self.accept(number=number, kind="windowed", on_uncertain="hold", priority="normal", fault=fault)

    def read_is_open(self) -> bool:
        holders = self.holders()
        return any(row.id in holders and not self.has_ended_unsent(row) for row in self.emails.values())

    def holders(self) -> set[int]:
        """The rows that windows of this moment belong to."""
        return {window.email for window in self.world.rows(select(Window)) if window.ends_at > utcnow()}

    def has_ended_unsent(self, row: Any) -> bool:
        if row.status == Status.FAILED and row.final_at is None:
            mine = [one for one in self.letters() if one.message_id == row.message_id and not one.resolution]
            return [one.reason for one in mine] == [Reason.EXPIRED]
        return row.status in (Status.CANCELLED, Status.FAILED)

    def expect_accepted(self, email: NewEmail) -> str:
        status = super().expect_accepted(email)
        if status != "accepted" or email.window is None:
            return status
        self.saw("absorbed" if self.is_open else "window opened")
        status, self.is_open = "absorbed" if self.is_open else "accepted", True
        return status

    def absorbed(self) -> list[Any]:
        return [row for row in self.emails.values() if row.duplicate_of]

    @precondition(lambda self: self.absorbed() and self.now_and_then())
    @rule(which=numbers, withdrawn=st.booleans())
    def send_absorbed(self, which: int, withdrawn: bool) -> None:
        row = pick(self.absorbed(), which)
        if withdrawn and row.duplicate_of in self.emails:
            self.cancel(IDS.index(row.duplicate_of))
            self.look()
        self.send_a_duplicate(row)

    def send_a_duplicate(self, row: Any) -> None:
        """The choice of an operator: what its first one did not bring."""
        first = self.emails.get(row.duplicate_of)
        may = first is not None and self.has_ended_unsent(first) and row.scrubbed_at is None
        try:
            outbox.send_now(self.world.engine, row.email_id)
        except Conflict as conflict:
            is_gone = row.scrubbed_at is not None and not (first and first.status == Status.SENT)
            self.refused(conflict, "content_gone" if is_gone else "absorbed")
            assert not may
        else:
            self.saw("sent though absorbed")
            assert may

    def send_now(self, number: int, many: bool, fault: str) -> None:
        row = self.emails.get(IDS[number % len(IDS)])
        if row is not None and row.duplicate_of and not many:
            self.send_a_duplicate(row)
        else:
            super().send_now(number, many, fault)

    def cancel(self, number: int) -> None:
        before = self.emails.get(IDS[number % len(IDS)])
        super().cancel(number)
        if before is not None and before.duplicate_of:
            self.cancelled.add(before.message_id)

    def begins(self, mail: Message) -> None:
        super().begins(mail)
        (row,) = self.world.rows(EMAILS.where(EMAILS.selected_columns.message_id == mail.message_id))
        if row.duplicate_of:
            self.wrong.append(f"{row.email_id} was begun, and is a duplicate of {row.duplicate_of}")

    def check(self, row: Any, taken: int) -> None:
        if not row.duplicate_of:
            super().check(row, taken)
            return
        assert (row.status, taken) == (Status.CANCELLED, 0)
        first = self.emails.get(row.duplicate_of)
        if row.recipient and row.body is None and first is not None:
            assert first.final_at, f"{row.email_id} is lost if {row.duplicate_of} is not sent"


def test_a_window_holds_in_any_order(world: World) -> None:
    expected = {"absorbed", "window opened", "finished"}
    if LONG:
        explore(world, examples=LONG, steps=50, machine=WindowMachine)
        print("\n".join(f"{count:8} {what}" for what, count in sorted(world.seen.items())))
        expected |= {"sent though absorbed", "refused as absorbed"}
    else:
        examples = 30 if world.config.is_sqlite else 6
        explore(world, examples=examples, steps=30, machine=WindowMachine, derandomize=True)
    assert not world.config.is_sqlite or expected - (+world.seen).keys() == set()
