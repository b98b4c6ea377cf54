"""A test client that holds every answer against the contract, and how it says who it is."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from emailsvc.web import ROUTES
from emailsvc.web.answers import Problem
from emailsvc.web.contract import Route

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
STRANGER = {"REMOTE_ADDR": "203.0.113.7"}


class StrictClient(FlaskClient):
    """Fails a test whose answer has a status, a code or a shape that the contract does not tell of."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        route = _route(response.request.method, response.request.path)
        if route is not None:
            hold_against(route, response)
        return response


def _route(method: str, path: str) -> Route | None:
    for route in sorted(ROUTES, key=lambda one: "{" in one.path):
        pattern = re.sub(r"{(dead_letter|action)_id}", r"\\d+", re.sub("{email_id}|{asset}", ".+", route.path))
        if route.method == method and re.fullmatch(pattern, path, re.DOTALL):
            return route
    return None


def hold_against(route: Route, response: TestResponse) -> None:
    status, media = response.status_code, response.mimetype
    where = f"{route.method} {route.path} answered {status} {media}: {response.get_data(as_text=True)[:500]}"
    if media == "application/problem+json":
        problem = msgspec.json.decode(response.data, type=Problem)
        assert status == problem.status, where
        assert problem.code in route.codes.get(status, ()), where
        assert (status == 503) == ("Retry-After" in response.headers), where
        assert (status == 401) == ("WWW-Authenticate" in response.headers), where
        return
    if media == "text/html" and route.template and route.method == "GET" and status in (400, 404):
        assert status in route.codes, where
        return
    assert status in route.answers, where
    declared = route.answers[status]
    for kind in declared if isinstance(declared, tuple) else (declared,):
        if isinstance(kind, str):
            if kind == media:
                return
        elif media == "application/json":
            msgspec.json.decode(response.data, type=kind)
            return
    raise AssertionError(where)
