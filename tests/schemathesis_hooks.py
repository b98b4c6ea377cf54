"""What JSON Schema cannot say about a request, so that generated ones can be held to it."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    if not isinstance(body, dict):
        return True
    if context.operation.path in ("/emails/search", "/emails/send"):
        return _is_a_filter(body) and (context.operation.path == "/emails/search" or _names_something(body))
    return _times_are_in_order(body, "send_at", "expires_at") and _headers_are_distinct(body.get("headers"))


@schemathesis.hook
def filter_query(context: Any, query: Any) -> bool:
    return context.operation.path != "/actions" or not query or "cursor" not in query


def _times_are_in_order(body: dict[str, Any], first: str, then: str) -> bool:
    start, end = body.get(first), body.get(then)
    # Offsets differ, so only what is plainly in order by its year stays in.
    return not (isinstance(start, str) and isinstance(end, str)) or start[:4] < end[:4]


def _headers_are_distinct(headers: Any) -> bool:
    return not isinstance(headers, dict) or len({name.lower() for name in headers}) == len(headers)


def _is_a_filter(body: dict[str, Any]) -> bool:
    """A cursor is refused by every search but its own."""
    state = body.get("state")
    return (
        _times_are_in_order(body, "since", "until")
        and (body.get("error") is None or state == "failed")
        and (body.get("priority") is None or state == "pending")
        and (body.get("order") != "due" or state in (None, "pending"))
        and body.get("cursor") is None
    )


def _names_something(body: dict[str, Any]) -> bool:
    named = any(body.get(name) is not None for name in ("user", "state", "since", "until"))
    return body.get("state") in (None, "pending") and (named or bool(body.get("dry_run")))
