"""`POST /reports`: who may, what is taken, and what nobody can do with it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from emailsvc import reports
from emailsvc.clock import utcnow
from emailsvc.db.models import StoredReport
from emailsvc.feedback.reference import reference_of
from emailsvc.intake import signing
from emailsvc.settings.config import Config
from tests.emails import UNCERTAIN, accept, claim, record, row, rows

PASSWORD = "0123456789abcdef"
SECRET = signing.make_secret()
TOKEN = "an-operators-token-0001"
AWAY = {"environ_overrides": {"REMOTE_ADDR": "203.0.113.7"}}


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(report_secrets=f"mine:{PASSWORD},mine:{SECRET}")


def basic(password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"any:{password}".encode()).decode()}


def post(client: FlaskClient, body: Any, headers: dict[str, str] | None = None) -> TestResponse:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/reports", data=raw, headers=basic() if headers is None else headers, **AWAY)


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    now = int(utcnow().timestamp())
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": signing.sign(secret, "msg_1", now, body),
    }


def an_event(engine: Engine, event: str = "delivered", **told: Any) -> dict[str, Any]:
    found = row(engine)
    return {"event": event, "reference": reference_of(found.id, found.message_id)} | told


def test_one_event_settles_an_uncertain_e_mail_and_all_is_told_of_it(
    client: FlaskClient, engine: Engine, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), UNCERTAIN)
    caplog.set_level(logging.INFO)
    answer = post(client, an_event(engine, at="2090-01-01T00:00:00Z"))
    assert answer.json == {"noted": 0, "repeated": 0, "unmatched": 1, "ignored": 0, "settled": 0}
    answer = post(client, an_event(engine, text="550 5.1.1 <ada@example.com>: no\r\n such user", event="bounced"))
    assert (answer.status_code, answer.json) == (
        200, {"noted": 1, "repeated": 0, "unmatched": 0, "ignored": 0, "settled": 1},
    )  # fmt: skip
    assert [record.getMessage() for record in caplog.records if record.name != "werkzeug"] == [
        "reports_unmatched", "reported", "settled",
    ]  # fmt: skip
    assert "ada@" not in str([vars(record) for record in caplog.records])
    stats = reports.stats(engine)
    assert (stats.sent, stats.bounced, stats.settled, stats.unmatched_reports) == (1, 1, 1, 1)


def test_metrics_tell_the_same(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config)
    post(client, [an_event(engine), an_event(engine, "complained"), {"event": "delivered", "email_id": "none"}])
    shown = client.get("/metrics").text
    for name in ("delivered", "complained", "settled", "unmatched_reports"):
        assert f"emailsvc_{name}_total 1.0" in shown
    assert "emailsvc_bounced_total 0.0" in shown


def test_up_to_a_thousand_events_are_taken_at_once(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config)
    assert post(client, [an_event(engine)] * 1000).json["repeated"] == 999
    refused = post(client, [an_event(engine)] * 1001)
    assert (refused.status_code, refused.json["code"]) == (400, "too_many")
    assert post(client, []).json["noted"] == 0


def test_a_million_events_are_refused(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config)
    million = b"[" + b",".join([b'{"event":"x","email_id":"m-1"}'] * 300_000) + b"]"
    assert (post(client, million).status_code, rows(engine, StoredReport)) == (400, [])
    assert post(client, million + b" " * 2_000_000).status_code == 413


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "invalid_json", None),
        (b"nonsense", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"event": "delivered", "email_id": "\\ud800"}', "invalid_field", "email_id"),
        ([1], "invalid_field", "[0]"),
        ({}, "missing_field", "event"),
        ({"event": "delivered"}, "missing_field", "reference"),
        ([{"event": "delivered", "email_id": "m-1"}, {"event": "delivered"}], "missing_field", "[1].reference"),
        ({"event": "delivered", "email_id": "m-1", "mail": 1}, "unknown_field", "mail"),
        ({"event": "delivered", "email_id": "m-1", "kind": "warm"}, "invalid_field", "kind"),
        ({"event": "delivered", "email_id": "m-1", "at": "yesterday"}, "invalid_field", "at"),
        ({"event": "delivered", "email_id": "m-1", "at": "2026-01-01T00:00:00"}, "invalid_field", "at"),
        ({"event": "", "email_id": "m-1"}, "invalid_field", "event"),
        ({"event": "delivered", "email_id": 7}, "invalid_field", "email_id"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_is_no_event_is_refused_and_the_field_named(
    client: FlaskClient, engine: Engine, config: Config, body: Any, code: str, field: str | None
) -> None:
    accept(engine, config)
    answer = post(client, body)
    assert (answer.status_code, answer.json["code"], answer.json.get("field")) == (400, code, field)
    assert rows(engine, StoredReport) == []


@pytest.mark.parametrize("at", ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_event_of_another_time_is_of_no_e_mail(client: FlaskClient, engine: Engine, config: Config, at: str) -> None:
    accept(engine, config)
    assert post(client, an_event(engine, at=at)).json["unmatched"] == 1
    assert row(engine).status == "pending"


# who may


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_body_may_call_itself_anything(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config)
    for kind in ("text/plain; charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"):
        assert post(client, an_event(engine), basic() | {"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_signature_is_as_good_as_the_password(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config)
    body = json.dumps(an_event(engine)).encode()
    assert post(client, body, signed(body)).status_code == 200
    for headers in (signed(body + b" "), signed(body, signing.make_secret()), {"webhook-id": "msg_1"}):
        assert post(client, body, headers).status_code == 401


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "headers",
    [{}, basic("wrong-wrong-wrong"), basic(""), {"Authorization": "Basic !"}, {"Authorization": f"Bearer {PASSWORD}"},
     {"Authorization": "Digest x"}, basic("é" * 16)],
    ids=lambda headers: str(headers.get("Authorization"))[:12],
)  # fmt: skip
def test_without_the_secret_nothing_is_told_and_basic_is_asked_for(
    client: FlaskClient, engine: Engine, config: Config, headers: dict[str, str]
) -> None:
    accept(engine, config)
    answer = post(client, an_event(engine), headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="emailsvc"')
    local = client.post("/reports", json=an_event(engine), headers=headers)
    assert local.status_code == 401, "nor is this machine trusted"
    assert (rows(engine, StoredReport), row(engine).status) == ([], "pending")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_operator_may_tell_too(make_app: Callable[[Config], Flask], make_config: Callable[..., Config]) -> None:
    config = make_config(report_secrets=f"mine:{PASSWORD}", operator_tokens=f"alice:{TOKEN}", api_tokens="a" * 16)
    app = make_app(config)
    accept(app.extensions["emailsvc"].engine, config)
    event = {"event": "delivered", "email_id": "m-1"}
    client = app.test_client()
    assert post(client, event, {"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert post(client, event, {"Authorization": "Bearer " + "a" * 16}).status_code == 401
    assert post(client, event, basic(TOKEN)).status_code == 401, "a browser would send it by itself"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("tokens", [{}, {"api_tokens": "a" * 16}])
def test_off_no_route_is_open(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], tokens: dict[str, str]
) -> None:
    client = make_app(make_config(**tokens)).test_client()
    for headers in ({}, basic(), {"Authorization": "Bearer " + "a" * 16}):
        answer = client.post("/reports", json={"event": "delivered", "email_id": "m-1"}, headers=headers)
        assert (answer.status_code, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_other_routes_stay_closed_to_strangers(client: FlaskClient, config: Config) -> None:
    for path in ("/stats", "/webhook/email", "/emails/m-1"):
        assert client.get(path, **AWAY).status_code in (403, 405)
    assert client.get("/stats", headers=basic(), **AWAY).status_code == 403
