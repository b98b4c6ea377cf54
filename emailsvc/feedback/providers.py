"""The providers whose reports are understood, by the name of their route: a file and a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emailsvc.feedback import mailgun, postmark, resend, sendgrid, ses
from emailsvc.feedback.events import Event

Read = Callable[[bytes], list[Event]]
"""From a body, as it was posted, to its events. Raises InvalidPayload, no more, for one that is not the provider's."""

PROVIDERS: Mapping[str, Read] = {
    "ses": ses.read,
    "sendgrid": sendgrid.read,
    "postmark": postmark.read,
    "mailgun": mailgun.read,
    "resend": resend.read,
}

CONFIRMATIONS: Mapping[str, Callable[[bytes], str | None]] = {"ses": ses.confirmation}
"""Where a provider wants a URL opened before it reports anything. It is shown to the operator, and never fetched."""
