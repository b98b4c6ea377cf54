"""The HTTP interface: each view reads, calls one function below this layer, and answers."""

from __future__ import annotations

from flask import Flask

from emailsvc.web import auth, deadletters, delivery, emails, health, openapi, paths, problems, stats, webhook


def register(app: Flask) -> None:
    """Expects the service in ``app.extensions["emailsvc"]`` no later than the first request."""
    app.url_map.merge_slashes = False  # "a//b" is an e-mail id of its own
    app.url_map.converters["email_id"] = paths.EmailIdConverter
    app.url_map.converters["dead_letter_id"] = paths.DeadLetterIdConverter
    app.before_request(auth.refuse_strangers)
    app.after_request(problems.harden)
    problems.register(app)
    for module in (webhook, emails, stats, deadletters, delivery, health, openapi):
        app.register_blueprint(module.blueprint)
