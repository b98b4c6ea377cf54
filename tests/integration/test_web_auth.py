"""Who may: tokens, signatures, this machine, and nobody's browser by surprise."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from emailsvc.intake import signing
from emailsvc.settings.config import Config
from emailsvc.web import ROUTES
from emailsvc.web.contract import Route
from tests.factories import payload
from tests.webkit import BEARER, ON_SQLITE, STRANGER, TOKEN, StrictClient

pytestmark = ON_SQLITE

SECRET = signing.make_secret()
Make = Callable[..., FlaskClient]
OF_SOME_PROXIES = (
    *("Fly-Client-IP", "X-Original-Forwarded-For", "X-Envoy-External-Address", "X-Cluster-Client-IP"),
    "Fastly-Client-IP",
)


@pytest.fixture
def make_client(make_app: Callable[[Config], Flask], make_config: Callable[..., Config]) -> Make:
    def make(**settings: str) -> FlaskClient:
        app = make_app(make_config(**settings))
        app.test_client_class = StrictClient
        return app.test_client()

    return make


def call(client: FlaskClient, route: Route, **kwargs: Any) -> int:
    path = re.sub("{[a-z_]+}", "1", route.path)
    if route.body is not None:
        kwargs["json"] = {"emails": []} if "batch" in path else {}
    return client.open(path, method=route.method, **kwargs).status_code


def basic(password: str = TOKEN) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()}


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    now = int(time.time())
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": signing.sign(secret, "msg_1", now, body),
        "Content-Type": "application/json",
    }


CLIENTS = [route for route in ROUTES if route.access == "client"]
OPERATORS = [route for route in ROUTES if route.access == "operator"]
OPEN = [route for route in ROUTES if route.access == "anyone"]


def name(route: object) -> str:
    return f"{route.method} {route.path}" if isinstance(route, Route) else str(route)


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_with_nothing_configured_this_machine_is_served(make_client: Make, route: Route) -> None:
    client = make_client()
    for address, host in (("127.0.0.1", "localhost:8000"), ("::1", "[::1]:8000"), ("::ffff:127.0.0.1", "127.0.0.1")):
        status = call(client, route, environ_overrides={"REMOTE_ADDR": address}, headers={"Host": host})
        assert status not in (401, 403)


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_with_nothing_configured_no_stranger_is_served_but_on_healthz(make_client: Make, route: Route) -> None:
    client = make_client()
    expected = 200 if route.path == "/healthz" else 403
    assert call(client, route, environ_overrides=STRANGER) == expected
    assert call(client, route, environ_overrides={"REMOTE_ADDR": ""}) == expected
    assert call(client, route, environ_overrides=STRANGER, headers=BEARER) == expected
    for header in ("Forwarded", "X-Forwarded-For", "Via", "X-Real-IP", "X-Forwarded-Host", *OF_SOME_PROXIES):
        assert call(client, route, headers={header: "127.0.0.1"}) == expected
    assert call(client, route, environ_overrides={"SERVER_PROTOCOL": "HTTP/1.0"}) == expected


def test_the_refusal_says_what_to_set(make_client: Make) -> None:
    client = make_client()
    for path in ("/stats", "/nowhere", "/webhook/email"):
        answer = client.get(path, environ_overrides=STRANGER)
        assert answer.status_code == 403
        assert answer.json is not None
        assert answer.json["code"] == "not_configured"
        assert "WEBHOOK_SECRETS or API_TOKENS" in answer.json["detail"]


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "", "[", "127.0.0.1.nip.io"),
        *("evil@localhost", "localhost/evil", "localhost#x", "localhost?x", "localhost:x", "localhost:", "::1"),
        *("localhost:٣", "localhost, evil.example", "localhost:1:2"),
    ],
)
def test_a_name_that_was_pointed_at_this_machine_is_not_served(make_client: Make, host: str) -> None:
    """DNS rebinding: to the browser the page and this service are then one site."""
    answer = make_client().get("/stats", headers={"Host": host})
    assert answer.status_code in (400, 403)


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9999"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_changes_nothing_on_an_open_laptop(make_client: Make, headers: dict[str, str]) -> None:
    client = make_client()
    for path in ("/delivery/pause", "/stats/dead-letters/1/replay", "/stats/dead-letters/replay", "/webhook/email"):
        answer = client.post(path, data=json.dumps(payload()), headers={"Content-Type": "text/plain", **headers})
        assert answer.status_code == 403
        assert answer.json is not None
        assert answer.json["code"] == "cross_site"
    assert client.get("/stats").json["delivery"]["state"] == "running"  # type: ignore[index]


def test_our_own_page_and_curl_may_on_an_open_laptop(make_client: Make) -> None:
    client = make_client()
    assert client.post("/delivery/pause").status_code == 200
    own = {"Origin": "http://localhost:8000", "Host": "localhost:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/delivery/resume", headers=own).status_code == 200
    assert client.post("/delivery/pause", headers={"X-Requested-With": "emailsvc"}).status_code == 200


@pytest.mark.parametrize("route", OPERATORS, ids=name)
def test_operator_routes_take_one_of_the_tokens(make_client: Make, route: Route) -> None:
    client = make_client(api_tokens=f"another-token-of-ours {TOKEN}")
    page = {"X-Requested-With": "emailsvc"}
    assert call(client, route, headers=BEARER, environ_overrides=STRANGER) not in (401, 403)
    assert call(client, route, headers=basic() | page, environ_overrides=STRANGER) not in (401, 403)
    assert call(client, route) == 401
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ä" * 20):
        assert call(client, route, headers={"Authorization": f"Bearer {wrong}"}) == 401
        assert call(client, route, headers=basic(wrong) | page) == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic", "Basic %%%", "Basic ä", "Basic eA==", f"Token {TOKEN}", f"Digest {TOKEN}", "\xff", TOKEN],
)
def test_a_malformed_authorization_is_a_401(make_client: Make, header: str) -> None:
    client = make_client(api_tokens=TOKEN)
    assert client.get("/stats", headers={"Authorization": header}).status_code == 401
    assert client.post("/webhook/email", json=payload(), headers={"Authorization": header}).status_code == 401


def test_a_browser_is_asked_for_a_password_and_a_program_for_a_token(make_client: Make) -> None:
    client = make_client(api_tokens=TOKEN)
    assert client.get("/stats").headers["WWW-Authenticate"].startswith("Basic ")
    assert client.post("/delivery/pause").headers["WWW-Authenticate"].startswith("Bearer ")
    assert client.get("/stats", headers={"Authorization": f"bearer  {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("route", [route for route in OPERATORS if route.method != "GET"], ids=name)
def test_a_remembered_password_is_no_use_to_a_foreign_page(make_client: Make, route: Route) -> None:
    assert call(make_client(api_tokens=TOKEN), route, headers=basic()) == 403


@pytest.mark.parametrize("route", CLIENTS, ids=name)
def test_webhooks_take_a_signature_or_a_token(make_client: Make, route: Route) -> None:
    body = json.dumps(payload() if route.path == "/webhook/email" else {"emails": [payload()]}).encode()
    client = make_client(api_tokens=TOKEN, webhook_secrets=f"{signing.make_secret()},{SECRET}")
    svix = {name.replace("webhook-", "svix-"): value for name, value in signed(body).items()}
    for headers in (signed(body), svix, BEARER | {"Content-Type": "application/json"}):
        answer = client.post(route.path, data=body, headers=headers, environ_overrides=STRANGER)
        assert answer.status_code in (200, 202)
    for headers in (signed(body, signing.make_secret()), signed(body + b" "), {}, basic()):
        assert client.post(route.path, data=body, headers=headers).status_code == 401


def test_with_secrets_alone_a_signature_is_needed_also_on_this_machine(make_client: Make) -> None:
    client = make_client(webhook_secrets=SECRET)
    answer = client.post("/webhook/email", json=payload())
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (401, "unsigned")


def test_a_wrong_token_is_told_also_where_a_signature_would_do(make_client: Make) -> None:
    client = make_client(api_tokens=TOKEN, webhook_secrets=SECRET)
    body = json.dumps(payload()).encode()
    json_type = {"Content-Type": "application/json"}
    wrong = {"Authorization": "Bearer wrong-token-of-somebody"}

    def code(headers: dict[str, str]) -> str:
        answer = client.post("/webhook/email", data=body, headers=headers)
        return str(answer.get_json()["code"])

    assert code(json_type | wrong) == "bad_token"
    assert code(json_type) == "unsigned"
    assert code(json_type | wrong | {"webhook-id": "1"}) == "unsigned"
    assert code(json_type | wrong | {"svix-id": "1"}) == "unsigned"
    assert client.post("/webhook/email", data=body, headers=signed(body) | wrong).status_code == 202


@pytest.mark.parametrize("settings", [{"api_tokens": TOKEN}, {"webhook_secrets": SECRET}], ids=list)
def test_the_body_of_a_stranger_is_not_read(make_client: Make, settings: dict[str, str]) -> None:
    unread = io.BytesIO(b"x" * 100)
    headers = {"Authorization": "Bearer wrong-token-of-somebody", "Content-Type": "application/json"}
    for path in ("/webhook/email", "/webhook/email/batch"):
        answer = make_client(**settings).post(path, input_stream=unread, content_length=100, headers=headers)
        assert (answer.status_code, unread.tell()) == (401, 0)


@pytest.mark.parametrize("route", OPERATORS, ids=name)
def test_with_secrets_alone_operator_routes_stay_on_this_machine(make_client: Make, route: Route) -> None:
    client = make_client(webhook_secrets=SECRET)
    assert call(client, route) not in (401, 403)
    answer = client.open(re.sub("{[a-z_]+}", "1", route.path), method=route.method, environ_overrides=STRANGER)
    assert answer.status_code == 403
    assert answer.json is not None
    assert "API_TOKENS" in answer.json["detail"]


def test_with_tokens_alone_webhooks_need_one(make_client: Make) -> None:
    client = make_client(api_tokens=TOKEN)
    body = json.dumps(payload()).encode()
    for headers in (signed(body), {"Content-Type": "application/json"}):
        answer = client.post("/webhook/email", data=body, headers=headers)
        assert answer.json is not None
        assert (answer.status_code, answer.json["code"]) == (401, "token_required")


@pytest.mark.parametrize("route", OPEN, ids=name)
def test_anyone_may_see_health_and_contract_once_something_is_configured(make_client: Make, route: Route) -> None:
    for settings in ({"api_tokens": TOKEN}, {"webhook_secrets": SECRET}):
        assert call(make_client(**settings), route, environ_overrides=STRANGER) in (200, 503)


def test_a_replayed_request_inside_the_window_is_a_plain_duplicate(make_client: Make) -> None:
    client = make_client(webhook_secrets=SECRET)
    body = json.dumps(payload()).encode()
    headers = signed(body)
    assert [client.post("/webhook/email", data=body, headers=headers).status_code for _ in range(2)] == [202, 200]


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("value", ["", "ä", "\xff\xfe", "9" * 400, ",", "v1", "v1,", "x" * 8000])
def test_broken_signature_headers_are_a_401_and_nothing_worse(make_client: Make, header: str, value: str) -> None:
    client = make_client(webhook_secrets=SECRET)
    body = json.dumps(payload()).encode()
    answer = client.post("/webhook/email", data=body, headers=signed(body) | {header: value})
    assert answer.status_code == 401


def test_failed_logins_are_logged_masked(make_client: Make, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(api_tokens=TOKEN)
    wrong = "wrong-token-secret-enough"
    client.get("/stats", headers={"Authorization": f"Bearer {wrong}"})
    client.get("/stats", headers=basic(wrong))
    records = [record for record in caplog.records if record.getMessage() == "access_denied"]
    assert [record.fields["scheme"] for record in records] == ["bearer", "basic"]  # type: ignore[attr-defined]
    written = str([record.__dict__ for record in records])
    assert "wro…" in written
    assert wrong not in written


def test_preflights_give_nothing_away(make_client: Make) -> None:
    client = make_client(api_tokens=TOKEN)
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/delivery/pause", headers=headers)
    assert "Access-Control-Allow-Origin" not in answer.headers
