"""What comes from outside becomes an event whose every part can be stored and shown."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emailsvc.feedback.events import MAX_EVENT, MAX_TEXT, Event, heard, moment
from emailsvc.feedback.reference import MAX_ROW_ID, Reference, fits, read_reference, reference_of
from emailsvc.intake import addresses
from emailsvc.vocabulary import BounceKind, Report

MESSAGE_ID = "<0123456789abcdef0123456789abcdef@example.com>"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_an_event_holds_what_was_told() -> None:
    event = heard(
        Report.BOUNCED,
        at="2026-11-24T10:00:00.1234567+01:00",
        reference="7-0123456789abcdef",
        email_id="order-7",
        kind=BounceKind.HARD,
        code=550,
        text="5.1.1 no such\r\n user",
    )
    at = datetime(2026, 11, 24, 9, 0, 0, 123456, tzinfo=UTC)
    assert event == Event(
        event="bounced", at=at, reference="7-0123456789abcdef", email_id="order-7", kind=BounceKind.HARD,
        code="550", text="5.1.1 no such user",
    )  # fmt: skip


@given(st.text(), anything, anything, anything, anything, anything)
def test_whatever_it_is_made_of_it_can_be_shown(
    name: str, at: object, reference: object, email_id: object, code: object, text: object
) -> None:
    event = heard(name, at=at, reference=reference, email_id=email_id, code=code, text=text)
    words = [event.event, event.reference, event.email_id, event.code, event.text]
    for word in filter(None, words):
        addresses.one_line(word, "word")  # raises for what a line could break at
    "".join(filter(None, words)).encode()  # no lone surrogate
    assert "" not in words
    assert len(event.event) <= MAX_EVENT
    assert event.at is None or event.at.utcoffset() == timedelta()


def test_a_long_text_is_cut_and_an_id_that_would_have_to_be_is_none() -> None:
    event = heard("Bounced", reference="1" * 65, email_id="order\x00-7", text="x" * 5000)
    assert (event.event, event.reference, event.email_id) == ("bounced", None, None)
    assert event.text == "x" * MAX_TEXT


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (421, "421"),
        (605, "605"),
        ("5.1.1", "5.1.1"),
        ("550-5.1.1 <ada@example.com>", "550 5.1.1"),
        ("ada@example.com", None),
        ("ada.550.5@example.com", None),
        ("5.1.1 " * 20, "5.1.1 5.1.1"),
        ("x" * 10**6, None),
        (True, None),
    ],
    ids=lambda told: str(told)[:20],
)
def test_of_a_code_only_the_codes_are_kept(told: object, kept: str | None) -> None:
    """It is logged, and outlives the erasure of its recipient, so that no address may stand in it."""
    assert heard("bounced", code=told).code == kept


@pytest.mark.parametrize(
    ("told", "at"),
    [
        ("2026-11-24T09:00:00Z", datetime(2026, 11, 24, 9, tzinfo=UTC)),
        ("2026-11-24T09:00:00.126Z", datetime(2026, 11, 24, 9, 0, 0, 126000, tzinfo=UTC)),
        ("2026-11-24 09:00:00+0000", datetime(2026, 11, 24, 9, tzinfo=UTC)),
        (1764000000, datetime.fromtimestamp(1764000000, UTC)),
        (1764000000.5, datetime.fromtimestamp(1764000000.5, UTC)),
        (datetime(2026, 11, 24, 9, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 11, 24, 8, tzinfo=UTC)),
    ],
)
def test_moments_are_read_as_providers_write_them(told: object, at: datetime) -> None:
    assert moment(told) == at


@pytest.mark.parametrize(
    "told",
    [None, True, "", "yesterday", "2026-11-24", "2026-13-24T09:00:00Z", "2026-11-24T09:00:00", 1e300, -1e300,
     math.nan, math.inf, 10**400, [1], datetime(2026, 11, 24)],
    ids=lambda told: repr(told)[:20],
)  # fmt: skip
def test_what_is_no_moment_is_not_told(told: object) -> None:
    assert moment(told) is None


def test_a_reference_leads_to_its_e_mail() -> None:
    text = reference_of(7, MESSAGE_ID)
    assert text == "7-0123456789abcdef"
    for written in (text, f" {text.upper()}\r\n"):
        assert read_reference(written) == Reference(7, "0123456789abcdef")
    assert fits(Reference(7, "0123456789abcdef"), 7, MESSAGE_ID)


def test_another_installations_reference_fits_none_of_ours() -> None:
    assert not fits(Reference(7, "0123456789abcdee"), 7, MESSAGE_ID)
    assert not fits(Reference(8, "0123456789abcdef"), 7, MESSAGE_ID)


@pytest.mark.parametrize(
    "text",
    ["", "7", "7-", "-0123456789abcdef", "07-0123456789abcdef", "7-0123456789abcde", "7-0123456789abcdef0",
     "7-0123456789abcdeg", "٧-0123456789abcdef", f"{MAX_ROW_ID + 1}-0123456789abcdef"],
)  # fmt: skip
def test_what_is_no_reference_is_none(text: str) -> None:
    assert read_reference(text) is None
