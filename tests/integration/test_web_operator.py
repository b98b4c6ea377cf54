"""What operators see and do."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, text

from emailsvc import outbox
from emailsvc.settings.config import Config
from tests.emails import OUTAGE, accept, claim, record
from tests.factories import payload
from tests.webkit import BEARER, ON_SQLITE, STRANGER, TOKEN, StrictClient


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


def dead_letter(client: FlaskClient, engine: Engine, email_id: str = "m-1", reason: str = "uncertain") -> int:
    """An e-mail that was given up, as the tables show it."""
    client.post("/webhook/email", json=payload(email_id, user="ada@example.com"))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE emails SET status = 'failed', next_attempt_at = NULL WHERE email_id = :id"), {"id": email_id}
        )
        return int(
            connection.execute(
                text(
                    "INSERT INTO dead_letters (email, reason, error, attempts, created_at) "
                    "SELECT id, :reason, '<b>no reply</b>', 1, :now FROM emails WHERE email_id = :id RETURNING id"
                ),
                {"id": email_id, "reason": reason, "now": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")},
            ).scalar_one()
        )


IDS = ["m-1", "a/b", "/a", "a//b", "ü ✓", "a?b#c", "%2F", "..", "a;b", " ", "lookup", "+", "a\\b", "x" * 255]


@ON_SQLITE
@pytest.mark.parametrize("email_id", IDS)
def test_an_email_is_found_by_whatever_its_id_is(client: FlaskClient, email_id: str) -> None:
    client.post("/webhook/email", json=payload(email_id, user="ada@example.com"))
    path = f"/emails/{quote(email_id, safe='')}"
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["email_id"], answer.json["state"]) == (email_id, "pending")
    assert [event["event"] for event in answer.json["timeline"]] == ["received"]
    assert client.delete(path).json == {"email_id": email_id, "state": "cancelled"}


@ON_SQLITE
@pytest.mark.parametrize(
    "path", ["/emails/nobody", "/emails/%00", "/emails/a%0Ab", "/emails/%FF", "/emails/" + "x" * 5000]
)
def test_an_unknown_id_is_a_404(client: FlaskClient, path: str) -> None:
    for answer in (client.get(path), client.delete(path)):
        assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")


def test_cancelling_twice_answers_the_same_and_too_late_says_why(client: FlaskClient, engine: Engine) -> None:
    client.post("/webhook/email", json=payload())
    assert [client.delete("/emails/m-1").status_code for _ in range(2)] == [200, 200]
    dead_letter(client, engine, "order-2")
    answer = client.delete("/emails/order-2")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (409, "failed")


def test_many_are_looked_up_at_once(client: FlaskClient) -> None:
    client.post("/webhook/email", json=payload("1"))
    client.post("/webhook/email", json=payload("2"))
    answer = client.post("/emails/lookup", json={"email_ids": ["2", "nobody", "1", "2"]})
    assert answer.json is not None
    assert [email["email_id"] for email in answer.json["emails"]] == ["2", "1"]
    assert answer.json["missing"] == ["nobody"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "email_ids"), ({"email_ids": ["x"] * 1001}, "email_ids"), ({"email_ids": ["a", "\0"]}, "email_ids[1]"),
     ({"email_ids": [5]}, "email_ids[0]"), ({"email_ids": [], "x": 1}, "x")],
)  # fmt: skip
def test_a_bad_look_up_is_named(client: FlaskClient, body: object, field: str) -> None:
    answer = client.post("/emails/lookup", json=body)
    assert answer.json is not None
    assert (answer.status_code, answer.json["field"]) == (400, field)


RUNNING = {"state": "running", "since": None, "reason": None, "paused": None, "outage": None}


def test_stats_are_json_for_curl_and_a_page_for_a_browser(client: FlaskClient) -> None:
    client.post("/webhook/email", json=payload())
    client.post("/webhook/email", json=payload())
    stats = client.get("/stats", headers={"Accept": "*/*"}).json
    assert stats is not None
    assert (stats["received"], stats["duplicates"], stats["pending"], stats["dead_letters"]) == (1, 1, 1, 0)
    assert stats["delivery"] == RUNNING
    page = client.get("/stats", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.mimetype == "text/html"
    shown = re.findall(r'id="total-(\w+)"[^>]*>(?:<a[^>]*>)?([0-9,]+)<', page.get_data(as_text=True))
    assert {name: int(number) for name, number in shown}.items() <= stats.items()
    assert len(shown) == 10


def test_dead_letters_come_in_pages_newest_first(client: FlaskClient, engine: Engine) -> None:
    numbers = [dead_letter(client, engine, str(n)) for n in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/stats/dead-letters?limit=2{cursor and '&cursor=' + cursor}").json
        assert page is not None
        seen += [letter["id"] for letter in page["dead_letters"]]
        cursor = page["next_cursor"]
    assert seen == numbers[::-1]


def test_dead_letters_are_chosen_by_reason_time_and_resolution(client: FlaskClient, engine: Engine) -> None:
    first = dead_letter(client, engine, "1", "rejected")
    second = dead_letter(client, engine, "2", "uncertain")
    client.delete(f"/stats/dead-letters/{first}")

    def listed(query: str) -> list[int]:
        answer = client.get(f"/stats/dead-letters?{query}").json
        assert answer is not None
        return [letter["id"] for letter in answer["dead_letters"]]

    assert (listed(""), listed("resolved=1"), listed("reason=rejected")) == ([second], [first], [])
    assert (listed("since=2001-01-01T00:00:00Z"), listed("until=2001-01-01T00:00:00Z")) == ([second], [])


@ON_SQLITE
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("reason=bad", "reason"),
        ("since=yesterday", "since"),
        ("until=2030-01-01", "until"),
        ("resolved=2", "resolved"),
        ("cursor=x", "cursor"),
        ("cursor=2030-01-01T00:00:00Z~1", "cursor"),
        ("limit=1&limit=2", "limit"),
        ("page=2", "page"),
        ("limit=", "limit"),
        ("reason=null", "reason"),
    ],
)
def test_a_bad_query_is_named(client: FlaskClient, query: str, field: str) -> None:
    answer = client.get(f"/stats/dead-letters?{query}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["field"]) == (400, field)


@ON_SQLITE
@pytest.mark.parametrize(
    ("method", "action", "resolution", "state"),
    [
        ("POST", "/replay", "replayed", "pending"),
        ("POST", "/delivered", "delivered", "sent"),
        ("DELETE", "", "discarded", "failed"),
    ],
)
def test_a_dead_letter_is_resolved_and_a_second_click_changes_nothing(
    client: FlaskClient, engine: Engine, method: str, action: str, resolution: str, state: str
) -> None:
    number = dead_letter(client, engine)
    for _ in range(2):
        answer = client.open(f"/stats/dead-letters/{number}{action}", method=method)
        assert answer.json == {"id": number, "email_id": "m-1", "resolution": resolution}
    email = client.get("/emails/m-1").json
    assert email is not None
    assert email["state"] == state
    other = client.delete(f"/stats/dead-letters/{number}")
    assert other.status_code == (200 if resolution == "discarded" else 409)


@ON_SQLITE
@pytest.mark.parametrize("number", ["999", "0", "9" * 19, "9223372036854775807", "9" * 50, "x", "-1", "١"])
def test_an_unknown_dead_letter_is_a_404(client: FlaskClient, number: str) -> None:
    assert client.post(f"/stats/dead-letters/{number}/replay").status_code == 404
    assert client.post(f"/stats/dead-letters/{number}/delivered").status_code == 404
    assert client.delete(f"/stats/dead-letters/{number}").status_code == 404


def test_erased_content_is_not_sent_again(client: FlaskClient, engine: Engine) -> None:
    number = dead_letter(client, engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE emails SET scrubbed_at = received_at"))
    answer = client.post(f"/stats/dead-letters/{number}/replay")
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (409, "content_gone")


def test_many_are_sent_again_after_a_dry_run(client: FlaskClient, engine: Engine) -> None:
    for n in range(3):
        dead_letter(client, engine, str(n), "rejected" if n else "uncertain")
    choice = {"reason": "rejected", "since": "2001-01-01T00:00:00Z"}
    assert client.post("/stats/dead-letters/replay", json=choice | {"dry_run": True}).json == {
        "replayed": 2, "matching": 2, "would_replay": 2, "uncertain_left_out": 0, "content_gone": 0,
    }  # fmt: skip
    assert client.post("/stats/dead-letters/replay", json=choice | {"limit": 1}).json == {"replayed": 1}
    assert client.post("/stats/dead-letters/replay", json={}).json == {"replayed": 1}
    assert client.post("/stats/dead-letters/replay", json={"reason": "uncertain"}).json == {"replayed": 1}
    assert client.post("/stats/dead-letters/replay", json={"reson": "rejected"}).status_code == 400
    assert client.post("/stats/dead-letters/replay").status_code == 415


def test_a_bad_choice_or_number_is_answered_with_what_is_allowed(client: FlaskClient) -> None:
    def detail(**changes: Any) -> str:
        answer = client.post("/stats/dead-letters/replay", json=changes)
        assert answer.json is not None
        assert answer.status_code == 400
        return str(answer.json["detail"])

    assert detail(reason="foo") == "reason is rejected, exhausted, expired, uncertain or unreachable."
    assert detail(limit=1.5) == "limit must be a whole number."
    assert detail(limit=0) == "limit must be at least 1."
    assert detail(limit=100_001) == "limit must be at most 100000."
    assert detail(rate=0) == "rate must be at least 0.1."


def test_words_of_digits_alone_are_words(client: FlaskClient) -> None:
    assert client.get("/stats/dead-letters?error=550&domain=1").status_code == 200


def test_a_bad_query_is_answered_with_what_is_allowed(client: FlaskClient) -> None:
    def detail(query: str) -> str:
        answer = client.get(f"/stats/dead-letters?{query}")
        assert answer.json is not None
        assert (answer.status_code, answer.json["code"]) == (400, "invalid_field")
        return str(answer.json["detail"])

    assert detail("limit=201") == "limit must be at most 200."
    assert detail("cursor=x") == "cursor must be the `next_cursor` of a page."
    assert detail("since=yesterday") == "since must be a time with an offset, such as 2030-01-31T08:00:00Z."
    assert detail("limit=1&limit=2") == "limit must be a number, not an array."


def test_delivery_is_paused_and_resumed(client: FlaskClient) -> None:
    paused = client.post("/delivery/pause", json={"reason": "moving house"}).json
    assert paused is not None
    assert (paused["state"], paused["reason"]) == ("paused", "moving house")
    assert client.post("/delivery/resume").json == {
        "state": "running",
        "since": None,
        "reason": None,
        "paused": None,
        "outage": None,
    }
    paused = client.post("/delivery/pause").json
    assert paused is not None
    assert paused["state"] == "paused"
    assert client.post("/delivery/pause", json={"reason": "a\0"}).status_code == 400
    assert client.post("/delivery/pause", data="reason=x").status_code == 415


def test_an_outage_is_ended(client: FlaskClient, engine: Engine, config: Config, app: Flask) -> None:
    accept(engine, config)
    record(engine, config, claim(engine, config), OUTAGE)
    assert client.get("/stats").get_json()["delivery"]["reason"] == OUTAGE.reply
    assert 'data-do="POST /delivery/end-outage"' in client.get("/stats", headers={"Accept": "text/html"}).text
    queued = app.extensions["huey"].pending_count()
    assert client.post("/delivery/end-outage").json == {
        "state": "running",
        "since": None,
        "reason": None,
        "paused": None,
        "outage": None,
    }
    assert app.extensions["huey"].pending_count() == queued + 1, "the workers are woken"
    assert outbox.may_start(engine)
    again = client.post("/delivery/end-outage")
    assert (again.status_code, again.json) == (
        200,
        RUNNING,
    )
    assert "end-outage" not in client.get("/stats", headers={"Accept": "text/html"}).text


def test_readiness_gives_details_to_operators_alone(
    make_app: Callable[[Config], Flask], make_config: Callable[..., Config]
) -> None:
    app = make_app(make_config(api_tokens=TOKEN))
    app.test_client_class = StrictClient
    client = app.test_client()
    stranger = client.get("/readyz", environ_overrides=STRANGER)
    assert (stranger.status_code, stranger.get_json()["code"]) == (503, "not_ready")
    assert "problems" not in stranger.get_json()
    assert "worker" in client.get("/readyz", headers=BEARER).get_json()["problems"][0]
    outbox.heartbeat(app.extensions["emailsvc"].engine, "worker-1")
    assert client.get("/readyz", environ_overrides=STRANGER).get_json() == {"status": "ready"}


def test_answers_are_not_cached_framed_or_guessed(client: FlaskClient) -> None:
    for path in ("/stats", "/healthz", "/nowhere"):
        headers = client.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_head_answers_like_get_without_a_body(client: FlaskClient) -> None:
    answer = client.head("/stats")
    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"", "application/json")
