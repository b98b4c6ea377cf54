"""A server that takes anything for a line end must still see one message to one recipient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emailsvc.mail import Attachment, Message, Outcome
from emailsvc.mail.smtp import SmtpTransport
from tests.factories import a_message
from tests.smtpd import Smtpd
from tests.transport import at, send
from tests.unit.test_mail_message import decoded, lines, text_of

BREAKS = [
    "\r\n",
    "\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\0",
    "\r\n\r\n",
    "\n\n",
]


SMUGGLED = ["Bcc: eve@example.com", ".\r\nMAIL FROM:<eve@x>\r\nRCPT TO:<eve@x>\r\nDATA\r\nhello"]


ENCODED = [
    "=?utf-8?q?a=0ABcc:_eve=40example.com?=",
    "=?utf-8?q?a=0D=0ABcc:_eve=40example.com=0D=0A=0D=0Abody?=",
    "=?utf-8?b?YQ0KQmNjOiBldmVAZXhhbXBsZS5jb20=?=",
    "=?iso-8859-1?q?a=0A?= =?utf-8?q?Bcc:_eve=40example.com?=",
    "=?", "?=", "=?utf-8", "=?utf-8?q?", "a =?x?q?b?= c",
]  # fmt: skip


ENDS = [
    f"{left}.{right}" for left in ("\r\n", "\n", "\r", "\r\r\n", "\0\n") for right in ("\r\n", "\n", "\r", "\0\r\n")
]


def _cases() -> Iterator[tuple[str, str]]:
    in_headers = [f"hello{broken}{what}" for broken in BREAKS for what in SMUGGLED] + ENCODED
    in_bodies = [f"hello{end}MAIL FROM:<eve@x>\r\nRCPT TO:<eve@x>\r\nDATA\r\nX: y" for end in ENDS] + ENDS + in_headers
    for where in ("subject", "email_id", "header", "header name", "recipient", "from_address", "reply_to", "filename"):
        yield from ((where, text) for text in in_headers)
    for where in ("body", "html", "content"):
        yield from ((where, text) for text in in_bodies)


CASES = list(_cases())


def _with(where: str, text: str) -> Message:
    match where:
        case "header":
            return a_message(headers={"X-A": text})
        case "header name":
            return a_message(headers={text: "x"})
        case "from_address" | "recipient" | "reply_to":
            return a_message(**{where: f"{text}@example.com"})
        case "filename" | "content":
            name, content = (text, b"x") if where == "filename" else ("a.bin", text.encode())
            return a_message(attachments=[Attachment(name, "application/octet-stream", content)])
        case _:
            return a_message(**{where: text})


@pytest.fixture(scope="module")
def lenient() -> Iterator[tuple[Smtpd, SmtpTransport]]:
    with Smtpd(lenient=True) as server:
        transport = SmtpTransport(at(server), idempotency_header="X-Id")
        yield server, transport
        transport.close()


def test_there_are_enough_cases() -> None:
    assert len(CASES) > 300


@pytest.mark.parametrize(("where", "text"), CASES, ids=[f"{where}-{ascii(text)[:40]}" for where, text in CASES])
def test_nothing_is_smuggled(lenient: tuple[Smtpd, SmtpTransport], where: str, text: str) -> None:
    server, transport = lenient
    before, commands, mail = server.taken, len(server.commands), _with(where, text)
    result = send(transport, mail)
    if result.outcome is Outcome.REJECTED:
        assert "Unbuildable" in result.reply
        assert server.taken == before
        return
    assert result.outcome is Outcome.SENT
    assert server.taken == before + 1
    accepted = server.accepted[-1]
    assert accepted.recipients == (mail.recipient,)
    verbs = [line.split()[0].upper() for _, line in server.commands[commands:]]
    assert [verb for verb in verbs if verb not in ("EHLO", "RSET", "QUIT")] == ["MAIL", "RCPT", "DATA"]
    message = accepted.message
    allowed = {"date", "message-id", "from", "to", "subject", "auto-submitted", "mime-version", "x-id", "content-type"}
    allowed |= {"content-transfer-encoding", "reply-to"} | {name.lower() for name in mail.headers}
    assert {name.lower() for name in message} <= allowed
    assert len(message.keys()) == len(set(message.keys()))
    assert decoded(accepted.data, "Subject") == mail.subject
    assert decoded(accepted.data, "X-Id") == mail.email_id
    assert lines(text_of(accepted.data, "plain")) == lines(mail.body)
    assert mail.html is None or lines(text_of(accepted.data, "html")) == lines(mail.html)
    for sent, got in zip(mail.attachments, message.iter_attachments() if mail.attachments else (), strict=True):
        assert (got.get_filename(), got.get_payload(decode=True)) == (sent.filename, sent.content)
