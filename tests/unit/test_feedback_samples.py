"""Every documented body of every provider, and each of them spoilt in 200 ways."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from emailsvc import feedback
from emailsvc.errors import InvalidPayload
from emailsvc.feedback import dsn, ses
from emailsvc.feedback.events import MAX_TEXT, Event
from emailsvc.feedback.providers import PROVIDERS
from emailsvc.feedback.reference import HEADERS
from emailsvc.feedback.routes import READERS
from emailsvc.feedback.sendgrid import MAX_EVENTS
from emailsvc.vocabulary import Report
from tests.samples import FILES, REFERENCE, SAMPLES, name_of, spoilt

CHAPTER = Path(feedback.__file__).with_name("README.md").read_text()

EXPECTED: dict[str, list[tuple[str | None, ...]]] = {
    "ses/notification-examples-bounce-with-dsn": [("bounced", "hard", "5.1.1")],
    "ses/notification-examples-bounce-without-dsn": [("bounced", "hard", None)] * 2,
    "ses/notification-contents-bounce-of-two": [("bounced", "hard", "5.0.0"), ("deferred", "hard", "4.0.0")],
    "ses/notification-examples-bounce-without-headers": [("bounced", "hard", "5.1.1")],
    "ses/notification-examples-complaint-with-feedback": [("complained", None, None)],
    "ses/notification-examples-complaint-without-feedback": [("complained", None, None)],
    "ses/notification-examples-delivery": [("delivered", None, None)],
    "ses/event-publishing-retrieving-sns-examples-bounce": [("bounced", "soft", "4.2.2")],
    "ses/event-publishing-retrieving-sns-examples-complaint": [("unknown", None, None)],
    "ses/event-publishing-retrieving-sns-examples-delivery": [("delivered", None, None)],
    "ses/event-publishing-retrieving-sns-examples-delivery-delay": [("deferred", None, "4.4.1")],
    "ses/event-publishing-retrieving-sns-examples-reject": [("rejected", None, None)],
    "ses/event-publishing-retrieving-sns-examples-send": [("send", None, None)],
    "ses/event-publishing-retrieving-sns-examples-open": [("open", None, None)],
    "ses/event-publishing-retrieving-sns-examples-click": [("click", None, None)],
    "ses/event-publishing-retrieving-sns-examples-rendering-failure": [("rendering failure", None, None)],
    "ses/event-publishing-retrieving-sns-examples-subscription": [("subscription", None, None)],
    "ses/monitor-sending-using-event-publishing-setup-topic-validated": [],
    "ses/http-subscription-confirmation-json": [],
    "ses/http-unsubscribe-confirmation-json": [],
    "ses/sns-large-payload-raw-message-delivery-bounce": [("bounced", "hard", "5.1.1")],
    "sendgrid/event-webhook-reference-processed": [("processed", None, None)],
    "sendgrid/event-webhook-reference-deferred": [("deferred", None, None)],
    "sendgrid/event-webhook-reference-delivered": [("delivered", None, None)],
    "sendgrid/event-webhook-reference-bounce": [("bounced", "hard", "5.1.1")],
    "sendgrid/event-webhook-reference-blocked": [("bounced", "soft", "5.7.1")],
    "sendgrid/event-webhook-reference-dropped": [("rejected", None, "5.0.0")],
    "sendgrid/event-webhook-reference-spamreport": [("complained", None, None)],
    "sendgrid/event-webhook-reference-batch": [
        *(("processed", None, None), ("deferred", None, None), ("delivered", None, None), ("open", None, None)),
        *(("click", None, None), ("bounced", "hard", "5.0.0"), ("rejected", None, "5.0.0"), ("complained", None, None)),
        *(("unsubscribe", None, None), ("group_unsubscribe", None, None), ("group_resubscribe", None, None)),
        ("account_status_change", None, None),
    ],
    "sendgrid/unique-arguments-delivered": [("delivered", None, None)],
    "postmark/bounce-webhook-hard-bounce": [("bounced", "hard", "5.1.1")],
    "postmark/bounce-webhook-soft-bounce": [("bounced", "soft", "4.2.2")],
    "postmark/bounce-webhook-transient": [("deferred", None, None)],
    "postmark/bounce-webhook-blocked": [("bounced", "soft", "5.7.1")],
    "postmark/bounce-webhook-auto-responder": [("autoresponded", None, None)],
    "postmark/bounce-webhook-spam-notification": [("complained", None, None)],
    "postmark/delivery-webhook": [("delivered", None, "2.0.0")],
    "postmark/spam-complaint-webhook": [("complained", None, None)],
    "postmark/open-tracking-webhook": [("open", None, None)],
    "postmark/click-webhook": [("click", None, None)],
    "postmark/subscription-change-webhook": [("subscriptionchange", None, None)],
    "mailgun/webhook-payloads-accepted": [("accepted", None, None)],
    "mailgun/webhook-payloads-delivered": [("delivered", None, "2.0.0")],
    "mailgun/webhook-payloads-failed-permanent": [("bounced", "hard", "5.1.1")],
    "mailgun/webhook-payloads-failed-suppressed": [("rejected", None, "605")],
    "mailgun/webhook-payloads-failed-temporary": [("deferred", None, "4.2.2")],
    "mailgun/webhook-payloads-complained": [("complained", None, None)],
    "mailgun/webhook-payloads-opened": [("opened", None, None)],
    "mailgun/webhook-payloads-clicked": [("clicked", None, None)],
    "mailgun/webhook-payloads-unsubscribed": [("unsubscribed", None, None)],
    "resend/webhooks-emails-sent": [("email.sent", None, None)],
    "resend/webhooks-emails-delivered": [("delivered", None, None)],
    "resend/webhooks-emails-delivery-delayed": [("deferred", None, None)],
    "resend/webhooks-emails-delivery-delayed-without-headers": [("deferred", None, None)],
    "resend/webhooks-emails-bounced": [("bounced", "hard", None)],
    "resend/webhooks-emails-bounced-transient": [("bounced", "soft", None)],
    "resend/webhooks-emails-bounced-2023": [("bounced", "hard", None)],
    "resend/webhooks-emails-complained": [("complained", None, None)],
    "resend/webhooks-emails-failed": [("rejected", None, None)],
    "resend/webhooks-emails-suppressed": [("rejected", None, None)],
    "resend/webhooks-emails-opened": [("email.opened", None, None)],
    "resend/webhooks-emails-clicked": [("email.clicked", None, None)],
    "resend/webhooks-contacts-created": [("contact.created", None, None)],
    "dsn/rfc3464-2-envelope-id": [("bounced", "hard", "5.1.1")],
    "dsn/rfc3464-2-returned-headers": [("bounced", "hard", "5.1.1")],
    "dsn/rfc3464-2-returned-message": [("bounced", "hard", "5.1.1")],
    "dsn/rfc3464-2.1-two-recipients": [("bounced", "hard", "5.1.1"), ("bounced", "soft", "4.2.2")],
    "dsn/rfc3464-2.3.3-delayed": [("deferred", None, "4.4.1")],
    "dsn/rfc3464-2.3.3-delivered": [("delivered", None, "2.0.0")],
    "dsn/rfc3464-2.3.3-relayed": [("relayed", None, "2.0.0")],
    "dsn/rfc3464-2.3.6-gateway": [("bounced", "hard", "5.0.0")],
    "dsn/rfc6533-4-international": [("bounced", "hard", "5.1.1")],
    "dsn/rfc3834-vacation": [("bounced", None, None)],
}
WITHOUT_REFERENCE = {
    "ses/notification-examples-bounce-without-headers",
    "ses/event-publishing-retrieving-sns-examples-rendering-failure",
    "resend/webhooks-emails-delivery-delayed-without-headers",
    "resend/webhooks-contacts-created",
    "dsn/rfc3834-vacation",
}


def read(path: Path, raw: bytes) -> list[Event]:
    return READERS[path.parent.name](raw)


each_sample = pytest.mark.parametrize("path", FILES, ids=name_of)


@each_sample
def test_a_documented_body_becomes_its_events(path: Path) -> None:
    events = read(path, path.read_bytes())
    assert [(one.event, one.kind, one.code) for one in events] == EXPECTED[name_of(path)]
    about_the_account = [one.event for one in events].count("account_status_change")
    references = [one.reference for one in events]
    told = len(events) - about_the_account if name_of(path) not in WITHOUT_REFERENCE else 0
    assert references.count(REFERENCE) == told
    assert references.count(None) == len(events) - told


def test_each_sample_is_named_by_the_day_and_expected() -> None:
    assert all(re.match(r"\d{4}-\d\d-\d\d-", path.name) for path in FILES)
    assert sorted(map(name_of, FILES)) == sorted(EXPECTED)


def test_the_words_and_the_time_of_a_report_are_kept() -> None:
    told = {
        name_of(path): [(one.text, one.at) for one in read(path, path.read_bytes())] for path in FILES
    }  # fmt: skip
    moment = datetime(2026, 11, 2, 8, 0, 4, 500000, tzinfo=UTC)
    assert told["ses/notification-examples-bounce-with-dsn"] == [
        ("smtp; 550 5.1.1 <ann@example.net>: mailbox unavailable", moment)
    ]
    assert told["ses/notification-examples-bounce-without-dsn"][0] == ("Permanent, General", moment)
    assert told["sendgrid/event-webhook-reference-blocked"] == [
        ("554 5.7.1 refused by policy", datetime(2026, 11, 2, 8, 0, 3, tzinfo=UTC))
    ]
    assert told["postmark/bounce-webhook-hard-bounce"] == [
        ("smtp;550 5.1.1 <ann@example.net> unknown", datetime(2026, 11, 2, 8, 0, 4, 907025, tzinfo=UTC))
    ]
    assert told["mailgun/webhook-payloads-failed-permanent"] == [
        ("5.1.1 no such mailbox", datetime(2026, 11, 2, 8, 0, 3, 519000, tzinfo=UTC))
    ]
    assert told["resend/webhooks-emails-bounced"][0][0] == "smtp; 550 5.1.1 no such mailbox"
    assert told["resend/webhooks-emails-bounced-transient"][0][0] == "The mailbox is full."
    assert told["resend/webhooks-emails-failed"][0][0] == "reached_daily_quota"
    assert told["dsn/rfc3464-2-envelope-id"] == [
        (
            "550 5.1.1 <ann@example.net>: Recipient address rejected: no such mailbox",
            datetime(2026, 11, 2, 8, 0, 3, tzinfo=UTC),
        )
    ]
    assert told["dsn/rfc6533-4-international"][0][0] == "550 5.1.1 Postfach unbekannt: jürgen"


# The chapter


def test_the_provider_that_the_chapter_adds_is_one() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)
    module: dict[str, Any] = {}
    exec(compile(code, "the chapter", "exec", dont_inherit=True), module)
    told = {"type": "bounce", "metadata": {"ref": REFERENCE}, "time": 1793606403, "words": "550 no", "more": [1]}
    (event,) = module["read"](json.dumps(told).encode())
    assert (event.event, event.kind, event.reference, event.text) == (Report.BOUNCED, "hard", REFERENCE, "550 no")
    assert [one.event for one in module["read"](b'{"type": "opened"}')] == ["opened"]
    with pytest.raises(InvalidPayload, match="type"):
        module["read"](b"{}")


def test_the_chapter_names_every_provider_with_the_header_that_it_hands_back() -> None:
    rows = re.findall(r"^\| \w+(?: \w+)? \| `/reports/(\w+)` \| (?:`([\w-]+)`|–) \|", CHAPTER, re.MULTILINE)
    assert {route for route, _ in rows} == PROVIDERS.keys()
    assert {header for _, header in rows if header} == HEADERS.keys() - {"X-Email-Ref"}
    assert all(name in CHAPTER for name in ("subscription_to_confirm", "/reports/dsn", "BOUNCE_ADDRESS"))


# Amazon's request to confirm a subscription


def test_only_a_confirmation_url_of_amazon_is_shown() -> None:
    body = json.loads((SAMPLES / "ses" / "2026-11-24-http-subscription-confirmation-json.json").read_text())
    url = body["SubscribeURL"]
    assert ses.confirmation(json.dumps(body).encode()) == url
    host = "sns.eu-central-1.amazonaws.com"
    for other in (
        url.replace("https", "http"),
        url.replace(host, f"{host}.example.org"),
        url.replace(host, "sns.eu-central-1.example.org"),
        url.replace(host, f"{host}@example.org"),
        url.replace(host, f"example.org/{host}"),
        f" {url}",
        f"{url}\n",
        f"{url} x",
        "javascript:alert(1)",
        "",
    ):
        with pytest.raises(InvalidPayload, match="no address of Amazon"):
            ses.confirmation(json.dumps(body | {"SubscribeURL": other}).encode())


def test_no_other_body_asks_for_a_confirmation() -> None:
    asking = [
        path.stem[len("2026-11-24-") :] for path in (SAMPLES / "ses").iterdir() if ses.confirmation(path.read_bytes())
    ]
    assert asking == ["http-subscription-confirmation-json"]


# Spoilt bodies

breaks = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search


@each_sample
def test_a_spoilt_body_is_refused_clearly_or_becomes_clean_events(path: Path) -> None:
    for raw in spoilt(path):
        try:
            events = read(path, raw)
        except InvalidPayload:
            if path.parent.name == "dsn":
                raise  # a pipe would try it again for days
            continue
        for one in events:
            texts = [one.event, one.reference, one.code, one.text]
            assert all(text is None or (not breaks(text) and len(text) <= MAX_TEXT) for text in texts), raw


@pytest.mark.parametrize("name", sorted(PROVIDERS))
@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"a=b&c=d"]
)
def test_what_is_no_body_of_a_provider_is_refused_or_tells_nothing(name: str, raw: bytes) -> None:
    with suppress(InvalidPayload):
        assert READERS[name](raw) == []


def test_a_million_events_in_one_body_are_refused() -> None:
    with pytest.raises(InvalidPayload) as refusal:
        READERS["sendgrid"](b"[" + b",".join([b"{}"] * 1_000_000) + b"]")
    assert (refusal.value.code, refusal.value.status) == ("too_many", 400)
    assert len(READERS["sendgrid"](b"[" + b",".join([b"{}"] * MAX_EVENTS) + b"]")) == MAX_EVENTS


def test_one_event_that_cannot_be_read_costs_its_neighbours_nothing() -> None:
    good = json.loads((SAMPLES / "sendgrid" / "2026-11-24-event-webhook-reference-bounce.json").read_text())[0]
    events = READERS["sendgrid"](json.dumps([good, {"event": 1}, 7, good]).encode())
    assert [(one.event, one.reference) for one in events] == [
        *((Report.BOUNCED, REFERENCE), (Report.BOUNCED, None), (Report.BOUNCED, None), (Report.BOUNCED, REFERENCE))
    ]


# Bounce mail that somebody made up


def sample(name: str) -> str:
    return (SAMPLES / "dsn" / f"2026-11-24-{name}.eml").read_text()


def nested(depth: int, inner: str) -> str:
    for level in range(depth):
        inner = f'Content-Type: multipart/mixed; boundary="b{level}"\n\n--b{level}\n{inner}\n--b{level}--\n'
    return inner


HOSTILE: dict[str, Callable[[], str]] = {
    "nested 1,000 deep": lambda: nested(1000, sample("rfc3464-2-envelope-id")),
    "nested 900 deep, and many short lines": lambda: nested(900, "\n" * 200_000),
    "many parts": lambda: sample("rfc3464-2-envelope-id").replace("--=_part_0815\n", "--=_part_0815\n" * 20_000, 1),
    "many recipients": lambda: sample("rfc3464-2-envelope-id").replace("\nFinal", "\nAction: failed\n" * 20_000),
    "many fields": lambda: "X: y\n" * 60_000 + "\nhello\n",
    "a field of quotes": lambda: "Content-Type: multipart/report;" + ';"' * 120_000 + "\n\nhello\n",
    "a field of blanks": lambda: "Content-Type: multipart/report" + " ; boundary " * 20_000 + "\n\nhello\n",
    "a folded field": lambda: "Content-Type: multipart/report\n" + " x\n" * 80_000 + "\nhello\n",
    "blank lines": lambda: sample("rfc3464-2-envelope-id").replace("Action:", " \t" * 100_000 + "\nAction:"),
    "a hundred times as long as is read": lambda: sample("rfc3464-2-returned-message") + "x" * 50_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bounce_mail_that_was_made_to_hurt_takes_little_time(name: str) -> None:
    raw = HOSTILE[name]().encode()
    start = time.thread_time()
    events = dsn.read(raw)
    assert time.thread_time() - start < 2
    assert 1 <= len(events) <= dsn.MAX_RECIPIENTS + 1


def test_what_comes_first_in_a_long_bounce_mail_counts() -> None:
    (event,) = dsn.read(HOSTILE["a hundred times as long as is read"]().encode())
    assert (event.event, event.reference) == (Report.BOUNCED, REFERENCE)


def test_what_is_encoded_in_a_bounce_mail_is_decoded() -> None:
    mail = sample("rfc3464-2-returned-headers").replace(
        "Content-Type: message/delivery-status\n",
        "Content-Type: Message/Delivery-Status; name=x\nContent-Transfer-Encoding: Quoted-Printable\n",
    )
    mail = mail.replace("Status: 5.1.1", "Status: =35.1.1").replace('boundary="=_part_0815"', "boundary==_part_0815")
    (event,) = dsn.read(mail.replace("\n", "\r\n").encode())
    assert (event.event, event.code, event.reference) == (Report.BOUNCED, "5.1.1", REFERENCE)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 99:99:99 +9999", "1"])
def test_a_bounce_mail_without_the_time_of_the_attempt_is_as_old_as_itself(date: str) -> None:
    mail = sample("rfc3464-2-envelope-id").replace("Date: Mon, 2 Nov 2026 08:00:03 +0000", f"Date: {date}")
    assert [one.at for one in dsn.read(mail.encode())] == [datetime(2026, 11, 2, 8, 0, 4, tzinfo=UTC)]
    mail = re.sub(r"(?m)^Date: .*$", f"Date: {date}", mail)
    assert [(one.event, one.at) for one in dsn.read(mail.encode())] == [(Report.BOUNCED, None)]


def test_an_envelope_id_of_another_server_hides_no_returned_header() -> None:
    mail = sample("rfc3464-2-returned-headers").replace("Reporting-MTA", "Original-Envelope-Id: QQ1\nReporting-MTA")
    assert [one.reference for one in dsn.read(mail.encode())] == [REFERENCE]


def test_a_receipt_for_reading_is_no_bounce() -> None:
    """RFC 8098: it returns the headers, too."""
    mail = sample("rfc3464-2-returned-headers").replace("delivery-status", "disposition-notification")
    assert [one.reference for one in dsn.read(mail.encode())] == [None]


@pytest.mark.parametrize(
    "header", ["x-email-ref: {}", "X-PM-Metadata-ref: {}", 'X-SMTPAPI: {{"unique_args": {{"ref": "{}"}}}}']
)
def test_whichever_header_carries_the_reference_is_found(header: str) -> None:
    mail = sample("rfc3464-2-returned-headers").replace(f"X-Email-Ref: {REFERENCE}", header.format(REFERENCE))
    assert [one.reference for one in dsn.read(mail.encode())] == [REFERENCE]
    other = mail.replace(REFERENCE, f"x{REFERENCE}")
    assert [one.reference for one in dsn.read(other.encode())] == [None]
