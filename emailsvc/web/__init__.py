"""The HTTP interface: each view reads, calls one function below this layer, and answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from emailsvc import outbox
from emailsvc.clock import monotonic
from emailsvc.db.promptness import promptly
from emailsvc.web import (
    actions,
    auth,
    deadletters,
    delivery,
    desk,
    emails,
    health,
    metrics,
    openapi,
    page,
    problems,
    reported,
    stats,
    webhook,
)
from emailsvc.web.contract import CONVERTERS
from emailsvc.web.refused import EXTENSION, RefusedWebhooks
from emailsvc.web.tracing import traced

ON_EVERY_ANSWER = {
    "cache-control": ("Cache-Control", "no-store"),
    "content-security-policy": ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    "x-content-type-options": ("X-Content-Type-Options", "nosniff"),
    "referrer-policy": ("Referrer-Policy", "same-origin"),
}
"""It is about somebody's e-mail, so nothing caches, frames or guesses it."""
BLUEPRINTS = tuple(
    module.blueprint
    for module in (webhook, emails, stats, deadletters, delivery, actions, reported, desk, health, metrics, openapi)
)
ROUTES = tuple(route for blueprint in BLUEPRINTS for route in blueprint.table)


def register(app: Flask) -> None:
    """Expects the service in ``app.extensions["emailsvc"]`` no later than the first request."""
    app.url_map.merge_slashes = False  # "a//b" is an e-mail id of its own
    app.url_map.converters |= CONVERTERS
    app.before_request(auth.refuse_strangers)
    problems.register(app)
    page.register(app)
    app.extensions[EXTENSION] = RefusedWebhooks(
        lambda counts: outbox.count_refused(app.extensions["emailsvc"].engine, counts)
    )
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    app.wsgi_app = traced(_prompt(_hardened(app.wsgi_app)))  # type: ignore[method-assign, assignment]


def _prompt(serve: WSGIApplication) -> WSGIApplication:
    """Webhooks, and what anybody may ask for meanwhile, are answered in time; what an operator changes may take it."""

    def serve_promptly(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        changes = environ["REQUEST_METHOD"] not in auth.SAFE_METHODS
        if changes and not environ["PATH_INFO"].startswith("/webhook/"):
            return serve(environ, start_response)
        with promptly(environ.get("emailsvc.arrived", monotonic())):
            return serve(environ, start_response)

    return serve_promptly


def _hardened(serve: WSGIApplication) -> WSGIApplication:
    """Adds ``ON_EVERY_ANSWER``, but for what the view has set; on Flask's headers it would take ten times as long."""

    def serve_hardened(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *failure: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            missing = [header for name, header in ON_EVERY_ANSWER.items() if name not in present]
            return start_response(status, headers + missing, *failure)

        return serve(environ, start)

    return serve_hardened
