"""A real Postfix with a mailbox behind it: what was posted is what arrives."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from sqlalchemy import Engine

from emailsvc import reports
from emailsvc.delivery.drain import Drain
from emailsvc.mail.smtp import SmtpTransport
from emailsvc.outbox import SentTogether
from emailsvc.settings.config import Config
from emailsvc.settings.parsers import SmtpServer
from tests.emails import accept
from tests.postfix import Postfix, postfix
from tests.servers import wait_for

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(params=["", "pipelining, 8bitmime"], ids=["pipelining", "no pipelining"])
def server(request: pytest.FixtureRequest) -> Iterator[Postfix]:
    with postfix(smtpd_discard_ehlo_keywords=request.param) as server:
        yield server


LONG = "".join(f"{n} " for n in range(3000))
CONTENTS: dict[str, dict[str, Any]] = {
    "plain": {"body": "Hello.\n.\n..\n.leading dot\nFrom here\n\nBye.\n"},
    "eight-bit": {"subject": "Grüße, 東京 🚀", "body": "Grüße\n東京\n🚀\n", "html": "<p>Grüße 東京 🚀</p>\n"},
    "long-lines": {"body": LONG + "\n", "html": f"<p>{LONG}</p>\n", "subject": "Wort " * 190},
    "header": {"body": "x\n", "headers": {"List-Unsubscribe": f"<https://example.com/{'u' * 700}>"}},
    "attached": {
        "body": "See below.\n",
        "html": "<p>See below.</p>\n",
        "attachments": [
            {"filename": "Rechnung März.pdf", "content_type": "application/pdf", "content": bytes(range(256)) * 400},
            {"filename": "a.csv", "content_type": "text/csv; charset=utf-8", "content": "ä;b\r\n.\r\n".encode()},
        ],
    },
}


def _text(part: Any) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


def _posted(fields: dict[str, Any]) -> dict[str, Any]:
    attachments = [
        {**a, "content": base64.b64encode(a["content"]).decode()} for a in fields.get("attachments", [])
    ]  # fmt: skip
    return {**fields, "attachments": attachments}


def test_everything_arrives_as_it_was_posted(engine: Engine, config: Config, server: Postfix) -> None:
    for name, fields in CONTENTS.items():
        accept(engine, config, name, **{"user": "box@example.test", "subject": name, **_posted(fields)})
    transport = SmtpTransport(SmtpServer("127.0.0.1", server.port, "none"))
    Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
    transport.close()
    assert reports.stats(engine).sent == len(CONTENTS), reports.dead_letters(engine)
    wait_for(lambda: len(server.mails()) == len(CONTENTS), 30, lambda: f"the mailbox to fill\n{server.log()}")
    arrived = {mail["Message-ID"]: mail for mail in server.mails()}
    for name, fields in CONTENTS.items():
        _compare(arrived[reports.email(engine, name).message_id], name, fields)


def _compare(mail: EmailMessage, name: str, fields: dict[str, Any]) -> None:
    assert mail["To"] == "box@example.test"
    assert mail["Subject"].strip() == fields.get("subject", name).strip()
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert _text(plain) == fields["body"]
    assert (html is not None) == ("html" in fields)
    if html is not None:
        assert _text(html) == fields["html"]
    for header, value in fields.get("headers", {}).items():
        assert mail[header] == value
    got = [(part.get_filename(), part.get_payload(decode=True)) for part in mail.iter_attachments()]
    assert got == [(a["filename"], a["content"]) for a in fields.get("attachments", [])]
