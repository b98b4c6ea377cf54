"""`GET /metrics`: what Prometheus reads, from the database."""

from __future__ import annotations

import platform
import subprocess

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, update

from emailsvc import __version__, outbox, reports
from emailsvc.clock import utcnow
from emailsvc.db import schema
from emailsvc.db.models import DeadLetter, Email, Switch
from emailsvc.mail import Result
from emailsvc.outbox import rolling
from emailsvc.reports import monitoring
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, OUTAGE, REJECTED, SENT, UNCERTAIN, accept, claim, make_due, move, record, row, rows
from tests.webkit import ON_SQLITE, StrictClient

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is settled at once, and no step is too small."""
    for name in ("MARGIN_SECONDS", "SETTLED_SECONDS", "MIN_STEP_SECONDS"):
        monkeypatch.setattr(rolling, name, 0.0)


def samples(client: FlaskClient) -> Samples:
    """By name, without what all have in front, and the values of the labels."""
    return {
        (sample.name.removeprefix("emailsvc_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").get_data(as_text=True))
        for sample in family.samples
    }


def labelled(found: Samples, name: str) -> dict[str, float]:
    """Those that are not 0, by their label."""
    return {key[1]: value for key, value in found.items() if key[0] == name and len(key) == 2 and value}


def try_each(engine: Engine, config: Config, *results: Result) -> None:
    accept(engine, config, *(f"m-{number}" for number in range(len(results))))
    made = claim(engine, config)
    for number, result in enumerate(results):
        record(engine, config, made, result, number)


def test_the_names_of_the_first_release_are_still_there(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b", "a")
    found = samples(client)
    names = ("received_total", "duplicates_total", "pending", "sending", "failed")
    assert [found[name,] for name in names] == [2, 1, 2, 0, 0]
    names = ("mismatches_total", "sent_total", "failed_attempts_total", "cancelled", "dead_letters")
    assert [found[name,] for name in names] == [0] * 5
    assert 0 < found["oldest_pending_seconds",] < 60
    assert labelled(found, "delivery") == {"running": 1}


def test_attempts_are_told_by_outcome_and_dead_letters_by_reason(
    client: FlaskClient, engine: Engine, config: Config, at_once: None
) -> None:
    outbox.sweep(engine, config)  # the counters begin
    try_each(engine, config, SENT, DEFERRED, REJECTED, REJECTED, UNCERTAIN)
    for rolled_up in (False, True):
        found = samples(client)
        tried = {"deferred": 1, "rejected": 2, "uncertain": 1} | ({"sent": 1} if rolled_up else {})
        assert labelled(found, "attempts_total") == tried
        assert labelled(found, "dead_lettered_total") == {"rejected": 2, "uncertain": 1}
        assert labelled(found, "open_dead_letters") == {"rejected": 2, "uncertain": 1}
        outbox.sweep(engine, config)
    first, _, third = (letter.id for letter in rows(engine, DeadLetter))
    outbox.replay(engine, first)
    outbox.delivered(engine, third)
    for _ in range(2):
        found = samples(client)
        assert labelled(found, "dead_lettered_total") == {"rejected": 2, "uncertain": 1}
        assert labelled(found, "open_dead_letters") == {"rejected": 1}
        outbox.sweep(engine, config)
    assert labelled(samples(client), "attempts_total")["sent"] == 1, "what was marked as delivered was no attempt"


def test_open_dead_letters_are_right_before_and_after_the_counters_begin(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    """After an upgrade their reasons are counted row by row once, and never corrected later."""
    try_each(engine, config, REJECTED, REJECTED, UNCERTAIN)
    outbox.discard(engine, rows(engine, DeadLetter)[0].id)
    assert switch_letters(engine) is None
    for _ in range(3):
        assert labelled(samples(client), "open_dead_letters") == {"rejected": 1, "uncertain": 1}
        outbox.sweep(engine, config)
    assert switch_letters(engine) is not None
    assert reports.violations(engine, config) == []


def switch_letters(engine: Engine) -> object:
    return rows(engine, Switch)[0].letters_rolled_up_to


def test_it_tells_how_long_e_mails_waited_and_conversations_took(
    client: FlaskClient, engine: Engine, config: Config, at_once: None
) -> None:
    """An e-mail for later is late from its time on."""
    accept(engine, config, "a", "b", "c")
    made = claim(engine, config)
    for number, seconds in enumerate((0.03, 0.3, 300)):
        outbox.record(engine, made.rows[number], made.token, SENT, config, seconds=seconds)
    move(engine, 40, "received_at", email_id="b")
    move(engine, 10_000, "received_at", email_id="c")
    with engine.begin() as connection:
        later = update(Email).where(Email.email_id == "c")
        connection.execute(later.values(send_at=row(engine, "c").sent_at))
        connection.execute(update(Switch).values(rolled_up_to=row(engine, "c").received_at))
    outbox.roll_up(engine)
    found = samples(client)
    assert [found["delivery_seconds_bucket", bound] for bound in ("10.0", "30.0", "60.0", "+Inf")] == [2, 2, 3, 3]
    assert 40 <= found["delivery_seconds_sum",] < 60
    conversations = [found["conversation_seconds_bucket", bound] for bound in ("0.05", "0.25", "0.5", "120.0", "+Inf")]
    assert conversations == [1, 1, 2, 2, 3]
    assert (found["conversation_seconds_sum",], found["conversation_seconds_count",]) == (300.33, 3)
    outbox.roll_up(engine)
    rolling.close_hours(engine)
    again = samples(client)
    assert {key: again[key] for key in again if "_seconds_" in key[0]} == {
        key: found[key] for key in found if "_seconds_" in key[0]
    }


def test_what_waits_is_told_by_priority(client: FlaskClient, engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b", priority="high")
    accept(engine, config, "c", priority="low")
    accept(engine, config, "d", priority="low", send_at="2090-01-01T00:00:00Z")
    move(engine, 100, "next_attempt_at", email_id="c")
    move(engine, 20, "next_attempt_at", email_id="b")
    found = samples(client)
    assert labelled(found, "waiting") == {"high": 2, "low": 2}
    assert 20 <= found["oldest_due_seconds", "high"] < 60
    assert 100 <= found["oldest_due_seconds", "low"] < 160
    assert found["oldest_pending_seconds",] == round(found["oldest_due_seconds", "low"], 3)
    assert found["oldest_due_seconds", "normal"] == 0


@pytest.mark.parametrize(
    ("high", "normal", "shown"),
    [(3, 1, {"high": 3, "normal": 1}), (1, 5, {"high": 1, "normal": 5}), (4, 5, {"high": 3, "normal": 6})],
)
@ON_SQLITE
def test_of_a_backlog_so_many_are_counted_and_the_rest_is_known(
    client: FlaskClient,
    engine: Engine,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    high: int,
    normal: int,
    shown: dict[str, int],
) -> None:
    monkeypatch.setattr(monitoring, "MAX_COUNTED", 3)
    accept(engine, config, *(f"high-{number}" for number in range(high)), priority="high")
    accept(engine, config, *(f"normal-{number}" for number in range(normal)))
    assert labelled(samples(client), "waiting") == shown


def test_retries_that_wait_for_their_time_are_told(client: FlaskClient, engine: Engine, config: Config) -> None:
    try_each(engine, config, DEFERRED, DEFERRED, SENT)
    accept(engine, config, "later", send_at="2090-01-01T00:00:00Z")
    assert samples(client)["retries_waiting",] == 2
    make_due(engine)
    assert samples(client)["retries_waiting",] == 0


def test_pause_and_outage_are_told_apart(client: FlaskClient, engine: Engine, config: Config) -> None:
    def states() -> tuple[float, float]:
        found = samples(client)
        return found["paused",], found["outage",]

    assert states() == (0, 0)
    try_each(engine, config, OUTAGE)
    assert states() == (0, 1)
    client.post("/delivery/pause")
    assert states() == (1, 1)
    client.post("/delivery/end-outage")
    assert states() == (1, 0)


def test_it_tells_who_lives_when_was_swept_and_what_runs(client: FlaskClient, engine: Engine, config: Config) -> None:
    found = samples(client)
    assert found["workers",] == 0
    assert ("last_sweep_timestamp_seconds",) not in found, "there was none"
    assert found["build_info", platform.python_version(), schema.newest(), __version__] == 1
    outbox.heartbeat(engine, "worker-1")
    outbox.heartbeat(engine, "worker-2")
    outbox.sweep(engine, config)
    found = samples(client)
    assert found["workers",] == 2
    assert abs(found["last_sweep_timestamp_seconds",] - utcnow().timestamp()) < 60


@ON_SQLITE
def test_promtool_finds_no_fault_with_it(
    client: FlaskClient, engine: Engine, config: Config, at_once: None, promtool: str
) -> None:
    outbox.sweep(engine, config)
    try_each(engine, config, SENT, DEFERRED, REJECTED)
    outbox.count_refused(engine, {"not_json": 1})
    outbox.sweep(engine, config)
    checked = subprocess.run([promtool, "check", "metrics"], input=client.get("/metrics").data, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
