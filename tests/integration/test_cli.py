"""The `flask` commands, run as the `flask` program runs them."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result as Run
from flask import Flask
from flask.cli import FlaskGroup
from sqlalchemy import Engine, text

from emailsvc import __version__, outbox, reports
from emailsvc.app import create_app
from emailsvc.commands import following
from emailsvc.db import schema
from emailsvc.intake import signing
from emailsvc.mail import Outcome, Result
from emailsvc.outbox import Claim
from emailsvc.settings.config import Config, load
from tests.emails import accept
from tests.servers import PostgreSQL, free_port, wait_for
from tests.smtpd import Plan, Smtpd
from tests.stack import ROOT

Flasks = Callable[..., Run]
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def run(app: Flask, *words: str) -> Run:
    """`flask` and these words, without a traceback: what is wrong is a sentence."""
    program = FlaskGroup(create_app=lambda: app, load_dotenv=False)
    done = app.test_cli_runner().invoke(program, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    return done


@pytest.fixture(autouse=True)
def _not_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")  # the program sets it, and it must not stay


@pytest.fixture
def flask(app: Flask) -> Flasks:
    return lambda *words: run(app, *words)


def shown(done: Run) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def attempt(engine: Engine, config: Config, result: Result) -> None:
    """What a worker does with everything that is due, when every conversation ends so."""
    token = secrets.token_hex(16)
    claim = outbox.claim(engine, token, config)
    assert isinstance(claim, Claim)
    for row in claim.rows:
        assert outbox.record(engine, row, token, result, config).won


REJECTED = Result(Outcome.REJECTED, "RCPT: 550 5.1.1 no such user", 550, "5.1.1")
UNCERTAIN = Result(Outcome.UNCERTAIN, "no reply to the final dot: the deadline passed")
SENT = Result(Outcome.SENT, "250 2.0.0 taken", 250)


def test_stats_shows_what_the_route_shows(flask: Flasks, engine: Engine, config: Config) -> None:
    accept(engine, config, "one")
    accept(engine, config, "one")
    stats = shown(flask("stats"))
    assert stats.pop("oldest_pending_seconds") >= 0
    expected = msgspec.to_builtins(reports.stats(engine))
    expected.pop("oldest_pending_seconds")
    assert stats == expected
    assert (stats["received"], stats["duplicates"], stats["pending"]) == (1, 1, 1)


def test_pause_holds_delivery_and_resume_lets_it_go_on(flask: Flasks, engine: Engine, config: Config) -> None:
    paused = shown(flask("pause"))
    assert (paused["state"], paused["reason"]) == ("paused", "flask pause")
    assert shown(flask("pause"))["since"] == paused["since"]
    accept(engine, config, "one")
    assert not isinstance(outbox.claim(engine, secrets.token_hex(16), config), Claim)
    assert shown(flask("resume")) == {"state": "running", "since": None, "reason": None, "paused": None, "outage": None}
    assert isinstance(outbox.claim(engine, secrets.token_hex(16), config), Claim)


def test_end_outage_ends_one_and_says_when_there_is_none(flask: Flasks, engine: Engine, config: Config) -> None:
    accept(engine, config, "one")
    attempt(engine, config, Result(Outcome.OUTAGE, "connection refused"))
    assert not isinstance(outbox.claim(engine, secrets.token_hex(16), config), Claim)
    done = flask("end-outage")
    assert shown(done) == {"state": "running", "since": None, "reason": None, "paused": None, "outage": None}
    assert re.fullmatch(r"Ended an outage of [0-9]+ s\.\n", done.stderr)
    assert isinstance(outbox.claim(engine, secrets.token_hex(16), config), Claim)
    done = flask("end-outage")
    assert shown(done)["state"] == "running"
    assert done.stderr == "There was no outage.\n"


def test_a_test_e_mail_is_accepted_like_any_other(flask: Flasks, engine: Engine) -> None:
    done = flask("send-test", "ada@example.com")
    found = re.match(r"accepted as (send-test-[0-9a-f-]{36}); a running worker sends it\n", done.stdout)
    assert found is not None, done.output
    assert reports.email(engine, found.group(1)).state == "pending"
    flask("send-test", "ada@example.com")
    assert reports.stats(engine).received == 2


@sqlite_only
@pytest.mark.parametrize("address", ["nobody", "a@b, c@d", "Ada <ada@example.com>", "a\n@example.com"])
def test_a_bad_address_for_a_test_e_mail_is_a_sentence(flask: Flasks, engine: Engine, address: str) -> None:
    done = flask("send-test", address)
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: user .+\.\n", done.stderr)
    assert reports.stats(engine).received == 0


def test_erasing_a_person_cancels_scrubs_and_marks_and_keeps_the_ids(
    flask: Flasks, engine: Engine, config: Config
) -> None:
    accept(engine, config, "sent", user="ada@example.com")
    attempt(engine, config, SENT)
    accept(engine, config, "in-hand", user="ada@example.com")
    token = secrets.token_hex(16)
    claim = outbox.claim(engine, token, config)
    assert isinstance(claim, Claim)
    accept(engine, config, "waiting", user="ADA@example.com")
    accept(engine, config, "another", user="bob@example.com")
    assert flask("erase", "Ada@Example.com").stdout == "3 e-mails erased\n"
    states = {email_id: reports.email(engine, email_id).state for email_id in ("sent", "in-hand", "waiting")}
    assert states == {"sent": "sent", "in-hand": "sending", "waiting": "cancelled"}
    assert outbox.record(engine, claim.rows[0], token, SENT, config).state == "sent"
    with engine.connect() as connection:
        left = connection.execute(text("SELECT email_id, recipient, body FROM emails ORDER BY email_id")).all()
    assert [tuple(row) for row in left] == [
        ("another", "bob@example.com", "Text"),
        ("in-hand", None, None),
        ("sent", None, None),
        ("waiting", None, None),
    ]
    assert flask("erase", "carol@example.com").stdout == "0 e-mails erased\n"
    assert flask("erase", "bob@example.com").stdout == "1 e-mail erased\n"


def test_a_new_secret_can_be_used_and_is_never_the_same(flask: Flasks) -> None:
    first, second = (flask("secret").stdout.strip() for _ in range(2))
    assert first != second
    assert len(signing.decode_secret(first)) == 32
    assert load({"WEBHOOK_SECRETS": f"{first} {second}"}, Path("instance")).webhook_secrets == (first, second)


# Dead letters


@pytest.fixture
def letters(engine: Engine, config: Config) -> list[int]:
    """The ids of three dead letters: of «rejected», «uncertain» and «third», oldest first."""
    for email_id, result in (("rejected", REJECTED), ("uncertain", UNCERTAIN), ("third", REJECTED)):
        accept(engine, config, email_id)
        attempt(engine, config, result)
    return [letter.id for letter in reversed(reports.dead_letters(engine).dead_letters)]


def listed(flask: Flasks, *options: str) -> list[str]:
    return [letter["email_id"] for letter in shown(flask("dead-letters", "list", *options))["dead_letters"]]


def test_dead_letters_are_listed_newest_first_in_pages(flask: Flasks, letters: list[int]) -> None:
    assert listed(flask) == ["third", "uncertain", "rejected"]
    assert listed(flask, "--reason", "uncertain") == ["uncertain"]
    assert listed(flask, "--resolved") == []
    first = shown(flask("dead-letters", "list", "--limit", "2"))
    second = shown(flask("dead-letters", "list", "--limit", "2", "--cursor", first["next_cursor"]))
    assert [letter["email_id"] for letter in first["dead_letters"] + second["dead_letters"]] == listed(flask)
    assert second["next_cursor"] is None


def test_one_is_shown_with_what_the_server_said_and_the_timeline(flask: Flasks, letters: list[int]) -> None:
    letter = shown(flask("dead-letters", "show", str(letters[0])))
    assert (letter["email_id"], letter["reason"], letter["error"]) == ("rejected", "rejected", REJECTED.reply)
    assert [event["event"] for event in letter["email"]["timeline"]] == ["received", "rejected", "dead_lettered"]


def test_one_is_replayed_once(flask: Flasks, engine: Engine, config: Config, letters: list[int]) -> None:
    for _ in range(2):
        done = flask("dead-letters", "replay", str(letters[0]))
        assert done.stdout == f"dead letter {letters[0]} of rejected: replayed\n"
    assert reports.email(engine, "rejected").state == "pending"
    assert listed(flask) == ["third", "uncertain"]
    assert listed(flask, "--resolved") == ["rejected"]
    attempt(engine, config, SENT)
    assert reports.email(engine, "rejected").state == "sent"


def test_one_is_declared_delivered_or_discarded(flask: Flasks, engine: Engine, letters: list[int]) -> None:
    assert flask("dead-letters", "delivered", str(letters[1])).stdout.endswith("of uncertain: delivered\n")
    assert flask("dead-letters", "discard", str(letters[2])).stdout.endswith("of third: discarded\n")
    assert flask("dead-letters", "discard", str(letters[2])).exit_code == 0
    states = [reports.email(engine, email_id).state for email_id in ("uncertain", "third")]
    assert states == ["sent", "failed"]
    assert listed(flask) == ["rejected"]


def test_what_was_decided_is_not_undecided(flask: Flasks, letters: list[int]) -> None:
    flask("dead-letters", "discard", str(letters[0]))
    done = flask("dead-letters", "replay", str(letters[0]))
    assert done.exit_code == 1
    assert done.stderr == "Error: This dead letter was already resolved as discarded.\n"


def test_many_are_replayed_by_reason_and_a_dry_run_only_counts(
    flask: Flasks, engine: Engine, letters: list[int]
) -> None:
    assert flask("dead-letters", "replay", "--all", "--dry-run").stdout == "2 would be replayed\n"
    assert listed(flask) == ["third", "uncertain", "rejected"]
    assert flask("dead-letters", "replay", "--all", "--reason", "rejected", "--limit", "1").stdout == "1 replayed\n"
    assert listed(flask) == ["third", "uncertain"]
    assert flask("dead-letters", "replay", "--all", "--reason", "rejected").stdout == "1 replayed\n"
    assert listed(flask) == ["uncertain"]
    assert reports.stats(engine).pending == 2


@sqlite_only
@pytest.mark.parametrize("command", ["replay", "discard"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give a dead letter's number, --all, or a filter"),
        (("1", "--all"), "are for many"),
        (("1", "--code", "550"), "are for many"),
        (("1", "--rate", "5"), "are for many"),
        (("--all", "--rate", "0"), "'--rate'"),
        (("--since", "yesterday"), "is not a time with an offset"),
        (("--since", "2030-01-31"), "is not a time with an offset"),
    ],
)
def test_a_replay_is_of_one_or_of_those_that_match(
    flask: Flasks, command: str, words: tuple[str, ...], said: str
) -> None:
    done = flask("dead-letters", command, *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_many_are_grouped_and_discarded_by_a_filter(flask: Flasks, letters: list[int]) -> None:
    groups = shown(flask("dead-letters", "groups"))["groups"]
    assert [(one["reason"], one["code"], one["count"]) for one in groups] == [
        ("rejected", 550, 2),
        ("uncertain", None, 1),
    ]
    assert flask("dead-letters", "discard", "--domain", "example.com", "--limit", "1").stdout == "1 discarded\n"
    assert listed(flask, "--code", "550") == ["third"]
    assert listed(flask, "--error", "NO SUCH user") == ["third"]


def test_what_has_a_rate_is_left_to_the_workers_and_stopped(flask: Flasks, engine: Engine, letters: list[int]) -> None:
    done = flask("dead-letters", "replay", "--code", "550", "--rate", "0.1")
    assert done.stdout == "action 1: 2 dead letters, 0.1 a second\n"
    assert shown(flask("actions", "show", "1"))["state"] == "running"
    assert outbox.advance(engine)
    assert shown(flask("actions", "show", "1"))["done"] == 1
    assert flask("actions", "stop", "1").stdout == "action 1 is stopped, and 1 dead letters stay\n"
    again = flask("actions", "stop", "1")
    assert (again.exit_code, again.stderr) == (1, "Error: Action 1 is over already: stopped.\n")
    assert flask("actions", "stop", "77").stderr == "Error: There is no action 77.\n"


@pytest.mark.parametrize("command", ["show", "replay", "delivered", "discard"])
@pytest.mark.parametrize("number", ["1", str(2**63 - 1)])
def test_a_dead_letter_that_is_not_there_is_a_sentence(flask: Flasks, command: str, number: str) -> None:
    done = flask("dead-letters", command, number)
    assert done.exit_code == 1
    assert done.stderr == f"Error: There is no dead letter {number}.\n"


@pytest.mark.parametrize("number", ["one", str(2**63), str(10**30)])
def test_a_number_that_no_dead_letter_can_have_is_refused(flask: Flasks, number: str) -> None:
    done = flask("dead-letters", "show", number)
    assert done.exit_code == 2
    assert "Error: Invalid value for 'NUMBER'" in done.stderr


@sqlite_only
def test_a_bad_cursor_and_a_bad_reason_are_sentences(flask: Flasks) -> None:
    assert (
        flask("dead-letters", "list", "--cursor", "x").stderr == "Error: cursor must be the `next_cursor` of a page.\n"
    )
    assert "is not one of 'rejected'" in flask("dead-letters", "list", "--reason", "odd").stderr


# Trouble


COMMANDS = [
    ("stats",),
    ("pause",),
    ("resume",),
    ("end-outage",),
    ("send-test", "ada@example.com"),
    ("erase", "ada@example.com"),
    ("dead-letters", "list"),
    ("dead-letters", "replay", "--all"),
    ("dead-letters", "groups"),
    ("actions",),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_before_the_first_start_a_sqlite_file_is_made(
    make_app: Callable[[Config], Flask], tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = run(make_app(load({}, tmp_path)), *words)
    assert done.exit_code == 0, done.output
    assert done.stderr in ("", "There was no outage.\n")


def test_stats_before_the_first_start_are_all_zero(make_app: Callable[[Config], Flask], tmp_path: Path) -> None:
    assert shown(run(make_app(load({}, tmp_path)), "stats"))["received"] == 0


@pytest.mark.parametrize("words", COMMANDS)
def test_a_postgresql_that_is_not_set_up_is_a_sentence(
    make_app: Callable[[Config], Flask], tmp_path: Path, postgresql: PostgreSQL, words: tuple[str, ...]
) -> None:
    name = postgresql.create_database()
    done = run(make_app(load({"DATABASE_URL": postgresql.url(name)}, tmp_path)), *words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: the database schema is older than this code: run `flask db upgrade` first.\n"


@pytest.mark.parametrize("words", [*COMMANDS, ("start",)])
def test_a_database_that_is_away_is_a_sentence(
    make_app: Callable[[Config], Flask], tmp_path: Path, words: tuple[str, ...]
) -> None:
    away = {"DATABASE_URL": f"postgresql://127.0.0.1:{free_port()}/emails"}
    done = run(make_app(load(away, tmp_path)), *words)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: The database cannot be used: ")
    assert done.stderr.endswith("; check DATABASE_URL.\n")
    assert len(done.stderr.splitlines()) == 1


@sqlite_only
@pytest.mark.parametrize(("result", "status", "event"), [(SENT, 0, "sent"), (REJECTED, 1, "rejected")])
def test_a_test_e_mail_is_followed_to_its_end(
    flask: Flasks, engine: Engine, config: Config, result: Result, status: int, event: str
) -> None:
    def work() -> None:
        wait_for(lambda: reports.stats(engine).pending, 20, "the test e-mail")
        attempt(engine, config, result)

    worker = threading.Thread(target=work)
    worker.start()
    done = flask("send-test", "ada@example.com", "--wait")
    worker.join()
    assert done.exit_code == status, done.output
    told = [line.split()[1] for line in done.stdout.splitlines()[1:]]
    assert told[:2] == ["received", event]
    assert result.reply in done.stdout


@sqlite_only
def test_a_test_e_mail_that_nobody_sends_is_not_waited_for_for_ever(
    flask: Flasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.1)
    done = flask("send-test", "ada@example.com", "--wait")
    assert done.exit_code == 1
    assert "it is pending: see `flask check`" in done.stderr


def test_an_upgrade_says_what_it_did(
    make_app: Callable[[Config], Flask], tmp_path: Path, flask: Flasks, engine: Engine
) -> None:
    at = schema.newest()
    assert flask("db", "upgrade").stdout == f"schema {at}, nothing to do\n"
    empty = make_app(load({}, tmp_path / "empty"))
    assert run(empty, "db", "upgrade").stdout == f"schema none → {at}\n"
    assert run(empty, "db", "upgrade").stdout == f"schema {at}, nothing to do\n"
    assert "schema" not in run(make_app(load({}, tmp_path / "another")), "stats").output


def test_a_version_needs_no_database(make_app: Callable[[Config], Flask], tmp_path: Path) -> None:
    told = run(make_app(load({"DATABASE_URL": "postgresql://127.0.0.1:1/none"}, tmp_path)), "version").stdout
    assert re.fullmatch(rf"emailsvc {re.escape(__version__)}, schema {schema.newest()}, Python 3\.[0-9.]+\S*\n", told)


def test_the_version_is_the_changelog_s() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[([0-9.]+)\]", changes, re.MULTILINE)[0]
    has_more = bool(re.search(r"^## \[Unreleased\]\s+###", changes, re.MULTILINE))
    assert __version__ == newest + "+unreleased" * has_more


# flask check


def findings(done: Run) -> dict[str, tuple[str, str]]:
    """Subject: (level, text)."""
    found = {}
    for line in done.stdout.splitlines():
        level, _, rest = line.partition(" ")
        subject, _, words = rest.strip().partition(": ")
        found[subject] = (level, words)
    return found


def check(config: Config) -> tuple[int, dict[str, tuple[str, str]]]:
    app = create_app(config)
    try:
        done = run(app, "check")
    finally:
        app.extensions["emailsvc"].engine.dispose()
    return done.exit_code, findings(done)


@pytest.fixture
def live_worker(engine: Engine) -> str:
    outbox.heartbeat(engine, "a worker")
    return "a worker"


def test_check_is_content_with_a_laptop_and_says_what_it_lacks(
    make_config: Callable[..., Config], live_worker: str
) -> None:
    status, found = check(make_config())
    assert status == 0
    levels = {subject: level for subject, (level, _) in found.items()}
    assert levels == {
        "configuration": "ok", "retries": "warning", "access": "warning", "database": "ok", "readiness": "ok",
        "workers": "ok", "due": "ok", "clock": "ok",
        "invariant": "ok", "queue": "ok", "mail": "warning",
    }  # fmt: skip


def test_check_finds_nothing_to_say_about_a_complete_configuration(
    make_config: Callable[..., Config], redis_url: str, sink: Smtpd, live_worker: str
) -> None:
    config = make_config(
        redis_url=redis_url, smtp_url=f"smtp://127.0.0.1:{sink.port}", max_retry_attempts=8,
        api_tokens="a-token-of-this-test",
    )  # fmt: skip
    status, found = check(config)
    assert status == 0
    assert {level for level, _ in found.values()} == {"ok"}
    assert "login accepted by 127.0.0.1" in found["mail"][1]


@sqlite_only
def test_check_warns_when_retries_end_before_greylisting_does(make_config: Callable[..., Config]) -> None:
    assert check(make_config())[1]["retries"][1].startswith("they span 35 s in all")
    assert "retries" not in check(make_config(retry_delay_seconds=60))[1]
    capped = make_config(max_retry_attempts=1000, retry_max_delay_seconds=0.1)
    assert check(capped)[1]["retries"][0] == "warning"


@sqlite_only
def test_check_names_a_misspelt_setting(make_config: Callable[..., Config]) -> None:
    found = check(make_config(smpt_url="smtp://h"))[1]
    assert found["settings"] == ("warning", "SMPT_URL is not a setting: did you mean SMTP_URL?")


@sqlite_only
def test_check_says_who_is_served(make_config: Callable[..., Config]) -> None:
    signed = make_config(webhook_secrets=signing.make_secret())
    assert check(make_config())[1]["access"][1].startswith("neither API_TOKENS nor WEBHOOK_SECRETS")
    assert "operator routes" in check(signed)[1]["access"][1]
    assert "access" not in check(make_config(api_tokens="a-token-of-this-test"))[1]


def test_check_fails_on_a_mail_server_that_is_not_there(make_config: Callable[..., Config]) -> None:
    port = free_port()
    status, found = check(make_config(smtp_url=f"smtp://127.0.0.1:{port}"))
    assert status == 1
    assert found["mail"][0] == "wrong"
    assert found["mail"][1].endswith("check SMTP_URL")
    assert found["mail"][1].count(str(port)) == 1


@sqlite_only
def test_check_fails_on_a_refused_login_and_does_not_show_the_password(
    make_config: Callable[..., Config], sink: Smtpd, live_worker: str
) -> None:
    sink.behaviour.login = ("ada", "right")
    url = "smtp://{}:{}@127.0.0.1:{}".format
    status, found = check(make_config(smtp_url=url("ada", "wrong-password", sink.port)))
    assert status == 1
    assert found["mail"][0] == "wrong"
    assert "AUTH: 535" in found["mail"][1]
    assert "wrong-password" not in str(found)
    assert check(make_config(smtp_url=url("ada", "right", sink.port)))[0] == 0


@sqlite_only
def test_check_tries_the_address_of_bounces(make_config: Callable[..., Config], sink: Smtpd, live_worker: str) -> None:
    config = make_config(smtp_url=f"smtp://127.0.0.1:{sink.port}", bounce_address="bounces@example.com")
    assert check(config)[1]["bounces"] == ("ok", "the mail server takes mail from bounces@example.com")
    sink.script("*", Plan("mail", "553 5.7.1 not yours"))
    status, found = check(config)
    assert (status, found["mail"][0]) == (1, "ok")
    assert found["bounces"][1].endswith("bounces@example.com: 553 5.7.1 not yours; check BOUNCE_ADDRESS")


@sqlite_only
def test_check_fails_on_a_redis_that_does_not_answer(make_config: Callable[..., Config]) -> None:
    status, found = check(make_config(redis_url=f"redis://:hidden-word@127.0.0.1:{free_port()}"))
    assert status == 1
    assert found["redis"][0] == "wrong"
    assert found["redis"][1].endswith("check REDIS_URL")
    assert "hidden-word" not in str(found)


def test_check_fails_on_a_schema_that_is_not_there_and_on_a_database_that_is_away(tmp_path: Path) -> None:
    status, found = check(load({}, tmp_path))
    assert (status, found["database"][0]) == (1, "wrong")
    assert "run `flask db upgrade`" in found["database"][1]
    away = {"DATABASE_URL": f"postgresql://ada:hidden-word@127.0.0.1:{free_port()}/emails"}
    status, found = check(load(away, tmp_path))
    assert (status, found["database"][0]) == (1, "wrong")
    assert "check DATABASE_URL" in found["database"][1]
    assert "hidden-word" not in str(found)


def test_check_fails_when_the_invariant_is_broken(
    make_config: Callable[..., Config], engine: Engine, config: Config
) -> None:
    accept(engine, config, "one")
    attempt(engine, config, REJECTED)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM dead_letters"))
    status, found = check(make_config())
    assert status == 1
    assert found["invariant"] == ("wrong", "1 e-mails failed without an unresolved or discarded dead letter")


def test_check_says_that_delivery_is_paused(
    make_config: Callable[..., Config], engine: Engine, live_worker: str
) -> None:
    outbox.pause(engine, "a restored database")
    status, found = check(make_config())
    assert status == 0
    assert found["delivery"][0] == "warning"
    assert found["delivery"][1].startswith("paused since ")
    assert found["delivery"][1].endswith(": a restored database")
