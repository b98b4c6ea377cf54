"""The statistics, as JSON for programs and as a page for people."""

from __future__ import annotations

from flask import Response

from emailsvc import reports
from emailsvc.context import service
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import Hours, Stats
from emailsvc.web import page
from emailsvc.web.answers import HoursQuery
from emailsvc.web.contract import Routes
from emailsvc.web.reading import answer

blueprint = Routes("stats", __name__)


@blueprint.declare(
    "GET", "/stats", "operator", "The totals, and the state of delivery", answers={200: (Stats, "text/html")}
)
def totals() -> Response:
    """The page tells more than the totals."""
    engine = service().engine
    if page.is_wanted():
        response = page.render("desk.html", {"desk": reports.read_desk(engine)})
    else:
        response = answer(reports.stats(engine))
    response.headers["Vary"] = "Accept"
    return response


@blueprint.declare(
    "GET", "/stats/hours", "operator", "What happened in each hour", codes=("invalid_field", "unknown_field")
)
def by_hour(query: HoursQuery) -> Hours:
    return reports.hours(service().engine, in_utc(query.since))
