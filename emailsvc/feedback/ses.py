"""Amazon SES, through Amazon SNS.

https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html and event-publishing-retrieving-sns-contents.html,
in the envelope of https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html, or without it under
"raw message delivery". Our reference is among the original headers, if SES is told to include them.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import field

from emailsvc.errors import InvalidPayload
from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.returned import reference_in
from emailsvc.intake.decoding import decode
from emailsvc.vocabulary import BounceKind, Report

NOTIFICATION, CONFIRMATION = "Notification", "SubscriptionConfirmation"

_of_amazon = re.compile(r"https://sns\.[a-z0-9-]{1,40}\.amazonaws\.com(?:\.cn)?/[!-~]{1,2000}").fullmatch


class _Envelope(msgspec.Struct, rename="pascal"):
    type: str = ""
    message: str = ""
    subscribe_url: str = field(name="SubscribeURL", default="")


class _Header(msgspec.Struct):
    name: str
    value: Any = None


class _Mail(msgspec.Struct):
    headers: list[_Header] = []
    timestamp: Any = None


class _Recipient(msgspec.Struct, rename="camel"):
    action: Any = None
    status: Any = None
    diagnostic_code: Any = None


class _Bounce(msgspec.Struct, rename="camel"):
    timestamp: Any = None
    bounce_type: Any = None
    bounce_sub_type: Any = None
    bounced_recipients: list[_Recipient] = []


class _Complaint(msgspec.Struct, rename="camel"):
    timestamp: Any = None
    complaint_feedback_type: Any = None


class _Delivery(msgspec.Struct, rename="camel"):
    timestamp: Any = None
    smtp_response: Any = None


class _Delay(msgspec.Struct, rename="camel"):
    timestamp: Any = None
    delay_type: Any = None
    delayed_recipients: list[_Recipient] = []


class _Reject(msgspec.Struct):
    reason: Any = None


class _Report(msgspec.Struct, rename="camel"):
    mail: _Mail
    event_type: str = ""  # of an event destination
    notification_type: str = ""  # of a feedback notification
    bounce: _Bounce = field(default_factory=_Bounce)
    complaint: _Complaint = field(default_factory=_Complaint)
    delivery: _Delivery = field(default_factory=_Delivery)
    delivery_delay: _Delay = field(default_factory=_Delay)
    reject: _Reject = field(default_factory=_Reject)


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_REPORT = msgspec.json.Decoder(_Report)


def read(raw: bytes) -> list[Event]:
    envelope = decode(_ENVELOPE, raw)
    if not envelope.type:
        return _events(decode(_REPORT, raw))
    if envelope.type != NOTIFICATION or not envelope.message.lstrip().startswith("{"):
        return []  # about the subscription, or a sentence for people
    return _events(decode(_REPORT, envelope.message.encode()))


def confirmation(raw: bytes) -> str | None:
    """The URL which SNS asks somebody to open before it sends anything. None for any other body.

    Raises InvalidPayload for a URL that is not Amazon's.
    """
    envelope = decode(_ENVELOPE, raw)
    if envelope.type != CONFIRMATION:
        return None
    if not _of_amazon(envelope.subscribe_url):
        raise InvalidPayload("invalid_field", "SubscribeURL is no address of Amazon SNS.", "SubscribeURL")
    return envelope.subscribe_url


def _events(report: _Report) -> list[Event]:
    reference = reference_in((one.name, one.value) for one in report.mail.headers)
    match report.event_type or report.notification_type:
        case "Bounce":
            return [
                _bounced(report.bounce, one, reference) for one in report.bounce.bounced_recipients or [_Recipient()]
            ]
        case "Complaint":
            told = report.complaint
            kind = told.complaint_feedback_type
            event = "unknown" if kind == "not-spam" else Report.COMPLAINED
            return [heard(event, at=told.timestamp, reference=reference, text=kind)]
        case "Delivery":
            arrived = report.delivery
            return [heard(Report.DELIVERED, at=arrived.timestamp, reference=reference, text=arrived.smtp_response)]
        case "DeliveryDelay":
            return [_delayed(report.delivery_delay, reference)]
        case "Reject":
            return [heard(Report.REJECTED, at=report.mail.timestamp, reference=reference, text=report.reject.reason)]
        case other:
            return [heard(other, reference=reference)]


def _bounced(bounce: _Bounce, recipient: _Recipient, reference: object) -> Event:
    return heard(
        Report.DEFERRED if recipient.action == "delayed" else Report.BOUNCED,
        at=bounce.timestamp,
        reference=reference,
        kind=BounceKind.HARD if bounce.bounce_type == "Permanent" else BounceKind.SOFT,
        code=recipient.status,
        text=recipient.diagnostic_code or f"{bounce.bounce_type}, {bounce.bounce_sub_type}",
    )


def _delayed(delay: _Delay, reference: object) -> Event:
    first = next(iter(delay.delayed_recipients), _Recipient())
    text = first.diagnostic_code or delay.delay_type
    return heard(Report.DEFERRED, at=delay.timestamp, reference=reference, code=first.status, text=text)
