"""What a client may post. Declared once: these structures validate, and the OpenAPI document is made from them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from emailsvc.errors import InvalidPayload
from emailsvc.intake import addresses
from emailsvc.intake.decoding import decode
from emailsvc.intake.windows import Window, key_of
from emailsvc.vocabulary import OnUncertain, Priority

MAX_IN_BATCH = 1000
MAX_WINDOW_SECONDS = 86_400
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
_WINDOW = Meta(
    ge=0,
    le=MAX_WINDOW_SECONDS,
    multiple_of=1,
    description="Whatever comes under another id for this recipient with the same key, or content, is a duplicate for "
    "so long; 0: none.",
    extra_json_schema={"type": "integer"},
)
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
    dedupe_key: (
        Annotated[str, _text(255, addresses.ONE_LINE, "Instead of the content; one key for all clients.", least=1)]
        | None
    ) = None
    dedupe_window_seconds: Annotated[float, _WINDOW] | None = None
    state: Annotated[Raw | UnsetType, Meta(description="Accepted with any value, and ignored.")] = UNSET


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
    window: Window | None = None


class _Identified(msgspec.Struct):
    email_id: EmailId


@dataclass(frozen=True, slots=True)
class Rules:
    """The parts of the configuration that decide what is valid."""

    from_domains: frozenset[str]
    idempotency_header: str | None = None
    window_seconds: int | None = None  # where a client gives none


_UNQUOTED = bytes({*range(32, 127), *b"\t\r\n"} - {*b"="})  # what quoted-printable leaves as it is

_emails = msgspec.json.Decoder(EmailPayload)
_ids = msgspec.json.Decoder(_Identified)


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
    print_ = fingerprint(payload)
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
        print_,
        _size(payload),
        _window(payload, print_, rules),
    )


def _window(payload: EmailPayload, content: str, rules: Rules) -> Window | None:
    given = payload.dedupe_window_seconds
    seconds = rules.window_seconds if given is None else int(given)
    if seconds is None and payload.dedupe_key is not None:
        raise InvalidPayload(
            "invalid_field",
            "dedupe_key needs dedupe_window_seconds where DEDUPE_WINDOW_SECONDS is not set.",
            "dedupe_key",
        )
    if not seconds or payload.send_at is not None:
        return None
    recipient = addresses.canonical(payload.user)
    if payload.dedupe_key is None and recipient != payload.user:
        content = fingerprint(msgspec.structs.replace(payload, user=recipient))
    return Window(key_of(recipient, payload.dedupe_key, content), seconds)


def _check(payload: EmailPayload, rules: Rules) -> None:
    addresses.one_line(payload.email_id, "email_id")
    addresses.address(payload.user, "user")
    addresses.one_line(payload.subject, "subject")
    addresses.no_nul(payload.body, "body")
    if payload.html is not None:
        addresses.no_nul(payload.html, "html")
    if payload.dedupe_key is not None:
        addresses.one_line(payload.dedupe_key, "dedupe_key")
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
