"""Mailgun's webhooks: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads

Our reference is a variable of the message. The signature in the body is not read: the route's secret opens it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.returned import KEY
from emailsvc.intake.decoding import decode
from emailsvc.vocabulary import BounceKind, Report

EVENTS = {
    "delivered": Report.DELIVERED,
    "failed": Report.BOUNCED,
    "rejected": Report.REJECTED,
    "complained": Report.COMPLAINED,
}


class _Status(msgspec.Struct, rename="kebab"):
    code: Any = None
    enhanced_code: Any = None
    message: Any = None
    description: Any = None
    bounce_type: Any = None


class _Data(msgspec.Struct, rename="kebab"):
    event: str
    timestamp: Any = None
    severity: Any = None
    reason: Any = None
    user_variables: dict[str, Any] | None = None
    delivery_status: _Status = field(default_factory=_Status)


class _Body(msgspec.Struct, rename="kebab"):
    event_data: _Data


_BODY = msgspec.json.Decoder(_Body)


def read(raw: bytes) -> list[Event]:
    data = decode(_BODY, raw).event_data
    event, status = _event(data), data.delivery_status
    return [
        heard(
            event,
            at=data.timestamp,
            reference=(data.user_variables or {}).get(KEY),
            kind=_kind(status) if event == Report.BOUNCED else None,
            code=status.enhanced_code or status.code,
            text=status.message or status.description or data.reason,
        )
    ]


def _event(data: _Data) -> str:
    """Of what it calls failed, the temporary is tried again, and what it suppresses was never tried."""
    event = EVENTS.get(data.event, data.event)
    if event == Report.BOUNCED and data.severity == "temporary":
        return Report.DEFERRED
    if event == Report.BOUNCED and isinstance(data.reason, str) and data.reason.startswith("suppress-"):
        return Report.REJECTED
    return event


def _kind(status: _Status) -> BounceKind:
    return BounceKind.SOFT if status.bounce_type == "soft" else BounceKind.HARD
