"""Dead letters resolved, e-mails cancelled and people erased."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.models import Attempt, DeadLetter, StoredAttachment
from emailsvc.errors import Conflict, InvalidPayload, NotFound
from emailsvc.outbox import Claim, Swept
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Reason, Resolution
from tests.emails import (
    DEFERRED,
    REJECTED,
    SENT,
    UNCERTAIN,
    accept,
    claim,
    make_due,
    move,
    record,
    replay_many,
    row,
    rows,
    token,
)  # fmt: skip
from tests.factories import new_email


def _fail(engine: Engine, config: Config, *ids: str, result: Any = REJECTED, **fields: Any) -> list[int]:
    accept(engine, config, *ids, **fields)
    made = claim(engine, config)
    for number in range(len(made.rows)):
        record(engine, config, made, result, number)
    return [letter.id for letter in rows(engine, DeadLetter)]


def test_a_replay_has_a_fresh_budget_and_the_same_message_id(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config)
    message_id = row(engine).message_id
    resolved = outbox.replay(engine, letter)
    assert (resolved.id, resolved.email_id, resolved.resolution) == (letter, "m-1", "replayed")
    assert (row(engine).status, row(engine).attempts, row(engine).message_id) == ("pending", 0, message_id)
    for _ in range(config.max_retry_attempts):
        assert record(engine, config, claim(engine, config), DEFERRED).state == "pending"
        make_due(engine)
    assert record(engine, config, claim(engine, config), SENT).state == "sent"
    events = [entry.event for entry in reports.email(engine, "m-1").timeline]
    assert events == ["received", "rejected", "dead_lettered", "replayed", *["deferred"] * 3, "sent"]


def test_replaying_twice_sends_once(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: outbox.replay(engine, letter), range(8)))
    assert len({a.resolution for a in answers}) == 1
    made = claim(engine, config)
    record(engine, config, made, SENT)
    outbox.replay(engine, letter)
    assert row(engine).status == "sent"
    assert not isinstance(outbox.claim(engine, token(), config), Claim)


def test_a_second_click_on_a_letter_that_was_replayed_leaves_the_next_one_alone(engine: Engine, config: Config) -> None:
    (first,) = _fail(engine, config)
    outbox.replay(engine, first)
    record(engine, config, claim(engine, config), REJECTED)
    assert outbox.replay(engine, first).resolution == "replayed"
    assert row(engine).status == "failed"
    assert [letter.resolution for letter in rows(engine, DeadLetter)] == ["replayed", None]
    assert reports.violations(engine, config) == []


def test_a_replay_forgets_a_deadline_that_has_passed_and_keeps_one_that_has_not(engine: Engine, config: Config) -> None:
    later = utcnow() + timedelta(hours=1)
    letters = _fail(engine, config, "past", "ahead", expires_at=later.isoformat())
    move(engine, 7200, "expires_at", email_id="past")
    for letter in letters:
        outbox.replay(engine, letter)
    assert row(engine, "past").expires_at is None
    assert abs((row(engine, "ahead").expires_at - later).total_seconds()) < 0.01


def test_discarding_twice_answers_the_same(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config)
    assert outbox.discard(engine, letter) == outbox.discard(engine, letter)
    assert row(engine).status == "failed"
    assert reports.stats(engine).dead_letters == 0
    assert reports.violations(engine, config) == []


def test_delivered_makes_it_sent(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config, result=UNCERTAIN)
    assert outbox.delivered(engine, letter).resolution == "delivered"
    assert (row(engine).status, reports.stats(engine).sent, reports.stats(engine).failed) == ("sent", 1, 0)
    assert reports.violations(engine, config) == []
    assert [e.event for e in reports.email(engine, "m-1").timeline][-1] == "delivered"


def test_another_resolution_than_the_first_is_refused(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config)
    outbox.discard(engine, letter)
    for act in (outbox.replay, outbox.delivered):
        with pytest.raises(Conflict, match="discarded"):
            act(engine, letter)


def test_what_does_not_exist_is_not_found(engine: Engine) -> None:
    for act in (outbox.replay, outbox.delivered, outbox.discard, reports.dead_letter):
        with pytest.raises(NotFound):
            act(engine, 12345)
    with pytest.raises(NotFound):
        reports.email(engine, "nobody")
    with pytest.raises(NotFound):
        outbox.cancel(engine, "nobody")


def test_content_that_is_gone_cannot_be_replayed(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config)
    outbox.discard(engine, letter)
    move(engine, config.body_retention_seconds + 10, "final_at")
    outbox.retain(engine, config, Swept())
    (_, again) = _fail(engine, config, "m-2")
    outbox.erase(engine, "m-2@example.com")
    for gone in (letter, again):
        with pytest.raises(Conflict):
            outbox.replay(engine, gone)


def test_replays_by_filter(engine: Engine, config: Config) -> None:
    _fail(engine, config, "a", "b", "c")
    _fail(engine, config, "u", result=UNCERTAIN)
    would = outbox.preview(engine, Resolution.REPLAYED, LetterFilter(reason=Reason.REJECTED), 2)
    assert would == outbox.Preview(matching=3, would_move=2, uncertain_left_out=0, content_gone=0)
    assert replay_many(engine, since=utcnow() + timedelta(hours=1)) == 0
    assert replay_many(engine, until=utcnow() - timedelta(hours=1)) == 0
    assert reports.stats(engine).pending == 0
    assert replay_many(engine, reason=Reason.REJECTED, limit=2) == 2
    assert [row(engine, i).status for i in "abcu"] == ["pending", "pending", "failed", "failed"]
    assert replay_many(engine) == 1, "a filter leaves uncertain ones out unless it names them"
    assert replay_many(engine, reason=Reason.UNCERTAIN) == 1


def test_a_bulk_replay_takes_many_transactions_and_stops_at_its_limit(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox.bulk, "CHUNK", 2)
    _fail(engine, config, *(f"m-{n}" for n in range(9)))
    assert replay_many(engine, limit=5) == 5
    assert reports.stats(engine).pending == 5
    assert replay_many(engine) == 4
    assert reports.violations(engine, config) == []


def test_a_bulk_replay_ends_and_takes_each_letter_once_though_they_fail_again_meanwhile(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker between any two chunks sends what was replayed, and the server leaves all of it uncertain again."""
    transaction = outbox.bulk.in_transaction

    def replayed_and_sent(engine: Engine, work: Any) -> Any:
        count = transaction(engine, work)
        make_due(engine)
        while isinstance(made := outbox.claim(engine, token(), config), Claim):
            for number in range(len(made.rows)):
                record(engine, config, made, UNCERTAIN, number)
        return count

    monkeypatch.setattr(outbox.bulk, "CHUNK", 2)
    _fail(engine, config, *(f"m-{n}" for n in range(6)), result=UNCERTAIN)
    monkeypatch.setattr(outbox.bulk, "in_transaction", replayed_and_sent)
    assert replay_many(engine, reason=Reason.UNCERTAIN, limit=50) == 6
    per_email = Counter(letter.email for letter in rows(engine, DeadLetter))
    assert set(per_email.values()) == {2}, "the letter that was replayed, and the one of its only further attempt"
    assert reports.stats(engine).dead_letters == 6


