"""`/reports/<provider>` and `/reports/dsn`: documented bodies through the routes, and what is no such body."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable
from email.utils import format_datetime

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from emailsvc import reports
from emailsvc.clock import isoformat, utcnow
from emailsvc.feedback import dsn
from emailsvc.feedback.reference import reference_of
from emailsvc.feedback.routes import OWN, READERS
from emailsvc.intake import signing
from emailsvc.settings.config import Config
from emailsvc.vocabulary import EventName, Status
from tests.emails import UNCERTAIN, accept, claim, record, row
from tests.samples import FILES, REFERENCE, SAMPLES, name_of, spoilt

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ROUTES = sorted(READERS.keys() - {OWN})
AWAY = {"REMOTE_ADDR": "203.0.113.7"}


def secret_of(route: str) -> str:
    return f"the-secret-of-{route}"


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(report_secrets=",".join(f"{route}:{secret_of(route)}" for route in ROUTES))


def post(client: FlaskClient, route: str, raw: bytes, secret: str = "") -> TestResponse:
    given = base64.b64encode(f"any:{secret or secret_of(route)}".encode()).decode()
    headers = {"Authorization": f"Basic {given}", "Content-Type": "text/plain; charset=UTF-8"}
    return client.post(f"/reports/{route}", data=raw, headers=headers, environ_overrides=AWAY)


def sample(name: str, reference: str = REFERENCE) -> bytes:
    """As if it were about an e-mail of this very moment."""
    (path,) = (SAMPLES / name.partition("/")[0]).glob(f"*-{name.partition('/')[2]}.*")
    now = utcnow()
    text = re.sub(r"2026-11-02T[0-9:.]+(?:Z|[+-][0-9:]+)", isoformat(now), path.read_text())
    text = re.sub(r"1793606403(?:\.\d+)?", str(int(now.timestamp())), text)
    text = re.sub(r"(?m)^((?:Last-Attempt-)?Date): .*$", rf"\1: {format_datetime(now)}", text)
    return text.replace(REFERENCE, reference).encode()


BOUNCES = {
    "ses": ("notification-examples-bounce-with-dsn", "smtp; 550 5.1.1 <ann@example.net>: mailbox unavailable"),
    "sendgrid": ("event-webhook-reference-bounce", "550 5.1.1 the mailbox does not exist"),
    "postmark": ("bounce-webhook-hard-bounce", "smtp;550 5.1.1 <ann@example.net> unknown"),
    "mailgun": ("webhook-payloads-failed-permanent", "5.1.1 no such mailbox"),
    "resend": ("webhooks-emails-bounced", "smtp; 550 5.1.1 no such mailbox"),
    "dsn": ("rfc3464-2-returned-headers", "550 5.1.1 <ann@example.net>: Recipient address rejected: no such mailbox"),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_bounce_settles_an_uncertain_e_mail_and_its_words_stand_in_the_timeline(
    route: str, client: FlaskClient, engine: Engine, config: Config
) -> None:
    name, words = BOUNCES[route]
    accept(engine, config)
    record(engine, config, claim(engine, config), UNCERTAIN)
    reference = reference_of(row(engine).id, row(engine).message_id)
    wrong = reference[:-1] + ("0" if reference[-1] != "0" else "1")
    answer = post(client, route, sample(f"{route}/{name}", wrong))
    assert (answer.status_code, answer.json and answer.json["unmatched"], row(engine).status) == (200, 1, Status.FAILED)
    answer = post(client, route, sample(f"{route}/{name}", reference))
    assert answer.json == {"noted": 1, "repeated": 0, "unmatched": 0, "ignored": 0, "settled": 1}
    assert row(engine).status == Status.SENT
    (told,) = (one for one in reports.email(engine, "m-1").timeline if one.event == EventName.REPORTED)
    assert (told.report, told.text) == ("bounced", words)


@pytest.mark.parametrize("route", ROUTES)
def test_a_secret_opens_no_other_route(route: str, client: FlaskClient) -> None:
    other = ROUTES[ROUTES.index(route) - 1]
    raw = sample(f"{route}/{BOUNCES[route][0]}")
    assert post(client, route, raw, secret_of(other)).status_code == 401
    assert post(client, route, raw).status_code == 200


def test_resend_signs_under_the_names_of_svix(
    make_config: Callable[..., Config], make_app: Callable[[Config], Flask]
) -> None:
    secret, raw, now = signing.make_secret(), sample("resend/webhooks-emails-bounced"), int(utcnow().timestamp())
    client = make_app(make_config(report_secrets=f"resend:{secret}")).test_client()
    signature = signing.sign(secret, "msg_1", now, raw)
    headers = {"svix-id": "msg_1", "svix-timestamp": str(now), "svix-signature": signature}
    for body, status in ((raw, 200), (raw + b" ", 401)):
        answer = client.post("/reports/resend", data=body, headers=headers, environ_overrides=AWAY)
        assert answer.status_code == status


def test_no_spoilt_body_is_a_fault_of_the_service(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    for path in FILES:
        for raw in spoilt(path)[:6]:
            answer = post(client, path.parent.name, raw)
            assert answer.status_code in ((200,) if path.parent.name == "dsn" else (200, 400)), (name_of(path), raw)


def test_the_operator_is_shown_the_url_that_amazon_wants_opened(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    raw = sample("ses/http-subscription-confirmation-json")
    assert post(client, "ses", raw).status_code == 200
    (shown,) = (entry for entry in caplog.records if entry.getMessage() == "subscription_to_confirm")
    assert vars(shown)["fields"]["url"].startswith("https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription")
    answer = post(client, "ses", raw.replace(b"https://sns.", b"https://example.org/sns."))
    assert (answer.status_code, answer.json and answer.json["field"]) == (400, "SubscribeURL")


class Endless(io.RawIOBase):
    """A body that somebody goes on sending; ``taken`` is how much of it was read."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.taken += len(buffer)
        return len(buffer)


@pytest.mark.parametrize("announced", [50_000_000, None])
def test_of_a_bounce_mail_of_50_mb_no_more_is_read_than_a_request_may_have(
    announced: int | None, client: FlaskClient, config: Config
) -> None:
    given = base64.b64encode(f"any:{secret_of('dsn')}".encode()).decode()
    body = Endless()
    environ = {**AWAY, "wsgi.input": body, "wsgi.input_terminated": True}
    environ |= {"CONTENT_LENGTH": str(announced)} if announced else {}
    answer = client.post("/reports/dsn", headers={"Authorization": f"Basic {given}"}, environ_overrides=environ)
    assert answer.status_code == 413
    assert body.taken <= config.max_request_bytes + 128 * 1024


def test_a_long_bounce_mail_is_taken_and_its_beginning_counts(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    accept(engine, config)
    raw = sample("dsn/rfc3464-2-returned-message", reference_of(row(engine).id, row(engine).message_id))
    answer = post(client, "dsn", raw + b"x" * (9 * 1024 * 1024))
    assert len(raw) < dsn.MAX_BYTES
    assert answer.json == {"noted": 1, "repeated": 0, "unmatched": 0, "ignored": 0, "settled": 1}
