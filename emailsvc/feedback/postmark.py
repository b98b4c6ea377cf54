"""Postmark's webhooks: https://postmarkapp.com/developer/webhooks/webhooks-overview

Our reference is in the message's metadata.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.returned import KEY
from emailsvc.intake.decoding import decode
from emailsvc.vocabulary import BounceKind, Report

RECORDS = {"Delivery": Report.DELIVERED, "Bounce": Report.BOUNCED, "SpamComplaint": Report.COMPLAINED}

TYPES = {
    "Transient": Report.DEFERRED,
    "DnsError": Report.DEFERRED,
    "SpamNotification": Report.COMPLAINED,
    "SpamComplaint": Report.COMPLAINED,
    "BadEmailAddress": Report.REJECTED,
    "ManuallyDeactivated": Report.REJECTED,
    "Unconfirmed": Report.REJECTED,
    "SMTPApiError": Report.REJECTED,
    "AutoResponder": "autoresponded",
    "AddressChange": "autoresponded",
    "ChallengeVerification": "autoresponded",
    "Unsubscribe": "unsubscribed",
    "Subscribe": "subscribed",
    "OpenRelayTest": "unknown",
    "InboundError": "unknown",
}
"""What a "bounce" of a type is, where it is none: https://postmarkapp.com/developer/api/bounce-api#bounce-types"""

_enhanced = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b").search


class _Body(msgspec.Struct, rename="pascal"):
    record_type: str
    type: Any = None
    metadata: dict[str, Any] | None = None
    delivered_at: Any = None
    bounced_at: Any = None
    details: Any = None
    description: Any = None


_BODY = msgspec.json.Decoder(_Body)


def read(raw: bytes) -> list[Event]:
    body = decode(_BODY, raw)
    event: str = RECORDS.get(body.record_type, body.record_type)
    if event == Report.BOUNCED and isinstance(body.type, str):
        event = TYPES.get(body.type, event)
    enhanced = _enhanced(body.details) if isinstance(body.details, str) else None
    return [
        heard(
            event,
            at=body.delivered_at or body.bounced_at,
            reference=(body.metadata or {}).get(KEY),
            kind=_kind(body) if event == Report.BOUNCED else None,
            code=enhanced and enhanced[0],
            text=body.details or body.description,
        )
    ]


def _kind(body: _Body) -> BounceKind:
    return BounceKind.HARD if body.type == "HardBounce" else BounceKind.SOFT
