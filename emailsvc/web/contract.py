"""Every route with what it takes and answers, as one table: the OpenAPI document is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from emailsvc.intake.payload import BatchPayload, EmailId, EmailPayload
from emailsvc.web import answers
from emailsvc.web.answers import DeadLetterId

Access = Literal["sender", "operator", "anyone"]
Codes = dict[int, tuple[str, ...]]

INVALID = ("invalid_json", "invalid_field", "missing_field", "unknown_field", "too_many", "incomplete_body")
TEXT = "text/plain"

_EVERYWHERE: Codes = {500: ("internal_error",)}
_CLOSED = ("not_configured", "bad_host")
_BY_ACCESS: Mapping[Access, Codes] = {
    "sender": {
        401: ("unsigned", "bad_timestamp", "stale_timestamp", "bad_signature", "token_required", "bad_token"),
        403: (*_CLOSED, "cross_site"),
        503: ("database_unavailable",),
    },
    "operator": {
        401: ("token_required", "bad_token"),
        403: (*_CLOSED, "cross_site"),
        503: ("database_unavailable",),
    },
    "anyone": {403: _CLOSED},
}
_READS_JSON: Codes = {400: INVALID, 413: ("too_large",), 415: ("not_json",)}
_NOT_FOUND: Codes = {404: ("not_found",)}
_LETTER: Codes = _NOT_FOUND | {409: ("already_resolved",)}


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    access: Access
    summary: str
    answers: Mapping[int, Any]  # by status: a declaration, or a media type for what is not JSON
    more: Codes = field(default_factory=dict)  # problem codes by status, beside those of every route like it
    body: Any = None
    body_required: bool = True
    query: Any = None

    @property
    def codes(self) -> dict[int, tuple[str, ...]]:
        found: dict[int, tuple[str, ...]] = {}
        sources = [_EVERYWHERE, _BY_ACCESS[self.access] if self.path != "/healthz" else {}, self.more]
        if self.body is not None:
            sources.append(_READS_JSON)
        for source in sources:
            for status, codes in source.items():
                found[status] = tuple(dict.fromkeys((*found.get(status, ()), *codes)))
        return dict(sorted(found.items()))


PATH_PARAMETERS: Mapping[str, Any] = {"email_id": EmailId, "dead_letter_id": DeadLetterId}

ROUTES = (
    Route(
        "POST", "/webhook/email", "sender", "Send one e-mail, once",
        {202: answers.AcceptedAnswer, 200: answers.DuplicateAnswer}, {422: ("payload_mismatch",)}, EmailPayload,
    ),
    Route(
        "POST", "/webhook/email/batch", "sender", "Send up to 1,000 e-mails, each once, with one result for each",
        {200: answers.BatchAnswer}, {}, BatchPayload,
    ),
    Route(
        "GET", "/emails/{email_id}", "operator", "What became of an e-mail",
        {200: answers.EmailAnswer}, _NOT_FOUND,
    ),
    Route(
        "DELETE", "/emails/{email_id}", "operator", "Cancel an e-mail that is still pending",
        {200: answers.CancelAnswer}, _NOT_FOUND | {409: ("already_sent", "sending", "failed", "maybe_sent")},
    ),
    Route(
        "POST", "/emails/lookup", "operator", "What became of up to 1,000 e-mails",
        {200: answers.LookupAnswer}, {}, answers.LookupRequest,
    ),
    Route("GET", "/stats", "operator", "The totals, and the state of delivery", {200: (answers.Stats, "text/html")}),
    Route(
        "GET", "/stats/dead-letters", "operator", "E-mails given up, newest first",
        {200: answers.DeadLetterPage}, {400: ("invalid_field", "unknown_field")}, query=answers.DeadLetterQuery,
    ),
    Route(
        "POST", "/stats/dead-letters/{dead_letter_id}/replay", "operator", "Send it again",
        {200: answers.ResolvedAnswer}, _LETTER | {409: ("already_resolved", "content_gone")},
    ),
    Route(
        "POST", "/stats/dead-letters/{dead_letter_id}/delivered", "operator", "Mark as delivered: it becomes sent",
        {200: answers.ResolvedAnswer}, _LETTER,
    ),
    Route(
        "DELETE", "/stats/dead-letters/{dead_letter_id}", "operator", "Discard it: it is never sent",
        {200: answers.ResolvedAnswer}, _LETTER,
    ),
    Route(
        "POST", "/stats/dead-letters/replay", "operator", "Send many again, oldest first",
        {200: answers.ReplayAnswer}, {}, answers.ReplayRequest,
    ),
    Route(
        "POST", "/delivery/pause", "operator", "Start no further e-mail until resumed",
        {200: answers.Delivery}, {}, answers.PauseRequest, body_required=False,
    ),
    Route("POST", "/delivery/resume", "operator", "End a pause", {200: answers.Delivery}),
    Route("POST", "/delivery/end-outage", "operator", "End an outage, if there is one", {200: answers.Delivery}),
    Route("GET", "/metrics", "operator", "The totals for Prometheus", {200: TEXT}),
    Route("GET", "/healthz", "anyone", "The process is up", {200: answers.Health}),
    Route(
        "GET", "/readyz", "anyone", "Mail can go out",
        {200: answers.Ready}, {503: ("not_ready", "database_unavailable")},
    ),
    Route("GET", "/openapi.json", "anyone", "This document", {200: "application/json"}),
)  # fmt: skip
