"""Every request has an id: in its answer, and in each line that is logged for it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from emailsvc.log import request_id

_may_be_taken = re.compile(r"[A-Za-z0-9+/=_-]{1,200}").fullmatch


def traced(serve: WSGIApplication) -> WSGIApplication:
    """Takes the one in ``X-Request-Id``, which the platform's router or the client gave, or makes one."""

    def serve_traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        own = given if _may_be_taken(given) else secrets.token_hex(16)

        def start(status: str, headers: list[tuple[str, str]], *failure: Any) -> Any:
            return start_response(status, [*headers, ("X-Request-Id", own)], *failure)

        token = request_id.set(own)
        try:
            return serve(environ, start)
        finally:
            request_id.reset(token)

    return serve_traced
