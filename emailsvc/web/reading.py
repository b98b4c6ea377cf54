"""Reading requests and writing answers."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from flask import Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from emailsvc.errors import ServiceError
from emailsvc.intake.decoding import convert, decode

T = TypeVar("T")


def body() -> bytes:
    """The raw body, in full. Raises ServiceError(400, "incomplete_body") when it breaks off.

    More than MAX_REQUEST_BYTES is refused by the announced length, or while it is read when none is announced.
    """
    try:
        raw = request.get_data()
        announced = request.content_length
        cut = announced is None and _is_cut(len(raw))
    except HTTPException:
        raise
    except Exception as exc:  # the server's own classes: a broken chunk, a connection that went away
        raise ServiceError(400, "incomplete_body", "The body ended early, or is malformed HTTP.") from exc
    if cut:
        raise RequestEntityTooLarge
    # Behind a server that ends the stream itself, Werkzeug takes what came for all there is.
    if announced is not None and len(raw) < announced:
        raise ServiceError(400, "incomplete_body", "The body ended before its announced length.")
    return raw


def _is_cut(length: int) -> bool:
    """Of a body without an announced length Werkzeug reads what is allowed, and does not look for more."""
    limit = request.max_content_length
    return limit is not None and length >= limit and bool(request.environ["wsgi.input"].read(1))


def json_body() -> bytes:
    """The raw body of a request that says it is JSON; a browser cannot say so on behalf of a foreign site."""
    if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
        raise ServiceError(415, "not_json", "Send JSON, with Content-Type: application/json.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ServiceError(415, "not_json", "Send the JSON as it is, without a Content-Encoding.")
    return body()


def json_as(kind: type[T]) -> T:
    return decode(msgspec.json.Decoder(kind), json_body())


def optional_json_as(kind: type[T]) -> T:
    """For calls whose body may be left out, so that ``curl -X POST`` is enough."""
    return json_as(kind) if body() else kind()


def query_as(kind: type[T]) -> T:
    """The query string against a declaration; a parameter given twice or not known is refused like any bad one."""
    numbers = _numbers_of(cast(Hashable, kind))
    given: dict[str, object] = {}
    for name, values in request.args.lists():
        given[name] = values if len(values) > 1 else _number(values[0]) if name in numbers else values[0]
    return convert(given, kind)


@cache
def _numbers_of(kind: Any) -> frozenset[str]:
    fields = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return frozenset(name for name, schema in fields.items() if re.search("integer|number", json.dumps(schema)))


def _number(text: str) -> str | int:
    # Left to itself msgspec would also take 0.5 for a time and "null" for nothing.
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text, re.ASCII) else text


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content) + b"\n", status, headers, mimetype="application/json")
