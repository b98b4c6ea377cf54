"""What a refused webhook and a request leave behind: a line, a count, an id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event, update

from emailsvc import log
from emailsvc.db.models import Switch
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.settings.config import Config
from emailsvc.web.refused import EXTENSION
from tests.factories import payload
from tests.webkit import BEARER, ON_SQLITE, STRANGER, TOKEN, StrictClient

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


def refused(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if record.getMessage() == "webhook_refused"]


def counted(app: Flask, headers: dict[str, str] | None = None) -> Any:
    app.extensions[EXTENSION].flush()
    return app.test_client().get("/stats", headers=headers).get_json()["refused"]


def test_a_refused_webhook_is_logged_and_counted(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        client.post("/webhook/email", json=payload(f"m-{number}", user="nobody"))
    client.post("/webhook/email", data="hello")
    client.post("/webhook/email", data="{", content_type="application/json")
    client.post("/webhook/email", json=payload())
    assert refused(caplog) == [
        *({"code": "invalid_field", "field": "user", "email_id": f"m-{number}"} for number in range(3)),
        {"code": "not_json", "field": None, "email_id": None},
        {"code": "invalid_json", "field": None, "email_id": None},
    ]
    assert counted(app) == {"invalid_field": 3, "invalid_json": 1, "not_json": 1}
    client.post("/webhook/email", data="hello")
    assert counted(app) == {"invalid_field": 3, "invalid_json": 1, "not_json": 2}
    samples = [
        (sample.labels["code"], sample.value)
        for family in text_string_to_metric_families(client.get("/metrics").get_data(as_text=True))
        for sample in family.samples
        if sample.name == "emailsvc_refused_total"
    ]
    assert samples == [("invalid_field", 3), ("invalid_json", 1), ("not_json", 2)]
    assert "refused: invalid field" in client.get("/stats", headers={"Accept": "text/html"}).get_data(as_text=True)


@ON_SQLITE
def test_each_refused_e_mail_of_a_batch_is_logged_and_counted(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    emails = [payload("m-1"), payload("m-2", subject=7), {"email_id": "m-3"}, 4]
    assert client.post("/webhook/email/batch", json={"emails": emails}).status_code == 200
    assert [(one["code"], one["email_id"]) for one in refused(caplog)] == [
        ("invalid_field", "m-2"),
        ("missing_field", "m-3"),
        ("invalid_field", None),
    ]
    assert counted(app) == {"invalid_field": 2, "missing_field": 1}


@ON_SQLITE
@pytest.mark.parametrize(
    "email",
    [
        payload(user="ada@example.com, bob@example.com"),
        payload() | {"ada@example.com": 1},
        payload(headers={"ada@example.com": "x"}),
        payload("ada@example.com" * 20),
        payload(body=["ada@example.com"]),
    ],
)
def test_no_line_tells_a_recipient(client: FlaskClient, caplog: pytest.LogCaptureFixture, email: object) -> None:
    assert client.post("/webhook/email", json=email).status_code == 400
    assert len(refused(caplog)) == 1
    assert "ada" not in str(refused(caplog))


@ON_SQLITE
def test_other_content_under_a_known_id_is_told_as_a_mismatch_alone(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/webhook/email", json=payload())
    assert client.post("/webhook/email", json=payload(subject="Another")).status_code == 422
    assert client.get("/emails/unknown").status_code == 404
    assert refused(caplog) == []
    assert counted(app) == {}


@ON_SQLITE
def test_a_stranger_is_counted_and_buys_no_statement(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(make_config(api_tokens=TOKEN, max_request_bytes=1024))
    statements: list[str] = []
    engine = app.extensions["emailsvc"].engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    client = app.test_client()
    for _ in range(50):
        assert client.post("/webhook/email", json=payload(), environ_overrides=STRANGER).status_code == 401
    assert client.post("/webhook/email", data="x" * 2000, headers=BEARER).status_code == 415
    assert client.post("/webhook/email", json=payload(body="x" * 2000), headers=BEARER).status_code == 413
    assert statements == []
    assert [one["code"] for one in refused(caplog)] == ["not_json", "too_large"]  # the others are access_denied
    assert counted(app, BEARER) == {"not_json": 1, "token_required": 50, "too_large": 1}


@pytest.fixture
def lines(app: Flask) -> Iterator[Lines]:
    """What has been logged, as JSON."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Collector()
    handler.setFormatter(log.JsonFormatter())
    logger = logging.getLogger("emailsvc")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lambda: [json.loads(line) for line in found]
    logger.setLevel(level)
    logger.removeHandler(handler)


@ON_SQLITE
@pytest.mark.parametrize("given", ["abc", "f058ebd6-02f7-4d3f-942e-904344e8cde5", "A/b+c=_-", "x" * 200])
def test_a_request_keeps_the_id_it_came_with(client: FlaskClient, lines: Lines, given: str) -> None:
    answer = client.post("/webhook/email", data="hello", headers={"X-Request-Id": given})
    assert answer.headers.getlist("X-Request-Id") == [given]
    assert [(line["event"], line["request_id"]) for line in lines()] == [("webhook_refused", given)]


@ON_SQLITE
@pytest.mark.parametrize("given", [None, "", "x" * 201, "a b", "a;b", "ä", "a, b"])
def test_a_request_without_a_fit_id_gets_one(client: FlaskClient, lines: Lines, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    ids = [client.post("/webhook/email", json=payload(), headers=headers).headers["X-Request-Id"] for _ in range(2)]
    assert [len(one) for one in ids] == [32, 32]
    assert ids[0] != ids[1]
    assert [(line["event"], line["request_id"]) for line in lines()] == [("accepted", ids[0]), ("duplicate", ids[1])]


@ON_SQLITE
@pytest.mark.parametrize("path", ["/nowhere", "/stats", "/readyz", "/boom"])
def test_every_answer_has_an_id_also_an_error(app: Flask, path: str) -> None:
    app.add_url_rule("/boom", view_func=lambda: 1 / 0)
    assert app.test_client().get(path).headers["X-Request-Id"]


@ON_SQLITE
def test_outside_a_request_a_line_has_no_id(client: FlaskClient, lines: Lines) -> None:
    client.get("/healthz")
    logging.getLogger("emailsvc").warning("later")
    assert "request_id" not in lines()[-1]


def test_a_pause_does_not_hide_an_outage(client: FlaskClient, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(Switch).values(outage_since=db_now(), outage_reason="421", next_probe_at=db_in(9)))
    outage = client.get("/stats").get_json()["delivery"]
    assert (outage["state"], outage["paused"], outage["outage"]["reason"]) == ("outage", None, "421")
    client.post("/delivery/pause", json={"reason": "moving"})
    both = client.get("/stats").get_json()["delivery"]
    assert (both["state"], both["since"], both["reason"]) == ("paused", both["paused"]["since"], "moving")
    assert both["outage"] == outage["outage"]
    page = client.get("/stats", headers={"Accept": "text/html"}).get_data(as_text=True)
    assert "<bdi>moving</bdi>" in page
    assert "<bdi>421</bdi>" in page
    assert "/delivery/resume" in page
    assert "/delivery/end-outage" in page
