"""SendGrid's Event Webhook: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event

One body holds many events. Our reference is a unique argument, which stands beside the fields of each.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, field

from emailsvc.errors import InvalidPayload
from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.returned import KEY, UNMATCHED
from emailsvc.intake.decoding import decode
from emailsvc.vocabulary import BounceKind, Report

MAX_EVENTS = 10_000
"""It sends up to 768 KB at a time; what is refused it sends again, so that a limit must lie above that."""

EVENTS = {
    "delivered": Report.DELIVERED,
    "bounce": Report.BOUNCED,
    "deferred": Report.DEFERRED,
    "dropped": Report.REJECTED,
    "spamreport": Report.COMPLAINED,
}


class _Item(msgspec.Struct):
    event: str
    timestamp: Any = None
    reference: Any = field(name=KEY, default=None)
    type: Any = None
    status: Any = None
    reason: Any = None
    response: Any = None


_BODY = msgspec.json.Decoder(Annotated[list[Raw], Meta(max_length=MAX_EVENTS)])
_ITEM = msgspec.json.Decoder(_Item)


def read(raw: bytes) -> list[Event]:
    return [_event(bytes(item)) for item in decode(_BODY, raw)]


def _event(raw: bytes) -> Event:
    try:
        item = decode(_ITEM, raw)
    except InvalidPayload:
        return UNMATCHED  # its neighbours are as good as ever
    event = EVENTS.get(item.event, item.event)
    return heard(
        event,
        at=item.timestamp,
        reference=item.reference,
        kind=_kind(item) if event == Report.BOUNCED else None,
        code=item.status,
        text=item.reason or item.response,
    )


def _kind(item: _Item) -> BounceKind:
    """A block is about this message or its sender, not about the address."""
    temporary = isinstance(item.status, str) and item.status.startswith("4")
    return BounceKind.SOFT if item.type == "blocked" or temporary else BounceKind.HARD