def test_pages_of_dead_letters_are_complete_and_never_repeat(engine: Engine, config: Config) -> None:
    ids = [f"m-{n}" for n in range(10)]
    _fail(engine, config, *ids)
    seen: list[str] = []
    cursor = None
    while True:
        page = reports.dead_letters(engine, limit=3, cursor=cursor)
        seen += [letter.email_id for letter in page.dead_letters]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]
    outbox.discard(engine, rows(engine, DeadLetter)[0].id)
    assert [letter.email_id for letter in reports.dead_letters(engine, resolved=True).dead_letters] == ["m-0"]
    assert reports.dead_letters(engine, LetterFilter(reason=Reason.EXPIRED)).dead_letters == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "~",
        "1777885200000000",
        "1777885200000000~x",
        "1777885200000000~-1",
        "-1~1",
        "9" * 18 + "~1",
        "1~" + "9" * 19,
        "١~1",
        "2026-01-01T00:00:00+00:00~1",
    ],
)
def test_a_cursor_that_was_made_up_is_refused(engine: Engine, cursor: str) -> None:
    with pytest.raises(InvalidPayload):
        reports.dead_letters(engine, cursor=cursor)


def test_cancelling_what_waits_and_again(engine: Engine, config: Config) -> None:
    accept(engine, config)
    outbox.cancel(engine, "m-1")
    outbox.cancel(engine, "m-1")
    assert row(engine).status == "cancelled"
    assert not isinstance(outbox.claim(engine, token(), config), Claim)
    assert outbox.accept(engine, new_email(), config).state == "cancelled"
    assert [e.event for e in reports.email(engine, "m-1").timeline] == ["received", "cancelled"]


