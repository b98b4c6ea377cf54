"""An operator's day, in a real browser: what must be found, seen and put right from the page alone."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser import Browser
from tests.conftest import started
from tests.factories import payload
from tests.servers import wait_for
from tests.smtpd import Smtpd
from tests.stack import TOKEN, Stack, copies, smtp_url

EVIL = "<script>document.title = 'evil'</script><img src=x onerror=\"document.title = 'evil'\">"
ROWS = "document.querySelectorAll('.rows > li').length"
SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)


@pytest.fixture(scope="module")
def server() -> Iterator[Smtpd]:
    with Smtpd() as server:
        yield server


@pytest.fixture(scope="module")
def stack(server: Smtpd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A deploy in which some e-mails were refused: 3 in one way, 5 in another."""
    server.behaviour.refuse = refused
    stack = Stack(tmp_path_factory.mktemp("page"), SMTP_URL=smtp_url(server), WEB_CONCURRENCY="1")
    stack.start(workers=1)
    batch = [payload(f"order-{number}", user=f"user{number}@example.com") for number in range(4)]
    batch += [payload(f"gone-{number}", user=f"gone-{number}@example.com") for number in range(3)]
    batch += [payload(f"blocked-{number}", user=f"blocked-{number}@example.com") for number in range(5)]
    batch.append(payload("evil", user="user@example.com", subject=EVIL, body=EVIL, html=EVIL))
    batch.append(payload("later", user="later@example.com", send_at="2090-01-01T00:00:00Z"))
    assert stack.post({"emails": batch}, "/webhook/email/batch").status == 200
    wait_for(lambda: stack.stats()["sent"] == 5 and stack.stats()["failed"] == 8, 30, lambda: str(stack.stats()))
    yield stack
    stack.stop()


def refused(recipient: str) -> str | None:
    replies = {"gone": f"550 5.1.1 gone {EVIL}", "blocked": "550 5.7.1 blocked by policy"}
    return replies.get(recipient.partition("-")[0])


@pytest.fixture(scope="module")
def browser(stack: Stack) -> Iterator[Browser]:
    """Logged in as an operator does: the address asks for a password once."""
    browser: Browser = started(Browser)
    try:
        browser.go(f"http://operator:{TOKEN}@127.0.0.1:{stack.port}/stats")
        browser.show(width=1280, scheme="light")
        yield browser
    finally:
        browser.close()


@pytest.fixture(autouse=True)
def _nothing_amiss(browser: Browser, stack: Stack) -> Iterator[None]:
    """The console stays empty, and nobody else is asked for anything."""
    browser.complaints.clear()
    browser.requested.clear()
    yield
    assert not browser.complaints
    asked = {urlsplit(url).netloc.rpartition("@")[2] for url in browser.requested if not url.startswith("data:")}
    assert asked <= {f"127.0.0.1:{stack.port}"}


def visit(browser: Browser, stack: Stack, path: str) -> None:
    browser.go("about:blank")
    browser.go(f"http://127.0.0.1:{stack.port}{path}")


def sql(stack: Stack, statement: str) -> None:
    with closing(sqlite3.connect(stack.folder / "instance" / "emailsvc.db")) as connection, connection:
        connection.execute(statement)


def said(browser: Browser, text: str) -> None:
    browser.wait(f"[...document.querySelectorAll('output')].some(each => each.innerText.includes({json.dumps(text)}))")


def test_the_numbers_are_those_of_stats(browser: Browser, stack: Stack) -> None:
    visit(browser, stack, "/stats")
    told = browser.run(
        "Object.fromEntries([...document.querySelectorAll('[id^=total-]')].map(e => [e.id.slice(6), e.innerText]))"
    )
    stats = stack.stats()
    assert {name: int(number.replace(",", "")) for name, number in told.items()}.items() <= stats.items()
    assert len(told) == 10
    bars = {
        label.split()[0]: label for label in browser.run("[...document.querySelectorAll('svg')].map(e => e.ariaLabel)")
    }
    for name in ("received", "sent", "failed", "duplicates"):
        assert f"by hour: {stats[name]} in all" in bars[name]
    assert re.search(r"as of \d\d:\d\d:\d\d UTC", browser.text())
    assert "1 worker alive" in browser.text()


