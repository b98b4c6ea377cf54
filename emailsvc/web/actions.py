"""The journal."""

from __future__ import annotations

import logging

from emailsvc import outbox, reports
from emailsvc.context import service
from emailsvc.intake import addresses
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import Action, ActionPage
from emailsvc.web import auth
from emailsvc.web.answers import ActionQuery, StopAnswer
from emailsvc.web.contract import Routes

log = logging.getLogger("emailsvc.web")

blueprint = Routes("actions", __name__)


@blueprint.declare(
    "GET", "/actions", "operator", "Who did what, newest first",
    codes=("invalid_field", "unknown_field"), template="journal.html",
)  # fmt: skip
def listing(query: ActionQuery) -> ActionPage:
    if query.who is not None:
        addresses.one_line(query.who, "who")
    return reports.actions(
        service().engine,
        kind=query.kind,
        who=query.who,
        state=query.state,
        since=in_utc(query.since),
        until=in_utc(query.until),
        limit=query.limit,
        cursor=query.cursor,
    )


@blueprint.declare("GET", "/actions/{action_id}", "operator", "One of them, and how far it is", codes=("not_found",))
def show(action_id: int) -> Action:
    return reports.action(service().engine, action_id)


@blueprint.declare(
    "POST", "/actions/{action_id}/stop", "operator", "Move no more of its dead letters",
    codes=("not_found", "already_over"),
)  # fmt: skip
def stop(action_id: int) -> StopAnswer:
    left = outbox.stop(service().engine, action_id, who=auth.operator_name())
    log.info("stopped", extra={"fields": {"action": action_id, "left": left}})
    return StopAnswer(action_id, "stopped", left)
