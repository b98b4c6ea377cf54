"""`flask emails`: list, show and send."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import Engine

from emailsvc.settings.config import Config
from tests.emails import DEFERRED, REJECTED, SENT, accept, claim, record, row
from tests.integration.test_cli import Flasks, run, shown, sqlite_only


@pytest.fixture(autouse=True)
def _not_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")  # the program sets it, and it must not stay


@pytest.fixture
def flask(app: Flask) -> Flasks:
    return lambda *words: run(app, "emails", *words)


@pytest.fixture(autouse=True)
def _stored(engine: Engine, config: Config) -> None:
    for email_id, result in (("sent", SENT), ("failed", REJECTED), ("deferred", DEFERRED)):
        accept(engine, config, email_id)
        record(engine, config, claim(engine, config), result)
    accept(engine, config, "later", send_at="2090-01-01T00:00:00Z")


def listed(flask: Flasks, *options: str) -> list[str]:
    return [email["email_id"] for email in shown(flask("list", *options))["emails"]]


def test_e_mails_are_listed_as_the_route_finds_them(flask: Flasks) -> None:
    assert listed(flask) == ["later", "deferred", "failed", "sent"]
    assert listed(flask, "--order", "due") == ["deferred", "later"]
    assert listed(flask, "--user", "SENT@example.com") == ["sent"]
    assert listed(flask, "--state", "failed", "--error", "no such user") == ["failed"]
    assert listed(flask, "--state", "pending", "--priority", "low") == []
    assert listed(flask, "--since", "2030-01-01T00:00:00+02:00") == []
    first = shown(flask("list", "--limit", "3"))
    assert listed(flask, "--cursor", first["next_cursor"]) == ["sent"]


def test_one_is_shown_with_its_timeline(flask: Flasks) -> None:
    assert [event["event"] for event in shown(flask("show", "failed"))["timeline"]] == [
        "received", "rejected", "dead_lettered",
    ]  # fmt: skip


def test_one_is_sent_now_or_says_why_not(flask: Flasks, engine: Engine) -> None:
    before = row(engine, "deferred").next_attempt_at
    assert flask("send", "deferred").stdout.startswith("deferred: due since ")
    assert row(engine, "deferred").next_attempt_at < before
    done = flask("send", "later")
    assert (done.exit_code, done.stderr) == (1, "Error: Its send_at lies ahead, and it is not sent before.\n")


def test_many_are_sent_now_after_a_dry_run(flask: Flasks) -> None:
    assert flask("send", "--dry-run").stdout == "1 of 2 would be made due\n1 not before their send_at\n"
    assert flask("send", "--state", "pending").stdout == "1 of 2 made due\n1 not before their send_at\n"
    assert flask("send", "--until", "2090-01-01T00:00:00Z").stdout.startswith("0 of 2 made due\n1 due already\n")


@sqlite_only
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("list", "--since", "yesterday"), "since must be a time with an offset"),
        (("list", "--error", "full"), "error goes only with the state failed"),
        (("list", "--cursor", "x"), "cursor must be the `next_cursor` of a page"),
        (("show", "nobody"), "There is no e-mail with the id 'nobody'"),
        (("send",), "the state pending is all that waits"),
        (("send", "deferred", "--dry-run"), "Give either an id or a filter"),
        (("send", "--state", "sent"), "state must be pending"),
    ],
)
def test_what_is_wrong_is_a_sentence(flask: Flasks, words: tuple[str, ...], complaint: str) -> None:
    done = flask(*words)
    assert done.exit_code in (1, 2)
    assert complaint in done.stderr
