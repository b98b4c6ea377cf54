"""What the reports return, declared: routes and commands show these, and the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from emailsvc.vocabulary import ActionState, DeliveryState, EventName, Priority, Reason, Resolution, State

CURSOR = "^([0-9]{1,17})~([0-9]{1,18})$"
"""A time in microseconds since 1970 (or the checksum of a query) and an id: digits, for in a query a + would come back
as a blank."""

SEARCH_CURSOR = "^([0-9]{1,18})~([0-9]{1,18})~([0-9a-f]{12})$"
"""The same, and what tells the search that it is of."""

RowId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0)]


class Held(msgspec.Struct):
    since: str
    reason: str | None


class Outage(Held):
    next_probe_at: str | None


class Delivery(msgspec.Struct):
    """``state``, ``since`` and ``reason`` tell of the pause when there is an outage, too; the others of each."""

    state: DeliveryState
    since: str | None
    reason: str | None
    paused: Held | None
    outage: Outage | None


class Totals(msgspec.Struct):
    received: Count
    duplicates: Count
    mismatches: Count
    pending: Count
    sending: Count
    sent: Count
    failed: Count
    cancelled: Count
    absorbed: Count
    absorbed_other: Annotated[Count, Meta(description="Of other content than the first one's.")]
    would_absorb: Annotated[Count, Meta(description="Under `DEDUPE_MODE=observe`.")]
    failed_attempts: Count


class Stats(Totals):
    """`GET /stats`. ``oldest_pending_seconds`` is about what is due; null when nothing is.

    ``delivered``, ``bounced`` and ``complained`` count e-mails of which that was reported, ``settled`` those that
    became ``sent`` by a report. ``refused`` counts webhooks by problem code.
    """

    dead_letters: Count
    delivered: Count
    bounced: Count
    complained: Count
    settled: Count
    unmatched_reports: Count
    oldest_pending_seconds: float | None
    delivery: Delivery
    refused: dict[str, Count]


class Hour(msgspec.Struct):
    """What happened in the hour that begins at ``hour``. ``failed``: given up, whatever became of it since.

    ``delivered``, ``bounced`` and ``complained`` are what was reported in it, mostly of e-mails of before.
    """

    hour: str
    received: Count
    duplicates: Count
    mismatches: Count
    sent: Count
    failed: Count
    cancelled: Count
    absorbed: Count
    failed_attempts: Count
    delivered: Count
    bounced: Count
    complained: Count


class Hours(msgspec.Struct):
    """In order; the last one is still open."""

    hours: list[Hour]


class DeadLetter(msgspec.Struct):
    """``user`` and ``subject`` are null once they were erased or scrubbed."""

    id: RowId
    email_id: str
    user: str | None
    subject: str | None
    reason: Reason
    error: str
    attempts: Count
    created_at: str
    resolved_at: str | None
    resolution: Resolution | None


class DeadLetterPage(msgspec.Struct):
    dead_letters: list[DeadLetter]
    next_cursor: str | None


class LetterGroup(msgspec.Struct):
    """``error`` without addresses and words with digits in them: a … stands for each."""

    reason: Reason
    code: int | None
    enhanced: str | None
    error: str
    count: Count
    first_at: str
    last_at: str


class LetterGroups(msgspec.Struct):
    groups: list[LetterGroup]


class EmailSummary(msgspec.Struct):
    """``user`` and ``subject`` are null once they were erased or scrubbed. ``duplicate_of`` absorbed it."""

    email_id: str
    user: str | None
    subject: str | None
    state: State
    attempts: Count
    duplicates: Count
    mismatches: Count
    priority: Priority
    message_id: str
    received_at: str
    sent_at: str | None
    cancelled_at: str | None
    next_attempt_at: str | None
    send_at: str | None
    expires_at: str | None
    scrubbed_at: str | None
    last_error: str | None
    duplicate_of: str | None


class Event(msgspec.Struct):
    """What happened when. ``text`` is the server's reply; that to the final dot has the conversation's ``seconds``, the
    others ``started_at``. A dead letter tells why; it and its end, which one it is. What was ``reported`` tells which
    ``report`` that was, and whether it ``settled`` the e-mail.
    """

    at: str
    event: EventName
    code: int | UnsetType | None = UNSET
    enhanced: str | UnsetType | None = UNSET
    text: str | UnsetType = UNSET
    started_at: str | UnsetType | None = UNSET
    seconds: float | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET
    error: str | UnsetType = UNSET
    dead_letter: RowId | UnsetType = UNSET
    report: str | UnsetType = UNSET  # a Report, or one that a newer release knows
    kind: str | UnsetType = UNSET
    settled: bool | UnsetType = UNSET


class EmailAnswer(EmailSummary):
    """``absorbed``: how many others are its duplicates. ``first_state`` is that of ``duplicate_of``."""

    absorbed: Count
    first_state: State | None
    timeline: list[Event]


class EmailPage(msgspec.Struct):
    emails: list[EmailSummary]
    next_cursor: str | None


class Action(msgspec.Struct):
    """``who``: null for the service itself. ``total`` and ``done``: of how many there were, how many so far."""

    id: RowId
    at: str
    kind: str  # an ActionKind, or one that a newer release writes
    who: str | None
    why: str | None
    filter: dict[str, Any] | None
    total: Count | None
    done: Count | None
    state: ActionState
    rate: float | None
    ended_at: str | None


class ActionPage(msgspec.Struct):
    actions: list[Action]
    next_cursor: str | None


class LookupAnswer(msgspec.Struct):
    emails: list[EmailSummary]
    missing: list[str]
