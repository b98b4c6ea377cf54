"""Errors of every kind become problem documents, and none of them tells what it should not."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from flask import Flask, redirect
from flask.testing import FlaskClient
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import abort

from tests.factories import payload
from tests.webkit import ON_SQLITE

pytestmark = ON_SQLITE

PARAMETERS = {"body": "Dear Ada"}
LOST = DBAPIError("INSERT", PARAMETERS, Exception("server closed the connection"), connection_invalidated=True)
SAYS_TOO_MUCH = Exception("violates check\nDETAIL: Failing row contains (Dear Ada)")


@pytest.fixture
def failing(app: Flask) -> Callable[[BaseException], FlaskClient]:
    """A route that fails in a given way."""

    def make(error: BaseException) -> FlaskClient:
        def view() -> str:
            raise error

        app.add_url_rule("/fails", view_func=view)
        return app.test_client()

    return make


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("INSERT", PARAMETERS, Exception("database is locked")),
        InterfaceError("INSERT", PARAMETERS, Exception("connection already closed")),
        PoolTimeout("QueuePool limit reached"),
        LOST,
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_that_is_away_is_a_503(
    failing: Callable[[BaseException], FlaskClient], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    answer = failing(error).get("/fails")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert "Ada" not in str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize(
    "error",
    [
        DBAPIError("INSERT", PARAMETERS, SAYS_TOO_MUCH),
        StatementError("a bad value", "INSERT", PARAMETERS, SAYS_TOO_MUCH),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_error_is_logged_without_the_mail(
    failing: Callable[[BaseException], FlaskClient], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    answer = failing(error).get("/fails")
    assert (answer.status_code, answer.get_json()["code"]) == (500, "internal_error")
    logged = caplog.text + str([record.__dict__ for record in caplog.records])
    assert "violates check" in logged
    assert "Ada" not in logged


def test_what_nobody_expected_is_a_500_with_its_traceback_in_the_log(
    failing: Callable[[BaseException], FlaskClient], caplog: pytest.LogCaptureFixture
) -> None:
    answer = failing(ZeroDivisionError("never shown")).get("/fails")
    assert (answer.status_code, answer.mimetype) == (500, "application/problem+json")
    assert "never shown" not in answer.get_data(as_text=True)
    assert "ZeroDivisionError" in caplog.text


def test_other_http_errors_have_a_code_too_and_redirects_stay_redirects(app: Flask) -> None:
    app.add_url_rule("/conflict", endpoint="conflict", view_func=lambda: abort(409))
    app.add_url_rule("/moved", endpoint="moved", view_func=lambda: abort(redirect("/healthz")))
    app.add_url_rule("/folder/", endpoint="folder", view_func=lambda: "")
    client = app.test_client()
    answer = client.get("/conflict")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "conflict")
    assert client.get("/folder").status_code == 308
    assert client.get("/moved").status_code == 302


class Stream(io.BytesIO):
    """A server's input that breaks."""

    def read(self, size: int | None = -1) -> bytes:
        raise RuntimeError


def test_a_body_that_cannot_be_read_or_ends_early_is_a_400(client: FlaskClient) -> None:
    ends = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "3"}
    for stream, environ in (
        (Stream(), ends),
        (io.BytesIO(b"{}"), ends),
        (io.BytesIO(b"{}"), {"CONTENT_LENGTH": "3"}),
    ):
        answer = client.post(
            "/webhook/email", input_stream=stream, environ_overrides=environ, content_type="application/json"
        )
        assert (answer.status_code, answer.get_json()["code"]) == (400, "incomplete_body")


def test_a_body_of_unknown_length_is_read_up_to_the_limit_and_not_cut_there(app: Flask, client: FlaskClient) -> None:
    limit = app.config["MAX_CONTENT_LENGTH"]
    for size, status in ((limit, 400), (limit + 1, 413)):
        answer = client.post(
            "/webhook/email",
            input_stream=io.BytesIO(b" " * size),
            environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
            content_type="application/json",
        )
        assert answer.status_code == status


def test_options_tells_the_methods_of_each_route(client: FlaskClient) -> None:
    assert set(client.options("/webhook/email").allow) == {"OPTIONS", "POST"}
    assert set(client.options("/emails/lookup").allow) == {"OPTIONS", "POST"}
    assert set(client.options("/emails/1").allow) == {"DELETE", "GET", "HEAD", "OPTIONS"}


def test_a_webhook_is_answered_whatever_else_stands_in_its_headers(client: FlaskClient) -> None:
    headers = {
        "Accept": "text/html",
        "X-Forwarded": "no proxy's",
        "Cookie": "a=b",
        "If-None-Match": "*",
        "Range": "bytes=0-1",
    }
    assert client.post("/webhook/email?a=b", json=payload(), headers=headers).status_code == 202