def test_an_email_is_found_and_its_content_shown_as_text(browser: Browser, stack: Stack) -> None:
    visit(browser, stack, "/stats")
    browser.fill("#find [name=for]", "USER@example.com")
    browser.click("Find")
    browser.wait(f"{ROWS} === 1")
    assert EVIL in browser.text("#results")
    browser.click("evil", within="#results")
    browser.wait("document.querySelectorAll('.timeline li').length === 2")
    assert "250" in browser.text(".timeline")
    assert browser.run("document.querySelector('pre')") is None
    browser.click("Show the content")
    browser.wait("document.querySelectorAll('#content pre').length === 2")
    assert browser.run("[...document.querySelectorAll('pre')].map(e => e.textContent)") == [EVIL, EVIL]
    assert browser.run("document.title") == "evil · emailsvc"
    visit(browser, stack, "/actions?kind=viewed")
    assert "viewed evil" in " ".join(browser.text("main").split())
    for text, found in (("order-2", "order-2"), ("gone-1@example.com", "gone-1"), ("nobody@example.com", "No e-mail")):
        visit(browser, stack, f"/stats/search#for={text}")
        browser.wait(f"document.getElementById('results').innerText.includes({json.dumps(found)})")


def test_a_group_is_sent_again_and_seen_sent(browser: Browser, stack: Stack, server: Smtpd) -> None:
    server.behaviour.refuse = None
    before = stack.stats()
    visit(browser, stack, "/stats")
    browser.click("Replay", within=group("gone"))
    browser.wait("document.getElementById('question').open")
    assert browser.text("#asked") == "Send 3 e-mails again?"
    browser.click("Leave as it is", within="dialog")
    assert stack.stats() == before
    browser.click("Replay", within=group("gone"))
    browser.click("Replay", within="dialog[open]")
    said(browser, "Sent again: 3")
    wait_for(lambda: stack.stats()["sent"] == before["sent"] + 3, 20, "them to be sent")
    browser.run("refresh()")
    assert browser.text("#total-sent") == str(before["sent"] + 3)
    assert {copies(server)[f"gone-{number}"] for number in range(3)} == {1}
    visit(browser, stack, "/emails/gone-1")
    assert [line for line in browser.text(".timeline").split() if line in ("replayed", "sent")] == ["replayed", "sent"]


def group(word: str) -> str:
    return f"li[data-key^=group-][data-key*={word}]"


def test_an_action_at_a_rate_is_shown_and_stopped(browser: Browser, stack: Stack) -> None:
    stack.request("POST", "/delivery/pause")
    before = stack.stats()["dead_letters"]
    visit(browser, stack, "/stats")
    browser.click("Replay", within=group("blocked"))
    browser.wait("document.getElementById('question').open")
    browser.fill("[name=rate]", "0.1")
    browser.click("Replay", within="dialog[open]")
    said(browser, "Begun: 5 to move")
    browser.wait("document.querySelector('progress')?.max === 5")
    browser.click("Stop")
    browser.click("Stop", within="dialog[open]")
    said(browser, "Stopped")
    (stopped,) = stack.get("/actions?kind=replayed&state=stopped").json["actions"]
    assert (stopped["total"], stopped["done"]) == (5, 0)
    assert stack.stats()["dead_letters"] == before
    stack.request("POST", "/delivery/resume")


