"""The journal."""

from __future__ import annotations

from emailsvc import reports
from emailsvc.context import service
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import ActionPage
from emailsvc.web.answers import ActionQuery
from emailsvc.web.contract import Routes

blueprint = Routes("actions", __name__)


@blueprint.declare(
    "GET", "/actions", "operator", "Who did what, newest first", codes=("invalid_field", "unknown_field")
)
def listing(query: ActionQuery) -> ActionPage:
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
