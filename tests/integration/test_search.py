"""Finding e-mails by what an operator knows of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, insert

from emailsvc import outbox
from emailsvc.db.models import PRIORITIES, Email
from emailsvc.mail import Outcome, Result
from emailsvc.reports import searching
from emailsvc.settings.config import Config
from emailsvc.vocabulary import State
from tests.emails import REJECTED, SENT, accept, claim, record, row, rows
from tests.webkit import ON_SQLITE, StrictClient

START = datetime(2026, 5, 4, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


def some_row(number: int, state: str, lot: random.Random) -> dict[str, Any]:
    """Times come in pairs, so that the id must tell which is first."""
    status = "cancelled" if state == "absorbed" else state
    at = START + MINUTE * (number // 2)
    sent = at + MINUTE * lot.randrange(50) if status == "sent" else None
    return {
        "email_id": f"m-{number}", "fingerprint": "f", "recipient": lot.choice(["Ada@example.com", "bob@example.com"]),
        "subject": "Hello", "body": "Text", "size": 1, "message_id": f"<{number}@x>", "status": status,
        "priority": lot.randrange(3), "on_uncertain": "hold", "received_at": at, "sent_at": sent,
        "next_attempt_at": at + MINUTE * lot.randrange(50) if status == "pending" else None,
        "claim": "c" if status == "sending" else None, "lease_expires_at": at if status == "sending" else None,
        "last_error": lot.choice(["550 5.1.1 No such user", "552 100% full", "552 100x full"]),
        "duplicate_of": "m-0" if state == "absorbed" else None,
    }  # fmt: skip


@pytest.fixture
def stored(engine: Engine) -> list[Any]:
    """A hundred and fifty in every state, in an order that has nothing to do with it."""
    lot = random.Random(1)
    some = [some_row(number, lot.choice(list(State)), lot) for number in range(150)]
    with engine.begin() as connection:
        connection.execute(insert(Email), some)
    return rows(engine, Email)


def found(client: FlaskClient, **wanted: Any) -> list[str]:
    return [email["email_id"] for page in pages(client, **wanted) for email in page]


def pages(client: FlaskClient, **wanted: Any) -> Iterator[list[dict[str, Any]]]:
    cursor = None
    while True:
        answer = client.post("/emails/search", json=wanted | {"cursor": cursor})
        assert answer.json is not None
        assert answer.status_code == 200, answer.json
        yield answer.json["emails"]
        cursor = answer.json["next_cursor"]
        if cursor is None:
            return


SINCE, UNTIL = START + 20 * MINUTE, START + 55 * MINUTE
TIMES: list[dict[str, datetime]] = [{}, {"since": SINCE}, {"until": UNTIL}, {"since": SINCE, "until": UNTIL}]
MORE: dict[str | None, list[dict[str, str]]] = {
    "failed": [{}, {"error": "no SUCH user"}, {"error": "100%"}],
    "pending": [{}, {"priority": "high"}, {"order": "due"}, {"order": "due", "priority": "low"}],
    None: [{}, {"order": "due"}],
}


def every_search() -> Iterator[dict[str, Any]]:
    for state, user, times in itertools.product([None, *map(str, State)], [None, "ADA@example.com"], TIMES):
        for more in MORE.get(state, [{}]):
            given = {"state": state, "user": user, **times, **more}
            yield {name: value for name, value in given.items() if value is not None}


def expected(stored: list[Any], wanted: dict[str, Any]) -> list[str]:
    due = wanted.get("order") == "due"
    state = "pending" if due else wanted.get("state")

    def fits(row: Any) -> bool:
        at = row.sent_at if state == "sent" else row.received_at
        return (
            state in (None, State.of(row.status, row.duplicate_of))
            and wanted.get("user", row.recipient).lower() == row.recipient.lower()
            and ("since" not in wanted or at >= wanted["since"])
            and ("until" not in wanted or at < wanted["until"])
            and wanted.get("error", "").lower() in row.last_error.lower()
            and PRIORITIES.get(wanted.get("priority", ""), row.priority) == row.priority
        )

    def place(row: Any) -> tuple[datetime, int]:
        return row.next_attempt_at if due else row.sent_at if state == "sent" else row.received_at, row.id

    return [row.email_id for row in sorted(filter(fits, stored), key=place, reverse=not due)]


@pytest.mark.parametrize("few", [True, False])
def test_every_search_finds_what_fits_in_its_order_in_pages(
    client: FlaskClient, stored: list[Any], few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MAX_WALK", 20)
    monkeypatch.setattr(searching, "MAX_SORTED", 1000 if few else 10)
    for wanted in every_search():
        given = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in wanted.items()}
        assert found(client, **given, limit=7) == expected(stored, wanted), wanted


def test_it_tells_what_an_operator_wants_to_know(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, user="ada@example.com")
    record(engine, config, claim(engine, config), REJECTED)
    (email,) = client.post("/emails/search", json={"user": "ada@example.com"}).get_json()["emails"]
    told = {"email_id": "m-1", "user": "ada@example.com", "subject": "Hello", "state": "failed", "attempts": 1}
    assert {name: email[name] for name in told} == told
    assert email["last_error"] == REJECTED.reply
    assert email["next_attempt_at"] is None


def test_an_erased_person_is_not_found(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, user="ada@example.com")
    record(engine, config, claim(engine, config), SENT)
    assert found(client, user="ada@example.com") == ["m-1"]
    outbox.erase(engine, "ada@example.com")
    assert found(client, user="ada@example.com") == []
    (email,) = client.post("/emails/search", json={"state": "sent"}).get_json()["emails"]
    assert (email["user"], email["subject"]) == (None, None)


def test_operators_see_to_whom_it_went_and_its_subject(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, user="ada@example.com")
    record(engine, config, claim(engine, config), REJECTED)
    looked_up = client.post("/emails/lookup", json={"email_ids": ["m-1"]}).get_json()["emails"]
    listed = client.get("/stats/dead-letters").get_json()["dead_letters"]
    for shown in (client.get("/emails/m-1").get_json(), *looked_up, *listed):
        assert (shown["user"], shown["subject"]) == ("ada@example.com", "Hello")


def test_a_timeline_tells_what_the_server_said_to_the_final_dot_and_how_long_it_took(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    accept(engine, config)
    made = claim(engine, config)
    reply = "250 2.0.0 Ok: queued as 4Qxyz"
    outbox.record(engine, made.rows[0], made.token, Result(Outcome.SENT, reply, 250), config, seconds=0.0844)
    sent = client.get("/emails/m-1").get_json()["timeline"][-1]
    assert (sent["event"], sent["text"], sent["seconds"]) == ("sent", reply, 0.084)
    outbox.erase(engine, "m-1@example.com")
    after = row(engine)
    assert (after.reply, after.conversation_seconds) == (None, None)
    assert client.get("/emails/m-1").get_json()["timeline"][-1].keys() == {"at", "event"}


@ON_SQLITE
def test_an_address_is_found_in_any_spelling(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, user="ada@EXÄMPLE.example")
    assert found(client, user="ADA@xn--exmple-cua.example") == ["m-1"]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"user": "ada"}, "user", "needs a local part"),
    ({"user": "a@b\0"}, "user", "control characters"),
    ({"state": "lost"}, "state", "is pending, sending, sent, failed, cancelled or absorbed"),
    ({"since": "yesterday"}, "since", "must be a time with an offset"),
    ({"until": "2030-01-01T00:00:00"}, "until", "must be a time with an offset"),
    ({"since": "2030-01-01T00:00:00Z", "until": "2030-01-01T00:00:00Z"}, "until", "must be later than since"),
    ({"error": "full"}, "error", "goes only with the state failed"),
    ({"error": "full", "state": "sent"}, "error", "goes only with the state failed"),
    ({"error": "x" * 10_000, "state": "failed"}, "error", "may have at most 200 characters"),
    ({"error": "", "state": "failed"}, "error", "may not be empty"),
    ({"error": "a\0", "state": "failed"}, "error", "control characters"),
    ({"priority": "low"}, "priority", "goes only with the state pending"),
    ({"priority": "urgent", "state": "pending"}, "priority", "is high, normal or low"),
    ({"order": "oldest"}, "order", "is newest or due"),
    ({"order": "due", "state": "failed"}, "order", "goes only with the state pending"),
    ({"limit": 0}, "limit", "must be at least 1"),
    ({"limit": 201}, "limit", "must be at most 200"),
    ({"limit": 1.5}, "limit", "must be a whole number"),
    ({"cursor": "x"}, "cursor", "must be the `next_cursor` of a page"),
    ({"recipient": "ada@example.com"}, "recipient", "is not a field"),
]


@ON_SQLITE
@pytest.mark.parametrize(("wanted", "field", "words"), BAD)
def test_a_bad_search_is_named(client: FlaskClient, wanted: dict[str, Any], field: str, words: str) -> None:
    answer = client.post("/emails/search", json=wanted).get_json()
    assert (answer["status"], answer["field"]) == (400, field)
    assert words in answer["detail"]


@ON_SQLITE
def test_a_cursor_leads_on_in_its_own_search_alone(client: FlaskClient, stored: list[Any]) -> None:
    wanted = {"state": "pending", "order": "due"}
    cursor = client.post("/emails/search", json={**wanted, "limit": 1}).get_json()["next_cursor"]
    assert client.post("/emails/search", json={**wanted, "limit": 9, "cursor": cursor}).status_code == 200
    at, number, key = cursor.split("~")
    for others in (
        {"state": "pending"},
        {**wanted, "priority": "low"},
        {**wanted, "user": "ada@example.com"},
        {"state": "sent"},
    ):
        answer = client.post("/emails/search", json={**others, "cursor": cursor}).get_json()
        assert (answer["status"], answer["field"]) == (400, "cursor")
        assert "another search" in answer["detail"]
    for odd in (f"{'9' * 18}~{number}~{key}", f"{at}~{'9' * 18}~{key}"):
        assert client.post("/emails/search", json={**wanted, "cursor": odd}).status_code in (200, 400)


@ON_SQLITE
def test_what_the_paths_of_posts_are_called_may_be_ids_too(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, "search")
    assert client.get("/emails/search").get_json()["email_id"] == "search"
    assert client.options("/emails/search").headers["Allow"] == "OPTIONS, POST"
    assert client.delete("/emails/search").status_code == 200
