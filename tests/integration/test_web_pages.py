"""What a browser gets: pages that show whatever came in as text, and buttons that no other site can press."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from msgspec.structs import replace
from sqlalchemy import Engine, update
from werkzeug.test import TestResponse

from emailsvc import outbox, reports
from emailsvc.db.choosing import LetterFilter
from emailsvc.db.models import Switch
from emailsvc.db.sqltime import db_in, db_now
from emailsvc.feedback.events import heard
from emailsvc.mail import Outcome, Result
from emailsvc.settings.config import Config
from emailsvc.vocabulary import BounceKind, Resolution
from emailsvc.web import page
from tests.emails import DEFERRED, SENT, accept, claim, record
from tests.factories import payload
from tests.webkit import BEARER, ON_SQLITE, TOKEN, StrictClient

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\""
EVIL_ID = f"{EVIL}/{{{{7*7}}}}"
EVIL_REPLY = Result(Outcome.REJECTED, f"RCPT: 550 5.7.1 {EVIL} refused", 550, "5.7.1")


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    app.test_client_class = StrictClient
    return app.test_client()


@pytest.fixture
def make_client(make_app: Callable[[Config], Flask], make_config: Callable[..., Config]) -> Callable[..., FlaskClient]:
    return lambda **settings: make_app(make_config(**settings)).test_client()


def fill(engine: Engine, config: Config) -> None:
    """Something of everything that has a button, an outage and a pause included, named by somebody evil."""
    fields = {"subject": EVIL, "body": EVIL, "html": EVIL, "headers": {"X-Evil": EVIL}}
    accept(engine, config, EVIL_ID, "running", "doubt", user="ada@example.com", **fields)
    made = claim(engine, config)
    for number, result in enumerate((EVIL_REPLY, EVIL_REPLY, Result(Outcome.UNCERTAIN, EVIL))):
        record(engine, config, made, result, number)
    accept(engine, config, "later", "overdue", **fields)
    made = claim(engine, config)
    record(engine, config, made, Result(Outcome.DEFERRED, f"451 {EVIL}", 451), 0)
    outbox.release(engine, made.token, config)
    ids = tuple(letter.id for letter in reports.dead_letters(engine).dead_letters if letter.email_id == "running")
    outbox.start(engine, Resolution.REPLAYED, LetterFilter(ids=ids), limit=1, rate=0.1, who=EVIL[:64])
    outbox.pause(engine, EVIL, who=EVIL[:64])
    outage = {"outage_since": db_now(), "outage_reason": EVIL, "next_probe_at": db_in(600)}
    with engine.begin() as connection:
        connection.execute(update(Switch).values(outage))


def pages(client: FlaskClient) -> dict[str, TestResponse]:
    ids = {"email_ids": [EVIL_ID]}
    found = {
        path: client.get(path, headers=HTML)
        for path in (
            "/stats", "/stats/dead-letters", "/stats/dead-letters?resolved=1", "/actions", "/stats/search",
            f"/stats/dead-letters?error={quote(EVIL)}", f"/emails/{quote(EVIL_ID, safe='')}", "/emails/later",
            "/emails/doubt",
        )
    }  # fmt: skip
    found |= {
        path: client.post(path, json=body, headers=HTML)
        for path, body in (
            ("/emails/search", {}), ("/emails/search", {"order": "due"}), ("/emails/lookup", ids),
            ("/emails/later/content", None),
        )
    }  # fmt: skip
    return found


def test_whatever_comes_in_is_shown_as_text(client: FlaskClient, engine: Engine, config: Config) -> None:
    fill(engine, config)
    for path, response in pages(client).items():
        assert (response.status_code, response.mimetype) == (200, "text/html"), path
        shown = response.get_data(as_text=True)
        assert not re.search(r"<script>|<img|alert\(1\)</| on[a-z]+=(?!alert)|https?://|style=", shown), path
        tags = re.findall(r"<[^>]*>", shown)
        assert not [tag for tag in tags if re.search(r"alert|onerror", re.sub(r'"[^"]*"|\'[^\']*\'', "", tag))], path
        if path != "/stats/search" and "resolved" not in path:
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown, path
        assert "49" not in re.findall(r"(?:}}|>)/?(\d+)<", shown), path


def test_a_page_may_load_from_this_service_alone(client: FlaskClient) -> None:
    for path in ("/stats", "/stats/search", "/actions"):
        response = client.get(path, headers=HTML)
        policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) <= {"'self'", "'none'"}
        assert response.headers.get("Vary") == (None if path == "/stats/search" else "Accept")
        for link in re.findall(r'(?:src|href)="([^"]*)"', response.get_data(as_text=True)):
            assert link.startswith(("/", "#")), link
            assert not link.startswith("//"), link


@ON_SQLITE
def test_style_and_script_are_kept_under_the_version_that_they_have(client: FlaskClient) -> None:
    shown = client.get("/stats", headers=HTML).get_data(as_text=True)
    addresses = re.findall(r'"(/stats/assets/[^"]+)"', shown)
    assert len(addresses) == len(page.ASSETS)
    for address in addresses:
        response = client.get(address)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        other = client.get(address.replace(page.version(), "0123456789ab"))
        assert (other.data, other.headers["Cache-Control"]) == (response.data, "no-store")
    assert client.get("/stats/assets/desk.html").status_code == 404


def buttons(client: FlaskClient) -> set[tuple[str, str]]:
    shown = "".join(response.get_data(as_text=True) for response in pages(client).values())
    return {(found[0], found[1]) for found in re.findall(r'data-do="([A-Z]+) ([^"]+)"', shown)}


def test_no_button_can_be_pressed_by_another_site(
    make_client: Callable[..., FlaskClient], engine: Engine, config: Config
) -> None:
    fill(engine, config)
    open_laptop, guarded = make_client(), make_client(api_tokens=TOKEN)
    found = buttons(open_laptop)
    outbox.resume(engine)
    found |= buttons(open_laptop)
    kinds = {(method, re.sub(r"\d+$|\d+(?=/)|(?<=^/emails/)[^/]+", "…", path)) for method, path in found}
    assert len(kinds) == 12, kinds
    before = replace(reports.stats(engine), oldest_pending_seconds=None)
    for method, path in found:
        foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            sent = {"data": "{}", "content_type": kind}
            assert open_laptop.open(path, method=method, headers=foreign, **sent).status_code == 403, path
            remembered = {**foreign, "Authorization": basic()}
            assert guarded.open(path, method=method, headers=remembered, **sent).status_code == 403, path
    assert replace(reports.stats(engine), oldest_pending_seconds=None) == before


def basic() -> str:
    return "Basic " + base64.b64encode(f"x:{TOKEN}".encode()).decode()


@ON_SQLITE
def test_every_button_does_something_there_is(client: FlaskClient, engine: Engine, config: Config) -> None:
    """StrictClient holds what comes back against the declaration of the route."""
    fill(engine, config)
    for method, path in sorted(buttons(client)):
        body = {"dry_run": True} if path.endswith(("letters/replay", "letters/discard")) else None
        answer = client.open(path, method=method, json=body)
        assert answer.status_code in (200, 409), (method, path, answer.text)


def test_content_is_shown_to_whoever_asks_and_the_journal_tells_it(
    make_client: Callable[..., FlaskClient], engine: Engine
) -> None:
    client = make_client(operator_tokens=f"alice:{TOKEN}")
    attachment = {"filename": "a.txt", "content_type": "text/plain", "content": "aGVsbG8="}
    fields = {"html": "<p>Hi", "reply_to": "re@example.com", "headers": {"X-A": "b"}, "attachments": [attachment]}
    client.post("/webhook/email", json=payload("m-1", **fields), headers=BEARER)
    answer = client.post("/emails/m-1/content", headers=BEARER)
    assert answer.status_code == 200, answer.text
    told = answer.get_json()
    assert (told["email_id"], told["body"], told["html"]) == ("m-1", payload()["body"], "<p>Hi")
    assert (told["from"], told["reply_to"], told["headers"]) == (None, "re@example.com", {"X-A": "b"})
    assert told["attachments"] == [{"filename": "a.txt", "content_type": "text/plain", "size": 5}]
    (entry,) = reports.actions(engine).actions
    assert (entry.kind, entry.who, entry.filter) == ("viewed", "alice", {"email_id": "m-1"})
    assert "hello" not in str(entry)
    outbox.erase(engine, payload()["user"])
    assert client.post("/emails/m-1/content", headers=BEARER).get_json()["code"] == "content_gone"
    assert client.post("/emails/m-2/content", headers=BEARER).status_code == 404
    assert len(reports.actions(engine, kind="viewed").actions) == 1


def test_what_waits_is_counted_by_priority_and_age(
    client: FlaskClient, engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(engine, config, "a", "b", priority="high")
    accept(engine, config, "c", send_at="2090-01-01T00:00:00Z")
    high, normal, low = reports.read_desk(engine).waiting
    assert (high.later, high.due, normal.later, normal.due) == (0, (2, 0, 0, 0), 1, (0, 0, 0, 0))
    assert (low.later, low.due, low.oldest_due_at, normal.oldest_due_at) == (0, (0, 0, 0, 0), None, None)
    assert high.oldest_due_at is not None
    monkeypatch.setattr(reports.waiting, "MAX_COUNTED", 1)
    monkeypatch.setattr(page, "MAX_COUNTED", 1)
    assert reports.read_desk(engine).waiting[0].due[0] == 2
    assert "<td>1+</td>" in client.get("/stats", headers=HTML).get_data(as_text=True)


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("2026-05-04T12:00:00.400Z", "now"),
        ("2026-05-04T11:59:18Z", "42 s ago"),
        ("2026-05-04T11:00:01Z", "59 min ago"),
        ("2026-05-04T09:00:00Z", "3 h ago"),
        ("2026-05-03T12:00:00Z", "1 day ago"),
        ("2026-04-04T12:00:00Z", "30 days ago"),
        ("2026-05-04T12:00:12.500Z", "in 12 s"),
    ],
)
def test_times_are_told_as_people_do(moment: str, told: str) -> None:
    assert page.ago(moment, "2026-05-04T12:00:00Z") == told


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ("550 5.1.1 no such user", "550 5.1.1 no such user"),
        ("RCPT: 550 <…> unknown, … sorry", "RCPT: 550 <"),
        ("… and a good deal more …", "and a good deal more"),
        ("a\nlonger line", "longer line"),
        ("…", ""),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_group_is_chosen_by_what_its_errors_have_in_common(error: str, part: str) -> None:
    assert page.common_part(error) == part


@ON_SQLITE
def test_a_group_of_the_page_chooses_its_letters(client: FlaskClient, engine: Engine, config: Config) -> None:
    fill(engine, config)
    outbox.resume(engine)
    shown = client.get("/stats", headers=HTML).get_data(as_text=True)
    link = re.search(r'href="(/stats/dead-letters\?[^"]*550[^"]*)"', shown)
    assert link, shown
    listed = client.get(link[1].replace("&amp;", "&")).get_json()
    assert {letter["email_id"] for letter in listed["dead_letters"]} == {EVIL_ID, "running"}
    assert DEFERRED.reply not in shown


@ON_SQLITE
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (f"/emails/{quote(EVIL_ID, safe='')}", 404, "There is no e-mail with the id"),
        ("/stats/dead-letters?cursor=x", 400, "cursor must be the `next_cursor` of a page."),
    ],
)
def test_a_refusal_is_a_page_to_a_visitor_and_a_problem_to_a_script(
    client: FlaskClient, path: str, status: int, words: str
) -> None:
    answer = client.get(path, headers=HTML)
    assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert words in answer.get_data(as_text=True)
    assert "<script>alert" not in answer.get_data(as_text=True)
    assert 'href="/stats/search"' in answer.get_data(as_text=True)
    for headers in ({}, HTML | {"X-Requested-With": "emailsvc"}):
        problem = client.get(path, headers=headers)
        assert (problem.status_code, problem.mimetype) == (status, "application/problem+json")


def test_the_latest_bounces_and_what_settled_itself_stand_on_the_page(
    client: FlaskClient, engine: Engine, config: Config
) -> None:
    def shown(of: str) -> bool:
        return f'id="{of}-head"' in client.get("/stats", headers=HTML).get_data(as_text=True)

    accept(engine, config, "sent", "doubt")
    made = claim(engine, config)
    record(engine, config, made, SENT, 0)
    record(engine, config, made, Result(Outcome.UNCERTAIN, "no reply"), 1)
    assert not shown("bounced")
    outbox.hear(engine, [heard("bounced", email_id="sent", kind=BounceKind.HARD, text=EVIL)])
    assert shown("bounced")
    assert not shown("settled")
    outbox.hear(engine, [heard("delivered", email_id="doubt")])
    assert shown("settled")
    page = client.get("/stats", headers=HTML).get_data(as_text=True)
    assert EVIL not in page
    assert page.index("Latest bounces") < page.index('href="/emails/sent"') < page.index("settled by a report</h2>")
