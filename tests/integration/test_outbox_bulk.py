"""Many dead letters at once: chosen by what they have in common, marked, and moved all at once or bit by bit."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, update

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.models import Action, DeadLetter, Email
from emailsvc.db.sqltime import db_in
from emailsvc.errors import Conflict, NotFound
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import Claim
from emailsvc.settings.config import Config
from emailsvc.vocabulary import ActionState, Reason, Resolution
from tests.emails import (
    DEFERRED,
    OUTAGE,
    REJECTED,
    UNCERTAIN,
    accept,
    claim,
    make_due,
    record,
    replay_many,
    row,
    rows,
    token,
)
from tests.factories import new_email

FULL = Result(Outcome.REJECTED, "RCPT: 552 5.2.2 mailbox full", 552, "5.2.2", "RCPT")


def fail(engine: Engine, config: Config, *ids: str, result: Result = REJECTED, **fields: Any) -> None:
    outbox.accept_many(engine, [new_email(email_id, **fields) for email_id in ids], config)
    work(engine, config, result)


def work(engine: Engine, config: Config, result: Result) -> None:
    while isinstance(made := outbox.claim(engine, token(), config), Claim):
        for number in range(len(made.rows)):
            record(engine, config, made, result, number)


def unresolved(engine: Engine, chosen: LetterFilter) -> list[str]:
    return sorted(letter.email_id for letter in reports.dead_letters(engine, chosen, limit=200).dead_letters)


def start(engine: Engine, rate: float, **chosen: Any) -> int:
    return outbox.start(engine, Resolution.REPLAYED, LetterFilter(**chosen), limit=1000, rate=rate, who="alice")


def time_passes(engine: Engine, seconds: float = 1) -> None:
    """For the actions that run."""
    with engine.begin() as connection:
        connection.execute(update(Action).where(Action.state == "running").values(next_at=db_in(-seconds)))


def test_each_filter_names_its_own(engine: Engine, config: Config) -> None:
    fail(engine, config, "a", "b")
    fail(engine, config, "full", result=FULL, user="ada@other.example")
    fail(engine, config, "idna", result=FULL, user="ada@exämple.com")
    fail(engine, config, "percent", result=Result(Outcome.REJECTED, "550 100% of my_quota", 550))
    fail(engine, config, "quotes", result=Result(Outcome.REJECTED, "550 upstream said: 552 5.2.2 mailbox full", 550))
    accept(engine, config, "old", expires_at=(utcnow() + timedelta(hours=1)).isoformat())
    record(engine, config, claim(engine, config), DEFERRED)
    with engine.begin() as connection:
        connection.execute(update(Email).where(Email.email_id == "old").values(expires_at=db_in(-1)))
    outbox.sweep(engine, config)
    ids = tuple(one.id for one in rows(engine, DeadLetter)[:2])
    expected = {
        LetterFilter(): ["a", "b", "full", "idna", "old", "percent", "quotes"],
        LetterFilter(reason=Reason.EXPIRED): ["old"],
        LetterFilter(code=552): ["full", "idna"],
        LetterFilter(code=451): [],  # an attempt of "old" was answered so, and is not why it was given up
        LetterFilter(domain="OTHER.example"): ["full"],
        LetterFilter(domain="ther.example"): [],
        LetterFilter(domain="exämple.com"): ["idna"],
        LetterFilter(error="Mailbox FULL"): ["full", "idna", "quotes"],
        LetterFilter(error="%"): ["percent"],
        LetterFilter(error="my_quota"): ["percent"],
        LetterFilter(error="m__quota"): [],
        LetterFilter(since=utcnow() + timedelta(hours=1)): [],
        LetterFilter(until=utcnow() + timedelta(hours=1), code=550, error="such"): ["a", "b"],
        LetterFilter(ids=ids): ["a", "b"],
    }
    assert {chosen: unresolved(engine, chosen) for chosen in expected} == expected


def test_letters_are_grouped_by_reason_codes_and_words_whatever_each_has_of_its_own(
    engine: Engine, config: Config
) -> None:
    for number in range(3):
        words = f"RCPT: 552 5.2.2 <user{number}@example.com> is over quota ({number}00 of 900), id 4Xy{number}Zk"
        fail(engine, config, f"full-{number}", result=Result(Outcome.REJECTED, words, 552, "5.2.2", "RCPT"))
    fail(engine, config, "a", "b")
    fail(engine, config, "u", result=UNCERTAIN)
    fail(engine, config, "gone")
    outbox.discard(engine, rows(engine, DeadLetter)[-1].id)
    found = reports.letter_groups(engine).groups
    assert [(one.reason, one.code, one.enhanced, one.error, one.count) for one in found] == [
        ("rejected", 552, "5.2.2", "RCPT: 552 5.2.2 <…> is over quota (… of …), id …", 3),
        ("rejected", 550, "5.1.1", "550 5.1.1 no such user", 2),
        ("uncertain", None, None, UNCERTAIN.reply, 1),
    ]
    times = [one.created_at for one in reports.dead_letters(engine).dead_letters[::-1]]
    (largest,) = reports.letter_groups(engine, limit=1).groups
    assert (largest.first_at, largest.last_at) == (times[0], times[2])
    assert len(reports.letter_groups(engine, LetterFilter(code=550)).groups) == 1


def test_what_would_be_done_is_counted_and_then_done(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n}" for n in range(8)))
    fail(engine, config, "u-1", "u-2", result=UNCERTAIN)
    with engine.begin() as connection:
        connection.execute(update(Email).where(Email.email_id == "m-0").values(scrubbed_at=db_in(-1)))
    chosen = LetterFilter(until=utcnow() + timedelta(hours=1))
    would_replay = outbox.preview(engine, Resolution.REPLAYED, chosen, 5)
    assert would_replay == outbox.Preview(matching=10, would_move=5, uncertain_left_out=2, content_gone=1)
    would_discard = outbox.preview(engine, Resolution.DISCARDED, chosen, 50)
    assert would_discard == outbox.Preview(matching=10, would_move=8, uncertain_left_out=2, content_gone=0)
    assert outbox.resolve_many(engine, Resolution.REPLAYED, chosen, limit=5, who="alice") == 5
    assert [row(engine, f"m-{n}").status for n in range(8)] == ["failed"] + ["pending"] * 5 + ["failed"] * 2
    assert outbox.resolve_many(engine, Resolution.DISCARDED, chosen, limit=50) == 3
    assert unresolved(engine, chosen) == ["u-1", "u-2"]
    by_id = LetterFilter(ids=tuple(one.id for one in rows(engine, DeadLetter)[-2:]))
    assert outbox.resolve_many(engine, Resolution.DELIVERED, by_id, limit=2) == 2
    assert row(engine, "u-1").status == row(engine, "u-2").status == "sent"
    assert reports.violations(engine, config) == []
    (entry,) = reports.actions(engine, who="alice").actions
    assert (entry.kind, entry.total, entry.done, entry.state) == ("replayed", 5, 5, ActionState.DONE)
    assert entry.filter is not None
    assert entry.filter["limit"] == 5


def test_a_filter_stands_in_the_journal_without_an_address(engine: Engine, config: Config) -> None:
    fail(engine, config, "a")
    outbox.start(engine, Resolution.REPLAYED, LetterFilter(error="no such user <eve@x.org>", code=550), limit=9, rate=1)
    (entry,) = reports.actions(engine).actions
    assert entry.filter == {"error": "no such user <e…@x.org>", "code": 550, "limit": 9}


def test_at_a_rate_workers_move_it_bit_by_bit_at_priority_low(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n}" for n in range(9)), priority="high")
    action = start(engine, rate=2)
    assert reports.stats(engine).pending == 0
    for _ in range(2):
        assert outbox.advance(engine)
    moved = [row(engine, f"m-{n}") for n in range(9)]
    assert [one.status for one in moved].count("pending") in (4, 5), "what falls due in two seconds"
    assert {one.priority for one in moved[:4]} == {2}
    gaps = [(b.next_attempt_at - a.next_attempt_at).total_seconds() for a, b in pairwise(moved[:4])]
    assert gaps == pytest.approx([0.5] * 3, abs=0.01)
    for _ in range(3):
        time_passes(engine)
        outbox.advance(engine)
    done = reports.action(engine, action)
    assert (done.total, done.done, done.state) == (9, 9, ActionState.DONE)
    assert done.ended_at is not None
    assert not outbox.advance(engine)


def test_a_pause_and_an_outage_hold_an_action_up_and_no_burst_follows(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n}" for n in range(9)))
    action = start(engine, rate=2)
    outbox.pause(engine, "by hand")
    time_passes(engine, 3600)
    assert outbox.advance(engine)
    assert reports.action(engine, action).done == 0
    outbox.resume(engine)
    accept(engine, config, "first")
    record(engine, config, claim(engine, config), OUTAGE)
    outbox.advance(engine)
    assert reports.action(engine, action).done == 0
    outbox.end_outage(engine)
    outbox.advance(engine)
    assert reports.action(engine, action).done in (4, 5)


def test_an_action_takes_each_letter_once_though_they_fail_again_meanwhile(engine: Engine, config: Config) -> None:
    """The bound is the mark: what fails again has a new letter, without it."""
    fail(engine, config, *(f"m-{n}" for n in range(9)))
    action = start(engine, rate=2, code=550)
    while outbox.advance(engine):
        make_due(engine)
        work(engine, config, REJECTED)
        time_passes(engine)
    assert reports.action(engine, action).done == 9
    per_email = Counter(letter.email for letter in rows(engine, DeadLetter))
    assert set(per_email.values()) == {2}, "the letter that was replayed, and the one of its only further attempt"


def test_two_workers_and_a_person_move_no_letter_twice(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n:03}" for n in range(120)))
    action = start(engine, rate=1000)
    ids = [one.id for one in rows(engine, DeadLetter)]

    def by_hand() -> None:
        for number in ids[::7]:
            outbox.replay(engine, number)

    def advance() -> None:
        while outbox.advance(engine):
            time_passes(engine)

    with ThreadPoolExecutor(3) as pool:
        for one in [pool.submit(advance), pool.submit(advance), pool.submit(by_hand)]:
            one.result(60)
    single = [one for one in reports.actions(engine, limit=200).actions if one.filter and "ids" in one.filter]
    done = reports.action(engine, action)
    assert (done.state, done.done) == (ActionState.DONE, 120 - len(single))
    assert {one.resolution for one in rows(engine, DeadLetter)} == {"replayed"}
    assert reports.stats(engine).pending == 120
    assert reports.violations(engine, config) == []


def test_what_is_stopped_leaves_the_rest_to_others(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n}" for n in range(9)))
    action = start(engine, rate=2)
    assert outbox.preview(engine, Resolution.REPLAYED, LetterFilter(), 50).matching == 0, "they are spoken for"
    assert replay_many(engine) == 0
    outbox.advance(engine)
    left = outbox.stop(engine, action, who="bob")
    assert left in (4, 5)
    with pytest.raises(Conflict) as over:
        outbox.stop(engine, action)
    assert over.value.code == "already_over"
    with pytest.raises(NotFound):
        outbox.stop(engine, 12345)
    assert not outbox.advance(engine)
    assert reports.action(engine, action).done == 9 - left
    assert replay_many(engine) == left
    told = reports.actions(engine, kind="stopped").actions
    assert [(one.who, one.filter, one.done) for one in told] == [("bob", {"action": action}, left)]


def test_what_broke_off_is_gone_on_with_by_the_workers(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox.bulk, "CHUNK", 2)
    fail(engine, config, *(f"m-{n}" for n in range(9)))

    def killed(done: int, of: int) -> None:
        assert of == 9
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.resolve_many(engine, Resolution.REPLAYED, LetterFilter(), limit=50, progress=killed)
    (entry,) = reports.actions(engine).actions
    assert (entry.state, entry.done, entry.total) == (ActionState.RUNNING, 4, 9)
    assert outbox.advance(engine)
    assert reports.action(engine, entry.id).done == 4, "whoever began it may still be at work"
    time_passes(engine)
    while outbox.advance(engine):
        pass
    assert reports.action(engine, entry.id).done == 9
    assert reports.stats(engine).pending == 9


def test_a_person_who_is_erased_meanwhile_is_left_out(engine: Engine, config: Config) -> None:
    fail(engine, config, *(f"m-{n}" for n in range(6)))
    action = start(engine, rate=2)
    outbox.advance(engine)
    assert outbox.erase(engine, "m-5@example.com") == 1
    while outbox.advance(engine):
        time_passes(engine)
    done = reports.action(engine, action)
    assert (done.total, done.done, done.state) == (6, 5, ActionState.DONE)
    assert row(engine, "m-5").status == "failed"
    assert reports.violations(engine, config) == []


def test_nothing_that_matches_is_an_action_that_is_over(engine: Engine) -> None:
    action = reports.action(engine, start(engine, rate=1, code=599))
    assert (action.total, action.done, action.state) == (0, 0, ActionState.DONE)
