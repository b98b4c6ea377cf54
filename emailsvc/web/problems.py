"""Errors as ``application/problem+json`` (RFC 9457), each with a stable ``code``."""

from __future__ import annotations

import logging
import re

import msgspec
from flask import Flask, Response, request
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.http import HTTP_STATUS_CODES

from emailsvc.errors import ServiceError, brief
from emailsvc.web import refused
from emailsvc.web.answers import Problem
from emailsvc.web.auth import REPORTS

log = logging.getLogger("emailsvc.web")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


def register(app: Flask) -> None:
    app.register_error_handler(ServiceError, _service_error)
    app.register_error_handler(HTTPException, _http_exception)
    for away in (OperationalError, InterfaceError, PoolTimeout):
        app.register_error_handler(away, _database_away)
    app.register_error_handler(DBAPIError, _database_error)
    app.register_error_handler(Exception, _unexpected)


def problem(
    status: int, code: str, detail: str, field: str | None = None, problems: list[str] | None = None
) -> Response:
    # Werkzeug's names, not http.HTTPStatus's: those changed with Python 3.13, and an answer should not.
    document = Problem("about:blank", HTTP_STATUS_CODES[status], status, detail, code, field, problems)
    response = Response(msgspec.json.encode(document) + b"\n", status, mimetype=MEDIA_TYPE)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _service_error(error: ServiceError) -> Response:
    if _is_webhook():
        refused.note(error.status, error.code, error.field, error.email_id)
    answer = problem(error.status, error.code, error.detail, error.field)
    if error.status == 401:
        # RFC 9110 §11.6.1. Basic only where a person may be looking, so that no script gets a browser's login window.
        # And to providers' reports: Amazon SNS sends its password only when it is asked for it.
        asks = request.method == "GET" or request.blueprint == REPORTS
        basic = 'Basic realm="emailsvc", charset="UTF-8", ' if asks else ""
        answer.headers["WWW-Authenticate"] = f'{basic}Bearer realm="emailsvc"'
    return answer


def _http_exception(error: HTTPException) -> Response:
    status = error.code or 500  # never a redirect: Flask answers those itself
    code, detail = _told(error, status)
    if _is_webhook():
        refused.note(status, code)
    answer = problem(status, code, detail)
    allowed = error.get_response().headers.get("Allow")
    if allowed:
        answer.headers["Allow"] = allowed
    return answer


def _told(error: HTTPException, status: int) -> tuple[str, str]:
    if isinstance(error, ClientDisconnected):
        return "incomplete_body", "The body ended before its announced length."
    if isinstance(error, RequestEntityTooLarge):
        return "too_large", f"The body exceeds {request.max_content_length} bytes (MAX_REQUEST_BYTES)."
    title = HTTP_STATUS_CODES[status]
    return _CODES.get(status) or re.sub(r"\W+", "_", title.lower()), error.description or title


def _is_webhook() -> bool:
    return request.blueprint == "webhook"


def _database_away(error: Exception) -> Response:
    """Nothing was acknowledged, so the client tries again; if the row did commit, that is a clean duplicate."""
    log.error("database_unavailable", extra={"fields": {"path": request.path, "error": brief(error)}})
    return problem(503, "database_unavailable", "The database does not answer. Nothing is lost: please try again.")


def _database_error(error: DBAPIError) -> Response:
    return _database_away(error) if error.connection_invalidated else _unexpected(error)


def _unexpected(error: Exception) -> Response:
    fields = {"method": request.method, "path": request.path, "error": type(_cause(error)).__name__}
    if isinstance(error, StatementError):  # its text and its traceback quote the parameters, which are the mail
        log.error("internal_error", extra={"fields": fields | {"detail": brief(error)}})
    else:
        log.error("internal_error", extra={"fields": fields}, exc_info=error)
    return problem(500, "internal_error", "Something went wrong here; it was logged.")


def _cause(error: Exception) -> BaseException:
    return (error.orig if isinstance(error, StatementError) else None) or error
