"""`POST /reports`: events as a program of one's own tells them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from emailsvc.errors import InvalidPayload
from emailsvc.feedback.events import MAX_EVENTS, Event, heard
from emailsvc.intake.decoding import decode
from emailsvc.intake.payload import EmailId, Moment
from emailsvc.vocabulary import BounceKind

_WORDS = "delivered, bounced, complained, deferred or rejected; any other is accepted and ignored."
_REFERENCE = "What the e-mail carried as ENVID or X-Email-Ref."


class ReportedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was heard of an e-mail: by its ``reference``, or by ``email_id`` alone, which proves less. A text is cut."""

    event: Annotated[str, Meta(min_length=1, max_length=255, description=_WORDS)]
    at: Moment | None = None
    reference: Annotated[str, Meta(max_length=255, description=_REFERENCE)] | None = None
    email_id: EmailId | None = None
    kind: BounceKind | None = None
    code: Annotated[str, Meta(max_length=255)] | None = None
    text: str | None = None


ReportedEvents = ReportedEvent | Annotated[list[ReportedEvent], Meta(max_length=MAX_EVENTS)]
"""The body of `POST /reports`, as published."""

_one = msgspec.json.Decoder(ReportedEvent)
_many = msgspec.json.Decoder(Annotated[list[Raw], Meta(max_length=MAX_EVENTS)])


def read(raw: bytes) -> list[Event]:
    """Raises InvalidPayload, and names the field of the first event that is wrong."""
    if not raw.lstrip().startswith(b"["):
        return [_read(raw)]
    return [_read(bytes(item), f"[{number}]") for number, item in enumerate(decode(_many, raw))]


def _read(raw: bytes, place: str = "") -> Event:
    try:
        told = decode(_one, raw)
        if told.reference is None and told.email_id is None:
            raise InvalidPayload("missing_field", "reference or email_id is required.", "reference")
    except InvalidPayload as exc:
        if not place:
            raise
        field = place if exc.field is None else f"{place}.{exc.field}"
        raise InvalidPayload(exc.code, f"In {place}: {exc.detail}", field) from exc
    return heard(
        told.event, at=told.at, reference=told.reference, email_id=told.email_id, kind=told.kind, code=told.code,
        text=told.text,
    )  # fmt: skip
