"""Outcomes: one fenced commit each, and what the row becomes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import OperationalError

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.models import Attempt, DeadLetter, Email, StoredAttachment
from emailsvc.mail import Outcome, Result
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
    make_due,
    move_switch,
    record,
    row,
    rows,
    switch,
)


def test_sent_is_final(engine: Engine, config: Config) -> None:
    accept(engine, config)
    recorded = record(engine, config, claim(engine, config), SENT)
    assert (recorded.won, recorded.go_on, recorded.state) == (True, True, "sent")
    assert (row(engine).status, row(engine).attempts) == ("sent", 1)
    assert row(engine).sent_at is not None
    assert rows(engine, Attempt) == []


def test_a_deferral_backs_off_twice_as_long_each_time_and_then_is_exhausted(engine: Engine, config: Config) -> None:
    accept(engine, config)
    for attempt, expected in enumerate([5, 10, 20], start=1):
        made = claim(engine, config)
        recorded = record(engine, config, made, DEFERRED)
        wait = (row(engine).next_attempt_at - made.now).total_seconds()
        assert expected * 0.8 - 0.1 <= wait <= expected * 1.2 + 3
        assert recorded.delay is not None
        assert abs(recorded.delay - wait) < 3
        assert (row(engine).status, row(engine).attempts) == ("pending", attempt)
        make_due(engine)
    recorded = record(engine, config, claim(engine, config), DEFERRED)
    assert (recorded.state, recorded.reason) == ("failed", "exhausted")
    assert [(a.outcome, a.code, a.enhanced) for a in rows(engine, Attempt)] == [("deferred", 451, "4.7.1")] * 4
    letter = rows(engine, DeadLetter)[0]
    assert (letter.reason, letter.attempts, letter.error) == ("exhausted", 4, DEFERRED.reply)


def test_a_rejection_is_a_dead_letter_at_once(engine: Engine, config: Config) -> None:
    accept(engine, config)
    recorded = record(engine, config, claim(engine, config), REJECTED)
    assert (recorded.state, recorded.reason) == ("failed", "rejected")
    assert (row(engine).attempts, len(rows(engine, DeadLetter))) == (1, 1)


def test_a_backoff_past_the_deadline_expires_at_once(engine: Engine, config: Config) -> None:
    accept(engine, config, expires_at=(utcnow() + timedelta(seconds=2)).isoformat())
    recorded = record(engine, config, claim(engine, config), DEFERRED)
    assert (recorded.state, recorded.reason) == ("failed", "expired")
    assert [a.outcome for a in rows(engine, Attempt)] == ["deferred"]


def test_uncertain_is_held_for_a_person(engine: Engine, config: Config) -> None:
    accept(engine, config)
    recorded = record(engine, config, claim(engine, config), UNCERTAIN)
    assert (recorded.state, recorded.reason) == ("failed", "uncertain")
    assert rows(engine, DeadLetter)[0].error == UNCERTAIN.reply
    assert row(engine).maybe_sent


def test_uncertain_with_retry_backs_off_and_is_bounded(engine: Engine, config: Config) -> None:
    accept(engine, config, on_uncertain="retry")
    for _ in range(config.max_retry_attempts):
        recorded = record(engine, config, claim(engine, config), UNCERTAIN)
        assert recorded.state == "pending"
        make_due(engine)
    recorded = record(engine, config, claim(engine, config), UNCERTAIN)
    assert (recorded.state, recorded.reason) == ("failed", "uncertain")


def test_uncertain_with_retry_past_the_deadline_stays_uncertain(engine: Engine, config: Config) -> None:
    accept(engine, config, on_uncertain="retry", expires_at=(utcnow() + timedelta(seconds=2)).isoformat())
    assert record(engine, config, claim(engine, config), UNCERTAIN).reason == "uncertain"


@pytest.mark.parametrize("result", [DEFERRED, REJECTED], ids=lambda r: r.outcome.value)
def test_what_may_have_been_sent_is_never_given_up_as_undelivered(
    engine: Engine, make_config: Any, result: Result
) -> None:
    config = make_config(max_retry_attempts=1)
    accept(engine, config, on_uncertain="retry")
    record(engine, config, claim(engine, config), UNCERTAIN)
    make_due(engine)
    recorded = record(engine, config, claim(engine, config), result)
    assert (recorded.state, recorded.reason) == ("failed", "uncertain")
    (letter,) = rows(engine, DeadLetter)
    assert letter.reason == "uncertain"
    assert letter.error == f"an earlier attempt may have reached the server; then: {result.reply}"


def test_an_outage_seen_by_a_late_worker_opens_nothing_and_one_recorded_twice_counts_once(
    engine: Engine, config: Config
) -> None:
    accept(engine, config)
    late = claim(engine, config)
    end_leases(engine)
    outbox.sweep(engine, config)
    assert not record(engine, config, late, OUTAGE).won
    assert switch(engine).outage_since is None
    accept(engine, config, "m-2")
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 100, "next_probe_at")
    probe = claim(engine, config)
    for _ in range(2):
        record(engine, config, probe, OUTAGE)
    assert switch(engine).probe_delay == 10


def test_with_an_idempotency_header_the_default_is_retry(engine: Engine, make_config: Any) -> None:
    config = make_config(idempotency_header="Resend-Idempotency-Key")
    accept(engine, config, "default")
    accept(engine, config, "chosen", on_uncertain="hold")
    assert (row(engine, "default").on_uncertain, row(engine, "chosen").on_uncertain) == ("retry", "hold")


@pytest.mark.parametrize("result", [SENT, DEFERRED, REJECTED, UNCERTAIN], ids=lambda r: r.outcome.value)
def test_a_late_record_changes_nothing_once_the_sweep_has_decided(
    engine: Engine, config: Config, result: Result
) -> None:
    accept(engine, config)
    late = claim(engine, config)
    end_leases(engine)
    outbox.sweep(engine, config)
    before = row(engine)
    assert before.status == "failed"
    assert not record(engine, config, late, result).won
    assert row(engine) == before
    assert len(rows(engine, Attempt)) == 1


@pytest.mark.parametrize("result", [SENT, DEFERRED, REJECTED, UNCERTAIN], ids=lambda r: r.outcome.value)
def test_a_late_record_changes_nothing_once_the_row_is_claimed_anew(
    engine: Engine, config: Config, result: Result
) -> None:
    accept(engine, config, "touched", "untouched")
    late = claim(engine, config)
    end_leases(engine)
    outbox.sweep(engine, config)
    new = claim(engine, config)
    assert [r.email_id for r in new.rows] == ["untouched"]
    before = row(engine, "untouched")
    assert not record(engine, config, late, result, number=1).won
    assert row(engine, "untouched") == before
    assert record(engine, config, new, SENT).won


@pytest.mark.parametrize(
    ("result", "state"),
    [(SENT, "sent"), (DEFERRED, "pending"), (REJECTED, "failed"), (UNCERTAIN, "failed")],
    ids=lambda v: getattr(v, "outcome", v),
)
def test_a_commit_whose_reply_was_lost_is_recognised_and_not_repeated(
    engine: Engine, config: Config, result: Result, state: str
) -> None:
    accept(engine, config)
    made = claim(engine, config)

    def lose_the_reply(connection: Any) -> None:
        event.remove(engine, "commit", lose_the_reply)
        connection.connection.commit() if engine.dialect.name == "postgresql" else connection.exec_driver_sql("COMMIT")
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    event.listen(engine, "commit", lose_the_reply)
    with pytest.raises(OperationalError):
        record(engine, config, made, result)
    before = row(engine)
    assert before.status == state
    again = record(engine, config, made, result)
    assert (again.won, again.state) == (True, state)
    assert row(engine) == before
    assert len(rows(engine, Attempt)) == (0 if result is SENT else 1)
    assert len(rows(engine, DeadLetter)) == (1 if state == "failed" else 0)


def test_a_record_of_what_was_given_back_is_not_taken_for_a_commit_of_its_own(engine: Engine, config: Config) -> None:
    """A release leaves the token on the row: recovered from the note of a worker that was only frozen, say."""
    accept(engine, config)
    made = claim(engine, config)
    outbox.release(engine, made.token, config)
    assert not record(engine, config, made, SENT).won
    assert (row(engine).status, row(engine).attempts) == ("pending", 0)


def test_an_expiry_whose_reply_was_lost_is_recognised(engine: Engine, config: Config) -> None:
    accept(engine, config)
    made = claim(engine, config)
    assert outbox.expire(engine, made.rows[0], made.token, config).reason == "expired"
    assert outbox.expire(engine, made.rows[0], made.token, config).won
    assert len(rows(engine, DeadLetter)) == 1
    assert rows(engine, Attempt) == []


def test_a_record_says_whether_delivery_still_runs(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    made = claim(engine, config)
    outbox.pause(engine, "an operator")
    assert not record(engine, config, made, SENT).go_on


@pytest.mark.parametrize(
    ("result", "status"),
    [(SENT, "sent"), (DEFERRED, "cancelled"), (REJECTED, "failed"), (UNCERTAIN, "failed")],
    ids=lambda v: getattr(v, "outcome", v),
)
def test_what_is_erased_in_hand_ends_with_its_next_outcome(
    engine: Engine, config: Config, result: Result, status: str
) -> None:
    accept(engine, config, attachments=[{"filename": "x", "content_type": "text/plain", "content": "aGk="}])
    made = claim(engine, config)
    assert outbox.erase(engine, "M-1@example.com") == 1
    assert row(engine).body == "Text", "a conversation may be reading it"
    assert record(engine, config, made, result).won
    after = row(engine)
    assert (after.status, after.recipient, after.subject, after.body, after.last_error) == (
        status,
        None,
        None,
        None,
        None,
    )
    assert rows(engine, StoredAttachment) == []
    assert (after.reply, after.conversation_seconds) == (None, None)
    assert {a.text for a in rows(engine, Attempt)} <= {"(erased)"}
    assert {letter.error for letter in rows(engine, DeadLetter)} <= {"(erased)"}
    assert after.final_at is not None
    assert reports.violations(engine, config) == []
    assert reports.stats(engine).dead_letters == 0


def test_what_is_erased_in_hand_and_released_is_not_sent(engine: Engine, config: Config) -> None:
    accept(engine, config)
    made = claim(engine, config)
    outbox.erase(engine, "m-1@example.com")
    outbox.release(engine, made.token, config)
    assert (row(engine).status, row(engine).body) == ("cancelled", None)


def test_words_that_the_database_cannot_hold_are_an_error_and_not_a_lost_outcome(
    engine: Engine, config: Config
) -> None:
    accept(engine, config)
    made = claim(engine, config)
    strange = Result(Outcome.REJECTED, "550 \ud800", 550)
    with pytest.raises(Exception, match="surrogate"):
        record(engine, config, made, strange)
    assert row(engine).status == "sending"
    assert record(engine, config, made, REJECTED).won


def test_the_invariant_sees_what_is_broken(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b", "c", "d")
    made = claim(engine, config)
    record(engine, config, made, REJECTED, 0)
    record(engine, config, made, REJECTED, 1)
    assert reports.violations(engine, config) == []
    end_leases(engine)
    with engine.begin() as connection:
        connection.execute(update(DeadLetter).values(resolved_at=utcnow(), resolution="replayed"))
        connection.execute(update(Email).where(Email.email_id == "d").values(received_at=utcnow() - timedelta(days=9)))
    found = "\n".join(reports.violations(engine, config))
    assert "2 e-mails failed without an unresolved or discarded dead letter" in found
    assert "2 e-mails sending without a token, or with a lease older than two sweeps" in found
    assert "the counter of received lacks 1" in found
