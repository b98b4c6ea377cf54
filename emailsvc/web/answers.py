"""What the routes take, and what they answer beside the reports: views use these, OpenAPI is made from them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from emailsvc.intake.addresses import ONE_LINE
from emailsvc.intake.filters import EmailFilter
from emailsvc.intake.payload import EmailId, Moment
from emailsvc.reports.answers import CURSOR, SEARCH_CURSOR, Count, RowId
from emailsvc.vocabulary import ActionKind, ActionState, Order, Reason, Resolution, State

# To JSON Schema 1000.0 is an integer, and some clients' libraries write it so.
WholeNumber = Annotated[float, Meta(ge=1, le=10_000, multiple_of=1, extra_json_schema={"type": "integer"})]
PageSize = Annotated[float, Meta(ge=1, le=200, multiple_of=1, extra_json_schema={"type": "integer"})]
Code = Annotated[
    float,
    Meta(
        ge=200, le=599, multiple_of=1, extra_json_schema={"type": "integer"}, description="Of the mail server's reply."
    ),
]
MAX_MOVED = 100_000
"""Dead letters by one bulk action."""

Many = Annotated[float, Meta(ge=1, le=MAX_MOVED, multiple_of=1, extra_json_schema={"type": "integer"})]

# Its pattern is checked where it is read, which can say what it should be.
Cursor = Annotated[str, Meta(extra_json_schema={"pattern": CURSOR}, description="`next_cursor` of the page before.")]
SearchCursor = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": SEARCH_CURSOR},
        description="`next_cursor` of the same search.",
    ),
]


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457. ``code`` is stable; ``field`` names what is at fault in the request, ``problems`` what is not ready."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    problems: list[str] | None = None


class AcceptedAnswer(msgspec.Struct):
    status: Literal["accepted"]
    email_id: str
    state: State


class DuplicateAnswer(msgspec.Struct, omit_defaults=True):
    """What was absorbed has ``duplicate_of``, the id of its first one; what tells of that is null once it is purged."""

    status: Literal["duplicate"]
    email_id: str
    state: State
    first_received_at: str
    duplicates: Count
    mismatch: bool = False
    duplicate_of: str | UnsetType = UNSET
    first_state: State | UnsetType | None = UNSET
    same_content: bool | UnsetType | None = UNSET


class BatchResult(msgspec.Struct):
    index: Count
    status: Literal["accepted", "duplicate", "mismatch", "invalid"]
    email_id: str | None = None
    state: State | None = None
    code: str | None = None
    field: str | None = None
    detail: str | None = None
    duplicate_of: str | UnsetType = UNSET
    first_state: State | UnsetType | None = UNSET
    same_content: bool | UnsetType | None = UNSET


class BatchAnswer(msgspec.Struct):
    results: list[BatchResult]


class LookupRequest(msgspec.Struct, forbid_unknown_fields=True):
    email_ids: Annotated[list[EmailId], Meta(max_length=1000)]


class SearchRequest(EmailFilter, frozen=True, forbid_unknown_fields=True):
    order: Order = Order.NEWEST
    limit: PageSize = 50
    cursor: SearchCursor | None = None


class SendRequest(EmailFilter, frozen=True, forbid_unknown_fields=True):
    """Which of the pending e-mails to send now, up to ``limit``."""

    limit: WholeNumber = 1000
    dry_run: bool = False


class SendAnswer(msgspec.Struct):
    """``next_attempt_at``: since when it is due."""

    email_id: str
    state: Literal["pending"]
    next_attempt_at: str


class SendManyAnswer(msgspec.Struct):
    """Of those ``matching``; with ``dry_run``, ``made_due`` tells how many would be."""

    matching: Count
    made_due: Count
    already_due: Count
    scheduled: Annotated[Count, Meta(description="Their `send_at` lies ahead.")]
    uncertain_left_out: Annotated[Count, Meta(description="An attempt may have reached the mail server.")]


class AttachmentAnswer(msgspec.Struct):
    """``size``: in bytes."""

    filename: str
    content_type: str
    size: Count


class ContentAnswer(msgspec.Struct, rename={"from_address": "from"}):
    """As it was given."""

    email_id: str
    from_address: str | None
    reply_to: str | None
    subject: str
    headers: dict[str, str]
    body: str
    html: str | None
    attachments: list[AttachmentAnswer]


class CancelAnswer(msgspec.Struct):
    email_id: str
    state: Literal["cancelled"]


class HoursQuery(msgspec.Struct, forbid_unknown_fields=True):
    since: Moment | None = None


class LetterQuery(msgspec.Struct, forbid_unknown_fields=True):
    """``error``: contained in the letter's, in capitals or not; % and _ stand for themselves."""

    reason: Reason | None = None
    code: Code | None = None
    domain: (
        Annotated[
            str,
            Meta(min_length=1, max_length=253, description="The recipient's.", extra_json_schema={"pattern": ONE_LINE}),
        ]
        | None
    ) = None
    error: Annotated[str, Meta(min_length=1, max_length=200, extra_json_schema={"pattern": ONE_LINE})] | None = None
    since: Moment | None = None
    until: Moment | None = None


