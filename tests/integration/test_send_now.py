"""Pending e-mail made due at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, Engine

from emailsvc import outbox
from emailsvc.intake.filters import EmailFilter
from emailsvc.outbox import Idle, expediting
from emailsvc.outbox.transaction import in_transaction
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, REJECTED, SENT, UNCERTAIN, accept, claim, make_due, record, row, token
from tests.webkit import ON_SQLITE, StrictClient


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


def deferred(engine: Engine, config: Config, *ids: str, **fields: Any) -> None:
    for email_id in ids:
        accept(engine, config, email_id, **fields)
        record(engine, config, claim(engine, config), DEFERRED)


def due(engine: Engine, config: Config) -> list[str]:
    """What a claim finds."""
    made = outbox.claim(engine, token(), config)
    if isinstance(made, Idle):
        return []
    outbox.release(engine, made.token, config)
    return [one.email_id for one in made.rows]


def ask(client: FlaskClient, **wanted: Any) -> dict[str, Any]:
    answer = client.post("/emails/send", json=wanted)
    assert answer.status_code == 200, answer.json
    assert answer.json is not None
    return answer.json


def test_a_deferred_one_is_due_at_once_with_the_attempts_it_had(
    app: Flask, client: FlaskClient, engine: Engine, config: Config
) -> None:
    deferred(engine, config, "m-1", "m-2")
    assert due(engine, config) == []
    queued = app.extensions["huey"].pending_count()
    first = client.post("/emails/m-1/send").get_json()
    assert (first["email_id"], first["state"]) == ("m-1", "pending")
    assert app.extensions["huey"].pending_count() == queued + 1, "the workers are woken"
    assert client.post("/emails/m-1/send").get_json() == first, "a second click changes nothing"
    assert due(engine, config) == ["m-1"]
    assert row(engine).attempts == 1


def test_an_id_may_end_like_the_path(client: FlaskClient, engine: Engine, config: Config) -> None:
    deferred(engine, config, "m-1", "m-1/send")
    assert client.post("/emails/m-1/send/send").get_json()["email_id"] == "m-1/send"
    assert due(engine, config) == ["m-1/send"]


def test_what_is_not_sent_now_says_why(client: FlaskClient, engine: Engine, config: Config) -> None:
    for email_id, result in (("sent", SENT), ("failed", REJECTED)):
        accept(engine, config, email_id)
        record(engine, config, claim(engine, config), result)
    accept(engine, config, "doubted", on_uncertain="retry")
    record(engine, config, claim(engine, config), UNCERTAIN)
    accept(engine, config, "in-hand")
    claim(engine, config)
    accept(engine, config, "later", send_at="2090-01-01T00:00:00Z")
    accept(engine, config, "cancelled")
    outbox.cancel(engine, "cancelled")
    before = {name: row(engine, name) for name in ("sent", "failed", "doubted", "in-hand", "later", "cancelled")}
    answers = {name: client.post(f"/emails/{name}/send") for name in (*before, "nobody")}
    assert {name: (answer.status_code, answer.get_json()["code"]) for name, answer in answers.items()} == {
        "sent": (409, "already_sent"),
        "failed": (409, "failed"),
        "doubted": (409, "maybe_sent"),
        "in-hand": (409, "sending"),
        "later": (409, "scheduled"),
        "cancelled": (409, "cancelled"),
        "nobody": (404, "not_found"),
    }
    assert {name: row(engine, name) for name in before} == before


def test_many_are_made_due_and_what_is_left_out_is_counted(client: FlaskClient, engine: Engine, config: Config) -> None:
    deferred(engine, config, "a", "b", "c", user="ada@example.com")
    deferred(engine, config, "other")
    accept(engine, config, "doubted", on_uncertain="retry", user="ada@example.com")
    record(engine, config, claim(engine, config), UNCERTAIN)
    accept(engine, config, "later", send_at="2090-01-01T00:00:00Z", user="ada@example.com")
    accept(engine, config, "due", user="ada@example.com")
    counts = {"matching": 6, "made_due": 3, "already_due": 1, "scheduled": 1, "uncertain_left_out": 1}
    assert ask(client, user="ADA@example.com", dry_run=True) == counts
    assert due(engine, config) == ["due"]
    assert ask(client, user="ADA@example.com", limit=2) == {**counts, "made_due": 2}
    assert len(due(engine, config)) == 3
    assert ask(client, state="pending") == {
        "matching": 7, "made_due": 2, "already_due": 3, "scheduled": 1, "uncertain_left_out": 1,
    }  # fmt: skip


def test_many_are_chosen_by_priority_and_time(client: FlaskClient, engine: Engine, config: Config) -> None:
    deferred(engine, config, "high", priority="high")
    deferred(engine, config, "low", priority="low")
    assert ask(client, state="pending", priority="low")["made_due"] == 1
    assert due(engine, config) == ["low"]
    assert ask(client, since="2090-01-01T00:00:00Z")["matching"] == 0
    assert ask(client, until="2090-01-01T00:00:00Z")["made_due"] == 1


def test_the_backlog_is_not_counted_to_its_end(
    client: FlaskClient, engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expediting, "MAX_COUNTED", 3)
    deferred(engine, config, *"abcde")
    assert ask(client, state="pending") == {
        "matching": 3, "made_due": 5, "already_due": 0, "scheduled": 0, "uncertain_left_out": 0,
    }  # fmt: skip


def test_more_than_a_transaction_takes(
    app: Flask, client: FlaskClient, engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expediting, "CHUNK", 2)
    deferred(engine, config, *"abcde")
    queued = app.extensions["huey"].pending_count()
    assert ask(client, state="pending", dry_run=True)["made_due"] == 5
    assert app.extensions["huey"].pending_count() == queued
    assert ask(client, state="pending")["made_due"] == 5
    assert app.extensions["huey"].pending_count() == queued + 1, "the workers are woken"


def change_one(engine: Engine, config: Config, how: str) -> None:
    make_due(engine)
    if how == "cancelled":
        outbox.cancel(engine, "m-1")
        return
    made = claim(engine, config)
    if how == "deferred again":
        record(engine, config, made, DEFERRED)
        outbox.release(engine, made.token, config)


@pytest.mark.parametrize("meanwhile", ["claimed", "cancelled", "deferred again"])
def test_what_becomes_of_one_while_many_are_made_due_stands(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    deferred(engine, config, "m-1", "m-2")
    transactions = 0

    def late(engine: Engine, work: Callable[[Connection], int]) -> int:
        nonlocal transactions
        transactions += 1
        if transactions == 2:  # the first writes the journal
            change_one(engine, config, meanwhile)
        return in_transaction(engine, work)

    monkeypatch.setattr(expediting, "in_transaction", late)
    outbox.send_many_now(engine, EmailFilter(user="m-1@example.com"))
    expected = {"claimed": ("sending", 1), "cancelled": ("cancelled", 1), "deferred again": ("pending", 2)}
    assert (row(engine).status, row(engine).attempts) == expected[meanwhile]


@ON_SQLITE
@pytest.mark.parametrize(
    ("wanted", "code", "field"),
    [
        ({}, "missing_field", "state"),
        ({"limit": 5}, "missing_field", "state"),
        ({"state": "failed"}, "invalid_field", "state"),
        ({"state": "failed", "error": "full"}, "invalid_field", "state"),
        ({"error": "full"}, "invalid_field", "error"),
        ({"priority": "low"}, "invalid_field", "priority"),
        ({"user": "ada"}, "invalid_field", "user"),
        ({"state": "pending", "limit": 0}, "invalid_field", "limit"),
        ({"state": "pending", "limit": 10_001}, "invalid_field", "limit"),
        ({"state": "pending", "dry_run": "yes"}, "invalid_field", "dry_run"),
        ({"state": "pending", "order": "due"}, "unknown_field", "order"),
    ],
)
def test_a_bad_choice_is_named(client: FlaskClient, wanted: dict[str, Any], code: str, field: str) -> None:
    answer = client.post("/emails/send", json=wanted).get_json()
    assert (answer["status"], answer["code"], answer["field"]) == (400, code, field)


def test_the_journal_tells_of_it_without_an_address(client: FlaskClient, engine: Engine, config: Config) -> None:
    deferred(engine, config, "m-1", user="ada@example.com")
    deferred(engine, config, "m-2", "m-3")
    client.post("/emails/m-1/send")
    client.post("/emails/m-1/send")
    ask(client, user="m-2@example.com", since="2020-01-01T00:00:00Z")
    ask(client, user="m-2@example.com")
    ask(client, user="m-3@example.com", dry_run=True)
    told = client.get("/actions").get_json()["actions"]
    assert [(one["kind"], one["done"], one["filter"]) for one in told] == [
        ("made_due", 1, {"user": "m…@example.com", "since": "2020-01-01T00:00:00Z", "limit": 1000}),
        ("made_due", 1, {"email_id": "m-1"}),
    ]


@ON_SQLITE
def test_nothing_named_is_fine_for_a_dry_run(client: FlaskClient) -> None:
    assert ask(client, dry_run=True)["matching"] == 0
