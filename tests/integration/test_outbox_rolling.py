"""Roll-ups: exact at any moment, whoever counts beside whom, and whatever hangs or dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from datetime import timedelta
from itertools import chain, repeat
from typing import Any, cast

import pytest
from flask import Flask
from sqlalchemy import Engine, bindparam, create_engine, func, insert, select, text, update
from sqlalchemy.exc import OperationalError

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.counts import TOTALS, Counts, read_counts
from emailsvc.db.models import Counter, DeadLetter, Email, Switch
from emailsvc.db.snapshots import snapshot
from emailsvc.db.sqltime import UtcDateTime
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import Swept, accepting, moves, rolling
from emailsvc.reports import invariant
from emailsvc.settings.config import Config
from emailsvc.wakeups.tasks import Crew
from tests.emails import (
    DEFERRED,
    REJECTED,
    SENT,
    UNCERTAIN,
    accept,
    claim,
    end_leases,
    go_back,
    make_due,
    record,
    rows,
    switch,
)  # fmt: skip
from tests.factories import new_email
from tests.machine import ScriptedEngine
from tests.servers import PostgreSQL, wait_for

HOUR = timedelta(hours=1)
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


NOTHING: dict[str, Any] = {field.name: 0 for field in fields(Counts)}


def counts(engine: Engine) -> dict[str, Any]:
    with snapshot(engine) as connection:
        return asdict(read_counts(connection))


def open_letters(engine: Engine) -> int:
    """Of all reasons, each of which has counters of its own."""
    return sum(reports.metrics(engine).open_letters.values())


def in_every_state(engine: Engine, config: Config) -> dict[str, Any]:
    """What the counts must be."""
    accept(engine, config, *"abcdefgh")
    made = claim(engine, config)
    for number, result in enumerate([SENT, SENT, DEFERRED, REJECTED, UNCERTAIN, REJECTED]):
        record(engine, config, made, result, number)
    outbox.release(engine, made.token, config)
    outbox.cancel(engine, "g")
    outbox.erase(engine, "h@example.com")
    letters = [letter.id for letter in rows(engine, DeadLetter)]
    outbox.discard(engine, letters[0])
    outbox.delivered(engine, letters[1])
    accept(engine, config, "a")
    outbox.accept(engine, new_email("a", subject="Other"), config)
    outbox.count_refused(engine, {"not_json": 3, "too_large": 1})
    return NOTHING | {
        "received": 8, "duplicates": 1, "mismatches": 1, "pending": 1, "sending": 0, "sent": 3, "failed": 2,
        "cancelled": 2, "failed_attempts": 4, "dead_letters": 1, "refused": {"not_json": 3, "too_large": 1},
    }  # fmt: skip


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is settled as soon as nobody holds it open, and no step is too small."""
    for name in ("MARGIN_SECONDS", "SETTLED_SECONDS"):
        monkeypatch.setattr(rolling, name, 0.0)
    monkeypatch.setattr(rolling, "MIN_STEP_SECONDS", 0.0)


def test_every_count_is_the_same_before_and_after(engine: Engine, config: Config) -> None:
    expected = in_every_state(engine, config)
    assert counts(engine) == expected, "no sweep has come yet"
    for seconds in (0, 20, 3000, 90_000):
        go_back(engine, seconds)
        for _ in range(2):
            outbox.sweep(engine, config)
            assert counts(engine) == expected
            assert reports.violations(engine, config) == []
            assert open_letters(engine) == expected["dead_letters"]
        current = switch(engine)
        assert timedelta(seconds=5) <= utcnow() - current.rolled_up_to < timedelta(seconds=15)
        assert abs(current.letters_rolled_up_to - current.rolled_up_to) < timedelta(seconds=5)
    make_due(engine)
    record(engine, config, claim(engine, config), SENT)
    outbox.replay(engine, rows(engine, DeadLetter)[2].id)
    expected |= {"sent": 4, "failed": 1, "pending": 1, "dead_letters": 0}
    assert counts(engine) == expected
    go_back(engine, 60)
    outbox.roll_up(engine)
    assert counts(engine) == expected


