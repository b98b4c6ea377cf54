"""One e-mail, what became of it, and the interface that every transport keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

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
    sender: str
    recipient: str
    subject: str
    body: str
    date: datetime
    html: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: Sequence[Attachment] = ()


class Transport(Protocol):
    """Takes one mail at a time. Used by one thread; only ``stop``, and after it ``close``, may be called from another.

    ``send`` never raises: whatever happens is a Result, because only the transport knows on which side of the final
    dot it happened. ``timeout`` bounds the conversation up to the dot in seconds, in total; ``reply_timeout`` the wait
    for the reply to the dot. ``before_dot`` is asked immediately before the dot is sent: False means that the time is
    up, and the conversation is cut there.
    """

    def send(
        self, mail: Mail, *, timeout: float, reply_timeout: float, before_dot: Callable[[], bool] = lambda: True
    ) -> Result: ...

    def stop(self, grace: float) -> None:
        """Shut down: cut a conversation that is before its dot; give one after it ``grace`` seconds more."""

    def close(self) -> None:
        """Let go of any kept connection, but not of a conversation. Trouble while doing so is logged, never raised."""


__all__ = ["Attachment", "Mail", "Outcome", "Result", "Transport"]
