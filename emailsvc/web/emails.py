"""What became of an e-mail, and taking one back."""

from __future__ import annotations

import logging

from flask import Blueprint, Response

from emailsvc import outbox, reports
from emailsvc.intake import addresses
from emailsvc.service import service
from emailsvc.web import auth
from emailsvc.web.answers import CancelAnswer, LookupRequest
from emailsvc.web.reading import answer, json_as

log = logging.getLogger("emailsvc.web")

blueprint = Blueprint("emails", __name__)
blueprint.before_request(auth.require_operator)


@blueprint.get("/emails/<email_id:email_id>")
def show(email_id: str) -> Response:
    return answer(reports.email(service().engine, email_id))


@blueprint.route("/emails/lookup", methods=["OPTIONS"])
def lookup_options() -> Response:
    """Without it the answer would name the methods of an e-mail whose id is "lookup" as well."""
    return Response(headers={"Allow": "OPTIONS, POST"})


@blueprint.post("/emails/lookup")
def lookup() -> Response:
    email_ids = json_as(LookupRequest).email_ids
    for index, email_id in enumerate(email_ids):
        addresses.one_line(email_id, f"email_ids[{index}]")
    found, missing = reports.lookup(service().engine, email_ids)
    return answer({"emails": found, "missing": missing})


@blueprint.delete("/emails/<email_id:email_id>")
def cancel(email_id: str) -> Response:
    outbox.cancel(service().engine, email_id)
    log.info("cancelled", extra={"fields": {"email_id": email_id}})
    return answer(CancelAnswer(email_id, "cancelled"))
