"""What was reported of an e-mail, in one form, whoever reported it.

All of it comes from outside. It is cleaned and cut here, once, so that no translator has to think of control characters
or lengths, and nothing that a report says can break a line of a log, a header or a page.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TypeGuard

import msgspec

from emailsvc.intake.payload import in_utc
from emailsvc.vocabulary import BounceKind

MAX_EVENTS = 1000
"""Per request."""

MAX_EVENT = 32
MAX_REFERENCE = 64
MAX_EMAIL_ID = 255
MAX_TEXT = 1000
MAX_NUMBER = 10**15

_unprintable = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_CODE = re.compile(r"(?<![\w.@])(?:\d{3}|[245]\.\d{1,3}\.\d{1,3})(?![\w.@])", re.ASCII)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*([Zz]|[+-]\d\d:?\d\d)", re.ASCII)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Made by ``heard``. ``event`` in Anymail's words; what is no ``vocabulary.Report`` is taken and ignored.

    ``at`` is aware and in UTC, None when not told. ``reference`` is what `feedback.reference` put on the e-mail, as it
    came back. ``code`` is the reply code, the enhanced one or both and nothing else, ``text`` the server's or the
    provider's words.
    """

    event: str
    at: datetime | None = None
    reference: str | None = None
    email_id: str | None = None
    kind: BounceKind | None = None
    code: str | None = None
    text: str | None = None


def heard(
    event: str,
    *,
    at: object = None,
    reference: object = None,
    email_id: object = None,
    kind: BounceKind | None = None,
    code: object = None,
    text: object = None,
) -> Event:
    """An event from whatever a provider's JSON or a bounce mail holds: what cannot be used counts as not told.

    ``at`` is an RFC 3339 text with an offset, seconds since 1970, or an aware datetime. An ``email_id`` is compared
    byte for byte, so that one which would have to be cleaned is none.
    """
    return Event(
        event=(one_line(event) or "unknown").lower()[:MAX_EVENT],
        at=moment(at),
        reference=_whole(reference, MAX_REFERENCE),
        email_id=_whole(email_id, MAX_EMAIL_ID),
        kind=kind,
        code=_codes(code),
        text=_cut(text, MAX_TEXT),
    )


def one_line(value: object) -> str | None:
    """A text or a number as one line without control characters; None for anything else, and for nothing."""
    if _is_number(value):
        value = str(value)
    return " ".join(_unprintable.sub(" ", value).split()) or None if isinstance(value, str) else None


def moment(value: object) -> datetime | None:
    """Aware and in UTC; None for what is no moment, or beyond the calendar."""
    if isinstance(value, datetime):
        return in_utc(value) if value.tzinfo else None
    if isinstance(value, str):
        return _read_time(value.strip())
    if not _is_number(value):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _is_number(value: object) -> TypeGuard[int | float]:
    """One that can be written down: Python refuses to write an integer of 5,000 digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _read_time(text: str) -> datetime | None:
    """Some write seven digits after the point, and some no colon in the offset."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    try:
        return in_utc(datetime.fromisoformat(found[1].upper() + found[2].upper()))
    except ValueError:
        return None


def _whole(value: object, most: int) -> str | None:
    if not isinstance(value, str) or not 0 < len(value) <= most or _unprintable.search(value):
        return None
    return value


def _cut(value: object, most: int) -> str | None:
    text = one_line(value)
    return None if text is None else text[:most]


def _codes(value: object) -> str | None:
    """The first two, and nothing beside them: it is logged, and outlives the erasure of the recipient."""
    return " ".join(_CODE.findall(_cut(value, MAX_TEXT) or "")[:2]) or None
