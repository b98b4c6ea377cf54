"""What a client may post. Declared once: these structures validate, and the OpenAPI document is made from them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from emailsvc.errors import InvalidPayload
from emailsvc.intake import addresses
from emailsvc.intake.decoding import decode, one_at_a_time, path_of_surrogate, read_leniently
from emailsvc.vocabulary import OnUncertain, Priority

MAX_IN_BATCH = 1000
MAX_HEADERS = 50
MAX_ATTACHMENTS = 50
FIRST_MOMENT, LAST_MOMENT = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
ENVELOPE_BYTES = 1024  # headers of our own, counted into the size of every e-mail
PART_BYTES = 512  # those of an attachment


def _text(most: int, pattern: str, description: str = "", least: int = 0) -> Meta:
    # The pattern is checked by addresses.py, which can say what is wrong; here it is published.
    return Meta(
        min_length=least or None,
        max_length=most,
        description=description or None,
        extra_json_schema={"pattern": pattern},
    )


EmailId = Annotated[
    str, _text(255, addresses.ONE_LINE, "The key of de-duplication: printable, compared byte for byte.", least=1)
]
Address = Annotated[
    str,
    _text(
        addresses.MAX_ADDRESS,
        addresses.ADDRESS,
        "One bare e-mail address. International ones are accepted too, beyond what the pattern shows.",
    ),
]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset.")]
Content = Annotated[str, Meta(extra_json_schema={"pattern": addresses.NO_NUL})]
Headers = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=76)], Annotated[str, _text(998, addresses.ONE_LINE)]],
    Meta(max_length=MAX_HEADERS, description="Further header fields; those that the service sets are refused."),
]


class Attachment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    filename: Annotated[str, _text(255, addresses.FILENAME, least=1)]
    content_type: Annotated[str, _text(255, addresses.CONTENT_TYPE)]
    content: Annotated[
        bytes, Meta(description="Base64 with padding, RFC 4648 §4.", extra_json_schema={"pattern": BASE64})
    ]


class EmailPayload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /webhook/email`. ``null`` for an optional field means that it is absent."""

    email_id: EmailId
    user: Address
    subject: Annotated[str, _text(998, addresses.ONE_LINE)]
    body: Content
    html: Content | None = None
    from_address: Address | None = msgspec.field(name="from", default=None)
    reply_to: Address | None = None
    headers: Headers | None = None
    attachments: Annotated[list[Attachment], Meta(max_length=MAX_ATTACHMENTS)] | None = None
    send_at: Moment | None = None
    expires_at: Moment | None = None
    priority: Priority | None = None
    on_uncertain: OnUncertain | None = None
    state: Annotated[Raw | UnsetType, Meta(description="Accepted with any value, and ignored.")] = UNSET


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    emails: Annotated[list[Raw], Meta(max_length=MAX_IN_BATCH)]