def test_each_hour_has_its_own_row(engine: Engine, config: Config, at_once: None) -> None:
    ago = utcnow().replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    accept(engine, config, *"abcd")
    for email_id, moment in zip("abcd", (0.1, 0.9, 1.0, 2.5), strict=True):
        with engine.begin() as connection:
            at = {"received_at": ago + moment * HOUR}
            connection.execute(update(Email).where(Email.email_id == email_id).values(**at))
    with engine.begin() as connection:
        connection.execute(update(Switch).values(rolled_up_to=ago + 0.05 * HOUR))
    outbox.roll_up(engine)
    with engine.connect() as connection:
        found = connection.execute(
            select(Counter.hour, func.sum(Counter.value)).where(Counter.kind == "received").group_by(Counter.hour)
        ).all()
    assert {row.hour: row[1] for row in found} == {ago: 2, ago + HOUR: 1, ago + 2 * HOUR: 1}


@POSTGRESQL
def test_what_hangs_while_the_roll_up_passes_is_counted_once(engine: Engine, config: Config, at_once: None) -> None:
    """A commit may wait for a standby as long as it likes: by time alone its e-mail would never be counted."""
    accept(engine, config, "before")
    with engine.begin() as hanging:
        (late,) = moves.accept(hanging, [accepting._row(new_email("late"), 0, config)])
        accept(engine, config, "after")
        outbox.roll_up(engine)
        assert switch(engine).rolled_up_to <= late.received_at
        assert counts(engine)["received"] == 2
    for _ in range(2):
        outbox.roll_up(engine)
        assert switch(engine).rolled_up_to > late.received_at
        assert counts(engine)["received"] == 3
    assert reports.violations(engine, config) == []


@POSTGRESQL
def test_an_outcome_that_hangs_is_counted_once(engine: Engine, config: Config, at_once: None) -> None:
    accept(engine, config, "a", "b")
    made = claim(engine, config)
    with engine.begin() as hanging:
        moves.send(hanging, made.rows[0].id, made.token, "250 taken", 0.1)
        record(engine, config, made, REJECTED, 1)
        outbox.roll_up(engine)
        assert counts(engine)["sent"] == 0
    outbox.roll_up(engine)
    assert (counts(engine)["sent"], counts(engine)["failed"]) == (1, 1)
    assert reports.violations(engine, config) == []


@POSTGRESQL
def test_whoever_only_reads_holds_up_nothing(engine: Engine, config: Config, at_once: None) -> None:
    """A backup reads for hours."""
    with snapshot(engine) as backup:
        backup.execute(select(Email.id)).all()
        accept(engine, config, "a")
        outbox.roll_up(engine)
        (received,) = {email.received_at for email in rows(engine, Email)}
        assert switch(engine).rolled_up_to > received


