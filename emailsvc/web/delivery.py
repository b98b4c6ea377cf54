"""The switch: pausing and resuming all delivery, and ending an outage."""

from __future__ import annotations

import logging

from flask import Blueprint, Response

from emailsvc import outbox, reports
from emailsvc.intake import addresses
from emailsvc.service import service
from emailsvc.web import auth
from emailsvc.web.answers import PauseRequest
from emailsvc.web.reading import answer, optional_json_as

log = logging.getLogger("emailsvc.web")

blueprint = Blueprint("delivery", __name__, url_prefix="/delivery")
blueprint.before_request(auth.require_operator)


@blueprint.post("/pause")
def pause() -> Response:
    reason = optional_json_as(PauseRequest).reason or "paused by an operator"
    addresses.one_line(reason, "reason")
    outbox.pause(service().engine, reason)
    log.warning("paused", extra={"fields": {"reason": reason}})
    return answer(reports.delivery_state(service().engine))


@blueprint.post("/resume")
def resume() -> Response:
    outbox.resume(service().engine)
    service().wake()
    log.warning("resumed", extra={"fields": {}})
    return answer(reports.delivery_state(service().engine))


@blueprint.post("/end-outage")
def end_outage() -> Response:
    outbox.end_outage(service().engine)
    service().wake()
    return answer(reports.delivery_state(service().engine))
