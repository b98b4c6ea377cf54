"""The journal: who did what, by route, by command and by the service itself."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, text, update

from emailsvc import outbox, reports
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.models import Action, DeadLetter
from emailsvc.db.sqltime import db_in
from emailsvc.outbox import Swept, actions
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Resolution
from tests.emails import OUTAGE, REJECTED, SENT, accept, claim, move_switch, record, replay_many, rows
from tests.factories import payload
from tests.integration.test_cli import run
from tests.webkit import BEARER, ON_SQLITE, TOKEN, StrictClient

ALICE, BOB = "alices-token-of-the-tests", "bobs-token-of-the-tests-"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def told(engine: Engine) -> list[tuple[Any, ...]]:
    """The journal, oldest first."""
    return [(one.kind, one.who, one.why, one.filter, one.done) for one in reports.actions(engine).actions[::-1]]


def fail(engine: Engine, config: Config, *ids: str) -> list[int]:
    accept(engine, config, *ids)
    made = claim(engine, config)
    for number in range(len(made.rows)):
        record(engine, config, made, REJECTED, number)
    return [letter.id for letter in rows(engine, DeadLetter)]


def test_what_changes_something_is_noted_and_what_changes_nothing_is_not(engine: Engine, config: Config) -> None:
    outbox.resume(engine, who="alice")
    outbox.pause(engine, "moving", who="alice")
    outbox.pause(engine, "again", who="bob")
    outbox.resume(engine, who="bob")
    first, second, third = fail(engine, config, "a", "b", "c")
    for _ in range(2):
        outbox.replay(engine, first, who="alice")
        outbox.delivered(engine, second, who="alice")
        outbox.discard(engine, third, who="bob")
    outbox.erase(engine, "c@example.com", who="bob")
    accept(engine, config, "d")
    for _ in range(2):
        outbox.cancel(engine, "d", who="alice")
    assert told(engine) == [
        ("paused", "alice", "moving", None, None),
        ("resumed", "bob", None, None, None),
        ("replayed", "alice", None, {"ids": [first]}, 1),
        ("delivered", "alice", None, {"ids": [second]}, 1),
        ("discarded", "bob", None, {"ids": [third]}, 1),
        ("erased", "bob", None, None, 1),
        ("cancelled", "alice", None, {"email_id": "d"}, 1),
    ]


def test_many_that_were_none_are_noted_only_where_an_action_is_answered(engine: Engine, config: Config) -> None:
    fail(engine, config, "a")
    assert replay_many(engine, code=552) == 0
    assert told(engine) == []
    begun = outbox.start(engine, Resolution.REPLAYED, LetterFilter(code=552), limit=9, rate=1)
    entry = reports.action(engine, begun)
    assert (entry.kind, entry.state, entry.total, entry.done) == ("replayed", "done", 0, 0)
    assert replay_many(engine, code=550) == 1
    assert [done for *_, done in told(engine)] == [0, 1]


@pytest.mark.parametrize(("retention_days", "kept_days"), [(7, 365), (400, 400)])
def test_entries_are_forgotten_after_a_year_or_with_their_e_mails(
    engine: Engine, make_config: Callable[..., Config], retention_days: int, kept_days: int
) -> None:
    config = make_config(email_retention_days=retention_days)
    fail(engine, config, "a")
    outbox.start(engine, Resolution.REPLAYED, LetterFilter(code=550), limit=9, rate=1)
    for number in range(3):
        outbox.pause(engine, str(number))
        outbox.resume(engine)
    with engine.begin() as connection:
        connection.execute(update(Action).where(Action.id <= 5).values(at=db_in(-kept_days * 86400 - 1)))
        connection.execute(update(Action).where(Action.id > 5).values(at=db_in(-kept_days * 86400 + 60)))
    swept = Swept()
    outbox.retain(engine, config, swept)
    assert swept.forgotten == 4
    assert [kind for kind, *_ in told(engine)] == ["replayed", "paused", "resumed"], "what runs is kept"


def test_a_sweep_forgets_so_many_entries_and_no_more(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "CHUNK", 3)
    for _ in range(2):
        outbox.pause(engine, "moving")
        outbox.resume(engine)
    with engine.begin() as connection:
        connection.execute(update(Action).values(at=db_in(-401 * 86400)))
    for left in (1, 0):
        outbox.retain(engine, config, Swept())
        assert len(told(engine)) == left


def test_an_outage_is_noted_with_its_end_whoever_ended_it(engine: Engine, config: Config) -> None:
    accept(engine, config, "a", "b")
    record(engine, config, claim(engine, config), OUTAGE)
    move_switch(engine, 90, "outage_since", "next_probe_at")
    record(engine, config, claim(engine, config), SENT)
    record(engine, config, claim(engine, config), OUTAGE)
    outbox.end_outage(engine, who="alice")
    outbox.end_outage(engine, who="alice")
    assert [(kind, who) for kind, who, *_ in told(engine)] == [
        ("outage_began", None), ("outage_ended", None), ("outage_began", None), ("outage_ended", "alice"),
    ]  # fmt: skip
    first, lasted, second, again = [why for _, _, why, *_ in told(engine)]
    assert first == second == "connection refused"
    assert re.fullmatch("it lasted (9|10)[0-9] s", lasted)
    assert re.fullmatch("it lasted [0-9] s", again)


def test_an_entry_is_written_in_the_transaction_that_it_tells_of(engine: Engine, config: Config) -> None:
    (letter,) = fail(engine, config, "a")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE actions"))
    for act in (lambda: outbox.pause(engine, "moving"), lambda: outbox.discard(engine, letter)):
        with pytest.raises(Exception, match="actions"):
            act()
    assert reports.delivery_state(engine).state == "running"
    assert reports.dead_letter(engine, letter).resolution is None


def test_an_erasure_that_was_cut_short_has_told_how_far_it_came(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox.erasure, "CHUNK", 2)
    accept(engine, config, *(f"m-{n}" for n in range(6)), user="eve@example.com")

    def killed(total: int) -> None:
        if total == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.erase(engine, "eve@example.com", killed, who="alice")
    assert told(engine) == [("erased", "alice", None, None, 4)]


def test_pages_are_complete_filtered_and_newest_first(engine: Engine) -> None:
    for number in range(7):
        outbox.pause(engine, str(number), who="alice" if number % 2 else "bob")
        outbox.resume(engine, who="alice")
    seen: list[str | None] = []
    cursor = None
    while True:
        page = reports.actions(engine, kind="paused", limit=3, cursor=cursor)
        seen += [one.why for one in page.actions]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert [one.why for one in reports.actions(engine, kind="paused", who="alice").actions] == ["5", "3", "1"]


@pytest.fixture
def make_client(make_app: Callable[[Config], Flask], make_config: Callable[..., Config]) -> Callable[..., FlaskClient]:
    def make(**settings: str) -> FlaskClient:
        app = make_app(make_config(**settings))
        app.test_client_class = StrictClient
        return app.test_client()

    return make


@ON_SQLITE
def test_operator_tokens_name_who_did_it_and_api_tokens_then_only_send(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(operator_tokens=f"alice:{ALICE},bob:{BOB}", api_tokens=TOKEN)
    assert client.post("/webhook/email", json=payload(), headers=BEARER).status_code == 202
    assert client.post("/webhook/email", json=payload(), headers=bearer(ALICE)).status_code == 401
    for path in ("/stats", "/actions", "/emails/m-1", "/metrics"):
        refused = client.get(path, headers=BEARER)
        assert refused.json is not None
        assert (refused.status_code, refused.json["code"]) == (401, "bad_token")
        assert "OPERATOR_TOKENS" in refused.json["detail"]
    assert client.post("/delivery/pause", headers=BEARER).status_code == 401
    assert client.post("/delivery/pause", headers=bearer(ALICE)).status_code == 200
    assert client.post("/delivery/resume", headers=bearer(BOB)).status_code == 200
    browser = {"Authorization": f"Basic {b64encode(f'x:{ALICE}'.encode()).decode()}", "X-Requested-With": "emailsvc"}
    assert client.post("/delivery/pause", headers=browser).status_code == 200
    entries = client.get("/actions?kind=paused&limit=1", headers=bearer(BOB)).json
    assert entries is not None
    assert [(one["kind"], one["who"]) for one in entries["actions"]] == [("paused", "alice")]
    of_bob = client.get("/actions?who=bob", headers=bearer(BOB)).json
    assert of_bob is not None
    assert [(one["kind"], one["who"]) for one in of_bob["actions"]] == [("resumed", "bob")]


@ON_SQLITE
@pytest.mark.parametrize(
    ("settings", "headers", "name"), [({"api_tokens": TOKEN}, BEARER, "an API token"), ({}, {}, "this machine")]
)
def test_without_operator_tokens_api_tokens_keep_their_rights(
    make_client: Callable[..., FlaskClient], settings: dict[str, str], headers: dict[str, str], name: str
) -> None:
    client = make_client(**settings)
    assert client.post("/delivery/pause", headers=headers).status_code == 200
    entries = client.get("/actions", headers=headers).json
    assert entries is not None
    assert [one["who"] for one in entries["actions"]] == [name]


@ON_SQLITE
def test_with_operator_tokens_alone_no_stranger_is_served(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(operator_tokens=f"alice:{ALICE}")
    stranger = {"REMOTE_ADDR": "203.0.113.7"}
    assert client.post("/webhook/email", json=payload(), environ_base=stranger).status_code == 403
    assert client.get("/stats", environ_base=stranger).status_code == 401
    assert client.get("/stats", environ_base=stranger, headers=bearer(ALICE)).status_code == 200


@ON_SQLITE
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("kind=slept", "kind"),
        ("state=x", "state"),
        ("limit=0", "limit"),
        ("since=yesterday", "since"),
        ("cursor=1~2", "cursor"),
        ("cursor=x", "cursor"),
        (f"who={'x' * 65}", "who"),
        ("page=1", "page"),
    ],
)
def test_a_bad_query_of_the_journal_is_named(make_client: Callable[..., FlaskClient], query: str, field: str) -> None:
    answer = make_client().get(f"/actions?{query}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["field"]) == (400, field)


@ON_SQLITE
def test_a_cursor_of_another_query_is_refused(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client()
    for _ in range(2):
        client.post("/delivery/pause")
        client.post("/delivery/resume")
    page = client.get("/actions?kind=paused&limit=1").json
    assert page is not None
    assert client.get(f"/actions?kind=paused&limit=2&cursor={page['next_cursor']}").status_code == 200
    answer = client.get(f"/actions?kind=resumed&cursor={page['next_cursor']}")
    assert answer.json is not None
    assert (answer.status_code, answer.json["field"]) == (400, "cursor")


@ON_SQLITE
def test_a_command_names_who_gave_it(app: Flask, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")  # the program sets it, and it must not stay
    monkeypatch.setenv("LOGNAME", "carol")
    assert run(app, "pause").exit_code == 0
    assert run(app, "resume", "--as", "dave").exit_code == 0
    shown = run(app, "actions", "--kind", "paused")
    assert '"who": "carol"' in shown.output
    assert [who for _, who, *_ in told(engine)] == ["carol", "dave"]
