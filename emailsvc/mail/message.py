"""A mail as the bytes that follow DATA (RFC 5322, MIME), all but the dot-stuffing. Nothing but ASCII unless SMTPUTF8.

Assembled by hand: EmailMessage takes ten times as long, and both it and the older classes have let header texts through
that a reader decodes to something else. Every line ends with CRLF; whatever could be misread on its way is encoded.
The same mail gives the same bytes: a provider that de-duplicates by a key may compare the content, too.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from email.utils import format_datetime

from emailsvc.errors import InvalidPayload
from emailsvc.intake import addresses
from emailsvc.mail import Attachment, Mail
from emailsvc.mail.header import (
    LONGEST_WORD,
    Unbuildable,
    attachment_name,
    envelope_address,
    field,
    is_international,
    raw_field,
)

# Safe as it is: printable ASCII, tabs and line feeds, in lines that no relay breaks.
_seven_bit = re.compile(rf"(?:[\t -~]{{0,{LONGEST_WORD}}}+\n)*+[\t -~]{{0,{LONGEST_WORD}}}+").fullmatch
_message_id = re.compile(r"<[!-;=?A-~]+@[!-;=?A-~]+>").fullmatch
_ASCII = bytes(range(128))
BASE64_BLOCK = 57 * 1024  # whole lines of 76 characters


def build(mail: Mail, *, idempotency_header: str | None = None, smtputf8: bool = False) -> bytes:
    """The whole message. Raises Unbuildable for what cannot be sent exactly as it is.

    ``smtputf8`` allows raw UTF-8 in address fields; without it an international local part is Unbuildable.
    """
    if needs_smtputf8(mail) and not smtputf8:
        raise Unbuildable("an address has a non-ASCII local part, which needs a mail server with SMTPUTF8")
    head = "\r\n".join(_head(mail, idempotency_header))
    message = f"{head}\r\n".encode() + _content(mail)
    rest = message.replace(b"\r\n", b"")
    if b"\r" in rest or b"\n" in rest:  # must not happen; would be SMTP smuggling (CVE-2023-51764) if it did
        raise Unbuildable("a line end is not CRLF")
    return message


def needs_smtputf8(mail: Mail) -> bool:
    return any(is_international(address) for address in (mail.sender, mail.recipient, mail.reply_to or ""))


def _head(mail: Mail, idempotency_header: str | None) -> list[str]:
    if not _message_id(mail.message_id) or len(mail.message_id) > LONGEST_WORD:
        raise Unbuildable("the Message-ID is not of the form <left@right>")
    lines = [
        raw_field("Date", format_datetime(mail.date)),
        raw_field("Message-ID", mail.message_id),
        raw_field("From", envelope_address(mail.sender)),
        raw_field("To", envelope_address(mail.recipient)),
        field("Subject", mail.subject),
        "Auto-Submitted: auto-generated",  # RFC 3834: robots do not answer
        "MIME-Version: 1.0",
    ]
    if mail.reply_to is not None:
        lines.append(raw_field("Reply-To", envelope_address(mail.reply_to)))
    if idempotency_header:
        lines.append(field(idempotency_header, mail.email_id))
    return lines + _custom(mail, idempotency_header)


def _custom(mail: Mail, idempotency_header: str | None) -> list[str]:
    seen: set[str] = set()
    lines = []
    for name, value in mail.headers.items():
        try:
            addresses.header(name, value, idempotency_header)
        except InvalidPayload as exc:
            raise Unbuildable(str(exc)) from exc
        if name.lower() in seen:
            raise Unbuildable(f"headers.{name} is given twice")
        seen.add(name.lower())
        lines.append(field(name, value))
    return lines


def _content(mail: Mail) -> bytes:
    """The part's own fields, an empty line, and its content; ends with CRLF."""
    part = _text("plain", mail.body)
    if mail.html is not None:
        part = _multipart("alternative", [part, _text("html", mail.html)])
    if mail.attachments:
        part = _multipart("mixed", [part, *map(_attachment, mail.attachments)])
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
    try:
        octets = text.encode()
    except UnicodeEncodeError as exc:
        raise Unbuildable("the text contains half a surrogate pair") from exc
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

    multipart and message types are refused: RFC 2046 forbids base64 for them, without which they might be changed.
    """
    try:
        addresses.content_type(attachment.content_type, "an attachment's content_type")
    except InvalidPayload as exc:
        raise Unbuildable(str(exc)) from exc
    if len(attachment.content_type) > LONGEST_WORD:
        raise Unbuildable("an attachment's content_type is too long")
    head = [
        raw_field("Content-Type", attachment.content_type),
        "Content-Transfer-Encoding: base64",
        attachment_name(attachment.filename),
    ]
    return "\r\n".join([*head, "", ""]).encode() + _base64(attachment.content)


def _multipart(subtype: str, parts: list[bytes]) -> bytes:
    # A text cannot contain its own digest, so no part can contain the boundary.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    boundary = b"=_" + digest.hexdigest()[:40].encode()
    head = b"Content-Type: multipart/" + subtype.encode() + b';\r\n boundary="' + boundary + b'"\r\n\r\n'
    pieces = [piece for part in parts for piece in (b"--", boundary, b"\r\n", part, b"\r\n")]
    return b"".join([head, *pieces, b"--", boundary, b"--\r\n"])  # one copy: a part may be most of the memory there is
