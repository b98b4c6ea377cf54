"""Resend's webhooks: https://resend.com/docs/webhooks/event-types

Our reference is among the headers of the e-mail that an event is about.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.returned import reference_in
from emailsvc.intake.decoding import decode
from emailsvc.vocabulary import BounceKind, Report

EVENTS = {
    "email.delivered": Report.DELIVERED,
    "email.bounced": Report.BOUNCED,
    "email.complained": Report.COMPLAINED,
    "email.delivery_delayed": Report.DEFERRED,
    "email.failed": Report.REJECTED,
    "email.suppressed": Report.REJECTED,
}


class _Header(msgspec.Struct):
    name: str
    value: Any = None


class _Details(msgspec.Struct, rename="camel"):
    """Of a bounce, a failure or a suppression, each of which has some of them."""

    message: Any = None
    reason: Any = None
    type: Any = None
    diagnostic_code: Any = None


class _Data(msgspec.Struct):
    headers: list[_Header] = []
    bounce: _Details | None = None
    failed: _Details | None = None
    suppressed: _Details | None = None


class _Body(msgspec.Struct):
    type: str
    created_at: Any = None
    data: _Data = field(default_factory=_Data)


_BODY = msgspec.json.Decoder(_Body)


def read(raw: bytes) -> list[Event]:
    body = decode(_BODY, raw)
    data, event = body.data, EVENTS.get(body.type, body.type)
    details = data.bounce or data.failed or data.suppressed or _Details()
    return [
        heard(
            event,
            at=body.created_at,
            reference=reference_in((one.name, one.value) for one in data.headers),
            kind=_kind(details) if event == Report.BOUNCED else None,
            text=_said(details),
        )
    ]


def _said(details: _Details) -> object:
    """The mail server's words before Resend's."""
    said = details.diagnostic_code
    return (said[0] if isinstance(said, list) and said else said) or details.message or details.reason


def _kind(details: _Details) -> BounceKind:
    """Without a type, as in older bodies, it is the documented "permanently rejected"."""
    return BounceKind.SOFT if details.type in ("Transient", "Undetermined") else BounceKind.HARD
