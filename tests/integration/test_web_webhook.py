"""`POST /webhook/email` and its batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, func, select, text

from emailsvc import outbox
from emailsvc.db.models import Email
from emailsvc.settings.config import Config
from tests.factories import payload
from tests.webkit import ON_SQLITE, StrictClient


class Calls(list[Any]):
    """What was asked of the queue. A wake-up carries nothing, so that it came is all there is to see."""


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def app(make_app: Callable[[Config], Flask], config: Config, calls: Calls) -> Flask:
    app = make_app(config)
    service, wake = app.extensions["emailsvc"], lambda: calls.append("wake")
    reception = outbox.Reception(service.engine, config, wake)
    app.extensions["emailsvc"] = replace(service, wake=wake, reception=reception)
    app.test_client_class = StrictClient
    return app


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count(Email.id))).scalar_one()


def test_the_first_is_accepted_and_the_second_is_a_duplicate(client: FlaskClient, calls: Calls) -> None:
    first = client.post("/webhook/email", json=payload())
    assert (first.status_code, first.json) == (202, {"status": "accepted", "email_id": "m-1", "state": "pending"})
    assert "Idempotent-Replayed" not in first.headers
    second = client.post("/webhook/email", json=payload())
    assert second.status_code == 200
    assert second.headers["Idempotent-Replayed"] == "true"
    told = second.get_json()
    received = datetime.fromisoformat(told.pop("first_received_at"))
    assert abs(datetime.now(UTC) - received) < timedelta(minutes=1)
    assert told == {"status": "duplicate", "email_id": "m-1", "state": "pending", "duplicates": 1}
    assert calls == ["wake", "wake"]  # the first one's may have been lost


def test_the_same_id_with_other_content_is_refused_and_the_first_stands(client: FlaskClient, engine: Engine) -> None:
    client.post("/webhook/email", json=payload())
    answer = client.post("/webhook/email", json=payload(subject="Other"))
    assert answer.status_code == 422
    assert answer.json is not None
    assert (answer.json["code"], answer.json["field"]) == ("payload_mismatch", "email_id")
    with engine.connect() as connection:
        assert connection.execute(select(Email.subject, Email.mismatches)).one() == ("Hello", 1)


def test_a_mismatch_can_be_answered_as_a_duplicate(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config]
) -> None:
    client = make_app(make_config(on_mismatch="accept")).test_client()
    client.post("/webhook/email", json=payload())
    answer = client.post("/webhook/email", json=payload(subject="Other"))
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["status"], answer.json["mismatch"], answer.json["duplicates"]) == ("duplicate", True, 0)
    batch = client.post("/webhook/email/batch", json={"emails": [payload(subject="Third")]})
    assert batch.json is not None
    assert batch.json["results"][0]["status"] == "duplicate"


def test_what_is_for_later_wakes_nobody(client: FlaskClient, calls: Calls) -> None:
    later = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    assert client.post("/webhook/email", json=payload(send_at=later)).status_code == 202
    assert calls == []


BAD = [
    ({"email_id": ""}, "email_id"),
    ({"email_id": "x" * 300}, "email_id"),
    ({"user": "a@b, c@d"}, "user"),
    ({"user": "nobody"}, "user"),
    ({"user": "nobody@"}, "user"),
    ({"subject": "a\r\nBcc: eve@example.com"}, "subject"),
    ({"subject": None}, "subject"),
    ({"subject": "\ud800"}, "subject"),
    ({"body": float("nan")}, "body"),
    ({"body": 5}, "body"),
    ({"headers": {"X-A": "a\nb"}}, "headers.X-A"),
    ({"from": "a@elsewhere.example"}, "from"),
    ({"expire_at": "2030-01-01T00:00:00Z"}, "expire_at"),
]


@ON_SQLITE
@pytest.mark.parametrize(("changes", "field"), BAD, ids=lambda one: str(one)[:40])
def test_bad_input_is_a_400_that_names_the_field_and_leaves_no_row(
    client: FlaskClient, engine: Engine, changes: dict[str, Any], field: str
) -> None:
    answer = client.post("/webhook/email", data=json.dumps(payload() | changes), content_type="application/json")
    assert answer.status_code == 400
    assert answer.mimetype == "application/problem+json"
    assert answer.json is not None
    assert answer.json["field"] == field
    assert rows(engine) == 0


@ON_SQLITE
@pytest.mark.parametrize("name", ["email_id", "user", "subject", "body"])
def test_a_missing_field_is_named(client: FlaskClient, engine: Engine, name: str) -> None:
    incomplete = payload()
    del incomplete[name]
    answer = client.post("/webhook/email", json=incomplete)
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"], answer.json["field"]) == (400, "missing_field", name)
    assert rows(engine) == 0


@ON_SQLITE
@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"[" * 10_000, b'{"state":' * 10_000, b"\xff", b"NaN"])
def test_what_is_not_json_is_a_400(client: FlaskClient, raw: bytes) -> None:
    assert client.post("/webhook/email", data=raw, content_type="application/json").status_code == 400


@ON_SQLITE
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None, "x"]
)
def test_only_json_is_read(client: FlaskClient, engine: Engine, content_type: str | None) -> None:
    answer = client.post("/webhook/email", data=json.dumps(payload()), content_type=content_type)
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (415, "not_json")
    assert rows(engine) == 0


def test_compressed_json_is_not_read(client: FlaskClient) -> None:
    answer = client.post("/webhook/email", json=payload(), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


@ON_SQLITE
@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/cloudevents+json"])
def test_json_by_other_names_is_read(client: FlaskClient, content_type: str) -> None:
    answer = client.post("/webhook/email", data=json.dumps(payload()), content_type=content_type)
    assert answer.status_code == 202


def test_a_request_that_is_too_large_is_refused(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config]
) -> None:
    app = make_app(make_config(max_request_bytes=2048))
    app.test_client_class = StrictClient
    for path in ("/webhook/email", "/webhook/email/batch"):
        answer = app.test_client().post(path, json=payload(body="x" * 3000))
        assert answer.json is not None
        assert (answer.status_code, answer.json["code"]) == (413, "too_large")
        assert "2048" in answer.json["detail"]


@ON_SQLITE
@pytest.mark.parametrize("method", ["get", "put", "delete", "patch"])
def test_other_methods_are_a_405_that_tells_the_right_one(client: FlaskClient, method: str) -> None:
    answer = getattr(client, method)("/webhook/email")
    assert answer.status_code == 405
    assert answer.mimetype == "application/problem+json"
    assert "POST" in answer.headers["Allow"]


def test_an_unknown_path_is_a_404_problem(client: FlaskClient) -> None:
    answer = client.get("/nowhere")
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")
    assert answer.data.endswith(b"}\n")


def test_with_the_database_away_the_answer_is_503_and_when_to_come_back(client: FlaskClient, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE emails RENAME TO gone"))
    if engine.dialect.name == "postgresql":  # there a missing table is an error of ours
        assert client.post("/webhook/email", json=payload()).status_code == 500
        return
    answer = client.post("/webhook/email", json=payload())
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_a_batch_answers_each_item_by_itself(client: FlaskClient, calls: Calls) -> None:
    client.post("/webhook/email", json=payload("known"))
    items = [
        payload("new"),
        payload("bad", user="nobody"),
        payload("known"),
        payload("new"),
        payload("known", subject="Other"),
        payload("emoji", subject="\ud83d"),
        "not an object",
    ]
    answer = client.post("/webhook/email/batch", data=json.dumps({"emails": items}), content_type="application/json")
    assert answer.status_code == 200
    assert answer.json is not None
    results = answer.json["results"]
    assert [result["index"] for result in results] == list(range(7))
    assert [(result["status"], result["email_id"], result["field"]) for result in results] == [
        ("accepted", "new", None),
        ("invalid", None, "user"),
        ("duplicate", "known", None),
        ("duplicate", "new", None),
        ("mismatch", "known", "email_id"),
        ("invalid", None, "subject"),
        ("invalid", None, None),
    ]
    assert [result["code"] for result in results][4:] == ["payload_mismatch", "invalid_field", "invalid_field"]
    assert calls == ["wake", "wake"]  # one for the whole batch


def test_a_batch_is_as_large_as_it_may_be_and_no_larger(client: FlaskClient, engine: Engine) -> None:
    answer = client.post("/webhook/email/batch", json={"emails": [payload(str(n)) for n in range(1001)]})
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (400, "too_many")
    assert rows(engine) == 0
    answer = client.post("/webhook/email/batch", json={"emails": [payload(str(n)) for n in range(1000)]})
    assert answer.json is not None
    assert {result["status"] for result in answer.json["results"]} == {"accepted"}
    assert client.post("/webhook/email/batch", json={"emails": []}).json == {"results": []}


def test_each_webhook_leaves_one_line_without_content_or_address(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "emailsvc.web"):
        client.post("/webhook/email", json=payload())
        client.post("/webhook/email", json=payload())
        client.post("/webhook/email", json=payload(body="Other"))
    assert [record.getMessage() for record in caplog.records] == ["accepted", "duplicate", "mismatch"]
    assert all(record.fields["email_id"] == "m-1" for record in caplog.records)  # type: ignore[attr-defined]
    assert [record.fields.get("duplicates") for record in caplog.records] == [None, 1, 1]  # type: ignore[attr-defined]
    written = str([record.__dict__ for record in caplog.records])
    assert "m-1@" not in written
    assert "Hello" not in written
