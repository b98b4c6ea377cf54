"""One message, and what one conversation with the mail server came to (the table of this folder's README)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from emailsvc.intake.payload import Attachment as Attachment
from emailsvc.vocabulary import Outcome as Outcome


@dataclass(frozen=True, slots=True)
class Message:
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
    reference: str | None = None  # by which reports find it


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    reply: str  # the server's, or what we say of its lack
    code: int | None = None
    enhanced: str | None = None  # RFC 3463, e.g. "4.7.1"
    command: str | None = None  # the one that was answered so: MAIL, RCPT, DATA or "." for the final dot
