"""What is reported of e-mails: stored once, shown, and the proof that an uncertain one was taken."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.models import DeadLetter, Email, StoredReport
from emailsvc.db.sqltime import db_in
from emailsvc.delivery.drain import Drain
from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.reference import reference_of
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import Heard, SentTogether
from emailsvc.settings.config import Config
from emailsvc.vocabulary import BounceKind, Report
from tests.emails import (
    DEFERRED,
    OUTAGE,
    REJECTED,
    SENT,
    UNCERTAIN,
    accept,
    claim,
    end_leases,
    make_due,
    record,
    row,
    rows,
)

SECRETS = "mine:0123456789abcdef"
NOTHING_SENT = [DEFERRED, REJECTED, UNCERTAIN, OUTAGE]


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(report_secrets=SECRETS)


def reference(engine: Engine, email_id: str = "m-1") -> str:
    found = row(engine, email_id)
    return reference_of(found.id, found.message_id)


def delivered(engine: Engine, email_id: str = "m-1", **told: Any) -> Event:
    return heard(told.pop("event", "delivered"), reference=reference(engine, email_id), **told)


def by_id(email_id: str = "m-1", event: str = "delivered") -> Event:
    return heard(event, email_id=email_id)


def hear(engine: Engine, *events: Event) -> Heard:
    return outbox.hear(engine, events)


def shown(engine: Engine, email_id: str = "m-1") -> list[str]:
    return [str(event.event) for event in reports.email(engine, email_id).timeline]


def sound(engine: Engine, config: Config) -> None:
    assert reports.violations(engine, config) == []


# what it moves


@pytest.mark.parametrize("event", list(Report))
def test_a_report_with_our_reference_makes_what_waits_sent(engine: Engine, config: Config, event: str) -> None:
    """As after a restored backup: the database does not know that it was sent."""
    accept(engine, config)
    assert hear(engine, delivered(engine, event=event)).settled == ["m-1"]
    found = row(engine)
    assert found.status == "sent"
    assert found.sent_at is not None
    assert isinstance(outbox.claim(engine, "t" * 32, config), outbox.Idle), "and it is not sent again"
    sound(engine, config)


@pytest.mark.parametrize("result", NOTHING_SENT, ids=lambda result: result.outcome.value)
@pytest.mark.parametrize("before", [True, False], ids=["before its outcome", "after it"])
def test_one_with_any_outcome_but_sent_becomes_sent(
    engine: Engine, make_config: Callable[..., Config], result: Any, before: bool
) -> None:
    config = make_config(report_secrets=SECRETS, max_retry_attempts=5)
    accept(engine, config, "m-1", "m-2")
    made = claim(engine, config)
    if before:
        assert hear(engine, delivered(engine)).settled == [], "it is in hand"
        assert record(engine, config, made, result).settled == ("m-1",)
    else:
        record(engine, config, made, result)
        assert hear(engine, delivered(engine)).settled == ["m-1"]
    assert row(engine).status == "sent"
    assert row(engine, "m-2").status != "sent"
    assert not [letter for letter in rows(engine, DeadLetter) if letter.resolved_at is None]
    sound(engine, config)


def test_the_sweep_looks_for_reports_of_a_lost_worker(engine: Engine, config: Config) -> None:
    accept(engine, config, "m-1", "m-2")
    claim(engine, config)
    hear(engine, delivered(engine, "m-1"), delivered(engine, "m-2"))
    end_leases(engine)
    swept = outbox.sweep(engine, config)
    assert sorted(swept.settled) == ["m-1", "m-2"]
    assert [row(engine, name).status for name in ("m-1", "m-2")] == ["sent", "sent"]
    sound(engine, config)


def test_what_is_given_back_untouched_is_looked_for_too(engine: Engine, config: Config) -> None:
    accept(engine, config, "m-1", "m-2")
    made = claim(engine, config)
    hear(engine, delivered(engine, "m-2"))
    outbox.release(engine, made.token, config)
    assert [row(engine, name).status for name in ("m-1", "m-2")] == ["pending", "sent"]


def test_what_a_process_of_the_release_before_missed_the_sweep_finds(
    engine: Engine, config: Config, make_config: Callable[..., Config]
) -> None:
    accept(engine, config)
    made = claim(engine, config)
    hear(engine, delivered(engine))
    assert record(engine, make_config(), made, UNCERTAIN).settled == ()
    assert outbox.sweep(engine, config).settled == ["m-1"]
    assert row(engine).status == "sent"


def test_before_an_uncertain_e_mail_is_tried_again_it_is_looked_once_more(engine: Engine, config: Config) -> None:
    accept(engine, config, "m-1", on_uncertain="retry")
    record(engine, config, claim(engine, config), UNCERTAIN)
    make_due(engine)
    made = claim(engine, config)
    assert made.rows[0].doubted
    assert outbox.settle_in_hand(engine, made.rows[0], made.token, config) is None
    hear(engine, delivered(engine))
    recorded = outbox.settle_in_hand(engine, made.rows[0], made.token, config)
    assert recorded is not None
    assert recorded.won
    assert recorded.settled == ("m-1",)
    assert row(engine).status == "sent"
    again = outbox.settle_in_hand(engine, made.rows[0], made.token, config)
    assert again is not None, "the reply to its commit was lost"
    assert not again.won, "who does not know what became of its row starts nothing more"


def test_by_its_id_alone_only_an_uncertain_e_mail_moves(engine: Engine, config: Config) -> None:
    accept(engine, config, "waits", "refused", "doubted")
    made = claim(engine, config)
    for number, result in enumerate((DEFERRED, REJECTED, UNCERTAIN)):
        record(engine, config, made, result, number)
    told = hear(engine, by_id("waits"), by_id("refused"), by_id("doubted"))
    assert told.settled == ["doubted"]
    assert len(told.noted) == 3, "it is noted all the same"
    assert [row(engine, name).status for name in ("waits", "refused", "doubted")] == ["pending", "failed", "sent"]
    sound(engine, config)


def test_by_its_id_alone_it_is_believed_as_soon_as_an_attempt_is_uncertain(engine: Engine, config: Config) -> None:
    accept(engine, config)
    made = claim(engine, config)
    assert hear(engine, by_id()).settled == []
    assert record(engine, config, made, UNCERTAIN).settled == ("m-1",)


@pytest.mark.parametrize("how", ["sent", "cancelled", "discarded", "erased"])
def test_what_is_final_stays_as_it_is_and_the_report_is_noted(engine: Engine, config: Config, how: str) -> None:
    accept(engine, config)
    if how == "cancelled":
        outbox.cancel(engine, "m-1")
    elif how == "erased":
        outbox.erase(engine, "m-1@example.com")
    else:
        record(engine, config, claim(engine, config), SENT if how == "sent" else REJECTED)
    if how == "discarded":
        outbox.discard(engine, rows(engine, DeadLetter)[0].id)
    before = row(engine)
    told = hear(engine, delivered(engine, event="bounced", kind=BounceKind.HARD, text="no such user <m-1@example.com>"))
    assert (len(told.noted), told.settled) == (1, [])
    assert row(engine) == before
    assert "reported" in shown(engine)
    assert (how == "erased") == ("m-1@" not in str([report.text for report in rows(engine, StoredReport)]))
    sound(engine, config)


def test_a_person_who_is_forgotten_is_forgotten_in_reports_too(engine: Engine, config: Config) -> None:
    accept(engine, config)
    hear(engine, delivered(engine, event="bounced", text="no such user <m-1@example.com>"))
    outbox.erase(engine, "m-1@example.com")
    assert "m-1@" not in str(rows(engine, StoredReport))


def test_a_replayed_e_mail_that_was_delivered_after_all_is_not_sent_twice(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), UNCERTAIN)
    outbox.replay(engine, rows(engine, DeadLetter)[0].id)
    assert hear(engine, delivered(engine)).settled == ["m-1"]
    assert row(engine).status == "sent"
    sound(engine, config)


# once, in any order


def test_reports_come_in_any_order_and_more_than_once(engine: Engine, config: Config) -> None:
    """Every order of four, the second half of it repeated, comes to the same."""
    at = utcnow()
    seen = set()
    for number, order in enumerate(itertools.permutations(range(4))):
        name = f"m-{number}"
        accept(engine, config, name)
        events = [
            delivered(engine, name, at=at),
            delivered(engine, name, event="bounced", kind=BounceKind.SOFT, at=at),
            delivered(engine, name, event="complained", at=at),
            delivered(engine, name, event="bounced", kind=BounceKind.HARD, at=at),
        ]
        told = hear(engine, *(events[n] for n in (*order, *order[2:])))
        assert (len(told.noted), told.repeated) == (4, 2)
        assert hear(engine, *events).repeated == 4
        found = [one for one in rows(engine, StoredReport) if one.email == row(engine, name).id]
        seen.add((row(engine, name).status, tuple(sorted((one.event, one.kind or "") for one in found))))
    assert len(seen) == 1
    stats = reports.stats(engine)
    assert (stats.delivered, stats.bounced, stats.complained, stats.settled, stats.sent) == (24, 24, 24, 24, 24)
    sound(engine, config)


def test_of_no_e_mail_here_nothing_moves_and_each_is_counted(engine: Engine, config: Config) -> None:
    accept(engine, config)
    found = row(engine)
    wrong = reference_of(found.id, found.message_id)
    events = [
        heard("delivered", reference=wrong[:-1] + ("0" if wrong[-1] != "0" else "1")),  # of another installation
        heard("delivered", reference=reference_of(found.id + 1, found.message_id)),
        heard("delivered", reference="nonsense", email_id="m-1"),
        heard("delivered", reference=f"{2**63 - 1}-0123456789abcdef"),
        heard("delivered", email_id="m-2"),
        heard("delivered", email_id="m-1\x00"),
        heard("delivered"),
        heard("delivered", reference=wrong, at=0),
        heard("delivered", reference=wrong, at=datetime(9999, 12, 31, tzinfo=UTC)),
        heard("delivered", reference=wrong, at=found.received_at - timedelta(days=1, minutes=1)),
    ]
    told = hear(engine, *events)
    assert (told.noted, told.unmatched, told.settled) == ([], len(events), [])
    assert row(engine) == found
    assert reports.stats(engine).unmatched_reports == len(events)


def test_events_of_no_use_are_ignored(engine: Engine, config: Config) -> None:
    accept(engine, config)
    told = hear(engine, delivered(engine, event="opened"), delivered(engine, event="clicked"))
    assert (told.ignored, told.noted, told.settled) == (2, [], [])
    assert row(engine).status == "pending"


def test_many_reports_are_stored_bit_by_bit(engine: Engine, config: Config) -> None:
    names = [f"m-{n}" for n in range(450)]
    accept(engine, config, *names)
    found = {one.email_id: reference_of(one.id, one.message_id) for one in rows(engine, Email)}
    told = hear(engine, *(heard("delivered", reference=found[name]) for name in names))
    assert len(told.noted) == len(told.settled) == 450
    sound(engine, config)


# what is shown


def test_the_timeline_tells_what_came_back(engine: Engine, config: Config) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), UNCERTAIN)
    at = utcnow() + timedelta(seconds=5)
    hear(engine, delivered(engine, event="bounced", kind=BounceKind.HARD, code="550 5.1.1", text="no\r\nuser", at=at))
    *before, last = reports.email(engine, "m-1").timeline
    assert [event.event for event in before] == ["received", "uncertain", "dead_lettered", "delivered"]
    assert (last.event, last.report, last.kind, last.code, last.enhanced) == (
        "reported",
        "bounced",
        "hard",
        550,
        "5.1.1",
    )
    assert (last.text, last.settled) == ("no user", True)
    assert reports.stats(engine).bounced == 1


def test_an_uncertain_e_mail_under_retry_waits_for_a_report(engine: Engine, make_config: Callable[..., Config]) -> None:
    for wait in (300, 0):
        config = make_config(report_secrets=SECRETS, report_wait_seconds=wait, retry_delay_seconds=1)
        accept(engine, config, f"m-{wait}", on_uncertain="retry")
        delay = record(engine, config, claim(engine, config), UNCERTAIN).delay
        assert delay is not None
        assert delay >= wait
        assert wait or delay < 2
    accept(engine, make_config(), "off", on_uncertain="retry")
    assert record(engine, make_config(retry_delay_seconds=1), claim(engine, make_config()), UNCERTAIN).delay < 2  # type: ignore[operator]


def test_a_report_goes_with_its_e_mail(engine: Engine, make_config: Callable[..., Config]) -> None:
    config = make_config(report_secrets=SECRETS, email_retention_days=1)
    accept(engine, config)
    hear(engine, delivered(engine))
    with engine.begin() as connection:
        for column in (Email.received_at, Email.final_at, Email.sent_at):
            connection.execute(update(Email).values({column: db_in(-3 * 86400)}))
    swept = outbox.sweep(engine, config)
    outbox.retain(engine, config, swept)
    assert (rows(engine, Email), rows(engine, StoredReport)) == ([], [])


# a restored backup


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_was_reported_is_not_sent_again_from_yesterdays_backup(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    accept(engine, config, "a", "b", "c")
    record(engine, config, claim(engine, config), DEFERRED)  # "a"; the others are still in hand
    file = Path(str(engine.url.database))
    copy_database(file, tmp_path / "yesterday.db")
    transport = MemoryTransport()
    end_leases(engine)
    outbox.sweep(engine, config)
    for letter in rows(engine, DeadLetter):
        outbox.replay(engine, letter.id)
    accept(engine, config, "later")
    make_due(engine)
    drain(engine, config, transport)
    assert sorted(mail.email_id for mail in transport.delivered) == ["a", "b", "c", "later"]
    told = [heard("delivered", reference=mail.headers["X-Email-Ref"]) for mail in transport.delivered]

    engine.dispose()
    copy_database(tmp_path / "yesterday.db", file)
    outbox.pause(engine, "restored")
    accept(engine, config, "new")  # under the row's id that "later" had
    replayed = hear(engine, *told)
    assert (len(replayed.noted), replayed.unmatched) == (3, 1)
    outbox.resume(engine)
    end_leases(engine)
    outbox.sweep(engine, config)
    make_due(engine)
    drain(engine, config, transport)
    assert sorted(mail.email_id for mail in transport.delivered) == ["a", "b", "c", "later", "new"]
    assert {one.email_id: one.status for one in rows(engine, Email)} == dict.fromkeys("abc", "sent") | {"new": "sent"}
    sound(engine, config)


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def drain(engine: Engine, config: Config, transport: MemoryTransport) -> None:
    Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
