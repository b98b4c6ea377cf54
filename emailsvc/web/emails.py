"""What became of an e-mail, finding it, taking one back and sending it now."""

from __future__ import annotations

import logging
from dataclasses import asdict

import msgspec
from flask import Response

from emailsvc import outbox, reports
from emailsvc.clock import isoformat
from emailsvc.context import service
from emailsvc.intake import addresses
from emailsvc.reports.answers import EmailAnswer, EmailPage, LookupAnswer
from emailsvc.web import auth
from emailsvc.web.answers import (
    AttachmentAnswer,
    CancelAnswer,
    ContentAnswer,
    LookupRequest,
    SearchRequest,
    SendAnswer,
    SendManyAnswer,
    SendRequest,
)
from emailsvc.web.contract import Routes

log = logging.getLogger("emailsvc.web")

blueprint = Routes("emails", __name__)


@blueprint.declare(
    "GET", "/emails/{email_id}", "operator", "What became of an e-mail", codes=("not_found",), template="email.html"
)
def show(email_id: str) -> EmailAnswer:
    return reports.email(service().engine, email_id)


@blueprint.declare(
    "POST", "/emails/{email_id}/content", "operator", "What an e-mail says; the journal notes who looked",
    codes=("not_found", "content_gone"), template="content.html",
)  # fmt: skip
def view(email_id: str) -> ContentAnswer:
    viewed = outbox.view(service().engine, email_id, who=auth.operator_name())
    log.info("viewed", extra={"fields": {"email_id": email_id}})
    content, other = viewed.content, viewed.content.other
    attachments = msgspec.convert(viewed.attachments, list[AttachmentAnswer])
    return ContentAnswer(
        email_id, other.get("from"), other.get("reply_to"), content.subject, other.get("headers") or {},
        content.body, content.html, attachments,
    )  # fmt: skip


@blueprint.route("/emails/lookup", methods=["OPTIONS"])
@blueprint.route("/emails/search", methods=["OPTIONS"])
@blueprint.route("/emails/send", methods=["OPTIONS"])
def post_options() -> Response:
    """Without it the answer would name the methods of an e-mail whose id is "lookup" as well."""
    return Response(headers={"Allow": "OPTIONS, POST"})


@blueprint.declare("POST", "/emails/lookup", "operator", "What became of up to 1,000 e-mails", template="found.html")
def lookup(body: LookupRequest) -> LookupAnswer:
    for index, email_id in enumerate(body.email_ids):
        addresses.one_line(email_id, f"email_ids[{index}]")
    return reports.lookup(service().engine, body.email_ids)


@blueprint.declare(
    "POST", "/emails/search", "operator", "Find e-mails, newest or longest overdue first", template="found.html"
)
def search(body: SearchRequest) -> EmailPage:
    return reports.search(service().engine, body, order=body.order, limit=int(body.limit), cursor=body.cursor)


@blueprint.declare("POST", "/emails/send", "operator", "Make many pending e-mails due at once")
def send_many(body: SendRequest) -> SendManyAnswer:
    done = outbox.send_many_now(
        service().engine, body, limit=int(body.limit), dry_run=body.dry_run, who=auth.operator_name()
    )
    if done.made_due and not body.dry_run:
        service().wake()
        log.info("made_due", extra={"fields": {"emails": done.made_due}})
    return SendManyAnswer(**asdict(done))


@blueprint.declare(
    "POST", "/emails/{email_id}/send", "operator", "Make a pending e-mail due at once",
    codes=(
        "not_found", "already_sent", "sending", "failed", "cancelled", "maybe_sent", "scheduled", "absorbed",
        "content_gone",
    ),
)  # fmt: skip
def send(email_id: str) -> SendAnswer:
    due = outbox.send_now(service().engine, email_id, who=auth.operator_name())
    service().wake()
    log.info("made_due", extra={"fields": {"email_id": email_id}})
    return SendAnswer(email_id, "pending", isoformat(due))


@blueprint.declare(
    "DELETE", "/emails/{email_id}", "operator", "Cancel an e-mail that is still pending",
    codes=("not_found", "already_sent", "sending", "failed", "maybe_sent"),
)  # fmt: skip
def cancel(email_id: str) -> CancelAnswer:
    outbox.cancel(service().engine, email_id, who=auth.operator_name())
    log.info("cancelled", extra={"fields": {"email_id": email_id}})
    return CancelAnswer(email_id, "cancelled")
