"""Bounce mail: delivery status notifications of mail servers (RFC 3464), as a pipe hands them over.

Anybody can send mail to the address of bounces, so nothing here grows faster than what came. Parts are split by hand
for that: the standard library's parser recurses into nested ones, and compares each line with every open boundary.
"""

from __future__ import annotations

import re
from datetime import datetime
from email.message import Message
from email.parser import HeaderParser
from email.utils import parsedate_to_datetime

from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.reference import read_reference
from emailsvc.feedback.returned import UNMATCHED, reference_in
from emailsvc.vocabulary import BounceKind, Report

MAX_BYTES = 256 * 1024
MAX_PARTS = 10
MAX_RECIPIENTS = 50
MAX_FIELD = 2000

ACTIONS = {"failed": Report.BOUNCED, "delayed": Report.DEFERRED, "delivered": Report.DELIVERED}
"""Field "Action" (RFC 3464 §2.3.3); "relayed" and "expanded" only tell that it went on."""

STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
RETURNED_TYPES = ("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers")

_boundary = re.compile(r";\s*boundary\s*=\s*(?:\"([^\"\r\n]{1,70})\"|([^\s;\"]{1,70}))", re.IGNORECASE).search
_blank_line = re.compile(r"\r?\n[ \t]*\r?\n")
_about_the_address = re.compile(r"5\.(?:0\.0|1\.[0-9]+|2\.1|4\.4)").fullmatch  # RFC 3463


def read(raw: bytes) -> list[Event]:
    """An event for each recipient that the mail tells of. Any other mail is one report of no e-mail."""
    mail = _parse(raw[:MAX_BYTES].decode("utf-8", "replace"))
    parts, sent_at = _parts(mail), _moment(mail, "Date")
    blocks = [block for part in parts if _is(part, STATUS_TYPES) for block in _blocks(part)]
    reference = _envelope_id(blocks) or _returned(parts)
    return [_event(block, reference, sent_at) for block in blocks if "Action" in block] or [UNMATCHED]


def _parse(text: str) -> Message:
    return HeaderParser().parsestr(text)


def _field(message: Message, name: str) -> str:
    return " ".join(str(message.get(name, ""))[:MAX_FIELD].split())


def _is(part: Message, types: tuple[str, ...]) -> bool:
    return _field(part, "Content-Type").partition(";")[0].strip().lower() in types


def _parts(message: Message) -> list[Message]:
    found = _boundary(_field(message, "Content-Type"))
    if found is None:
        return []
    line = re.compile(rf"^--{re.escape(found[1] or found[2])}(?:--)?[ \t]*\r?$\n?", re.MULTILINE)
    return [_parse(text) for text in line.split(str(message.get_payload()), MAX_PARTS)[1:]]


def _content(part: Message) -> str:
    if _field(part, "Content-Transfer-Encoding").lower() in ("base64", "quoted-printable"):
        decoded = part.get_payload(decode=True)
        return decoded.decode("utf-8", "replace") if isinstance(decoded, bytes) else ""
    return str(part.get_payload())


def _blocks(part: Message) -> list[Message]:
    """Its fields about the message, and those about each recipient."""
    return [_parse(text) for text in _blank_line.split(_content(part).strip(), MAX_RECIPIENTS)]


def _envelope_id(blocks: list[Message]) -> str | None:
    """A server on the way may have given it an id of its own, which is none of ours."""
    return next(filter(read_reference, (_field(block, "Original-Envelope-Id") for block in blocks)), None)


def _returned(parts: list[Message]) -> str | None:
    heads = [_parse(_content(part).lstrip()) for part in parts if _is(part, RETURNED_TYPES)]
    return reference_in((name, value) for head in heads for name, value in head.items())


def _event(block: Message, reference: str | None, sent_at: datetime | None) -> Event:
    action = _field(block, "Action").lower()
    event, status = ACTIONS.get(action, action), _field(block, "Status").partition(" ")[0]
    return heard(
        event,
        at=_moment(block, "Last-Attempt-Date") or sent_at,
        reference=reference,
        kind=_kind(status) if event == Report.BOUNCED else None,
        code=status,
        text=_field(block, "Diagnostic-Code").partition(";")[2],
    )


def _kind(status: str) -> BounceKind:
    return BounceKind.HARD if _about_the_address(status) else BounceKind.SOFT


def _moment(message: Message, name: str) -> datetime | None:
    try:
        return parsedate_to_datetime(_field(message, name))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
