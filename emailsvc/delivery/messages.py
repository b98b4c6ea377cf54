"""The message of a row in hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emailsvc.feedback.reference import HEADERS, reference_of
from emailsvc.mail import Attachment, Message
from emailsvc.outbox import Claimed, Content
from emailsvc.settings.config import Config


def message_of(row: Claimed, content: Content, attachments: Sequence[Attachment], config: Config) -> Message:
    other = content.other
    reference = reference_of(row.id, row.message_id) if config.hears_reports else None
    return Message(
        email_id=row.email_id,
        message_id=row.message_id,
        from_address=other.get("from") or config.mail_from,
        recipient=row.recipient,
        subject=content.subject,
        body=content.body,
        # The same on every attempt: a provider may compare content under one idempotency key.
        date=max(filter(None, (row.received_at, row.send_at, row.replayed_at))),
        html=content.html,
        reply_to=other.get("reply_to"),
        headers=_headers(other.get("headers") or {}, reference, config.report_header),
        attachments=attachments,
        reference=reference,
    )


def _headers(given: Mapping[str, str], reference: str | None, name: str) -> Mapping[str, str]:
    """A client that uses the provider's header itself keeps it, and its e-mail goes without a reference there."""
    if reference is None or name.lower() in map(str.lower, given):
        return given
    return {**given, name: HEADERS[name] % reference}
