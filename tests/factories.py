"""The e-mail of the tests, as a client posts it, as the outbox takes it and as the transport sends it."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

from emailsvc.intake.payload import NewEmail, Rules, parse_email
from emailsvc.mail import Message

_numbers = itertools.count(1)


def payload(email_id: str = "m-1", **fields: Any) -> dict[str, Any]:
    """The recipient tells the id, so that the mail server's copies can be counted by it."""
    return {"email_id": email_id, "user": f"{email_id}@example.com", "subject": "Hello", "body": "Text"} | fields


def new_email(email_id: str = "m-1", **fields: Any) -> NewEmail:
    raw = json.dumps(payload(email_id, **fields)).encode()
    return parse_email(raw, Rules(frozenset({"localhost", "example.org"})))


def a_message(**changes: Any) -> Message:
    """With an id and a Message-ID of its own."""
    number = next(_numbers)
    given: dict[str, Any] = {
        "email_id": f"order-{number}",
        "message_id": f"<{number:032x}@example.com>",
        "from_address": "shop@example.com",
        "recipient": "ada@example.com",
        "subject": "Your order",
        "body": "Thank you.\n",
        "date": datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    }
    return Message(**(given | changes))
