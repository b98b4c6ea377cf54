"""Accepting: one row per id, whoever comes first and however many at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.exc import IntegrityError

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.models import Counter, Email, StoredAttachment
from emailsvc.settings.config import Config
from tests.emails import accept, row, rows
from tests.factories import new_email


def test_it_accepts_once_and_counts_every_repeat(engine: Engine, config: Config) -> None:
    answers = [outbox.accept(engine, new_email(), config) for _ in range(3)]
    assert [(a.status, a.duplicates) for a in answers] == [("accepted", 0), ("duplicate", 1), ("duplicate", 2)]
    assert len({a.first_received_at for a in answers}) == 1
    assert reports.stats(engine).received == 1
    assert reports.stats(engine).duplicates == 2


def test_another_payload_is_a_mismatch_and_overwrites_nothing(engine: Engine, config: Config) -> None:
    accept(engine, config)
    before = row(engine)
    assert outbox.accept(engine, new_email(subject="Other"), config).status == "mismatch"
    assert row(engine).subject == "Hello"
    assert row(engine).fingerprint == before.fingerprint
    assert (row(engine).duplicates, row(engine).mismatches) == (0, 1)
    assert reports.stats(engine).mismatches == 1


def test_times_and_priority_are_not_part_of_what_is_compared(engine: Engine, config: Config) -> None:
    accept(engine, config)
    later = (utcnow() + timedelta(hours=1)).isoformat()
    again = new_email(expires_at=later, priority="high", on_uncertain="retry")
    assert outbox.accept(engine, again, config).status == "duplicate"


def test_ids_are_compared_byte_for_byte(engine: Engine, config: Config) -> None:
    ids = ["a", "A", "a ", "á", "a\u0301", "ａ", "%61", "a/b"]
    assert [outbox.accept(engine, new_email(i, user="a@example.com"), config).status for i in ids] == ["accepted"] * 8


def test_fifty_ids_by_sixty_four_posts_at_once_make_fifty_rows(engine: Engine, config: Config) -> None:
    emails = [new_email(f"m-{n}") for n in range(50)]
    start = threading.Barrier(8)

    def post(worker: int) -> list[str]:
        start.wait()
        return [outbox.accept(engine, email, config).status for _ in range(8) for email in emails]

    with ThreadPoolExecutor(8) as pool:
        answers = [status for statuses in pool.map(post, range(8)) for status in statuses]
    assert answers.count("accepted") == 50
    assert answers.count("duplicate") == 50 * 63
    stats = reports.stats(engine)
    assert (stats.received, stats.pending, stats.duplicates) == (50, 50, 50 * 63)


def test_a_duplicate_of_a_due_row_says_so_because_its_wake_up_may_be_lost(engine: Engine, config: Config) -> None:
    assert outbox.accept(engine, new_email(), config).due
    assert outbox.accept(engine, new_email(), config).due


def test_send_at_makes_it_due_then_and_the_past_makes_it_due_now(engine: Engine, config: Config) -> None:
    soon, past = utcnow() + timedelta(seconds=30), utcnow() - timedelta(days=1)
    later = outbox.accept(engine, new_email("later", send_at=soon.isoformat()), config)
    assert not later.due
    assert abs((row(engine, later.email_id).next_attempt_at - soon).total_seconds()) < 0.01
    assert outbox.accept(engine, new_email("now", send_at=past.isoformat()), config).due


def test_the_last_moment_of_the_calendar_can_be_read_back(engine: Engine, config: Config) -> None:
    """Whatever time zone the server keeps: in one east of Greenwich it would lie in the year 10000."""
    accept(engine, config, expires_at="9999-12-31T23:59:59Z")
    assert row(engine).expires_at == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_attachments_are_stored_apart_and_only_once(engine: Engine, config: Config) -> None:
    attachment = {"filename": "a.txt", "content_type": "text/plain", "content": "aGk="}
    for _ in range(2):
        accept(engine, config, attachments=[attachment, {**attachment, "filename": "b.txt"}])
    assert [(a.position, a.filename, a.content) for a in rows(engine, StoredAttachment)] == [
        (0, "a.txt", b"hi"),
        (1, "b.txt", b"hi"),
    ]


def test_a_batch_answers_each_item_in_order(engine: Engine, config: Config) -> None:
    accept(engine, config, "known")
    batch = [
        new_email("b"),
        new_email("a", attachments=[{"filename": "x", "content_type": "text/plain", "content": "aGk="}]),
        new_email("b"),
        new_email("b", subject="Other"),
        new_email("known"),
        new_email("known", subject="Other"),
        new_email("b"),
    ]
    answers = outbox.accept_many(engine, batch, config)
    assert [(a.email_id, a.status) for a in answers] == [
        ("b", "accepted"), ("a", "accepted"), ("b", "duplicate"), ("b", "mismatch"), ("known", "duplicate"),
        ("known", "mismatch"), ("b", "duplicate"),
    ]  # fmt: skip
    assert (row(engine, "b").duplicates, row(engine, "b").mismatches) == (2, 1)
    assert (row(engine, "known").duplicates, row(engine, "known").mismatches) == (1, 1)
    stats = reports.stats(engine)
    assert (stats.received, stats.duplicates, stats.mismatches) == (3, 3, 2)
    assert len(rows(engine, StoredAttachment)) == 1


def test_a_batch_of_a_thousand_takes_a_few_statements(engine: Engine, config: Config) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    answers = outbox.accept_many(engine, [new_email(f"m-{n % 990}") for n in range(1000)], config)
    assert [a.status for a in answers].count("accepted") == 990
    assert len(statements) <= 5, statements


def test_an_empty_batch_is_nothing(engine: Engine, config: Config) -> None:
    assert outbox.accept_many(engine, [], config) == []


def test_batches_in_opposite_order_do_not_lock_each_other_out(engine: Engine, config: Config) -> None:
    emails = [new_email(f"m-{n}") for n in range(100)]

    def post(turn: int) -> list[str]:
        batch = emails if turn % 2 else emails[::-1]
        return [a.status for _ in range(5) for a in outbox.accept_many(engine, batch, config)]

    with ThreadPoolExecutor(4) as pool:
        answers = [status for statuses in pool.map(post, range(4)) for status in statuses]
    assert answers.count("accepted") == 100
    assert reports.stats(engine).duplicates == 1900


def test_repeats_are_counted_in_the_transaction_that_saw_them(engine: Engine, config: Config) -> None:
    """Counter and row move together: when the counter cannot be written, the row does not move either."""
    accept(engine, config)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE counters"))
    with pytest.raises(Exception, match="counters"):
        outbox.accept(engine, new_email(), config)
    assert row(engine).duplicates == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "pending", "next_attempt_at": None},
        {"status": "sending", "claim": None},
        {"status": "sending", "claim": "x", "lease_expires_at": None},
        {"status": "sent", "sent_at": None},
        {"status": "pending", "body": None},
        {"status": "gone"},
        {"priority": 3},
        {"on_uncertain": "maybe"},
        {"attempts": -1},
    ],
    ids=str,
)
def test_the_schema_keeps_impossible_rows_out(engine: Engine, wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "email_id": "x", "fingerprint": "f" * 64, "recipient": "a@b.c", "body": "b", "size": 1, "message_id": "<a@b>",
        "status": "pending", "priority": 1, "on_uncertain": "hold", "next_attempt_at": utcnow(),
        "received_at": utcnow(), "attempts": 0,
    }  # fmt: skip
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(Email).values({**good, **wrong}))
    with engine.begin() as connection:
        connection.execute(insert(Email).values(good))


def test_duplicates_are_spread_over_several_counter_rows(engine: Engine, config: Config) -> None:
    for _ in range(40):
        accept(engine, config)
    counters = rows(engine, Counter)
    assert len(counters) > 1
    assert sum(counter.value for counter in counters) == 39


def test_a_commit_is_on_the_disk_when_it_is_answered(engine: Engine) -> None:
    """SQLite in WAL syncs at each commit only when told FULL (2); PostgreSQL unless told otherwise."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
