"""For load balancers."""

from __future__ import annotations

from flask import Response

from emailsvc import reports
from emailsvc.context import service
from emailsvc.web import auth
from emailsvc.web.answers import Health, Ready
from emailsvc.web.contract import Routes
from emailsvc.web.problems import problem
from emailsvc.web.reading import answer

blueprint = Routes("health", __name__)


@blueprint.declare("GET", "/healthz", "anyone", "The process is up")
def healthz() -> Health:
    return Health("ok")


@blueprint.declare(
    "GET", "/readyz", "anyone", "Mail can go out",
    answers={200: Ready}, codes=("not_ready", "database_unavailable"),
)  # fmt: skip
def readyz() -> Response:
    wrong = reports.readiness(service().engine, service().config)
    if not wrong:
        return answer(Ready("ready"))
    shown = wrong if auth.is_operator() else None
    return problem(503, "not_ready", "The service cannot deliver at the moment.", problems=shown)
