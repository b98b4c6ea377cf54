"""The published contract and the routes that are served."""

from __future__ import annotations

import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from emailsvc.web import ROUTES
from tests.webkit import ON_SQLITE


def served(app: Flask) -> set[tuple[str, str]]:
    return {
        (method, re.sub(r"<(?:[^:>]+:)?(\w+)>", r"{\1}", str(rule)))
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


@ON_SQLITE
def test_every_route_is_documented_and_every_documented_one_is_served(app: Flask, client: FlaskClient) -> None:
    published: Any = client.get("/openapi.json").json
    documented = {(method.upper(), path) for path, methods in published["paths"].items() for method in methods}
    assert documented == served(app) == {(route.method, route.path) for route in ROUTES}