def test_delivery_is_paused_resumed_and_an_outage_ended(browser: Browser, stack: Stack) -> None:
    visit(browser, stack, "/stats")
    browser.click("Pause")
    browser.wait("document.getElementById('question').open")
    browser.fill("[name=reason]", "moving house")
    browser.click("Pause", within="dialog[open]")
    said(browser, "Paused")
    browser.wait("document.querySelector('#paused')?.innerText.includes('moving house')")
    assert stack.stats()["delivery"]["reason"] == "moving house"
    in_future = "strftime('%Y-%m-%d %H:%M:%f', 'now', '+600 seconds') || '000'"
    since = "outage_since = '2026-01-01 00:00:00.000000', outage_reason = 'refused'"
    sql(stack, f"UPDATE switch SET {since}, next_probe_at = {in_future}")
    browser.click("Resume")
    said(browser, "Resumed")
    browser.wait("document.querySelector('#outage')?.innerText.includes('Next probe in 9 min')")
    browser.click("End outage")
    browser.click("End outage", within="dialog[open]")
    browser.wait("document.getElementById('delivery-head').innerText.includes('running')")
    assert stack.stats()["delivery"]["state"] == "running"


def test_a_refresh_takes_neither_place_nor_focus_nor_an_open_question(browser: Browser, stack: Stack) -> None:
    visit(browser, stack, "/stats")
    browser.run("document.querySelector('details').open = true")
    browser.run("document.querySelector('.rows a').focus({ preventScroll: true }); scrollTo(0, 300)")
    sent = stack.stats()["sent"] + 1
    stack.post(payload("new", user="new@example.com"))
    wait_for(lambda: stack.stats()["sent"] == sent, 20, "it to be sent")
    browser.run("refresh()")
    assert browser.text("#total-sent") == str(sent)
    assert browser.run("[scrollY, document.querySelector('details').open]") == [300, True]
    assert browser.run("document.activeElement.tagName") == "A"
    browser.click("Pause")
    browser.fill("[name=reason]", "half a senten")
    browser.run("refresh()")
    assert browser.run("[document.getElementById('question').open, document.activeElement.value]") == [
        True,
        "half a senten",
    ]
    browser.click("Leave as it is", within="dialog")
    assert browser.run("document.activeElement.innerText") == "Pause"


def test_without_the_service_the_page_says_so(browser: Browser, stack: Stack) -> None:
    visit(browser, stack, "/stats")
    browser.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    browser.run("refresh()")
    assert "cannot be reached" in browser.text("#offline")
    assert browser.run("document.body.className") == "away"
    browser.call(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    browser.run("refresh()")
    assert browser.text("#offline") == ""
    browser.complaints = [one for one in browser.complaints if "ERR_INTERNET_DISCONNECTED" not in one]


PAGES = (
    "/stats", "/stats/dead-letters?reason=rejected", "/emails/evil", "/emails/later", "/actions",
    "/stats/search#state=sent",
)  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_everybody_can_use_it(browser: Browser, stack: Stack, path: str) -> None:
    visit(browser, stack, path)
    if "#" in path:
        browser.wait(f"{ROWS} > 0")
    for width, scheme in product(WIDTHS, SCHEMES):
        browser.show(width=width, scheme=scheme)
        assert not started(browser.violations), (width, scheme)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"sideways at {width}"
        assert not browser.run(SMALL), f"targets below 24 px at {width}"


SMALL = (
    "[...document.querySelectorAll('button, input, select, summary, a.button, nav a, .what a')]"
    ".filter(e => e.checkVisibility() && e.type !== 'checkbox' && e.getBoundingClientRect().height < 24)"
    ".map(e => e.outerHTML)"
)


def test_it_goes_by_keyboard(browser: Browser, stack: Stack) -> None:
    browser.show(width=1280, scheme="light")
    visit(browser, stack, "/stats")
    seen: list[Any] = []
    for _ in range(14):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen.append(
            browser.run("document.activeElement.innerText || document.activeElement.name || document.activeElement.id")
        )
    assert seen[:9] == [
        "Skip to the content",
        "emailsvc",
        "Overview",
        "Dead letters",
        "Search",
        "Journal",
        "for",
        "Find",
        "show-utc",
    ]
    assert "Pause" in seen
