"""Many dead letters by route: what a filter may say, what the first release's scripts say, and actions at a rate."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from emailsvc import outbox, reports
from emailsvc.settings.config import Config
from tests.emails import REJECTED, UNCERTAIN
from tests.integration.test_outbox_bulk import FULL, fail
from tests.webkit import ON_SQLITE, StrictClient

REPLAY, DISCARD = "/stats/dead-letters/replay", "/stats/dead-letters/discard"


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


@pytest.fixture
def letters(engine: Engine, config: Config) -> None:
    """Three of no such user, two of a full mailbox, two that are uncertain."""
    fail(engine, config, "a", "b", "c", result=REJECTED)
    fail(engine, config, "d", "e", result=FULL)
    fail(engine, config, "f", "g", result=UNCERTAIN)


def answered(client: FlaskClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.json
    assert answer.json is not None
    return dict(answer.json)


@ON_SQLITE
@pytest.mark.parametrize("path", [REPLAY, DISCARD])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": -1}, "rate"),
        ({"rate": 1001}, "rate"),
        ({"rate": "5"}, "rate"),
        ({"rate": 5}, "reason"),
        ({"rate": 5, "limit": 10}, "reason"),
        ({"error": "x" * 10_000}, "error"),
        ({"error": ""}, "error"),
        ({"error": "a\nb"}, "error"),
        ({"error": "\0"}, "error"),
        ({"domain": "\0"}, "domain"),
        ({"domain": "x" * 254}, "domain"),
        ({"code": 99}, "code"),
        ({"code": "550"}, "code"),
        ({"ids": []}, "ids"),
        ({"ids": [-1]}, "ids[0]"),
        ({"ids": [2**63]}, "ids[0]"),
        ({"limit": 100_001}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"reason": "odd"}, "reason"),
        ({"page": 1}, "page"),
    ],
)
def test_a_bad_filter_is_named(client: FlaskClient, path: str, body: dict[str, Any], field: str) -> None:
    assert answered(client, path, 400, **body)["field"] == field


@ON_SQLITE
@pytest.mark.parametrize("query", ["code=99", "error=", "domain=", "limit=0", "since=x", "page=2", "cursor=1~1"])
def test_a_bad_query_of_the_groups_is_named(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/stats/dead-letters/groups?{query}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["field"]) == (400, query.partition("=")[0])


def test_what_names_nothing_is_refused_and_a_first_release_s_script_is_not(
    client: FlaskClient, engine: Engine, letters: None
) -> None:
    for body in ({}, {"limit": 5}):
        refused = answered(client, DISCARD, 400, **body)
        assert (refused["code"], refused["field"]) == ("missing_field", "reason")
    assert answered(client, "/stats/dead-letters/delivered", 400)["field"] == "ids"
    assert reports.stats(engine).dead_letters == 7
    assert answered(client, DISCARD, dry_run=True) == {"matching": 7, "uncertain_left_out": 2, "would_discard": 5}
    assert answered(client, REPLAY, limit=2) == {"replayed": 2}
    assert answered(client, REPLAY) == {"replayed": 3}
    assert answered(client, REPLAY, reason="uncertain", until="2090-01-01T00:00:00Z") == {"replayed": 2}


def test_a_filter_chooses_what_is_replayed_and_discarded(client: FlaskClient, engine: Engine, letters: None) -> None:
    listed = client.get("/stats/dead-letters?code=552&error=MAILBOX&domain=example.com").json
    assert listed is not None
    assert [one["email_id"] for one in listed["dead_letters"]] == ["e", "d"]
    would = answered(client, REPLAY, code=552, dry_run=True, limit=1)
    assert (would["matching"], would["would_replay"]) == (2, 1)
    assert answered(client, REPLAY, code=552) == {"replayed": 2}
    assert answered(client, DISCARD, error="no such user", limit=2) == {"discarded": 2}
    uncertain = [one.id for one in reports.dead_letters(engine).dead_letters if one.reason == "uncertain"]
    assert answered(client, "/stats/dead-letters/delivered", ids=[*uncertain, 10**9]) == {"delivered": 2}
    assert answered(client, DISCARD, ids=uncertain) == {"discarded": 0}
    kinds = [(one.kind, one.who, one.done) for one in reports.actions(engine).actions[::-1]]
    assert kinds == [
        ("replayed", "this machine", 2),
        ("discarded", "this machine", 2),
        ("delivered", "this machine", 2),
    ]


def test_an_action_is_shown_and_stopped(client: FlaskClient, engine: Engine, letters: None) -> None:
    begun = answered(client, REPLAY, 202, error="no such user", rate=0.1)
    assert (begun["total"], begun["done"], begun["state"], begun["rate"]) == (3, 0, "running", 0.1)
    outbox.advance(engine)
    running = client.get("/actions?state=running").json
    assert running is not None
    assert [(one["id"], one["done"]) for one in running["actions"]] == [(begun["id"], 1)]
    one = f"/actions/{begun['id']}"
    assert client.get(one).json == running["actions"][0]
    assert answered(client, f"{one}/stop") == {"id": begun["id"], "state": "stopped", "left": 2}
    assert answered(client, f"{one}/stop", 409)["code"] == "already_over"
    for path in ("/actions/999", "/actions/999/stop", "/actions/x"):
        assert client.open(path, method="POST" if path.endswith("stop") else "GET").status_code == 404


def test_discarding_at_a_rate(client: FlaskClient, engine: Engine, letters: None) -> None:
    begun = answered(client, DISCARD, 202, code=552, rate=1000)
    outbox.advance(engine)
    outbox.advance(engine)
    ended = client.get(f"/actions/{begun['id']}").json
    assert ended is not None
    assert (ended["kind"], ended["done"], ended["state"]) == ("discarded", 2, "done")
    assert reports.stats(engine).dead_letters == 5


@pytest.mark.parametrize("text", ["%00", "a%0Ab"])
def test_the_journal_refuses_a_name_that_no_operator_can_have(client: FlaskClient, text: str) -> None:
    answer = client.get(f"/actions?who={text}")

    assert answer.status_code == 400
    assert answer.json is not None
    assert (answer.json["code"], answer.json["field"]) == ("invalid_field", "who")


def test_the_reason_of_a_pause_is_kept_without_addresses(
    client: FlaskClient, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    answered(client, "/delivery/pause", reason="bounces of jane.doe@example.com")

    told = (reports.delivery_state(engine), client.get("/actions").json, [vars(one) for one in caplog.records])
    assert "jane.doe" not in str(told)
    assert all("bounces of j…@example.com" in str(one) for one in told)
