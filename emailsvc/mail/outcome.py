"""What one conversation with the mail server came to; see "What a reply means" in this folder's README."""

from __future__ import annotations

from dataclasses import dataclass

from emailsvc.vocabulary import Outcome as Outcome


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    text: str
    code: int | None = None
    enhanced: str | None = None  # RFC 3463, e.g. "4.7.1"
    command: str | None = None  # the one that was answered so: MAIL, RCPT, DATA or "." for the final dot
