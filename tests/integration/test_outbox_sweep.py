"""The sweep: expired claims, deadlines, outages past their limit, roll-ups and retention."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from msgspec.structs import asdict
from sqlalchemy import Engine, select, update

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.counts import TOTALS
from emailsvc.db.models import Attempt, Counter, DeadLetter, Email, StoredAttachment, Switch
from emailsvc.outbox import Swept
from emailsvc.outbox import sweeping as outbox_sweep
from emailsvc.settings.config import Config
from tests.emails import (  # fmt: skip
    DEFERRED,
    OUTAGE,
    REJECTED,
    SENT,
    UNCERTAIN,
    accept,
    claim,
    end_leases,
    go_back,
    make_due,
    move,
    move_switch,
    record,
    row,
    rows,
    switch,
)
from tests.factories import new_email
from tests.servers import wait_for


def test_of_an_expired_claim_only_the_lowest_unfinished_row_is_uncertain(engine: Engine, config: Config) -> None:
    accept(engine, config, *"abcde")
    made = claim(engine, config)
    record(engine, config, made, SENT, 0)
    end_leases(engine)
    swept = outbox.sweep(engine, config)
    assert swept.uncertain == [("b", "failed")]
    assert swept.released == 3
    assert [row(engine, i).status for i in "abcde"] == ["sent", "failed", "pending", "pending", "pending"]
    assert "worker was lost" in rows(engine, DeadLetter)[0].error
    assert [row(engine, i).attempts for i in "cde"] == [0, 0, 0]
    assert reports.violations(engine, config) == []


def test_a_claim_whose_lease_lasts_is_left_alone(engine: Engine, config: Config) -> None:
    accept(engine, config)
    claim(engine, config)
    assert outbox.sweep(engine, config).uncertain == []
    assert row(engine).status == "sending"


def test_a_claim_renewed_after_the_sweep_had_listed_it_is_left_alone(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(engine, config)
    made = claim(engine, config)
    monkeypatch.setattr(outbox_sweep, "_expired_claims", lambda _engine: [made.token])
    assert outbox.sweep(engine, config).uncertain == []
    assert row(engine).status == "sending"


def test_under_retry_a_lost_worker_costs_an_attempt_and_the_second_one_ends_it(engine: Engine, config: Config) -> None:
    accept(engine, config, on_uncertain="retry")
    for expected in ("pending", "failed"):
        claim(engine, config)
        end_leases(engine)
        assert outbox.sweep(engine, config).uncertain == [("m-1", expected)]
        make_due(engine)
    assert rows(engine, DeadLetter)[0].reason == "uncertain"
    assert [a.worker_lost for a in rows(engine, Attempt)] == [True, True]


def test_a_replay_forgives_the_worker_that_was_lost(engine: Engine, config: Config) -> None:
    accept(engine, config, on_uncertain="retry")
    for _ in range(2):
        claim(engine, config)
        end_leases(engine)
        outbox.sweep(engine, config)
        make_due(engine)
    outbox.replay(engine, rows(engine, DeadLetter)[0].id)
    claim(engine, config)
    end_leases(engine)
    assert outbox.sweep(engine, config).uncertain == [("m-1", "pending")]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_sweep_held_up_before_it_reads_sees_the_record_that_came_first(engine: Engine, config: Config) -> None:
    """It waits for the worker's lock, then decides from what it holds: the recorded row is no longer among it."""
    accept(engine, config, "a", "b", "c")
    made = claim(engine, config)
    end_leases(engine)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as worker:
            worker.execute(
                update(Email)
                .where(Email.id == made.rows[0].id, Email.claim == made.token)
                .values(status="sent", sent_at=utcnow(), final_at=utcnow(), attempts=1)
            )
            sweeping = pool.submit(outbox.sweep, engine, config)
            _wait_until_somebody_waits_for_a_lock(engine)
        assert sweeping.result(20).uncertain == [("b", "failed")]
    assert [row(engine, i).status for i in "abc"] == ["sent", "failed", "pending"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_record_held_up_by_the_sweep_matches_nothing_afterwards(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    made = claim(engine, config)
    end_leases(engine)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as sweeping:
            held = select(Email.id).where(Email.claim == made.token).order_by(Email.id).with_for_update()
            ids = sweeping.execute(held).scalars().all()
            recording = pool.submit(record, engine, config, made, SENT)
            _wait_until_somebody_waits_for_a_lock(engine)
            sweeping.execute(
                update(Email).where(Email.id.in_(ids)).values(status="pending", claim=None, lease_expires_at=None)
            )
        assert not recording.result(20).won
    assert [row(engine, i).status for i in "ab"] == ["pending", "pending"]


def _wait_until_somebody_waits_for_a_lock(engine: Engine) -> None:
    def waiting() -> bool:
        with engine.connect() as connection:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(connection.exec_driver_sql(query).scalar_one())

    wait_for(waiting, 20, "a session that waits for a row lock")


def test_sweeps_and_workers_at_once_never_release_a_row_that_was_started(engine: Engine, make_config: Any) -> None:
    """Leases that end all the time, workers that go on only after they recorded, four sweeps: no row is sent twice."""
    config = make_config(batch_size=5)
    outbox.accept_many(engine, [new_email(f"m-{n}") for n in range(120)], config)
    started: list[int] = []
    finished = threading.Event()

    def work(_: int) -> None:
        idle = 0
        while idle < 20:
            made = outbox.claim(engine, f"{threading.get_ident():x}-{len(started)}", config)
            if not isinstance(made, outbox.Claim):
                idle += 1
                continue
            idle = 0
            for number, claimed in enumerate(made.rows):
                started.append(claimed.id)
                if not record(engine, config, made, SENT, number).won:
                    break

    def sweep(_: int) -> None:
        while not finished.is_set():
            end_leases_of_some(engine)
            outbox.sweep(engine, config)

    with ThreadPoolExecutor(5) as pool:
        sweepers = [pool.submit(sweep, n) for n in range(2)]
        try:
            for worker in [pool.submit(work, n) for n in range(3)]:
                worker.result(120)
        finally:
            finished.set()
        for sweeper in sweepers:
            sweeper.result(30)
    assert len(started) == len(set(started))
    stats = reports.stats(engine)
    assert stats.sent + stats.failed == 120
    assert stats.sending + stats.pending == 0


def end_leases_of_some(engine: Engine) -> None:
    with engine.begin() as connection:
        claimed = select(Email.claim).where(Email.status == "sending").limit(1)
        token = connection.execute(claimed).scalar()
        connection.execute(
            update(Email)
            .where(Email.status == "sending", Email.claim == token)
            .values(lease_expires_at=utcnow() - timedelta(seconds=5))
        )


def test_what_is_past_its_deadline_is_a_dead_letter_without_an_attempt(engine: Engine, config: Config) -> None:
    accept(engine, config, expires_at=(utcnow() + timedelta(hours=1)).isoformat())
    accept(engine, config, "forever")
    outbox.pause(engine, "the clock runs on during a pause")
    move(engine, 7200, "expires_at")
    assert outbox.sweep(engine, config).buried == [("m-1", "expired")]
    assert (row(engine).status, row(engine, "forever").status) == ("failed", "pending")
    assert rows(engine, DeadLetter)[0].reason == "expired"
    assert rows(engine, Attempt) == []


def test_mail_held_up_by_an_outage_for_too_long_is_unreachable(engine: Engine, make_config: Any) -> None:
    """Counted from the later of its due time and the outage's start."""
    config = make_config(outage_limit_seconds=100)
    accept(engine, config, "old", "new")
    record(engine, config, claim(engine, config), OUTAGE)
    move(engine, 200, "next_attempt_at", email_id="old")
    assert outbox.sweep(engine, config).buried == []
    move_switch(engine, 150, "outage_since")
    assert outbox.sweep(engine, config).buried == [("old", "unreachable")]
    assert (row(engine, "old").status, row(engine, "new").status) == ("failed", "pending")
    assert rows(engine, DeadLetter)[0].reason == "unreachable"
    assert reports.violations(engine, config) == []


def test_a_pause_is_no_outage(engine: Engine, make_config: Any) -> None:
    config = make_config(outage_limit_seconds=100)
    accept(engine, config)
    move(engine, 1000, "next_attempt_at")
    outbox.pause(engine, "an operator")
    assert outbox.sweep(engine, config).buried == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_locked_claim_stops_no_other_repair(engine: Engine, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    accept(engine, config, "locked")
    claim(engine, config)
    accept(engine, config, "lost")
    claim(engine, config)
    end_leases(engine)
    accept(engine, config, "late", expires_at=(utcnow() + timedelta(hours=1)).isoformat())
    move(engine, 7200, "expires_at")
    with engine.connect() as somebody:
        somebody.execute(select(Email.id).where(Email.email_id == "locked").with_for_update()).one()
        began = time.monotonic()
        swept = outbox.sweep(engine, config)
        assert time.monotonic() - began < 5
    assert [email_id for email_id, _ in swept.uncertain] == ["lost"]
    assert swept.buried == [("late", "expired")]
    assert [record.fields["step"] for record in caplog.records if record.message == "repair_failed"] == [
        "expired claim"
    ]
    assert [email_id for email_id, _ in outbox.sweep(engine, config).uncertain] == ["locked"]


def test_no_mail_is_given_up_for_an_outage_in_which_nobody_could_try(engine: Engine, make_config: Any) -> None:
    """A weekend's pause, workers that were all down, a backup restored: the mail server is asked first."""
    config = make_config(outage_limit_seconds=100)
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    move(engine, 1000, "next_attempt_at")
    move_switch(engine, 1000, "outage_since", "next_probe_at")
    assert outbox.sweep(engine, config).buried == []
    outbox.pause(engine, "for repairs")
    move_switch(engine, -1000, "next_probe_at")
    assert outbox.sweep(engine, config).buried == []
    outbox.resume(engine)
    assert outbox.sweep(engine, config).buried == [("m-1", "unreachable")]


def test_every_sweep_asks_for_a_drain_which_looks_for_itself_whether_there_is_work(app: Flask) -> None:
    """A wake-up may have been lost; and what is due later than drains are scheduled ahead is only noticed so."""
    huey = app.extensions["huey"]
    (sweep,) = huey._registry.periodic_tasks
    huey.execute(sweep)
    assert huey.pending_count() == 1
    assert huey.dequeue().name == "drain"


def test_what_may_have_been_sent_is_never_buried_as_undelivered(engine: Engine, make_config: Any) -> None:
    config = make_config(on_uncertain="retry")
    accept(engine, config, expires_at=(utcnow() + timedelta(hours=1)).isoformat())
    record(engine, config, claim(engine, config), UNCERTAIN)
    move(engine, 7200, "expires_at")
    assert outbox.sweep(engine, config).buried == [("m-1", "uncertain")]
    (letter,) = rows(engine, DeadLetter)
    assert letter.reason == "uncertain"
    assert letter.error.startswith("an earlier attempt may have reached the server; then: expires_at")


def _mixed(engine: Engine, config: Config) -> None:
    accept(engine, config, *"abcdef")
    made = claim(engine, config)
    for number, result in enumerate([SENT, SENT, DEFERRED, REJECTED, UNCERTAIN]):
        record(engine, config, made, result, number)
    outbox.release(engine, made.token, config)
    outbox.cancel(engine, "f")
    accept(engine, config, "a")
    outbox.accept(engine, new_email("a", subject="Other"), config)


def test_the_counters_are_the_same_before_and_after_the_roll_up(engine: Engine, config: Config) -> None:
    _mixed(engine, config)
    before = _counts(engine)
    go_back(engine, 30 * 3600)
    for _ in range(2):
        outbox.sweep(engine, config)
        assert _counts(engine) == before
    kinds = {"received", "sent", "failed_attempts", "duplicates", "mismatches", "given_up", "cancelled"}
    assert {c.kind for c in rows(engine, Counter) if c.hour != TOTALS and ":" not in c.kind} == kinds
    assert utcnow() - switch(engine).rolled_up_to < timedelta(minutes=1)


def _counts(engine: Engine) -> dict[str, Any]:
    return {name: value for name, value in asdict(reports.stats(engine)).items() if name != "oldest_pending_seconds"}


def test_sweeps_at_once_roll_up_each_hour_once(engine: Engine, config: Config) -> None:
    _mixed(engine, config)
    go_back(engine, 20 * 3600)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: outbox.sweep(engine, config), range(4)))
    assert reports.stats(engine).received == 6
    assert reports.violations(engine, config) == []


def test_content_is_scrubbed_after_it_is_final_and_only_then(engine: Engine, config: Config) -> None:
    _mixed(engine, config)
    accept(engine, config, "g", attachments=[{"filename": "x", "content_type": "text/plain", "content": "aGk="}])
    record(engine, config, claim(engine, config), SENT)
    swept = Swept()
    outbox.retain(engine, config, swept)
    assert swept.scrubbed == 0
    move(engine, config.body_retention_seconds + 1, "final_at")
    outbox.retain(engine, config, swept)
    assert swept.scrubbed == 4  # a, b and g were sent, f was cancelled
    assert (row(engine, "a").body, row(engine, "a").subject, row(engine, "a").status) == (None, None, "sent")
    assert row(engine, "c").body == "Text"
    assert row(engine, "d").body == "Text", "a dead letter may be replayed until somebody resolves it"
    assert rows(engine, StoredAttachment) == []
    assert outbox.accept(engine, new_email("a"), config).status == "duplicate"
    assert outbox.accept(engine, new_email("a", subject="Other"), config).status == "mismatch"


def test_rows_are_purged_when_they_are_final_and_old_and_the_totals_stay(engine: Engine, make_config: Any) -> None:
    config = make_config(email_retention_days=10)
    _mixed(engine, config)
    outbox.discard(engine, rows(engine, DeadLetter)[0].id)
    before = _counts(engine)
    go_back(engine, 11 * 24 * 3600)
    swept = outbox.sweep(engine, config)
    outbox.retain(engine, config, swept)
    assert swept.purged == 4  # two sent, one cancelled, one discarded
    assert {r.email_id for r in rows(engine, Email)} == {"c", "e"}
    assert _counts(engine) == before
    assert reports.violations(engine, config) == []
    assert outbox.accept(engine, new_email("a"), config).status == "accepted", "de-duplication ends with the row"


def test_what_no_roll_up_has_counted_is_not_purged(engine: Engine, make_config: Any) -> None:
    config = make_config(email_retention_days=0, body_retention_seconds=0)
    _mixed(engine, config)
    swept = Swept()
    outbox.retain(engine, config, swept)
    assert swept.purged == 0
    assert reports.stats(engine).received == 6


def test_heartbeats_come_and_go(engine: Engine, config: Config) -> None:
    assert reports.readiness(engine, config) == ["no worker has been alive in the last minute"]
    outbox.heartbeat(engine, "w1")
    outbox.heartbeat(engine, "w1")
    assert reports.readiness(engine, config) == []
    outbox.forget_worker(engine, "w1")
    assert reports.readiness(engine, config) != []


def test_it_is_not_ready_when_mail_has_waited_for_long(engine: Engine, config: Config) -> None:
    outbox.heartbeat(engine, "w1")
    accept(engine, config)
    assert reports.readiness(engine, config) == []
    move(engine, config.ready_max_age_seconds + 1, "next_attempt_at")
    assert len(reports.readiness(engine, config)) == 1


def test_the_switch_has_one_row_for_ever(engine: Engine, config: Config) -> None:
    assert len(rows(engine, Switch)) == 1