class DeadLetterQuery(LetterQuery):
    resolved: Annotated[int, Meta(ge=0, le=1, description="1 lists the resolved ones.")] = 0
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Cursor | None = None


class GroupQuery(LetterQuery):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class BulkRequest(LetterQuery):
    """Which of the unresolved dead letters, the oldest first, and at most how many. At a ``rate``, in letters a second,
    the workers do it bit by bit; ``dry_run`` only counts.
    """

    ids: Annotated[list[RowId], Meta(min_length=1, max_length=1000)] | None = None
    limit: Many = 1000
    rate: Annotated[float, Meta(ge=0.1, le=1000)] | None = None
    dry_run: bool = False


class DeliveredRequest(msgspec.Struct, forbid_unknown_fields=True):
    ids: Annotated[list[RowId], Meta(min_length=1, max_length=1000)]


class BulkAnswer(msgspec.Struct, omit_defaults=True):
    """``matching`` has in it ``uncertain_left_out``, ``content_gone`` and what is beyond the limit."""

    matching: Count | UnsetType = UNSET
    uncertain_left_out: Count | UnsetType = UNSET


class ReplayAnswer(BulkAnswer, kw_only=True):
    """Of a dry run ``replayed`` is ``would_replay``, as it always was."""

    replayed: Count
    would_replay: Count | UnsetType = UNSET
    content_gone: Count | UnsetType = UNSET


class DiscardAnswer(BulkAnswer, kw_only=True):
    discarded: Count | UnsetType = UNSET
    would_discard: Count | UnsetType = UNSET


class DeliveredAnswer(msgspec.Struct):
    delivered: Count


class StopAnswer(msgspec.Struct):
    """``left``: how many of its dead letters it has not moved."""

    id: RowId
    state: Literal["stopped"]
    left: Count


class ActionQuery(msgspec.Struct, forbid_unknown_fields=True):
    kind: ActionKind | None = None
    who: Annotated[str, Meta(max_length=64, extra_json_schema={"pattern": ONE_LINE})] | None = None
    state: ActionState | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Cursor | None = None


class HeardAnswer(msgspec.Struct):
    """Of the events in the request: ``repeated`` were known, ``unmatched`` are of no e-mail here, ``ignored`` tell
    nothing that is kept. ``settled``: so many e-mails are now ``sent`` because of them.
    """

    noted: Count
    repeated: Count
    unmatched: Count
    ignored: Count
    settled: Count


class ResolvedAnswer(msgspec.Struct):
    id: RowId
    email_id: str
    resolution: Resolution


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=200, extra_json_schema={"pattern": ONE_LINE})] | None = None


class Health(msgspec.Struct):
    status: Literal["ok"]


class Ready(msgspec.Struct):
    status: Literal["ready"]
