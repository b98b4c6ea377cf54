"""`GET /openapi.json`: OpenAPI 3.1, made from the table of routes and the declarations that validate."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec
from flask import Response, current_app
from werkzeug.http import HTTP_STATUS_CODES

from emailsvc.context import service
from emailsvc.intake import addresses
from emailsvc.intake.payload import Rules
from emailsvc.web.answers import Problem
from emailsvc.web.contract import PATH_PARAMETERS, Body, Content, Route, Routes, routes_of
from emailsvc.web.problems import MEDIA_TYPE
from emailsvc.web.reading import answer

blueprint = Routes("openapi", __name__)

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"

_SECURITY: Json = {
    "client": [{"token": []}, {"signature": []}],
    "operator": [{"token": []}, {"page": []}],
    "reporter": [{"report": []}, {"report_signature": []}, {"token": []}],
    "anyone": [],
}
_SCHEMES: Json = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "One of API_TOKENS; for operators, of OPERATOR_TOKENS where those are set.",
    },
    "page": {
        "type": "http",
        "scheme": "basic",
        "description": "For browsers: any user name, a token of an operator as the password. "
        "What changes state also carries the header X-Requested-With.",
    },
    "report": {
        "type": "http",
        "scheme": "basic",
        "description": "Any user name, and as the password a secret that REPORT_SECRETS names for this route.",
    },
    "report_signature": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "As `signature`, by a secret that REPORT_SECRETS names for this route.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "Standard Webhooks, with webhook-id and webhook-timestamp, by one of WEBHOOK_SECRETS. "
        "Or the same under Svix's names: svix-signature, svix-id, svix-timestamp.",
    },
}
_INTRODUCTION = (
    "One id, one e-mail. With no WEBHOOK_SECRETS, API_TOKENS or OPERATOR_TOKENS set, only clients on the same machine "
    "are served."
)


@blueprint.declare("GET", "/openapi.json", "anyone", "This document", answers={200: "application/json"})
def published() -> Response:
    config = service().config
    rules = Rules(config.from_domains, config.idempotency_header, config.dedupe_window_seconds)
    return answer(document(rules, routes_of(current_app)))


@lru_cache(maxsize=8)
def document(rules: Rules, routes: tuple[Route, ...]) -> Json:
    declared = [kind for route in routes for kind in _declarations(route)] + [Problem]
    _, schemas = msgspec.json.schema_components(declared, ref_template=_REF)
    _narrow(schemas["EmailPayload"]["properties"], rules)
    _widen(schemas["BatchPayload"]["properties"]["emails"])
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "emailsvc", "version": "1", "description": _INTRODUCTION, "license": {"name": "MIT"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SCHEMES},
    }


def _narrow(properties: Json, rules: Rules) -> None:
    """What this server's configuration forbids, so that the document is true for it."""
    domains = "|".join(sorted(re.escape(domain).replace(r"\-", "-") for domain in rules.from_domains))
    properties["from"]["anyOf"][0]["pattern"] = f"^{addresses.LOCAL_PART}@(?:{domains})$"
    names = [*addresses.FORBIDDEN_HEADERS, *([rules.idempotency_header.lower()] if rules.idempotency_header else [])]
    ours = [f"{_any_case(name)}$" for name in names] + [_any_case(prefix) for prefix in addresses.FORBIDDEN_PREFIXES]
    properties["headers"]["anyOf"][0]["propertyNames"] = {
        "type": "string",
        "maxLength": 76,
        "pattern": f"^(?!{'|'.join(ours)}){addresses.HEADER_NAME[1:]}",
    }


def _widen(emails: Json) -> None:
    emails["items"] = {"anyOf": [emails["items"], {"description": "Anything else gets a result of its own: invalid."}]}


def _any_case(name: str) -> str:
    return "".join(f"[{ch.upper()}{ch}]" if ch.isalpha() else ch for ch in name)


def _declarations(route: Route) -> list[Body]:
    kinds: list[Body] = [
        kind for content in route.answers.values() for kind in _contents(content).values() if kind is not None
    ]
    return [kind for kind in (route.body, route.query, *kinds) if kind is not None]


def _contents(content: Content | tuple[Content, ...]) -> dict[str, type[msgspec.Struct] | None]:
    """Media types and their declarations; None where it is not a declared structure."""
    kinds = content if isinstance(content, tuple) else (content,)
    return dict((kind, None) if isinstance(kind, str) else ("application/json", kind) for kind in kinds)


def _operation(route: Route) -> Json:
    operation: Json = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "security": _SECURITY[route.access],
        "parameters": _parameters(route),
        "responses": {
            **{str(status): _answer(status, content) for status, content in route.answers.items()},
            **{str(status): _problem(status, codes, route) for status, codes in route.codes.items()},
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": _schema(route.body)}}
        operation["requestBody"] = {"required": route.body_required, "content": content}
    return operation


def _operation_id(route: Route) -> str:
    return re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_")


def _parameters(route: Route) -> list[Json]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": _schema(PATH_PARAMETERS[name])}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    if route.query is not None:
        _, schemas = msgspec.json.schema_components([route.query], ref_template=_REF)
        declared = schemas[route.query.__name__]["properties"]
        found += [{"name": name, "in": "query", "schema": _without_null(one)} for name, one in declared.items()]
    return found


def _without_null(schema: Json) -> Json:
    """A query parameter is left out, never null."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf" and not (key == "default" and value is None)}
    rest |= options[0] if options else {}
    return rest


def _schema(kind: object) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(schema)


def _answer(status: int, content: Content | tuple[Content, ...]) -> Json:
    media = {name: {"schema": _schema(kind)} if kind else {} for name, kind in _contents(content).items()}
    return {"description": HTTP_STATUS_CODES[status], "content": media}


def _problem(status: int, codes: tuple[str, ...], route: Route) -> Json:
    schema = {"allOf": [{"$ref": _REF.format(name="Problem")}, {"properties": {"code": {"enum": list(codes)}}}]}
    response: Json = {"description": ", ".join(codes), "content": {MEDIA_TYPE: {"schema": schema}}}
    if route.template and route.method == "GET" and status in (400, 404):
        response["content"]["text/html"] = {}
    if status == 503:
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return response