class BatchPayload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /webhook/email/batch`, as published; each item is judged by itself."""

    emails: Annotated[list[EmailPayload], Meta(max_length=MAX_IN_BATCH)]


class NewEmail(msgspec.Struct, frozen=True):
    """A payload that passed every rule. Times are aware and in UTC; ``size`` is bytes on the wire, for the deadline."""

    email_id: str
    user: str
    subject: str
    body: str
    html: str | None
    from_address: str | None
    reply_to: str | None
    headers: dict[str, str]
    attachments: tuple[Attachment, ...]
    send_at: datetime | None
    expires_at: datetime | None
    priority: Priority
    on_uncertain: OnUncertain | None
    fingerprint: str
    size: int


class _Identified(msgspec.Struct):
    email_id: EmailId


@dataclass(frozen=True, slots=True)
class Rules:
    """The parts of the configuration that decide what is valid."""

    from_domains: frozenset[str]
    idempotency_header: str | None = None


_UNQUOTED = bytes({*range(32, 127), *b"\t\r\n"} - {*b"="})  # what quoted-printable leaves as it is

_emails = msgspec.json.Decoder(EmailPayload)
_ids = msgspec.json.Decoder(_Identified)
_envelopes = msgspec.json.Decoder(_Envelope)


def parse_email(raw: bytes, rules: Rules) -> NewEmail:
    """Raises InvalidPayload with a stable code, the field at fault, and the e-mail's id if that is not it."""
    try:
        return _parse(raw, rules)
    except InvalidPayload as exc:
        with suppress(ValueError, RecursionError):
            exc.email_id = _ids.decode(raw).email_id
        raise


def _parse(raw: bytes, rules: Rules) -> NewEmail:
    payload = decode(_emails, raw)
    _check(payload, rules)
    send_at, expires_at = in_utc(payload.send_at), in_utc(payload.expires_at)
    if send_at and expires_at and expires_at <= send_at:
        raise InvalidPayload("invalid_field", "expires_at must be later than send_at.", "expires_at")
    return NewEmail(
        payload.email_id,
        payload.user,
        payload.subject,
        payload.body,
        payload.html,
        payload.from_address,
        payload.reply_to,
        payload.headers or {},
        tuple(payload.attachments or ()),
        send_at,
        expires_at,
        payload.priority or Priority.NORMAL,
        payload.on_uncertain,
        fingerprint(payload),
        _size(payload),
    )


def parse_batch(raw: bytes, rules: Rules) -> list[NewEmail | InvalidPayload]:
    """One result per item, in order. What is wrong with an item is its result; trouble with the whole is raised."""
    return [_parse_item(item, rules) for item in _items(raw)]


def _items(raw: bytes) -> list[bytes]:
    try:
        return [bytes(item) for item in decode(_envelopes, raw).emails]
    except InvalidPayload as exc:
        if exc.code != "invalid_field" or exc.field is None or not exc.field.startswith("emails["):
            raise
        # A title cut in the middle of an emoji must not hold up the other e-mails: take the text apart leniently.
        with one_at_a_time:
            items = _items_leniently(raw)
        if items is None:
            raise
        return items


def _items_leniently(raw: bytes) -> list[bytes] | None:
    """None where the document, or what Python's parser makes of it, cannot be taken apart into e-mails."""
    try:
        document = read_leniently(raw)
        if not isinstance(document, dict) or not isinstance(document.get("emails"), list):
            return None
        decode(_envelopes, json.dumps(document | {"emails": [None] * len(document["emails"])}).encode())
        return [json.dumps(_without_state(item)).encode() for item in document["emails"]]
    except (ValueError, RecursionError):
        return None


def _without_state(item: object) -> object:
    """Any value may stand there, also one that Python reads and does not write as JSON (1e999)."""
    if not isinstance(item, dict) or path_of_surrogate(item.get("state"), "state"):
        return item
    return {name: value for name, value in item.items() if name != "state"}


def _parse_item(raw: bytes, rules: Rules) -> NewEmail | InvalidPayload:
    try:
        return parse_email(raw, rules)
    except InvalidPayload as exc:
        return exc


def _check(payload: EmailPayload, rules: Rules) -> None:
    addresses.one_line(payload.email_id, "email_id")
    addresses.address(payload.user, "user")
    addresses.one_line(payload.subject, "subject")
    addresses.no_nul(payload.body, "body")
    if payload.html is not None:
        addresses.no_nul(payload.html, "html")
    if payload.from_address is not None:
        addresses.address_in(payload.from_address, rules.from_domains, "from")
    if payload.reply_to is not None:
        addresses.address(payload.reply_to, "reply_to")
    if payload.headers:
        _check_headers(payload.headers, rules)
    for index, attachment in enumerate(payload.attachments or ()):
        addresses.filename(attachment.filename, f"attachments[{index}].filename")
        addresses.content_type(attachment.content_type, f"attachments[{index}].content_type")


def _check_headers(headers: dict[str, str], rules: Rules) -> None:
    seen: set[str] = set()
    for name, value in headers.items():
        addresses.header(name, value, rules.idempotency_header)
        if name.lower() in seen:
            raise InvalidPayload("invalid_field", f"headers.{name} is given twice.", f"headers.{name}")
        seen.add(name.lower())


def in_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # an offset beyond the calendar's first or last day; that day says the same
        return FIRST_MOMENT if moment.year == 1 else LAST_MOMENT


def fingerprint(payload: EmailPayload) -> str:
    """SHA-256 over what the recipient would get, as given; 64 hexadecimal digits.

    "Same content" in the README of the HTTP interface is its definition. A field that is absent is left out, so that
    one which is added later changes no fingerprint of before.
    """
    content: dict[str, object] = {"user": payload.user, "subject": payload.subject, "body": payload.body}
    if payload.html is not None:
        content["html"] = payload.html
    if payload.from_address is not None:
        content["from"] = payload.from_address
    if payload.reply_to is not None:
        content["reply_to"] = payload.reply_to
    if payload.headers:
        content["headers"] = payload.headers
    if payload.attachments:
        content["attachments"] = [_attachment_print(attachment) for attachment in payload.attachments]
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _attachment_print(attachment: Attachment) -> dict[str, str]:
    return {
        "filename": attachment.filename,
        "content_type": attachment.content_type,
        "content": hashlib.sha256(attachment.content).hexdigest(),
    }


def _size(payload: EmailPayload) -> int:
    """What goes over the wire, or a little more: building the message to know it would cost too much here."""
    texts = _encoded(payload.body.encode()) + (_encoded(payload.html.encode()) if payload.html else 0)
    headers = _encoded(payload.subject.encode())
    if payload.headers:
        headers += sum(_encoded(text.encode()) for text in payload.headers.values())
    attachments = sum(PART_BYTES + _in_base64(len(each.content)) for each in payload.attachments or ())
    return ENVELOPE_BYTES + texts + headers * 5 // 4 + attachments  # a header is cut into words of 75 bytes


def _encoded(octets: bytes) -> int:
    """As quoted-printable or in base64, whichever is shorter; as it is, it is shorter still."""
    line_ends = octets.count(b"\n")
    quoted = len(octets) + 2 * len(octets.translate(None, _UNQUOTED))
    return line_ends + min(quoted + quoted // 24, _in_base64(len(octets) + line_ends))


def _in_base64(count: int) -> int:
    lines = count // 57 + 1
    return (count + 2) // 3 * 4 + 2 * lines
