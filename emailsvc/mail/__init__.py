"""One e-mail, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from emailsvc.mail.outcome import Outcome, Result


@dataclass(frozen=True, slots=True)
class Attachment:
    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """What goes on the wire: one recipient, on purpose (a partly refused message has no honest status)."""

    email_id: str
    message_id: str
    from_address: str
    recipient: str
    subject: str
    body: str
    date: datetime
    html: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: Sequence[Attachment] = ()


__all__ = ["Attachment", "Mail", "Outcome", "Result"]
