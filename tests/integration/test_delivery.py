"""The drain: claim, send, record. Driven with the transport that ships for tests; time is moved, not waited for."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from huey.exceptions import CancelExecution
from sqlalchemy import Engine, event, insert, text, update
from sqlalchemy.exc import OperationalError

from emailsvc import outbox, reports
from emailsvc.app import create_app
from emailsvc.clock import monotonic, utcnow
from emailsvc.db.models import Attempt, Base, DeadLetter, Email, Switch
from emailsvc.db.sqltime import db_in
from emailsvc.delivery import batch, drain
from emailsvc.delivery.batch import BYTES_PER_SECOND, Batch
from emailsvc.delivery.drain import Drain
from emailsvc.mail import Message, Outcome, Result
from emailsvc.mail.files import FileTransport
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import sharing
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from emailsvc.wakeups import queue, tasks
from emailsvc.wakeups.locks import LocalLocks
from emailsvc.wakeups.tasks import Crew
from tests.emails import (
    DEFERRED,
    OUTAGE,
    REJECTED,
    SENT,
    UNCERTAIN,
    accept,
    end_leases,
    make_due,
    move,
    move_switch,
    row,
    rows,
    switch,
)
from tests.factories import new_email
from tests.machine import ScriptedEngine
from tests.servers import PostgreSQL


@dataclass
class Bench:
    """A drain with everything around it in reach."""

    engine: Engine
    config: Config
    transport: MemoryTransport = field(default_factory=MemoryTransport)
    stopping: threading.Event = field(default_factory=threading.Event)
    wakes: int = 0
    faults: list[str] = field(default_factory=list)  # of the next transactions

    def run(self) -> None:
        engine = cast(Engine, ScriptedEngine(self.engine, lambda: self.faults.pop(0) if self.faults else "ok"))
        together = outbox.SentTogether(engine)
        Drain(engine, self.config, self.transport, self.stopping, self.wake, together).run()

    def wake(self) -> None:
        self.wakes += 1

    def answer(self, *answers: Any) -> Bench:
        self.transport.answers.extend(answers)
        return self


@pytest.fixture
def bench(engine: Engine, config: Config) -> Bench:
    return Bench(engine, config)


@pytest.fixture
def latin1(postgresql: PostgreSQL, tmp_path: Path) -> Iterator[Bench]:
    """On a database that cannot hold every word, as one that somebody else made years ago."""
    name = postgresql.create_database("template0", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    settings = configuration.load({"DATABASE_URL": postgresql.url(name)}, tmp_path)
    engine: Engine = create_app(settings).extensions["emailsvc"].engine
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Switch).values(id=1, rolled_up_to=utcnow()))
    yield Bench(engine, settings)
    engine.dispose()
    postgresql.drop_database(name)


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The worker's clock, moved on by so many seconds."""
    offset = 0.0

    def forward(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    for module in (drain, batch, sharing):
        monkeypatch.setattr(module, "monotonic", lambda: monotonic() + offset)
    return forward


def test_it_sends_what_is_due_and_records_it(bench: Bench) -> None:
    accept(bench.engine, bench.config, *(f"m-{n:02}" for n in range(25)), html="<p>Hi</p>", reply_to="r@example.com")
    bench.run()
    assert [m.email_id for m in bench.transport.delivered] == [f"m-{n:02}" for n in range(25)]
    assert reports.stats(bench.engine).sent == 25
    mail = bench.transport.delivered[0]
    assert (mail.from_address, mail.reply_to, mail.html) == ("no-reply@localhost", "r@example.com", "<p>Hi</p>")
    assert mail.message_id == row(bench.engine, "m-00").message_id


def test_a_full_batch_wakes_another_worker_before_it_starts_sending(bench: Bench) -> None:
    accept(bench.engine, bench.config, *(f"m-{n}" for n in range(10)))
    woken: list[int] = []
    bench.answer(lambda _mail: woken.append(bench.wakes) or SENT)
    bench.run()
    assert woken == [1]


def test_attachments_are_read_when_their_mail_is_sent(bench: Bench) -> None:
    accept(bench.engine, bench.config, attachments=[{"filename": "x", "content_type": "text/csv", "content": "aGk="}])
    bench.run()
    assert [(a.filename, a.content) for a in bench.transport.delivered[0].attachments] == [("x", b"hi")]


def test_a_thread_holds_one_large_mail_at_a_time(bench: Bench, tmp_path: Path) -> None:
    """A batch of them at once would be a kill on a small machine, and then uncertain mail."""
    size = 2_000_000
    accept(bench.engine, bench.config, *(f"m-{n}" for n in range(10)), html="<p>Hi</p>\n" * (size // 10))
    bench.transport = FileTransport(tmp_path)
    tracemalloc.start()
    try:
        bench.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(list(tmp_path.glob("*.eml"))) == 10
    assert peak < 5 * size, f"{peak / size:.1f} times the largest"


def test_content_that_was_waited_for_too_long_starts_no_conversation(
    bench: Bench, leap: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database kept the worker waiting; what the lease no longer covers goes back, and no attempt is burned."""
    accept(bench.engine, bench.config, attachments=[{"filename": "x", "content_type": "text/csv", "content": "aGk="}])
    read, waits = outbox.attachments, [0.0, 40.0]

    def slow_read(*args: Any) -> Any:
        leap(waits.pop())
        return read(*args)

    monkeypatch.setattr(outbox, "attachments", slow_read)
    bench.run()
    assert waits == [], "it is read anew, under a claim whose lease covers the conversation"
    assert (row(bench.engine).status, row(bench.engine).attempts) == ("sent", 1)
    assert len(bench.transport.attempts) == 1
    assert rows(bench.engine, Attempt) == []


def test_a_mail_that_expired_while_its_content_was_read_starts_no_conversation(
    bench: Bench, leap: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = (utcnow() + timedelta(seconds=20)).isoformat()
    accept(bench.engine, bench.config, html="x" * 100_000, expires_at=expires_at)
    read = outbox.content

    def slow_read(*args: Any) -> Any:
        found = read(*args)
        leap(25.0)
        move(bench.engine, 25, "expires_at")
        return found

    monkeypatch.setattr(outbox, "content", slow_read)
    bench.run()
    assert bench.transport.attempts == []
    assert [letter.reason for letter in rows(bench.engine, DeadLetter)] == ["expired"]


def test_a_mail_that_only_just_fits_into_its_lease_has_time_to_be_read(
    bench: Bench, leap: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be read and given back for ever: each claim is as long as the last."""
    spare = bench.config.lease_seconds - bench.config.smtp_timeout_seconds - bench.config.smtp_reply_timeout_seconds
    accept(bench.engine, bench.config, html="x" * int((spare - 0.5) * BYTES_PER_SECOND))
    read = outbox.content

    def slow_read(*args: Any) -> Any:
        leap(1.0)
        return read(*args)

    monkeypatch.setattr(outbox, "content", slow_read)
    bench.run()
    assert (row(bench.engine).status, len(bench.transport.attempts)) == ("sent", 1)


def test_a_look_tells_when_a_claim_may_find_something(bench: Bench) -> None:
    assert outbox.look(bench.engine) is None
    accept(bench.engine, bench.config, "later", send_at=(utcnow() + timedelta(seconds=60)).isoformat(), priority="low")
    assert outbox.look(bench.engine) == pytest.approx(60, abs=5)
    accept(bench.engine, bench.config, "a", "b")
    assert (outbox.look(bench.engine) or 0) <= 0
    bench.answer(DEFERRED, DEFERRED).run()
    assert outbox.look(bench.engine) == pytest.approx(bench.config.retry_delay_seconds, rel=0.3)
    outbox.pause(bench.engine, "an operator")
    make_due(bench.engine)
    assert outbox.look(bench.engine) is None


def test_a_look_during_an_outage_tells_of_the_next_probe(bench: Bench) -> None:
    accept(bench.engine, bench.config)
    bench.answer(OUTAGE).run()
    assert outbox.look(bench.engine) == pytest.approx(5, abs=2)
    move_switch(bench.engine, 6, "next_probe_at")
    assert (outbox.look(bench.engine) or 0) <= 0
    outbox.cancel(bench.engine, "m-1")
    assert outbox.look(bench.engine) is None


def test_mail_for_the_last_moment_of_the_calendar_just_waits(bench: Bench) -> None:
    accept(bench.engine, bench.config, send_at="9999-12-31T23:59:59.999999Z")
    bench.run()
    assert (outbox.look(bench.engine) or 0) > 7000 * 365 * 86400
    assert row(bench.engine).status == "pending"


def test_a_retry_keeps_its_message_id(bench: Bench) -> None:
    accept(bench.engine, bench.config)
    bench.answer(DEFERRED, DEFERRED)
    for _ in range(3):
        bench.run()
        make_due(bench.engine)
    assert row(bench.engine).status == "sent"
    assert len({mail.message_id for mail in bench.transport.attempts}) == 1


def test_words_that_the_database_cannot_hold_cost_the_words_and_not_the_outcome(latin1: Bench) -> None:
    _refuse_with_words_that_cannot_be_stored(latin1, "550 5.7.1 Письмо отклонено")


def test_a_record_that_fails_in_a_way_nobody_foresaw_costs_the_words_and_not_the_outcome(bench: Bench) -> None:
    _refuse_with_words_that_cannot_be_stored(bench, "550 5.7.1 \ud800")


def _refuse_with_words_that_cannot_be_stored(bench: Bench, words: str) -> None:
    accept(bench.engine, bench.config, "refused", "next")
    bench.answer(Result(Outcome.REJECTED, words, 550, "5.7.1")).run()
    (letter,) = rows(bench.engine, DeadLetter)
    assert (letter.reason, letter.error) == ("rejected", "(the server's reply could not be stored)")
    assert [(a.code, a.enhanced) for a in rows(bench.engine, Attempt)] == [(550, "5.7.1")]
    assert (row(bench.engine, "refused").status, row(bench.engine, "next").status) == ("failed", "sent")


def test_what_the_server_took_is_sent_whatever_it_said_of_it(latin1: Bench) -> None:
    accept(latin1.engine, latin1.config, "strange", "next")
    latin1.answer(Result(Outcome.SENT, "250 Принято", 250)).run()
    assert (row(latin1.engine, "strange").status, row(latin1.engine, "next").status) == ("sent", "sent")
    assert row(latin1.engine, "strange").reply == "(the server's reply could not be stored)"


def _dates(bench: Bench) -> list[datetime]:
    return [parsedate_to_datetime(message_from_bytes(raw)["Date"]) for raw in bench.transport.messages]


def _second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def test_every_attempt_of_an_email_is_the_same_to_the_byte(bench: Bench) -> None:
    """A provider that compares content under one idempotency key refuses a changed one."""
    accept(
        bench.engine, bench.config, on_uncertain="retry", html="<p>Hi</p>",
        attachments=[{"filename": "x", "content_type": "text/csv", "content": "aGk="}],
    )  # fmt: skip
    move(bench.engine, 3600, "received_at")
    bench.answer(UNCERTAIN).run()
    make_due(bench.engine)
    bench.run()
    first, second = bench.transport.messages
    assert first == second
    assert _dates(bench)[0] == _second(row(bench.engine).received_at)


def test_an_email_is_dated_by_its_send_at(bench: Bench) -> None:
    accept(bench.engine, bench.config, send_at=(utcnow() + timedelta(hours=1)).isoformat())
    move(bench.engine, 7200, "received_at", "send_at", "next_attempt_at")
    bench.run()
    assert _dates(bench) == [_second(row(bench.engine).send_at)]


@pytest.mark.parametrize(("answer", "moves"), [(REJECTED, True), (UNCERTAIN, False)], ids=["refused", "uncertain"])
def test_a_replay_dates_an_email_anew_only_if_nobody_can_have_it(bench: Bench, answer: Result, moves: bool) -> None:
    """What an uncertain attempt may have delivered stays as it was, so that a provider knows it again."""
    accept(bench.engine, bench.config)
    move(bench.engine, 7200, "received_at")
    bench.answer(answer, UNCERTAIN).run()
    outbox.replay(bench.engine, rows(bench.engine, DeadLetter)[0].id)
    with bench.engine.begin() as connection:
        connection.execute(update(DeadLetter).values(resolved_at=db_in(-3600)))
        connection.execute(update(Email).values(on_uncertain="retry"))
    bench.run()
    make_due(bench.engine)
    bench.run()
    expected = rows(bench.engine, DeadLetter)[0].resolved_at if moves else row(bench.engine).received_at
    assert row(bench.engine).status == "sent"
    assert len(_dates(bench)) == 2 + (not moves)
    assert set(_dates(bench)) == {_second(expected)}


def test_one_bad_mail_does_not_hold_up_the_next(bench: Bench) -> None:
    accept(bench.engine, bench.config, "poison", "fine")
    with bench.engine.begin() as connection:
        broken = {"headers": {"X-Bad": "a\r\nBcc: everybody@example.com"}}
        connection.execute(update(Email).where(Email.email_id == "poison").values(other=broken))
    bench.run()
    assert row(bench.engine, "poison").status == "failed"
    assert row(bench.engine, "fine").status == "sent"
    assert rows(bench.engine, DeadLetter)[0].reason == "rejected"


def test_a_row_whose_stored_content_is_nonsense_is_its_own_dead_letter(bench: Bench) -> None:
    accept(bench.engine, bench.config, "poison", "fine")
    with bench.engine.begin() as connection:
        connection.execute(update(Email).where(Email.email_id == "poison").values(other={"headers": ["not", "pairs"]}))
    bench.run()
    assert (row(bench.engine, "poison").status, row(bench.engine, "fine").status) == ("failed", "sent")


def test_a_transport_that_raises_leaves_an_uncertain_mail(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench.transport.send

    def explode(mail: Message, **given: Any) -> Result:
        if mail.email_id == "a":
            raise RuntimeError("a bug")
        return honest(mail, **given)

    monkeypatch.setattr(bench.transport, "send", explode)
    accept(bench.engine, bench.config, "a", "b")
    bench.run()
    assert rows(bench.engine, DeadLetter)[0].reason == "uncertain"
    assert row(bench.engine, "b").status == "sent"


def test_the_dot_has_a_deadline_that_its_lease_covers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, began, given = bench.transport.send, monotonic(), []

    def look(mail: Message, *, deadline: float, reply_timeout: float, passing_dot: Callable[[], None]) -> Result:
        given.append((deadline, reply_timeout))
        return honest(mail, deadline=deadline, reply_timeout=reply_timeout, passing_dot=passing_dot)

    monkeypatch.setattr(bench.transport, "send", look)
    accept(bench.engine, bench.config, "a")
    bench.run()
    ((deadline, reply_timeout),) = given
    most = bench.config.smtp_timeout_seconds + row(bench.engine, "a").size / BYTES_PER_SECOND
    assert began < deadline <= monotonic() + most
    assert reply_timeout == bench.config.smtp_reply_timeout_seconds
    assert deadline + reply_timeout <= monotonic() + bench.config.lease_seconds


def test_a_pause_in_the_middle_of_a_batch_releases_the_rest(bench: Bench) -> None:
    def pause(_mail: Message) -> Result:
        outbox.pause(bench.engine, "an operator")
        return SENT

    accept(bench.engine, bench.config, "a", "b", "c")
    bench.answer(pause).run()
    assert [row(bench.engine, i).status for i in "abc"] == ["sent", "pending", "pending"]
    assert [row(bench.engine, i).attempts for i in "bc"] == [0, 0]
    assert len(bench.transport.attempts) == 1


def test_a_pause_is_seen_before_a_conversation_that_was_waited_for(
    bench: Bench, leap: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the claim and its first conversation time has passed; the switch is looked at again."""
    accept(bench.engine, bench.config)
    claim = outbox.claim

    def claim_then_pause(*args: Any, **kwargs: Any) -> Any:
        made = claim(*args, **kwargs)
        outbox.pause(bench.engine, "an operator")
        leap(1)
        return made

    monkeypatch.setattr(outbox, "claim", claim_then_pause)
    bench.run()
    assert (row(bench.engine).status, bench.transport.attempts) == ("pending", [])


def test_a_shutdown_releases_the_rest_and_burns_no_attempt(bench: Bench) -> None:
    def stop(_mail: Message) -> Result:
        bench.stopping.set()
        return Result(Outcome.CUT, "shutting down")

    accept(bench.engine, bench.config, "a", "b")
    bench.answer(stop).run()
    assert [(row(bench.engine, i).status, row(bench.engine, i).attempts) for i in "ab"] == [("pending", 0)] * 2


def test_an_outage_stops_the_batch_and_the_drain_comes_back_for_the_probe(bench: Bench) -> None:
    accept(bench.engine, bench.config, "a", "b")
    bench.answer(OUTAGE).run()
    assert [row(bench.engine, i).attempts for i in "ab"] == [0, 0]
    assert len(bench.transport.attempts) == 1
    move_switch(bench.engine, 6, "next_probe_at")
    bench.run()
    assert switch(bench.engine).outage_since is None
    assert reports.stats(bench.engine).sent == 2


def test_a_deadline_that_passes_in_hand_starts_no_conversation(bench: Bench, leap: Callable[[float], None]) -> None:
    def slow(_mail: Message) -> Result:
        leap(4)
        return SENT

    accept(bench.engine, bench.config, "a")
    accept(bench.engine, bench.config, "b", expires_at=(utcnow() + timedelta(seconds=3)).isoformat())
    bench.answer(slow).run()
    assert rows(bench.engine, DeadLetter)[0].reason == "expired"
    assert [m.email_id for m in bench.transport.attempts] == ["a"]


def test_after_a_slow_conversation_the_rest_is_for_others(bench: Bench, leap: Callable[[float], None]) -> None:
    def slow(_mail: Message) -> Result:
        leap(6)
        statuses.extend(row(bench.engine, i).status for i in "ab")
        return SENT

    statuses: list[str] = []
    accept(bench.engine, bench.config, "a", "b")
    bench.answer(slow)
    bench.stopping = _StopAfter(2)
    bench.run()
    assert statuses == ["sending", "sending"]
    assert [row(bench.engine, i).status for i in "ab"] == ["sent", "pending"]


class _StopAfter(threading.Event):
    """Set once it was asked so many times in the drain's own loop."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def is_set(self) -> bool:
        self._times -= 1
        return self._times < 0


def test_a_conversation_starts_only_if_the_lease_covers_it(
    engine: Engine, make_config: Callable[..., Config], leap: Callable[[float], None]
) -> None:
    """Measured by the worker's own clock from before the claim was sent; what does not fit goes back untouched."""
    bench = Bench(engine, make_config(lease_seconds=100))
    accept(engine, bench.config, "a", "b")

    def slow(_mail: Message) -> Result:
        leap(11)  # 30 + 60 s for a conversation do not fit into what is left of 100
        bench.stopping.set()
        return SENT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "SLOW_SECONDS", 1000)
        patch.setattr(Batch, "_wait_for_slot", lambda self: True)
        bench.answer(slow).run()
    assert [m.email_id for m in bench.transport.attempts] == ["a"]
    assert [(row(engine, i).status, row(engine, i).attempts) for i in "ab"] == [("sent", 1), ("pending", 0)]


def test_the_first_mail_of_a_claim_that_took_too_long_gets_a_lease_of_its_own(
    engine: Engine, make_config: Callable[..., Config], leap: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back it would only be claimed again, as slowly, for ever."""
    bench = Bench(engine, make_config(lease_seconds=100))
    accept(engine, bench.config, "a", "b")
    claim = outbox.claim

    def slow_claim(*args: Any, **kwargs: Any) -> Any:
        made = claim(*args, **kwargs)
        leap(11)
        return made

    monkeypatch.setattr(outbox, "claim", slow_claim)
    seen: list[tuple[str, float]] = []

    def look(_mail: Message) -> Result:
        lease = row(engine, "a").lease_expires_at - utcnow()
        seen.append((row(engine, "b").status, lease.total_seconds()))
        return SENT

    bench.answer(look).run()
    assert seen[0][0] == "pending"
    assert seen[0][1] > 150
    bench.run()  # the claim took the ten seconds of the first one
    assert [row(engine, i).status for i in "ab"] == ["sent", "sent"]


def test_a_mail_too_large_for_a_lease_gets_its_own(engine: Engine, make_config: Callable[..., Config]) -> None:
    """50 MB at 64 KiB/s need 13 minutes: the rest goes back first, then its own row is renewed."""
    bench = Bench(engine, make_config())
    accept(engine, bench.config, "large", "small")
    with engine.begin() as connection:
        connection.execute(update(Email).where(Email.email_id == "large").values(size=50_000_000))
    seen: list[tuple[str, str, float]] = []

    def look(_mail: Message) -> Result:
        large = row(engine, "large")
        seen.append((large.status, row(engine, "small").status, (large.lease_expires_at - utcnow()).total_seconds()))
        return SENT

    bench.answer(look).run()
    assert seen[0][:2] == ("sending", "pending")
    assert seen[0][2] > 50_000_000 / 65536 + 90
    assert [row(engine, i).status for i in ("large", "small")] == ["sent", "sent"]


def test_it_stops_when_the_row_is_no_longer_its_own(bench: Bench) -> None:
    """Stopped past its lease and continued: the late record changes nothing, and the worker starts nothing more."""

    def overtaken(_mail: Message) -> Result:
        end_leases(bench.engine)
        outbox.sweep(bench.engine, bench.config)
        outbox.pause(bench.engine, "so that this drain does not claim the others again")
        return SENT

    accept(bench.engine, bench.config, "a", "b", "c")
    bench.answer(overtaken).run()
    assert [row(bench.engine, i).status for i in "abc"] == ["failed", "pending", "pending"]
    assert [m.email_id for m in bench.transport.attempts] == ["a"]
    assert reports.violations(bench.engine, bench.config) == []


def _lose_the_reply_to_the_next_commit(engine: Engine) -> None:
    def lose(connection: Any) -> None:
        if connection.get_execution_options().get("read_only"):
            return
        event.remove(engine, "commit", lose)
        if engine.dialect.name == "postgresql":
            connection.connection.commit()
        else:
            connection.exec_driver_sql("COMMIT")
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    event.listen(engine, "commit", lose)


@pytest.mark.parametrize("result", [SENT, DEFERRED, REJECTED, UNCERTAIN], ids=lambda r: r.outcome.value)
@pytest.mark.parametrize("fault", ["rolled back", "lost"])
def test_an_outcome_in_hand_is_recorded_when_the_database_is_back(bench: Bench, result: Result, fault: str) -> None:
    """Nothing more is started until it is, and it is recorded once."""

    def answer(mail: Message) -> Result:
        bench.faults.extend([fault, fault])
        return result

    accept(bench.engine, bench.config, "a", "b")
    bench.answer(answer).run()
    expected = {"sent": "sent", "deferred": "pending", "rejected": "failed", "uncertain": "failed"}
    assert row(bench.engine, "a").status == expected[result.outcome]
    assert row(bench.engine, "a").attempts == 1
    assert [m.email_id for m in bench.transport.attempts] == ["a", "b"]
    assert row(bench.engine, "b").status == "sent"
    assert reports.violations(bench.engine, bench.config) == []


def test_a_claim_whose_reply_was_lost_is_given_back_by_the_next_look(bench: Bench) -> None:
    accept(bench.engine, bench.config)
    huey = queue.build(bench.config)
    tasks.register(huey, bench.config, bench.engine, LocalLocks(), lambda: bench.transport)
    _lose_the_reply_to_the_next_commit(bench.engine)
    with pytest.raises(CancelExecution):
        huey.drain.call_local()
    assert (row(bench.engine).status, row(bench.engine).attempts) == ("sending", 0)
    assert huey.lookout.wait(10)
    assert (row(bench.engine).status, row(bench.engine).attempts) == ("pending", 0)
    assert bench.transport.attempts == []


def test_it_works_until_nothing_is_due_however_long_that_takes(bench: Bench, leap: Callable[[float], None]) -> None:
    accept(bench.engine, bench.config, *(f"m-{n:02}" for n in range(15)))
    bench.answer(*[SENT] * 9, lambda _mail: leap(3600) or SENT).run()
    assert reports.stats(bench.engine).sent == 15


def test_every_tenth_claim_starts_from_the_lowest_so_low_still_moves(
    engine: Engine, make_config: Callable[..., Config]
) -> None:
    bench = Bench(engine, make_config(batch_size=1))
    outbox.accept_many(engine, [new_email(f"high-{n}", priority="high") for n in range(30)], bench.config)
    outbox.accept_many(engine, [new_email(f"low-{n}", priority="low") for n in range(3)], bench.config)
    bench.run()
    order = [m.email_id.split("-")[0] for m in bench.transport.delivered]
    assert order[:20].count("low") == 2


def test_a_rate_limit_is_smooth(engine: Engine, make_config: Callable[..., Config]) -> None:
    """Four workers, twenty-five a second: no window of a second holds more than the limit and a tenth.

    Beside it, one of each: a worker's turn is one moment, and when this machine lets it run is another."""
    config = make_config(rate_limit_per_second=25)
    outbox.accept_many(engine, [new_email(f"m-{n}") for n in range(75)], config)
    starts: list[float] = []

    def note(_mail: Message) -> Result:
        starts.append(monotonic())
        return SENT

    benches = [Bench(engine, config, MemoryTransport(always=note)) for _ in range(4)]
    threads = [threading.Thread(target=bench.run) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    starts.sort()
    assert len(starts) == 75
    assert starts[-1] - starts[0] >= 74 / 25 * 0.95
    assert max(sum(s <= other < s + 1 for other in starts) for s in starts) <= 28 + len(benches)


def test_nothing_is_logged_of_the_body_and_only_a_mask_of_the_recipient(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    accept(bench.engine, bench.config, user="somebody.secret@example.com", body="TOPSECRET", subject="PRIVATE")
    bench.answer(DEFERRED).run()
    logged = "\n".join(f"{r.getMessage()} {getattr(r, 'fields', '')} {r.exc_text}" for r in caplog.records)
    assert "s…@example.com" in logged
    assert "'code': 451" in logged
    for private in ("somebody.secret", "TOPSECRET", "PRIVATE"):
        assert private not in logged


def test_the_rest_is_released_when_the_row_in_hand_went_to_another_worker(
    engine: Engine, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferral whose reply was lost, claimed anew before it could be looked at: untouched mail is no false alarm."""
    bench = Bench(engine, make_config(retry_delay_seconds=0))
    accept(engine, bench.config, "a", "b", "c")
    write = outbox.record

    def lose_the_reply(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(outbox, "record", write)
        write(*args, **kwargs)
        with engine.begin() as connection:
            connection.execute(
                update(Email)
                .where(Email.email_id == "a")
                .values(status="sending", claim="another", lease_expires_at=utcnow())
            )
        bench.stopping.set()
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(outbox, "record", lose_the_reply)
    bench.answer(DEFERRED).run()
    assert [row(engine, i).status for i in "abc"] == ["sending", "pending", "pending"]


def test_an_error_without_words_does_not_end_the_wait_for_the_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = outbox.record

    def fail_once(*_args: Any, **_kwargs: Any) -> Any:
        monkeypatch.setattr(outbox, "record", write)
        raise OperationalError("COMMIT", {}, Exception(""))

    accept(bench.engine, bench.config)
    monkeypatch.setattr(outbox, "record", fail_once)
    bench.run()
    assert row(bench.engine).status == "sent"


def test_an_international_sender_domain_makes_message_ids_that_can_be_sent(
    engine: Engine, make_config: Callable[..., Config]
) -> None:
    bench = Bench(engine, make_config(mail_from="info@bücher.example"))
    accept(engine, bench.config)
    bench.run()
    assert row(engine).status == "sent"
    assert row(engine).message_id.endswith("@xn--bcher-kva.example>")


def test_the_beginning_and_the_end_of_an_outage_are_events(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    accept(bench.engine, bench.config, *(f"m-{n}" for n in range(12)))
    bench.answer(Result(Outcome.OUTAGE, "421 not now, ada@example.com")).run()
    move_switch(bench.engine, 60, "next_probe_at", "outage_since")
    bench.run()
    accept(bench.engine, bench.config, "another")
    bench.answer(OUTAGE).run()
    outbox.end_outage(bench.engine)
    outbox.end_outage(bench.engine)
    events = [(r.levelname, r.getMessage(), getattr(r, "fields", {})) for r in caplog.records]
    told = [event for event in events if event[1].startswith("outage_")]
    lasted = [round(fields.pop("seconds")) for _, _, fields in told if "seconds" in fields]
    assert told == [
        (
            "WARNING",
            "outage_began",
            {"outcome": "outage", "reason": "421 not now, a…@example.com", "waiting": 12},
        ),
        ("WARNING", "outage_ended", {"by": "probe", "outcome": "sent"}),
        ("WARNING", "outage_began", {"outcome": "outage", "reason": OUTAGE.reply, "waiting": 1}),
        ("WARNING", "outage_ended", {"by": "operator"}),
    ]
    assert lasted[0] >= 60
    assert 0 <= lasted[1] < 60


def test_the_name_of_a_worker_keeps_the_end_of_a_long_host_name_and_fits_its_column(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = "notifications-production-email-worker-deployment-7d9f8c6b5d-x2x9z"
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr("os.getpid", lambda: 4_194_304)  # the highest that Linux gives
    name = Crew(bench.config, bench.engine, lambda: bench.transport, bench.wake).name
    assert name.endswith("-7d9f8c6b5d-x2x9z:4194304")
    outbox.heartbeat(bench.engine, name)  # PostgreSQL would refuse what is longer
    with bench.engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM workers")).scalars().all() == [name]


def test_at_a_shutdown_what_was_not_begun_goes_back_while_a_reply_is_still_waited_for(bench: Bench) -> None:
    answered, begun = threading.Event(), threading.Event()

    def wait_for_the_reply(_mail: Message) -> Result:
        begun.set()
        answered.wait(20)
        return SENT

    accept(bench.engine, bench.config, "a", "b", "c")
    bench.answer(wait_for_the_reply)
    crew = Crew(bench.config, bench.engine, lambda: bench.transport, bench.wake)
    worker = threading.Thread(target=crew.drain)
    worker.start()
    try:
        assert begun.wait(20)
        crew.stop()
        assert [row(bench.engine, i).status for i in "abc"] == ["sending", "pending", "pending"]
    finally:
        answered.set()
        worker.join(20)
    assert [row(bench.engine, i).status for i in "abc"] == ["sent", "pending", "pending"]
    assert [m.email_id for m in bench.transport.attempts] == ["a"]