def test_what_cannot_be_cancelled_says_why(engine: Engine, config: Config) -> None:
    def code() -> str:
        with pytest.raises(Conflict) as refused:
            outbox.cancel(engine, "m-1")
        return refused.value.code

    accept(engine, config, on_uncertain="retry")
    made = claim(engine, config)
    assert code() == "sending"
    record(engine, config, made, UNCERTAIN)
    assert code() == "maybe_sent"
    make_due(engine)
    record(engine, config, claim(engine, config), REJECTED)
    assert code() == "failed"
    outbox.replay(engine, rows(engine, DeadLetter)[0].id)
    record(engine, config, claim(engine, config), SENT)
    assert code() == "already_sent"


def test_cancel_against_claim_is_always_answered_truly(engine: Engine, make_config: Any) -> None:
    config = make_config(batch_size=1)

    def cancel(email_id: str) -> str:
        try:
            outbox.cancel(engine, email_id)
        except Conflict as refused:
            return refused.code
        return "cancelled"

    def send() -> list[str]:
        made = outbox.claim(engine, token(), config)
        if not isinstance(made, Claim):
            return []
        record(engine, config, made, SENT)
        return [r.email_id for r in made.rows]

    with ThreadPoolExecutor(2) as pool:
        for number in range(500):
            accept(engine, config, f"m-{number}")
            cancelling = pool.submit(cancel, f"m-{number}")
            sending = pool.submit(send)
            cancelled, sent = cancelling.result(30), sending.result(30)
            assert cancelled in (["sending", "already_sent"] if sent else ["cancelled"]), f"race {number}: {sent}"
            while send():
                pass
    assert reports.violations(engine, config) == []


def test_erasing_a_person_leaves_ids_and_times(engine: Engine, config: Config) -> None:
    attachment = {"filename": "x", "content_type": "text/plain", "content": "aGk="}
    _fail(engine, config, "failed", user="Eve@Example.com")
    _fail(engine, config, "umlaut", user="Ünal@example.com")
    assert outbox.erase(engine, "Ünal@example.com") == 1
    accept(engine, config, "sent", user="eve@example.com", attachments=[attachment])
    record(engine, config, claim(engine, config), SENT)
    accept(engine, config, "pending", "other", user="eve@example.com")
    accept(engine, config, "bob", user="bob@example.com")
    assert outbox.erase(engine, "EVE@example.COM") == 4
    for name, status in {"failed": "failed", "sent": "sent", "pending": "cancelled", "other": "cancelled"}.items():
        found = row(engine, name)
        assert (found.status, found.recipient, found.subject, found.body, found.other) == (
            status,
            None,
            None,
            None,
            None,
        )
        assert found.final_at is not None
    assert rows(engine, StoredAttachment) == []
    assert {(a.text, a.domain) for a in rows(engine, Attempt)} == {("(erased)", "")}
    assert (row(engine, "bob").status, row(engine, "bob").body) == ("pending", "Text")
    assert (
        outbox.accept(engine, new_email("sent", user="eve@example.com", attachments=[attachment]), config).status
        == "duplicate"
    )
    assert outbox.erase(engine, "eve@example.com") == 0
    assert reports.violations(engine, config) == []


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("Ärger@Example.com", "ärger@example.com"),
        ("a@Ä.example", "a@ä.example"),
        ("i@exämple.com", "I@xn--exmple-cua.com"),
        ("i@xn--exmple-cua.com", "i@EXÄMPLE.com"),
    ],
)
def test_a_person_is_erased_however_the_address_is_spelled(
    engine: Engine, config: Config, stored: str, asked: str
) -> None:
    accept(engine, config, "theirs", user=stored)
    accept(engine, config, "other", user="arger@example.com")
    assert outbox.erase(engine, asked) == 1
    assert row(engine, "theirs").recipient is None


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("JÜRGEN.MÜLLER@example.com", "jürgen.müller@example.com"),
        ("jÜrgen.müller@example.com", "Jürgen.Müller@example.com"),
        ("Иван.Петров@почта.example", "иван.петров@ПОЧТА.example"),
        ("иван.петров@xn--80a1acny.example", "ИВАН.ПЕТРОВ@почта.example"),
        ("АЛЕКСАНДРА.НИКОЛАЕВНА@example.com", "александра.николаевна@example.com"),
        ("Александра.Николаевна@example.com", "АЛЕКСАНДРА.НИКОЛАЕВНА@example.com"),
        ("re\u0301ne@example.com", "r\u00e9ne@example.com"),
        ("r\u00e9ne@example.com", "RE\u0301NE@example.com"),
    ],
)
def test_an_international_address_is_found_in_capitals_and_decomposed(
    engine: Engine, config: Config, stored: str, asked: str
) -> None:
    accept(engine, config, "theirs", user=stored)
    accept(engine, config, "other", user="jurgen.muller@example.com")
    assert outbox.erase(engine, asked) == 1
    assert (row(engine, "theirs").recipient, row(engine, "other").status) == (None, "pending")


