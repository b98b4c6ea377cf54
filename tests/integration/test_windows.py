"""Windows: e-mails of one key under many ids, of which one goes out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, Update, event, update

from emailsvc import outbox, reports
from emailsvc.db import direct
from emailsvc.db.models import DeadLetter, Email, StoredAttachment, Window
from emailsvc.db.sqltime import db_in
from emailsvc.intake.filters import EmailFilter
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox import Accepted, expediting
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, REJECTED, SENT, UNCERTAIN, claim, go_back, move, record, row, rows
from tests.factories import new_email, payload
from tests.storm import Storm
from tests.webkit import ON_SQLITE, StrictClient

SECOND = itertools.count(2)
ATTACHMENT = {"filename": "a.txt", "content_type": "text/plain", "content": "aGk="}


def alert(email_id: str, **fields: Any) -> NewEmail:
    return new_email(email_id, **{"user": "ada@example.com", "dedupe_window_seconds": 60, **fields})


def post(engine: Engine, config: Config, *ids: str, **fields: Any) -> list[Accepted]:
    return [outbox.accept(engine, alert(one, **fields), config) for one in ids]


def verdicts(answers: list[Accepted]) -> list[tuple[str, str, str | None]]:
    return [(one.email_id, str(one.status), one.first and one.first.email_id) for one in answers]


def end_windows(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(Window).values(ends_at=db_in(-1)))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


# Who is whose duplicate


def test_the_same_content_under_other_ids_is_absorbed(engine: Engine, config: Config) -> None:
    first, *others = post(engine, config, "a", "b", "c")
    assert verdicts([first, *others]) == [("a", "accepted", None), ("b", "absorbed", "a"), ("c", "absorbed", "a")]
    assert {(one.state, one.due, one.same_content, one.duplicates) for one in others} == {("absorbed", False, True, 0)}
    assert {one.first_received_at for one in others} == {first.first_received_at}
    assert [one.email_id for one in claim(engine, config).rows] == ["a"]
    stats = reports.stats(engine)
    assert (stats.received, stats.sending, stats.absorbed, stats.cancelled, stats.pending) == (3, 1, 2, 0, 0)
    assert (stats.absorbed_other, stats.would_absorb, stats.duplicates) == (0, 0, 0)
    assert reports.violations(engine, config) == []


def test_the_content_of_what_was_absorbed_is_kept_until_its_first_is_sent(engine: Engine, config: Config) -> None:
    post(engine, config, "a", "b", attachments=[ATTACHMENT])
    assert (row(engine, "b").status, row(engine, "b").duplicate_of, row(engine, "b").body) == ("cancelled", "a", "Text")
    assert len(rows(engine, StoredAttachment)) == 2
    record(engine, config, claim(engine, config), SENT)
    (late,) = post(engine, config, "c", attachments=[ATTACHMENT])
    assert late.first is not None
    assert late.first.state == "sent"
    kept = row(engine, "c")
    assert (kept.subject, kept.body, kept.recipient, kept.duplicate_of) == (None, None, "ada@example.com", "a")
    assert kept.scrubbed_at is not None
    assert len(rows(engine, StoredAttachment)) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "Other"},
        {"user": "bob@example.com"},
        {"dedupe_key": "k"},
        {"dedupe_window_seconds": 0},
        {"dedupe_window_seconds": None},
        {"send_at": "2090-01-01T00:00:00Z"},
        {"send_at": "2020-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_what_is_another_or_has_no_window_is_accepted_before_and_after(
    engine: Engine, config: Config, fields: dict[str, Any]
) -> None:
    assert [one.status for one in post(engine, config, "a")] == ["accepted"]
    assert [one.status for one in post(engine, config, "b", **fields)] == ["accepted"]
    assert [one.status for one in post(engine, config, "c")] == ["absorbed"]


def test_a_key_stands_for_the_content_and_the_recipient_has_one_spelling(engine: Engine, config: Config) -> None:
    answers = post(engine, config, "a", dedupe_key="disk-full")
    answers += post(engine, config, "b", dedupe_key="disk-full", subject="Other", user="ADA@Example.com")
    assert verdicts(answers) == [("a", "accepted", None), ("b", "absorbed", "a")]
    assert answers[1].same_content is False
    assert (reports.stats(engine).absorbed, reports.stats(engine).absorbed_other) == (1, 1)


def test_the_content_is_the_same_for_another_spelling_of_the_recipient(engine: Engine, config: Config) -> None:
    assert [one.status for one in post(engine, config, "a")] == ["accepted"]
    assert [one.status for one in post(engine, config, "b", user="Ada@EXAMPLE.com")] == ["absorbed"]


def test_a_key_is_never_a_content(engine: Engine, config: Config) -> None:
    post(engine, config, "a")
    assert [one.status for one in post(engine, config, "b", dedupe_key=row(engine, "a").fingerprint)] == ["accepted"]


def test_the_first_ones_window_decides_and_duplicates_do_not_prolong_it(engine: Engine, config: Config) -> None:
    post(engine, config, "a", dedupe_window_seconds=100)
    (ends_at,) = [one.ends_at for one in rows(engine, Window)]
    assert (ends_at - row(engine, "a").received_at).total_seconds() == 100
    post(engine, config, "b", dedupe_window_seconds=86_400)
    assert [one.ends_at for one in rows(engine, Window)] == [ends_at]
    end_windows(engine)
    answers = post(engine, config, "c", "d")
    assert verdicts(answers) == [("c", "accepted", None), ("d", "absorbed", "c")]
    assert len(rows(engine, Window)) == 1


def test_a_clock_that_is_set_back_makes_a_window_longer_by_so_much_and_no_more(engine: Engine, config: Config) -> None:
    """As if the first had come while the clock was an hour ahead."""
    post(engine, config, "a", dedupe_window_seconds=60)
    for seconds, verdict in ((3600 + 59, "absorbed"), (1, "absorbed"), (-1, "accepted")):
        with engine.begin() as connection:
            connection.execute(update(Window).values(ends_at=db_in(seconds)))
        assert [one.status for one in post(engine, config, f"m{seconds}")] == [verdict]


def test_of_a_batch_the_earliest_is_the_first(engine: Engine, config: Config) -> None:
    post(engine, config, "known", dedupe_key="old")
    batch = [
        alert("z", attachments=[ATTACHMENT]),
        alert("a", attachments=[ATTACHMENT]),
        alert("z", attachments=[ATTACHMENT]),
        alert("z", subject="Other"),
        alert("a", attachments=[ATTACHMENT]),
        alert("y", dedupe_key="old"),
        alert("known", dedupe_key="new"),
        alert("x", dedupe_key="new"),
        new_email("plain"),
    ]
    assert verdicts(outbox.accept_many(engine, batch, config)) == [
        ("z", "accepted", None), ("a", "absorbed", "z"), ("z", "duplicate", None), ("z", "mismatch", None),
        ("a", "duplicate", "z"), ("y", "absorbed", "known"), ("known", "duplicate", None), ("x", "accepted", None),
        ("plain", "accepted", None),
    ]  # fmt: skip
    stats = reports.stats(engine)
    assert (stats.received, stats.absorbed, stats.duplicates, stats.mismatches) == (6, 2, 3, 1)
    assert reports.violations(engine, config) == []


def test_a_thousand_with_one_key_are_a_few_statements(engine: Engine, config: Config) -> None:
    post(engine, config, "first")
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: sent.append(a[2]))
    answers = outbox.accept_many(engine, [alert(f"m-{n}") for n in range(1000)], config)
    assert {one.status for one in answers} == {"absorbed"}
    assert len(sent) <= 10, sent


def test_an_absorbed_id_stays_that_duplicate(engine: Engine, config: Config) -> None:
    post(engine, config, "a", "b")
    end_windows(engine)
    for status, number in (("duplicate", 1), ("duplicate", 2)):
        (again,) = post(engine, config, "b")
        assert verdicts([again]) == [("b", status, "a")]
        assert (again.state, again.duplicates, again.same_content) == ("absorbed", number, True)
    assert [one.status for one in post(engine, config, "b", subject="Other")] == ["mismatch"]
    assert row(engine, "b").duplicate_of == "a"
    assert reports.stats(engine).absorbed == 1


def test_an_observer_sends_all_and_counts_what_would_have_been_absorbed(
    engine: Engine, make_config: Callable[..., Config]
) -> None:
    watching = make_config(dedupe_mode="observe")
    answers = post(engine, watching, "a", "b", "c", attachments=[ATTACHMENT])
    assert verdicts(answers) == [("a", "accepted", None), ("b", "accepted", "a"), ("c", "accepted", "a")]
    assert {(one.state, one.due) for one in answers} == {("pending", True)}
    stats = reports.stats(engine)
    assert (stats.pending, stats.absorbed, stats.would_absorb) == (3, 0, 2)
    assert len(rows(engine, StoredAttachment)) == 3
    assert [one.status for one in post(engine, make_config(), "d", attachments=[ATTACHMENT])] == ["absorbed"]


# When the first one ends


def expire(engine: Engine, config: Config) -> None:
    with engine.begin() as connection:
        connection.execute(update(Email).where(Email.email_id == "a").values(expires_at=db_in(-1)))
    outbox.sweep(engine, config)


def discard(engine: Engine, config: Config) -> None:
    record(engine, config, claim(engine, config), REJECTED)
    outbox.discard(engine, rows(engine, DeadLetter)[-1].id)


UNSENT: dict[str, Callable[[Engine, Config], object]] = {
    "cancelled": lambda engine, _: outbox.cancel(engine, "a"),
    "discarded": discard,
    "expired": expire,
    "erased": lambda engine, _: outbox.erase(engine, "ada@example.com"),
}
HELD: dict[str, Callable[[Engine, Config], object]] = {
    "in hand": claim,
    "deferred": lambda engine, config: record(engine, config, claim(engine, config), DEFERRED),
    "sent": lambda engine, config: record(engine, config, claim(engine, config), SENT),
    "rejected": lambda engine, config: record(engine, config, claim(engine, config), REJECTED),
    "uncertain": lambda engine, config: record(engine, config, claim(engine, config), UNCERTAIN),
}


@pytest.mark.parametrize("how", UNSENT)
def test_a_first_one_that_ends_unsent_frees_its_window(engine: Engine, config: Config, how: str) -> None:
    post(engine, config, "a", "b")
    UNSENT[how](engine, config)
    assert verdicts(post(engine, config, "b", "c", "d"))[-2:] == [("c", "accepted", None), ("d", "absorbed", "c")]
    assert row(engine, "b").duplicate_of == "a"
    assert len(rows(engine, Window)) == 1
    assert reports.violations(engine, config) == []


@pytest.mark.parametrize("how", HELD)
def test_a_first_one_that_is_sent_or_may_be_yet_holds_its_window(engine: Engine, config: Config, how: str) -> None:
    post(engine, config, "a")
    HELD[how](engine, config)
    assert verdicts(post(engine, config, "b")) == [("b", "absorbed", "a")]


def pass_days(engine: Engine, config: Config, days: float) -> None:
    go_back(engine, days * 86_400)
    outbox.sweep(engine, config)
    outbox.retain(engine, config, outbox.Swept())


def test_content_is_kept_for_as_long_as_the_first_one_may_be_sent(
    engine: Engine, make_config: Callable[..., Config]
) -> None:
    config = make_config(body_retention_seconds=86_400, email_retention_days=0)
    post(engine, config, "a", "b")
    record(engine, config, claim(engine, config), REJECTED)
    pass_days(engine, config, 2)
    assert {one.email_id: one.body for one in rows(engine, Email)} == {"a": "Text", "b": "Text"}
    assert rows(engine, Window) == []
    outbox.delivered(engine, rows(engine, DeadLetter)[0].id)
    outbox.retain(engine, make_config(email_retention_days=100), outbox.Swept())
    assert (row(engine, "a").body, row(engine, "b").body) == ("Text", None)


def test_after_a_first_one_that_ended_unsent_content_is_kept_as_long_as_any_other(
    engine: Engine, make_config: Callable[..., Config]
) -> None:
    config = make_config(body_retention_seconds=2 * 86_400, email_retention_days=0)
    post(engine, config, "a", "b")
    outbox.cancel(engine, "a")
    pass_days(engine, config, 1)
    assert {one.email_id: one.body for one in rows(engine, Email)} == {"a": "Text", "b": "Text"}
    pass_days(engine, config, 2)
    outbox.retain(engine, config, outbox.Swept())
    assert rows(engine, Email) == []
    stats = reports.stats(engine)
    assert (stats.received, stats.absorbed, stats.cancelled) == (2, 1, 1)
    assert reports.violations(engine, config) == []


# Sending what an unsent first one had absorbed


def test_what_an_unsent_first_one_had_absorbed_is_sent_by_its_id(
    app: Flask, client: FlaskClient, engine: Engine, config: Config
) -> None:
    post(engine, config, "a", "b", "c", expires_at="2090-01-01T00:00:00Z")
    outbox.cancel(engine, "a")
    move(engine, 100 * 365 * 86_400, "expires_at", email_id="b")
    queued = app.extensions["huey"].pending_count()
    first = client.post("/emails/b/send").get_json()
    assert (first["email_id"], first["state"]) == ("b", "pending")
    assert app.extensions["huey"].pending_count() == queued + 1, "the workers are woken"
    assert client.post("/emails/b/send").get_json() == first, "a second click changes nothing"
    assert (row(engine, "b").duplicate_of, row(engine, "b").final_at, row(engine, "b").expires_at) == (None, None, None)
    stats = reports.stats(engine)
    assert (stats.received, stats.pending, stats.absorbed, stats.cancelled) == (3, 1, 1, 1)
    assert reports.violations(engine, config) == []
    made = claim(engine, config)
    assert [(one.email_id, one.content and one.content.body) for one in made.rows] == [("b", "Text")]
    record(engine, config, made, SENT)
    assert verdicts(post(engine, config, "b", expires_at=None)) == [("b", "duplicate", None)]
    assert [one["kind"] for one in client.get("/actions").get_json()["actions"]] == ["made_due", "cancelled"]


def test_the_duplicate_that_is_sent_has_the_window_of_its_unsent_first_one(engine: Engine, config: Config) -> None:
    """Or the next would be a second e-mail within it."""
    post(engine, config, *"abcd")
    outbox.cancel(engine, "a")
    outbox.send_now(engine, "c")
    assert verdicts(post(engine, config, "e")) == [("e", "absorbed", "c")]
    assert outbox.send_many_now(engine, EmailFilter(first_unsent=True)).made_due == 2
    assert verdicts(post(engine, config, "f")) == [("f", "absorbed", "c")], "who has it keeps it"
    outbox.cancel(engine, "c")
    assert verdicts(post(engine, config, "g")) == [("g", "accepted", None)]
    outbox.send_now(engine, "e")
    assert verdicts(post(engine, config, "h")) == [("h", "absorbed", "g")], "and what was taken over stays so"
    assert reports.violations(engine, config) == []


def test_of_many_that_are_sent_together_the_earliest_has_the_window(engine: Engine, config: Config) -> None:
    post(engine, config, *"abc")
    outbox.cancel(engine, "a")
    assert outbox.send_many_now(engine, EmailFilter(first_unsent=True)).made_due == 2
    assert verdicts(post(engine, config, "d")) == [("d", "absorbed", "b")]
    assert reports.violations(engine, config) == []


def test_what_an_unsent_first_one_had_absorbed_is_listed_and_sent_by_the_filter(
    client: FlaskClient, engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expediting, "CHUNK", 2)
    post(engine, config, "a", *"bcde")
    post(engine, config, "z", "y", user="bob@example.com")
    assert listed(client, first_unsent=True) == []
    outbox.cancel(engine, "a")
    assert listed(client, first_unsent=True) == [*"edcb"]
    assert listed(client, first_unsent=True, user="ADA@example.com") == [*"edcb"]
    assert listed(client, first_unsent=True, user="bob@example.com") == []
    assert listed(client, duplicate_of="a") == [*"edcb"]
    assert listed(client, duplicate_of="z", state="absorbed") == ["y"]
    assert listed(client, duplicate_of="z", until="2020-01-01T00:00:00Z") == []
    counts = {"matching": 4, "made_due": 3, "already_due": 0, "scheduled": 0, "uncertain_left_out": 0}
    wanted = {"first_unsent": True, "limit": 3}
    assert client.post("/emails/send", json=wanted | {"dry_run": True}).get_json() == counts
    assert client.post("/emails/send", json=wanted).get_json() == counts
    assert listed(client, first_unsent=True) == ["e"]
    assert client.post("/emails/send", json={"first_unsent": True}).get_json() == counts | {
        "matching": 1,
        "made_due": 1,
    }
    assert sorted(one.email_id for one in claim(engine, config).rows) == [*"bcdez"]
    assert reports.violations(engine, config) == []


def listed(client: FlaskClient, **wanted: Any) -> list[str]:
    answer = client.post("/emails/search", json=wanted).get_json()
    return [one["email_id"] for one in answer["emails"]]


@pytest.mark.parametrize("how", HELD)
def test_what_was_absorbed_is_not_sent_while_its_first_one_was_or_may_be(
    client: FlaskClient, engine: Engine, config: Config, how: str
) -> None:
    post(engine, config, "a", "b")
    HELD[how](engine, config)
    answer = client.post("/emails/b/send")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "absorbed")
    assert listed(client, first_unsent=True) == []
    assert client.post("/emails/send", json={"first_unsent": True}).get_json()["made_due"] == 0
    assert row(engine, "b").status == "cancelled"


def test_an_erased_or_scrubbed_duplicate_has_nothing_to_send(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    post(engine, config, "a", "b")
    outbox.erase(engine, "ADA@example.com")
    assert (row(engine, "b").recipient, row(engine, "b").body, row(engine, "b").duplicate_of) == (None, None, "a")
    assert client.post("/emails/b/send").get_json()["code"] == "content_gone"
    assert listed(client, first_unsent=True) == []


def test_a_replay_of_an_expired_first_one_takes_the_choice_back(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    post(engine, config, "a", "b")
    expire(engine, config)
    assert listed(client, first_unsent=True) == ["b"]
    outbox.replay(engine, rows(engine, DeadLetter)[0].id)
    assert listed(client, first_unsent=True) == []
    assert verdicts(post(engine, config, "c")) == [("c", "absorbed", "a")], "its window is not over, and was not taken"


def test_what_was_absorbed_can_be_cancelled_for_good(client: FlaskClient, engine: Engine, config: Config) -> None:
    post(engine, config, "a", "b", "c")
    for _ in range(2):
        assert client.delete("/emails/b").get_json() == {"email_id": "b", "state": "cancelled"}
    outbox.cancel(engine, "a")
    assert listed(client, first_unsent=True) == ["c"]
    assert listed(client, state="cancelled") == ["b", "a"]
    assert client.post("/emails/b/send").get_json()["code"] == "cancelled"
    stats = reports.stats(engine)
    assert (stats.received, stats.absorbed, stats.cancelled) == (3, 1, 2)
    assert reports.violations(engine, config) == []


@ON_SQLITE
@pytest.mark.parametrize(
    ("path", "wanted", "code", "field"),
    [
        ("search", {"first_unsent": True, "state": "pending"}, "invalid_field", "first_unsent"),
        ("search", {"duplicate_of": "a", "state": "sent"}, "invalid_field", "duplicate_of"),
        ("search", {"duplicate_of": "a\n"}, "invalid_field", "duplicate_of"),
        ("search", {"first_unsent": True, "order": "due"}, "invalid_field", "order"),
        ("search", {"first_unsent": "yes"}, "invalid_field", "first_unsent"),
        ("send", {"state": "absorbed"}, "missing_field", "first_unsent"),
        ("send", {"duplicate_of": "a"}, "missing_field", "first_unsent"),
        ("send", {"first_unsent": False}, "missing_field", "state"),
    ],
)
def test_a_bad_choice_of_duplicates_is_named(
    client: FlaskClient, path: str, wanted: dict[str, Any], code: str, field: str
) -> None:
    answer = client.post(f"/emails/{path}", json=wanted).get_json()
    assert (answer["status"], answer["code"], answer["field"]) == (400, code, field)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (update(Email).where(Email.email_id == "b").values(status="failed"), "duplicates of others are not cancelled"),
        (update(Email).where(Email.email_id == "a").values(email_id="z"), "kept as duplicates of one that is gone"),
        (update(Window).values(email=2), "duplicates of others hold a window"),
        (update(Email).where(Email.email_id == "b").values(duplicate_of=None), "the counter of absorbed lacks -1"),
    ],
)
def test_the_invariant_sees_what_no_window_may_leave_behind(
    engine: Engine, config: Config, broken: Update, words: str
) -> None:
    post(engine, config, "a", "b")
    assert reports.violations(engine, config) == []
    with engine.begin() as connection:
        connection.execute(broken)
    assert words in "; ".join(reports.violations(engine, config))


# Over HTTP


@pytest.fixture
def windowed(make_app: Callable[[Config], Flask], make_config: Callable[..., Config]) -> Callable[..., FlaskClient]:
    def make(**environ: object) -> FlaskClient:
        app = make_app(make_config(dedupe_window_seconds=60, **environ))
        app.test_client_class = StrictClient
        return app.test_client()

    return make


def test_the_answer_names_the_first_one(windowed: Callable[..., FlaskClient], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "emailsvc.web")
    client = windowed()
    first = payload("a", user="ada@example.com")
    assert client.post("/webhook/email", json=first).status_code == 202
    second = first | {"email_id": "b"}
    answer = client.post("/webhook/email", json=second)
    assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (200, "true")
    received = client.get("/emails/a").get_json()["received_at"]
    told = {
        "status": "duplicate", "email_id": "b", "duplicate_of": "a", "state": "absorbed", "first_state": "pending",
        "same_content": True, "first_received_at": received, "duplicates": 0,
    }  # fmt: skip
    assert answer.get_json() == told
    assert client.post("/webhook/email", json=second).get_json() == told | {"duplicates": 1}
    other = client.post("/webhook/email", json=second | {"subject": "Other"})
    assert (other.status_code, other.get_json()["code"]) == (422, "payload_mismatch")
    batch = {"emails": [second, first | {"email_id": "c"}, first | {"email_id": "d", "dedupe_window_seconds": 0}]}
    results = client.post("/webhook/email/batch", json=batch).get_json()["results"]
    assert [(one["status"], one["state"], one.get("duplicate_of")) for one in results] == [
        ("duplicate", "absorbed", "a"), ("duplicate", "absorbed", "a"), ("accepted", "pending", None),
    ]  # fmt: skip
    lines = [one for one in caplog.records if one.getMessage() == "absorbed"]
    assert [one.__dict__["fields"]["email_id"] for one in lines] == ["b", "c"]
    assert {(one.__dict__["fields"]["duplicate_of"], one.__dict__["fields"]["same_content"]) for one in lines} == {
        ("a", True)
    }


def test_what_an_e_mail_absorbed_shows_from_both_ends(windowed: Callable[..., FlaskClient]) -> None:
    client = windowed()
    for email_id in "abc":
        client.post("/webhook/email", json=payload(email_id, user="ada@example.com"))
    first, second = (client.get(f"/emails/{email_id}").get_json() for email_id in "ab")
    assert (first["state"], first["absorbed"], first["duplicate_of"], first["first_state"]) == (
        "pending",
        2,
        None,
        None,
    )
    assert (second["state"], second["absorbed"], second["duplicate_of"]) == ("absorbed", 0, "a")
    assert (second["first_state"], second["cancelled_at"]) == ("pending", None)
    assert [event["event"] for event in second["timeline"]] == ["received", "absorbed"]
    found = [one["email_id"] for one in client.post("/emails/search", json={"state": "absorbed"}).get_json()["emails"]]
    assert found == ["c", "b"]
    assert client.post("/emails/search", json={"state": "cancelled"}).get_json()["emails"] == []
    assert "emailsvc_absorbed_total 2.0" in client.get("/metrics").get_data(as_text=True)


@ON_SQLITE
@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        ({"dedupe_window_seconds": 0.5}, "dedupe_window_seconds", "must be a whole number"),
        ({"dedupe_window_seconds": -1}, "dedupe_window_seconds", "must be at least 0"),
        ({"dedupe_window_seconds": 86_401}, "dedupe_window_seconds", "must be at most 86400"),
        ({"dedupe_window_seconds": "60"}, "dedupe_window_seconds", "must be a number, not a string"),
        ({"dedupe_key": "k" * 300}, "dedupe_key", "may have at most 255 characters"),
        ({"dedupe_key": ""}, "dedupe_key", "may not be empty"),
        ({"dedupe_key": "a\nb", "dedupe_window_seconds": 5}, "dedupe_key", "may not contain control characters"),
        ({"dedupe_key": "k"}, "dedupe_key", "needs dedupe_window_seconds where DEDUPE_WINDOW_SECONDS is not set"),
        ({"dedupe_key": "k", "send_at": "2090-01-01T00:00:00Z"}, "dedupe_key", "needs dedupe_window_seconds"),
    ],
)
def test_a_bad_window_is_named(client: FlaskClient, changes: dict[str, Any], field: str, detail: str) -> None:
    answer = client.post("/webhook/email", json=payload(**changes)).get_json()
    assert (answer["status"], answer["code"], answer["field"]) == (400, "invalid_field", field)
    assert detail in answer["detail"]


@ON_SQLITE
def test_a_key_may_do_without_a_window_where_one_is_set(windowed: Callable[..., FlaskClient]) -> None:
    for fields, status in (
        ({"dedupe_key": "k"}, 202),
        ({"dedupe_key": "k"}, 200),
        ({"dedupe_window_seconds": 60.0}, 202),
    ):
        email = payload(f"m-{next(SECOND)}", user="ada@example.com", **fields)
        assert windowed().post("/webhook/email", json=email).status_code == status


# Off, it costs nothing


def test_without_windows_the_same_statements_are_sent_as_ever(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: sent.append(" ".join(a[2].split())))
    run = direct.run
    monkeypatch.setattr(
        direct, "run", lambda c, text, values: sent.append(" ".join(text.split())) or run(c, text, values)
    )

    def statements(do: Callable[[], object]) -> list[str]:
        sent.clear()
        do()
        assert not [text for text in sent if "windows" in text or "duplicate_of" in text]
        return [text.split(" ")[0] for text in sent if not text.startswith("BEGIN")]

    postgresql = engine.dialect.name == "postgresql"
    email = new_email()
    assert statements(lambda: outbox.accept(engine, email, config)) == ["WITH" if postgresql else "INSERT"]
    again = ["WITH"] if postgresql else ["INSERT", "INSERT"]
    assert statements(lambda: outbox.accept(engine, email, config)) == again
    batch = [new_email(f"m-{n}") for n in range(2, 30)]
    assert statements(lambda: outbox.accept_many(engine, batch, config)) == ["WITH" if postgresql else "INSERT"]
    made: list[Any] = []
    assert statements(lambda: made.append(claim(engine, config))) == ["WITH"]
    assert statements(lambda: record(engine, config, made[0], SENT, 0)) == ["UPDATE"]
    assert statements(lambda: record(engine, config, made[0], DEFERRED, 1)) == ["UPDATE", "INSERT"]
    assert statements(lambda: outbox.cancel(engine, "m-29")) == ["UPDATE", "INSERT", "INSERT"]


# Many at once


def test_sixty_four_at_once_let_one_through_each_time(engine: Engine, config: Config) -> None:
    """With batches, and first ones cancelled and erased in between. Longer: `python -m tests.benchmarks.windows`."""
    storm = Storm(engine, config, clients=64)
    storm.run(8)
    assert reports.violations(engine, config) == []
    assert min(storm.seen[what] for what in ("accepted", "absorbed", "cancelled")) > 0


def test_the_first_one_is_kept_by_the_database_alone(engine: Engine, config: Config) -> None:
    """Nothing of a window outlives its e-mail."""
    post(engine, config, "a")
    with engine.begin() as connection:
        connection.execute(Email.__table__.delete())  # type: ignore[attr-defined]
    assert rows(engine, Window) == []