@POSTGRESQL
def test_who_has_begun_and_not_written_is_given_as_long_as_a_statement_may_take(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to write with the time at which its statement began."""
    monkeypatch.setattr(rolling, "MARGIN_SECONDS", 0.0)
    monkeypatch.setattr(rolling, "MIN_STEP_SECONDS", 0.0)
    with engine.begin() as begun:
        begun.execute(select(1))
        accept(engine, config)
        (received,) = {email.received_at for email in rows(engine, Email)}
        outbox.roll_up(engine)
        assert switch(engine).rolled_up_to < received
        monkeypatch.setattr(rolling, "SETTLED_SECONDS", 0.0)
        outbox.roll_up(engine)
        assert switch(engine).rolled_up_to > received
    monkeypatch.undo()
    wait_for(lambda: _settled_seconds_ago(engine) < 6, 20, "whoever else has begun to end")


@POSTGRESQL
def test_a_writer_that_hides_its_beginning_is_given_minutes(
    engine: Engine, postgresql: PostgreSQL, database_url: str
) -> None:
    """Of another role's session PostgreSQL shows that it writes, and not since when."""
    name = database_url.rpartition("/")[2]
    with engine.begin() as owner:
        owner.exec_driver_sql(f"CREATE ROLE guest_of_{name} LOGIN")
    guest = create_engine(f"postgresql+psycopg://guest_of_{name}@127.0.0.1:{postgresql.port}/{name}")
    try:
        with engine.begin() as owner:
            assert _settled_seconds_ago(guest) == pytest.approx(rolling.SETTLED_SECONDS, abs=1), "it may have begun"
            owner.exec_driver_sql("CREATE TABLE hides (id int)")
            assert _settled_seconds_ago(guest) > rolling.HIDDEN_SECONDS - 1
    finally:
        guest.dispose()
        with engine.begin() as owner:
            owner.exec_driver_sql(f"DROP ROLE guest_of_{name}")


def _settled_seconds_ago(engine: Engine) -> float:
    with engine.connect() as connection:
        return (utcnow() - rolling.settled_until(connection)).total_seconds()


def test_the_counts_are_exact_while_all_is_going_on(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-mails come, go out and fail, and roll-ups follow a second behind, as often as they can."""
    config = make_config(batch_size=3)
    engine, web, worker = (make_app(config).extensions["emailsvc"].engine for _ in range(3))
    monkeypatch.setattr(rolling, "MARGIN_SECONDS", 1.0)
    monkeypatch.setattr(rolling, "MIN_STEP_SECONDS", 0.001)
    rolling.close_hours(engine)  # the counters begin
    finished = threading.Event()

    def come(client: int) -> None:
        for number in range(40):
            accept(web, config, f"{client}-{number}", f"{client}-{number}")
            if number % 10 == 0:
                outbox.erase(web, f"{client}-{number}@example.com")

    def go(_: int) -> None:
        while not finished.is_set():
            made = outbox.claim(worker, f"{threading.get_ident():x}-{utcnow().timestamp()}", config)
            if isinstance(made, outbox.Claim):
                for number in range(len(made.rows)):
                    record(worker, config, made, (SENT, REJECTED, UNCERTAIN)[number], number)

    def roll_up() -> None:
        while not finished.is_set():
            outbox.roll_up(engine)
            assert reports.violations(engine, config) == []

    with ThreadPoolExecutor(7) as pool:
        rolls, workers = [pool.submit(roll_up) for _ in range(2)], [pool.submit(go, n) for n in range(2)]
        clients = [pool.submit(come, n) for n in range(3)]
        try:
            for client in clients:
                client.result(120)
            wait_for(lambda: counts(engine)["pending"] == counts(engine)["sending"] == 0, 60, "all to go out")
        finally:
            finished.set()
        for future in (*rolls, *workers):
            future.result(60)
    go_back(engine, 60)
    outbox.roll_up(engine)
    found = counts(engine)
    assert (found["received"], found["duplicates"]) == (120, 120)
    assert reports.violations(engine, config) == []


OLD_STEP = (
    "UPDATE switch SET rolled_up_to = :end WHERE rolled_up_to = :start",
    *(
        f"INSERT INTO counters (hour, kind, shard, value) SELECT :start, '{kind}', 3, count(*) FROM {table} "
        f"WHERE {column} >= :start AND {column} < :end AND {condition} "
        "ON CONFLICT (hour, kind, shard) DO UPDATE SET value = counters.value + excluded.value"
        for kind, table, column, condition in (
            ("received", "emails", "received_at", "1 = 1"),
            ("sent", "emails", "sent_at", "status = 'sent'"),
            ("failed_attempts", "attempts", "at", "1 = 1"),
        )
    ),
)
"""A closed hour from wherever the mark is, as 1436620 counts it."""

OLD_COUNTS = """
SELECT (SELECT coalesce(sum(value), 0) FROM counters WHERE kind = 'received')
     + (SELECT count(*) FROM emails, switch WHERE received_at >= rolled_up_to),
       (SELECT coalesce(sum(value), 0) FROM counters WHERE kind = 'sent')
     + (SELECT count(*) FROM emails, switch WHERE status = 'sent' AND sent_at >= rolled_up_to),
       (SELECT coalesce(sum(value), 0) FROM counters WHERE kind = 'purged_cancelled')
     + (SELECT count(*) FROM emails WHERE status = 'cancelled'),
       (SELECT coalesce(sum(value), 0) FROM counters WHERE kind = 'purged_failed')
     + (SELECT count(*) FROM emails WHERE status = 'failed')
"""


def roll_up_as_1436620(engine: Engine) -> bool:
    start = switch(engine).rolled_up_to
    if start + HOUR > utcnow() - timedelta(seconds=300):
        return False
    moments = [bindparam(name, type_=UtcDateTime()) for name in ("start", "end")]
    with engine.begin() as connection:
        for statement in OLD_STEP:
            named = [moment for moment in moments if f":{moment.key}" in statement]
            connection.execute(text(statement).bindparams(*named), {"start": start, "end": start + HOUR})
    return True


def counts_of_1436620(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        row = connection.execute(text(OLD_COUNTS)).one()
    return dict(zip(("received", "sent", "cancelled", "failed"), map(int, row), strict=True))


def test_the_steps_of_the_first_release_fit_between(engine: Engine, config: Config) -> None:
    """It counts an hour from wherever the mark is, knows neither totals nor letters, and stays for a deploy."""
    expected = in_every_state(engine, config)
    outbox.sweep(engine, config)
    for seconds, steps in ((30, 0), (5 * 3600, 4), (3 * 3600, 2), (7 * 3600 + 17, 6)):
        go_back(engine, seconds)
        for _ in range(steps):
            assert roll_up_as_1436620(engine)
            assert counts(engine) == expected
        outbox.sweep(engine, config)
        accept(engine, config, f"late-{seconds}")
        expected |= {"received": expected["received"] + 1, "pending": expected["pending"] + 1}
        assert counts(engine) == expected
        assert counts_of_1436620(engine).items() <= expected.items()
        assert open_letters(engine) == expected["dead_letters"]
    assert not roll_up_as_1436620(engine), "we are ahead of it"
    assert reports.violations(engine, config) == []


@pytest.mark.parametrize("fault", ["rolled back", "lost", "deadlock", "away"])
def test_a_worker_that_dies_in_a_roll_up_leaves_all_or_nothing(engine: Engine, config: Config, fault: str) -> None:
    expected = in_every_state(engine, config)
    outbox.sweep(engine, config)
    go_back(engine, 2 * 3600)
    raised = 0
    for fate in range(8):
        line = cast(Engine, ScriptedEngine(engine, chain(repeat("ok", fate), repeat(fault)).__next__))
        for act in (outbox.roll_up, rolling.close_hours):
            try:
                act(line)
            except OperationalError:
                raised += 1
        assert counts(engine) == expected
    assert raised
    outbox.sweep(engine, config)
    assert counts(engine) == expected
    assert reports.violations(engine, config) == []


def test_hours_before_last_are_summed_up_once(engine: Engine, config: Config) -> None:
    expected = in_every_state(engine, config)
    hour = utcnow().replace(minute=0, second=0, microsecond=0)
    with engine.begin() as connection:
        for ago in range(1, 50):
            values = [{"hour": hour - ago * HOUR, "kind": "duplicates", "shard": n, "value": 2} for n in range(16)]
            connection.execute(insert(Counter), values)
    expected["duplicates"] += 49 * 16 * 2
    assert counts(engine) == expected
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: rolling.close_hours(engine), range(3)))
    assert counts(engine) == expected
    (total,) = [row for row in rows(engine, Counter) if row.hour == TOTALS]
    assert (total.kind, total.value) == ("total_duplicates", total.value)
    assert total.value in (47 * 32, 48 * 32)
    summed_up_to = switch(engine).totals_up_to
    go_back(engine, -3 * 3600)  # three hours later
    rolling.close_hours(engine)
    assert switch(engine).totals_up_to == summed_up_to + 3 * HOUR
    assert counts(engine) == expected
    assert sum(row.value for row in rows(engine, Counter) if row.kind == "duplicates") == expected["duplicates"]


def test_what_the_release_before_did_uncounted_is_found_by_the_hour_and_said(
    engine: Engine, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    expected = in_every_state(engine, config)
    accept(engine, config, "i", "j")
    outbox.sweep(engine, config)
    go_back(engine, 7200)
    assert caplog.records == []
    with engine.begin() as connection:
        as_before = {"status": "cancelled", "next_attempt_at": None, "final_at": utcnow()}
        connection.execute(update(Email).where(Email.email_id == "i").values(**as_before))
        connection.execute(update(Email).where(Email.email_id == "j").values(received_at=utcnow() - 100 * HOUR))
    assert reports.violations(engine, config) != []
    outbox.sweep(engine, config)
    assert counts(engine) == expected | {"received": 10, "cancelled": 3, "pending": 2}
    assert reports.violations(engine, config) == []
    (said,) = [record for record in caplog.records if record.message == "counters_corrected"]
    assert said.__dict__["fields"] == {"cancelled": 1, "received": 1}


def test_a_letter_resolved_after_the_mark_keeps_its_e_mail(
    engine: Engine, make_config: Callable[..., Config], at_once: None
) -> None:
    """Its e-mail was final a moment earlier, and the mark may lie between them."""
    config = make_config(email_retention_days=0, body_retention_seconds=0)
    accept(engine, config)
    record(engine, config, claim(engine, config), REJECTED)
    rolling.close_hours(engine)
    outbox.discard(engine, rows(engine, DeadLetter)[0].id)
    (letter,), (email,) = rows(engine, DeadLetter), rows(engine, Email)
    with engine.begin() as connection:
        between = {Email.final_at: letter.resolved_at - timedelta(milliseconds=2)}
        connection.execute(update(Email).values(between))
        mark = letter.resolved_at - timedelta(milliseconds=1)
        connection.execute(update(Switch).values(rolled_up_to=mark, letters_rolled_up_to=mark))
        connection.execute(update(Email).values(received_at=email.received_at - HOUR))
    assert _purged(engine, config) == 0
    before = counts(engine)
    outbox.roll_up(engine)
    assert _purged(engine, config) == 1
    assert counts(engine) == before


@pytest.mark.parametrize("seconds", [60, 5 * 3600])
def test_after_the_database_s_clock_was_set_back_all_is_counted_once(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """What came before, and the marks, lie ahead of now; what comes lies before the marks."""
    expected = in_every_state(engine, config)
    outbox.sweep(engine, config)
    go_back(engine, -seconds)
    with monkeypatch.context() as before:
        for name in ("MARGIN_SECONDS", "SETTLED_SECONDS"):
            before.setattr(rolling, name, -seconds - 20.0)
        outbox.roll_up(engine)
        rolling.close_hours(engine)
    assert switch(engine).rolled_up_to > utcnow() + timedelta(seconds=seconds)
    assert counts(engine) == expected
    accept(engine, config, "new-1", "new-2", "new-3", "new-1")
    outbox.count_refused(engine, {"not_json": 2})
    made = claim(engine, config)
    record(engine, config, made, SENT)
    record(engine, config, made, REJECTED, 1)
    outbox.release(engine, made.token, config)
    assert counts(engine)["pending"] >= 0
    expected |= {
        "received": 11, "duplicates": 2, "pending": 2, "sent": 4, "failed": 3, "dead_letters": 2, "failed_attempts": 5,
        "refused": {"not_json": 5, "too_large": 1},
    }  # fmt: skip
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: outbox.roll_up(engine), range(3)))
    assert switch(engine).rolled_up_to < utcnow()
    for later in (0, 60, 2 * seconds):
        go_back(engine, later)
        assert counts(engine) == expected
        assert reports.violations(engine, config) == []
        outbox.sweep(engine, config)
        assert counts(engine) == expected
        assert open_letters(engine) == expected["dead_letters"]


def _purged(engine: Engine, config: Config) -> int:
    swept = Swept()
    outbox.retain(engine, config, swept)
    return swept.purged


def test_a_glance_sees_one_slice_of_what_is_stored_and_all_that_is_being_sent(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariant, "SLICE", 3)
    accept(engine, config, *"abcdef")
    record(engine, config, claim(engine, config), REJECTED, 4)
    with engine.begin() as connection:
        connection.execute(update(DeadLetter).values(resolved_at=utcnow(), resolution="replayed"))
    slices = [reports.glance(engine, config, number) for number in range(6)]
    broken = "1 e-mails failed without an unresolved or discarded dead letter"
    assert [broken in found for found in slices] == [number % 3 == 1 for number in range(6)]
    end_leases(engine)
    assert any("lease older than two sweeps" in what for what in reports.glance(engine, config, 0))


def test_a_worker_rolls_up_as_long_as_it_lives(engine: Engine, config: Config, at_once: None) -> None:
    crew = Crew(config, engine, MemoryTransport, lambda: None)
    accept(engine, config)
    (email,) = rows(engine, Email)
    crew.start()
    wait_for(lambda: switch(engine).rolled_up_to > email.received_at, 20, "a roll-up")
    crew.stopping.set()