def test_an_international_address_is_looked_up_in_the_index(engine: Engine, config: Config) -> None:
    """In a table of many recipients: reading them all took too long for a statement."""
    outbox.accept_many(engine, [new_email(f"m-{n}") for n in range(2000)], config)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE emails"))
    seen: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, *statement: seen.append(statement[:2]))
    assert outbox.erase(engine, "jürgen@exämple.com") == 0
    explain = {"postgresql": "EXPLAIN ", "sqlite": "EXPLAIN QUERY PLAN "}[engine.dialect.name]
    looks = [(statement, values) for statement, values in seen if "recipient" in statement]
    assert looks
    with engine.connect() as connection:
        for statement, values in looks:
            plan = str(connection.exec_driver_sql(explain + statement, values).all())
            assert "ix_emails_recipient" in plan, plan


def test_a_busy_mailbox_is_erased_in_transactions_of_its_own_and_goes_on_after_a_kill(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox.erasure, "CHUNK", 4)
    monkeypatch.setattr(outbox.erasure, "PAGE", 8)
    outbox.accept_many(engine, [new_email(f"m-{n}", user="eve@example.com") for n in range(30)], config)
    accept(engine, config, "bob", user="bob@example.com")

    def killed_at_the_third(total: int) -> None:
        if total == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.erase(engine, "eve@example.com", killed_at_the_third)
    assert reports.stats(engine).cancelled == 12
    seen: list[int] = []
    assert outbox.erase(engine, "eve@example.com", seen.append) == 18
    assert seen == [4, 8, 12, 16, 18]
    assert reports.stats(engine).cancelled == 30
    assert row(engine, "bob").status == "pending"
    assert reports.violations(engine, config) == []


def test_an_erasure_ends_though_mail_to_the_person_keeps_coming(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox.erasure, "CHUNK", 2)
    monkeypatch.setattr(outbox.erasure, "PAGE", 2)
    accept(engine, config, *(f"m-{n}" for n in range(6)), user="eve@example.com")

    def another(total: int) -> None:
        assert total <= 6
        accept(engine, config, f"late-{total}", f"later-{total}", user="eve@example.com")

    assert outbox.erase(engine, "eve@example.com", another) == 6
    assert reports.stats(engine).pending == 6


def test_an_erasure_leaves_what_was_decided_about_a_dead_letter_as_it_was(engine: Engine, config: Config) -> None:
    (letter,) = _fail(engine, config, "replayed", user="eve@example.com")
    outbox.replay(engine, letter)
    assert outbox.erase(engine, "eve@example.com") == 1
    assert row(engine, "replayed").status == "cancelled"
    assert [one.resolution for one in rows(engine, DeadLetter)] == ["replayed"]


def test_what_is_in_hand_is_marked_once_and_does_not_hold_up_an_erasure(engine: Engine, config: Config) -> None:
    accept(engine, config, "in-hand", user="eve@example.com")
    made = claim(engine, config)
    accept(engine, config, "waiting", user="eve@example.com")
    assert outbox.erase(engine, "eve@example.com") == 2
    assert outbox.erase(engine, "eve@example.com") == 0
    assert row(engine, "in-hand").recipient == "eve@example.com"
    record(engine, config, made, SENT)
    assert row(engine, "in-hand").recipient is None


def test_look_up_of_many_ids(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    found = reports.lookup(engine, ["b", "nope", "a", "b"])
    assert [e.email_id for e in found.emails] == ["b", "a"]
    assert found.missing == ["nope"]


def test_what_is_replayed_in_bulk_becomes_due_one_after_the_other(engine: Engine, config: Config) -> None:
    """Fresh mail is not to stand behind all of it."""
    ids = [f"m-{n:03}" for n in range(250)]
    outbox.accept_many(engine, [new_email(email_id) for email_id in ids], config)
    while isinstance(made := outbox.claim(engine, token(), config), Claim):
        for number in range(len(made.rows)):
            record(engine, config, made, REJECTED, number)
    assert replay_many(engine) == 250
    due = [row(engine, email_id).next_attempt_at for email_id in ids]
    assert due == sorted(due)
    assert (due[-1] - due[0]).total_seconds() == pytest.approx(2.49, abs=1)
    assert (due[1] - due[0]).total_seconds() == pytest.approx(0.01, abs=0.005)
