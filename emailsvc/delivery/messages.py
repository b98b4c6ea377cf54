"""The message of a row in hand."""

from __future__ import annotations

from collections.abc import Sequence

from emailsvc.mail import Attachment, Message
from emailsvc.outbox import Claimed, Content
from emailsvc.settings.config import Config


def message_of(row: Claimed, content: Content, attachments: Sequence[Attachment], config: Config) -> Message:
    other = content.other
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
        headers=other.get("headers") or {},
        attachments=attachments,
    )
