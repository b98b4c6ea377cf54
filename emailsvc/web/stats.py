"""The statistics, as JSON for programs and as a page for people."""

from __future__ import annotations

import secrets

from flask import Response, render_template_string, request
from msgspec.structs import asdict

from emailsvc import reports
from emailsvc.context import service
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import Hours, Stats
from emailsvc.web.answers import HoursQuery
from emailsvc.web.contract import Routes
from emailsvc.web.page import PAGE
from emailsvc.web.reading import answer

blueprint = Routes("stats", __name__)

LETTERS_SHOWN = 50


@blueprint.declare(
    "GET", "/stats", "operator", "The totals, and the state of delivery", answers={200: (Stats, "text/html")}
)
def totals() -> Response:
    current = reports.stats(service().engine)
    wants_page = request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    response = _page(current) if wants_page else answer(current)
    response.headers["Vary"] = "Accept"
    return response


@blueprint.declare(
    "GET", "/stats/hours", "operator", "What happened in each hour", codes=("invalid_field", "unknown_field")
)
def by_hour(query: HoursQuery) -> Hours:
    return reports.hours(service().engine, in_utc(query.since))


def _page(current: Stats) -> Response:
    page = reports.dead_letters(service().engine, limit=LETTERS_SHOWN)
    nonce = secrets.token_urlsafe(16)
    response = Response(
        render_template_string(PAGE, stats=asdict(current), page=page, nonce=nonce), mimetype="text/html"
    )
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response
