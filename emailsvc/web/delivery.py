"""The switch: pausing and resuming all delivery, and ending an outage."""

from __future__ import annotations

import logging

from emailsvc import outbox, reports
from emailsvc.context import service
from emailsvc.intake import addresses
from emailsvc.log import without_addresses
from emailsvc.reports.answers import Delivery
from emailsvc.web import auth
from emailsvc.web.answers import PauseRequest
from emailsvc.web.contract import Routes

log = logging.getLogger("emailsvc.web")

blueprint = Routes("delivery", __name__)


@blueprint.declare("POST", "/delivery/pause", "operator", "Start no further e-mail until resumed", body_required=False)
def pause(body: PauseRequest) -> Delivery:
    reason = body.reason or "paused by an operator"
    addresses.one_line(reason, "reason")
    outbox.pause(service().engine, reason, who=auth.operator_name())
    log.warning("paused", extra={"fields": {"reason": without_addresses(reason)}})
    return reports.delivery_state(service().engine)


@blueprint.declare("POST", "/delivery/resume", "operator", "End a pause")
def resume() -> Delivery:
    outbox.resume(service().engine, who=auth.operator_name())
    service().wake()
    log.warning("resumed", extra={"fields": {}})
    return reports.delivery_state(service().engine)


@blueprint.declare("POST", "/delivery/end-outage", "operator", "End an outage, if there is one")
def end_outage() -> Delivery:
    outbox.end_outage(service().engine, who=auth.operator_name())
    service().wake()
    return reports.delivery_state(service().engine)
