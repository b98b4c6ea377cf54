"""The statistics, as JSON for programs and as a page for people."""

from __future__ import annotations

import secrets

from flask import Blueprint, Response, render_template_string, request

from emailsvc import reports
from emailsvc.service import service
from emailsvc.web import auth
from emailsvc.web.page import PAGE
from emailsvc.web.reading import answer

blueprint = Blueprint("stats", __name__)
blueprint.before_request(auth.require_operator)

LETTERS_SHOWN = 50


@blueprint.get("/stats")
def stats() -> Response:
    current = reports.stats(service().engine)
    wants_page = request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    response = _page(current) if wants_page else answer(current)
    response.headers["Vary"] = "Accept"
    return response


def _page(current: dict[str, object]) -> Response:
    letters, more = reports.dead_letters(service().engine, limit=LETTERS_SHOWN)
    nonce = secrets.token_urlsafe(16)
    response = Response(
        render_template_string(PAGE, stats=current, letters=letters, more=more, nonce=nonce), mimetype="text/html"
    )
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response
