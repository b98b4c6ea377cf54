"""Our reference on an e-mail: ``<row id>-<first 16 hexadecimal digits of its Message-ID>``.

Providers replace the Message-ID, and hand a header or the envelope's id back. It is looked up by the row's id and then
compared, so that it needs neither an index nor a secret, and one of another installation fits no e-mail of ours.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEADERS = {
    "X-Email-Ref": "%s",
    "X-PM-Metadata-ref": "%s",  # Postmark
    "X-SMTPAPI": '{"unique_args": {"ref": "%s"}}',  # SendGrid
    "X-Mailgun-Variables": '{"ref": "%s"}',
}
"""Headers that come back in a provider's reports, there under the name ``ref``, and what they hold."""

DIGITS = 16
MAX_ROW_ID = 2**63 - 1

_shape = re.compile(rf"([1-9][0-9]{{0,18}})-([0-9a-f]{{{DIGITS}}})").fullmatch


class Reference(NamedTuple):
    row_id: int
    digits: str


def reference_of(row_id: int, message_id: str) -> str:
    return f"{row_id}-{_digits(message_id)}"


def read_reference(text: str) -> Reference | None:
    """None for what no e-mail of this service carries. Capitals and blanks may have come on its way."""
    found = _shape(text.strip().lower())
    if found is None or int(found[1]) > MAX_ROW_ID:
        return None
    return Reference(int(found[1]), found[2])


def fits(reference: Reference, row_id: int, message_id: str) -> bool:
    return reference == (row_id, _digits(message_id))


def _digits(message_id: str) -> str:
    return message_id.removeprefix("<")[:DIGITS]
