"""`GET /stats/hours`: what happened in each hour, whether it is rolled up or not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, update

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db.counts import HOUR, hour_of
from emailsvc.db.models import Attempt, DeadLetter, Email, Switch
from emailsvc.feedback.events import heard
from emailsvc.outbox import rolling
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, REJECTED, SENT, accept, claim, record, rows, switch
from tests.factories import new_email
from tests.webkit import ON_SQLITE, StrictClient

NOTHING = dict.fromkeys(
    (
        "received",
        "duplicates",
        "mismatches",
        "sent",
        "failed",
        "cancelled",
        "absorbed",
        "failed_attempts",
        "delivered",
        "bounced",
        "complained",
    ),
    0,
)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


def by_hour(client: FlaskClient, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"/stats/hours{query}")
    assert answer.status_code == 200, answer.text
    hours: list[dict[str, Any]] = answer.get_json()["hours"]
    return hours


def busy(hours: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Those in which something happened, and of them what did."""
    told = [{name: value for name, value in hour.items() if name != "hour" and value} for hour in hours]
    return [hour for hour in told if hour]


def happen(engine: Engine, config: Config) -> None:
    """Something of each kind, now."""
    accept(engine, config, *"abcde")
    made = claim(engine, config)
    for number, result in enumerate((SENT, DEFERRED, REJECTED)):
        record(engine, config, made, result, number)
    outbox.release(engine, made.token, config)
    outbox.cancel(engine, "e")
    accept(engine, config, "a", "a")
    outbox.accept(engine, new_email("a", subject="Other"), config)
    accept(engine, config, "f", "g", user="ada@example.com", dedupe_key="order-1", dedupe_window_seconds=600)
    outbox.hear(engine, [heard(word, email_id="a") for word in ("delivered", "bounced", "complained")])


HAPPENED = {
    "received": 7, "duplicates": 2, "mismatches": 1, "sent": 1, "failed": 1, "cancelled": 1, "absorbed": 1,
    "failed_attempts": 2, "delivered": 1, "bounced": 1, "complained": 1,
}  # fmt: skip


def move_back(engine: Engine, hours: int) -> None:
    """All that rows tell of happened so much earlier, and nobody has rolled up since."""
    back = timedelta(hours=hours)
    with engine.begin() as connection:
        for column in (Email.received_at, Email.sent_at, Attempt.at, DeadLetter.created_at):
            for found in rows(engine, column.class_):
                moment = getattr(found, column.key)
                if moment is not None:
                    row = update(column.class_).where(column.class_.id == found.id)
                    connection.execute(row.values({column: moment - back}))
        marks = {Switch.rolled_up_to: switch(engine).rolled_up_to - back, Switch.letters_rolled_up_to: None}
        connection.execute(update(Switch).values(marks))


def test_it_tells_the_last_day_up_to_now(client: FlaskClient) -> None:
    before, hours, after = hour_of(utcnow()), by_hour(client), hour_of(utcnow())
    moments = [datetime.fromisoformat(hour.pop("hour")) for hour in hours]
    assert moments[-1] in (before, after)
    assert moments == [moments[-1] - ago * HOUR for ago in reversed(range(24))]
    assert hours == [NOTHING] * 24


def test_each_kind_is_told_before_and_after_it_is_rolled_up(
    client: FlaskClient, engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = f"?since={hour_of(utcnow()):%Y-%m-%dT%H:%M:%SZ}"
    outbox.sweep(engine, config)  # the counters begin
    happen(engine, config)
    assert added(by_hour(client, since)) == HAPPENED
    for name in ("MARGIN_SECONDS", "SETTLED_SECONDS", "MIN_STEP_SECONDS"):
        monkeypatch.setattr(rolling, name, 0.0)
    outbox.sweep(engine, config)
    assert added(by_hour(client, since)) == HAPPENED
    accept(engine, config, "h")
    assert added(by_hour(client, since))["received"] == 8


def added(hours: list[dict[str, Any]]) -> dict[str, int]:
    """The whole test may lie in two hours."""
    return {name: sum(hour[name] for hour in hours) for name in NOTHING}


def test_what_nobody_has_rolled_up_for_hours_stands_in_its_own(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    accept(engine, config, "a", "b")
    record(engine, config, claim(engine, config), SENT)
    move_back(engine, 3)
    accept(engine, config, "c")
    record(engine, config, claim(engine, config), REJECTED)
    hours = by_hour(client)
    assert busy(hours)[0] == {"received": 2, "sent": 1}
    assert added(hours) == NOTHING | {"received": 3, "sent": 1, "failed": 1, "failed_attempts": 1}
    outbox.roll_up(engine)
    assert by_hour(client)[:-1] == hours[:-1]


def test_what_a_count_of_the_rows_found_lacking_is_of_no_hour(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    """As after an upgrade from a release that did not count what it gave up."""
    accept(engine, config, "a", "b")
    record(engine, config, claim(engine, config), REJECTED)
    move_back(engine, 48)
    outbox.sweep(engine, config)
    assert reports.stats(engine).failed == 1
    assert by_hour(client) != []
    assert added(by_hour(client)) == NOTHING


@ON_SQLITE
@pytest.mark.parametrize(
    ("query", "field"),
    [("since=yesterday", "since"), ("until=2030-01-01T00:00:00Z", "until"), ("since=1", "since")],
)  # fmt: skip
def test_a_bad_query_is_named(client: FlaskClient, query: str, field: str) -> None:
    answer = client.get(f"/stats/hours?{query}")
    assert (answer.status_code, answer.get_json()["field"]) == (400, field)


@ON_SQLITE
@pytest.mark.parametrize("since", ["2020-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00%2B23:59"])
def test_it_goes_back_31_days_at_most(client: FlaskClient, since: str) -> None:
    assert len(by_hour(client, f"?since={since}")) == 31 * 24 + 1


@ON_SQLITE
def test_of_hours_that_are_still_to_come_there_are_none(client: FlaskClient) -> None:
    assert by_hour(client, "?since=9999-12-31T23:59:59-12:00") == []
