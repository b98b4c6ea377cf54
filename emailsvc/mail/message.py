"""A message as the bytes that follow DATA (RFC 5322, MIME), before dot-stuffing. Nothing but ASCII unless SMTPUTF8.

Assembled by hand: EmailMessage takes ten times as long, and both it and the older classes have let header texts through
that a reader decodes to something else. Every line ends with CRLF; whatever could be misread on its way is encoded.
The same message gives the same bytes: a provider that de-duplicates by a key may compare the content, too.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from email.utils import format_datetime

from emailsvc.mail import Attachment, Message
from emailsvc.mail.header import (
    MAX_WORD,
    Unbuildable,
    attachment_name,
    envelope_address,
    field,
    raw_field,
)

# Safe as it is: printable ASCII, tabs and line feeds, in lines that no relay breaks.
_seven_bit = re.compile(rf"(?:[\t -~]{{0,{MAX_WORD}}}+\n)*+[\t -~]{{0,{MAX_WORD}}}+").fullmatch
_message_id = re.compile(r"<[!-;=?A-~]+@[!-;=?A-~]+>").fullmatch
_ASCII = bytes(range(128))
BASE64_BLOCK = 57 * 1024  # whole lines of 76 characters


@dataclass(frozen=True, slots=True)
class Letter:
    """A message ready to go: its envelope, and the bytes that follow DATA."""

    message: Message
    from_address: str
    recipient: str
    data: bytes
    international: bool  # raw UTF-8 in an address, which needs a server with SMTPUTF8 (RFC 6531)


def build(message: Message, idempotency_header: str | None = None) -> Letter:
    """Raises Unbuildable for what cannot be sent exactly as it is."""
    from_address, recipient = envelope_address(message.from_address), envelope_address(message.recipient)
    reply_to = None if message.reply_to is None else envelope_address(message.reply_to)
    try:
        head = "\r\n".join(_head(message, from_address, recipient, reply_to, idempotency_header))
        data = f"{head}\r\n".encode() + _content(message)
    except UnicodeEncodeError as exc:
        raise Unbuildable(f"a text cannot be encoded: {exc.reason}") from exc
    if not data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n"):
        # must not happen; would be SMTP smuggling (CVE-2023-51764) if it did
        raise Unbuildable("a line end is not CRLF")
    return Letter(message, from_address, recipient, data, not f"{from_address}{recipient}{reply_to}".isascii())


def _head(
    message: Message, from_address: str, recipient: str, reply_to: str | None, idempotency_header: str | None
) -> list[str]:
    if not _message_id(message.message_id):
        raise Unbuildable("the Message-ID is not of the form <left@right>")
    lines = [
        raw_field("Date", format_datetime(message.date)),
        raw_field("Message-ID", message.message_id),
        raw_field("From", from_address),
        raw_field("To", recipient),
        field("Subject", message.subject),
        "Auto-Submitted: auto-generated",  # RFC 3834: robots do not answer
        "MIME-Version: 1.0",
    ]
    if reply_to is not None:
        lines.append(raw_field("Reply-To", reply_to))
    if idempotency_header:
        lines.append(field(idempotency_header, message.email_id))
    lines += [field(name, value) for name, value in message.headers.items()]
    _no_field_twice(lines)
    return lines


def _no_field_twice(lines: list[str]) -> None:
    """One that was accepted may have become ours since: IDEMPOTENCY_HEADER is a setting."""
    seen = {"content-type", "content-transfer-encoding"}
    for line in lines:
        name = line.partition(":")[0].lower()
        if name in seen:
            raise Unbuildable(f"the header field {name} is given twice")
        seen.add(name)


def _content(message: Message) -> bytes:
    """The part's own fields, an empty line, and its content; ends with CRLF."""
    part = _text("plain", message.body)
    if message.html is not None:
        part = _multipart("alternative", [part, _text("html", message.html)])
    if message.attachments:
        part = _multipart("mixed", [part, *map(_attachment, message.attachments)])
    return part if part.endswith(b"\r\n") else part + b"\r\n"


def _text(subtype: str, text: str) -> bytes:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _seven_bit(text):
        charset, encoding, content = "us-ascii", "7bit", text.encode().replace(b"\n", b"\r\n")
    else:
        charset = "utf-8"
        encoding, content = _encoded(text)
    head = f'Content-Type: text/{subtype}; charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + content


def _encoded(text: str) -> tuple[str, bytes]:
    """Quoted-printable where it is the shorter one, which mostly ASCII text is."""
    octets = text.encode()
    if len(octets.translate(None, _ASCII)) * 6 > len(octets):
        return "base64", _base64(octets.replace(b"\n", b"\r\n"))
    return "quoted-printable", binascii.b2a_qp(octets, istext=True).replace(b"\n", b"\r\n")


def _base64(octets: bytes) -> bytes:
    # In blocks: a Python object for every line of a large content would take twice its size.
    blocks = [_base64_lines(octets[start : start + BASE64_BLOCK]) for start in range(0, len(octets), BASE64_BLOCK)]
    return b"\r\n".join(blocks)


def _base64_lines(octets: bytes) -> bytes:
    encoded = binascii.b2a_base64(octets, newline=False)
    return b"\r\n".join([encoded[start : start + 76] for start in range(0, len(encoded), 76)])


def _attachment(attachment: Attachment) -> bytes:
    """Always base64, whatever its type, so that its bytes arrive as they are.

    multipart and message types never come here: RFC 2046 forbids base64 for them, without which they might be changed.
    """
    head = [
        raw_field("Content-Type", attachment.content_type),
        "Content-Transfer-Encoding: base64",
        attachment_name(attachment.filename),
    ]
    return "\r\n".join([*head, "", ""]).encode("ascii") + _base64(attachment.content)


def _multipart(subtype: str, parts: list[bytes]) -> bytes:
    # A text cannot contain its own digest, so no part can contain the boundary.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    boundary = b"=_" + digest.hexdigest()[:40].encode()
    head = b"Content-Type: multipart/" + subtype.encode() + b';\r\n boundary="' + boundary + b'"\r\n\r\n'
    pieces = [piece for part in parts for piece in (b"--", boundary, b"\r\n", part, b"\r\n")]
    return b"".join([head, *pieces, b"--", boundary, b"--\r\n"])  # one copy: a part may be most of the memory there is
